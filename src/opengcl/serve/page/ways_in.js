// How a picture gets into the page: chosen, dropped anywhere, or pasted.

import { byId } from "./dom.js";

/** `use` is called with the file, or with null where what came is no picture. */
export function listenForPictures(use) {
  byId("file").addEventListener("change", (event) => {
    use(pictureIn(event.target.files));
    event.target.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData?.files);
    if (!file) return; // text is for the box
    event.preventDefault();
    use(file);
  });
  listenForDrops(use);
}

function listenForDrops(use) {
  let depth = 0; // enter and leave come for every element on the way
  const over = (on) => byId("drop").classList.toggle("over", on);
  const on = (kind, act) => document.addEventListener(kind, (event) => event.dataTransfer?.types.includes("Files") && act(event));
  on("dragenter", () => over(++depth > 0));
  on("dragleave", () => over((depth = Math.max(0, depth - 1)) > 0));
  on("dragover", (event) => event.preventDefault());
  on("drop", (event) => {
    event.preventDefault();
    over((depth = 0) > 0);
    use(pictureIn(event.dataTransfer.files));
  });
}

const pictureIn = (files) => [...(files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
