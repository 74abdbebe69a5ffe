"""The load generator against a server that answers by rote: what it counts is what was sent."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.http_client import Answer, Connection, ConnectionLostError, join_chunks
from benchmarks.load import Load, LoadResult, _Tally, generate
from benchmarks.requests import Asked, build_request, get_request, read_photos

pytestmark = pytest.mark.anyio

Answering = Callable[[bytes, bytes], list[bytes]]
"""From a request's head and body to the pieces in which its answer is sent; none hangs up."""

PHOTO = b"\xff\xd8photo\xff\xd9"


def respond(status: str, body: bytes, *headers: str) -> list[bytes]:
    return ["\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body]


@asynccontextmanager
async def rote_server(answer: Answering, delay_s: float = 0.0) -> AsyncIterator[int]:
    """A server on a free port that gives `answer(head, body)` to each request, `delay_s` later."""

    conversations: list[asyncio.Task[object] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.append(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
                answered = answer(head, await reader.readexactly(int(fields.get(b"Content-Length", b"0"))))
                if not answered:
                    break
                await asyncio.sleep(delay_s)
                for piece in answered:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has hung up
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*(each for each in conversations if each is not None))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(PHOTO + bytes([index]))
    return tmp_path


async def run(answer: Answering, photos: Path, **options: object) -> LoadResult:
    given = {"asked": Asked("/segment/unet", "raw"), "seconds": 0.2, "clients": 3} | options
    async with rote_server(answer) as port:
        return await generate(Load(port, photos, **given))  # type: ignore[arg-type]


async def test_every_good_answer_is_counted_and_one_of_each_photo_kept(photos: Path, tmp_path: Path) -> None:
    seen: list[bytes] = []

    def echo(head: bytes, body: bytes) -> list[bytes]:
        seen.append(body)
        return respond("200 OK", b"mask of " + body)

    result = await run(echo, photos, answers=tmp_path / "answers")
    assert set(seen) == set(read_photos(photos))
    assert 3 < result.answered == result.statuses["200"] <= len(seen)
    assert 3 < result.good.count <= len(seen)
    assert 0.2 <= result.seconds < 5
    assert result.rate == result.answered / result.seconds
    assert result.errors == 0
    assert 0 < result.good.p50_ms <= result.good.p99_ms <= result.good.max_ms
    assert result.client_cpu_s > 0
    for place in range(3):
        assert (tmp_path / "answers" / f"{place}.bin").read_bytes() == b"mask of " + PHOTO + bytes([place])


def test_the_rate_counts_answers_where_they_end_and_latency_is_of_what_was_asked_meanwhile() -> None:
    tally, answer = _Tally(), Answer(200, b"", b"mask")
    before = time.perf_counter()
    tally.send(before)
    tally.start()
    during = time.perf_counter()
    tally.send(during)
    tally.count(0, before, answer)
    tally.stop()
    assert (tally.ended["200"], tally.latencies["200"]) == (1, [])
    assert (tally.under_way, tally.is_over) == (1, False)
    tally.count(0, during, answer)
    assert (tally.ended["200"], len(tally.latencies["200"])) == (1, 1)
    assert (tally.under_way, tally.is_over, tally.answered_in_all) == (0, True, 2)


async def test_a_slow_server_is_measured_until_each_client_has_had_its_rounds(photos: Path) -> None:
    async with rote_server(lambda head, body: respond("200 OK", b"mask"), delay_s=0.1) as port:
        load = Load(port, photos, Asked("/segment/unet", "raw"), seconds=0.1, clients=3, rounds=3)
        clock: list[float] = []
        result = await generate(load, lambda: clock.append(time.perf_counter()))
    assert result.answered >= 9
    assert result.seconds == pytest.approx(clock[1] - clock[0], abs=0.05)
    assert result.seconds > 0.2
    assert result.good.count >= 9
    assert result.good.max_ms >= 100


async def test_a_port_that_nobody_listens_on_is_an_error(photos: Path) -> None:
    async with rote_server(lambda head, body: []) as port:
        pass
    for rate in (0.0, 50.0):
        result = await generate(Load(port, photos, Asked("/segment/unet", "raw"), seconds=0.2, rate=rate))
        assert result.answered == 0
        assert result.errors == result.statuses["lost"] > 0
        assert math.isnan(result.good.p99_ms)


@pytest.mark.parametrize("rate", [0.0, 50.0])
async def test_requests_that_get_no_answer_at_all_are_errors(
    photos: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.setattr("benchmarks.load._GRACE_S", 0.2)
    async with rote_server(lambda head, body: respond("200 OK", b"mask"), delay_s=2.0) as port:
        load = Load(port, photos, Asked("/segment/unet", "raw"), seconds=0.2, warm_up_s=0.0, clients=2, rate=rate)
        result = await generate(load)
    assert result.statuses["unanswered"] == result.errors > 0


async def test_latency_in_an_open_loop_runs_from_when_a_request_was_due(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Connection.open

    async def connect_slowly(host: str, port: int) -> Connection:
        await asyncio.sleep(0.1)
        return await plain(host, port)

    monkeypatch.setattr(Connection, "open", connect_slowly)
    result = await run(lambda head, body: respond("200 OK", b"mask"), photos, rate=20.0, seconds=0.3)
    assert result.good.max_ms >= 100


async def test_refusals_are_told_apart_and_checked_for_retry_after(photos: Path) -> None:
    asked = 0

    def refuse(head: bytes, body: bytes) -> list[bytes]:
        nonlocal asked
        asked += 1
        headers = ["Retry-After: 1"] if asked % 2 else []
        return respond("503 Service Unavailable", b"{}", *headers)

    result = await run(refuse, photos, clients=1)
    assert result.answered == 0
    assert result.errors == result.statuses["503"] > 1
    assert abs(result.refused.count - result.errors) <= 1  # one was asked before the clock started or stopped
    assert abs(result.without_retry_after - result.errors / 2) <= 1


async def test_a_broken_connection_is_an_error_and_the_client_comes_again(photos: Path) -> None:
    asked = 0

    def hang_up_at_times(head: bytes, body: bytes) -> list[bytes]:
        nonlocal asked
        asked += 1
        return [] if asked % 3 == 0 else respond("200 OK", b"mask")

    result = await run(hang_up_at_times, photos)
    assert result.statuses["lost"] > 0
    assert result.answered > 0


async def test_an_open_loop_keeps_its_rate_though_answers_are_slow(photos: Path) -> None:
    seen = 0

    def answer(head: bytes, body: bytes) -> list[bytes]:
        nonlocal seen
        seen += 1
        return respond("200 OK", b"mask")

    result = await run(answer, photos, rate=200.0, seconds=0.5)
    assert 50 < seen <= 101
    assert result.errors == 0


async def test_a_unique_request_differs_in_bytes_and_not_in_length(photos: Path) -> None:
    bodies: set[bytes] = set()

    def answer(head: bytes, body: bytes) -> list[bytes]:
        bodies.add(body)
        return respond("200 OK", b"mask")

    result = await run(answer, photos, asked=Asked("/segment/prompt?x=1&y=1", "multipart", is_unique=True), clients=1)
    assert len(bodies) >= result.answered > 3
    assert len({len(body) for body in bodies}) == 1
    assert all(b'name="image"' in body and PHOTO in body for body in bodies)


async def test_the_client_reads_chunked_and_split_answers() -> None:
    pieces = [
        b"HTTP/1.1 200 OK\r\nTransfer-Enc",
        b"oding: chunked\r\nX-Image-Id: a\r\n\r\n3\r\nmas",
        b"\r\n1\r\nk\r\n0\r",
        b"\n\r\n",
    ]
    async with rote_server(lambda head, body: pieces) as port:
        connection = await Connection.open("127.0.0.1", port)
        for _ in range(2):
            answer = await connection.ask(get_request("/", "127.0.0.1", port))
            assert (answer.status, answer.body) == (200, b"mask")
            assert (answer.header("x-image-id"), answer.header("x-none")) == ("a", None)
        connection.close()
        with pytest.raises(ConnectionLostError):
            await connection.ask(b"GET / HTTP/1.1\r\n\r\n")


def test_known_chunks() -> None:
    assert join_chunks(b"4\r\nWiki\r\n5;name=x\r\npedia\r\n0\r\n\r\n") == b"Wikipedia"


def test_a_request_says_how_long_it_is() -> None:
    request = build_request(Asked("/segment/unet"), PHOTO, "localhost", 80)
    head, _, body = b"".join(request.parts(0)).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert Answer(200, head, body).header("content-type") == "multipart/form-data; boundary=petseg-benchmark"
