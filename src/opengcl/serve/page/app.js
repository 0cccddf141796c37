// The page: one state, in the address; what changes it, and what follows from it.

import * as api from "./api.js";
import { showDetail } from "./detail.js";
import { byId, make } from "./dom.js";
import { filterTypes, showFilters } from "./filters.js";
import { moveFocus, skeletons } from "./grid.js";
import { Newest } from "./newest.js";
import * as pictures from "./pictures.js";
import { COMPARE, Results } from "./results.js";
import { EMPTY, isSearch, read, write } from "./state.js";
import { Suggestions } from "./suggestions.js";
import { MOST_MINUS, showTerms, takeSigns } from "./terms.js";
import { trouble } from "./trouble.js";
import { listenForPictures } from "./ways_in.js";

const TYPING = 180; // ms without a key before a search
const ASKING = 90; // the same before suggestions
const SETTLED = 2000; // ms after which typing on is a new step of the history
const NOTICED = 8000; // ms that a notice stays

let models = [];
let state = { ...EMPTY };

// ---- the state, and what follows from it ----

const links = {
  open: (id) => write({ ...state, open: id }),
  like: (id) => write({ ...EMPTY, view: state.view, like: id }),
  text: (text) => write({ ...EMPTY, view: state.view, text }),
};
const results = new Results(byId("results"), links, (text) => (byId("status").textContent = text), () => update({ filters: {} }));
const suggestions = new Suggestions(byId("text"), byId("suggestions"), (text) => update({ text }));
const [suggesting, detailing] = [new Newest(), new Newest()];

const model = () => models.find((one) => one.name === state.view) ?? models[0];

/** Changes the state and follows it. `replace`: as part of the step of the history that is already there. */
function update(changes, replace = false) {
  state = { ...state, ...changes };
  const to = write(state);
  if (to !== (location.search || "?")) history[replace ? "replaceState" : "pushState"](null, "", to);
  follow();
}

/** Takes the state from the address. */
function arrive() {
  state = read(location.search, filterTypes(models[0]));
  follow();
}

function follow() {
  const box = byId("text");
  // Not while somebody types: what is in the box may end in a blank, or in a term that is not finished.
  if (box !== document.activeElement || takeSigns(box.value).rest !== state.text.trim()) box.value = state.text;
  document.title = state.text.trim() ? `${state.text.trim()} · Search` : "Search";
  byId("toolbar").hidden = !isSearch(state);
  followTerms();
  followFilters();
  for (const choice of byId("views").querySelectorAll("input")) choice.checked = choice.value === shownView();
  results.show(state, model(), models);
  followDetail();
}

const shownView = () => (state.view === COMPARE ? COMPARE : model() === models[0] ? "" : model().name);

function followTerms() {
  const box = byId("terms");
  if (isSearch(state) || state.minus.length) showTerms(box, state, sourcePicture(), update);
  else box.hidden = true;
}

function sourcePicture() {
  const field = model().images?.[0];
  if (state.like) return field ? { address: api.pictureAddress(state.like, field, 128), alt: `Picture of ${state.like}` } : null;
  const own = state.picture && pictures.kept(state.picture);
  return own ? { address: own, alt: "Your picture" } : null;
}

function followFilters() {
  const some = isSearch(state) && Object.keys(filterTypes(models[0])).length > 0;
  byId("side").hidden = byId("open-filters").hidden = !some;
  const count = Object.keys(state.filters).length;
  byId("open-filters").textContent = count ? `Filters (${count})` : "Filters";
  if (some) showFilters(byId("filters"), models[0], state.filters, filter);
}

/** Sets the filter on a field, null for none; without a field all filters go. */
function filter(name, value) {
  const { [name]: _, ...others } = name === null ? {} : state.filters;
  update({ filters: value === null ? others : { ...others, [name]: value } });
}

// ---- the box ----

let typing = 0; // the timer of a search to come
let lastTyped = Number.NEGATIVE_INFINITY;
let entered = false; // before the models were known

function typed() {
  entered = false;
  if (!models.length) return; // `start` takes what is in the box by then
  clearTimeout(typing);
  suggestions.unmark();
  typing = setTimeout(() => {
    // Signs become terms on Enter; until then a word may still be in the making, and is left out.
    const text = takeSigns(byId("text").value).rest.replace(/(^|\s)[+-]$/, "");
    update({ text }, performance.now() - lastTyped < SETTLED);
    lastTyped = performance.now();
  }, TYPING);
  suggest(byId("text").value.trim());
}

async function suggest(text) {
  const signal = suggesting.signal();
  if (!text) {
    suggestions.show([]);
    return;
  }
  await new Promise((resolve) => setTimeout(resolve, ASKING));
  if (signal.aborted) return;
  const texts = await api.suggest(text, signal).catch(() => []); // a search without suggestions is still a search
  if (!signal.aborted) suggestions.show(texts.filter((one) => one !== text));
}

function commit() {
  entered = true;
  if (!models.length) return;
  clearTimeout(typing);
  suggesting.stop();
  suggestions.show([]);
  lastTyped = Number.NEGATIVE_INFINITY;
  const { rest, plus, minus } = takeSigns(byId("text").value);
  const added = (old, words) => [...new Set([...old, ...words])];
  byId("text").value = rest;
  update({ text: rest, plus: added(state.plus, plus), minus: added(state.minus, minus).slice(0, MOST_MINUS) });
}

async function usePicture(file) {
  if (!file) notice("That is not a picture. JPEG, PNG, WebP and what else this browser shows will do.");
  else if (!model().query.includes("image")) notice("This model searches by words only.");
  else {
    try {
      update({ picture: await pictures.keep(file), like: "" });
    } catch (error) {
      notice(error.message);
    }
  }
}

let noticing = 0;

function notice(text) {
  const box = byId("notice");
  clearTimeout(noticing);
  box.textContent = text;
  box.hidden = false;
  noticing = setTimeout(() => (box.hidden = true), NOTICED);
}

// ---- one product ----

let opened = ""; // the id that the dialog shows
let opener = null; // where the focus goes back to

function followDetail() {
  const dialog = byId("detail");
  if (state.open === opened) return;
  opened = state.open;
  if (opened) {
    const hit = results.hits.find((one) => one.doc_id === opened) ?? null;
    showDetail(dialog, opened, hit, model(), links, detailing.signal());
  } else {
    detailing.stop();
    if (dialog.open) dialog.close();
  }
}

function detailClosed() {
  // Back to the list, as the browser's button would go, unless somebody came here by a link or through other products.
  if (state.open && history.state?.fromList) history.back();
  else if (state.open) update({ open: "" });
  opener?.focus();
}

// ---- listeners ----

/** Links within the page change the state instead of loading it anew; with a modifier they open a tab as ever. */
function followLink(event) {
  const link = event.target.closest("a[href^='?']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const fromList = Boolean(link.dataset.open) && !byId("detail").open;
  if (fromList) opener = link;
  history.pushState({ fromList }, "", link.getAttribute("href"));
  arrive();
}

function pressed(event) {
  const writing = event.target.matches("input:not([type=checkbox], [type=radio], [type=range])");
  const dialog = document.querySelector("dialog:modal");
  if (writing) return;
  if (event.key === "/" && !dialog) {
    event.preventDefault();
    byId("text").select();
    byId("text").focus();
    return;
  }
  const list = document.activeElement.closest(".ranked") ?? dialog ?? byId("results");
  moveFocus(event, [...list.querySelectorAll("a[data-open], a.idea")], () => !dialog && byId("text").focus());
}

function listenToBox() {
  const box = byId("text");
  box.addEventListener("input", typed);
  box.addEventListener("blur", () => suggestions.show([]));
  box.addEventListener("keydown", (event) => {
    if (suggestions.key(event) || event.key !== "ArrowDown") return;
    event.preventDefault();
    byId("results").querySelector("a")?.focus();
  });
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    commit();
  });
}

function listenToDialogs() {
  const [detail, sheet] = [byId("detail"), byId("sheet")];
  for (const dialog of [detail, sheet]) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  }
  detail.addEventListener("close", detailClosed);
  byId("open-filters").addEventListener("click", () => {
    sheet.append(byId("filters"));
    sheet.showModal();
  });
  sheet.querySelector(".close").addEventListener("click", () => sheet.close());
  sheet.addEventListener("close", () => byId("side").append(byId("filters")));
  matchMedia("(min-width: 1000px)").addEventListener("change", () => sheet.close());
}

function showViews() {
  if (models.length < 2) return;
  const choices = [["", models[0].label], [models[1].name, models[1].label], [COMPARE, "Compare"]];
  byId("views").append(...choices.map(([value, told]) => make("label", {},
    make("input", { type: "radio", name: "view", value, onchange: () => update({ view: value }) }),
    make("span", { title: told }, told))));
  byId("views").hidden = false;
}

async function start() {
  byId("results").replaceChildren(skeletons(12));
  byId("results").setAttribute("aria-busy", "true");
  try {
    models = await api.models();
  } catch (error) {
    byId("results").replaceChildren(trouble(error, start));
    return;
  }
  const early = takeSigns(byId("text").value).rest;
  listenToDialogs();
  listenForPictures(usePicture);
  document.addEventListener("click", followLink);
  document.addEventListener("keydown", pressed);
  window.addEventListener("popstate", arrive);
  window.addEventListener("online", () => document.querySelector(".trouble button")?.click());
  showViews();
  arrive();
  if (early && early !== state.text) {
    update({ text: early });
    if (document.activeElement === byId("text") && !entered) suggest(early);
  }
  if (!isSearch(state)) byId("text").focus({ preventScroll: true });
}

listenToBox();
start();
