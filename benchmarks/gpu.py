"""On a GPU: how much of the raw forward pass reaches the clients, and which side is the limit."""

import math
import os
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.contestants import ours
from benchmarks.goals import Goal, at_least
from benchmarks.load import Load, LoadResult, run_load
from benchmarks.processes import Server, cpu_seconds, loop_seconds, run_server
from benchmarks.raw import DEVICE, FORWARD, PIPELINE, RawResult, RawRun, raw_grid
from benchmarks.serve import ask_for
from benchmarks.statistics import median
from service.stages import STAGES

_SAMPLE_S = 0.1
_STARTS_S = 1.0
"""For a load generator to start."""
_PIPELINE_BATCH = 32
_NUMBERS_EACH = 1 << 40
"""Requests that a load generator may number: no two send the same photo, which the server would know."""


@dataclass(frozen=True)
class GpuRow:
    """One load, and what was busy under it."""

    model: str
    fronts: int
    """Processes before the one that runs the network; 0 for that one alone, with processes for photos."""
    clients: int
    rate: float
    """Photos a second that went through the network while the first load generator's clock ran."""
    p50_ms: float
    p99_ms: float
    """The worst of the load generators'."""
    errors: int
    batch: float
    """Photos of a forward pass in the mean."""
    gpu_busy: float
    """Share of the time in which the GPU computed, by its driver; NaN where that does not tell."""
    cores: float
    """CPU seconds a second of the server, all its processes together."""
    hub: float
    """The same of the process that runs the network."""
    loop: float
    """The same of that process's event loop."""
    host: float
    """Share of the machine's CPUs that was busy, the load generators' part among it."""
    stage_ms: dict[str, float]
    """Milliseconds of a photo in each stage, waits for the interpreter among them."""


@dataclass(frozen=True)
class GpuPlan:
    """What to measure of one checkpoint."""

    checkpoint: Path
    photos: Path
    seconds: float
    warm_up_s: float
    clients: Sequence[int] = (1, 32, 128, 384, 768)
    fronts: Sequence[int | None] = (None, 0)
    """None is the number that the server takes by itself; all but the first are loaded with the most clients alone."""
    generators: int = 1
    """Processes that share the clients."""


def raw_runs(
    plan: GpuPlan, batch_sizes: Sequence[int], streams: Sequence[int], pipeline_streams: Sequence[int]
) -> list[RawRun]:
    """The forward pass from device memory and from the host's, and bytes to PNG in one process."""
    forward = raw_grid(
        plan.checkpoint,
        plan.photos,
        seconds=plan.seconds / 4,
        tasks=(DEVICE, FORWARD),
        batch_sizes=batch_sizes,
        streams=streams,
        chosen=("auto",),
    )
    return forward + raw_grid(
        plan.checkpoint,
        plan.photos,
        seconds=plan.seconds / 2,
        tasks=(PIPELINE,),
        batch_sizes=(min(_PIPELINE_BATCH, batch_sizes[-1]),),
        streams=pipeline_streams,
        chosen=("auto",),
    )


def measure_gpu(plan: GpuPlan) -> Iterator[GpuRow]:
    """Put each load on the server."""
    for fronts in plan.fronts:
        # With room for all clients.
        settings = {"PETSEG_QUEUE_SIZE": "1024", "PETSEG_MAX_CLIENT_REQUESTS": "1024"}
        if fronts is not None:
            settings["PETSEG_FRONTS"] = str(fronts)
        contestant = ours("petseg", "auto", plan.checkpoint.parent, settings, model=plan.checkpoint.stem)
        with run_server(contestant.command, contestant.environment, contestant.ready_path) as server:
            for clients in plan.clients if fronts == plan.fronts[0] else plan.clients[-1:]:
                yield _put(server, plan, clients)


def _put(server: Server, plan: GpuPlan, clients: int) -> GpuRow:
    asked = ask_for(plan.checkpoint.parent, plan.checkpoint.stem)
    generators = min(plan.generators, clients)
    looks: list[_Look] = []
    busy: list[float] = []
    lock = threading.Lock()

    def look() -> None:
        with lock:
            looks.append(_Look.take(server))

    def load(number: int) -> LoadResult:
        own = clients // generators + (number < clients % generators)
        timed = Load(server.port, plan.photos, asked, plan.seconds, plan.warm_up_s, own, first=number * _NUMBERS_EACH)
        if number == 0:
            return run_load(timed, on_clock=look)
        # Begun and ended outside of the first one's clock, by which the server is read.
        return run_load(replace(timed, warm_up_s=0.0, seconds=plan.warm_up_s + 1.5 * plan.seconds + _STARTS_S))

    with _gpu_watched(busy), ThreadPoolExecutor(generators) as pool:
        others = [pool.submit(load, number) for number in range(1, generators)]
        time.sleep(_STARTS_S if others else 0.0)
        first = load(0)
        results = [first, *(other.result() for other in others)]
    before, after = looks[0], looks[-1]
    seconds = after.taken_at - before.taken_at
    photos = after.sums["photos"] - before.sums["photos"]
    passes = after.sums["passes"] - before.sums["passes"]
    return GpuRow(
        model=plan.checkpoint.stem,
        fronts=after.fronts,
        clients=clients,
        rate=photos / seconds,
        p50_ms=median(result.good.p50_ms for result in results),
        p99_ms=max(result.good.p99_ms for result in results),
        errors=sum(result.errors for result in results),
        batch=photos / passes if passes else math.nan,
        gpu_busy=sum(busy) / len(busy) if busy else math.nan,
        cores=(after.cpu_s - before.cpu_s) / seconds,
        hub=(after.hub_s - before.hub_s) / seconds,
        loop=(after.loop_s - before.loop_s) / seconds,
        host=(after.host_s - before.host_s) / seconds / (os.cpu_count() or 1),
        stage_ms={
            stage: 1000 * (after.sums[stage] - before.sums[stage]) / photos if photos else math.nan for stage in STAGES
        },
    )


@dataclass(frozen=True)
class _Look:
    """What the server has used and counted since it began."""

    taken_at: float
    fronts: int
    cpu_s: float
    hub_s: float
    loop_s: float
    host_s: float
    """All that the machine's CPUs have done."""
    sums: dict[str, float]
    """Seconds by stage, `photos`, `passes` and `fronts`."""

    @classmethod
    def take(cls, server: Server) -> "_Look":
        sums = dict.fromkeys((*STAGES, "photos", "passes", "fronts"), 0.0) | _read_sums(server.url)
        hub = psutil.Process(server.process.pid)
        spent = cpu_seconds(hub.pid)
        host = psutil.cpu_times()
        return cls(
            taken_at=time.perf_counter(),
            fronts=int(sums["fronts"]),
            cpu_s=sum(seconds for _, seconds in spent),
            hub_s=next(seconds for process, seconds in spent if process.pid == hub.pid),
            loop_s=loop_seconds(hub.pid),
            host_s=sum(host) - host.idle - getattr(host, "iowait", 0.0),
            sums=sums,
        )


def _read_sums(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found: dict[str, float] = {}
    names = {"petseg_batch_size_sum": "photos", "petseg_batch_size_count": "passes", "petseg_fronts": "fronts"}
    for sample in (sample for each in families for sample in each.samples):
        name = sample.labels["stage"] if sample.name == "petseg_stage_seconds_sum" else names.get(sample.name)
        if name is not None:
            found[name] = found.get(name, 0.0) + sample.value
    return found


@contextmanager
def _gpu_watched(busy: list[float]) -> Iterator[None]:
    """Append the GPU's busy share now and then, while load is on it."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_SAMPLE_S):
            try:
                share = torch.cuda.utilization() / 100
            except (ModuleNotFoundError, RuntimeError, AssertionError):  # no nvidia-ml-py, or no GPU
                return
            busy.append(share)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def best_forward(results: Sequence[RawResult], model: str) -> RawResult:
    """The fastest forward pass of `model`, from wherever its photos came."""
    return max((each for each in results if each.model == model and each.task != PIPELINE), key=lambda each: each.rate)


def judge_gpu(raw: Sequence[RawResult], rows: Sequence[GpuRow]) -> list[Goal]:
    """The goal that a GPU decides, for each model: of its raw pass, or of the host's CPUs where these are the limit."""
    goals = []
    for model in dict.fromkeys(row.model for row in rows):
        best = max((row for row in rows if row.model == model), key=lambda row: row.rate)
        share = best.rate / best_forward(raw, model).rate
        if share >= best.host:
            name = f"{model}: photos a second over HTTP by the raw forward pass's at its best batch size"
        else:
            name = f"{model}: share of the machine's CPUs that is busy, which let {share:.2f} of the raw pass through"
        goals.append(at_least(name, 0.9, max(share, best.host)))
    return goals
