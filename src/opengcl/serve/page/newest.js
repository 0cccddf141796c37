/** Gives signals of which only the newest counts: each one cancels the one before. `stop()` cancels it without another. */
export class Newest {
  #controller = new AbortController();

  signal() {
    this.stop();
    this.#controller = new AbortController();
    return this.#controller.signal;
  }

  stop() {
    this.#controller.abort();
  }
}
