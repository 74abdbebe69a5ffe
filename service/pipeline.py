"""One request's way through one model: prepare (thread pool), batcher (device thread), draw (thread pool).

Bounds it in number and time, and turns what the batcher refuses into problems. Called by the routes.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from models.prompts import Prompt
from service.batcher import Batcher, BatcherClosedError, DeadlineExceededError, QueueFullError
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.predictor import Prediction, Predictor, Prepared
from service.settings import Settings

Drawn = TypeVar("Drawn")


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

    def __init__(self, predictor: Predictor, pool: ThreadPoolExecutor, settings: Settings) -> None:
        self.predictor = predictor
        self.name = predictor.checkpoint.name
        self.batcher: Batcher[Prepared, Prediction] = Batcher(
            predictor.predict,
            max_batch_size=settings.max_batch_size,
            queue_size=settings.queue_size,
            max_wait_s=settings.max_wait_s,
            streams=settings.streams,
            name=self.name,
        )
        self._pool = pool
        self._settings = settings
        self.in_flight = 0

    async def segment(self, photo: Photo, draw: Callable[[Prepared, Prediction], Drawn]) -> Segmented[Drawn]:
        """Segment `photo` and `draw` its answer, within the deadline.

        Raises the Problem that fits: all that can be refused is refused before the queue.
        """
        deadline = time.monotonic() + self._settings.deadline_s
        loop = asyncio.get_running_loop()
        with self._admit():
            try:
                async with asyncio.timeout(self._settings.deadline_s):
                    prepared = await loop.run_in_executor(
                        self._pool, self.predictor.prepare, photo.upload, photo.image_id, photo.prompt
                    )
                    batched = await self.batcher.submit(prepared, deadline)
                    drawing_at = time.perf_counter()
                    drawn = await loop.run_in_executor(self._pool, draw, prepared, batched.result)
            except QueueFullError as error:
                raise self._overloaded(error.retry_after_s) from error
            except BatcherClosedError as error:
                raise not_ready() from error
            except DeadlineExceededError as error:
                raise self._late() from error
            except TimeoutError as error:
                if time.monotonic() < deadline:
                    raise  # not the clock's: a defect inside the model
                raise self._late() from error
        seconds = {
            "decode": prepared.decode_s,
            "queue": batched.queue_s,
            "encode": batched.result.encode_s,
            "inference": batched.run_s,
            "draw": time.perf_counter() - drawing_at,
        }
        return Segmented(prepared, batched.result, drawn, {name: round(1000 * s, 3) for name, s in seconds.items()})

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
