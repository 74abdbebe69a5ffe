"""The soak must see what is wrong: each check passes what is right and fails on the smallest wrong thing."""

import json
import zipfile
from dataclasses import replace
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.checkpoint import Checkpoint
from service.masks import draw_cutout, draw_overlay, encode_png
from service.rle import encode_rle
from tests.fakes import ClickModel, ColourModel, encode, fake_checkpoint, picture
from tests.soak import checks
from tests.soak.cases import Case, build_corpus
from tests.soak.checks import WrongAnswerError
from tests.soak.photos import Reference, SoakPhoto, compute_reference, draw_photos
from tests.soak.watch import Sample, Watch

PHOTO = SoakPhoto("a photo", encode(picture()), picture())


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Red left of the middle, blue right of it."""
    return compute_reference(fake_checkpoint(ColourModel, "colour"), PHOTO, None)


@pytest.fixture(scope="module")
def other(reference: Reference) -> Reference:
    """Cat and dog changed places."""
    swapped = np.array([0, 2, 1], np.uint8)[reference.mask]
    return replace(reference, mask=swapped, probability=255 - reference.probability)


def picture_answer(data: bytes) -> httpx.Response:
    return httpx.Response(200, content=data, headers={"content-type": "image/png"})


def body_of(reference: Reference, photo: SoakPhoto = PHOTO) -> dict[str, Any]:
    segments = [
        {
            "label": reference.class_names[category],
            "category_id": category,
            "area": int((reference.mask == category).sum()),
            "segmentation": {"size": list(photo.size), "counts": encode_rle(reference.mask == category)},
        }
        for category in (1, 2)
    ]
    return {"model": "colour", "image": {"id": photo.image_id}, "segments": segments}


def grey(levels: Any) -> bytes:
    return encode(Image.fromarray(levels))


def test_masks(reference: Reference, other: Reference) -> None:
    check = checks.check_png(reference)
    assert check(picture_answer(encode_png(reference.mask))) == 1
    for wrong in (other.mask, reference.mask[:, :-1], np.zeros_like(reference.mask)):
        with pytest.raises(WrongAnswerError):
            check(picture_answer(encode_png(wrong)))
    with pytest.raises(WrongAnswerError, match="500"):
        check(httpx.Response(500, text="oh no"))


def test_segments(reference: Reference, other: Reference) -> None:
    check = checks.check_rle(PHOTO, "colour", reference)
    assert check(httpx.Response(200, json=body_of(reference))) == 1
    whole = body_of(reference)
    cat, dog = whole["segments"]
    wrong = [
        body_of(other),
        whole | {"model": "unet"},
        whole | {"image": {"id": "sha256:other"}},
        whole | {"segments": [cat]},
        whole | {"segments": [cat | {"area": cat["area"] + 1}, dog]},
        whole | {"segments": [cat | {"label": "dog"}, dog]},
        whole | {"segments": [cat, dog | {"segmentation": cat["segmentation"], "area": cat["area"]}]},
    ]
    for body in wrong:
        with pytest.raises(WrongAnswerError):
            check(httpx.Response(200, json=body))


def test_pictures(reference: Reference, other: Reference) -> None:
    blank = Image.new("RGB", PHOTO.image.size)
    cutout = checks.check_cutout(PHOTO, reference)
    assert cutout(picture_answer(draw_cutout(PHOTO.image, reference.mask))) == 1
    overlay = checks.check_overlay(PHOTO, reference)
    assert overlay(picture_answer(draw_overlay(PHOTO.image, reference.mask))) == 1
    probability = checks.check_probability(reference)
    assert probability(picture_answer(grey(reference.probability))) == 1
    wrong = [
        (cutout, draw_cutout(blank, reference.mask)),
        (cutout, draw_cutout(PHOTO.image, 2 - 2 * np.minimum(reference.mask, 1))),
        (overlay, draw_overlay(PHOTO.image, other.mask)),
        (overlay, draw_cutout(PHOTO.image, reference.mask)),
        (probability, grey(other.probability)),
        (probability, grey(reference.probability[:-1])),
    ]
    for check, data in wrong:
        with pytest.raises(WrongAnswerError):
            check(picture_answer(data))


def test_batches(reference: Reference, other: Reference) -> None:
    refused = {"index": 1, "problem": {"type": "/problems/unsupported-image"}}
    check = checks.check_ndjson([PHOTO, None], "colour", [reference, None])

    def answer(*lines: dict[str, Any]) -> httpx.Response:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        return httpx.Response(200, text=text, headers={"content-type": "application/x-ndjson"})

    assert check(answer(refused, {"index": 0} | body_of(reference))) == 1
    for lines in (
        [refused],
        [refused, {"index": 0} | body_of(other)],
        [{"index": n} | body_of(reference) for n in (0, 1)],
    ):
        with pytest.raises(WrongAnswerError):
            check(answer(*lines))

    def archive(**files: bytes) -> httpx.Response:
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name, data in files.items():
                file.writestr(f"{name}.png", data)
        return httpx.Response(200, content=buffer.getvalue(), headers={"content-type": "application/zip"})

    check = checks.check_zip(["a", "b"], [reference, other])
    right = {"a": encode_png(reference.mask), "b": encode_png(other.mask)}
    assert check(archive(**right)) == 1
    for files in ({"a": right["a"]}, {"a": right["b"], "b": right["a"]}):
        with pytest.raises(WrongAnswerError):
            check(archive(**files))


def test_problems() -> None:
    check = checks.check_problem(404, "unknown-model")
    headers = {"content-type": "application/problem+json"}
    body = {"type": "/problems/unknown-model", "status": 404, "detail": "got x, wanted y"}
    assert check(httpx.Response(404, json=body, headers=headers)) == 1
    wrong = [
        httpx.Response(200, json=body, headers=headers),
        httpx.Response(404, json=body),
        httpx.Response(404, json=body | {"type": "/problems/not-found"}, headers=headers),
        httpx.Response(404, json=body | {"detail": ""}, headers=headers),
    ]
    for answer in wrong:
        with pytest.raises(WrongAnswerError):
            check(answer)


@pytest.fixture(scope="module")
def models() -> list[Checkpoint]:
    return [fake_checkpoint(ColourModel, "colour"), fake_checkpoint(ClickModel, "click")]


def test_a_corpus_is_drawn_the_same_each_time(models: list[Checkpoint]) -> None:
    photos = draw_photos(4)
    assert len({photo.size for photo in photos}) == 4

    def kinds(seed: int) -> list[tuple[str, bytes]]:
        corpus = build_corpus(models, photos, seed)
        return [(case.kind, case.body[-200:]) for case in map(corpus.draw, range(50))]

    assert [kind for kind, _ in kinds(1)] == [kind for kind, _ in kinds(1)]
    assert [kind for kind, _ in kinds(1)] != [kind for kind, _ in kinds(2)]


def test_a_corpus_has_every_output_and_each_photo_primed(models: list[Checkpoint]) -> None:
    corpus = build_corpus(models, draw_photos(3), seed=1)
    kinds = {case.kind for case in corpus.good}
    assert {f"colour {output}, raw body" for output in ("png", "rle", "overlay", "cutout", "probability")} <= kinds
    assert "click rle compressed, image id" in kinds
    assert len(corpus.primers) == 3

    def is_stateless(case: Case) -> bool:
        return not (case.needs_kept or case.hangs_up)

    movable = corpus.for_any_process()
    assert all(is_stateless(case) for case in [*movable.good, *movable.bad])
    assert not all(is_stateless(case) for case in [*corpus.good, *corpus.bad])


def test_growth_is_that_of_the_later_half() -> None:
    def watched(*rss: int) -> Watch:
        return Watch(1, 1, [Sample(index, size, threads=3, files=9) for index, size in enumerate(rss)])

    assert watched(10, 50, 60, 60, 60, 60, 60, 60).growth_bytes == 0
    assert watched(10, 20, 30, 40, 50, 60, 70, 80).growth_bytes == 40
    assert watched(10, 20).growth_threads == 0
