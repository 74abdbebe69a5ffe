"""An answer's head waits for its body, for no longer than a turn of the event loop; a last answer is not cut off."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from service.answer_transport import AnswerTransport

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Recorder(asyncio.Transport):
    """Notes what is done with it, one entry for each system call."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Any] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.done.append(data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.done.append(b"".join(list_of_data))

    def close(self) -> None:
        self.done.append("close")
        self.is_closed = True

    def write_eof(self) -> None:
        self.done.append("eof")

    def abort(self) -> None:
        self.done.append("abort")
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")

    def get_write_buffer_size(self) -> int:
        return 7

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("::1", 5)}.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.done.append(protocol)


@pytest.fixture
async def wire() -> Recorder:
    return Recorder()


@pytest.fixture
async def transport(wire: Recorder) -> AnswerTransport:
    return AnswerTransport(wire, asyncio.get_running_loop())


async def test_a_head_and_its_body_are_one_write(wire: Recorder, transport: AnswerTransport) -> None:
    transport.write(HEAD)
    transport.write(memoryview(b"mask"))
    assert wire.done == [HEAD + b"mask"]
    await asyncio.sleep(0)
    assert wire.done == [HEAD + b"mask"]


async def test_a_head_alone_is_sent_at_the_next_turn(wire: Recorder, transport: AnswerTransport) -> None:
    transport.write(HEAD)
    assert wire.done == []
    await asyncio.sleep(0)
    assert wire.done == [HEAD]
    transport.write(b"later")
    assert wire.done == [HEAD, b"later"]


async def test_answers_that_follow_each_other_stay_in_order(wire: Recorder, transport: AnswerTransport) -> None:
    transport.write(HEAD)
    transport.write(HEAD)
    transport.write(b"body")
    transport.write(HEAD)
    await asyncio.sleep(0)
    assert b"".join(wire.done) == HEAD + HEAD + b"body" + HEAD


@pytest.mark.parametrize("data", [b"", b"part", bytearray(HEAD), b"HTTP/1.1 431 Too Large\r\n\r\n{}", b"x\r\n\r\n"])
async def test_what_is_no_head_passes_at_once(wire: Recorder, transport: AnswerTransport, data: bytes) -> None:
    transport.write(data)
    assert wire.done == [data]


async def test_closing_sends_the_head_first(wire: Recorder, transport: AnswerTransport) -> None:
    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert wire.done == [HEAD, "close"]
    assert transport.is_closing()


async def test_closing_waits_while_the_client_is_sending(wire: Recorder) -> None:
    answers = iter([True, False])
    transport = AnswerTransport(wire, asyncio.get_running_loop(), lambda: next(answers))
    transport.write(HEAD)
    transport.close()
    assert wire.done == [HEAD, "eof"]
    assert transport.is_closing() and not wire.is_closing()
    transport.close()
    assert wire.done == [HEAD, "eof", "close"]


async def test_aborting_drops_the_head(wire: Recorder, transport: AnswerTransport) -> None:
    transport.write(HEAD)
    transport.abort()
    await asyncio.sleep(0)
    assert wire.done == ["abort"]


async def test_nothing_is_written_to_a_connection_that_is_lost(wire: Recorder, transport: AnswerTransport) -> None:
    transport.write(HEAD)
    wire.is_closed = True
    await asyncio.sleep(0)
    assert wire.done == []


async def test_all_else_is_the_connection_s_own(wire: Recorder, transport: AnswerTransport) -> None:
    assert transport.get_write_buffer_size() == 7
    transport.write(HEAD)
    assert transport.get_write_buffer_size() == 7 + len(HEAD)
    assert transport.get_extra_info("peername") == ("::1", 5)
    assert transport.get_extra_info("sslcontext", "none") == "none"
    assert not transport.is_closing()
    await asyncio.sleep(0)
    protocol = asyncio.Protocol()
    transport.pause_reading()
    transport.resume_reading()
    transport.set_protocol(protocol)
    assert wire.done == [HEAD, "pause", "resume", protocol]
