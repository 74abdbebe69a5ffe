// A photo with its mask and clicks on the screen, and the three ways to click on it: mouse, touch and keyboard.

import { draw, makeLayers } from "./mask.js";

/** One arrow key moves the crosshair by this share of the longer side; with Shift by a fifth of it. */
const STEP = 0.025;

export class Picture {
  /**
   * maxPixels bounds the drawing's longer side; `onClick(x, y, label)` gets pixels of the whole photo, with label
   * null where the click itself does not say which; `onUndo()` is Backspace; `describe(text)` speaks to screen readers.
   */
  constructor(element, { maxPixels, onClick, onUndo = () => {}, describe = () => {} }) {
    Object.assign(this, { element, maxPixels, onClick, onUndo, describe });
    this.canvas = document.createElement("canvas");
    this.markers = make("div", "markers");
    this.crosshair = make("div", "crosshair");
    this.frame = make("div", "picture");
    this.frame.append(this.canvas, this.markers, this.crosshair);
    this.element.append(this.frame);
    this.at = { x: 0.5, y: 0.5 };
    this.layers = null;
    this.look = { view: "overlay", opacity: 0.45 };
    this.frame.addEventListener("click", (event) => this.#point(event, event.shiftKey ? 0 : null));
    this.frame.addEventListener("contextmenu", (event) => this.#menu(event));
    this.frame.addEventListener("keydown", (event) => this.#press(event));
  }

  /** Show `photo` without a mask. */
  show(photo) {
    this.photo = photo;
    this.layers = null;
    this.at = { x: 0.5, y: 0.5 };
    const longer = Math.max(photo.canvas.width, photo.canvas.height);
    // A small photo is drawn at twice its size, so that the mask's outline is not as coarse as its pixels.
    const scale = Math.min(2, this.maxPixels / longer);
    this.canvas.width = Math.max(1, Math.round(photo.canvas.width * scale));
    this.canvas.height = Math.max(1, Math.round(photo.canvas.height * scale));
    this.frame.style.setProperty("--ratio", photo.width / photo.height);
    this.markers.replaceChildren();
    this.#draw();
  }

  /** Lay the mask of `segments` over the photo; null takes it away. */
  setSegments(segments) {
    const { width, height } = this.photo.canvas;
    const scale = Math.min(1, this.maxPixels / Math.max(width, height));
    const size = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    this.layers = segments && makeLayers(segments, ...size);
    this.#draw();
  }

  /** `view` is overlay, cutout or mask; `opacity` of the overlay, 0 to 1. */
  setLook(view, opacity) {
    this.look = { view, opacity };
    if (this.photo) this.#draw();
  }

  /** Mark `clicks`, each [x, y, label]. */
  setClicks(clicks) {
    this.markers.replaceChildren(
      ...clicks.map(([x, y, label]) => {
        const marker = make("i", `dot ${label ? "yes" : "no"}`);
        marker.textContent = label ? "+" : "−";
        this.#place(marker, (x + 0.5) / this.photo.width, (y + 0.5) / this.photo.height);
        return marker;
      }),
    );
  }

  /** Invite clicks, by keyboard too, or leave them to those who try; `name` is what screen readers say. */
  setClickable(isClickable, name) {
    this.isClickable = isClickable;
    this.frame.classList.toggle("clickable", isClickable);
    this.frame.toggleAttribute("tabindex", isClickable);
    if (isClickable) this.frame.tabIndex = 0;
    // As an application the frame gets the arrow keys from screen readers too; as an image it is merely read.
    this.frame.setAttribute("role", isClickable ? "application" : "img");
    this.frame.setAttribute("aria-label", name);
    this.#place(this.crosshair, this.at.x, this.at.y);
  }

  #draw() {
    const { view, opacity } = this.look;
    this.frame.dataset.view = this.layers ? view : "photo";
    draw(this.canvas, this.photo.canvas, this.layers, view, opacity);
  }

  #place(element, x, y) {
    element.style.left = `${100 * x}%`;
    element.style.top = `${100 * y}%`;
  }

  #point(event, label) {
    const box = this.canvas.getBoundingClientRect();
    this.at = { x: between01((event.clientX - box.left) / box.width), y: between01((event.clientY - box.top) / box.height) };
    this.#place(this.crosshair, this.at.x, this.at.y);
    this.#click(label);
  }

  #menu(event) {
    // The menu key gives this event too, at a place that nobody chose.
    const isPointed = event.button === 2 || event.ctrlKey || event.pointerType === "touch";
    if (!this.isClickable || !isPointed) return;
    event.preventDefault();
    this.#point(event, 0);
  }

  #press(event) {
    if (!this.isClickable || event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = this.photo;
    const step = (event.shiftKey ? STEP / 5 : STEP) * Math.max(width, height);
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const [x, y] = moves[event.key];
      this.at = { x: between01(this.at.x + (x * step) / width), y: between01(this.at.y + (y * step) / height) };
      this.#place(this.crosshair, this.at.x, this.at.y);
      this.describe(`${Math.round(100 * this.at.x)} % across, ${Math.round(100 * this.at.y)} % down`);
    } else if (event.key === "Enter" || event.key === " ") {
      this.#click(event.shiftKey ? 0 : null);
    } else if (event.key === "Backspace" || event.key === "Delete") {
      this.onUndo();
    } else {
      return;
    }
    event.preventDefault();
  }

  #click(label) {
    const { width, height } = this.photo;
    const x = Math.min(width - 1, Math.floor(this.at.x * width));
    const y = Math.min(height - 1, Math.floor(this.at.y * height));
    this.onClick(x, y, label);
  }
}

/** An element with a class. */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function between01(value) {
  return Math.min(1, Math.max(0, value));
}
