"""Many photos through the app: results of every kind, what is done is skipped, what fails is listed."""

import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from pycocotools.coco import COCO

from service.client import AsyncClient, RefusedError, Retries, UnreachableError
from service.client_requests import AskedOutlines
from service.folder_results import Result
from service.journal import FILE_NAME, JournalError
from service.photo_files import find_photos
from service.segment_photos import Run, Summary, segment_photos
from tests.fakes import decode_rle, encode, picture, read

pytestmark = pytest.mark.anyio


class Counting(httpx.AsyncBaseTransport):
    """Counts what is sent to the app; `is_gone` after `last` masks."""

    def __init__(self, app: FastAPI) -> None:
        self._to_app = httpx.ASGITransport(app)
        self.masks = 0
        self.last = 10**9

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.masks >= self.last:
            raise httpx.ConnectError("gone")
        self.masks += request.method == "POST"
        return await self._to_app.handle_async_request(request)


@pytest.fixture
def transport(app: FastAPI) -> Counting:
    return Counting(app)


@pytest.fixture
async def petseg(app: FastAPI, transport: Counting) -> AsyncIterator[AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        AsyncClient("http://test", transport=transport, retries=Retries(max_tries=1)) as petseg,
    ):
        yield petseg


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "deep/c.png")):
        (folder / name).write_bytes(encode(picture(60 + 10 * index, 40, index)))
    (folder / "bad.jpg").write_bytes(b"no photo")
    return folder


def run_of(photos: Path, *results: Result, model: str = "colour", **options: Any) -> Run:
    out = photos.parent / "out"
    return Run(model, find_photos([str(photos)], out), out, results or (Result.PNG,), **options)


def counts(summary: Summary) -> tuple[int, int, list[str]]:
    return summary.segmented, summary.skipped, [failure.photo for failure in summary.failed]


async def test_masks_lie_where_their_photos_lay(petseg: AsyncClient, photos: Path) -> None:
    finished: list[None] = []
    summary = await segment_photos(petseg, run_of(photos), on_photo=lambda: finished.append(None))
    assert counts(summary) == (3, 0, ["bad.jpg"])
    assert summary.failed[0].problem == "/problems/unsupported-image"
    assert len(finished) == summary.photos == 4
    for name in ("a", "b", "deep/c"):
        mask = np.asarray(read((photos.parent / "out" / f"{name}.png").read_bytes()))
        assert (mask == await petseg.mask("colour", photos / f"{name}.png")).all()


async def test_what_is_done_is_skipped_until_the_photo_or_the_result_changes(
    petseg: AsyncClient, photos: Path, transport: Counting
) -> None:
    await segment_photos(petseg, run_of(photos))
    assert counts(await segment_photos(petseg, run_of(photos))) == (0, 3, ["bad.jpg"])
    assert transport.masks == 4 + 1
    (photos / "bad.jpg").write_bytes(encode(picture(30, 30)))
    (photos / "b.png").write_bytes(encode(picture(61, 40, 9)))
    (photos.parent / "out" / "a.png").unlink()
    assert counts(await segment_photos(petseg, run_of(photos))) == (3, 1, [])
    assert counts(await segment_photos(petseg, run_of(photos, overwrite=True))) == (4, 0, [])


async def test_a_run_that_was_cut_short_goes_on(petseg: AsyncClient, photos: Path, transport: Counting) -> None:
    transport.last = 2
    with pytest.raises(UnreachableError, match="got no answer in 1 tries"):
        await segment_photos(petseg, run_of(photos, Result.COCO, jobs=1))
    journal = photos.parent / "out" / FILE_NAME
    whole = journal.read_text()
    assert len(whole.splitlines()) == 3
    journal.write_text(whole + whole.splitlines()[1][:50])  # killed within a line
    transport.last = 100
    assert counts(await segment_photos(petseg, run_of(photos, Result.COCO))) == (1, 2, ["bad.jpg"])
    assert len(json.loads((photos.parent / "out/annotations.json").read_text())["images"]) == 3
    assert json.loads(journal.read_text().splitlines()[1])["photo"] == "a.png"
    assert counts(await segment_photos(petseg, run_of(photos, Result.COCO))) == (0, 3, ["bad.jpg"])


@pytest.mark.parametrize("kind", [Result.COCO, Result.COCO_POLYGONS])
async def test_one_coco_file_for_the_folder(petseg: AsyncClient, photos: Path, kind: Result) -> None:
    summary = await segment_photos(petseg, run_of(photos, kind))
    assert summary.files == ["annotations.json"]
    coco = COCO(photos.parent / "out" / "annotations.json")
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == ["a.png", "b.png", "deep/c.png"]
    for image in images:
        mask = await petseg.mask("colour", photos / image["file_name"])
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert len(annotations) == 2
        for annotation in annotations:
            assert annotation["area"] == (mask == annotation["category_id"]).sum()
            assert (_fill(coco, annotation, mask.shape) == (mask == annotation["category_id"])).all()


def _fill(coco: COCO, annotation: Any, shape: tuple[int, ...]) -> Any:
    """The annotation's pixels, read as COCO's own tools do."""
    rle: Any = coco.annToRLE(annotation)
    assert tuple(rle["size"]) == shape
    return decode_rle(rle["size"], rle["counts"])


async def test_areas_as_a_table(petseg: AsyncClient, photos: Path) -> None:
    asked = AskedOutlines(text="a dog")
    summary = await segment_photos(petseg, run_of(photos, Result.CSV, model="text", asked=asked))
    assert summary.files == ["areas.csv"]
    rows = list(csv.DictReader((photos.parent / "out/areas.csv").read_text().splitlines()))
    assert [(row["photo"], row["label"]) for row in rows[:2]] == [("a.png", "cat"), ("a.png", "dog")]
    assert len(rows) == 3 * 2
    for row in rows:
        if row["label"] == "cat":
            assert (row["area"], row["share"], row["score"]) == ("0", "0", "")
        else:
            mask = await petseg.mask("colour", photos / row["photo"])
            assert int(row["area"]) == (mask == 2).sum()
            assert float(row["share"]) == pytest.approx((mask == 2).mean(), abs=1e-6)


async def test_several_results_have_a_folder_each(petseg: AsyncClient, photos: Path, transport: Counting) -> None:
    results = (Result.OVERLAY, Result.YOLO, Result.COCO, Result.CSV, Result.GEOJSON, Result.RLE)
    summary = await segment_photos(petseg, run_of(photos, *results, asked=AskedOutlines(tolerance=1.0)))
    assert sorted(summary.files) == ["annotations.json", "areas.csv", "classes.txt"]
    out = photos.parent / "out"
    for file in ("overlay/deep/c.png", "yolo/deep/c.txt", "geojson/deep/c.geojson", "rle/deep/c.json"):
        assert (out / file).stat().st_size > 0
    assert (out / "classes.txt").read_text() == "cat\ndog\n"
    assert transport.masks == 3 * 4 + 1  # RLE, COCO and CSV come from one answer; the bad photo is asked for once


async def test_other_questions_want_another_folder(petseg: AsyncClient, photos: Path) -> None:
    await segment_photos(petseg, run_of(photos, model="text", asked=AskedOutlines(text="a cat")))
    with pytest.raises(
        JournalError, match=r"got results of another run \(text \w+, text \"a cat\", png\), wanted none"
    ):
        await segment_photos(petseg, run_of(photos, model="text", asked=AskedOutlines(text="a dog")))
    (photos.parent / "out" / FILE_NAME).write_text("shopping list\n")
    with pytest.raises(JournalError, match="got a file that is no journal of petseg"):
        await segment_photos(petseg, run_of(photos))


@pytest.mark.parametrize(
    ("model", "asked", "slug"),
    [("nope", AskedOutlines(), "unknown-model"), ("colour", AskedOutlines(text="a cat"), "prompt-mismatch")],
)
async def test_what_no_photo_could_mend_stops_the_run(
    petseg: AsyncClient, photos: Path, model: str, asked: AskedOutlines, slug: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        await segment_photos(petseg, run_of(photos, model=model, asked=asked))
    assert caught.value.problem.type == f"/problems/{slug}"


async def test_files_that_cannot_be_read_or_written_are_listed(petseg: AsyncClient, photos: Path) -> None:
    run = run_of(photos)
    (photos / "a.png").unlink()
    (run.out / "b.png").mkdir(parents=True)
    summary = await segment_photos(petseg, run)
    assert counts(summary) == (1, 0, ["a.png", "b.png", "bad.jpg"])
    gone, blocked, _ = summary.failed
    assert (gone.problem, blocked.problem) == ("file-error", "file-error")
    assert gone.detail.endswith("a.png: No such file or directory")
    assert blocked.detail.endswith("Is a directory")
