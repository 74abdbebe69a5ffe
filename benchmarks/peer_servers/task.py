"""The task every peer serves: an upload's bytes -> indexed PNG mask, with our own decoding, resizing and encoding.

The peers get them so that what differs is the serving (and the engine, where the peer runs plain PyTorch).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.checkpoint import load_checkpoint
from models.letterbox import Letterbox, decode_image, image_tensor
from service.app import create_app
from service.masks import encode_png
from service.predictor import Predictor
from service.settings import read_settings

CHECKPOINT = "BENCHMARK_CHECKPOINT"
"""Environment variable: path of the checkpoint."""
RUNNER = "BENCHMARK_RUNNER"
"""Environment variable: `fp32` and `bf16` are PyTorch, `engine` is our predictor under its PETSEG_* settings."""
THREADS = "BENCHMARK_THREADS"
"""Environment variable: torch's threads in each process; 0 leaves torch's choice."""
MAX_BATCH_SIZE = 8


class Task(Protocol):
    """Three steps, so that a framework may batch the middle one."""

    def prepare(self, upload: bytes) -> Any:
        """Decode and letterbox."""

    def predict(self, prepared: Sequence[Any]) -> list[Any]:
        """Scores of a batch."""

    def draw(self, prepared: Any, scores: Any) -> bytes:
        """The mask as PNG."""


class TorchTask:
    """PyTorch as its documentation would have it: eval, inference_mode, channels_last, autocast."""

    def __init__(self, checkpoint: Path, precision: str) -> None:
        self._model = load_checkpoint(checkpoint).model.eval().to(memory_format=torch.channels_last)
        self._is_bf16 = precision == "bf16"
        self._image_size = self._model.config.image_size

    def prepare(self, upload: bytes) -> tuple[Tensor, Letterbox]:
        """([3, S, S] float32 in [0, 1], how it was letterboxed)."""
        photo, original_size = decode_image(upload, at_least=self._image_size)
        letterbox = Letterbox(original_size, self._image_size)
        return image_tensor(letterbox.apply_image(photo)), letterbox

    def predict(self, prepared: Sequence[tuple[Tensor, Letterbox]]) -> list[Tensor]:
        """Logits [K, S, S] float32 of each."""
        images = torch.stack([image for image, _ in prepared]).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._is_bf16):
            return list(self._model(images, {}).float())

    def draw(self, prepared: tuple[Tensor, Letterbox], scores: Tensor) -> bytes:
        """The mask as PNG."""
        return encode_png(prepared[1].restore_mask(scores))


class EngineTask:
    """Our predictor with whatever engine and precision its settings choose, without our server."""

    def __init__(self, checkpoint: Path) -> None:
        app = create_app(read_settings(), [load_checkpoint(checkpoint)])
        self._predictor: Predictor = app.state.predictors[0]

    def prepare(self, upload: bytes) -> Any:
        """A prepared request of the predictor."""
        return self._predictor.prepare(upload, None, None)

    def predict(self, prepared: Sequence[Any]) -> list[Any]:
        """Predictions of the predictor."""
        return self._predictor.predict(list(prepared))

    def draw(self, prepared: Any, scores: Any) -> bytes:
        """The mask as PNG."""
        return encode_png(prepared.letterbox.restore_mask(scores.logits))


def load_task() -> Task:
    """The task that the environment describes."""
    threads = int(os.environ.get(THREADS, "0"))
    if threads:
        torch.set_num_threads(threads)
    checkpoint, runner = Path(os.environ[CHECKPOINT]), os.environ.get(RUNNER, "bf16")
    return EngineTask(checkpoint) if runner == "engine" else TorchTask(checkpoint, runner)


def answer(task: Task, upload: bytes) -> bytes:
    """One photo from bytes to PNG."""
    prepared = task.prepare(upload)
    return task.draw(prepared, task.predict([prepared])[0])
