"""Percentiles, medians and ratios: what the tables show."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Of one set of requests, in milliseconds; NaN where there were none: nothing is not fast."""

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


def describe_latency(seconds: Sequence[float]) -> Latency:
    """Nearest-rank percentiles of durations in seconds."""
    ordered = sorted(seconds)
    p50, p90, p99, top = (round(1000 * percentile(ordered, share), 3) for share in (0.5, 0.9, 0.99, 1.0))
    return Latency(len(ordered), p50, p90, p99, top)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of an ascending sequence; NaN of an empty one."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def median(values: Iterable[float]) -> float:
    """The median of those that are not NaN; NaN where there are none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def without_client(rate: float, client_cpu_s: float, seconds: float, cores: int) -> float:
    """The rate that the server would reach with the load generator's CPU time on top of its own.

    Holds where the cores are the limit: the server then had `cores * seconds - client_cpu_s` of CPU time.
    """
    return rate * cores * seconds / (cores * seconds - client_cpu_s)
