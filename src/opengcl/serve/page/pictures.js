// Pictures of one's own: made small before they leave the browser, and kept for as long as the tab is open.

const LONGEST = 768; // pixels; more than encoders look at
const MOST_BYTES = 50_000_000;
const KEPT = 12; // the session's storage holds a few megabytes
const PREFIX = "picture-";
const fresh = new Map(); // also in memory, where storage is off or full

/**
 * Makes a picture small and keeps it.
 * Returns its key, which goes into the address. Throws an Error that can be shown, where it cannot be read.
 */
export async function keep(file) {
  if (file.size > MOST_BYTES) throw new Error("That file is over 50 MB. Choose a smaller picture.");
  const address = await asAddress(await small(file));
  const key = digest(address);
  fresh.set(key, address);
  try {
    const old = Object.keys(sessionStorage).filter((name) => name.startsWith(PREFIX));
    for (const name of old.slice(0, Math.max(0, old.length - KEPT + 1))) sessionStorage.removeItem(name);
    sessionStorage.setItem(PREFIX + key, address);
  } catch {
    // Full or off: the picture is lost on reload, and the page says so then.
  }
  return key;
}

/** A kept picture as a data address, or null where this tab does not have it. */
export function kept(key) {
  return fresh.get(key) ?? sessionStorage.getItem(PREFIX + key);
}

/** What the server wants: the base64 of a data address. */
export const base64 = (address) => address.slice(address.indexOf(",") + 1);

/** A blob as a data address. */
export function asAddress(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(new Error("The picture cannot be read.")));
    reader.readAsDataURL(blob);
  });
}

async function small(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("That file is not a picture that this browser can read.");
  }
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const paint = canvas.getContext("2d");
  paint.fillStyle = "white"; // under transparent parts, as in training
  paint.fillRect(0, 0, canvas.width, canvas.height);
  paint.imageSmoothingQuality = "high";
  paint.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(blob) : reject(new Error("The picture cannot be made smaller.")));
    canvas.toBlob(done, "image/jpeg", 0.88);
  });
}

/** Short and the same for the same picture; `crypto.subtle` is missing on plain HTTP from another machine. */
function digest(text) {
  let hash = 0xcbf29ce484222325n;
  for (let at = 0; at < text.length; at += 7) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(text.charCodeAt(at))) * 0x100000001b3n);
  }
  return hash.toString(36);
}
