"""POST /segment/{model}/batch: each photo is one line or one file, and a bad one spoils no other."""

import asyncio
import gc
import io
import json
import weakref
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from models.checkpoint import Checkpoint
from service.app import create_app
from service.batches import entry_names, segment_all
from service.forms import Upload
from service.pipeline import Pipeline
from service.settings import Settings
from tests.fakes import BrokenModel, StuckModel, TextModel, asgi_scope, encode, picture, read, until

pytestmark = pytest.mark.anyio

PHOTOS = [("a.png", encode(picture(60, 40, 1))), ("b.txt", b"no image"), ("c.jpg", encode(picture(30, 50), "JPEG"))]


async def post(client: httpx.AsyncClient, model: str, photos: list[tuple[str, bytes]], **fields: Any) -> httpx.Response:
    return await client.post(
        f"/segment/{model}/batch",
        files=[("image", photo) for photo in photos],
        data=fields,
        headers=fields.pop("h", {}),
    )


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return sorted((json.loads(line) for line in response.text.splitlines()), key=lambda line: int(line["index"]))


async def test_ndjson_has_one_line_per_photo_and_a_problem_for_the_bad_one(client: httpx.AsyncClient) -> None:
    response = await post(client, "colour", PHOTOS)
    first, bad, last = lines(response)
    for line, (filename, data) in ((first, PHOTOS[0]), (last, PHOTOS[2])):
        alone = (await client.post("/segment/colour?output=rle", files={"image": data})).json()
        assert list(line)[:2] == ["index", "filename"]
        assert line["filename"] == filename
        assert {**line, "timing_ms": 0} == {
            **alone, "index": line["index"], "filename": filename, "timing_ms": 0
        }  # fmt: skip
    assert (bad["index"], bad["filename"], set(bad)) == (1, "b.txt", {"index", "filename", "problem"})
    assert bad["problem"]["type"] == "/problems/unsupported-image"
    assert bad["problem"]["request_id"] == response.headers["x-request-id"]


async def test_uncompressed_counts_and_text_for_all(client: httpx.AsyncClient) -> None:
    found = lines(await post(client, "text", [PHOTOS[0], PHOTOS[2]], text="a dog", rle="uncompressed"))
    for line in found:
        assert [segment["label"] for segment in line["segments"]] == ["dog"]
        assert isinstance(line["segments"][0]["segmentation"]["counts"], list)
        assert line["prompt"] == {"kind": "text", "text": "a dog", "chosen_by": "caller"}
    (own,) = lines(await post(client, "text", PHOTOS[:1]))
    assert own["prompt"] == {"kind": "text", "text": TextModel.own_prompt, "chosen_by": "model"}


@pytest.mark.parametrize("how", [{"output": "zip"}, {"h": {"accept": "application/zip"}}])
async def test_zip_of_masks(client: httpx.AsyncClient, how: dict[str, Any]) -> None:
    response = await post(client, "colour", [*PHOTOS, ("x/a.jpg", PHOTOS[0][1])], **how)
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["a-2.png", "a.png", "b.problem.json", "c.png"]
        alone = await client.post("/segment/colour", files={"image": PHOTOS[2][1]})
        assert (np.asarray(read(archive.read("c.png"))) == np.asarray(read(alone.content))).all()
        assert json.loads(archive.read("b.problem.json"))["type"] == "/problems/unsupported-image"


async def test_more_photos_than_the_queue_holds_are_all_answered(client: httpx.AsyncClient, app: FastAPI) -> None:
    photos = [(f"{seed}.png", encode(picture(seed=seed))) for seed in range(60)]
    found = lines(await post(client, "colour", photos))
    assert [line["filename"] for line in found] == [name for name, _ in photos]
    assert all(line["segments"] for line in found)


async def test_batches_leave_room_for_each_other_and_for_single_photos(
    settings: Settings, checkpoints: list[Checkpoint]
) -> None:
    small = settings.model_copy(update={"queue_size": 8, "streams": 4})  # each batch alone would have 128 in work
    app = create_app(small, checkpoints)
    photos = [(f"{seed}.png", encode(picture(seed=seed))) for seed in range(24)]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        batches = [asyncio.ensure_future(post(client, "colour", photos)) for _ in range(2)]
        pipeline = app.state.service.pipelines["colour"]
        await until(lambda: pipeline.in_flight == 4)
        single = await client.post("/segment/colour", files={"image": photos[0]})
        assert single.status_code == 200
        for batch in batches:
            assert all(line.get("segments") for line in lines(await batch))


@dataclass(frozen=True)
class Saturated:
    client: httpx.AsyncClient
    pipeline: Pipeline
    model: StuckModel
    single: Callable[[], Awaitable[httpx.Response]]
    held: list[asyncio.Task[httpx.Response]]


@asynccontextmanager
async def saturated(settings: Settings, checkpoints: list[Checkpoint]) -> AsyncIterator[Saturated]:
    """A client of a server of which single photos hold both places that the stuck model has."""
    app = create_app(settings.model_copy(update={"queue_size": 2}), checkpoints)
    model = next(each.model for each in checkpoints if isinstance(each.model, StuckModel))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        model.is_free.clear()
        try:
            single = partial(client.post, "/segment/stuck", files={"image": PHOTOS[0][1]})
            held = [asyncio.ensure_future(single()) for _ in range(2)]
            pipeline = app.state.service.pipelines["stuck"]
            await until(lambda: pipeline.in_flight == 2)
            yield Saturated(client, pipeline, model, single, held)
        finally:
            model.is_free.set()


async def test_photos_of_a_batch_wait_for_a_place(settings: Settings, checkpoints: list[Checkpoint]) -> None:
    async with saturated(settings, checkpoints) as server:
        batch = asyncio.ensure_future(post(server.client, "stuck", [PHOTOS[0], PHOTOS[2]] * 3))
        await until(lambda: server.pipeline.batch_room.locked())
        assert not batch.done()
        assert (await server.single()).status_code == 503
        server.held[0].cancel()
        await asyncio.wait({server.held[0]})
        assert (await server.single()).status_code == 503  # the place is for who has waited
        assert server.pipeline.in_flight == 2
        server.model.is_free.set()
        assert (await server.held[1]).status_code == 200
        assert [line["index"] for line in lines(await batch) if "segments" in line] == list(range(6))
        assert server.pipeline.in_flight == 0
        assert (await server.single()).status_code == 200


async def test_photos_of_a_batch_wait_no_longer_than_in_the_queue(
    settings: Settings, checkpoints: list[Checkpoint]
) -> None:
    brief = settings.model_copy(update={"max_queue_s": 0.2})
    async with saturated(brief, checkpoints) as server:
        found = lines(await post(server.client, "stuck", [PHOTOS[0], PHOTOS[2]]))
        for line in found:
            assert line["problem"]["type"] == "/problems/overloaded"
            assert "got no turn with stuck within 0.2 s; try again in" in line["problem"]["detail"]


async def test_a_batch_whose_client_leaves_waits_no_more(settings: Settings, checkpoints: list[Checkpoint]) -> None:
    async with saturated(settings, checkpoints) as server:
        batch = asyncio.ensure_future(post(server.client, "stuck", [PHOTOS[0], PHOTOS[2]]))
        await until(lambda: server.pipeline.batch_room.locked())
        batch.cancel()
        await asyncio.wait({batch})
        await until(lambda: not server.pipeline.batch_room.locked())
        server.model.is_free.set()
        assert {(await held).status_code for held in server.held} == {200}
        assert (await server.single()).status_code == 200


async def test_a_photo_is_let_go_once_it_is_answered() -> None:
    class Outcome:
        pass

    made: list[weakref.ref[Outcome]] = []

    async def segment(data: bytes) -> Any:
        await asyncio.sleep(0.01 * len(made))
        outcome = Outcome()
        made.append(weakref.ref(outcome))
        return outcome

    uploads = [Upload(f"{place}.png", b"") for place in range(6)]
    alive = []
    async for _ in segment_all(uploads, segment, max_at_once=1):
        gc.collect()
        alive.append(sum(each() is not None for each in made))
    assert len(made) == 6
    assert max(alive) <= 3  # the one just answered, the one before it, and one that is finished meanwhile


async def test_a_batch_whose_work_is_cancelled_ends() -> None:
    async def segment(data: bytes) -> Any:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        async for _ in segment_all([Upload("a.png", b"")], segment, max_at_once=1):
            pass


async def test_a_defect_is_one_problem_line_without_its_text(
    client: httpx.AsyncClient, checkpoints: list[Checkpoint]
) -> None:
    broken = next(each.model for each in checkpoints if isinstance(each.model, BrokenModel))
    broken.is_broken = True
    response = await post(client, "broken", PHOTOS[:1])
    assert lines(response)[0]["problem"]["type"] == "/problems/internal-error"
    assert "secret" not in response.text


async def test_lines_come_while_others_are_in_work(
    client: httpx.AsyncClient, app: FastAPI, checkpoints: list[Checkpoint]
) -> None:
    model = next(each.model for each in checkpoints if isinstance(each.model, StuckModel))
    model.is_free.clear()
    request = httpx.Request("POST", "http://test/", files=[("image", photo) for photo in PHOTOS[:2]])
    messages = [{"type": "http.request", "body": request.read(), "more_body": False}]
    has_line, received = asyncio.Event(), b""

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.sleep(60)
        raise AssertionError("the answer took a minute")

    async def send(message: Any) -> None:
        nonlocal received
        received += message.get("body", b"")
        if b"\n" in received:
            has_line.set()

    scope = asgi_scope("/segment/stuck/batch", request.headers["content-type"])
    task = asyncio.ensure_future(app(scope, receive, send))
    await asyncio.wait_for(has_line.wait(), 10)
    assert json.loads(received)["filename"] == "b.txt"
    model.is_free.set()
    await asyncio.wait_for(task, 10)
    assert [json.loads(line)["filename"] for line in received.splitlines()] == ["b.txt", "a.png"]


@pytest.mark.parametrize("field", ["points", "x", "y"])
async def test_clicks_are_refused(client: httpx.AsyncClient, field: str) -> None:
    response = await post(client, "click", PHOTOS[:1], **{field: "1"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == f"#/{field}"
    assert "clicks belong to one image; send each image with its own clicks" in response.json()["detail"]


@pytest.mark.parametrize(
    ("model", "fields", "slug", "said"),
    [
        ("click", {}, "prompt-mismatch", "got no prompt, this model needs clicks"),
        ("colour", {"text": "cat"}, "prompt-mismatch", "this model takes no prompt"),
        ("colour", {"foo": "1"}, "invalid-request", "got the unknown field 'foo', wanted image, text, output, rle"),
        ("colour", {"output": "png"}, "invalid-request", "Input should be 'ndjson' or 'zip'"),
        ("colour", {"output": "zip", "rle": "compressed"}, "invalid-request", "got rle=compressed with output=zip"),
        ("nope", {}, "unknown-model", "got model 'nope'"),
    ],
)
async def test_what_no_photo_could_mend_is_refused_whole(
    client: httpx.AsyncClient, model: str, fields: dict[str, str], slug: str, said: str
) -> None:
    response = await post(client, model, PHOTOS, **fields)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"/problems/{slug}"
    assert said in response.json()["detail"]


async def test_a_batch_needs_photos_in_a_form(client: httpx.AsyncClient) -> None:
    none = await client.post("/segment/colour/batch")
    assert none.json()["detail"] == "got no image; send one file part named image for each photo"
    raw = await client.post("/segment/colour/batch", content=b"x", headers={"content-type": "image/png"})
    assert raw.status_code == 415
    assert "wanted multipart/form-data; for example" in raw.json()["detail"]


class TestLimits:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(max_batch_images=2, max_batch_body_bytes=4000, max_body_bytes=100)

    async def test_photos_and_bytes(self, client: httpx.AsyncClient) -> None:
        assert len(lines(await post(client, "colour", PHOTOS[:2]))) == 2
        many = await post(client, "colour", PHOTOS)
        assert many.json()["detail"] == "got more than 2 files, wanted at most 2"
        heavy = await post(client, "colour", [("a", b"x" * 4000)])
        assert heavy.json()["type"] == "/problems/body-too-large"


def test_entries_have_distinct_plain_names() -> None:
    names = ["a.jpg", "folder/a.png", "..\\..\\evil.jpg", "a-2.x", "", "..", "ü b(1).jpeg", "new\nline.png"]
    assert entry_names([Upload(name, b"") for name in names]) == [
        "a", "a-2", "evil", "a-2-2", "image-4", "image-5", "ü b(1)", "new_line"
    ]  # fmt: skip
