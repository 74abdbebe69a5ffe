// The service's addresses as functions. A photo is sent once: models that keep its features are asked by its id.

import { Problem, readProblem, unreachable } from "./problems.js";

const KEY = "petseg.api-key";

/** Address of `path`, also where a proxy serves the page below a prefix. */
export function address(path) {
  return new URL(path, document.baseURI).href;
}

/** Keep the API key for this tab. */
export function rememberKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Whether requests carry an API key. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** All loaded models, those that can be guided first. */
export async function listModels() {
  const { models } = await (await ask("models")).json();
  const order = ["text", "points", "none"];
  return models.sort((one, other) => order.indexOf(one.prompt.kind) - order.indexOf(other.prompt.kind));
}

/**
 * The response of `model` to `photo` in the form `output`.
 *
 * `prompt` holds the form's fields: {}, {text} or {points}. Where the model keeps features, the photo travels once,
 * and again only when the server has forgotten it; that one upload is never aborted, so that the next click finds it.
 */
export async function segment(model, photo, prompt, output, signal) {
  const fields = { ...prompt, output };
  if (!model.keeps_images) return send(model, photo, fields, signal);
  await photo.upload?.catch(() => {});
  signal?.throwIfAborted();
  if (photo.imageId) {
    const form = makeForm({ image_id: photo.imageId, ...fields });
    try {
      return await ask(`segment/${encodeURIComponent(model.name)}`, { method: "POST", body: form, signal });
    } catch (problem) {
      if (problem.status !== 410) throw problem;
      photo.imageId = null;
    }
  }
  photo.upload = send(model, photo, fields);
  try {
    const response = await photo.upload;
    photo.imageId = response.headers.get("x-image-id");
    return response;
  } finally {
    photo.upload = null;
  }
}

async function send(model, photo, fields, signal) {
  const form = makeForm(fields);
  form.append("image", photo.file, photo.name);
  return ask(`segment/${encodeURIComponent(model.name)}`, { method: "POST", body: form, signal }, photo.file.size);
}

function makeForm(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  return form;
}

/** The response, if it is a success; else the Problem is thrown. */
async function ask(path, options = {}, sentBytes = 0) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(address(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable(sentBytes);
  }
  if (!response.ok) throw await readProblem(response);
  return response;
}

export { Problem };
