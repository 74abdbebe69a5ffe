"""A device's places go round: nobody waits for another's whole queue, and one that hangs stops nobody."""

import threading
import time
from collections.abc import Callable

import pytest

from service.turns import Turns


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    ends_at = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < ends_at
        time.sleep(0.001)


class Crowd:
    """Threads that take turns and write down who came when."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.order: list[str] = []
        self._threads: list[threading.Thread] = []

    def come(self, group: str, holds_s: float = 0.0) -> None:
        """Another waiter of `group`; returns once it waits or holds."""
        has_come = threading.Event()

        def take() -> None:
            has_come.set()
            with self.turns.take(group):
                self.order.append(group)
                time.sleep(holds_s)

        thread = threading.Thread(target=take)
        self._threads.append(thread)
        waiting = self.turns.waiting
        thread.start()
        has_come.wait(10)
        wait_until(lambda: self.turns.waiting > waiting or group in self.order)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def test_a_model_with_one_request_does_not_wait_for_anothers_queue() -> None:
    turns = Turns(1)
    crowd = Crowd(turns)
    with turns.take("busy"):
        for _ in range(4):
            crowd.come("busy")
        crowd.come("quiet")
        time.sleep(0.01)  # charged to "busy"
    crowd.join()
    assert crowd.order[0] == "quiet"
    assert crowd.order.count("busy") == 4


def test_turns_are_shared_by_time_not_by_number() -> None:
    turns = Turns(1)
    crowd = Crowd(turns)
    with turns.take("gate"):
        for _ in range(8):
            crowd.come("quick", 0.002)
        for _ in range(3):
            crowd.come("slow", 0.05)
    crowd.join()
    # One slow turn pays for many quick ones: all of them are through before the second slow one.
    assert crowd.order.index("slow") < len(crowd.order) - 2
    assert crowd.order[-2:] == ["slow", "slow"]


def test_idle_time_earns_no_credit() -> None:
    turns = Turns(1)
    with turns.take("worker"):
        time.sleep(0.02)
    with turns.take("worker"):
        crowd = Crowd(turns)
        crowd.come("newcomer")
        assert turns.used_s("newcomer") == turns.used_s("worker") >= 0.02
    crowd.join()


def test_no_more_hold_than_there_are_places() -> None:
    turns, lock = Turns(2), threading.Lock()
    inside = most = 0

    def work(group: str) -> None:
        nonlocal inside, most
        for _ in range(50):
            with turns.take(group):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.0002)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work, args=(f"model-{place % 3}",)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == 2
    assert turns._free == 2
    assert not turns._holding
    assert not turns._waiting


def test_a_holder_that_hangs_stops_nobody_for_good() -> None:
    turns = Turns(1, patience_s=0.02)
    with turns.take("hung"):
        began_at = time.monotonic()
        with turns.take("other"):
            assert time.monotonic() - began_at >= 0.02
        crowd = Crowd(turns)
        for _ in range(20):  # its place is lost for all of them, not waited for by each
            crowd.come("other")
        crowd.join()
        assert crowd.order == ["other"] * 20
    assert turns._free == 1
    with turns.take("hung"):
        assert turns._free == 0


def test_one_that_hangs_loses_its_place_also_while_others_are_busy() -> None:
    turns, is_over, has_both_places = Turns(2, patience_s=0.1), threading.Event(), threading.Event()
    inside: list[int] = []

    def hang() -> None:
        with turns.take("stuck"):
            is_over.wait(10)

    def work() -> None:
        while not is_over.is_set():
            with turns.take("busy"):
                inside.append(1)
                time.sleep(0.005)
                if len(inside) == 2:
                    has_both_places.set()
                inside.pop()

    threads = [threading.Thread(target=hang)]
    threads[0].start()
    wait_until(lambda: len(turns._holding) == 1)
    threads += [threading.Thread(target=work) for _ in range(3)]
    for thread in threads[1:]:
        thread.start()
    assert has_both_places.wait(5)
    is_over.set()
    for thread in threads:
        thread.join(10)


def test_a_place_comes_free_when_the_block_raises() -> None:
    turns = Turns(1)
    with pytest.raises(ValueError, match="broken"), turns.take("model"):
        raise ValueError("broken")
    with turns.take("model"):
        assert turns._free == 0
