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
  if (hasWords(state) && query.image) [query.text_weight, query.image_weight] = [(100 - state.share) / 50, state.share / 50];
  return { query, k, offset, where: where(state.filters), model: model.name };
}

/** A query for what is like a document: its picture where model and document allow it, and its name; null without both. */
export async function likeDocument(id, model, signal) {
  const [image, found] = await Promise.all([pictureOfDocument(id, model, signal), api.product(id, signal)]);
  const name = found.fields[nameField(model)];
  return image || name ? { ...(image && { image }), ...(name && { text: String(name) }) } : null;
}

async function pictureOf(state, model, text, signal) {
  if (state.like) {
    const like = (await likeDocument(state.like, model, signal)) ?? {};
    if (!text) return like;
    return like.image ? { image: like.image } : { text: [text, like.text].filter(Boolean).join(" ") };
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
