// The ways in which a photo comes to the page: chosen, dropped, pasted, or one of the samples.

import { address } from "./api.js";
import { Problem } from "./problems.js";

const $ = (selector) => document.querySelector(selector);

/** Call `take(file, source)` for each photo that comes, `source` being a sample's address, and `fail(problem)`. */
export function listenForPhotos(take, fail) {
  const input = $("#file");
  for (const id of ["#choose-photo", "#other-photo"]) $(id).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files.length) take(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  });
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", () => takeSample(button.dataset.sample, take, fail));
  }
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) takeTransfer(event, event.clipboardData, take, fail);
  });
  listenForDrops(take, fail);
}

async function takeSample(name, take, fail) {
  const url = address(`web/samples/${name}`);
  try {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const blob = await response.blob();
    take(new File([blob], name, { type: blob.type }), url);
  } catch {
    fail(new Problem({ title: "No answer", detail: `The sample ${name} did not come. Is the server still running?` }));
  }
}

function listenForDrops(take, fail) {
  const veil = $("#dropping");
  let depth = 0; // each element on the way fires its own enter and leave
  const show = (isShown) => (veil.hidden = !isShown);
  document.addEventListener("dragenter", (event) => {
    depth++;
    show(event.dataTransfer.types.includes("Files"));
  });
  document.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) show(false);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    depth = 0;
    show(false);
    takeTransfer(event, event.dataTransfer, take, fail);
  });
}

function takeTransfer(event, transfer, take, fail) {
  event.preventDefault();
  const [file, ...others] = transfer.files;
  if (!file) {
    const detail = "What was dropped is no file. Save the picture first, or copy it and paste it here.";
    fail(new Problem({ title: "No photo in it", detail }));
  } else if (others.length) {
    const detail = `Got ${others.length + 1} files; this page takes one photo at a time. For folders there is curl.`;
    fail(new Problem({ title: "One photo at a time", detail }));
  } else {
    take(file);
  }
}
