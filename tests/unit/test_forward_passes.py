"""Forward passes that fail: for want of memory, with the device, or by themselves."""

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.stopping import StoppedError
from service import forward_passes
from service.batcher import Batcher
from service.forward_passes import ForwardPasses, OutOfDeviceMemoryError
from service.metrics import Metrics, ModelMetrics

pytestmark = pytest.mark.anyio


class Tensors:
    """Stands for what a pass allocates."""


class Device:
    """A `predict` with memory for `fits` items at once, and what it has seen."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.sizes: list[int] = []
        self.allocated: list[weakref.ref[Tensors]] = []
        self.in_use_at_start: list[int] = []

    def __call__(self, batch: list[Any]) -> list[Any]:
        self.in_use_at_start.append(sum(each() is not None for each in self.allocated))
        self.sizes.append(len(batch))
        tensors = Tensors()
        self.allocated.append(weakref.ref(tensors))
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [Predicted(item) for item in batch]


class Predicted:
    encode_s = 0.0

    def __init__(self, item: int) -> None:
        self.item = item


def watched(device: Callable[[list[Any]], list[Any]], max_batch_size: int = 8) -> tuple[Any, Metrics, list[int]]:
    """Passes over numbers instead of photos."""
    metrics, limits = Metrics(), list[int]()
    passes = ForwardPasses(device, limits.append, ModelMetrics(metrics, "cats", keeps_images=False))
    passes.set_max_batch_size(max_batch_size)
    assert limits.pop() == max_batch_size
    return passes, metrics, limits


def failures(metrics: Metrics, reason: str) -> float:
    return metrics.registry.get_sample_value("petseg_batch_failures_total", {"model": "cats", "reason": reason}) or 0.0


async def test_out_of_memory_halves_the_batch_and_every_caller_is_answered() -> None:
    device = Device(fits=2)
    passes, metrics, limits = watched(device)
    batcher: Batcher[Any, Any] = Batcher(passes, max_batch_size=8, queue_size=8, max_wait_s=5)
    answers = await asyncio.gather(*(batcher.submit(item) for item in range(8)))
    await batcher.close()
    assert [answer.result.item for answer in answers] == list(range(8))
    assert device.sizes == [8, 4, 2, 2, 4, 2, 2]
    assert limits == [4, 2, 2]
    assert failures(metrics, "out_of_memory") == 3
    assert metrics.registry.get_sample_value("petseg_batch_size_count", {"model": "cats"}) == 4


def test_the_failed_pass_is_freed_before_the_next() -> None:
    device = Device(fits=1)
    passes, _, _ = watched(device)
    with pytest.raises(OutOfDeviceMemoryError, match="batch of 2") as caught:
        passes([1, 2])
    passes([1])
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert device.in_use_at_start == [0, 0]


def test_the_batch_size_grows_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_passes, "PASSES_UNTIL_GROWTH", 3)
    device = Device(fits=2)
    passes, _, limits = watched(device, max_batch_size=6)
    with pytest.raises(OutOfDeviceMemoryError):
        passes([1, 2, 3])
    for _ in range(20):
        passes([1])
    assert limits == [1, 2, 4, 6]


def test_one_photo_without_memory_lowers_nothing_below_one() -> None:
    passes, _, limits = watched(Device(fits=0))
    with pytest.raises(OutOfDeviceMemoryError):
        passes([1])
    assert limits == [1]


def test_a_pass_that_nobody_waits_for_is_no_failure() -> None:
    def stopped(batch: list[Any]) -> list[Any]:
        raise StoppedError

    passes, metrics, _ = watched(stopped)
    with pytest.raises(StoppedError):
        passes([1])
    assert failures(metrics, "error") == 0
    assert passes.running_s == 0


def accelerator_error(code: int) -> Exception:
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "reason", "is_lost"),
    [
        (accelerator_error(700), "device_lost", True),
        (accelerator_error(2), "out_of_memory", False),
        (RuntimeError("a defect of the model"), "error", False),
    ],
)
def test_only_a_failed_device_is_given_up(error: Exception, reason: str, is_lost: bool) -> None:
    def fail(batch: list[Any]) -> list[Any]:
        raise error

    passes, metrics, _ = watched(fail)
    with pytest.raises(RuntimeError):
        passes([1])
    assert failures(metrics, reason) == 1
    assert passes.is_device_lost == is_lost
    assert passes.running_s == 0
