"""Dynamic batching of any callable: asyncio in front, worker threads behind, one queue between.

Knows nothing of networks or HTTP. Greedy: whatever is queued when a worker comes free goes next. The pipeline puts
one in front of each model's predictor; those that share a device take turns.
"""

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

logger = logging.getLogger("petseg.batcher")

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """The queue holds all it may; `retry_after_s` is when half of it will be done, by the pace of late."""

    def __init__(self, queue_size: int, retry_after_s: int) -> None:
        super().__init__(f"got one request more than the {queue_size} that the queue holds")
        self.retry_after_s = retry_after_s


class QueueTimeoutError(Exception):
    """No worker has taken the item for as long as it may wait."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("the item waited in the queue for as long as it may")
        self.retry_after_s = retry_after_s


class DeadlineExceededError(TimeoutError):
    """The item's deadline passed before its result was there."""


class BatcherClosedError(Exception):
    """The batcher takes no more items."""


class Stop(Protocol):
    """Ends one batch's run early (`models.stopping`)."""

    def ask(self) -> None:
        """Nobody waits for it any more. Called on the event loop: may not wait."""

    def heeded(self) -> AbstractContextManager[None]:
        """Around the run, on its thread."""


class Unstoppable:
    """A run that goes to its end whoever waits."""

    def ask(self) -> None:
        """Goes on."""

    def heeded(self) -> AbstractContextManager[None]:
        """Nothing to heed."""
        return nullcontext()


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """One item's result and how it came about."""

    result: Result
    queue_s: float
    """Seconds from `submit` to the start of the item's batch."""
    run_s: float
    """Seconds that its batch ran."""
    batch_size: int


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Batched[Result]]"
    counts: bool
    queued_at: float = field(default_factory=time.monotonic)
    is_gone: bool = False
    """Set on the event loop once the caller waits no more; workers skip such entries."""
    batch: "_Batch[Item, Result] | None" = None
    """Set on a worker's thread once it is taken."""

    def leave(self) -> None:
        """Wait no more; whoever leaves a batch last ends it."""
        self.is_gone = True
        batch, self.batch = self.batch, None  # they hold each other
        if batch is not None and all(entry.is_gone for entry in batch.entries):
            batch.stop.ask()


@dataclass(eq=False)
class _Batch(Generic[Item, Result]):
    entries: list[_Entry[Item, Result]]
    stop: Stop


_Outcome = tuple[_Entry[Item, Result], Batched[Result] | BaseException]


class Batcher(Generic[Item, Result]):
    """Runs `run(items) -> results` for many waiting callers at once, up to `max_batch_size` items a call.

    When a batch fails it is halved and run again, down to single items: the exception reaches only the callers whose
    items cause it, and a batch too large for the device's memory heals itself. Callers that are cancelled or past
    their deadline are dropped before their item runs, and where none of a batch's is left its run is told to stop.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch_size: int,
        queue_size: int,
        max_wait_s: float = 0.0,
        beside_wait_s: float = 0.0,
        streams: int = 1,
        name: str = "batcher",
        take_turn: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
        new_stop: Callable[[], Stop] = Unstoppable,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """max_wait_s: for a batch to become full, always. beside_wait_s: likewise, while another batch runs.

        take_turn: entered with `name` around every batch; what is queued by then goes into it. new_stop: called for
        every batch. begin: called on each thread before its first batch.
        """
        self._run = run
        self._name = name
        self._take_turn = take_turn
        self._new_stop = new_stop
        self._begin = begin
        self.max_batch_size = max_batch_size
        self.queue_size = queue_size
        self.max_wait_s = max_wait_s
        self.beside_wait_s = beside_wait_s
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._is_enough = threading.Condition(lock)
        """Told when the queue fills a batch, or one runs no more: who waits for more is not woken by every item."""
        self._running = 0
        self._queue: OrderedDict[int, _Entry[Item, Result]] = OrderedDict()
        self._is_closed = False
        self._seconds_per_item = 0.0
        self.threads = [
            threading.Thread(target=self._work, name=f"{name}-{stream}", daemon=True) for stream in range(streams)
        ]
        for thread in self.threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    async def submit(
        self, item: Item, deadline: float = math.inf, max_queue_s: float = math.inf, *, counts: bool = True
    ) -> Batched[Result]:
        """The result of `item`, run in some batch.

        deadline: on the clock of `time.monotonic()`. counts: towards `queue_size`; one that does not is never refused
        for it, and the caller bounds how many such there are. Raises QueueFullError at once, QueueTimeoutError where
        the item has not begun within `max_queue_s`, DeadlineExceededError when the deadline passes, BatcherClosedError
        after `close`, and whatever `run` raises for this item.
        """
        loop = asyncio.get_running_loop()
        entry: _Entry[Item, Result] = _Entry(item, deadline, loop, loop.create_future(), counts)
        with self._changed:
            if self._is_closed:
                raise BatcherClosedError("the batcher takes no more items")
            if counts and self._is_full():
                raise QueueFullError(self.queue_size, self.retry_after_s())
            self._queue[id(entry)] = entry
            self._changed.notify()
            if len(self._queue) >= self.max_batch_size:
                self._is_enough.notify_all()
        clocks = []
        if max_queue_s < math.inf:
            clocks.append(loop.call_later(max_queue_s, self._give_up, entry))
        if deadline < math.inf:
            clocks.append(loop.call_later(max(0.0, deadline - time.monotonic()), self._expire, entry))
        try:
            return await entry.future
        finally:
            entry.leave()
            for clock in clocks:
                clock.cancel()
            with self._changed:
                self._queue.pop(id(entry), None)
            if entry.future.done() and not entry.future.cancelled():
                entry.future.exception()  # counts as retrieved, also when the caller was cancelled just now

    def _is_full(self) -> bool:
        if len(self._queue) < self.queue_size:  # as a rule: nothing to be counted
            return False
        return sum(entry.counts for entry in self._queue.values()) >= self.queue_size

    def _give_up(self, entry: _Entry[Item, Result]) -> None:
        """Fail an entry that still waits for a worker."""
        with self._changed:
            is_waiting = self._queue.pop(id(entry), None) is not None
        if is_waiting and not entry.future.done():
            entry.future.set_exception(QueueTimeoutError(self.retry_after_s()))

    @staticmethod
    def _expire(entry: _Entry[Item, Result]) -> None:
        """Fail an entry whose deadline passes."""
        if not entry.future.done():
            entry.future.set_exception(DeadlineExceededError("the deadline passed before the result was there"))

    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, until about half of the queue is done."""
        return max(1, math.ceil(0.5 * len(self._queue) * self._seconds_per_item / len(self.threads)))

    def end(self) -> None:
        """Take no more items; the threads end with the last queued one. May be called from any thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._is_enough.notify_all()

    async def close(self, drain_s: float = math.inf) -> None:
        """Take no more items, finish the queued ones within `drain_s`, fail the rest with BatcherClosedError."""
        self.end()
        await asyncio.to_thread(self._join, drain_s)
        with self._changed:
            rest = list(self._queue.values())
            self._queue.clear()
        self._deliver([(entry, BatcherClosedError("the batcher was closed before the item ran")) for entry in rest])

    def _join(self, drain_s: float) -> None:
        ends_at = time.monotonic() + drain_s
        for thread in self.threads:
            thread.join(None if drain_s == math.inf else max(0.0, ends_at - time.monotonic()))

    def _work(self) -> None:
        """Run batches until closed; what breaks on the way fails its own batch, and the thread goes on."""
        self._begin()
        while True:
            batch: _Batch[Item, Result] | None = None
            try:
                if not self._wait_for_items():
                    return
                with self._take_turn(self._name):
                    batch = self._next_batch()
                    if batch.entries:
                        with batch.stop.heeded(), self._counted():
                            self._run_entries(batch.entries)
            except BaseException as error:
                logger.exception("a thread of %s broke down and goes on with the next batch", self._name)
                broken = RuntimeError(f"the batch's thread raised {type(error).__name__}")
                self._deliver([(entry, broken) for entry in (batch.entries if batch is not None else [])])

    def _wait_for_items(self) -> bool:
        """Block until something is queued; False once closed and drained."""
        with self._changed:
            while not self._queue and not self._is_closed:
                self._changed.wait()
            self._wait_for_more()
            return bool(self._queue) or not self._is_closed

    def _next_batch(self) -> _Batch[Item, Result]:
        """Take what is queued, oldest first, without those whose callers have left; empty where another was quicker."""
        with self._changed:
            taken = [self._queue.popitem(last=False)[1] for _ in range(min(len(self._queue), self.max_batch_size))]
        batch = _Batch(taken, self._new_stop())
        for entry in taken:  # first: who leaves from here on either is seen to have left, or sees the batch
            entry.batch = batch
        now = time.monotonic()
        batch.entries = [entry for entry in taken if not entry.is_gone and entry.deadline > now]
        return batch

    def _wait_for_more(self) -> None:
        began_at = time.monotonic()
        while 0 < len(self._queue) < self.max_batch_size and not self._is_closed:
            patience_s = max(self.max_wait_s, self.beside_wait_s if self._running else 0.0)
            left_s = began_at + patience_s - time.monotonic()
            if left_s <= 0:
                return
            self._is_enough.wait(left_s)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Around a batch's run."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._is_enough.notify_all()

    def _run_entries(self, entries: list[_Entry[Item, Result]]) -> None:
        started_at = time.monotonic()
        outcome = self._try_run([entry.item for entry in entries])
        run_s = time.monotonic() - started_at
        if isinstance(outcome, BaseException):
            if len(entries) == 1:
                self._deliver([(entries[0], outcome)])
                return
            middle = len(entries) // 2
            for half in (entries[:middle], entries[middle:]):
                if waiting := [entry for entry in half if not entry.is_gone]:
                    self._run_entries(waiting)
            return
        self._seconds_per_item += 0.2 * (run_s / len(entries) - self._seconds_per_item)
        self._deliver(
            [
                (entry, Batched(result, started_at - entry.queued_at, run_s, len(entries)))
                for entry, result in zip(entries, outcome, strict=True)
            ]
        )

    def _try_run(self, items: list[Item]) -> Sequence[Result] | BaseException:
        try:
            results = self._run(items)
            if len(results) != len(items):
                raise RuntimeError(f"got {len(results)} results for {len(items)} items, wanted one each")
        except Exception as error:
            # A future refuses StopIteration.
            return RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
        except BaseException as error:  # SystemExit in a worker must not end the loop, neither here nor in asyncio
            return RuntimeError(f"the batch raised {type(error).__name__}")
        return results

    @staticmethod
    def _deliver(outcomes: "Sequence[_Outcome[Item, Result]]") -> None:
        """Hand a batch's outcomes to its callers: their event loop is woken once, not once for each."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome[Item, Result]]] = {}
        for each in outcomes:
            by_loop.setdefault(each[0].loop, []).append(each)

        def settle(own: "list[_Outcome[Item, Result]]") -> None:
            for entry, outcome in own:
                if entry.future.done():
                    continue
                if isinstance(outcome, BaseException):
                    entry.future.set_exception(outcome)
                else:
                    entry.future.set_result(outcome)

        for loop, own in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, own)
