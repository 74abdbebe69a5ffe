"""What a client may do to a connection, spoken to a listening server byte by byte; one past each limit."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.protocol import BoundedProtocol, bounded_protocol
from service.server import OperationServer, server_config
from service.settings import Settings
from tests.fakes import until

pytestmark = pytest.mark.anyio

BIG = 16 << 20
SETTINGS = Settings(
    max_connections=3, max_header_bytes=1024, header_timeout_s=0.3, write_timeout_s=0.3, drain_s=1, port=0
)


class Echo:
    """Answers with the body's length, the last number of the caller's address, much, late, or unread."""

    def __init__(self) -> None:
        self.disconnects = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0
        if scope["path"] == "/length":
            while True:
                message = await receive()
                size += len(message["body"])
                if not message["more_body"]:
                    break
        if scope["path"] == "/who":
            size = int(scope["client"][0].rpartition(".")[2])
        if scope["path"] == "/slow":
            await asyncio.sleep(0.8)
        body = bytes(BIG) if scope["path"] == "/big" else str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def serve(app: Any, settings: Settings = SETTINGS) -> AsyncIterator[tuple[int, uvicorn.Server]]:
    """`app` behind the service's own configuration of uvicorn, on a free port."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = server_config(FastAPI(), settings)
    config.app, config.lifespan = app, "off"
    server = OperationServer(config)
    running = asyncio.create_task(server.serve([listening]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield listening.getsockname()[1], server
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server closes, which it must do by itself."""
    async with asyncio.timeout(10):
        with suppress(ConnectionError):
            return await reader.read()
        return b""


def patient(**settings: Any) -> Settings:
    """`SETTINGS` with more time for headers than any test takes."""
    return SETTINGS.model_copy(update={"header_timeout_s": 60.0} | settings)


async def until_connected(server: uvicorn.Server, count: int) -> None:
    await until(lambda: len(server.server_state.connections) == count)


def idle_connections(server: uvicorn.Server) -> int:
    protocol = server.config.http_protocol_class
    assert issubclass(protocol, BoundedProtocol)
    return len(protocol.idle)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, answered."""
    writer.write(b"GET /length HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n0")


def problem(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    document: dict[str, Any] = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % document["status"])
    assert b"content-type: application/problem+json\r\n" in head and b"connection: close" in head
    return document


@pytest.mark.parametrize("sent", [b"", b"GET /length HT", b"GET /length HTTP/1.1\r\nhost: x\r\nx-slow: ", b"\r\n"])
async def test_headers_that_do_not_come_close_the_connection(sent: bytes) -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        writer.write(sent)
        assert await rest(reader) == b""


async def test_a_trickle_of_headers_gets_no_more_time() -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        closing = asyncio.ensure_future(rest(reader))
        writer.write(b"GET /length HTTP/1.1\r\nhost: x\r\n")
        while not closing.done():
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.05)
        assert closing.result() == b""


async def test_a_second_request_has_the_same_time() -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        writer.write(b"GET /length HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n0")
        writer.write(b"GET /le")
        assert await rest(reader) == b""


async def test_a_request_may_take_longer_than_headers_may() -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\nGET /length HTTP/1.1\r\nhost: x\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n0")
        assert await rest(reader) == b""


async def test_headers_at_the_limit_and_one_byte_past() -> None:
    def request(size: int) -> bytes:
        fixed = len("/length") + len("host") + len("x") + 4 + len("pad") + 4
        return b"GET /length HTTP/1.1\r\nhost: x\r\npad: " + b"y" * (size - fixed) + b"\r\n\r\n"

    async with serve(Echo()) as (port, _):
        async with connect(port) as (reader, writer):
            writer.write(request(1024))
            assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
        async with connect(port) as (reader, writer):
            writer.write(request(1025) + b"GET /length HTTP/1.1\r\nhost: x\r\n\r\n")
            refused = problem(await rest(reader))
    assert (refused["type"], refused["status"]) == ("/problems/headers-too-large", 431)
    assert refused["detail"].startswith("got more than 1024 bytes of request line and headers, wanted at most 1024")


async def test_headers_without_end_are_not_kept() -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n")
        for _ in range(40):
            writer.write(b"x: " + b"y" * 100 + b"\r\n")
            await asyncio.sleep(0)
        with suppress(ConnectionError):
            await writer.drain()
        answer = await rest(reader)
    assert not answer or problem(answer)["type"] == "/problems/headers-too-large"


CHUNKED = b"POST /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("begun", [b"3\r\nabc\r\n0\r\n", b"3\r\nabc\r\n0\r\nx: ", b"3;"])
@pytest.mark.parametrize("more", [b"x: " + b"y" * 95 + b"\r\n", b"y" * 100])
async def test_what_stands_between_chunks_has_the_limit_of_headers(begun: bytes, more: bytes) -> None:
    """Trailers, one without end, and a chunk's extension: bytes of a body that no limit on bodies sees."""
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        answering = asyncio.ensure_future(rest(reader))
        writer.write(CHUNKED + begun)
        for _ in range(1000):
            if answering.done():
                break
            writer.write(more)
            with suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(0.001)
        answer = await answering
    assert not answer or problem(answer)["status"] in (400, 431)


async def test_trailers_of_a_request_that_is_answered_end_it_without_a_word() -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        writer.write(CHUNKED.replace(b"/length", b"/nothing") + b"3\r\nabc\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n0")
        writer.write(b"0\r\n" + b"x: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        for _ in range(20):
            writer.write(b"x: " + b"y" * 95 + b"\r\n")
            await asyncio.sleep(0.001)
        assert await rest(reader) == b""


async def test_trailers_are_no_headers() -> None:
    told: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told.extend(name for name, _ in scope["headers"])
        await Echo()(scope, receive, send)

    async with serve(app) as (port, _), connect(port) as (reader, writer):
        writer.write(CHUNKED + b"3\r\nabc\r\n0\r\nx-api-key: stolen\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n3")).startswith(b"HTTP/1.1 200")
        writer.write(CHUNKED + b"1\r\na\r\n" * 2000 + b"0\r\nx: y\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n2000")).startswith(b"HTTP/1.1 200")
    assert told == [b"host", b"transfer-encoding"] * 2


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"hello\r\n\r\n"])
async def test_what_is_no_http_is_a_problem_too(sent: bytes) -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        writer.write(sent)
        refused = problem(await rest(reader))
    assert (refused["type"], refused["status"]) == ("/problems/invalid-request", 400)


CONVERSATION = {
    b"GET /length HTTP/1.1\r\nhost: x\r\n\r\n": 0,
    b"POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nabcde": 5,
    b"POST /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n": 7,
    b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nabcde": 0,
    b"POST /nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\ntrailer: 1\r\n\r\n": 0,
}
LAST = b"POST /length HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc"


async def converse(port: int, seed: int) -> None:
    """Some requests on one connection, their bytes cut anywhere; each is answered once, in order."""
    random = Random(seed)
    requests = random.choices(list(CONVERSATION), k=random.randint(1, 5))
    is_last = random.random() < 0.5
    data = b"".join(requests) + LAST * is_last
    cuts = [0, *sorted(random.sample(range(1, len(data)), random.randint(0, 6))), len(data)]
    async with connect(port) as (reader, writer), asyncio.timeout(20):
        for begin, end in pairwise(cuts):
            writer.write(data[begin:end])
            await asyncio.sleep(random.choice([0, 0, 0.001, 0.004]))
        for length in [CONVERSATION[request] for request in requests] + [3] * is_last:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
            assert await reader.readexactly(1) == str(length).encode()
        if is_last:
            assert await reader.read() == b""


async def test_every_request_is_answered_once_however_its_bytes_come() -> None:
    async with serve(Echo(), patient(max_connections=100)) as (port, server):
        for seed in range(0, 400, 20):
            await asyncio.gather(*(converse(port, seed + each) for each in range(20)))
        await until_connected(server, 0)
        assert idle_connections(server) == 0


async def test_one_connection_more_than_allowed_takes_the_place_of_the_one_idle_longest() -> None:
    async with (
        serve(Echo(), patient(max_connections=3)) as (port, server),
        connect(port) as first,
        connect(port) as second,
        connect(port) as third,
    ):
        await until_connected(server, 3)
        await ask(*first)  # from now on idle for less time than the second
        async with connect(port) as fourth:
            assert await rest(second[0]) == b""
            for connection in (first, third, fourth):
                await ask(*connection)
        await until_connected(server, 2)
        async with connect(port) as fifth:
            for connection in (first, third, fifth):
                await ask(*connection)


async def test_where_none_is_idle_one_more_is_dropped() -> None:
    async with (
        serve(Echo(), patient(max_connections=2)) as (port, server),
        connect(port) as (answer, slow),
        connect(port) as (rest_of_second, begun),
    ):
        slow.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        begun.write(b"GET /length HT")
        await until_connected(server, 2)
        await until(lambda: not idle_connections(server))
        async with connect(port) as (third, _):
            assert await rest(third) == b""
        assert b"200 OK" in await answer.readuntil(b"\r\n\r\n0")
        begun.write(b"TP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in await rest_of_second.readuntil(b"\r\n\r\n0")


@pytest.mark.parametrize("is_early", [False, True], ids=["after the body", "before the body"])
async def test_an_idle_connection_is_closed_in_the_end(is_early: bool) -> None:
    async with serve(Echo(), patient(keep_alive_s=1)) as (port, _), connect(port) as (reader, writer):
        writer.write(b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n01234")
        if is_early:
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n0")
        writer.write(b"56789")
        if not is_early:
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n0")
        began_at = asyncio.get_running_loop().time()
        assert await rest(reader) == b""
        assert asyncio.get_running_loop().time() - began_at > 0.9


async def test_an_idle_connection_has_longer_than_headers_may_take() -> None:
    async with serve(Echo()) as (port, _), connect(port) as connection:
        await ask(*connection)
        await asyncio.sleep(0.5)
        await ask(*connection)


async def test_a_client_that_does_not_read_is_dropped() -> None:
    async with serve(Echo()) as (port, server), connect(port) as (_, writer):
        writer.write(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        await writer.drain()
        async with asyncio.timeout(10):
            while not server.server_state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while server.server_state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


class SlowTransport(asyncio.Transport):
    """A connection whose client has read a little more each time that anyone looks, up to a point."""

    def __init__(self, left_bytes: list[int]) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.left_bytes = left_bytes
        self.is_aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.left_bytes.pop(0) if len(self.left_bytes) > 1 else self.left_bytes[0]

    def abort(self) -> None:
        self.is_aborted.set()

    def close(self) -> None:
        self.is_aborted.set()


async def test_one_that_reads_slowly_gets_more_time() -> None:
    settings = Settings(write_timeout_s=0.01)
    config = server_config(FastAPI(), settings)
    transport = SlowTransport([100, 90, 20, 10, 10])
    connection = bounded_protocol(settings)(config, ServerState(), {}, asyncio.get_running_loop())
    connection.connection_made(transport)
    connection.pause_writing()
    await asyncio.wait_for(transport.is_aborted.wait(), 10)
    assert transport.left_bytes == [10]
    connection.connection_lost(ConnectionAbortedError())


async def test_a_body_that_nobody_wants_ends_soon() -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        writer.write(b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n0")
        closing = asyncio.ensure_future(rest(reader))
        while not closing.done():
            with suppress(ConnectionError):
                writer.write(b"x")
            await asyncio.sleep(0.05)


UPLOAD = b"POST /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 10000000\r\n\r\n"


@pytest.mark.parametrize(("begun", "status"), [(UPLOAD, 200), (b"?\r\n", 400)], ids=["a body", "no HTTP"])
async def test_a_last_answer_reaches_a_client_that_is_still_sending(begun: bytes, status: int) -> None:
    async with serve(Echo(), patient()) as (port, server), connect(port) as (reader, writer):
        writer.write(begun)
        answer = await reader.readuntil(b"\r\n\r\n")
        for _ in range(50):  # fails once the connection is reset
            writer.write(bytes(100_000))
            await writer.drain()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert len(server.server_state.connections) == 1
        writer.close()
        await until_connected(server, 0)


async def test_one_that_does_not_end_is_closed_in_the_end() -> None:
    async with serve(Echo()) as (port, server), connect(port) as (reader, writer):
        writer.write(UPLOAD)
        assert (await rest(reader)).startswith(b"HTTP/1.1 200 OK")
        await until_connected(server, 0)


async def test_one_that_ends_leaves_the_connection_open() -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        writer.write(b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n01234")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n0")
        writer.write(b"56789POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
        assert (await reader.readuntil(b"\r\n\r\n3")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("proxies", "counted"), [((), b"1"), (("127.0.0.1",), b"7"), (("192.0.2.1",), b"1")])
async def test_only_a_named_proxy_tells_the_callers_address(proxies: tuple[str, ...], counted: bytes) -> None:
    async with serve(Echo(), Settings(trusted_proxies=proxies, port=0)) as (port, _), connect(port) as (reader, writer):
        writer.write(b"GET /who HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 203.0.113.7\r\nconnection: close\r\n\r\n")
        assert (await rest(reader)).endswith(b"\r\n\r\n" + counted)


async def test_no_answer_names_the_server() -> None:
    async with serve(Echo()) as (port, _), connect(port) as (reader, writer):
        writer.write(b"GET /length HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"server:" not in (await reader.readuntil(b"\r\n\r\n")).lower()
