"""Every kind of request that the soak sends, each with the check of its answer. Case i is always case i."""

import dataclasses
import json
import random
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import httpx

from models.checkpoint import Checkpoint
from models.prompts import PointPrompt, Prompt, PromptKind, TextPrompt
from tests.soak.checks import (
    Check,
    check_cutout,
    check_ndjson,
    check_overlay,
    check_page,
    check_png,
    check_probability,
    check_problem,
    check_rle,
    check_zip,
)
from tests.soak.photos import Reference, SoakPhoto, compute_reference, prompts_for

BAD_SHARE = 0.15
"""Share of requests that must be refused, hang-ups included."""

MODEL_WEIGHTS = {"unet": 0.3, "timm_unet": 0.4, "clip": 0.2, "prompt": 0.4}
"""Below 1 for models whose forward pass takes long, or that have a case for each of several prompts: a soak counts
requests, not seconds."""

_BATCH_WEIGHT = 0.5
_NO_IMAGE = b"a file that says it is a photo"


@dataclasses.dataclass(frozen=True)
class Case:
    """One request and what its answer must be."""

    kind: str
    """Its line in the results: model, output and way in; or what is bad about it."""
    path: str
    check: Check
    """Not asked where the client hangs up: there is no answer."""
    method: str = "POST"
    body: bytes = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs_kept: bool = False
    """Asks by image id, which only a process that has seen the photo can answer."""
    hangs_up: bool = False
    """Closes the connection half way through its body."""
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All cases, and how to draw from them."""

    good: Sequence[Case]
    bad: Sequence[Case]
    primers: Sequence[Case]
    """Sent first: they put each photo's features into the cache, for the cases that ask by image id."""
    seed: int

    def draw(self, index: int) -> Case:
        """The case of request number `index`, the same each time."""
        chance = random.Random(f"{self.seed}/{index}")
        cases = self.bad if chance.random() < BAD_SHARE else self.good
        return chance.choices(cases, [case.weight for case in cases])[0]

    def for_any_process(self) -> "Corpus":
        """Those that any process can answer, to the end."""
        good = [case for case in self.good if not case.needs_kept]
        return Corpus(good, [case for case in self.bad if not case.hangs_up], (), self.seed)


def build_corpus(checkpoints: Sequence[Checkpoint], photos: Sequence[SoakPhoto], seed: int) -> Corpus:
    """Cases for each model, photo, prompt, output and way in, with references from `checkpoints`, and the bad ones."""
    good: list[Case] = []
    primers: list[Case] = []
    for checkpoint in checkpoints:
        kind, is_required = checkpoint.model.prompt_kind, checkpoint.model.prompt_required
        weight = MODEL_WEIGHTS.get(checkpoint.name, 1.0)
        plain: list[tuple[SoakPhoto, Reference]] = []
        for photo in photos:
            for prompt in prompts_for(kind, is_required, photo.size):
                reference = compute_reference(checkpoint, photo, prompt)
                good += _single_cases(checkpoint.name, photo, prompt, reference, weight, kind is not PromptKind.NONE)
                if prompt is None:
                    plain.append((photo, reference))
        if kind is not PromptKind.NONE:
            for photo in photos:
                one = next(case for case in good if case.path == _path(checkpoint.name) and photo.data in case.body)
                primers.append(one)
        if plain:
            good += _batch_cases(checkpoint.name, plain, weight * _BATCH_WEIGHT)
    names = [checkpoint.name for checkpoint in checkpoints]
    good.append(Case("GET /models", "/models", check_page("application/json", names[0]), method="GET", weight=3))
    good.append(Case("GET /openapi.json", "/openapi.json", check_page("application/json", "/segment/"), method="GET"))
    return Corpus(good, list(_bad_cases(checkpoints, photos[0])), primers, seed)


def _single_cases(
    model: str, photo: SoakPhoto, prompt: Prompt, reference: Reference, weight: float, keeps_images: bool
) -> Iterator[Case]:
    fields = prompt_fields(prompt)
    outputs = {
        "png": check_png(reference),
        "rle": check_rle(photo, model, reference),
        "overlay": check_overlay(photo, reference),
        "cutout": check_cutout(photo, reference),
        "probability": check_probability(reference),
    }
    for output, check in outputs.items():
        form = _form({"image": ("a photo", photo.data)}, fields | {"output": output})
        yield Case(f"{model} {output}, form", _path(model), check, **form, weight=weight)
        query = urlencode(fields | {"output": output})
        raw: dict[str, Any] = {"body": photo.data, "headers": {"content-type": "application/octet-stream"}}
        yield Case(f"{model} {output}, raw body", f"{_path(model)}?{query}", check, **raw, weight=weight)
    if keeps_images:
        for rle in ("compressed", "uncompressed"):
            form = _form({}, fields | {"image_id": photo.image_id, "rle": rle})
            kind = f"{model} rle {rle}, image id"
            yield Case(kind, _path(model), outputs["rle"], **form, needs_kept=True, weight=2 * weight)


def _batch_cases(model: str, plain: Sequence[tuple[SoakPhoto, Reference]], weight: float) -> Iterator[Case]:
    for start in range(len(plain) - 2):
        photos, references = zip(*plain[start : start + 3], strict=True)
        files: list[tuple[str, tuple[str, bytes]]] = [("image", (photo.name, photo.data)) for photo in photos]
        names = [photo.name for photo in photos]
        path = f"{_path(model)}/batch"
        form = _form(files, {"output": "zip"})
        yield Case(f"{model} batch, zip", path, check_zip(names, references), **form, weight=weight)
        form = _form([*files, ("image", ("broken", _NO_IMAGE))], {})
        check = check_ndjson([*photos, None], model, [*references, None])
        yield Case(f"{model} batch, ndjson with one broken file", path, check, **form, weight=weight)


def _bad_cases(checkpoints: Sequence[Checkpoint], photo: SoakPhoto) -> Iterator[Case]:
    by_kind = {checkpoint.model.prompt_kind: checkpoint.name for checkpoint in checkpoints}
    anyone = checkpoints[0].name
    height, width = photo.size

    def raw(kind: str, status: int, slug: str, body: bytes, path: str = _path(anyone), **headers: str) -> Case:
        given = {"content-type": "application/octet-stream"} | headers
        return Case(f"bad: {kind}", path, check_problem(status, slug), body=body, headers=given)

    def form(kind: str, status: int, slug: str, model: str, fields: Mapping[str, str]) -> Case:
        given = _form({"image": ("a photo", photo.data)}, fields)
        return Case(f"bad: {kind}", _path(model), check_problem(status, slug), **given)

    yield raw("no body", 422, "invalid-request", b"")
    yield raw("random bytes", 415, "unsupported-image", random.Random(7).randbytes(5000))
    yield raw("half a photo", 415, "unsupported-image", photo.data[: len(photo.data) // 2])
    yield raw("a header of 60000 x 60000 pixels", 413, "image-too-large", _lying_png(60000, 60000))
    yield raw("a text", 415, "unsupported-image", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    yield raw("unknown model", 404, "unknown-model", photo.data, "/segment/nobody")
    yield raw("unknown content type", 415, "unsupported-body", b"{}", **{"content-type": "application/json"})
    yield raw("unknown field", 422, "invalid-request", photo.data, f"{_path(anyone)}?colour=red")
    yield raw("unknown output", 422, "invalid-request", photo.data, f"{_path(anyone)}?output=svg")
    broken = {"content-type": "multipart/form-data; boundary=b"}
    yield raw("broken form", 422, "invalid-request", b"--b\r\nno header\r\n\r\n", **broken)
    yield Case("bad: GET", _path(anyone), check_problem(405, "method-not-allowed"), method="GET")
    yield Case("bad: unknown address", "/nowhere", check_problem(404, "not-found"), method="GET")
    if model := by_kind.get(PromptKind.NONE):
        yield form("text for a model that takes none", 422, "prompt-mismatch", model, {"text": "a cat"})
        gone = {"image_id": photo.image_id}
        check = check_problem(422, "image-id-not-kept")
        yield Case("bad: image id for a model that keeps none", _path(model), check, **_form({}, gone))
    if model := by_kind.get(PromptKind.POINTS):
        outside = {"x": str(width + 1), "y": str(height / 2)}
        yield form("click outside the photo", 422, "invalid-request", model, outside)
        yield form("clicks that are no JSON", 422, "invalid-request", model, {"points": "[[1,2"})
        yield form("no click", 422, "prompt-mismatch", model, {})
        gone = {"image_id": f"sha256:{'0' * 64}", "x": "1", "y": "1"}
        yield Case("bad: unknown image id", _path(model), check_problem(410, "image-gone"), **_form({}, gone))
    given = _form({"image": ("a photo", photo.data)}, {})
    unasked = check_problem(499, "never-asked")
    yield Case("bad: hangs up half way", _path(anyone), unasked, **given, hangs_up=True, weight=2)


def prompt_fields(prompt: Prompt) -> dict[str, str]:
    """`prompt` as form fields."""
    if isinstance(prompt, TextPrompt):
        return {"text": prompt.text}
    if isinstance(prompt, PointPrompt):
        rows = [[x, y, label] for (x, y), label in zip(prompt.points, prompt.labels, strict=True)]
        return {"points": json.dumps(rows)}
    return {}


def _path(model: str) -> str:
    return f"/segment/{model}"


def _form(files: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    """Body and headers of a form: multipart where it has files, else URL-encoded."""
    request = httpx.Request("POST", "http://soak/", files=files or None, data=dict(fields))
    return {"body": request.read(), "headers": {"content-type": request.headers.get("content-type", "")}}


def _lying_png(width: int, height: int) -> bytes:
    """A PNG of few bytes whose header promises `width` x `height` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
