// A form of filters, built from what the server says about its fields.

import { label, nameField, reads } from "./catalogue.js";
import { make } from "./dom.js";
import { asNumber } from "./state.js";

const OPEN = 4; // groups that are open from the start

/** Field -> type, of the fields of a model that can be filtered on. */
export function filterTypes(model) {
  return Object.fromEntries(filtered(model).map(([name, info]) => [name, info.type]));
}

/** Fills the form. `change` is called with a field's name and its new value, null for none. */
export function showFilters(form, model, chosen, change) {
  const focused = form.contains(document.activeElement) ? document.activeElement.id : null;
  const open = new Map([...form.querySelectorAll("details")].map((group) => [group.dataset.field, group.open]));
  const scrolled = new Map([...form.querySelectorAll(".choices")].map((list) => [list.id, list.scrollTop]));
  const some = Object.keys(chosen).length > 0;
  form.replaceChildren(
    make("div", { class: "head" }, make("h2", {}, "Filters"),
      some && make("button", { class: "plain", type: "button", onclick: () => change(null, null) }, "Clear all")),
    ...filtered(model).map(([name, info], place) => {
      const isOpen = open.get(name) ?? (place < OPEN || name in chosen);
      return group(name, info, chosen[name] ?? null, isOpen, (value) => change(name, value));
    }));
  for (const [id, at] of scrolled) form.querySelector(`#${CSS.escape(id)}`)?.scrollTo(0, at);
  if (focused) form.querySelector(`#${CSS.escape(focused)}`)?.focus({ preventScroll: true });
}

function filtered(model) {
  return Object.entries(model.filters).filter(([name, info]) =>
    info.type === "boolean" ? true
      : isRange(info) ? info.min !== null && Number(info.min) < Number(info.max)
        : info.type === "text" && name !== nameField(model) && info.values?.length > 1);
}

const isRange = (info) => info.type === "number" || info.type === "integer";

function group(name, info, value, open, change) {
  const body = { text: checks, integer: range, number: range, boolean: toggle }[info.type](name, info, value, change);
  const count = Array.isArray(value) ? value.length : value === null ? 0 : 1;
  return make("details", { open, "data-field": name },
    make("summary", {}, label(name), count > 0 && make("span", { class: "count" }, String(count))),
    body);
}

function checks(name, info, value, change) {
  const chosen = new Set(value ?? []);
  const values = info.values.map(String);
  const every = [...[...chosen].filter((one) => !values.includes(one)), ...values];
  const set = (one, on) => {
    chosen[on ? "add" : "delete"](one);
    change(chosen.size ? [...chosen] : null);
  };
  return make("div", { class: "choices", id: `choices-${name}`, role: "group", "aria-label": label(name) },
    every.map((one, place) => make("label", {},
      make("input", { type: "checkbox", id: `filter-${name}-${place}`, checked: chosen.has(one), onchange: (event) => set(one, event.target.checked) }),
      make("span", {}, one))));
}

function range(name, info, value, change) {
  const { low, high } = value ?? { low: null, high: null };
  const whole = info.type === "integer" || (Number.isInteger(info.min) && Number.isInteger(info.max));
  const box = (which, told, number) => make("label", {},
    make("span", { class: "hidden" }, `${label(name)} ${told}`),
    make("input", {
      type: "number", inputmode: "decimal", id: `filter-${name}-${which}`, step: whole ? 1 : "any",
      placeholder: reads(name, which === "low" ? info.min : info.max), value: number,
      onchange: (event) => {
        const next = { low, high, [which]: asNumber(event.target.value) };
        change(next.low === null && next.high === null ? null : next);
      },
    }));
  return make("div", { class: "range" }, box("low", "from", low), make("span", { "aria-hidden": "true" }, "to"), box("high", "to", high));
}

function toggle(name, info, value, change) {
  return make("label", { class: "switch" },
    make("input", { type: "checkbox", role: "switch", id: `filter-${name}`, checked: value === true, onchange: (event) => change(event.target.checked ? true : null) }),
    make("span", {}, `Only with ${label(name)}`));
}
