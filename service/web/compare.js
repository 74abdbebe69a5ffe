// One photo through all models, side by side.

import { segment } from "./api.js";
import { Picture, make } from "./picture.js";
import { describeSegments, legend } from "./results.js";

export class Comparison {
  /** `page` gives promptFor(model) and isWaiting(model), and takes onClick, onUndo, onChoose(model), onProblem. */
  constructor(element, page) {
    Object.assign(this, { element, page, cards: [], stopper: new AbortController() });
  }

  /** Cards for `models`, each with `photo`. */
  show(photo, models) {
    this.stop();
    this.cards = models.map((model) => this.#makeCard(model, photo));
    this.element.replaceChildren(...this.cards.map((card) => card.element));
  }

  setLook(view, opacity) {
    for (const card of this.cards) card.picture.setLook(view, opacity);
  }

  /** Ask all models, or those that take a prompt of `kind`; gives what is to be said, once all have answered. */
  async refresh(photo, clicks, kind = null) {
    const concerned = this.cards.filter((card) => !kind || card.model.prompt.kind === kind);
    this.stopper.abort();
    this.stopper = new AbortController();
    for (const card of this.cards) if (card.model.prompt.kind === "points") card.picture.setClicks(clicks);
    const { signal } = this.stopper;
    // Those that were stopped before they had answered the question before this one.
    const again = this.cards.filter((card) => card.element.hasAttribute("aria-busy") && !concerned.includes(card));
    const said = [...concerned, ...again].map((card) => this.#ask(card, photo, signal));
    return (await Promise.all(said)).filter(Boolean);
  }

  stop() {
    this.stopper.abort();
  }

  async #ask(card, photo, signal) {
    if (this.page.isWaiting(card.model)) {
      card.picture.setSegments(null);
      card.note.replaceChildren("Click on the animal here.");
      card.element.removeAttribute("aria-busy");
      return null;
    }
    card.element.setAttribute("aria-busy", "true");
    try {
      const response = await segment(card.model, photo, this.page.promptFor(card.model), "rle", signal);
      const answer = await response.json();
      signal.throwIfAborted();
      card.picture.setSegments(answer.segments);
      card.note.replaceChildren(legend(answer), `${Math.round(answer.timing_ms.inference)} ms`);
      return `${card.model.name}: ${describeSegments(answer)}`;
    } catch (problem) {
      if (problem.name === "AbortError") return null;
      card.picture.setSegments(null);
      card.note.replaceChildren(make("span", "failed", `${problem.title ?? "Defect of the page"}: ${problem.message}`));
      if (problem.status === 401) this.page.onProblem(problem);
      return `${card.model.name}: ${problem.title}`;
    } finally {
      if (!signal.aborted) card.element.removeAttribute("aria-busy");
    }
  }

  #makeCard(model, photo) {
    const element = make("figure", "compared");
    const head = make("div", "compared-head");
    const use = make("button", "button small-button", "Use");
    use.type = "button";
    use.setAttribute("aria-label", `Use ${model.name}`);
    use.addEventListener("click", () => this.page.onChoose(model));
    head.append(make("h2", "model-name", model.name), use);
    const place = make("div", "canvas");
    const note = make("figcaption", "small");
    element.append(head, place, note);
    const { onClick, onUndo, describe } = this.page;
    const picture = new Picture(place, { maxPixels: 800, onClick, onUndo, describe });
    picture.show(photo);
    picture.setClickable(model.prompt.kind === "points", this.page.nameFor(model));
    return { element, model, picture, note };
  }
}
