"""What Prometheus reads at /metrics and the code counts; what is only looked up when it asks stands in `gauges`.

| name | labels | counts |
|---|---|---|
| petseg_requests_total | route, model, output, status | HTTP requests answered; status 499: the client left |
| petseg_request_seconds | route, model | histogram: first byte in to last byte out |
| petseg_requests_in_flight | | HTTP requests being answered now |
| petseg_fronts | | processes that answer callers before this one; 0 where it does so itself |
| petseg_problems_total | model, problem | answers that were RFC 9457 problems, by their type's last word |
| petseg_photos_total | model, outcome | photos, also those of batches; ok, cancelled or the problem's word |
| petseg_stage_seconds | model, stage | histogram, for each photo: receive, decode, queue, inference, draw |
| petseg_encoder_seconds | model | histogram, for each batch of which a photo was new: the network's encoder alone |
| petseg_batch_size | model | histogram: photos of one forward pass |
| petseg_batch_failures_total | model, reason | forward passes that failed: out_of_memory, device_lost, error |
| petseg_stalls_total | model | forward passes that ran longer than the watchdog allows |
| petseg_cache_lookups_total | model, result | hit: the photo's features were held; miss: they were not |
| petseg_reloads_total | model, result | checkpoints that changed on disk: loaded, failed, removed |
| petseg_build_info | version, python, torch | always 1 |
| process_* | | CPU seconds, resident memory, file descriptors, start time |

Each server counts for itself, its fronts added up (`figures`), and is a target of its own; replicas are added up in the
query. The stages
`decode` and `queue` of a photo that got no answer count too: an overload must show in the queue time that autoscalers
read. Histograms have the same buckets everywhere, so that they can be added and compared.
"""

import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client import disable_created_metrics as leave_out_created_series

from service.stages import RECEIVE, STAGES, Stage, sum_seconds

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)

OK, CANCELLED = "ok", "cancelled"
"""Outcomes of a photo beside the problems' slugs."""


class Metrics:
    """The figures of one process, in a registry of their own."""

    def __init__(self, *, of_service: bool = True) -> None:
        """of_service: whether it tells of the process and the build too, not only of what goes through it."""
        leave_out_created_series()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        if of_service:
            ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "HTTP requests answered", "route", "model", "output", "status")
        self.request_seconds = self._seconds("request", "First byte in to last byte out", "route", "model")
        self.requests_in_flight = Gauge(
            "petseg_requests_in_flight", "HTTP requests being answered now", registry=self.registry
        )
        self.fronts = Gauge("petseg_fronts", "Processes that answer callers before this one", registry=self.registry)
        self.problems = self._counter("problems", "Answers that were problems", "model", "problem")
        self.photos = self._counter("photos", "Photos by what became of them", "model", "outcome")
        self.stage_seconds = self._seconds("stage", "One photo's time in one stage", "model", "stage")
        self.encoder_seconds = self._seconds("encoder", "Encoder's time in one batch", "model")
        self.batch_size = Histogram(
            "petseg_batch_size", "Photos of one forward pass", ["model"], buckets=BATCH_BUCKETS, registry=self.registry
        )
        self.batch_failures = self._counter("batch_failures", "Forward passes that failed", "model", "reason")
        self.stalls = self._counter("stalls", "Forward passes that ran too long", "model")
        self.cache_lookups = self._counter("cache_lookups", "Photos whose features were held or not", "model", "result")
        self.reloads = self._counter("reloads", "Checkpoints that changed on disk", "model", "result")
        # Each look-up of labels costs as much as the counting; there are no more of them than series.
        self._requests_of = cache(self.requests.labels)
        self._request_seconds_of = cache(self.request_seconds.labels)
        self._stage_seconds_of = cache(self.stage_seconds.labels)
        if not of_service:
            return
        build = {"version": version("petseg"), "python": platform.python_version(), "torch": torch.__version__}
        Info("petseg_build", "What runs here", registry=self.registry).info(build)

    def count_request(
        self, *, route: str, model: str, output: str, status: int, problem: str, seconds: float, stages: Iterable[Stage]
    ) -> None:
        """Count one HTTP request that is over; empty words stand for what it never came to say."""
        self._requests_of(route, model, output, status).inc()
        self._request_seconds_of(route, model).observe(seconds)
        if problem:
            self.problems.labels(model, problem).inc()
        if model:
            for stage in stages:
                if stage.name == RECEIVE:
                    self._stage_seconds_of(model, RECEIVE).observe(stage.ended_at - stage.started_at)

    def of_model(self, model: str, keeps_images: bool) -> "ModelMetrics":
        """The figures of one model."""
        return ModelMetrics(self, model, keeps_images)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"petseg_{name}_total", help_text, labels, registry=self.registry)

    def _seconds(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(f"petseg_{name}_seconds", help_text, labels, buckets=SECONDS_BUCKETS, registry=self.registry)


class ModelMetrics:
    """One model's figures, looked up once: the way of a photo touches no label. All begin at 0, as rates need it."""

    def __init__(self, metrics: Metrics, model: str, keeps_images: bool) -> None:
        self._photos = metrics.photos
        self._model = model
        self._ok = metrics.photos.labels(model, OK)
        self._stages = {stage: metrics.stage_seconds.labels(model, stage) for stage in STAGES}
        self._encoder = metrics.encoder_seconds.labels(model)
        self._batch_size = metrics.batch_size.labels(model)
        self._failures = metrics.batch_failures
        self._lookups = {
            was_held: metrics.cache_lookups.labels(model, "hit" if was_held else "miss")
            for was_held in ((True, False) if keeps_images else ())
        }
        self.stalls = metrics.stalls.labels(model)

    def count_photo(self, outcome: str, stages: Iterable[Stage]) -> None:
        """Count one photo that is over: `ok`, `cancelled` or the slug of its problem."""
        (self._ok if outcome == OK else self._photos.labels(self._model, outcome)).inc()
        for name, seconds in sum_seconds(stages).items():
            self._stages[name].observe(seconds)

    def count_lookup(self, was_held: bool) -> None:
        """Count one look into the cache of features; nothing for models that keep none."""
        if was_held in self._lookups:
            self._lookups[was_held].inc()

    def count_batch(self, size: int, encode_s: float) -> None:
        """Count one forward pass; encode_s: 0 where no photo was new."""
        self._batch_size.observe(size)
        if encode_s > 0:
            self._encoder.observe(encode_s)

    def count_failure(self, reason: str) -> None:
        """Count one forward pass that failed."""
        self._failures.labels(self._model, reason).inc()
