"""Work that nobody waits for any more, ended early: asked for on one thread, done on another.

The service's batcher asks, what runs a network heeds it, and neither has to know the other.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StoppedError(Exception):
    """The work was ended because nobody waits for its result."""


class Stop:
    """Ends what one thread does inside `heeded` once another calls `ask`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_asked = False
        self._end: Callable[[], None] | None = None

    def ask(self) -> None:
        """End what is under way, and whatever begins later. Does not wait for it."""
        with self._lock:  # also while ending: what runs next on the same device must not be hit
            self._is_asked = True
            if self._end is not None:
                self._end()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Let `stoppable` and `check_stop` heed it inside the block, on this thread."""
        with _heeding(self):
            yield

    @contextmanager
    def _running(self, end: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            if self._is_asked:
                raise StoppedError("nobody waits for this any more")
            self._end = end
        try:
            yield
        except Exception as error:
            if self._is_asked:
                raise StoppedError("ended because nobody waits for it any more") from error
            raise
        finally:
            with self._lock:
                self._end = None


_of_thread = threading.local()


@contextmanager
def _heeding(stop: Stop | None) -> Iterator[None]:
    before = getattr(_of_thread, "stop", None)
    _of_thread.stop = stop
    try:
        yield
    finally:
        _of_thread.stop = before


@contextmanager
def unstoppable() -> Iterator[None]:
    """A block that is worth its end whoever waits."""
    with _heeding(None):
        yield


@contextmanager
def stoppable(end: Callable[[], None]) -> Iterator[None]:
    """A block that `end`, called on another thread, makes raise.

    Raises StoppedError in place of what it raises then, and before the block where the stop was asked for already.
    """
    stop: Stop | None = getattr(_of_thread, "stop", None)
    if stop is None:
        yield
        return
    with stop._running(end):
        yield


def check_stop() -> None:
    """Raise StoppedError where the stop was asked for: between two pieces of work that cannot be ended."""
    with stoppable(lambda: None):
        pass
