"""The trained network that a stage of distillation learns from, run as fast as this machine can. Called by train.py."""

import copy
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from models.base import Features, SegmentationModel
from models.checkpoint import load_checkpoint
from models.engine import EngineError, Precision, example_images, takes_prompt
from models.openvino_graph import Graph, GraphOptions, convert, has_native_bf16, is_installed
from models.prompts import PromptTensors

logger = logging.getLogger("petseg.training")


def load_teacher(path: Path, device: torch.device) -> SegmentationModel:
    """A checkpoint's network on `device`, which learns no more.

    On a CPU its `features_and_logits` is compiled where that is possible, and gives the deepest level alone: in torch,
    the teacher took half of the time of a small student's step.
    """
    model = load_checkpoint(path).model.eval().requires_grad_(False)
    if device.type == "cpu" and is_installed() and not takes_prompt(model):
        try:
            return _compiled(model, path.stem)
        except EngineError as error:
            logger.warning("%s", error)
    return model.to(device).to(memory_format=torch.channels_last)


def _compiled(model: SegmentationModel, name: str) -> SegmentationModel:
    graph = convert(_Lesson(model), lambda rows: (example_images(model, rows),), f"{name}: teacher")
    precision = Precision.BF16 if has_native_bf16() else Precision.FP32
    run = Graph(graph, GraphOptions(precision, streams=1, threads=torch.get_num_threads()))

    def features_and_logits(images: Tensor, prompt: PromptTensors) -> tuple[Features, Tensor]:
        deepest, logits = run(images)
        return (deepest,), logits

    teacher = copy.copy(model)
    teacher.features_and_logits = features_and_logits  # type: ignore[method-assign]
    return teacher


class _Lesson(nn.Module):
    """What a student reads of its teacher: images [B, 3, S, S] -> the deepest features and the logits."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.model.features_and_logits(images, {})
        return features[-1], logits
