"""Percentiles, medians and ratios: what the tables show."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Of one set of requests, in milliseconds; 0 where there were none."""

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
    """Nearest-rank percentile of an ascending sequence; 0.0 of an empty one."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def median(values: Sequence[float]) -> float:
    """The median, or NaN of nothing."""
    return statistics.median(values) if values else math.nan


def without_client(rate: float, client_cpu_s: float, seconds: float, cores: int) -> float:
    """The rate that the server would reach with the load generator's CPU time on top of its own.

    Holds where the cores are the limit: the server then had `cores * seconds - client_cpu_s` of CPU time.
    """
    return rate * cores * seconds / (cores * seconds - client_cpu_s)
