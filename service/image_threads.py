"""The threads that work on photos, asked from the event loop.

asyncio's way to a thread wraps each call in two futures, one of which locks; this has one and a queue, at half of the
event loop's time, which is short where a GPU takes a thousand photos a second.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from service.image_processes import ImageWork
from service.priorities import yield_to_event_loop

logger = logging.getLogger("petseg.images")

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Task:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"

    def settle(self, result: Any, error: Exception | None) -> None:
        """Hand the outcome to whoever still waits; called on the event loop."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)

    def tell(self, result: Any, error: Exception | None) -> None:
        """`settle`, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self.settle, result, error)

    def cancel(self) -> None:
        """Tell whoever waits that it will not be run, from any thread."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.future.cancel)


class ImageThreads:
    """`count` threads that run functions in the order in which they were submitted."""

    def __init__(self, count: int, work: ImageWork) -> None:
        """work: started on each thread before its first function."""
        self._work = work
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._started: SimpleQueue[bool] = SimpleQueue()
        self.threads = [
            threading.Thread(target=self._serve, name=f"images-{number}", daemon=True) for number in range(count)
        ]
        for thread in self.threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Functions whose turn has not come."""
        return self._tasks.qsize()

    def wait_until_started(self) -> None:
        """Block until the work is started on every thread; to be called once. Raises RuntimeError where it fails."""
        if not all(self._started.get() for _ in self.threads):
            raise RuntimeError("a thread that works on photos did not start; the log has the trace")

    def submit(self, function: Callable[[], Result]) -> "asyncio.Future[Result]":
        """A future of what `function` gives on some thread; one that is cancelled by its turn is not run."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._tasks.put(_Task(function, loop, future))
        return future

    def close(self) -> None:
        """Cancel what has not begun, and wait for what has; called on another thread than the event loop's."""
        with suppress(Empty):
            while (task := self._tasks.get_nowait()) is not None:
                task.cancel()
        for _ in self.threads:
            self._tasks.put(None)
        for thread in self.threads:
            thread.join()

    def _serve(self) -> None:
        yield_to_event_loop()
        try:
            self._work.start()
        except BaseException:
            logger.exception("a thread that works on photos did not start")
            self._started.put(False)
            return
        self._started.put(True)
        while (task := self._tasks.get()) is not None:
            self._run(task)
            del task  # a photo must not stay until the next one comes

    @staticmethod
    def _run(task: _Task) -> None:
        if task.future.cancelled():
            return
        result: Any = None
        error: Exception | None = None
        try:
            result = task.function()
        except StopIteration as raised:  # which no future takes
            error = RuntimeError(repr(raised))
        except Exception as raised:
            error = raised
        except BaseException as raised:  # which would end the event loop
            error = RuntimeError(f"the work on a photo raised {type(raised).__name__}")
        task.tell(result, error)
