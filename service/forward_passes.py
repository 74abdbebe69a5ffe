"""One model's forward passes, watched: how many photos, how long under way, what failed and why.

Stands between a pipeline's batcher, which halves what fails, and its predictor.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import torch

from models.stopping import StoppedError
from service.metrics import ModelMetrics
from service.predictor import Prediction, Row

logger = logging.getLogger("petseg.forward_passes")

PASSES_UNTIL_GROWTH = 100
"""Passes that must fit before the batch size, lowered when memory ran out, is doubled again."""

_CUDA_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation: out of memory outside of torch's own allocator."""


class OutOfDeviceMemoryError(RuntimeError):
    """The device had no memory for this batch. Its tensors are freed by the time this is raised."""


class ForwardPasses:
    """`predict` with its figures; called on the model's device threads.

    set_limit: told the number of photos that a pass may have from now on: half of what did not fit, and later more.
    """

    def __init__(
        self,
        predict: Callable[[list[Row]], Sequence[Prediction]],
        set_limit: Callable[[int], None],
        metrics: ModelMetrics,
    ) -> None:
        self._predict = predict
        self._max_batch_size = 1
        self._set_limit = set_limit
        self._metrics = metrics
        self._lock = threading.Lock()
        self._started_at: dict[int, float] = {}
        self._limit = 1
        self._fitted = 0
        self.is_device_lost = False
        """Whether the device failed in a way that only a new process mends."""

    def set_max_batch_size(self, size: int) -> None:
        """Allow passes of `size` photos while memory does."""
        with self._lock:
            self._max_batch_size = self._limit = size
            self._set_limit(size)

    def __call__(self, batch: list[Row]) -> Sequence[Prediction]:
        """Predictions for `batch`. Raises OutOfDeviceMemoryError, and whatever else `predict` raises.

        One that was stopped because nobody waits for it is no failure.
        """
        thread = threading.get_ident()
        self._started_at[thread] = time.monotonic()
        try:
            predictions = self._predict(batch)
        except StoppedError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                self._note_failure(error)
                raise
            # The frames of the failed pass hold its tensors: they must go before half of the batch is tried.
            traceback.clear_frames(error.__traceback__)
        else:
            self._metrics.count_batch(len(batch), predictions[0].encode_s if predictions else 0.0)
            if self._limit < self._max_batch_size:
                self._grow()
            return predictions
        finally:
            del self._started_at[thread]
        self._shrink(len(batch))
        raise OutOfDeviceMemoryError(f"got no device memory for a batch of {len(batch)}")

    @property
    def running_s(self) -> float:
        """Age in seconds of the oldest pass under way; 0 without one."""
        oldest = min(list(self._started_at.values()), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    @property
    def oldest(self) -> tuple[int, float] | None:
        """The oldest pass under way: identity of its thread, start on the clock of `time.monotonic()`."""
        return min(list(self._started_at.items()), key=lambda each: each[1], default=None)

    def count_stall(self) -> None:
        """One pass more has run longer than the watchdog allows."""
        self._metrics.stalls.inc()

    def _note_failure(self, error: Exception) -> None:
        is_lost = is_device_error(error)
        if is_lost and not self.is_device_lost:
            logger.critical("the device failed; this process cannot use it again and wants a restart: %s", error)
        self.is_device_lost |= is_lost
        self._metrics.count_failure("device_lost" if is_lost else "error")

    def _shrink(self, size: int) -> None:
        self._metrics.count_failure("out_of_memory")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with self._lock:
            self._fitted = 0
            self._limit = min(self._limit, max(1, size // 2))
            self._set_limit(self._limit)
        logger.warning("out of device memory with %d photos; passes of at most %d from now on", size, self._limit)

    def _grow(self) -> None:
        with self._lock:
            self._fitted += 1
            if self._fitted >= PASSES_UNTIL_GROWTH:
                self._fitted = 0
                self._limit = min(self._max_batch_size, 2 * self._limit)
                self._set_limit(self._limit)


def is_device_error(error: BaseException) -> bool:
    """Whether the device itself failed, not the code that ran on it."""
    kind = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    return kind is not None and isinstance(error, kind) and not is_out_of_memory(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had too little memory, by torch's allocator or by the driver."""
    return isinstance(error, torch.OutOfMemoryError) or (
        type(error).__name__ == "AcceleratorError" and getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY
    )
