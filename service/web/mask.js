// An answer's segments as layers over the photo: fill, outline, and their three views.

import { makeCanvas } from "./photo.js";
import { paintMask } from "./rle.js";

/** RGB of class 0, 1, 2...: those of the service's own pictures (Okabe and Ito, for colour-blind eyes too). */
export const COLOURS = [
  [0, 0, 0],
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [240, 228, 66],
  [204, 121, 167],
  [213, 94, 0],
  [0, 114, 178],
];

/** CSS colour of a class. */
export function colourOf(category) {
  return `rgb(${COLOURS[category === 0 ? 0 : 1 + ((category - 1) % (COLOURS.length - 1))].join(" ")})`;
}

/** Mask layers of an answer's `segments`, width x height pixels. */
export function makeLayers(segments, width, height) {
  const grid = new Uint8Array(width * height);
  for (const each of segments) paintMask(each.segmentation, grid, width, height, each.category_id);
  const reach = Math.max(1, Math.round(Math.max(width, height) / 640));
  return { fill: tint(grid, width, height, () => true), line: tint(grid, width, height, isEdge(grid, width, height, reach)) };
}

/** A canvas with the class colours of those cells of `grid` that are animal and wanted. */
function tint(grid, width, height, isWanted) {
  const canvas = makeCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const packed = COLOURS.map(([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0);
  for (let place = 0; place < grid.length; place++) {
    const category = grid[place];
    if (category && isWanted(place)) pixels[place] = packed[1 + ((category - 1) % (COLOURS.length - 1))];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Whether a cell lies within `reach` of another class, judged along its row and its column. */
function isEdge(grid, width, height, reach) {
  return (place) => {
    const own = grid[place];
    const x = place % width;
    const y = (place - x) / width;
    for (let step = 1; step <= reach; step++) {
      if (x >= step && grid[place - step] !== own) return true;
      if (x + step < width && grid[place + step] !== own) return true;
      if (y >= step && grid[place - step * width] !== own) return true;
      if (y + step < height && grid[place + step * width] !== own) return true;
    }
    return false;
  };
}

/** Draw `photo` (a canvas) with `layers`, or alone where they are null, in one of three views. */
export function draw(canvas, photo, layers, view, opacity) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const put = (layer) => context.drawImage(layer, 0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.globalCompositeOperation = "source-over";
  context.globalAlpha = 1;
  context.clearRect(0, 0, width, height);
  if (!layers || view === "overlay") {
    put(photo);
    if (!layers) return;
    context.globalAlpha = opacity;
    put(layers.fill);
    context.globalAlpha = Math.min(1, 3 * opacity);
    put(layers.line);
  } else if (view === "cutout") {
    put(layers.fill);
    context.globalCompositeOperation = "source-in";
    put(photo);
  } else {
    context.fillStyle = "black";
    context.fillRect(0, 0, width, height);
    put(layers.fill);
  }
}
