"""Whether an answer is right: each check raises WrongAnswerError or returns how well the answer agrees, in [0, 1]."""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image

from models.letterbox import Array
from service.masks import draw_overlay
from tests.fakes import decode_rle, read
from tests.soak.photos import Reference, SoakPhoto, agreement

LEAST_AGREEMENT = 0.998
"""Share of pixels that must be equal: a batch sums in another order than a single image, which moves a few border
pixels. References of other photos and prompts agree far less."""

_LEAST_OVERLAY_AGREEMENT = 0.97
"""A moved border pixel moves the outline, several pixels wide, with it."""

Check = Callable[[httpx.Response], float]


class WrongAnswerError(Exception):
    """An answer that looks fine and is not, or one of another kind than expected."""


def check_png(reference: Reference) -> Check:
    """An indexed PNG of the reference's mask."""
    return lambda answer: _same_mask(_picture(answer, "P"), reference)


def check_rle(photo: SoakPhoto, model: str, reference: Reference) -> Check:
    """JSON whose segments add up to the reference's mask."""

    def check(answer: httpx.Response) -> float:
        _ok(answer, "application/json")
        return _same_segments(answer.json(), photo, model, reference)

    return check


def check_cutout(photo: SoakPhoto, reference: Reference) -> Check:
    """The photo's own colours where the alpha channel shows them, and nothing elsewhere."""

    def check(answer: httpx.Response) -> float:
        pixels = _picture(answer, "RGBA")
        shown = pixels[..., 3] > 0
        if pixels.shape[:2] != photo.size:
            raise WrongAnswerError(f"got a cutout of {pixels.shape[:2]}, wanted {photo.size}")
        if not (pixels[shown][:, :3] == np.asarray(photo.image)[shown]).all() or pixels[~shown].any():
            raise WrongAnswerError("got other colours than the photo's")
        return _enough(agreement(shown.astype(np.uint8), (reference.mask > 0).astype(np.uint8)), LEAST_AGREEMENT)

    return check


def check_overlay(photo: SoakPhoto, reference: Reference) -> Check:
    """The photo with the reference's mask drawn in."""
    wanted = np.asarray(read(draw_overlay(photo.image, reference.mask)))
    return lambda answer: _enough(_pixel_agreement(_picture(answer, "RGB"), wanted), _LEAST_OVERLAY_AGREEMENT)


def check_probability(reference: Reference) -> Check:
    """Grey levels within 3 of the reference's."""

    def check(answer: httpx.Response) -> float:
        levels = _picture(answer, "L").astype(np.int16)
        if levels.shape != reference.probability.shape:
            raise WrongAnswerError(f"got a map of {levels.shape}, wanted {reference.probability.shape}")
        return _enough(float(np.mean(np.abs(levels - reference.probability) <= 3)), LEAST_AGREEMENT)

    return check


def check_ndjson(photos: Sequence[SoakPhoto | None], model: str, references: Sequence[Reference | None]) -> Check:
    """One line for each photo of a batch, in any order; None stands for a file that is refused."""

    def check(answer: httpx.Response) -> float:
        _ok(answer, "application/x-ndjson")
        lines = {line["index"]: line for line in map(json.loads, answer.text.splitlines())}
        if set(lines) != set(range(len(photos))):
            raise WrongAnswerError(f"got the lines {sorted(lines)}, wanted one for each of {len(photos)} photos")
        agreements = []
        for index, (photo, reference) in enumerate(zip(photos, references, strict=True)):
            if photo is None or reference is None:
                if lines[index].get("problem", {}).get("type") != "/problems/unsupported-image":
                    raise WrongAnswerError(f"got {lines[index]} for a file that is no image")
            else:
                agreements.append(_same_segments(lines[index], photo, model, reference))
        return min(agreements)

    return check


def check_zip(names: Sequence[str], references: Sequence[Reference]) -> Check:
    """One mask for each photo of a batch, under the name that it was sent by."""

    def check(answer: httpx.Response) -> float:
        _ok(answer, "application/zip")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            if archive.testzip() is not None or sorted(archive.namelist()) != sorted(f"{name}.png" for name in names):
                raise WrongAnswerError(f"got the entries {archive.namelist()}, wanted one mask each of {list(names)}")
            return min(
                _same_mask(np.asarray(read(archive.read(f"{name}.png"))), reference)
                for name, reference in zip(names, references, strict=True)
            )

    return check


def check_problem(status: int, slug: str) -> Check:
    """An RFC 9457 problem of the type `slug`."""

    def check(answer: httpx.Response) -> float:
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        if answer.status_code != status or media_type != "application/problem+json":
            raise WrongAnswerError(f"got {_say(answer)}, wanted {status} {slug}")
        body = answer.json()
        if body["type"] != f"/problems/{slug}" or body["status"] != status or not body["detail"]:
            raise WrongAnswerError(f"got {_say(answer)}, wanted {status} {slug}")
        return 1.0

    return check


def check_page(media_type: str, text: str) -> Check:
    """Any document of `media_type` that holds `text`."""

    def check(answer: httpx.Response) -> float:
        _ok(answer, media_type)
        if text not in answer.text:
            raise WrongAnswerError(f"got {answer.text[:200]!r}, wanted {text!r} in it")
        return 1.0

    return check


def _ok(answer: httpx.Response, media_type: str) -> None:
    if answer.status_code != 200 or answer.headers.get("content-type", "").partition(";")[0] != media_type:
        raise WrongAnswerError(f"got {_say(answer)}, wanted 200 {media_type}")


def _picture(answer: httpx.Response, mode: str) -> Array:
    _ok(answer, "image/png")
    image = read(answer.content)
    if not isinstance(image, Image.Image) or image.mode != mode:
        raise WrongAnswerError(f"got a picture of mode {image.mode}, wanted {mode}")
    return np.asarray(image)


def _same_mask(mask: Array, reference: Reference) -> float:
    return _enough(agreement(mask, reference.mask), LEAST_AGREEMENT)


def _same_segments(body: dict[str, Any], photo: SoakPhoto, model: str, reference: Reference) -> float:
    if body.get("model") != model or body.get("image", {}).get("id") != photo.image_id:
        raise WrongAnswerError(f"got an answer of {body.get('model')} for {body.get('image')}, wanted {photo.image_id}")
    mask = np.zeros(photo.size, np.uint8)
    for segment in body["segments"]:
        inside = decode_rle(**segment["segmentation"]) > 0
        if inside.shape != photo.size or mask[inside].any() or segment["area"] != inside.sum():
            raise WrongAnswerError(f"got a segment that does not fit: {str(segment)[:200]}")
        if segment["label"] != reference.class_names[segment["category_id"]]:
            raise WrongAnswerError(f"got the label {segment['label']} for {segment['category_id']}")
        mask[inside] = segment["category_id"]
    return _same_mask(mask, reference)


def _pixel_agreement(got: Array, wanted: Array) -> float:
    return float(np.mean((got == wanted).all(axis=-1))) if got.shape == wanted.shape else 0.0


def _enough(found: float, least: float) -> float:
    if found < least:
        raise WrongAnswerError(f"got {found:.4f} of the pixels right, wanted at least {least}")
    return found


def _say(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.headers.get('content-type')} {answer.text[:200]!r}"
