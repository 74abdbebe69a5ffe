// COCO run-length masks, read straight onto a small grid: a 12-megapixel mask is never unpacked.

/** Counts of either COCO form as numbers; the string form is pycocotools' own. */
export function readCounts(counts) {
  if (Array.isArray(counts)) return counts;
  const numbers = [];
  for (let place = 0; place < counts.length; ) {
    let value = 0;
    let shift = 0;
    let group;
    do {
      group = counts.charCodeAt(place++) - 48;
      // Multiplied, not shifted: a difference of a large photo's runs may need more than 32 bits.
      value += (group & 0x1f) * 2 ** shift;
      shift += 5;
    } while (group & 0x20);
    if (group & 0x10) value -= 2 ** shift;
    if (numbers.length > 2) value += numbers[numbers.length - 2];
    numbers.push(value);
  }
  return numbers;
}

/**
 * Write `value` into `grid` (row by row, width x height) wherever the mask covers the cell's centre.
 *
 * Cells are visited column by column, as the runs lie, so one pass over both is enough.
 */
export function paintMask({ size, counts }, grid, width, height, value) {
  const [maskHeight, maskWidth] = size;
  const runs = readCounts(counts);
  let run = 0;
  let end = runs[0] ?? Infinity;
  for (let x = 0; x < width; x++) {
    const start = Math.floor(((x + 0.5) * maskWidth) / width) * maskHeight;
    for (let y = 0; y < height; y++) {
      const place = start + Math.floor(((y + 0.5) * maskHeight) / height);
      while (place >= end) end += runs[++run] ?? Infinity;
      if (run % 2 === 1) grid[y * width + x] = value;
    }
  }
}
