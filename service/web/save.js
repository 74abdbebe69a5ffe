// Saving an answer: as a file, or as the curl line that gets the same file.

import { address, hasKey, segment } from "./api.js";
import { answerName, curlLine } from "./curl.js";

const ABOUT = {
  cutout: "The animals on transparent ground, at the photo's own size.",
  png: "Indexed PNG at the photo's own size: pixel value 0 is background, then the model's classes.",
  overlay: "The photo with the mask drawn in.",
  probability: "How sure the model is that a pixel is no background, 0 to 255.",
  voc: "Indexed PNG in the colours of Pascal VOC.",
  rle: "Each class with area, box, score and COCO run-length mask, as pycocotools reads it.",
  polygons: "Each class with area, box, score and COCO polygons.",
  geojson: "The outlines as polygons with holes, in pixels of the photo.",
  yolo: "A line for each piece: the class, then its outline in shares of the photo's width and height.",
};

export class Saver {
  /** `page` gives `request()`: {model, photo, prompt}, and takes `say`, `showProblem` and `busy(work)`. */
  constructor(page) {
    this.page = page;
    this.command = document.querySelector("#command");
    document.querySelector("#download").addEventListener("click", () => this.download());
    document.querySelector("#copy").addEventListener("click", () => this.copy());
    this.choice = document.querySelector("#output");
    this.choice.addEventListener("change", () => this.refresh());
  }

  get output() {
    return this.choice.value;
  }

  /** Write the curl line anew; without a full prompt there is none, and nothing to save. */
  refresh() {
    const { model, photo, prompt, isWaiting } = this.page.request();
    document.querySelector("#output-about").textContent = ABOUT[this.output];
    for (const id of ["download", "copy"]) document.querySelector(`#${id}`).disabled = isWaiting;
    const url = address(`segment/${encodeURIComponent(model.name)}`);
    this.command.textContent = isWaiting
      ? "# click on the animal first"
      : curlLine(url, photo, prompt, this.output, hasKey());
  }

  async download() {
    const { model, photo, prompt } = this.page.request();
    const { output } = this;
    await this.page.busy(async () => {
      const response = await segment(model, photo, prompt, output);
      const url = URL.createObjectURL(await response.blob());
      const name = answerName(photo, output);
      Object.assign(document.createElement("a"), { href: url, download: name }).click();
      // The browser has taken the file over when the next task runs in most cases, not in all.
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      this.page.say(`${name} saved.`);
    });
  }

  async copy() {
    const button = document.querySelector("#copy");
    const isCopied = await copyText(this.command);
    button.textContent = isCopied ? "Copied" : "Press Ctrl+C";
    this.page.say(isCopied ? "The curl line is copied." : "The curl line is selected; copy it with Ctrl+C.");
    setTimeout(() => (button.textContent = "Copy curl"), 2000);
  }
}

/** Copy the text of `element`; over plain HTTP browsers withhold the clipboard, then it is selected and copied. */
async function copyText(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}
