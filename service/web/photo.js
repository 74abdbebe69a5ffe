// A photo as the page holds it: the file for the service, and a copy of it small enough to draw smoothly.

import { unshowable } from "./problems.js";

/** Longest side of what is drawn, in pixels: beyond it phones stutter and nobody sees more. */
const MAX_DRAWN_PX = 1600;

/**
 * The photo in `file`, upright. Throws a Problem where this browser cannot show it.
 *
 * width, height are those of the whole photo, `canvas` has at most 1600 pixels on its longer side.
 */
export async function readPhoto(file, source = null) {
  const image = new Image();
  const url = URL.createObjectURL(file);
  try {
    image.src = url;
    await image.decode();
    const { naturalWidth: width, naturalHeight: height } = image;
    if (!width || !height) throw unshowable(file);
    const scale = Math.min(1, MAX_DRAWN_PX / Math.max(width, height));
    const canvas = makeCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    return { file, name: fileName(file), source, width, height, canvas, imageId: null, upload: null };
  } catch {
    throw unshowable(file);
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** A canvas that is not in the document. */
export function makeCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

/** The file's own name; what is pasted has none, or one that every pasted picture has. */
function fileName(file) {
  return file.name || `pasted.${file.type.replace("image/", "").replace("jpeg", "jpg") || "png"}`;
}
