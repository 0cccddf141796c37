// A state as the server's search request.

import * as api from "./api.js";
import { nameField } from "./catalogue.js";
import * as pictures from "./pictures.js";
import { hasPicture, hasWords } from "./state.js";
import { where } from "./where.js";

const PICTURE = 512; // pixels of a document's picture that is searched with

/** The body of `POST /search` for one model and page. Throws a `Failure` where a picture is missing. */
export async function searchBody(state, model, k, offset, signal) {
  const query = { negatives: state.minus.map((text) => ({ text })) };
  if (hasWords(state)) query.text = [state.text.trim(), ...state.plus].filter(Boolean).join(" ");
  if (hasPicture(state)) Object.assign(query, await pictureOf(state, model, query.text, signal));
  if (query.text && query.image) [query.text_weight, query.image_weight] = [(100 - state.share) / 50, state.share / 50];
  return { query, k, offset, where: where(state.filters), model: model.name };
}

/** A query for what is like a document: its picture where model and document allow it, else its name; null without both. */
export async function likeDocument(id, model, signal) {
  const image = await pictureOfDocument(id, model, signal);
  if (image) return { image };
  const name = (await api.product(id, signal)).fields[nameField(model)];
  return name ? { text: String(name) } : null;
}

async function pictureOf(state, model, text, signal) {
  if (state.like) {
    const like = (await likeDocument(state.like, model, signal)) ?? {};
    return like.image ? like : { text: [text, like.text].filter(Boolean).join(" ") };
  }
  const address = pictures.kept(state.picture);
  if (!address) throw new api.Failure(410, "The picture of this search is not in its address. Choose it again.");
  return { image: pictures.base64(address) };
}

async function pictureOfDocument(id, model, signal) {
  if (!model.images?.length || !model.query.includes("image")) return null;
  const blob = await api.picture(id, model.images[0], PICTURE, signal);
  return blob && pictures.base64(await pictures.asAddress(blob));
}
