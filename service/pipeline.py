"""One request's way through one model: prepare (thread pool), batcher (device thread), draw (thread pool).

Bounds it in number and time, notes where the time goes, and turns what the batcher refuses into problems. Called by
the routes.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

from models.prompts import Prompt
from models.stopping import Stop
from service.batch_size import find_batch_size
from service.batcher import (
    Batched,
    Batcher,
    BatcherClosedError,
    DeadlineExceededError,
    QueueFullError,
    QueueTimeoutError,
)
from service.errors import DeadlineExceeded, ImageGone, InternalError, NotReady, Overloaded, Problem
from service.forward_passes import ForwardPasses, OutOfDeviceMemoryError, is_out_of_memory
from service.image_threads import ImageThreads
from service.metrics import CANCELLED, OK, Metrics, ModelMetrics
from service.predictor import Prediction, Predictor, Prepared
from service.settings import Settings
from service.stages import DECODE, DRAW, INFERENCE, QUEUE, Stage, sum_seconds
from service.turns import Turns

Drawn = TypeVar("Drawn")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Photo:
    """What to segment: an upload, or the image id of an earlier one, and by which prompt."""

    upload: bytes | None
    image_id: str | None
    """sha256 of an earlier upload, hexadecimal; read where `upload` is None."""
    prompt: Prompt


@dataclass(frozen=True)
class Segmented(Generic[Drawn]):
    """One finished request."""

    prepared: Prepared
    prediction: Prediction
    drawn: Drawn
    timing_ms: dict[str, float]


BATCH_LIMITS = {"cpu": 8, "cuda": 128}
"""The largest batch size that is tried, by type of device: past these nothing is won, and callers wait longer."""

BATCH_SIZE_BUDGETS_S = {"cpu": 1.0, "cuda": 10.0}
"""Seconds for trying them; a GPU's include recording each size, which is needed all the same."""


REFUSING_S = 0.5
"""Seconds at least in which new work is refused before the port closes: a balancer that has not looked yet is told to
go elsewhere, where a closed port or a connection that breaks would leave it guessing."""


class Pipeline:
    """One model behind its queue."""

    def __init__(
        self, predictor: Predictor, pool: ImageThreads, turns: Turns, settings: Settings, metrics: Metrics
    ) -> None:
        """turns: shared by all models of the device."""
        self.predictor = predictor
        self.name = predictor.checkpoint.name
        self._metrics = ModelMetrics(metrics, self.name, predictor.keeps_images)
        self.passes = ForwardPasses(predictor.predict, self._limit_batches, self._metrics)
        self.batcher: Batcher[Prepared, Prediction] = Batcher(
            self.passes,
            max_batch_size=max(1, settings.max_batch_size),
            queue_size=settings.queue_size,
            max_wait_s=settings.max_wait_s,
            streams=settings.streams,
            name=self.name,
            take_turn=turns.take,
            new_stop=Stop,
        )
        self._pool = pool
        self.settings = settings
        self.in_flight = 0
        self.batch_room = asyncio.Semaphore(max(1, settings.queue_size // 2))
        """Entered around each photo of a request with many: they wait for each other rather than fill the queue, and
        half of it is left to requests with one."""
        self.users = 0
        self._is_unused = asyncio.Event()
        self._is_unused.set()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the pipeline for one request, from before its body is read until its answer is sent."""
        self.users += 1
        self._is_unused.clear()
        try:
            yield
        finally:
            self.users -= 1
            if self.users == 0:
                self._is_unused.set()

    async def until_unused(self) -> None:
        """Wait until no request holds it."""
        await self._is_unused.wait()

    @property
    def is_stalled(self) -> bool:
        """Whether a forward pass takes longer than the settings allow."""
        return 0 < self.settings.stall_s < self.passes.running_s

    def warm_up(self) -> None:
        """Run what is set up on first use, and take the batch size that pays where the settings leave it open.

        Takes a second or so, on any thread, before the first request. For a stand-in nothing is measured.
        """
        engine = self.predictor.engine
        known = self.settings.max_batch_size or engine.best_batch_size
        size = known or 1
        if not known and not engine.is_stand_in:
            kind = engine.device.type
            size = find_batch_size(
                engine.example_run,
                BATCH_LIMITS[kind],
                is_too_much=is_out_of_memory,
                budget_s=BATCH_SIZE_BUDGETS_S[kind],
            )
            engine.release_memory()  # of the sizes that are not taken
        for batch_size in sorted({1, size}):
            engine.warm_up(batch_size)
        self.passes.set_max_batch_size(size)

    async def segment(
        self,
        photo: Photo,
        draw: Callable[[Prepared, Prediction], Drawn],
        stages: list[Stage] | None = None,
    ) -> Segmented[Drawn]:
        """Segment `photo` and `draw` its answer, within the deadline.

        stages: is told of each stage as it ends, also where the photo gets no answer. Raises the Problem that fits:
        all that can be refused is refused before the queue.
        """
        own: list[Stage] = []
        outcome = InternalError.slug
        try:
            segmented = await self._segment(photo, draw, own)
            outcome = OK
        except asyncio.CancelledError:
            outcome = CANCELLED
            raise
        except Problem as problem:
            outcome = problem.slug
            raise
        finally:
            self._metrics.count_photo(outcome, own)
            if stages is not None:
                stages += own
        return segmented

    async def _segment(
        self, photo: Photo, draw: Callable[[Prepared, Prediction], Drawn], stages: list[Stage]
    ) -> Segmented[Drawn]:
        deadline = time.monotonic() + self.settings.deadline_s
        with self._admit(), self._problems(deadline):
            async with asyncio.timeout(self.settings.deadline_s):
                try:
                    prepared = await self._in_pool(
                        stages, DECODE, self.predictor.prepare, photo.upload, photo.image_id, photo.prompt
                    )
                except ImageGone:
                    self._metrics.count_lookup(False)
                    raise
                self._metrics.count_lookup(prepared.kept is not None)
                batched = await self._in_batch(stages, prepared, deadline)
                drawn = await self._in_pool(stages, DRAW, draw, prepared, batched.result)
        seconds = sum_seconds(stages)
        seconds["encode"] = batched.result.encode_s
        timing_ms = {name: round(1000 * seconds[name], 3) for name in (DECODE, QUEUE, "encode", INFERENCE, DRAW)}
        return Segmented(prepared, batched.result, drawn, timing_ms)

    async def _in_pool(
        self,
        stages: list[Stage],
        name: str,
        function: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **keywords: Arguments.kwargs,
    ) -> Result:
        """What `function` gives on a thread of the pool; the wait for the thread is a stage too."""
        asked_at = time.perf_counter()
        started_at: list[float] = []

        def run() -> Result:
            started_at.append(time.perf_counter())
            return function(*arguments, **keywords)

        try:
            return await self._pool.submit(run)
        finally:
            ended_at = time.perf_counter()
            begun_at = started_at[0] if started_at else ended_at
            stages.append(Stage(QUEUE, asked_at, begun_at))
            if started_at:
                stages.append(Stage(name, begun_at, ended_at))

    async def _in_batch(self, stages: list[Stage], prepared: Prepared, deadline: float) -> Batched[Prediction]:
        """The prediction from the device thread; one that never comes counts as waiting all the while."""
        asked_at = time.perf_counter()
        try:
            batched = await self.batcher.submit(prepared, deadline, self.settings.max_queue_s)
        except BaseException:
            stages.append(Stage(QUEUE, asked_at, time.perf_counter()))
            raise
        begun_at = asked_at + batched.queue_s
        stages += (Stage(QUEUE, asked_at, begun_at), Stage(INFERENCE, begun_at, begun_at + batched.run_s))
        return batched

    @contextmanager
    def _problems(self, deadline: float) -> Iterator[None]:
        """Raise the problem that fits where the batcher or the clock refuses."""
        try:
            yield
        except QueueFullError as error:
            raise self._overloaded(error.retry_after_s) from error
        except QueueTimeoutError as error:
            raise Overloaded(
                f"got no turn with {self.name} within {self.settings.max_queue_s:g} s; "
                f"try again in {error.retry_after_s} s",
                headers={"Retry-After": str(error.retry_after_s)},
            ) from error
        except OutOfDeviceMemoryError as error:
            raise self._out_of_memory() from error
        except BatcherClosedError as error:
            raise not_ready() from error
        except DeadlineExceededError as error:
            raise self._late() from error
        except TimeoutError as error:
            if time.monotonic() < deadline:
                raise  # not the clock's: a defect inside the model
            raise self._late() from error

    def _limit_batches(self, size: int) -> None:
        self.batcher.max_batch_size = size

    def check_room(self) -> None:
        """Raise Overloaded while the model holds all it may; asked before a body is read, so that it costs little."""
        if self.in_flight >= self.settings.queue_size:
            self._metrics.count_photo(Overloaded.slug, [])
            raise self._overloaded(self.batcher.retry_after_s())

    @contextmanager
    def _admit(self) -> Iterator[None]:
        """Count a request in, unless the model hangs, or others came first while its body was read."""
        if self.is_stalled or self.passes.is_device_lost:
            raise not_ready(f"{self.name} does not answer at present; try again in 5 s", retry_after_s=5)
        if self.in_flight >= self.settings.queue_size:
            raise self._overloaded(self.batcher.retry_after_s())
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _overloaded(self, retry_after_s: int) -> Overloaded:
        return Overloaded(
            f"got one request more than the {self.settings.queue_size} that {self.name} holds; "
            f"try again in {retry_after_s} s",
            headers={"Retry-After": str(retry_after_s)},
        )

    def _out_of_memory(self) -> Overloaded:
        return Overloaded(
            f"got too little device memory for one photo of {self.name}; try again in 1 s", headers={"Retry-After": "1"}
        )

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"got no answer from {self.name} within {self.settings.deadline_s:g} s; "
            "try again later, or send a smaller image"
        )


class Service:
    """All that the routes share: the pipelines by model name, and whether the process takes work.

    starting -> ready -> draining: not ready, takes work for `linger_s` more -> refusing: what was accepted goes on
    """

    def __init__(self, settings: Settings, pipelines: dict[str, Pipeline]) -> None:
        self.settings = settings
        self.pipelines = pipelines
        self.is_warm = False
        self._drains_since = math.inf

    @property
    def is_draining(self) -> bool:
        """Whether the process is about to end."""
        return self._drains_since < math.inf

    @property
    def refuses_work(self) -> bool:
        """Whether new work is turned away."""
        return time.monotonic() >= self._drains_since + self.settings.linger_s

    @property
    def drain_left_s(self) -> float:
        """Seconds that accepted work still has, once the drain has begun."""
        ends_at = self._drains_since + self.settings.linger_s + self.settings.drain_s
        return max(0.0, ends_at - time.monotonic())

    @property
    def is_busy(self) -> bool:
        """Whether any accepted request is unanswered."""
        return any(pipeline.users for pipeline in self.pipelines.values())

    @property
    def has_drained(self) -> bool:
        """Whether the process may end: no new work is taken, and what was accepted is answered or out of time."""
        has_refused_s = time.monotonic() - self._drains_since - self.settings.linger_s
        return has_refused_s >= REFUSING_S and (not self.is_busy or self.drain_left_s == 0)

    @property
    def fault(self) -> str | None:
        """What keeps the process from answering for now or for good, in one line; None if all is well."""
        for pipeline in self.pipelines.values():
            if pipeline.passes.is_device_lost:
                return f"the device of {pipeline.name} failed for good"
            if pipeline.is_stalled:
                return f"a forward pass of {pipeline.name} has run for {pipeline.passes.running_s:.0f} s"
        return None

    @property
    def is_ready(self) -> bool:
        """Whether new work should come here."""
        return self.is_warm and not self.is_draining and self.fault is None

    @property
    def is_alive(self) -> bool:
        """Whether waiting can help; if not, only a new process does."""
        limit_s = self.settings.stall_fatal_s
        return not any(
            pipeline.passes.is_device_lost or 0 < limit_s < pipeline.passes.running_s
            for pipeline in self.pipelines.values()
        )

    def drain(self) -> None:
        """Begin to end: not ready from now on, no new work once `linger_s` have passed; what was accepted goes on."""
        self._drains_since = min(self._drains_since, time.monotonic())


def not_ready(detail: str = "the server is starting or stopping; try again in 1 s", retry_after_s: int = 1) -> NotReady:
    """The refusal of a server that is starting, going away or ailing."""
    return NotReady(detail, headers={"Retry-After": str(retry_after_s)})
