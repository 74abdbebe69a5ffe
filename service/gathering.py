"""Where the interpreter's threads run: all of them on one CPU, as long as that is enough for them.

One thread at a time holds the interpreter, and for each photo it changes hands some forty times. Where the next one
waits on another CPU, that CPU has to be woken, often out of a forward pass; on one CPU up to a fifth more photos get
done (benchmarks/steps.md). Decoding and drawing do without the interpreter, though, and large photos or pictures as
answers want every CPU: then the threads are left to the system, as they are wherever else this was not measured.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from service.device_pipeline import DevicePipeline
from service.image_threads import ImageThreads
from service.pipeline import Service

logger = logging.getLogger("petseg.gathering")

LOOK_S = 0.25
"""From one look at the load to the next."""

_FULL = 0.9
"""Share of one CPU from which on gathered threads may want more than it."""

_IN_USE = 0.75
"""Share of all CPUs: gathered threads that leave more than the rest of them idle hold the forward passes up."""

_FITS = 1.1
"""CPUs that spread threads may take and still find room on one: about a sixth is what handing over costs them."""

_MOST_CPUS = 3
"""On more, what one CPU hands to the forward passes does not keep the others busy (benchmarks/steps.md)."""

_LOOKS_SPREAD = 20
"""After which they may be gathered again: where that was wrong, they were so for two looks in twenty."""


@dataclass(frozen=True)
class Load:
    """What was going on since the last look."""

    threads: float
    """CPUs that the interpreter's threads took, in the mean."""
    process: float
    """CPUs that the whole process took, forward passes among it."""
    is_waiting: bool
    """Whether photos wait for a thread to decode or draw them."""


class Choice:
    """Whether the threads are to be gathered, from look to look."""

    def __init__(self, cpus: int) -> None:
        """cpus: that the process may use."""
        self._cpus = cpus
        self._looks_short = 0
        self._looks_left = 0
        self.is_gathered = False

    def update(self, load: Load) -> None:
        """Take in what was seen."""
        if not self.is_gathered:
            self._looks_left -= 1
            self.is_gathered = self._looks_left < 0 and load.threads <= _FITS
            return
        wants_more = load.is_waiting or load.threads >= _FULL
        is_short = wants_more and load.process < _IN_USE * self._cpus
        self._looks_short = self._looks_short + 1 if is_short else 0  # one alone may be the beginning of a burst
        if self._looks_short == 2:
            self.is_gathered, self._looks_short, self._looks_left = False, 0, _LOOKS_SPREAD


class Gathering:
    """Moves the event loop's thread, those that work on photos and those that start forward passes.

    Only where the passes themselves run on threads of their engine's: one CPU would not be enough for these.
    """

    def __init__(self, service: Service[DevicePipeline], pool: ImageThreads) -> None:
        """To be made before anything is gathered, by whom may use all of the process's CPUs."""
        self._service = service
        self._pool = pool
        self._cpus = frozenset(os.sched_getaffinity(0)) if can_gather() else frozenset()
        self._choice = Choice(len(self._cpus))
        self._seen = 0.0, 0.0, 0.0
        self.home: int | None = None
        """The CPU that the threads are gathered on."""

    async def run(self) -> None:
        """Look until cancelled, on the event loop whose thread is one of those to be gathered."""
        if not 2 <= len(self._cpus) <= _MOST_CPUS or self._service.settings.image_processes:
            return
        event_loop = threading.get_native_id()
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                self.look(event_loop)
        finally:
            self._place(self._find_threads(event_loop), self._cpus)

    def look(self, event_loop: int) -> None:
        """Take in the load and move the threads accordingly; event_loop: its thread's native id."""
        threads = self._find_threads(event_loop)
        self._choice.update(self._measure(threads))
        home: int | None = None
        if self._choice.is_gathered and self._passes_have_threads:
            home = _current_cpu() if self.home is None else self.home
        if home != self.home:
            logger.debug("threads are %s", "spread" if home is None else f"gathered on CPU {home}")
        if home is not None or self.home is not None:
            self._place(threads, self._cpus if home is None else {home})  # also those that have come since
        self.home = home

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Let the calling thread use every CPU inside the block, with the threads that it starts there.

        A thread of Python's begins where the one that started it may be, and so do the engine's.
        """
        if not self._cpus:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cpus)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    @property
    def _passes_have_threads(self) -> bool:
        """Whether no forward pass is computed by a thread that would be moved."""
        return all(each.predictor.engine.has_own_threads for each in self._service.pipelines.values())

    def _find_threads(self, event_loop: int) -> list[int]:
        """Native ids of the threads to be moved."""
        passes = (thread for each in self._service.pipelines.values() for thread in each.batcher.threads)
        own = (thread.native_id for thread in (*self._pool.threads, *passes) if thread.is_alive())
        return [event_loop, *(each for each in own if each is not None)]

    def _measure(self, threads: Sequence[int]) -> Load:
        seen = time.monotonic(), sum(map(_cpu_seconds, threads)), time.process_time()
        passed, of_threads, of_process = (now - before for now, before in zip(seen, self._seen, strict=True))
        self._seen = seen
        return Load(max(0.0, of_threads) / passed, of_process / passed, self._pool.waiting > 0)

    @staticmethod
    def _place(threads: Sequence[int], cpus: Collection[int]) -> None:
        for thread in threads:
            with suppress(OSError):  # it has ended, or an administrator took the CPU away
                os.sched_setaffinity(thread, cpus)


def can_gather() -> bool:
    """Whether this system lets threads be bound to CPUs, and tells how long they ran."""
    return hasattr(os, "sched_setaffinity") and Path("/proc/thread-self/schedstat").exists()


def _cpu_seconds(thread: int) -> float:
    """What a thread of this process has used of the CPUs; 0 once it has ended."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return 0.0


def _current_cpu() -> int:
    """The CPU that the calling thread was last put on: the system had its reasons."""
    fields = Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()
    return int(fields[36])  # the 39th of proc(5), counted from the one behind the name, which is the third
