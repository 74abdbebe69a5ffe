"""Threads asked from an event loop: every caller gets its own outcome, and nothing is run for those who have left."""

import asyncio
import threading
import weakref
from collections.abc import Iterator

import pytest

from service.image_processes import InThread
from service.image_threads import ImageThreads

pytestmark = pytest.mark.anyio


@pytest.fixture
def threads() -> Iterator[ImageThreads]:
    made = ImageThreads(2, InThread())
    made.wait_until_started()
    yield made
    made.close()


async def test_each_caller_gets_what_its_function_gives(threads: ImageThreads) -> None:
    def square(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number * number

    asked = [threads.submit(lambda number=number: square(number)) for number in range(6)]  # type: ignore[misc]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [each for each in found if not isinstance(each, BaseException)] == [0, 1, 4, 16, 25]
    assert repr(found[3]) == "ValueError('three')"


@pytest.mark.parametrize("error", [StopIteration(1), SystemExit(1), KeyboardInterrupt()])
async def test_no_exception_ends_a_thread_or_the_loop(threads: ImageThreads, error: BaseException) -> None:
    def fail() -> None:
        raise error

    for _ in range(4):
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await threads.submit(fail)
    assert await threads.submit(lambda: 1) == 1


async def test_what_is_cancelled_by_its_turn_is_not_run(threads: ImageThreads) -> None:
    may_go_on, ran = threading.Event(), []
    busy = [threads.submit(may_go_on.wait) for _ in range(2)]
    waiting = [threads.submit(lambda number=number: ran.append(number)) for number in range(2)]  # type: ignore[misc]
    waiting[0].cancel()
    may_go_on.set()
    await asyncio.gather(*busy, waiting[1])
    assert ran == [1]


async def test_one_that_is_cancelled_while_it_runs_ends_unheard(threads: ImageThreads) -> None:
    is_running, may_end = threading.Event(), threading.Event()

    def run() -> None:
        is_running.set()
        may_end.wait()
        raise ValueError

    asked = threads.submit(run)
    await asyncio.to_thread(is_running.wait)
    asked.cancel()
    may_end.set()
    assert await threads.submit(lambda: 1) == 1
    assert asked.cancelled()


async def test_an_idle_thread_holds_nothing_of_its_last_photo() -> None:
    class Photo:
        pass

    threads = ImageThreads(1, InThread())
    photo = Photo()
    gone = weakref.ref(photo)
    await threads.submit(lambda kept=photo: None)  # type: ignore[misc]
    del photo
    await threads.submit(lambda: None)
    assert gone() is None
    threads.close()


async def test_closing_waits_for_what_runs_and_cancels_the_rest() -> None:
    threads = ImageThreads(1, InThread())
    is_running, may_end, ran = threading.Event(), threading.Event(), []

    def run() -> None:
        is_running.set()
        may_end.wait()
        ran.append("first")

    first = threads.submit(run)
    await asyncio.to_thread(is_running.wait)
    rest = [threads.submit(lambda: ran.append("more")) for _ in range(3)]
    closing = asyncio.ensure_future(asyncio.to_thread(threads.close))
    await asyncio.wait(rest)
    assert all(each.cancelled() for each in rest)
    assert not closing.done()
    may_end.set()
    await asyncio.gather(closing, first)
    assert ran == ["first"]
    assert not any(thread.is_alive() for thread in threads.threads)


async def test_a_thread_that_does_not_start_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(InThread):
        def start(self) -> None:
            raise SystemExit

    threads = ImageThreads(2, Broken())
    with pytest.raises(RuntimeError, match="did not start"):
        await asyncio.to_thread(threads.wait_until_started)
    assert "SystemExit" in caplog.text
