// What is shown when something fails: what happened, and the way on.

import { useKey } from "./api.js";
import { make } from "./dom.js";

const SOON = 3; // seconds, where a busy server names none
const LONGEST = 120;

/** A message with what can be done about it. `again` repeats what failed. */
export function trouble(failure, again) {
  if (failure.status === 401) return keyForm(again);
  if (failure.status === 429 || failure.status === 503) return waiting(failure, again);
  const [title, text] = words(failure);
  const retry = failure.status < 400 || failure.status >= 500;
  return make("div", { class: "trouble", role: "alert" }, make("h2", {}, title), make("p", {}, text),
    retry && make("button", { class: "main", type: "button", onclick: again }, "Try again"));
}

function words(failure) {
  if (failure.status === 0) return ["The server does not answer", "It may be stopped, or the network is down."];
  if (failure.status >= 500) return ["The search failed", `Something went wrong on the server. ${failure.message}`];
  return ["This search is not possible", failure.message];
}

/** Tries again by itself when the server said that it would have room. */
function waiting(failure, again) {
  let left = Math.min(LONGEST, Math.max(1, Math.ceil(failure.retryAfter ?? SOON)));
  const told = make("p", {});
  const tell = () => told.replaceChildren(`Trying again in ${left} s.`);
  const box = make("div", { class: "trouble", role: "alert" }, make("h2", {}, "The server is busy"), told,
    make("button", { class: "main", type: "button", onclick: () => (stop(), again()) }, "Try now"));
  const timer = setInterval(() => {
    if (!box.isConnected) return stop();
    left -= 1;
    if (left > 0) return tell();
    stop();
    return again();
  }, 1000);
  const stop = () => clearInterval(timer);
  tell();
  return box;
}

function keyForm(again) {
  const input = make("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const send = (event) => {
    event.preventDefault();
    useKey(input.value.trim());
    again();
  };
  return make("form", { class: "trouble", onsubmit: send }, make("h2", {}, "This server asks for a key"),
    make("p", {}, make("label", { for: "key" }, "It is kept until you close this tab.")), input,
    make("button", { class: "main", type: "submit" }, "Continue"));
}
