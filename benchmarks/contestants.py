"""Who takes part in a comparison: our server under some settings, or a peer, and how each is started and asked."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from benchmarks.processes import ROOT
from benchmarks.requests import Asked
from benchmarks.study import INT8, NAME, int8_path
from models.openvino_graph import has_native_bf16
from service.settings import Settings, variable

_PEERS = "benchmarks.peer_servers"
_RAY = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""As Ray Serve's guide to performance would have it."""


@dataclass(frozen=True)
class Contestant:
    """One server under one configuration."""

    name: str
    summary: str
    precision: str
    """`fp32`, `bf16` or `int8`: what its masks may differ by, and whom it is compared with."""
    command: tuple[str, ...]
    """`{port}` stands for the port."""
    environment: dict[str, str]
    asked: Asked
    ready_path: str
    package: str = ""
    """The distribution it needs beside ours; empty for ours."""
    root: Path = field(default=ROOT)
    """Working tree whose code runs."""

    @property
    def is_ours(self) -> bool:
        """Whether it is our own server."""
        return self.asked.path.startswith("/segment/")


def ours(
    name: str,
    precision: str,
    checkpoints: Path,
    settings: Mapping[str, str] | None = None,
    *,
    model: str = NAME,
    body: str = "multipart",
    root: Path = ROOT,
) -> Contestant:
    """Our server with its defaults but for `settings` (PETSEG_* variables), asked for `model` of `checkpoints`."""
    given = dict(settings or {})
    shown = " ".join(f"{key}={value}" for key, value in given.items()) or "default settings"
    return Contestant(
        name,
        f"our server, {shown}" + (", raw body" if body == "raw" else ""),
        precision,
        (sys.executable, "-m", "service", "serve", "--port", "{port}"),
        {"PETSEG_CHECKPOINTS": str(checkpoints)} | given,
        Asked(f"/segment/{model}", body),
        "/readyz",
        root=root,
    )


SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "one stream": {"PETSEG_STREAMS": "1"},
    "no batches": {"PETSEG_MAX_BATCH_SIZE": "1"},
    "batches of 4": {"PETSEG_MAX_BATCH_SIZE": "4"},
    "batches of 8": {"PETSEG_MAX_BATCH_SIZE": "8"},
    "wait 5 ms for a batch": {"PETSEG_MAX_WAIT_S": "0.005"},
    "one image thread": {"PETSEG_IMAGE_THREADS": "1"},
    "two image processes": {"PETSEG_IMAGE_PROCESSES": "2"},
    "PyTorch": {"PETSEG_ENGINE": "torch"},
}
"""Our own settings, worth comparing with the defaults."""


def settings_variants(checkpoints: Path) -> list[Contestant]:
    """Our server once under each of `SETTINGS` that it knows."""
    known = {variable(name) for name in Settings.model_fields}
    return [
        ours(name, "default", checkpoints, given, body="raw")
        for name, given in SETTINGS.items()
        if given.keys() <= known
    ]


def float_precisions() -> list[str]:
    """The precisions of our settings that this CPU computes in, the fastest last: an imitated one compares nothing."""
    names = [name for name in get_args(Settings.model_fields["precision"].annotation) if name != "auto"]
    return names if has_native_bf16() else [name for name in names if name != "bf16"]


def our_variants(checkpoint: Path) -> list[Contestant]:
    """Our server once for each of `float_precisions`, in integers where they lie beside `checkpoint`, and once asked
    with raw bodies."""
    folder, model = checkpoint.parent, checkpoint.stem
    precisions = float_precisions()
    variants = [
        ours(f"petseg-{precision}", precision, folder, {"PETSEG_PRECISION": precision}, model=model)
        for precision in precisions
    ]
    if (int8 := int8_path(checkpoint)).is_file():
        variants.append(ours("petseg-int8", INT8, int8.parent, model=model))
    fast = precisions[-1]
    return [*variants, ours("petseg-raw", fast, folder, {"PETSEG_PRECISION": fast}, model=model, body="raw")]


def peers(python: Path, checkpoint: Path) -> list[Contestant]:
    """Every peer in the fastest of `float_precisions`, run by the interpreter of the peers' environment; some once
    more in fp32 where that is another."""
    fast = float_precisions()[-1]

    def peer(
        name: str, summary: str, package: str, words: tuple[str, ...], runner: str = fast, threads: int = 1
    ) -> Contestant:
        environment = {"BENCHMARK_CHECKPOINT": str(checkpoint), "BENCHMARK_RUNNER": runner}
        environment |= {"BENCHMARK_THREADS": str(threads), "BENTOML_DO_NOT_TRACK": "True"} | _RAY
        if threads:
            environment |= {"OMP_NUM_THREADS": str(threads)}
        is_our_engine = runner in ("engine", "pipeline")
        if is_our_engine:
            environment |= {"PETSEG_PRECISION": fast, "PETSEG_STREAMS": "1", "PETSEG_STREAM_THREADS": str(threads)}
        precision = fast if is_our_engine else runner
        health = {"ray": "/segment", "bentoml": "/readyz"}.get(package, "/health")
        command = (str(python), *words)
        return Contestant(name, summary, precision, command, environment, Asked("/segment"), health, package)

    cores = os.cpu_count() or 1
    factory = f"{_PEERS}.fastapi_server:create_app"
    uvicorn = ("-m", "uvicorn", "--factory", factory, "--port", "{port}", "--log-level", "warning")
    litserve = ("-m", f"{_PEERS}.litserve_server", "{port}")
    bento = ("-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", "{port}")
    workers = ("--workers", str(cores))
    everyone = [
        peer("fastapi-fp32", "FastAPI, blocking handler, PyTorch fp32", "fastapi", uvicorn, "fp32", threads=0),
        peer("fastapi", f"FastAPI, blocking handler, PyTorch {fast}", "fastapi", uvicorn, threads=0),
        peer("uvicorn-workers", f"the same, {cores} workers x 1 thread", "fastapi", (*uvicorn, *workers)),
        peer(
            "litserve-fp32",
            f"LitServe, {cores} workers x 1 thread, batching, PyTorch fp32",
            "litserve",
            litserve,
            "fp32",
        ),
        peer("litserve", f"LitServe, {cores} workers x 1 thread, batching, PyTorch {fast}", "litserve", litserve),
        peer("litserve-engine", "the same LitServe running our engine", "litserve", litserve, "engine"),
        peer("litserve-pipeline", "the same, also our decoding, resizing and PNG", "litserve", litserve, "pipeline"),
        peer(
            "ray",
            f"Ray Serve, {cores} replicas x 1 thread, @serve.batch",
            "ray",
            ("-m", f"{_PEERS}.ray_server", "{port}"),
        ),
        peer(
            "bentoml", f"BentoML, {cores} workers x 1 thread", "bentoml", (*bento, f"{_PEERS}.bentoml_server:Segmenter")
        ),
    ]
    return everyone if fast != "fp32" else [each for each in everyone if not each.name.endswith("-fp32")]
