// What the page does, as the shell line that does the same.

const ENDINGS = {
  png: ".mask.png",
  rle: ".rle.json",
  polygons: ".polygons.json",
  geojson: ".geojson",
  yolo: ".txt",
};

/** File name of an answer about `photo` in the form `output`. */
export function answerName(photo, output) {
  const stem = photo.name.replace(/\.[^.]*$/, "") || photo.name;
  return stem + (ENDINGS[output] ?? `.${output}.png`);
}

/** The curl line; a sample is fetched first, for it lies on no one's disk. `url` is that of the model's address. */
export function curlLine(url, photo, prompt, output, hasKey) {
  const parts = ["curl -sSf"];
  if (hasKey) parts.push('-H "Authorization: Bearer $PETSEG_API_KEY"');
  parts.push(`-F ${quote(`image=@${formFile(photo.name)}`)}`);
  // --form-string: in -F a text that begins with @ or < would name a file.
  if (prompt.text) parts.push(`--form-string ${quote(`text=${prompt.text}`)}`);
  if (prompt.points) parts.push(`-F ${quote(`points=${prompt.points}`)}`);
  parts.push(`-F output=${output}`, `-o ${quote(safeName(answerName(photo, output)))}`, quote(url));
  const line = parts.join(" ");
  return photo.source ? `curl -sSfO ${quote(photo.source)} && ${line}` : line;
}

/** `word` as one word of a POSIX shell. */
export function quote(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** A file's name as curl's -F reads it: quoted where ; or , would end it. */
function formFile(name) {
  const safe = safeName(name);
  return /[;,"\\]/.test(safe) ? `"${safe.replace(/["\\]/g, "\\$&")}"` : safe;
}

/** A name that no program takes for an option or for standard input. */
function safeName(name) {
  return name.startsWith("-") ? `./${name}` : name;
}
