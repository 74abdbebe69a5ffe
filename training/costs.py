"""What running a checkpoint takes: parameters, bytes, milliseconds on this machine. Called by `comparison.py`."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from models.backbone_file import find_backbone
from models.base import SegmentationModel
from models.letterbox import Letterbox
from models.prompts import PointPrompt, PromptKind

_WARM_UP = 3


@dataclass(frozen=True)
class Costs:
    """What running a model takes."""

    own_parameters: int
    parameters: int
    """With the frozen backbone."""
    file_bytes: int
    backbone_bytes: int | None
    """Size of the shared backbone's file; None without one that ships."""
    latency_ms: float
    """Median of forward passes of one image, on the CPU."""
    next_prompt_ms: float | None
    """The same for another prompt about an image that is already encoded; None for models without prompts."""


def measure_costs(model: SegmentationModel, file_bytes: int, repeats: int = 30) -> Costs:
    """Count parameters and time `repeats` forward passes of one image with as many threads as torch is set to."""
    model = model.eval().to(memory_format=torch.channels_last)
    frozen = sum(p.numel() for part in model.frozen for p in model.get_submodule(part).parameters())
    parameters = sum(p.numel() for p in model.parameters())
    side = model.config.image_size
    image = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    click = PointPrompt(((side / 2, side / 2),), (1,)) if model.prompt_kind is PromptKind.POINTS else None
    prompt = {key: value[None] for key, value in model.prompt_tensors(click, Letterbox((side, side), side)).items()}
    with torch.inference_mode():
        features = model.encode(image)
        latency_ms = _median_ms(lambda: model(image, prompt), repeats)
        prompted = model.prompt_kind is not PromptKind.NONE
        next_prompt_ms = _median_ms(lambda: model.decode(features, prompt), repeats) if prompted else None
    return Costs(parameters - frozen, parameters, file_bytes, _backbone_bytes(model), latency_ms, next_prompt_ms)


def _median_ms(run: Callable[[], object], repeats: int) -> float:
    durations = []
    for number in range(repeats + _WARM_UP):
        begun = time.perf_counter()
        run()
        if number >= _WARM_UP:  # the first ones choose kernels and fill caches
            durations.append(1000 * (time.perf_counter() - begun))
    return median(durations)


def _backbone_bytes(model: SegmentationModel) -> int | None:
    file = model.config.model_dump().get("backbone", {}).get("file")
    return find_backbone(file).stat().st_size if file else None


def describe_timing() -> str:
    """On what the latencies were measured."""
    threads = torch.get_num_threads()
    return (
        f"Latency: median of forward passes of one image in float32, without decoding the photo, on {_processor()}, "
        f"{threads} thread{'s' * (threads > 1)} (of {os.cpu_count()} cores), torch {torch.__version__}."
    )


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    names = facts.read_text().splitlines() if facts.exists() else []
    named = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
