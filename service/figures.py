"""The figures of all processes of one server as one: what /metrics shows."""

from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from service.metrics import Metrics

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Value by name and labels."""


class Figures(Protocol):
    """What an exposition is written from."""

    async def refresh(self) -> None:
        """Gather what other processes have counted."""

    def collect(self) -> Iterable[Metric]:
        """All families."""


class OwnFigures:
    """Those of a server of one process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def refresh(self) -> None:
        """Nothing to gather."""

    def collect(self) -> Iterable[Metric]:
        """All families."""
        return self._metrics.registry.collect()


def series_of(registry: CollectorRegistry) -> Series:
    """Every series, those of a histogram in the order of their buckets."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def add(series: Series, other: Series) -> None:
    """Add `other` to `series`."""
    for key, value in other.items():
        series[key] = series.get(key, 0.0) + value


def with_others(families: Iterable[Metric], others: Series) -> Iterable[Metric]:
    """`families`, to whose series those of other processes are added, new ones at their ends.

    Families that `families` lacks are left out. Histograms stay cumulative: their buckets are the same everywhere.
    """
    left = dict(others)
    for family in families:
        names = {sample.name for sample in family.samples} | names_of(family)
        merged = Metric(family.name, family.documentation, family.type, family.unit)
        for sample in family.samples:
            more = left.pop((sample.name, tuple(sorted(sample.labels.items()))), 0.0)
            merged.samples.append(sample._replace(value=sample.value + more))
        for key in [key for key in left if key[0] in names]:
            merged.samples.append(Sample(key[0], dict(key[1]), left.pop(key)))
        yield merged


def names_of(family: Metric) -> set[str]:
    """Of the series that a family may have."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
    return {f"{family.name}{suffix}" for suffix in suffixes}
