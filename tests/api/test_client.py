"""The Python client: each method against the app, each kind of trouble against a server that makes it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.client import (
    AsyncClient,
    BatchProblem,
    Client,
    Output,
    RefusedError,
    Retries,
    UnreachableError,
    decode_rle,
)
from service.schemas import Segmentation
from tests.fakes import encode, picture, read

pytestmark = pytest.mark.anyio

UPLOAD = encode(picture(200, 120))


@pytest.fixture
async def petseg(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        AsyncClient("http://test/", transport=httpx.ASGITransport(app)) as petseg,
    ):
        yield petseg


async def test_models(petseg: AsyncClient) -> None:
    assert "colour" in [model.name for model in await petseg.models()]
    details = await petseg.model("click")
    assert details.prompt.kind == "points"
    assert details.card["summary"] == "The click of the tests."


async def test_every_answer_shows_the_same_animal(petseg: AsyncClient, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(UPLOAD)
    mask = await petseg.mask("colour", file)
    assert mask.shape == (120, 200)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1, 2}
    answer = await petseg.segment("colour", UPLOAD)
    for segment in answer.segments:
        assert isinstance(segment.segmentation, Segmentation)
        assert (
            decode_rle(segment.segmentation.size, segment.segmentation.counts) == (mask == segment.category_id)
        ).all()
    polygons = await petseg.segment("colour", UPLOAD, Output.POLYGONS, tolerance=1.0)
    assert all(isinstance(segment.segmentation, list) for segment in polygons.segments)
    assert read(await petseg.draw("colour", UPLOAD, Output.CUTOUT)).mode == "RGBA"


async def test_prompts_and_image_ids(petseg: AsyncClient) -> None:
    first = await petseg.segment("click", UPLOAD, points=[(150, 30)])
    again = await petseg.mask("click", image_id=first.image.id, points=[(20, 90, 1), (150, 30, 0)])
    rows, columns = np.nonzero(again)
    assert abs(columns.mean() - 20) < 5
    assert abs(rows.mean() - 90) < 5
    named = await petseg.segment("text", UPLOAD, text="a dog & a naïve # cat?")
    assert named.prompt is not None
    assert named.prompt.model_dump()["text"] == "a dog & a naïve # cat?"


async def test_a_batch_comes_line_by_line(petseg: AsyncClient, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(UPLOAD)
    lines = [line async for line in petseg.segment_batch("text", [file, b"no photo"], text="a cat")]
    good, bad = sorted(lines, key=lambda line: line.index)
    assert (good.filename, bad.filename) == ("a.png", "1")
    assert isinstance(bad, BatchProblem)
    assert bad.problem.type == "/problems/unsupported-image"


async def test_a_refusal_is_the_service_s_own_problem(petseg: AsyncClient) -> None:
    with pytest.raises(RefusedError, match="Prompt does not fit the model") as caught:
        await petseg.mask("colour", UPLOAD, text="a cat")
    assert caught.value.problem.type == "/problems/prompt-mismatch"
    with pytest.raises(RefusedError) as caught:
        await petseg.model("nope")
    assert caught.value.problem.status == 404


Trouble = Callable[[httpx.Request], httpx.Response]


def sequence(*outcomes: httpx.Response | httpx.TransportError) -> tuple[Trouble, list[httpx.Request]]:
    """A server that answers with each of `outcomes` in turn, and what it was sent."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        request.read()
        outcome = outcomes[len(seen)]
        seen.append(request)
        if isinstance(outcome, httpx.TransportError):
            raise outcome
        return outcome

    return handle, seen


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the clients would have slept."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("service.client.time.sleep", waited.append)
    monkeypatch.setattr("service.client.asyncio.sleep", sleep)
    return waited


async def draw(
    kind: type[Client | AsyncClient], handle: Trouble, retries: Retries, api_key: str | None = None
) -> bytes:
    """One mask by either client, through the same trouble."""
    transport = httpx.MockTransport(handle)
    if issubclass(kind, Client):
        with kind("http://test", retries=retries, transport=transport, api_key=api_key) as petseg:
            return petseg.draw("colour", UPLOAD)
    async with kind("http://test", retries=retries, transport=transport, api_key=api_key) as petseg:
        return await petseg.draw("colour", UPLOAD)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_trouble_that_passes_is_waited_out(kind: type[Client | AsyncClient], waits: list[float]) -> None:
    handle, seen = sequence(
        httpx.Response(503, headers={"Retry-After": "3"}),
        httpx.ConnectError("refused"),
        httpx.Response(429, headers={"Retry-After": "1"}),
        httpx.Response(200, content=b"mask"),
    )
    assert await draw(kind, handle, Retries(first_wait_s=0.25)) == b"mask"
    assert (waits[0], waits[2]) == (3, 1)
    assert 0.25 <= waits[1] <= 0.5
    assert {request.content for request in seen} == {UPLOAD}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_after_the_last_try_the_reason_is_told(kind: type[Client | AsyncClient], waits: list[float]) -> None:
    handle, seen = sequence(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(UnreachableError, match=r"^http://test: got no answer in 3 tries \(refused\); is the server"):
        await draw(kind, handle, Retries(max_tries=3))
    assert (len(seen), len(waits)) == (3, 2)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_an_answer_that_is_not_petseg_s_is_a_problem_too(
    kind: type[Client | AsyncClient], waits: list[float]
) -> None:
    handle, _ = sequence(httpx.Response(404, html="<h1>nginx</h1>"))
    with pytest.raises(RefusedError, match=r"Not Found \(404\): got an answer that is not petseg's: '<h1>nginx</h1>'"):
        await draw(kind, handle, Retries())
    assert waits == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_the_key_goes_along(kind: type[Client | AsyncClient]) -> None:
    handle, seen = sequence(httpx.Response(200, content=b"mask"), httpx.Response(200, content=b"mask"))
    await draw(kind, handle, Retries(), api_key="secret")
    await draw(kind, handle, Retries())
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in seen[1].headers
