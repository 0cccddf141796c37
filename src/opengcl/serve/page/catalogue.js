// How a document of any data set is shown: which field is its name, which are worth a line, how values read.

import * as api from "./api.js";
import { make } from "./dom.js";

const NAMES = ["title", "name", "product_title", "product_name"];
const FIRST = [/price/i, /brand|maker|manufacturer/i];
const LONGEST_FACT = 40; // characters
const FACTS = 2;
const GRADES = 5;

/**
 * The field whose text names a document, or null: a title, or else the first text that the model reads, or else the first
 * there is. Null too where the model reads texts and the index keeps none of them: another field would mislead.
 */
export function nameField(model) {
  const texts = (fields) => Object.entries(fields ?? {}).filter(([, type]) => type === "text").map(([name]) => name);
  const [kept, encoded] = [texts(model.fields), texts(model.inputs)];
  return NAMES.find((name) => kept.includes(name)) ?? (encoded.length ? encoded : kept).find((name) => kept.includes(name)) ?? null;
}

/** What a document is called: its id where it has no name. */
export function nameOf(hit, model) {
  const name = hit.fields[nameField(model)];
  return typeof name === "string" && name.trim() ? name : hit.doc_id;
}

/** Up to two lines for a card: price and brand first, nothing that the name says already. */
export function factsOf(hit, model) {
  const said = nameOf(hit, model).toLowerCase();
  const place = (name) => (FIRST.findIndex((pattern) => pattern.test(name)) + FIRST.length + 1) % (FIRST.length + 1);
  return Object.entries(hit.fields)
    .filter(([name, value]) => name !== nameField(model) && isShort(value) && !said.includes(String(value).toLowerCase()))
    .sort(([left], [right]) => place(left) - place(right))
    .slice(0, FACTS)
    .map(([name, value]) => (typeof value === "string" || /price/i.test(name) ? reads(name, value) : `${label(name)} ${reads(name, value)}`));
}

/** A field's name for people: base_colour is "base colour". */
export const label = (name) => name.replaceAll("_", " ");

/** A field's value for people. Prices have two decimals; other numbers, such as years, have no thousands separators. */
export function reads(name, value) {
  if (value === true || value === false) return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (/price/i.test(name)) return value.toLocaleString(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  return value.toLocaleString(undefined, { useGrouping: Math.abs(value) >= 10_000, maximumFractionDigits: 4 });
}

/** Judged relevance, 0 to 1, as one of five grades from 1; 0 for what is not judged. */
export const grade = (relevance) =>
  relevance === null || relevance === undefined ? 0 : Math.min(GRADES, 1 + Math.floor(relevance * GRADES));

/** A document's picture on a tile; its name where it has none. */
export function shot(hit, model, size) {
  const field = model.images?.[0];
  const tile = make("div", { class: "shot" });
  if (!field) return without(tile, hit, model);
  const image = make("img", { alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("load", () => {
    // Small photographs are shown at up to three times their size; more is only blur.
    image.style.maxWidth = `${image.naturalWidth * 3}px`;
    tile.classList.add("there");
  });
  image.addEventListener("error", () => without(tile, hit, model), { once: true });
  tile.append(image);
  api.showPicture(image, hit.doc_id, field, size);
  return tile;
}

/** A thin bar of the cosine from 0 to 1, and the number. */
export function score(hit) {
  const bar = make("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--part", Math.max(0, Math.min(1, hit.score)));
  return make("span", { class: "score", title: "Cosine of query and product" },
    bar, make("span", { class: "hidden" }, "score "), hit.score.toFixed(3));
}

/** How relevant a document was judged, as a colour and a number; null where it was not. */
export function judged(hit) {
  if (grade(hit.relevance) === 0) return null;
  return make("span", { class: `judged grade-${grade(hit.relevance)}`, title: "Judged relevance, per cent" },
    make("span", { class: "hidden" }, "judged "), String(Math.round(hit.relevance * 100)));
}

function isShort(value) {
  return value !== null && value !== undefined && value !== "" && String(value).length <= LONGEST_FACT;
}

function without(tile, hit, model) {
  tile.classList.add("empty");
  tile.replaceChildren(make("span", { "aria-hidden": "true" }, nameOf(hit, model).slice(0, 80)));
  return tile;
}
