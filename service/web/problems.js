// Everything that can go wrong, as one kind of error with a title and a detail that can be shown as they are.

/** An RFC 9457 problem of the service, or one of the page's own in the same words: got, wanted, fix. */
export class Problem extends Error {
  constructor({ title, detail, status = 0, errors = [], request_id: requestId = "" }) {
    super(detail);
    Object.assign(this, { title, detail, status, errors, requestId });
  }

  /** Whether the same request may well succeed a little later. */
  get isPassing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The problem that an unsuccessful `response` carries. */
export async function readProblem(response) {
  if ((response.headers.get("content-type") ?? "").startsWith("application/problem+json")) {
    return new Problem(await response.json());
  }
  return new Problem({
    title: `HTTP ${response.status}`,
    detail: "The answer did not come from petseg itself; something between this page and the service refused it.",
    status: response.status,
  });
}

/** The problem of a request that got no answer; `sentBytes` is the size of the photo that it carried. */
export function unreachable(sentBytes) {
  const sent = sentBytes > 8e6 ? ` while ${Math.round(sentBytes / 1e6)} MB were sent; it may take less: try a smaller photo` : "";
  return new Problem({
    title: "No answer",
    detail: `The server did not answer${sent}. Is it still running, and this device still connected to it?`,
  });
}

/** The problem of a file that this browser cannot show; without seeing it, nobody can click on it. */
export function unshowable(file) {
  const name = file.name || "What was pasted";
  const ending = (/\.(\w+)$/.exec(file.name)?.[1] ?? "").toLowerCase();
  const advice =
    { heic: HEIC, heif: HEIC, tif: TIFF, tiff: TIFF }[ending] ??
    "If it is a photo, it may be damaged; otherwise save it as JPEG or PNG and try again.";
  const detail = `${name} does not open as a picture here. ${advice}`;
  return new Problem({ title: "This browser cannot show the file", detail, status: 415 });
}

const HEIC =
  "HEIC is read by few browsers and not by the service: export the photo as JPEG (iPhone: Settings, Camera, Formats, Most Compatible).";
const TIFF = "The service does read TIFF: send it with curl, or save it as JPEG or PNG to use this page.";
