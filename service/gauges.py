"""What is looked up only when Prometheus asks: levels of queues, cache and device memory, and which weights are served.

| name | labels | tells |
|---|---|---|
| petseg_ready | | 1 while /readyz answers 200 |
| petseg_photos_in_flight | model | photos accepted and not yet answered |
| petseg_photos_queued | model | of these, waiting for the device |
| petseg_photos_limit | model | photos in flight at which more are refused |
| petseg_batch_limit | model | photos of one forward pass at most; lower for a while after memory ran out |
| petseg_running_batch_seconds | model | age of the oldest forward pass under way, 0 without one |
| petseg_cache_bytes, petseg_cache_limit_bytes | | memory of held features, and what it may be |
| petseg_cache_photos | | photos held, with their features or without those of a network that is gone |
| petseg_device_memory_bytes | device, kind | GPU only: allocated by tensors, reserved by this process, total |
| petseg_checkpoint_info | model, architecture, checkpoint | always 1; sha256 of the file that is served |

Nothing here asks the device itself: a hung GPU must not hang the figures that tell of it.
"""

from collections.abc import Iterable

import torch
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from service.device_pipeline import DevicePipeline
from service.pipeline import Service


class ServiceCollector(Collector):
    """Reads a running service's levels."""

    def __init__(self, service: Service[DevicePipeline]) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """All levels now."""
        pipelines = list(self._service.pipelines.values())
        yield gauge("petseg_ready", "1 while new work is taken", self._service.is_ready)
        yield from levels(pipelines)
        yield from caches(pipelines)
        yield device_memory()
        yield checkpoints(pipelines)


def levels(pipelines: list[DevicePipeline]) -> Iterable[Metric]:
    """What each model has to do, and how much it may have."""
    in_flight = by_model("petseg_photos_in_flight", "Photos accepted and not yet answered")
    queued = by_model("petseg_photos_queued", "Photos waiting for the device")
    limit = by_model("petseg_photos_limit", "Photos in flight at which more are refused")
    batch = by_model("petseg_batch_limit", "Photos of one forward pass at most")
    running = by_model("petseg_running_batch_seconds", "Age of the oldest forward pass under way")
    for pipeline in pipelines:
        in_flight.add_metric([pipeline.name], pipeline.in_flight)
        queued.add_metric([pipeline.name], len(pipeline.batcher))
        limit.add_metric([pipeline.name], pipeline.batcher.queue_size)
        batch.add_metric([pipeline.name], pipeline.batcher.max_batch_size)
        running.add_metric([pipeline.name], pipeline.passes.running_s)
    return in_flight, queued, limit, batch, running


def caches(pipelines: list[DevicePipeline]) -> Iterable[Metric]:
    """What is held of photos; models that share a cache count it once."""
    distinct = {id(pipeline.predictor.cache): pipeline.predictor.cache for pipeline in pipelines}.values()
    yield gauge("petseg_cache_bytes", "Memory of held features", sum(cache.bytes for cache in distinct))
    yield gauge("petseg_cache_limit_bytes", "What it may be", sum(cache.max_bytes for cache in distinct))
    yield gauge("petseg_cache_photos", "Photos held", sum(len(cache) for cache in distinct))


def device_memory() -> Metric:
    """Memory of each GPU, by the allocator's own books; on the CPU process_resident_memory_bytes tells."""
    memory = GaugeMetricFamily("petseg_device_memory_bytes", "GPU memory", labels=["device", "kind"])
    is_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    for index in range(torch.cuda.device_count() if is_in_use else 0):
        device = f"cuda:{index}"
        memory.add_metric([device, "allocated"], torch.cuda.memory_allocated(index))
        memory.add_metric([device, "reserved"], torch.cuda.memory_reserved(index))
        memory.add_metric([device, "total"], torch.cuda.get_device_properties(index).total_memory)
    return memory


def checkpoints(pipelines: list[DevicePipeline]) -> Metric:
    """Which file each model was loaded from."""
    info = InfoMetricFamily("petseg_checkpoint", "The file that is served", labels=["model"])
    for pipeline in pipelines:
        checkpoint = pipeline.predictor.checkpoint
        facts = {"architecture": checkpoint.card.architecture, "checkpoint": checkpoint.digest}
        info.add_metric([pipeline.name], facts)
    return info


def gauge(name: str, help_text: str, value: float) -> Metric:
    """One figure without labels."""
    return GaugeMetricFamily(name, help_text, value=value)


def by_model(name: str, help_text: str) -> GaugeMetricFamily:
    """A family with one figure for each model."""
    return GaugeMetricFamily(name, help_text, labels=["model"])
