"""Where a request's time goes: the stages of its way, each with its beginning and end.

The pipeline and the routes note them; the Server-Timing header, the metrics, the log line and the spans read them.
"""

from collections.abc import Iterable
from typing import NamedTuple

RECEIVE, DECODE, QUEUE, INFERENCE, DRAW = STAGES = ("receive", "decode", "queue", "inference", "draw")
"""Read the body; decode and letterbox the photo; wait for a thread or the device; run the network; draw the answer.

They follow each other and do not overlap; `queue` may come several times.
"""


class Stage(NamedTuple):
    """One stretch of time on the clock of `time.perf_counter()`."""

    name: str
    started_at: float
    ended_at: float


def sum_seconds(stages: Iterable[Stage]) -> dict[str, float]:
    """Seconds of each stage by name, in order of first appearance."""
    seconds: dict[str, float] = {}
    for name, started_at, ended_at in stages:
        seconds[name] = seconds.get(name, 0.0) + (ended_at - started_at)
    return seconds
