"""The batch size is found by measuring: larger only where it pays, and never past the time that may be spent."""

from collections.abc import Callable

import pytest

from service.batch_size import find_batch_size


class Device:
    """A device on a clock of its own: a batch takes `seconds[batch size]`."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.ran: list[int] = []

    def prepare(self, batch_size: int) -> Callable[[], None]:
        return lambda: self.run(batch_size)

    def run(self, batch_size: int) -> None:
        self.ran.append(batch_size)
        self.now += self.seconds[batch_size]

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8),  # a device that does eight at the price of one
        ({1: 1.0, 2: 1.2, 4: 2.4}, 2),  # fills at two
        ({1: 1.0, 2: 1.98}, 1),  # one more photo costs what it costs alone
        ({1: 1.0, 2: 4.0}, 1),  # larger is slower: the activations leave the cache
    ],
)
def test_the_smallest_size_past_which_doubling_does_not_pay(seconds: dict[int, float], wanted: int) -> None:
    device = Device(seconds)
    assert find_batch_size(device.prepare, 8, budget_s=1000, clock=device.clock) == wanted
    assert set(device.ran) == set(seconds)


def test_no_size_above_the_limit_is_tried() -> None:
    device = Device({1: 1.0, 2: 1.0, 4: 1.0})
    assert find_batch_size(device.prepare, 6, budget_s=1000, clock=device.clock) == 4
    assert max(device.ran) == 4


def test_a_slow_model_does_not_hold_up_the_start() -> None:
    device = Device({1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3})
    assert find_batch_size(device.prepare, 8, budget_s=13.0, clock=device.clock) == 2
    assert device.now <= 13.0


class SmallDevice(Device):
    """One without memory for four."""

    def run(self, batch_size: int) -> None:
        super().run(batch_size)
        if batch_size >= 4:
            raise MemoryError


def test_what_does_not_fit_into_memory_is_too_large() -> None:
    device = SmallDevice({1: 1.0, 2: 1.0, 4: 1.0})

    def is_too_much(error: Exception) -> bool:
        return isinstance(error, MemoryError)

    assert find_batch_size(device.prepare, 8, is_too_much=is_too_much, budget_s=1000, clock=device.clock) == 2
    with pytest.raises(MemoryError):
        find_batch_size(lambda size: device.prepare(4), 8, is_too_much=is_too_much, budget_s=1000, clock=device.clock)
    with pytest.raises(MemoryError):
        find_batch_size(device.prepare, 8, budget_s=1000, clock=device.clock)
