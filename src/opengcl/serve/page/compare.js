// Two models on the same query: their lists side by side, and lines between the same product in both.

import { judged, nameOf, score, shot } from "./catalogue.js";
import { draw, make } from "./dom.js";

const PICTURE = 160;
const GRADES = [1, 2, 3, 4, 5];

/**
 * Two ranked lists. `replies`: of both models to the same query; `models`: both; `address`: of a document's detail view.
 * The lines follow the lists' layout for as long as the element is on the page.
 */
export function compare(replies, models, address) {
  const ranks = replies.map((reply) => new Map(reply.hits.map((hit) => [hit.doc_id, hit.rank])));
  const lines = draw("svg", { class: "moves", "aria-hidden": "true" });
  const lists = replies.map((reply, side) => list(reply, models[side], side, ranks, address));
  const box = make("div", { class: "compare" }, heading(replies, models, 0), make("span", {}), heading(replies, models, 1), lists[0], lines, lists[1]);
  const watch = new ResizeObserver(() => (box.isConnected ? connect(lines, lists, ranks) : watch.disconnect()));
  watch.observe(box);
  for (const list of lists) watch.observe(list);
  for (const kind of ["pointerover", "focusin"]) box.addEventListener(kind, (event) => mark(box, event.target.closest("[data-open]")?.dataset.open));
  for (const kind of ["pointerleave", "focusout"]) box.addEventListener(kind, () => mark(box, undefined));
  const hasJudged = replies.some((reply) => reply.hits.some((hit) => judged(hit)));
  return make("div", {}, hasJudged && legend(), box);
}

function heading(replies, models, side) {
  const [own, other] = [replies[side]["ndcg@10"], replies[1 - side]["ndcg@10"]];
  const difference = side === 1 && own !== null && other !== null ? own - other : null;
  return make("div", { class: "heading" },
    make("h2", {}, models[side].label),
    typeof own === "number" && make("p", {}, make("span", { class: "soft" }, "NDCG@10 "), make("b", {}, own.toFixed(3)),
      difference !== null && make("span", { class: `gain ${direction(difference)}` }, `${difference < 0 ? "−" : "+"}${Math.abs(difference).toFixed(3)}`)));
}

function list(reply, model, side, ranks, address) {
  return make("ol", { class: "ranked", "aria-label": model.label }, reply.hits.map((hit) =>
    make("li", {}, make("a", { class: "row", href: address(hit.doc_id), "data-open": hit.doc_id },
      make("span", { class: "rank" }, make("span", { class: "hidden" }, "rank "), String(hit.rank)),
      shot(hit, model, PICTURE),
      make("span", { class: "words" },
        make("span", { class: "name" }, nameOf(hit, model)),
        make("span", { class: "line" }, score(hit), judged(hit), side === 1 && move(ranks[0].get(hit.doc_id), hit.rank)))))));
}

/** How the second list moved a product. */
function move(before, now) {
  if (before === undefined) return make("span", { class: "gain new" }, "new");
  if (before === now) return make("span", { class: "gain same", title: "same rank" }, "=");
  const told = before > now ? "up" : "down";
  return make("span", { class: `gain ${told}` }, make("span", { class: "hidden" }, `${told} `),
    make("span", { "aria-hidden": "true" }, told === "up" ? "↑" : "↓"), String(Math.abs(before - now)));
}

const direction = (difference) => (difference > 0 ? "up" : difference < 0 ? "down" : "same");

/** Draws the lines between the middles of the rows. */
function connect(lines, lists, ranks) {
  const frame = lines.getBoundingClientRect();
  const middles = lists.map((list) => new Map([...list.querySelectorAll("[data-open]")].map((row) => {
    const place = row.getBoundingClientRect();
    return [row.dataset.open, place.top + place.height / 2 - frame.top];
  })));
  const width = frame.width;
  lines.replaceChildren(...[...middles[0]].filter(([id]) => middles[1].has(id)).map(([id, from]) => {
    const to = middles[1].get(id);
    const bend = width * 0.55;
    return draw("path", {
      class: direction(ranks[0].get(id) - ranks[1].get(id)), "data-line": id,
      d: `M0 ${from}C${bend} ${from} ${width - bend} ${to} ${width} ${to}`,
    });
  }));
}

function mark(box, id) {
  box.classList.toggle("marking", id !== undefined);
  for (const one of box.querySelectorAll(".marked")) one.classList.remove("marked");
  if (id === undefined) return;
  const name = CSS.escape(id);
  for (const one of box.querySelectorAll(`[data-open="${name}"], [data-line="${name}"]`)) one.classList.add("marked");
}

function legend() {
  return make("p", { class: "legend" }, make("span", {}, "Judged relevance"), make("span", { class: "soft" }, "0"),
    GRADES.map((grade) => make("span", { class: `judged grade-${grade}`, "aria-hidden": "true" }, " ")),
    make("span", { class: "soft" }, "100"), make("span", { class: "soft" }, "without a colour: not judged"));
}
