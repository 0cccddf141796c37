// Products as a grid of pictures, and moving in it by keyboard.

import { factsOf, judged, nameOf, score, shot } from "./catalogue.js";
import { make } from "./dom.js";

const PICTURE = 320; // pixels asked for

/** A list of cards. `address`: of a document's detail view. */
export function grid(hits, model, address) {
  return make("ul", { class: "grid" }, hits.map((hit) => make("li", {}, card(hit, model, address))));
}

/** One product, a link to its detail view. */
export function card(hit, model, address) {
  const facts = factsOf(hit, model);
  return make("a", { class: "card", href: address(hit.doc_id), "data-open": hit.doc_id },
    shot(hit, model, PICTURE),
    make("span", { class: "name" }, nameOf(hit, model)),
    facts.length > 0 && make("span", { class: "facts" }, facts.map((fact) => make("span", {}, fact))),
    make("span", { class: "line" }, score(hit), judged(hit)));
}

/** Grey cards while products are on their way. */
export function skeletons(count) {
  const one = () => make("li", {}, make("div", { class: "card ghost" },
    make("div", { class: "shot" }), make("span", { class: "name" }), make("span", { class: "line" })));
  return make("ul", { class: "grid", "aria-hidden": "true" }, Array.from({ length: count }, one));
}

/**
 * Moves the focus among the links of a list by arrows, Home and End.
 * Returns false where the key says nothing here; `leave` is called on going up from the first row.
 */
export function moveFocus(event, links, leave) {
  const at = links.indexOf(document.activeElement);
  if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return false;
  const row = Math.max(1, links.filter((link) => top(link) === top(links[0])).length);
  const target = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + row, ArrowUp: at - row, Home: 0, End: links.length - 1 }[event.key];
  if (target === undefined) return false;
  event.preventDefault();
  if (target < 0 && event.key === "ArrowUp") leave();
  else (links[target] ?? document.activeElement).focus();
  return true;
}

const top = (element) => Math.round(element.getBoundingClientRect().top + window.scrollY);
