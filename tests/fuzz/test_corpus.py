"""The image corpus: a first part of it on every test run, and whether it is what it says. `make fuzz` runs more."""

from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from httpx import ASGITransport

from service.app import create_app
from tests.fakes import ColourModel, encode, fake_checkpoint, picture
from tests.fuzz.corpus import Mutant, make_mutant
from tests.fuzz.judge import find_fault
from tests.fuzz.server import fuzz_settings

pytestmark = pytest.mark.anyio

COUNT = 180
PNG = encode(picture(6, 4).convert("P"))


@pytest.fixture
def app() -> FastAPI:
    return create_app(fuzz_settings(), [fake_checkpoint(ColourModel, "colour")])


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client,
    ):
        yield client


async def test_no_file_of_the_corpus_is_answered_wrong(client: httpx.AsyncClient) -> None:
    faults, statuses = [], Counter[int]()
    for index in range(COUNT):
        mutant = make_mutant(1, index)
        answer = await client.post("/segment/colour", content=mutant.data)
        statuses[answer.status_code] += 1
        if fault := find_fault(mutant, answer.status_code, answer.headers["content-type"], answer.content):
            faults.append(f"{mutant.kind} {index}: {fault}")
    assert faults == []
    assert set(statuses) == {200, 413, 415}
    assert min(statuses.values()) >= 5  # what is accepted, too large and damaged all occur


def test_a_file_is_made_from_its_seed_and_number_alone() -> None:
    first, again, other = make_mutant(1, 40), make_mutant(1, 40), make_mutant(2, 40)
    assert first == again
    assert first.data != other.data
    assert len({make_mutant(1, index).data for index in range(120)}) > 110


SOUND = Mutant(0, "narrow", b"...", size=(6, 4))
BROKEN = Mutant(0, "noise", b"...")
EMPTY = Mutant(0, "truncation", b"")
PROBLEM = b'{"type": "/problems/%s"}'


@pytest.mark.parametrize(
    ("mutant", "status", "kind", "body", "said"),
    [
        (SOUND, 200, "image/png", PNG, None),
        (BROKEN, 200, "image/png", PNG, None),
        (BROKEN, 415, "application/problem+json", PROBLEM % b"unsupported-image", None),
        (EMPTY, 422, "application/problem+json", PROBLEM % b"invalid-request", None),
        (BROKEN, 422, "application/problem+json", PROBLEM % b"invalid-request", "got 422 invalid-request"),
        (SOUND, 415, "application/problem+json", PROBLEM % b"unsupported-image", "for a sound file"),
        (SOUND, 200, "image/png", encode(picture(6, 5).convert("P")), "got a mask of (6, 5), wanted (6, 4)"),
        (BROKEN, 200, "image/png", encode(picture(6, 4)), "got a mask of mode RGB"),
        (BROKEN, 200, "text/html", PNG, "wanted image/png"),
        (BROKEN, 500, "application/problem+json", PROBLEM % b"internal-error", "got 500 internal-error"),
        (BROKEN, 504, "application/problem+json", PROBLEM % b"deadline-exceeded", "got 504 deadline-exceeded"),
        (BROKEN, 413, "application/problem+json", PROBLEM % b"unsupported-image", "got 413 unsupported-image"),
        (BROKEN, 415, "text/plain", b"no", "wanted a problem"),
        (BROKEN, 415, "application/problem+json", PROBLEM % b"unsupported-image" + b"/usr/lib", "got '/usr/'"),
    ],
)
def test_a_wrong_answer_is_found(mutant: Mutant, status: int, kind: str, body: bytes, said: str | None) -> None:
    fault = find_fault(mutant, status, kind, body)
    assert fault is None if said is None else fault is not None and said in fault
