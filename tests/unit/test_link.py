"""Messages between two processes: calls are answered once, whoever waits, and nothing waits for one that is gone."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.errors import NotReady, Problem
from service.link import Link, LinkClosedError

pytestmark = pytest.mark.anyio


class Ends:
    """Two ends of one link in one process, and how often each was told that the other is gone."""

    def __init__(self, handlers: dict[str, Callable[..., Any]]) -> None:
        self.closed = [0, 0]
        self.near = Link({}, lambda: self._note(0))
        self.far = Link(handlers, lambda: self._note(1), expected=(Problem,))

    def _note(self, end: int) -> None:
        self.closed[end] += 1


@asynccontextmanager
async def linked(**handlers: Callable[..., Any]) -> AsyncIterator[Ends]:
    ends = Ends(handlers)
    near, far = socket.socketpair()
    await asyncio.gather(ends.near.connect(near), ends.far.connect(far))
    try:
        yield ends
    finally:
        ends.near.close()
        ends.far.close()
        await asyncio.sleep(0)


async def double(value: Any) -> Any:
    await asyncio.sleep(0)
    return 2 * value


async def test_calls_are_answered_by_plain_and_asynchronous_handlers_whatever_their_size() -> None:
    large = b"photo" * 1_000_000
    async with linked(double=double, length=len) as ends:
        answers = await asyncio.gather(
            *(ends.near.call("double", number) for number in range(100)), ends.near.call("length", large)
        )
        assert answers == [*range(0, 200, 2), len(large)]
        assert await ends.near.call("double", large) == 2 * large


async def test_notices_arrive_in_order_and_before_later_calls() -> None:
    seen: list[int] = []
    async with linked(note=seen.append, count=lambda: len(seen)) as ends:
        for number in range(50):
            ends.near.notify("note", number)
        assert await ends.near.call("count") == 50
        assert seen == list(range(50))


async def test_problems_come_back_as_they_are_and_defects_without_their_class(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise NotReady("try again", headers={"Retry-After": "1"})

    async def fail() -> None:
        raise KeyError("defect")

    async with linked(refuse=refuse, fail=fail) as ends:
        with pytest.raises(NotReady, match="try again") as caught:
            await ends.near.call("refuse")
        assert caught.value.headers == {"Retry-After": "1"}
        assert caplog.records == []
        with pytest.raises(RuntimeError, match="KeyError: 'defect'"):
            await ends.near.call("fail")
        assert [record.message for record in caplog.records] == ["fail failed"]


async def test_who_leaves_has_the_handler_cancelled_and_what_was_lent_goes_back_only_then() -> None:
    entered, left = asyncio.Event(), asyncio.Event()
    settled: list[Any] = []

    async def wait() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            assert settled == []
            left.set()

    async with linked(wait=wait, double=double) as ends:
        call = asyncio.create_task(ends.near.call("wait", settle=settled.append))
        await entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert settled == []
        await left.wait()
        await ends.near.call("double", 1)  # behind the answer to what was cancelled
        assert settled == [None]


async def test_what_settle_gives_is_the_answer() -> None:
    async with linked(double=double) as ends:
        assert await ends.near.call("double", 4, settle=lambda answer: answer + 1) == 9


async def test_who_left_before_the_handler_began_has_his_call_settled_too() -> None:
    settled: list[Any] = []
    async with linked(double=double) as ends:
        call = asyncio.create_task(ends.near.call("double", 1, settle=settled.append))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        await ends.near.call("double", 1)
        assert len(settled) == 1


async def test_nothing_waits_for_a_process_that_is_gone() -> None:
    settled: list[Any] = []
    entered = asyncio.Event()
    was_cancelled = asyncio.Event()

    async def wait() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    async with linked(wait=wait) as ends:
        call = asyncio.create_task(ends.near.call("wait", settle=settled.append))
        await entered.wait()
        ends.far.close()
        with pytest.raises(LinkClosedError):
            await call
        await was_cancelled.wait()
        assert settled == [None]
        with pytest.raises(LinkClosedError):
            await ends.near.call("wait", settle=settled.append)
        assert settled == [None, None]
        ends.near.notify("wait")  # to nobody
        assert ends.closed == [1, 1]


async def test_other_threads_ask_and_wait_no_longer_than_they_want() -> None:
    was_cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    async with linked(double=double, wait=wait) as ends:
        assert await asyncio.to_thread(ends.near.ask, "double", 21, patience_s=30) == 42
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(ends.near.ask, "wait", patience_s=0.01)
        await was_cancelled.wait()
