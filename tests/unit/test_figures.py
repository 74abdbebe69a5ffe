"""Figures of several processes as one exposition: added up series by series, histograms still cumulative."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.figures import Series, add, series_of, with_others
from service.metrics import SECONDS_BUCKETS, Metrics
from service.stages import DECODE, Stage


class Merged:
    """What an encoder takes for a registry."""

    def __init__(self, own: Metrics, others: Series) -> None:
        self._own, self._others = own, others

    def collect(self) -> object:
        return with_others(self._own.registry.collect(), self._others)


def values(own: Metrics, *others: Metrics) -> Series:
    """Of the exposition, read back from its text."""
    more: Series = {}
    for other in others:
        add(more, series_of(other.registry))
    text = generate_latest(Merged(own, more)).decode()  # type: ignore[arg-type]
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} stands there twice"
            found[key] = sample.value
    return found


def photo(metrics: Metrics, model: str, seconds: float, outcome: str = "ok") -> None:
    metrics.of_model(model, keeps_images=True).count_photo(outcome, [Stage(DECODE, 0.0, seconds)])


def test_counters_gauges_and_histograms_are_added_up() -> None:
    hub, first, second = Metrics(), Metrics(of_service=False), Metrics(of_service=False)
    photo(first, "cats", 0.004)
    photo(first, "cats", 0.004)
    photo(second, "cats", 0.2)
    photo(second, "dogs", 0.004, "image-gone")
    first.requests_in_flight.inc(2)
    second.requests_in_flight.inc(3)
    hub.of_model("cats", keeps_images=True).count_batch(3, 0.0)
    found = values(hub, first, second)
    assert found["petseg_photos_total", (("model", "cats"), ("outcome", "ok"))] == 3
    assert found["petseg_photos_total", (("model", "dogs"), ("outcome", "image-gone"))] == 1
    assert found["petseg_requests_in_flight", ()] == 5
    assert found["petseg_batch_size_sum", (("model", "cats"),)] == 3
    decode = [(("model", "cats"), ("stage", DECODE))]
    assert found["petseg_stage_seconds_count", decode[0]] == 3
    assert found["petseg_stage_seconds_sum", decode[0]] == pytest.approx(0.208)
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "petseg_stage_seconds_bucket" and set(labels) >= {("model", "cats"), ("stage", DECODE)}
    }
    assert (buckets["0.0025"], buckets["0.005"], buckets["0.1"], buckets["0.25"], buckets["+Inf"]) == (0, 2, 2, 3, 3)
    assert list(buckets.values()) == sorted(buckets.values())


def test_alone_it_is_the_registry_itself() -> None:
    own = Metrics()
    photo(own, "cats", 0.004)
    merged = generate_latest(Merged(own, {})).decode()  # type: ignore[arg-type]
    plain = generate_latest(own.registry).decode()
    kept = [line for line in plain.splitlines() if not line.startswith("process_")]
    assert [line for line in merged.splitlines() if not line.startswith("process_")] == kept


def test_a_front_tells_nothing_of_its_process() -> None:
    front = Metrics(of_service=False)
    photo(front, "cats", 0.004)
    names = {name for name, _ in series_of(front.registry)}
    assert "petseg_photos_total" in names
    assert {name for name in names if not name.startswith("petseg_")} == set()
    assert "petseg_build_info" not in names


def test_a_series_that_only_a_front_has_is_whole() -> None:
    hub, front = Metrics(), Metrics(of_service=False)
    facts = {"route": "/segment/{model}", "model": "cats", "output": "png", "status": 200, "problem": ""}
    front.count_request(**facts, seconds=0.3, stages=[])  # type: ignore[arg-type]
    found = values(hub, front)
    buckets = [
        (dict(labels)["le"], value)
        for (name, labels), value in found.items()
        if name == "petseg_request_seconds_bucket"
    ]
    assert [float(edge) for edge, _ in buckets] == [*SECONDS_BUCKETS, float("inf")]
    assert [value for _, value in buckets] == [float(edge >= 0.3) for edge in (*SECONDS_BUCKETS, float("inf"))]
