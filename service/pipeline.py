"""One request's way through one model: prepare (thread pool), batcher (device thread), draw (thread pool).

Bounds it in number and time, notes where the time goes, and turns what the batcher refuses into problems. Called by
the routes.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

from models.prompts import Prompt
from service.batcher import (
    Batched,
    Batcher,
    BatcherClosedError,
    DeadlineExceededError,
    QueueFullError,
    QueueTimeoutError,
)
from service.errors import DeadlineExceeded, InternalError, NotReady, Overloaded, Problem
from service.forward_passes import ForwardPasses, OutOfDeviceMemoryError
from service.metrics import CANCELLED, OK, Metrics, ModelMetrics
from service.predictor import Prediction, Predictor, Prepared
from service.settings import Settings
from service.stages import DECODE, DRAW, INFERENCE, QUEUE, Stage, sum_seconds

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


class Pipeline:
    """One model behind its queue."""

    def __init__(self, predictor: Predictor, pool: ThreadPoolExecutor, settings: Settings, metrics: Metrics) -> None:
        self.predictor = predictor
        self.name = predictor.checkpoint.name
        self._metrics = ModelMetrics(metrics, self.name, predictor.keeps_images)
        self.passes = ForwardPasses(predictor.predict, settings.max_batch_size, self._limit_batches, self._metrics)
        self.batcher: Batcher[Prepared, Prediction] = Batcher(
            self.passes,
            max_batch_size=settings.max_batch_size,
            queue_size=settings.queue_size,
            max_wait_s=settings.max_wait_s,
            streams=settings.streams,
            name=self.name,
        )
        self._pool = pool
        self._settings = settings
        self.in_flight = 0

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
        deadline = time.monotonic() + self._settings.deadline_s
        with self._admit(), self._problems(deadline):
            async with asyncio.timeout(self._settings.deadline_s):
                prepared = await self._in_pool(
                    stages, DECODE, self.predictor.prepare, photo.upload, photo.image_id, photo.prompt
                )
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
            return await asyncio.get_running_loop().run_in_executor(self._pool, run)
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
            batched = await self.batcher.submit(prepared, deadline, self._settings.max_queue_s)
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
                f"got no turn with {self.name} within {self._settings.max_queue_s:g} s; "
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

    @contextmanager
    def _admit(self) -> Iterator[None]:
        """Count a request in, unless the model holds all it may: a refusal must cost less than the work."""
        if self.in_flight >= self._settings.queue_size:
            raise self._overloaded(self.batcher.retry_after_s())
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _overloaded(self, retry_after_s: int) -> Overloaded:
        return Overloaded(
            f"got one request more than the {self._settings.queue_size} that {self.name} holds; "
            f"try again in {retry_after_s} s",
            headers={"Retry-After": str(retry_after_s)},
        )

    def _out_of_memory(self) -> Overloaded:
        return Overloaded(
            f"got too little device memory for one photo of {self.name}; try again in 1 s", headers={"Retry-After": "1"}
        )

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"got no answer from {self.name} within {self._settings.deadline_s:g} s; "
            "try again later, or send a smaller image"
        )


class Service:
    """All that the routes share: the pipelines by model name, and whether the process takes work."""

    def __init__(self, settings: Settings, pipelines: dict[str, Pipeline]) -> None:
        self.settings = settings
        self.pipelines = pipelines
        self.is_ready = False
        self.is_draining = False

    def drain(self) -> None:
        """Take no new work; what was accepted goes on."""
        self.is_ready = False
        self.is_draining = True


def not_ready() -> NotReady:
    """The refusal of a server that is starting or going away."""
    return NotReady("the server is starting or stopping; try again in 1 s", headers={"Retry-After": "1"})
