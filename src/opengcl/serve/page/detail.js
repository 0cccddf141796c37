// One product in full, with others like it.

import * as api from "./api.js";
import { judged, label, nameField, nameOf, reads, score, shot } from "./catalogue.js";
import { icon, make } from "./dom.js";
import { grid, skeletons } from "./grid.js";
import { likeDocument } from "./query.js";
import { trouble } from "./trouble.js";

const PICTURE = 640;
const SIMILAR = 12;

/**
 * Fills the dialog with a document.
 * `hit`: as found, with its score, or null to ask the server. `links`: {open(id), like(id)} give addresses.
 */
export async function showDetail(dialog, id, hit, model, links, signal) {
  const similar = make("div", { "aria-busy": "true" }, skeletons(6));
  const close = make("button", { class: "round close", type: "button", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  dialog.replaceChildren(close, make("div", { class: "product ghost" }, make("div", { class: "shot" })));
  if (!dialog.open) dialog.showModal();
  try {
    const found = hit ?? { ...(await api.product(id, signal)), score: null };
    if (signal.aborted) return;
    dialog.replaceChildren(close, about(found, model, links),
      make("section", { "aria-labelledby": "similar-title" }, make("h3", { id: "similar-title" }, "Similar products"), similar));
    close.focus();
    dialog.scrollTop = 0;
    await showSimilar(similar, found, model, links, signal);
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    dialog.replaceChildren(close, make("h2", { id: "detail-title", class: "hidden" }, "Product"),
      trouble(error, () => showDetail(dialog, id, hit, model, links, signal)));
  }
}

function about(hit, model, links) {
  const facts = Object.entries(hit.fields).filter(([name, value]) => name !== nameField(model) && value !== null && value !== "");
  return make("div", { class: "product" }, shot(hit, model, PICTURE),
    make("div", { class: "about" },
      make("h2", { id: "detail-title" }, nameOf(hit, model)),
      hit.score !== null && make("p", { class: "line" }, score(hit), judged(hit)),
      make("dl", {}, facts.map(([name, value]) => [make("dt", {}, label(name)), make("dd", {}, reads(name, value))]),
        make("dt", {}, "id"), make("dd", {}, hit.doc_id)),
      make("a", { class: "main", href: links.like(hit.doc_id), "data-like": hit.doc_id }, "More like this")));
}

async function showSimilar(box, hit, model, links, signal) {
  try {
    const query = await likeDocument(hit.doc_id, model, signal);
    const found = query && (await api.search({ query, k: SIMILAR + 1, model: model.name }, signal));
    if (signal.aborted) return;
    const others = (found?.hits ?? []).filter((one) => one.doc_id !== hit.doc_id).slice(0, SIMILAR);
    box.replaceChildren(others.length ? grid(others, model, links.open) : make("p", { class: "soft" }, "None."));
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    box.replaceChildren(trouble(error, () => showSimilar(box, hit, model, links, signal)));
  }
  box.setAttribute("aria-busy", "false");
}
