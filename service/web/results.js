// What was found, in words and as a legend.

import { colourOf } from "./mask.js";
import { make } from "./picture.js";

/** `part` of the photo as words: "34 %", "under 1 %". */
function share(segment, image) {
  const percent = (100 * segment.area) / (image.width * image.height);
  return percent < 1 ? "under 1 %" : `${Math.round(percent)} %`;
}

/** The segments of an answer in one sentence, for screen readers. */
export function describeSegments({ segments, image }) {
  if (!segments.length) return "nothing found.";
  const each = segments.map((segment) => `${segment.label}, ${share(segment, image)} of the photo`);
  return `found ${each.join("; ")}.`;
}

/** The segments of an answer as swatches with names. */
export function legend({ segments }) {
  const list = make("span", "legend");
  if (!segments.length) list.append("Nothing found");
  for (const segment of segments) list.append(swatch(segment), segment.label);
  return list;
}

/** The segments of an answer as the lines of a list. */
export function resultLines({ segments, image }) {
  return segments.map((segment) => {
    const line = make("li");
    const sure = make("span", "sure", `${Math.round(100 * segment.score)} % sure`);
    line.append(swatch(segment), make("b", "", segment.label), `${share(segment, image)} of the photo`, sure);
    return line;
  });
}

function swatch(segment) {
  const element = make("i", "swatch");
  element.style.background = colourOf(segment.category_id);
  return element;
}
