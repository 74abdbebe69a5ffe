"""The process that runs the networks, behind fronts: starts them, replaces those that end, and answers what they ask.

Beside a GPU one interpreter is what limits the service: event loop and threads take turns at its lock while the device
waits. Fronts take HTTP and photos out of it; what stays costs some tenths of a millisecond a photo, and batches are
made of the photos of all fronts. Callers meet the fronts alone, which all accept from one listening socket: whoever is
idle takes the next connection, and where a front ends, others take what it had not accepted yet.
"""

import asyncio
import itertools
import logging
import math
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterable, MutableSequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.forkserver import ensure_running
from typing import Any

from fastapi import FastAPI
from prometheus_client.metrics_core import Metric

from service.admission import Limiter, OwnLimiter
from service.connection_share import ABSENT
from service.device_pipeline import DevicePipeline
from service.figures import Series, add, with_others
from service.front_session import FrontSession
from service.image_processes import can_have_processes
from service.metrics import Metrics
from service.model_facts import ModelFacts
from service.operation import create_bare_operation_app
from service.photo_slots import PhotoSlots, can_share_memory
from service.pipeline import Service
from service.settings import Settings

logger = logging.getLogger("petseg.hub")

_START_S = 60.0
"""For all fronts to listen, once the models are warm."""
_BACKLOG = 2048
_RESTART_S = 1.0
"""At least between two starts of one front."""

THREADS_OF_A_FRONT = 2
"""For photos: a large one does not hold up all others."""

FRONT_LIMITS = ("max_requests", "max_client_requests", "max_connections", "queue_size", "max_held_bytes")


class FrontsFailedError(RuntimeError):
    """The fronts did not come to listen."""


@dataclass(frozen=True)
class FrontSpec:
    """What a front is started with."""

    number: int
    settings: Settings
    has_request_lines: bool
    link: socket.socket
    listener: socket.socket
    slots: PhotoSlots
    connections: MutableSequence[int]
    """How many each front holds, in memory that all share."""


def can_have_fronts() -> bool:
    """Whether this system can fork processes that share sockets and memory."""
    return can_have_processes() and can_share_memory()


def hub_settings(settings: Settings) -> Settings:
    """`settings` of the process that runs the networks, which works on no photos."""
    return settings.model_copy(update={"image_processes": 0, "image_threads": 1})


def front_settings(settings: Settings, streams: int) -> Settings:
    """`settings` of one of the fronts: of each limit twice its share, since they are never equally busy.

    streams: the hub's.
    """
    fronts = settings.fronts or 1
    shares = {}
    for name in FRONT_LIMITS:
        limit = getattr(settings, name)
        shares[name] = min(limit, math.ceil(2 * limit / fronts))
    largest = max(settings.max_body_bytes, settings.max_batch_body_bytes)
    shares["max_held_bytes"] = min(settings.max_held_bytes, max(shares["max_held_bytes"], largest))
    processes = settings.image_processes or 0
    threads = processes or settings.image_threads or THREADS_OF_A_FRONT
    own = {"streams": streams, "image_processes": processes, "image_threads": threads}
    return settings.model_copy(update=shares | own)


def slot_bytes(models: Iterable[ModelFacts]) -> int:
    """Memory for a photo and its scores, for any of `models`."""
    return max((each.scores_bytes for each in models), default=0)


def counts_of(series: Series) -> Series:
    """What goes on counting when the process is gone: all but the requests that it was answering."""
    return {key: value for key, value in series.items() if key[0] != "petseg_requests_in_flight"}


class Hub:
    """The fronts of one server."""

    def __init__(
        self,
        run_front: Callable[[FrontSpec], None],
        settings: Settings,
        listener: socket.socket,
        has_request_lines: bool,
    ) -> None:
        """run_front: what a front's process does. listener: bound, listened on once the models are warm."""
        self._run_front = run_front
        self._settings = settings
        self._listener = listener
        self._has_request_lines = has_request_lines
        self._count = settings.fronts or 0
        self._context = multiprocessing.get_context("forkserver")
        self._connections: MutableSequence[int] = self._context.RawArray("i", [ABSENT] * self._count)
        self._context.set_forkserver_preload([run_front.__module__])
        ensure_running()  # its imports take as long as the models
        self._fronts: set[FrontSession] = set()
        self._past: Series = {}
        """Counted by fronts that are gone."""
        self._keys = itertools.count()
        self._models: dict[int, DevicePipeline] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_open = False
        self._has_opened = False
        """Whether every front has served: one is enough from then on, but a first one would get all connections."""
        self._is_closing = False
        self._changed = asyncio.Event()

    async def start(self, app: FastAPI, service: Service[DevicePipeline], models: Iterable[ModelFacts]) -> None:
        """Start the processes: they load beside the models' warm-up."""
        self._service = service
        self._metrics: Metrics = app.state.metrics
        self._operation = create_bare_operation_app(app)
        self._limiter: Limiter = OwnLimiter()
        self._slot_bytes = slot_bytes(models)
        app.state.figures = self
        service.is_reachable = False
        service.on_change = self._publish
        loop = asyncio.get_running_loop()
        service.on_drain = lambda: loop.call_soon_threadsafe(self._drain)  # which a signal's handler may have begun
        self._tasks = [asyncio.create_task(self._keep(number)) for number in range(self._count)]
        for task in self._tasks:
            task.add_done_callback(self._note_end)

    async def open(self) -> None:
        """Listen, and return once every front serves. Raises FrontsFailedError."""
        self._listener.listen(_BACKLOG)
        self._is_open = True
        self._publish()
        try:
            async with asyncio.timeout(_START_S):
                while self._serving < self._count:
                    await self._changed.wait()
                    self._changed.clear()
                    for task in self._tasks:
                        if task.done():
                            task.result()
        except TimeoutError:
            raise FrontsFailedError(f"got {self._serving} fronts within {_START_S:g} s, wanted {self._count}") from None
        self._has_opened = True
        self._note_change()

    async def close(self) -> None:
        """Let the fronts finish what they accepted, within what is left of the drain; then end them."""
        self._is_closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._service.drain_left_s):
                for front in list(self._fronts):
                    await front.is_gone.wait()
        for task in self._tasks:
            task.cancel()
        fronts = list(self._fronts)
        for front in fronts:
            front.link.close()
        await asyncio.gather(*(asyncio.to_thread(front.end) for front in fronts))

    async def refresh(self) -> None:
        """Ask every front for its figures."""
        await asyncio.gather(*(front.ask_figures() for front in self._fronts))

    def collect(self) -> Iterable[Metric]:
        """The figures of all processes, added up."""
        others = dict(self._past)
        for front in list(self._fronts):
            add(others, front.figures.series)
        return with_others(self._metrics.registry.collect(), others)

    @property
    def _serving(self) -> int:
        return sum(front.is_serving for front in self._fronts)

    def _publish(self) -> None:
        """Tell every front what is served."""
        if not self._is_open:
            return
        served = self._service.pipelines.values()
        self._models = {key: each for key, each in self._models.items() if each in served}
        known = {id(each) for each in self._models.values()}
        self._models |= {next(self._keys): each for each in served if id(each) not in known}
        for front in self._fronts:
            front.publish(self._models)

    async def _keep(self, number: int) -> None:
        """Have a front run until the end."""
        while not self._is_closing:
            started_at = time.monotonic()
            try:
                front = await self._start_one(number)
            except OSError as error:
                logger.error("front %d cannot be started, tried again in %g s: %s", number, _RESTART_S, error)
                await asyncio.sleep(_RESTART_S)
                continue
            self._fronts.add(front)
            if self._is_open:
                front.publish(self._models)
            if self._service.is_draining:
                front.link.notify("drain")
            await front.is_gone.wait()
            self._fronts.discard(front)
            self._connections[number] = ABSENT
            add(self._past, counts_of(front.figures.series))
            self._note_change()
            await asyncio.to_thread(front.end)
            if self._is_closing or self._service.is_draining:
                return
            logger.error("front %d ended with exit code %s; another one starts", number, front.exit_code)
            await asyncio.sleep(max(0.0, started_at + _RESTART_S - time.monotonic()))

    async def _start_one(self, number: int) -> FrontSession:
        own_settings = front_settings(self._settings, self._service.settings.streams)
        slots = PhotoSlots.create(own_settings.queue_size, self._slot_bytes)
        own, other = socket.socketpair()

        def start() -> Any:
            spec = FrontSpec(
                number, own_settings, self._has_request_lines, other, self._listener, slots, self._connections
            )
            process = self._context.Process(target=self._run_front, args=(spec,), name=f"front-{number}")
            process.start()
            return process

        with other:
            process = await asyncio.to_thread(start)
        front = FrontSession(process, slots, self._metrics, self._limiter, self._operation, self._note_change)
        await front.connect(own)
        return front

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("a front cannot be kept", exc_info=error)
        self._changed.set()

    def _note_change(self) -> None:
        """A front has begun to serve, or is gone, or all have opened."""
        self._metrics.fronts.set(self._serving)
        self._service.is_reachable = self._has_opened and self._serving > 0
        self._changed.set()

    def _drain(self) -> None:
        """Tell the fronts that the end has begun."""
        for front in self._fronts:
            front.link.notify("drain")
