// The one place where problems are shown: title and detail as they came, and what can be done.

import { make } from "./picture.js";
import { Problem } from "./problems.js";

const $ = (selector) => document.querySelector(selector);

let retry = null;

/** Show `problem`; `again` repeats what failed. Where the server wants a key, ask for it. */
export function showProblem(problem, again = null) {
  if (!(problem instanceof Problem)) {
    console.error(problem);
    problem = new Problem({ title: "Defect of this page", detail: String(problem.message ?? problem), status: -1 });
  }
  retry = again;
  const buttons = make("div", "tools");
  if (again && problem.isPassing) buttons.append(button("Try again", tryAgain));
  buttons.append(button("Dismiss", hideProblem));
  $("#problem").replaceChildren(describe(problem), buttons);
  $("#problem").hidden = false;
  if (problem.status === 401) {
    $("#key-form").hidden = false;
    $("#key").focus();
  }
}

/** Take the problem away. */
export function hideProblem() {
  $("#problem").hidden = true;
  $("#problem").replaceChildren();
}

/** Repeat what failed last. */
export function tryAgain() {
  hideProblem();
  retry?.();
}

function describe({ title, message, errors, requestId }) {
  const text = make("div");
  text.append(make("h2", "", title), make("p", "", message));
  const more = errors.filter(({ detail }) => detail !== message);
  if (more.length) {
    const list = make("ul");
    list.append(...more.map(({ detail }) => make("li", "", detail)));
    text.append(list);
  }
  if (requestId) text.append(make("p", "small", `Request ${requestId}`));
  return text;
}

function button(text, onClick) {
  const element = make("button", "button", text);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}
