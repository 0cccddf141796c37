// The server's answers. Every request can be cancelled by a signal, and fails with a `Failure`.

const KEY = "opengcl-key"; // in the tab's session only

/** What went wrong. `status` is 0 where no server answered, `retryAfter` in seconds or null. */
export class Failure extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const models = (signal) => ask("models", { signal });
export const suggest = (text, signal) => ask(`suggest?${new URLSearchParams({ q: text })}`, { signal });
export const product = (id, signal) => ask(`documents?${new URLSearchParams({ doc_id: id })}`, { signal });
export const search = (body, signal) =>
  ask("search", { signal, method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** Keeps an API key until the tab is closed; the server asks for one by answering 401. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Where a document's picture is; `size` is the longer side in pixels. */
export const pictureAddress = (id, field, size) =>
  `image?${new URLSearchParams({ doc_id: id, field, size })}`;

/** A document's picture as a file, or null where it has none. */
export async function picture(id, field, size, signal) {
  const response = await reach(pictureAddress(id, field, size), { signal });
  if (response.status === 404) return null;
  if (!response.ok) throw await failure(response);
  return response.blob();
}

/** Shows a document's picture in an `img`. With a key it is fetched, as an `img` cannot send one. */
export async function showPicture(image, id, field, size) {
  if (!sessionStorage.getItem(KEY)) {
    image.src = pictureAddress(id, field, size);
    return;
  }
  try {
    const blob = await picture(id, field, size);
    if (!blob) throw new Failure(404, "no picture");
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    image.src = URL.createObjectURL(blob);
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}

async function ask(address, options) {
  const response = await reach(address, options);
  if (!response.ok) throw await failure(response);
  try {
    return exactly(await response.text());
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(response.status, "The server's answer cannot be read.");
  }
}

const TEXT_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/** JSON, with integers that a number of this language would round as texts of their digits. */
function exactly(json) {
  const isUnsafe = (one) => /^-?\d{16,}$/.test(one) && !Number.isSafeInteger(Number(one));
  return JSON.parse(json.replace(TEXT_OR_NUMBER, (one) => (isUnsafe(one) ? `"${one}"` : one)));
}

async function reach(address, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  try {
    return await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The server does not answer.");
  }
}

async function failure(response) {
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // Not from our server, or cut off: the status has to do.
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  const message = told?.message ? String(told.message) : `The server answered with status ${response.status}.`;
  return new Failure(response.status, message, Number.isFinite(seconds) ? Math.max(0, seconds) : null);
}
