// Queries that begin with or contain what is typed: a list that the search box owns (ARIA's combobox pattern).

import { make } from "./dom.js";

export class Suggestions {
  /** `choose` is called with the text of the query that was chosen. */
  constructor(input, list, choose) {
    [this.input, this.list, this.choose, this.at] = [input, list, choose, -1];
    // Before the box loses its focus, which would close the list.
    list.addEventListener("mousedown", (event) => event.preventDefault());
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.take(option);
    });
  }

  /** Shows queries; none closes the list. */
  show(texts) {
    this.at = -1;
    this.list.replaceChildren(...texts.map((text, place) =>
      make("li", { role: "option", id: `suggestion-${place}`, "aria-selected": "false" }, text)));
    this.list.hidden = texts.length === 0;
    this.input.setAttribute("aria-expanded", String(texts.length > 0));
    this.input.removeAttribute("aria-activedescendant");
  }

  /** None is chosen any more: what was typed since is meant. */
  unmark() {
    this.mark([...this.list.children], -1);
  }

  get isOpen() {
    return !this.list.hidden;
  }

  /** Whether the key was for the list. */
  key(event) {
    if (!this.isOpen || event.isComposing) return false;
    const options = [...this.list.children];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) this.mark(options, this.at + step);
    else if (event.key === "Enter" && this.at >= 0) this.take(options[this.at]);
    else if (event.key === "Escape") this.show([]);
    else return false;
    event.preventDefault();
    return true;
  }

  mark(options, at) {
    this.at = at < -1 ? options.length - 1 : at >= options.length ? -1 : at;
    options.forEach((option, place) => option.setAttribute("aria-selected", String(place === this.at)));
    const marked = options[this.at];
    if (marked) this.input.setAttribute("aria-activedescendant", marked.id);
    else this.input.removeAttribute("aria-activedescendant");
    marked?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  take(option) {
    const text = option.textContent;
    this.show([]);
    this.choose(text);
  }
}
