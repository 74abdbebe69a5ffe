"""Each caller gets its own answer, whatever arrives, leaves or fails beside it."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.stopping import Stop, StoppedError, check_stop, stoppable
from service.batcher import Batcher, BatcherClosedError, DeadlineExceededError, QueueFullError, QueueTimeoutError
from service.turns import Turns

pytestmark = pytest.mark.anyio


class Gate:
    """A `run` that doubles its items, records the batches and can be held shut."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_open = threading.Event()
        self.is_open.set()
        self.has_begun = threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.has_begun.set()
        assert self.is_open.wait(timeout=20)
        self.batches.append(items)
        if any(item < 0 for item in items):
            raise ValueError(f"negative among {items}")
        return [2 * item for item in items]


def make(gate: Gate, **options: float) -> Batcher[int, int]:
    chosen = {"max_batch_size": 4, "queue_size": 100} | options
    return Batcher(gate, **chosen)  # type: ignore[arg-type]


async def hold(gate: Gate, batcher: Batcher[int, int]) -> "asyncio.Task[object]":
    """Occupy the worker with the item 0 until the gate opens."""
    gate.is_open.clear()
    gate.has_begun.clear()
    task: asyncio.Task[object] = asyncio.ensure_future(batcher.submit(0))
    assert await asyncio.to_thread(gate.has_begun.wait, 10)
    return task


async def test_what_is_queued_goes_next_in_order_up_to_the_batch_size() -> None:
    gate = Gate()
    batcher = make(gate)
    first = await hold(gate, batcher)
    later = [asyncio.ensure_future(batcher.submit(item)) for item in range(1, 7)]
    await asyncio.sleep(0)
    gate.is_open.set()
    answers = await asyncio.gather(*later)
    await first
    await batcher.close()
    assert [answer.result for answer in answers] == [2, 4, 6, 8, 10, 12]
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [answer.batch_size for answer in answers] == [4, 4, 4, 4, 2, 2]
    assert all(answer.queue_s >= 0 and answer.run_s >= 0 for answer in answers)


async def test_an_idle_worker_does_not_wait_for_more_unless_told_to() -> None:
    gate = Gate()
    batcher = make(gate)
    assert (await batcher.submit(3)).batch_size == 1
    await batcher.close()

    patient = make(gate, max_wait_s=5.0, max_batch_size=3)
    answers = await asyncio.gather(*(patient.submit(item) for item in (1, 2, 3)))
    await patient.close()
    assert [answer.batch_size for answer in answers] == [3, 3, 3]


async def test_max_wait_ends_with_a_batch_that_is_not_full() -> None:
    batcher = make(Gate(), max_wait_s=0.05, max_batch_size=100)
    answer = await asyncio.wait_for(batcher.submit(3), 5)
    await batcher.close()
    assert (answer.result, answer.batch_size) == (6, 1)
    assert answer.queue_s >= 0.05


async def test_while_one_batch_runs_the_next_waits_until_it_is_full_or_that_one_ends() -> None:
    gate = Gate()
    batcher = make(gate, streams=2, beside_wait_s=20.0, max_batch_size=3)
    first = await hold(gate, batcher)  # beside nothing it does not wait
    gate.has_begun.clear()
    two = [asyncio.ensure_future(batcher.submit(item)) for item in (1, 2)]
    assert not await asyncio.to_thread(gate.has_begun.wait, 0.2)
    third = asyncio.ensure_future(batcher.submit(3))
    assert await asyncio.to_thread(gate.has_begun.wait, 10)  # full
    left = asyncio.ensure_future(batcher.submit(4))
    await asyncio.sleep(0)
    gate.is_open.set()
    await asyncio.wait_for(asyncio.gather(first, *two, third, left), 10)  # both have ended: it waits no more
    await batcher.close()
    assert sorted(gate.batches) == [[0], [1, 2, 3], [4]]


async def test_beside_wait_ends_while_the_other_batch_still_runs() -> None:
    gate = Gate()
    batcher = make(gate, streams=2, beside_wait_s=0.05, max_batch_size=3)
    first = await hold(gate, batcher)
    gate.has_begun.clear()
    second = asyncio.ensure_future(batcher.submit(1))
    assert await asyncio.to_thread(gate.has_begun.wait, 10)
    gate.is_open.set()
    await asyncio.gather(first, second)
    await batcher.close()


async def test_a_bad_item_fails_alone_and_the_loop_lives_on() -> None:
    gate = Gate()
    batcher = make(gate, max_batch_size=8)
    first = await hold(gate, batcher)
    tasks = [asyncio.ensure_future(batcher.submit(item)) for item in (1, 2, -3, 4, 5)]
    await asyncio.sleep(0)
    gate.is_open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    assert [getattr(answer, "result", None) for answer in answers] == [2, 4, None, 8, 10]
    assert isinstance(answers[2], ValueError)
    assert str(answers[2]) == "negative among [-3]"
    assert (await batcher.submit(7)).result == 14
    await batcher.close()


@pytest.mark.parametrize("raised", [StopIteration("no"), SystemExit(3), KeyboardInterrupt()])
async def test_whatever_run_raises_reaches_the_caller(raised: BaseException) -> None:
    is_first = True

    def run(items: list[int]) -> list[int]:
        nonlocal is_first
        if is_first:
            is_first = False
            raise raised
        return items

    batcher: Batcher[int, int] = Batcher(run, max_batch_size=2, queue_size=2)
    with pytest.raises(RuntimeError, match=type(raised).__name__):
        await batcher.submit(1)
    assert (await batcher.submit(2)).result == 2
    await batcher.close()


async def test_a_run_with_too_few_results_fails_every_caller() -> None:
    batcher: Batcher[int, int] = Batcher(lambda items: items[1:], max_batch_size=2, queue_size=2)
    with pytest.raises(RuntimeError, match="got 0 results for 1 items"):
        await batcher.submit(1)
    await batcher.close()


class Hostile(Sequence[int]):
    """Results that look right and end the thread that reads them."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: object) -> Any:
        raise SystemExit(1)


async def test_a_thread_that_breaks_down_fails_its_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    results: list[Sequence[int]] = [Hostile(), [7]]
    batcher: Batcher[int, int] = Batcher(lambda items: results.pop(0), max_batch_size=2, queue_size=2, name="cats")
    with pytest.raises(RuntimeError, match="thread raised SystemExit"):
        await asyncio.wait_for(batcher.submit(1), 10)
    assert (await asyncio.wait_for(batcher.submit(2), 10)).result == 7
    await batcher.close()
    assert "a thread of cats broke down" in caplog.text


async def test_an_items_own_timeout_is_not_taken_for_the_deadline() -> None:
    def run(items: list[int]) -> Sequence[int]:
        raise TimeoutError("the item's own")

    batcher: Batcher[int, int] = Batcher(run, max_batch_size=2, queue_size=2)
    with pytest.raises(TimeoutError, match="the item's own") as caught:
        await batcher.submit(1, time.monotonic() + 10)
    assert not isinstance(caught.value, DeadlineExceededError)
    await batcher.close()


async def test_callers_that_left_are_never_run() -> None:
    gate = Gate()
    batcher = make(gate)
    first = await hold(gate, batcher)
    gone, stays = (asyncio.ensure_future(batcher.submit(item)) for item in (1, 2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    assert len(batcher) == 1
    gate.is_open.set()
    assert (await stays).result == 4
    await first
    await batcher.close()
    assert gate.batches == [[0], [2]]


class Stoppable:
    """A `run` that goes on until it is stopped, or told to end."""

    def __init__(self) -> None:
        self.has_begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.stopped: list[list[int]] = []

    def __call__(self, items: list[int]) -> list[int]:
        try:
            with stoppable(self.may_end.set):
                self.has_begun.release()
                assert self.may_end.wait(timeout=20)
                check_stop()
        except StoppedError:
            self.stopped.append(items)
            raise
        return items


async def test_a_batch_is_stopped_once_its_last_caller_has_left() -> None:
    run = Stoppable()
    batcher: Batcher[int, int] = Batcher(run, max_batch_size=2, queue_size=9, max_wait_s=5, new_stop=Stop)
    first, last = (asyncio.ensure_future(batcher.submit(item)) for item in (1, 2))
    assert await asyncio.to_thread(run.has_begun.acquire, timeout=10)
    first.cancel()
    await asyncio.wait([first])
    assert not run.may_end.wait(0.05)
    last.cancel()
    await asyncio.wait([last])
    assert await asyncio.to_thread(run.may_end.wait, 10)
    served = [asyncio.ensure_future(batcher.submit(item)) for item in (3, 4)]
    assert [answer.result for answer in await asyncio.gather(*served)] == [3, 4]
    await batcher.close()
    assert run.stopped == [[1, 2]]


async def test_a_batch_is_stopped_once_its_last_deadline_has_passed() -> None:
    run = Stoppable()
    batcher: Batcher[int, int] = Batcher(run, max_batch_size=1, queue_size=9, new_stop=Stop)
    with pytest.raises(DeadlineExceededError):
        await batcher.submit(1, time.monotonic() + 0.05)
    assert await asyncio.to_thread(run.may_end.wait, 10)
    assert (await batcher.submit(2)).result == 2
    await batcher.close()
    assert run.stopped == [[1]]


async def test_what_was_answered_stops_nothing() -> None:
    """Callers leave once they have their answer, too, while half of a batch that failed may still run."""
    run = Stoppable()
    run.may_end.set()

    def run_halves(items: list[int]) -> list[int]:
        if len(items) > 1:
            raise RuntimeError("too many")
        return run(items)

    batcher: Batcher[int, int] = Batcher(run_halves, max_batch_size=4, queue_size=9, max_wait_s=5, new_stop=Stop)
    answers = await asyncio.gather(*(batcher.submit(item) for item in range(4)))
    await batcher.close()
    assert [answer.result for answer in answers] == [0, 1, 2, 3]
    assert not run.stopped


async def test_nothing_holds_an_item_once_it_is_answered() -> None:
    class Item: ...

    batcher: Batcher[Item, int] = Batcher(lambda items: [1] * len(items), max_batch_size=2, queue_size=9, max_wait_s=5)
    items = [Item(), Item()]
    seen = [weakref.ref(item) for item in items]
    gc.disable()
    try:
        waiting = [asyncio.ensure_future(batcher.submit(items.pop())) for _ in range(2)]
        await asyncio.gather(*waiting)
        waiting.clear()
        await batcher.close()
        assert [item() for item in seen] == [None, None]
    finally:
        gc.enable()


async def test_a_deadline_ends_the_wait_in_the_queue_and_in_the_run() -> None:
    gate = Gate()
    batcher = make(gate)
    gate.is_open.clear()
    running = asyncio.ensure_future(batcher.submit(0, time.monotonic() + 0.05))
    assert await asyncio.to_thread(gate.has_begun.wait, 10)
    with pytest.raises(DeadlineExceededError):
        await batcher.submit(1, time.monotonic() + 0.02)
    with pytest.raises(DeadlineExceededError):
        await running
    gate.is_open.set()
    assert (await batcher.submit(2)).result == 4
    await batcher.close()
    assert [1] not in gate.batches


async def test_an_item_that_gets_no_turn_in_time_leaves_and_one_that_has_begun_stays() -> None:
    gate = Gate()
    batcher = make(gate)
    running = await hold(gate, batcher)
    with pytest.raises(QueueTimeoutError):
        await batcher.submit(1, max_queue_s=0.05)
    assert len(batcher) == 0
    gate.is_open.set()
    await running
    running = await hold(gate, batcher)
    begun = asyncio.ensure_future(batcher.submit(2, max_queue_s=0.3))
    gate.is_open.set()
    assert (await begun).result == 4
    gate.is_open.clear()
    gate.has_begun.clear()
    slow = asyncio.ensure_future(batcher.submit(3, max_queue_s=0.05))
    assert await asyncio.to_thread(gate.has_begun.wait, 10)
    await asyncio.sleep(0.1)
    gate.is_open.set()
    assert (await slow).result == 6
    await running
    await batcher.close()
    assert [1] not in gate.batches


async def test_items_that_do_not_count_are_queued_beyond_its_size_and_leave_the_places_to_others() -> None:
    gate = Gate()
    batcher = make(gate, queue_size=2)
    first = await hold(gate, batcher)
    free = [asyncio.ensure_future(batcher.submit(item, counts=False)) for item in (1, 2, 3)]
    counted = [asyncio.ensure_future(batcher.submit(item)) for item in (4, 5)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await batcher.submit(6)
    free.append(asyncio.ensure_future(batcher.submit(7, counts=False)))
    await asyncio.sleep(0)
    gate.is_open.set()
    assert [answer.result for answer in await asyncio.gather(*free, *counted)] == [2, 4, 6, 14, 8, 10]
    await first
    await batcher.close()


async def test_one_more_than_the_queue_holds_is_refused_at_once() -> None:
    gate = Gate()
    batcher = make(gate, queue_size=2)
    first = await hold(gate, batcher)
    waiting = [asyncio.ensure_future(batcher.submit(item)) for item in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError) as caught:
        await batcher.submit(3)
    assert caught.value.retry_after_s >= 1
    gate.is_open.set()
    assert [(await task).result for task in waiting] == [2, 4]
    await first
    await batcher.close()


async def test_close_finishes_what_is_queued_and_takes_no_more() -> None:
    gate = Gate()
    batcher = make(gate)
    first = await hold(gate, batcher)
    queued = asyncio.ensure_future(batcher.submit(1))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(BatcherClosedError):
        await batcher.submit(2)
    gate.is_open.set()
    await closing
    await first
    assert (await queued).result == 2


async def test_close_fails_what_does_not_finish_in_time() -> None:
    gate = Gate()
    batcher = make(gate)
    first = await hold(gate, batcher)
    queued = asyncio.ensure_future(batcher.submit(1))
    await asyncio.sleep(0)
    await batcher.close(drain_s=0.01)
    with pytest.raises(BatcherClosedError):
        await queued
    gate.is_open.set()
    await first


async def test_streams_run_side_by_side() -> None:
    together = threading.Barrier(2)

    def run(items: list[int]) -> list[int]:
        together.wait(timeout=10)
        return items

    batcher: Batcher[int, int] = Batcher(run, max_batch_size=1, queue_size=4, streams=2)
    answers = await asyncio.gather(batcher.submit(1), batcher.submit(2))
    await batcher.close()
    assert [answer.result for answer in answers] == [1, 2]


CALLS = st.lists(
    st.tuples(
        st.integers(-3, 20),  # the item; negative ones fail
        st.integers(0, 3),  # turns of the event loop before it is submitted
        st.none() | st.integers(0, 3),  # turns until its caller leaves
    ),
    max_size=25,
)


@given(CALLS, st.integers(1, 6), st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_each_caller_gets_its_own_answer(
    calls: list[tuple[int, int, int | None]], max_batch_size: int, streams: int
) -> None:
    async def call(batcher: Batcher[int, int], item: int, delay: int, patience: int | None) -> object:
        for _ in range(delay):
            await asyncio.sleep(0)
        task = asyncio.ensure_future(batcher.submit(item))
        if patience is not None:
            for _ in range(patience):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            return "left"
        return task.exception() or task.result().result

    async def run() -> list[object]:
        batcher = make(Gate(), max_batch_size=max_batch_size, streams=streams)
        answers = await asyncio.gather(*(call(batcher, *each) for each in calls))
        assert len(batcher) == 0
        await batcher.close()
        return answers

    for (item, _, patience), answer in zip(calls, asyncio.run(run()), strict=True):
        if answer == "left":
            assert patience is not None
        elif item < 0:
            assert isinstance(answer, ValueError)
            assert str(answer) == f"negative among [{item}]"
        else:
            assert answer == 2 * item


async def test_a_batch_is_made_up_when_its_turn_comes() -> None:
    gate, has_asked, may_go = Gate(), threading.Event(), threading.Event()
    names: set[str] = set()

    @contextmanager
    def take_turn(name: str) -> Iterator[None]:
        names.add(name)
        has_asked.set()
        assert may_go.wait(10)
        yield

    batcher: Batcher[int, int] = Batcher(gate, max_batch_size=4, queue_size=9, name="model", take_turn=take_turn)
    tasks = [asyncio.ensure_future(batcher.submit(1))]
    assert await asyncio.to_thread(has_asked.wait, 10)
    tasks += [asyncio.ensure_future(batcher.submit(item)) for item in (2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    may_go.set()
    assert [answer.result for answer in await asyncio.gather(tasks[0], tasks[2])] == [2, 6]
    await batcher.close()
    assert gate.batches == [[1, 3]]
    assert names == {"model"}


async def test_two_models_on_one_device_are_served_side_by_side() -> None:
    turns, order, has_begun = Turns(1), list[str](), threading.Event()

    def run(name: str) -> Callable[[list[int]], list[int]]:
        def work(items: list[int]) -> list[int]:
            order.append(name)
            has_begun.set()
            time.sleep(0.002)
            return items

        return work

    batchers: list[Batcher[int, int]] = [
        Batcher(run(name), max_batch_size=1, queue_size=99, name=name, take_turn=turns.take) for name in ("busy", "new")
    ]
    busy = [asyncio.ensure_future(batchers[0].submit(item)) for item in range(30)]
    assert await asyncio.to_thread(has_begun.wait, 10)
    ran_before = len(order)
    await batchers[1].submit(0)
    place = order.index("new")
    await asyncio.gather(*busy)
    for batcher in batchers:
        await batcher.close()
    assert place <= ran_before + 2  # behind the batch under way, not behind all 30
