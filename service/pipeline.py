"""One request's way through one model: prepare (thread pool), infer (batches), draw (thread pool).

Bounds it in number and time, notes where the time goes, and turns what a batcher refuses into problems. Called by the
routes. Where the batches run is the subclasses' business: on this process's device, or on another's.
"""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

from models.prompts import Prompt
from service.batcher import Batched, BatcherClosedError, DeadlineExceededError, QueueFullError, QueueTimeoutError
from service.errors import DeadlineExceeded, ImageGone, InternalError, NotReady, Overloaded, Problem
from service.forward_passes import OutOfDeviceMemoryError
from service.image_processes import ImageWork
from service.image_threads import ImageThreads
from service.image_work import PhotoLimits
from service.metrics import CANCELLED, OK, ModelMetrics
from service.model_facts import ModelFacts
from service.predictor import Prediction, Prepared
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


REFUSING_S = 0.5
"""Seconds at least in which new work is refused before the port closes: a balancer that has not looked yet is told to
go elsewhere, where a closed port or a connection that breaks would leave it guessing."""


class Pipeline(ABC):
    """One model behind its queue."""

    def __init__(
        self, facts: ModelFacts, work: ImageWork, pool: ImageThreads, settings: Settings, metrics: ModelMetrics
    ) -> None:
        self.facts = facts
        self.work = work
        self.name = facts.name
        self.limits = PhotoLimits(settings.max_pixels, settings.max_frames)
        self.settings = settings
        self.in_flight = 0
        """Photos that hold a place; of a hub, those of its fronts."""
        self._places = asyncio.Semaphore(settings.queue_size)
        self.batch_room = asyncio.Semaphore(max(1, settings.queue_size // 2))
        """Entered around each photo of a request with many: they wait for each other rather than fill the queue, and
        half of it is left to requests with one."""
        self.users = 0
        self._metrics = metrics
        self._pool = pool
        self._is_unused = asyncio.Event()
        self._is_unused.set()

    @property
    @abstractmethod
    def photos_together(self) -> int:
        """Photos that a stream computes together at most, at present: bounds how many of one request are in work."""

    @abstractmethod
    def prepare(self, upload: bytes | None, image_id: str | None, prompt: Prompt) -> Prepared:
        """Read and check a photo, or find an earlier one by `image_id`, on an image thread. Raises Problem."""

    @abstractmethod
    async def submit(self, prepared: Prepared, deadline: float, waits: bool) -> Batched[Prediction]:
        """The prediction for what `prepare` gave.

        deadline: on the clock of `time.monotonic()`. waits: as for `segment`. Raises Problem.
        """

    @abstractmethod
    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, until about half of the queue is done."""

    @property
    def fault(self) -> str | None:
        """What keeps the model from answering for now or for good, in one line; None if all is well."""
        return None

    @property
    def is_dead(self) -> bool:
        """Whether only a new process mends its fault."""
        return False

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

    async def segment(
        self,
        photo: Photo,
        draw: Callable[[Prepared, Prediction], Drawn],
        stages: list[Stage] | None = None,
        *,
        waits: bool = False,
    ) -> Segmented[Drawn]:
        """Segment `photo` and `draw` its answer, within the deadline.

        stages: is told of each stage as it ends, also where the photo gets no answer. waits: while the model holds all
        it may, for up to `max_queue_s`, instead of being refused at once. Raises the Problem that fits: all that can be
        refused is refused before the queue.
        """
        own: list[Stage] = []
        outcome = InternalError.slug
        try:
            await self._take_place(own, waits)
            try:
                segmented = await self._segment(photo, draw, own, waits)
            finally:
                self._leave_place()
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
        self, photo: Photo, draw: Callable[[Prepared, Prediction], Drawn], stages: list[Stage], waits: bool
    ) -> Segmented[Drawn]:
        deadline = time.monotonic() + self.settings.deadline_s
        with self.problems(deadline):
            async with asyncio.timeout(self.settings.deadline_s):
                try:
                    prepared = await self._in_pool(
                        stages, DECODE, self.prepare, photo.upload, photo.image_id, photo.prompt
                    )
                except ImageGone:
                    self._metrics.count_lookup(False)
                    raise
                if prepared.was_held is not None:
                    self._metrics.count_lookup(prepared.was_held)
                batched = await self._in_batch(stages, prepared, deadline, waits)
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

    async def _in_batch(
        self, stages: list[Stage], prepared: Prepared, deadline: float, waits: bool
    ) -> Batched[Prediction]:
        """`submit`; a prediction that never comes counts as waiting all the while."""
        asked_at = time.perf_counter()
        try:
            batched = await self.submit(prepared, deadline, waits)
        except BaseException:
            stages.append(Stage(QUEUE, asked_at, time.perf_counter()))
            raise
        begun_at = asked_at + batched.queue_s
        stages += (Stage(QUEUE, asked_at, begun_at), Stage(INFERENCE, begun_at, begun_at + batched.run_s))
        return batched

    @contextmanager
    def problems(self, deadline: float) -> Iterator[None]:
        """Raise the problem that fits where a batcher or the clock refuses."""
        try:
            yield
        except QueueFullError as error:
            raise self._overloaded(error.retry_after_s) from error
        except QueueTimeoutError as error:
            raise self._no_turn(error.retry_after_s) from error
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

    def check_room(self) -> None:
        """Raise Overloaded while the model holds all it may; asked before a body is read, so that it costs little."""
        if self._places.locked():
            self._metrics.count_photo(Overloaded.slug, [])
            raise self._overloaded(self.retry_after_s())

    def check_health(self) -> None:
        """Raise NotReady while the model does not answer."""
        if self.fault is not None:
            raise not_ready(f"{self.name} does not answer at present; try again in 5 s", retry_after_s=5)

    async def _take_place(self, stages: list[Stage], waits: bool) -> None:
        """Count a photo in, unless the model hangs, or others came first while its body was read.

        waits: for them, in the order of asking; nobody is let in before who waits.
        """
        self.check_health()
        if not self._places.locked():
            await self._places.acquire()
        elif waits:
            await self._wait_for_place(stages)
        else:
            raise self._overloaded(self.retry_after_s())
        self.in_flight += 1

    async def _wait_for_place(self, stages: list[Stage]) -> None:
        asked_at = time.perf_counter()
        try:
            async with asyncio.timeout(self.settings.max_queue_s):
                await self._places.acquire()
        except TimeoutError as error:
            raise self._no_turn(self.retry_after_s()) from error
        finally:
            stages.append(Stage(QUEUE, asked_at, time.perf_counter()))

    def _leave_place(self) -> None:
        self.in_flight -= 1
        self._places.release()

    def _overloaded(self, retry_after_s: int) -> Overloaded:
        return Overloaded(
            f"got one request more than the {self.settings.queue_size} that {self.name} holds; "
            f"try again in {retry_after_s} s",
            headers={"Retry-After": str(retry_after_s)},
        )

    def _no_turn(self, retry_after_s: int) -> Overloaded:
        return Overloaded(
            f"got no turn with {self.name} within {self.settings.max_queue_s:g} s; try again in {retry_after_s} s",
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


AnyPipeline = TypeVar("AnyPipeline", bound=Pipeline)


class Service(Generic[AnyPipeline]):
    """All that the routes share: the pipelines by model name, and whether the process takes work.

    starting -> ready -> draining: not ready, takes work for `linger_s` more -> refusing: what was accepted goes on
    """

    def __init__(self, settings: Settings, pipelines: dict[str, AnyPipeline]) -> None:
        self.settings = settings
        self.pipelines = pipelines
        self.is_warm = False
        self.is_reachable = True
        """Whether callers reach it: behind fronts, while one of them serves."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `pipelines` have been replaced."""
        self.on_drain: Callable[[], object] = lambda: None
        """Called when the drain begins, perhaps by a signal's handler."""
        self._drains_since = math.inf

    def replace(self, pipelines: dict[str, AnyPipeline]) -> None:
        """Route new requests to `pipelines`."""
        self.pipelines = pipelines
        self.on_change()

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
        return next(filter(None, (pipeline.fault for pipeline in self.pipelines.values())), None)

    @property
    def is_ready(self) -> bool:
        """Whether new work should come here."""
        return self.is_warm and self.is_reachable and not self.is_draining and self.fault is None

    @property
    def is_alive(self) -> bool:
        """Whether waiting can help; if not, only a new process does."""
        return not any(pipeline.is_dead for pipeline in self.pipelines.values())

    def drain(self) -> None:
        """Begin to end: not ready from now on, no new work once `linger_s` have passed; what was accepted goes on."""
        if not self.is_draining:
            self._drains_since = time.monotonic()
            self.on_drain()


def not_ready(detail: str = "the server is starting or stopping; try again in 1 s", retry_after_s: int = 1) -> NotReady:
    """The refusal of a server that is starting, going away or ailing."""
    return NotReady(detail, headers={"Retry-After": str(retry_after_s)})
