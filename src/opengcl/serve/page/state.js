// What is searched, and the address that says so: back, forward, reload and a shared link all give the same search.

/**
 * text: what was typed. plus, minus: more and less of these. like: id of a document whose picture (or title) is searched
 * with. picture: key of a picture of one's own (pictures.js). share: of the picture in the mix with words, in per cent.
 * filters: by field, {low, high} of a number, a list of texts, or a boolean. view: a model's name, "compare", or "" for the
 * first model. open: id of the document that is shown in detail.
 */
export const EMPTY = Object.freeze({
  text: "", plus: [], minus: [], like: "", picture: "", share: 50, filters: {}, view: "", open: "",
});

const FILTER = "f.";
const RANGE = /^(-?[\d.]*(?:e[+-]?\d+)?)\.\.(-?[\d.]*(?:e[+-]?\d+)?)$/i;

/** The state in an address's query. `types`: of the fields that can be filtered on; filters on others are left out. */
export function read(address, types) {
  const found = new URLSearchParams(address);
  const filters = {};
  for (const [name, type] of Object.entries(types)) {
    const value = readFilter(type, found.getAll(FILTER + name));
    if (value !== null) filters[name] = value;
  }
  const share = Number.parseInt(found.get("share") ?? "", 10);
  return {
    text: found.get("q") ?? "",
    plus: found.getAll("plus"),
    minus: found.getAll("minus"),
    like: found.get("like") ?? "",
    picture: found.get("picture") ?? "",
    share: share >= 5 && share <= 95 ? share : EMPTY.share,
    filters,
    view: found.get("view") ?? "",
    open: found.get("doc") ?? "",
  };
}

/** The address's query of a state; what is as in `EMPTY` is left out. */
export function write(state) {
  const query = new URLSearchParams();
  if (state.text.trim()) query.set("q", state.text.trim());
  for (const word of state.plus) query.append("plus", word);
  for (const word of state.minus) query.append("minus", word);
  if (state.like) query.set("like", state.like);
  if (state.picture) query.set("picture", state.picture);
  if (state.share !== EMPTY.share && hasPicture(state) && hasWords(state)) query.set("share", state.share);
  for (const [name, value] of Object.entries(state.filters)) {
    for (const one of writeFilter(value)) query.append(FILTER + name, one);
  }
  if (state.view) query.set("view", state.view);
  if (state.open) query.set("doc", state.open);
  return `?${query}`;
}

export const hasWords = (state) => Boolean(state.text.trim() || state.plus.length);
export const hasPicture = (state) => Boolean(state.like || state.picture);

/** Whether there is anything to search with: filters and minus terms alone are no query. */
export const isSearch = (state) => hasWords(state) || hasPicture(state);

function readFilter(type, values) {
  if (values.length === 0) return null;
  if (type === "text") return values;
  if (type === "boolean") return values[0] === "true" || values[0] === "false" ? values[0] === "true" : null;
  const [, low, high] = RANGE.exec(values[0]) ?? [];
  const range = { low: asNumber(low), high: asNumber(high) };
  return range.low === null && range.high === null ? null : range;
}

function writeFilter(value) {
  if (Array.isArray(value)) return value;
  return [typeof value === "boolean" ? String(value) : `${value.low ?? ""}..${value.high ?? ""}`];
}

/** A number, or the digits themselves where a number of this language would round an integer; null for none. */
export function asNumber(text) {
  const number = text ? Number(text) : Number.NaN;
  if (/^-?\d+$/.test(text) && !Number.isSafeInteger(number)) return text;
  return Number.isFinite(number) ? number : null;
}
