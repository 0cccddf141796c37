// The page before anything is searched: queries of the data set, each with the pictures it finds.

import * as api from "./api.js";
import { shot } from "./catalogue.js";
import { make } from "./dom.js";

const QUERIES = 6;
const SHOWN = 3;
const PICTURE = 256;

/** Fills the box. `address`: of the search for a text. Queries that fail are shown without pictures. */
export async function welcome(box, model, address, signal) {
  const tiles = make("ul", { class: "ideas" });
  box.replaceChildren(make("div", { class: "welcome" },
    make("h1", {}, "Find it by words, by a picture, or by both"),
    make("p", { class: "soft" }, `${model.documents.toLocaleString()} products. Type above, or drop a picture anywhere on this page.`), tiles));
  const queries = (await api.suggest("", signal).catch(() => [])).slice(0, QUERIES);
  if (signal.aborted) return;
  await Promise.all(queries.map(async (text) => {
    const pictures = make("span", { class: "trio", "aria-hidden": "true" });
    tiles.append(make("li", {}, make("a", { class: "idea", href: address(text), "data-text": text }, pictures, make("span", { class: "name" }, text))));
    const body = { query: { text }, k: SHOWN, model: model.name };
    const found = await api.search(body, signal).catch(() => ({ hits: [] }));
    if (!signal.aborted) pictures.replaceChildren(...found.hits.map((hit) => shot(hit, model, PICTURE)));
  }));
}
