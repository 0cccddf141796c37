// What a search is made of besides the words in the box: a picture, its share, more of this and less of that.

import { icon, make } from "./dom.js";
import { hasPicture, hasWords } from "./state.js";

export const MOST_MINUS = 8; // what the server takes

/**
 * Shows the parts of a search.
 * `source`: {address, alt} of the picture, null without one. `change`: called with what changes in the state.
 */
export function showTerms(box, state, source, change) {
  const adding = box.querySelector("input.term");
  const typed = adding && { sign: adding.dataset.sign, value: adding.value, focused: adding === document.activeElement };
  const slider = document.activeElement?.id === "share";
  const button = [...box.querySelectorAll("button")].indexOf(document.activeElement);
  box.replaceChildren(...[
    hasPicture(state) && pictureChip(source, change),
    hasPicture(state) && hasWords(state) && shareSlider(state, change),
    ...state.plus.map((word) => chip("plus", word, () => change({ plus: state.plus.filter((one) => one !== word) }))),
    ...state.minus.map((word) => chip("minus", word, () => change({ minus: state.minus.filter((one) => one !== word) }))),
    adder("plus", "More of", state, change),
    state.minus.length < MOST_MINUS && adder("minus", "Less of", state, change),
  ].filter(Boolean));
  box.hidden = false;
  if (typed?.focused) reopen(box, typed);
  if (slider) box.querySelector("#share")?.focus();
  // Where a term was removed, the focus goes to what stands in its place.
  if (button >= 0) [...box.querySelectorAll("button")].at(Math.min(button, box.querySelectorAll("button").length - 1)).focus();
}

/** Takes `-word` and `+word` out of what was typed. Returns the rest and the words. */
export function takeSigns(text) {
  const found = { plus: [], minus: [] };
  const rest = text.replace(/(^|\s)([+-])(?:"([^"]+)"|([^\s"+-][^\s"]*))/g, (_, before, sign, quoted, word) => {
    found[sign === "+" ? "plus" : "minus"].push((quoted ?? word).trim());
    return before;
  });
  return { rest: rest.replace(/\s+/g, " ").trim(), ...found };
}

function pictureChip(source, change) {
  return make("span", { class: "chip picture" },
    source ? make("img", { src: source.address, alt: source.alt }) : make("span", { class: "soft" }, "Picture"),
    remover("Remove the picture", () => change({ like: "", picture: "", share: 50 })));
}

function shareSlider(state, change) {
  const told = (share) => `${100 - share} per cent words, ${share} per cent picture`;
  const input = make("input", {
    type: "range", id: "share", min: 5, max: 95, step: 5, value: state.share,
    "aria-label": "Weight of the picture", "aria-valuetext": told(state.share),
    onchange: () => change({ share: input.valueAsNumber }, true),
  });
  return make("label", { class: "share" }, make("span", {}, "words"), input, make("span", {}, "picture"));
}

function chip(sign, word, remove) {
  const told = sign === "plus" ? "more of" : "less of";
  return make("span", { class: `chip ${sign}` },
    make("span", { "aria-hidden": "true" }, sign === "plus" ? "+ " : "− "),
    make("span", { class: "hidden" }, `${sign}: `), word, remover(`Remove ${told} ${word}`, remove));
}

function remover(told, remove) {
  return make("button", { class: "remove", type: "button", "aria-label": told, onclick: remove }, icon("close"));
}

/** A button that becomes a field. The field stays when the focus leaves: if it shrank then, a click would miss its aim. */
function adder(sign, told, state, change) {
  const open = (event) => {
    const input = entry(sign, told, state, change);
    event.currentTarget.replaceWith(input);
    input.focus();
  };
  return make("button", { class: "chip add", type: "button", "data-sign": sign, onclick: open },
    `${sign === "plus" ? "+" : "−"} ${told.toLowerCase()}`);
}

function entry(sign, told, state, change) {
  const input = make("input", {
    class: "term", "data-sign": sign, maxlength: 100, placeholder: `${told} …`, "aria-label": `${told}: a word or a few, then Enter`,
    onkeydown: (event) => {
      if (event.key === "Escape") {
        const button = adder(sign, told, state, change);
        input.replaceWith(button);
        button.focus();
      } else if (event.key === "Enter") {
        const word = input.value.trim();
        input.value = "";
        change(word && !state[sign].includes(word) ? { [sign]: [...state[sign], word] } : {});
      }
    },
  });
  return input;
}

function reopen(box, typed) {
  box.querySelector(`.add[data-sign="${typed.sign}"]`)?.click();
  const input = box.querySelector("input.term");
  if (input) input.value = typed.value;
}
