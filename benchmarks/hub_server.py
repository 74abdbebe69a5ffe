"""Our server with an engine that only waits, and a front that neither speaks HTTP nor decodes: what is left is the hub.

`python -m benchmarks.hub_server` serves by PETSEG_* as ever; the front prints one line of JSON and the server ends.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import psutil
import torch
import uvloop
from torch import Tensor

from benchmarks.statistics import median
from models.base import Features, SegmentationModel
from models.checkpoint import Checkpoint
from models.engine import Engine, Rows, join_rows
from models.letterbox import Letterbox
from models.prompts import PromptTensors, TextPrompt
from service import cli
from service.front import Front
from service.front_pipeline import FrontPipeline, ReadPhoto
from service.hub import FrontSpec
from service.server import SWITCH_INTERVAL_S

MODEL, CALLERS, SECONDS, SPEED = "BENCHMARK_MODEL", "BENCHMARK_CALLERS", "BENCHMARK_SECONDS", "BENCHMARK_SPEED"
"""Variables: which model is asked, by how many callers, for how long, and photos a second that the engine can do."""

_BATCH_SIZE = 128
_CALL_S = 0.002
_UPLOAD_BYTES = 100_000
_ORIGINAL_SIZE = (375, 500)
_PATIENCE_S = 60.0


class WaitingEngine(Engine):
    """Takes a device's time and none of the CPU's."""

    best_batch_size = _BATCH_SIZE
    encoder_digest = "waits"

    def __init__(self, model: SegmentationModel, photos_per_s: float) -> None:
        super().__init__(model, torch.device("cpu"))
        self._photos_per_s = photos_per_s
        side = model.config.image_size
        self._logits = torch.zeros(_BATCH_SIZE, len(model.config.class_names), side, side)

    @property
    def name(self) -> str:
        """What it does."""
        return "waits"

    def encode(self, images: Rows) -> Features:
        """Collate as for a device, and wait as long as it would compute."""
        count = len(join_rows(images))
        time.sleep(_CALL_S + count / self._photos_per_s)
        return tuple(torch.zeros(count, 8, 14, 14) for _ in range(4))

    def decode_native(self, features: Features, prompt: PromptTensors) -> Tensor:
        """Logits that are there already."""
        return self._logits[: features[0].shape[0]]

    def example_run(self, batch_size: int) -> Callable[[], object]:
        """Nothing is set up on first use."""
        return lambda: None


class WaitingBuilder:
    """Stands in for an EngineBuilder."""

    passes_per_stream = 1

    def __init__(self, *_: object) -> None:
        self._photos_per_s = float(os.environ[SPEED])

    def build(self, checkpoint: Checkpoint) -> Engine:
        """An engine that waits."""
        return WaitingEngine(checkpoint.model, self._photos_per_s)

    def stand_in(self, _: Checkpoint) -> None:
        """Nothing takes its time."""


def drive(spec: FrontSpec) -> None:
    """What the front's process does: ask the hub as fast as it answers, measure, and end the server."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_drive(spec))
    os._exit(0)


async def _drive(spec: FrontSpec) -> None:
    front, hub = Front(spec), psutil.Process(os.getppid()).parent()  # between them stands the fork server
    assert hub is not None
    async with front.app.router.lifespan_context(front.app):
        front.say_serving()
        pipeline = front.service.pipelines[os.environ[MODEL]]
        waits_s: list[float] = []
        asking = [asyncio.ensure_future(_ask(pipeline, number, waits_s)) for number in range(int(os.environ[CALLERS]))]
        seconds = float(os.environ[SECONDS])
        await asyncio.sleep(0.5 * seconds)
        waits_s.clear()
        before, began_at = _cpu(hub), time.perf_counter()
        await asyncio.sleep(seconds)
        spent_s = time.perf_counter() - began_at
        used = [now - then for now, then in zip(_cpu(hub), before, strict=True)]
        count = len(waits_s)
        found = {
            "rate": count / spent_s,
            "p50_ms": 1000 * median(waits_s),
            "hub_ms": 1000 * used[0] / count,
            "loop_ms": 1000 * used[1] / count,
        }
        print(json.dumps(found), flush=True)
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        hub.send_signal(signal.SIGTERM)


async def _ask(pipeline: FrontPipeline, number: int, waits_s: list[float]) -> None:
    """One caller, whose photos are all new."""
    side, random = pipeline.facts.image_size, np.random.default_rng(number)
    planes = random.integers(0, 256, (3, side, side), dtype=np.uint8)
    letterbox, prompt = Letterbox(_ORIGINAL_SIZE, side), None
    if pipeline.facts.prompt_kind == "text":
        prompt = TextPrompt("a photo of a cat")
    upload, count = random.bytes(_UPLOAD_BYTES), 0
    while True:
        photo = ReadPhoto(f"{number}-{count}", upload, letterbox, prompt, planes)
        asked_at = time.perf_counter()
        await pipeline.submit(photo, time.monotonic() + _PATIENCE_S, waits=False)
        waits_s.append(time.perf_counter() - asked_at)
        count += 1


def _cpu(hub: psutil.Process) -> tuple[float, float]:
    """CPU seconds of the whole process, and of its event loop's thread."""
    times = hub.cpu_times()
    loop = next(each for each in hub.threads() if each.id == hub.pid)
    return times.user + times.system, loop.user_time + loop.system_time


def main() -> None:
    """Serve."""
    with (
        patch("service.app.EngineBuilder", WaitingBuilder),
        patch("service.predictor.planes_tensor", torch.from_numpy),  # as beside a GPU, which scales them itself
        patch("service.cli.run_front", drive),
    ):
        cli.app(["serve", "--port", "0"])


if __name__ == "__main__":
    main()
