// The page: what is chosen, what is shown, and what is asked when either changes.

import { listModels, rememberKey, segment } from "./api.js";
import { Comparison } from "./compare.js";
import { listenForPhotos } from "./intake.js";
import { Picture, make } from "./picture.js";
import { readPhoto } from "./photo.js";
import { hideProblem, showProblem, tryAgain } from "./problem_box.js";
import { describeSegments, resultLines } from "./results.js";
import { Saver } from "./save.js";

const $ = (selector) => document.querySelector(selector);

/** The choice that is no model: all of them. */
const ALL = "";

/** Typing pauses this long before the words are sent. */
const TYPING_PAUSE_MS = 350;

/** What a model is told by, beside its name. */
const TAKES = { text: "words", points: "clicks" };

const state = { models: [], chosen: null, photo: null, clicks: [], answer: null };

let stopper = new AbortController();
let running = 0;

const picture = new Picture($("#canvas"), { maxPixels: 1600, onClick: addClick, onUndo: undo, describe: say });
const comparison = new Comparison($("#compare"), {
  promptFor,
  isWaiting,
  nameFor,
  onClick: addClick,
  onUndo: undo,
  describe: say,
  onChoose: (model) => choose(model.name),
  onProblem: (problem) => showProblem(problem, () => refresh()),
});
const saver = new Saver({
  request: () => ({ model: model(), photo: state.photo, prompt: promptFor(model()), isWaiting: isWaiting(model()) }),
  say,
  busy,
});

const isComparing = () => state.chosen === ALL;
const model = () => state.models.find((each) => each.name === state.chosen);
const takesClicks = ({ prompt }) => prompt.kind === "points";

/** The form fields of the prompt as it stands, for `model`. */
function promptFor({ prompt }) {
  const text = $("#text").value.trim();
  if (prompt.kind === "text" && text) return { text };
  if (prompt.kind === "points" && state.clicks.length) return { points: JSON.stringify(state.clicks) };
  return {};
}

/** Whether `model` cannot be asked yet. */
function isWaiting(model) {
  return model.prompt.is_required && !Object.keys(promptFor(model)).length;
}

/** What screen readers call the picture before `model`. */
function nameFor({ name, prompt }) {
  const { width, height, name: file } = state.photo;
  const base = `${file}, ${width} by ${height} pixels, mask by ${name}`;
  if (prompt.kind !== "points") return base;
  return `${base}. Arrow keys move the crosshair, Enter clicks, Shift and Enter clicks on what is not it, Backspace undoes.`;
}

async function start() {
  try {
    await loadModels();
  } catch (problem) {
    showProblem(problem, start);
  }
}

// ---- photo, model, prompt: what the visitor changes

async function takePhoto(file, source) {
  hideProblem();
  try {
    const photo = await readPhoto(file, source);
    if (!state.models.length) await loadModels();
    state.photo = photo;
  } catch (problem) {
    return showProblem(problem, () => takePhoto(file, source));
  }
  state.clicks = [];
  $("#start").hidden = true;
  $("#workspace").hidden = false;
  $("#other-photo").hidden = false;
  $("#photo-name").textContent = `${state.photo.name} · ${state.photo.width} × ${state.photo.height}`;
  picture.show(state.photo);
  const name = state.chosen ?? defaultModel().name;
  state.chosen = null; // so that nothing stays of what was said about the photo before
  choose(name);
}

/** One that shows something at once: guided by words or by none. */
function defaultModel() {
  return state.models.find(({ prompt }) => !prompt.is_required) ?? state.models[0];
}

async function loadModels() {
  state.models = await listModels();
  const choices = [...state.models.map(({ name }) => [name, name]), [ALL, "Compare all"]];
  $("#model-choices").replaceChildren(
    ...choices.map(([value, text]) => {
      const label = make("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "model", value });
      radio.addEventListener("change", () => choose(value));
      const chip = make("span", "", text);
      const kind = state.models.find(({ name }) => name === value)?.prompt.kind;
      if (kind in TAKES) chip.dataset.takes = TAKES[kind];
      label.append(radio, chip);
      return label;
    }),
  );
}

function choose(name) {
  const isAnother = state.chosen !== name;
  state.chosen = name;
  for (const radio of document.getElementsByName("model")) radio.checked = radio.value === name;
  const kinds = isComparing() ? state.models.map(({ prompt }) => prompt.kind) : [model().prompt.kind];
  $("#model-summary").textContent = isComparing() ? "The same photo through every model." : model().summary;
  $("#text-prompt").hidden = !kinds.includes("text");
  $("#click-prompt").hidden = !kinds.includes("points");
  $("#no-prompt").hidden = kinds.some((kind) => kind !== "none");
  for (const id of ["#canvas", "#result", "#save"]) $(id).hidden = isComparing();
  $("#compare").hidden = !isComparing();
  if (isComparing()) {
    comparison.show(state.photo, state.models);
    setLook();
  } else {
    comparison.stop();
    picture.setClickable(takesClicks(model()), nameFor(model()));
    if (isAnother) showAnswer(null);
  }
  refresh();
}

/** A click on the photo; where the chosen model takes none, it goes to the first that does. */
function addClick(x, y, label) {
  const taker = state.models.find(takesClicks);
  if (!taker) return;
  state.clicks.push([x, y, label ?? Number($("[name=click-label]:checked").value)]);
  if (isComparing() || takesClicks(model())) refresh("points");
  else choose(taker.name);
}

function undo() {
  if (state.clicks.pop()) refresh("points");
}

function clear() {
  state.clicks = [];
  refresh("points");
}

// ---- asking

/** Ask for what is now chosen; while comparing, only the models whose prompt (of `kind`) has changed. */
async function refresh(kind = null) {
  hideProblem();
  stopper.abort();
  stopper = new AbortController();
  const { signal } = stopper;
  $("#undo").disabled = $("#clear").disabled = !state.clicks.length;
  $("#clear-text").hidden = !$("#text").value;
  if (isComparing()) {
    const said = await busy(() => comparison.refresh(state.photo, state.clicks, kind), signal);
    return said?.length && say(said.join(" "));
  }
  const asked = model();
  picture.setClicks(takesClicks(asked) ? state.clicks : []);
  saver.refresh();
  if (isWaiting(asked)) {
    showAnswer(null);
    return prepare(asked, signal);
  }
  const started = performance.now();
  await busy(async () => {
    const response = await segment(asked, state.photo, promptFor(asked), "rle", signal);
    const answer = await response.json();
    signal.throwIfAborted();
    showAnswer(answer, performance.now() - started);
  }, signal);
}

/** Send the photo ahead of the first click, so that the click itself is answered in a blink; once, whoever sends it. */
async function prepare(asked, signal) {
  const { photo } = state;
  if (!asked.keeps_images || photo.imageId || !takesClicks(asked)) return;
  const middle = JSON.stringify([[Math.floor(photo.width / 2), Math.floor(photo.height / 2), 1]]);
  await busy(async () => {
    await photo.upload?.catch(() => {});
    signal.throwIfAborted();
    if (!photo.imageId) await segment(asked, photo, { points: middle }, "rle", signal);
  }, signal);
}

/**
 * Run `work` with the sign of waiting on; what goes wrong is shown, with a way to try it again.
 *
 * `signal` says that it was asked for the picture: then all that is chosen by now is asked anew, the key included.
 */
async function busy(work, signal = null) {
  const stage = $("#stage");
  running++;
  stage.setAttribute("aria-busy", "true");
  try {
    return await work();
  } catch (problem) {
    if (problem.name !== "AbortError") showProblem(problem, signal ? () => refresh() : () => busy(work));
  } finally {
    if (!--running) stage.removeAttribute("aria-busy");
  }
}

// ---- showing

/** `answer` over the photo and in words; null is none yet. */
function showAnswer(answer, tookMs = 0) {
  state.answer = answer;
  picture.setSegments(answer?.segments ?? null);
  $("#segments").replaceChildren(...(answer ? resultLines(answer) : []));
  if (!answer) {
    $("#remark").textContent = isWaiting(model()) ? "Click on the animal." : "";
    $("#timing").textContent = "";
    return;
  }
  const isOwn = answer.prompt?.kind === "text" && answer.prompt.chosen_by === "model";
  const own = isOwn ? `looked for “${answer.prompt.text}”` : "";
  $("#remark").textContent = answer.segments.length ? own : emptyAdvice(own);
  $("#timing").textContent = `${Math.round(answer.timing_ms.inference)} ms in the model, ${Math.round(tookMs)} ms in all`;
  say(`${answer.model} ${describeSegments(answer)}`);
}

function emptyAdvice(own) {
  const { kind } = model().prompt;
  if (kind === "points") return "Nothing found. Click on the middle of the animal.";
  if (kind === "none") return "Nothing found. Try another model.";
  return own ? `Nothing found; ${own}. Say what to look for.` : "Nothing found. Try other words, or none.";
}

/** Say `text` to screen readers. */
function say(text) {
  $("#status").textContent = text;
}

function setLook() {
  const view = $("[name=view]:checked").value;
  const opacity = Number($("#opacity").value) / 100;
  $("#opacity").disabled = view !== "overlay";
  picture.setLook(view, opacity);
  comparison.setLook(view, opacity);
}

// ---- wiring

let typing = 0;
$("#text").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => refresh("text"), TYPING_PAUSE_MS);
});
$("#text-prompt").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  refresh("text");
});
$("#clear-text").addEventListener("click", () => {
  $("#text").value = "";
  $("#text").focus();
  refresh("text");
});
$("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberKey($("#key").value);
  $("#key").value = "";
  $("#key-form").hidden = true;
  tryAgain();
});
$("#undo").addEventListener("click", undo);
$("#clear").addEventListener("click", clear);
$("#opacity").addEventListener("input", setLook);
for (const radio of document.getElementsByName("view")) radio.addEventListener("change", setLook);
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input[type=text], input[type=password]");
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && !isTyping) undo();
});
listenForPhotos(takePhoto, showProblem);
start();
