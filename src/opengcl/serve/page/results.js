// The results of the newest search: a grid that grows, two lists to compare, or what went wrong.

import * as api from "./api.js";
import { compare } from "./compare.js";
import { make } from "./dom.js";
import { card, grid, skeletons } from "./grid.js";
import { Newest } from "./newest.js";
import { searchBody } from "./query.js";
import { isSearch } from "./state.js";
import { trouble } from "./trouble.js";
import { welcome } from "./welcome.js";

export const COMPARE = "compare";
const PAGE = 24; // products asked for at a time
const ENDLESS = 5; // pages that load by themselves; after them by a button, so that the page's end can be reached
const DEEPEST = 10_000; // the server's limit of offset + k
const COMPARED = 20;
const SLOW = 350; // ms before skeletons take the place of older results
const AHEAD = "600px";

export class Results {
  #newest = new Newest();
  #shown = null; // the search whose results are shown or under way

  /**
   * `box`: where they go. `links`: addresses of documents and searches. `say`: tells the count. `clear`: drops all filters.
   */
  constructor(box, links, say, clear) {
    Object.assign(this, { box, links, say, clear, hits: [] });
  }

  /** Shows what a state searches for; nothing happens if it is shown already. */
  show(state, model, models) {
    const key = JSON.stringify({ ...state, open: "" });
    if (key === this.#shown) return;
    this.#shown = key;
    Object.assign(this, { state, model, models });
    this.#run(this.#newest.signal());
  }

  async #run(signal) {
    this.hits = [];
    this.box.setAttribute("aria-busy", "true");
    if (isSearch(this.state)) await this.#search(signal);
    else await welcome(this.box, this.model, this.links.text, signal);
    if (!signal.aborted) this.box.setAttribute("aria-busy", "false");
  }

  async #search(signal) {
    const older = this.box.querySelector(".grid a, .compare");
    const waiting = setTimeout(() => this.box.replaceChildren(skeletons(PAGE / 2)), older ? SLOW : 0);
    try {
      await (this.state.view === COMPARE && this.models.length > 1 ? this.#bothLists(signal) : this.#firstPage(signal));
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      this.say("");
      this.box.replaceChildren(trouble(error, () => this.#run(this.#newest.signal())));
    } finally {
      clearTimeout(waiting);
    }
  }

  async #ask(model, k, offset, signal) {
    const reply = await api.search(await searchBody(this.state, model, k, offset, signal), signal);
    signal.throwIfAborted();
    return reply;
  }

  async #firstPage(signal) {
    const reply = await this.#ask(this.model, PAGE, 0, signal);
    this.hits = reply.hits;
    if (reply.hits.length === 0) this.box.replaceChildren(this.#nothing());
    else this.box.replaceChildren(grid(reply.hits, this.model, this.links.open));
    this.#tell(reply);
    this.#offerMore(reply.total, 1, signal);
    window.scrollTo({ top: 0 });
  }

  async #bothLists(signal) {
    const pair = this.models.slice(0, 2);
    const replies = await Promise.all(pair.map((model) => this.#ask(model, COMPARED, 0, signal)));
    this.hits = replies.flatMap((reply) => reply.hits);
    const first = new Set(replies[0].hits.map((hit) => hit.doc_id));
    const shared = replies[1].hits.filter((hit) => first.has(hit.doc_id)).length;
    this.box.replaceChildren(this.hits.length ? compare(replies, pair, this.links.open) : this.#nothing());
    this.say(`${shared} of ${replies[1].hits.length} products are in both lists`);
    window.scrollTo({ top: 0 });
  }

  /** The end of the grid: it asks for the next page when it comes near, or when its button is pressed. */
  #offerMore(total, pages, signal) {
    if (this.hits.length >= Math.min(total, DEEPEST)) return;
    const end = make("div", { class: "more" },
      make("button", { class: "plain", type: "button", onclick: () => next(true) }, "Show more"));
    const watch = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && next(false), { rootMargin: AHEAD });
    let asked = false;
    const next = (pressed) => {
      if (asked) return;
      asked = true;
      watch.disconnect();
      this.#nextPage(end, pages, pressed, signal);
    };
    this.box.append(end);
    if (pages < ENDLESS) watch.observe(end);
    signal.addEventListener("abort", () => watch.disconnect());
  }

  /** Adds the next products; from the button the focus goes on to the first of them. */
  async #nextPage(end, pages, pressed, signal) {
    end.setAttribute("aria-busy", "true");
    try {
      const reply = await this.#ask(this.model, Math.min(PAGE, DEEPEST - this.hits.length), this.hits.length, signal);
      const known = new Set(this.hits.map((hit) => hit.doc_id)); // the index may have changed in between
      const fresh = reply.hits.filter((hit) => !known.has(hit.doc_id));
      const cards = fresh.map((hit) => make("li", {}, card(hit, this.model, this.links.open)));
      this.hits = [...this.hits, ...fresh];
      end.remove();
      this.box.querySelector(".grid").append(...cards);
      if (pressed) cards[0]?.querySelector("a").focus({ preventScroll: true });
      this.#tell(reply);
      this.#offerMore(fresh.length ? reply.total : 0, pages + 1, signal);
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      end.removeAttribute("aria-busy");
      end.replaceChildren(trouble(error, () => this.#nextPage(end, pages, pressed, signal)));
    }
  }

  #tell(reply) {
    const parts = [`${this.hits.length.toLocaleString()} of ${reply.total.toLocaleString()} products, best first`];
    if (typeof reply["ndcg@10"] === "number") parts.push(`NDCG@10 ${reply["ndcg@10"].toFixed(3)}`);
    if (typeof reply.took_ms === "number") parts.push(`${Math.max(1, Math.round(reply.took_ms))} ms`);
    this.say(reply.total === 0 ? "No products" : parts.join(" · "));
  }

  #nothing() {
    const filtered = Object.keys(this.state.filters).length > 0;
    return make("div", { class: "trouble" }, make("h2", {}, "Nothing found"),
      make("p", {}, filtered ? "No product matches the filters." : "There are no products."),
      filtered && make("button", { class: "main", type: "button", onclick: this.clear }, "Clear the filters"));
  }
}
