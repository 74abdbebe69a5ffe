"""The batch size that pays on this device, found by measuring at the start. Knows no model and no framework."""

import time
from collections.abc import Callable

_WORTH = 1.05
"""A larger batch must bring this much more throughput: it also makes everybody in it wait longer."""
_REPEATS = 3
_HANDOVER_S = 0.002
"""What a pass costs beside its network, whatever its size: its thread is woken, waits for the interpreter, collates.

On two busy cores, passes of one photo took 1.3 ms more for each photo than passes of two.
"""


def find_batch_size(
    prepare: Callable[[int], Callable[[], object]],
    limit: int,
    *,
    is_too_much: Callable[[Exception], bool] = lambda error: False,
    budget_s: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The smallest batch size up to `limit` past which doubling it no longer pays.

    prepare: gives what runs a batch of so many items. Sizes are tried by doubling until the rate falls or `budget_s` is
    spent; each size first runs once unmeasured, which warms it up.
    is_too_much: whether what was raised says that the device has no memory for so many; then fewer are taken.
    Anything else is raised, and so is that of a single item.
    """
    ends_at = clock() + budget_s
    chosen, best_rate, batch_size = 1, 0.0, 1
    while batch_size <= limit:
        try:
            run = prepare(batch_size)
            run()
            spent = min(_measure(run, clock) for _ in range(_REPEATS))
        except Exception as error:
            if batch_size == 1 or not is_too_much(error):
                raise
            break
        rate = batch_size / (spent + _HANDOVER_S)
        if rate < best_rate * _WORTH and batch_size > 1:
            break
        chosen, best_rate = batch_size, max(rate, best_rate)
        if clock() + 2 * (_REPEATS + 1) * spent > ends_at:
            break
        batch_size *= 2
    return chosen


def _measure(run: Callable[[], object], clock: Callable[[], float]) -> float:
    started_at = clock()
    run()
    return max(clock() - started_at, 1e-9)
