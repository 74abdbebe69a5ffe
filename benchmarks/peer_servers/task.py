"""The task every peer serves: an upload's bytes -> indexed PNG mask.

Written as the peers' documentation and that of the libraries would have it: Pillow opens, resizes and writes, torch
computes. Our own engine, and then our own code around it, take its place one after the other (`BENCHMARK_RUNNER`), so
that what each of them brings stands apart from what the serving brings.
"""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, ImageOps, ImageStat
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from models.checkpoint import Checkpoint, load_checkpoint
from models.letterbox import Letterbox

CHECKPOINT = "BENCHMARK_CHECKPOINT"
"""Environment variable: path of the checkpoint."""
RUNNER = "BENCHMARK_RUNNER"
"""Environment variable: `fp32` and `bf16` are PyTorch; `engine` is our engine under its PETSEG_* settings, `pipeline`
our engine and our decoding, resizing and PNG."""
THREADS = "BENCHMARK_THREADS"
"""Environment variable: torch's threads in each process; 0 leaves torch's choice."""
MAX_BATCH_SIZE = 8

_PALETTE = bytes((0, 0, 0, 230, 159, 0, 86, 180, 233))
"""Black ground, cats, dogs."""

Network = Callable[[Tensor], Tensor]
"""Images [B, 3, S, S] float32 in [0, 1] -> logits [B, K, S, S] float32."""


class Task(Protocol):
    """Three steps, so that a framework may batch the middle one."""

    def prepare(self, upload: bytes) -> Any:
        """Decode and letterbox."""

    def predict(self, prepared: Sequence[Any]) -> list[Any]:
        """Scores of a batch."""

    def draw(self, prepared: Any, scores: Any) -> bytes:
        """The mask as PNG."""


class LibraryTask:
    """Some network between Pillow and Pillow."""

    def __init__(self, network: Network, image_size: int) -> None:
        self._network = network
        self._image_size = image_size

    def prepare(self, upload: bytes) -> tuple[Tensor, Letterbox]:
        """([3, S, S] float32 in [0, 1], how it was letterboxed)."""
        photo = ImageOps.exif_transpose(Image.open(io.BytesIO(upload))).convert("RGB")
        letterbox = Letterbox((photo.height, photo.width), self._image_size)
        (height, width), (top, left) = letterbox.content_size, letterbox.offset
        content = photo.resize((width, height), Image.Resampling.BILINEAR)
        red, green, blue = (round(mean) for mean in ImageStat.Stat(content).mean)
        square = Image.new("RGB", (self._image_size, self._image_size), (red, green, blue))
        square.paste(content, (left, top))
        return transforms.to_dtype(transforms.pil_to_tensor(square), torch.float32, scale=True), letterbox

    def predict(self, prepared: Sequence[tuple[Tensor, Letterbox]]) -> list[Tensor]:
        """Logits [K, S, S] float32 of each."""
        with torch.inference_mode():
            return list(self._network(torch.stack([image for image, _ in prepared])))

    def draw(self, prepared: tuple[Tensor, Letterbox], scores: Tensor) -> bytes:
        """The mask as PNG."""
        mask = prepared[1].restore_logits(scores).max(0).indices.to(torch.uint8)  # argmax takes 25 times as long
        image, buffer = Image.fromarray(mask.numpy()), io.BytesIO()
        image.putpalette(_PALETTE)
        image.save(buffer, "PNG")
        return buffer.getvalue()


class PipelineTask:
    """Our predictor and our PNG, without our server."""

    def __init__(self, predictor: Any) -> None:
        from service.masks import encode_png

        self._predictor = predictor
        self._encode = encode_png

    def prepare(self, upload: bytes) -> Any:
        """A prepared request of the predictor."""
        return self._predictor.prepare(upload, None, None)

    def predict(self, prepared: Sequence[Any]) -> list[Any]:
        """Predictions of the predictor."""
        predictions: list[Any] = self._predictor.predict(list(prepared))
        return predictions

    def draw(self, prepared: Any, scores: Any) -> bytes:
        """The mask as PNG."""
        png: bytes = self._encode(prepared.letterbox.restore_mask(scores.logits))
        return png


def torch_network(checkpoint: Checkpoint, *, is_bf16: bool) -> Network:
    """PyTorch as its documentation would have it: eval, channels_last, autocast."""
    model = checkpoint.model.eval().to(memory_format=torch.channels_last)

    def run(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            logits: Tensor = model(images.contiguous(memory_format=torch.channels_last), {})
            return logits.float()

    return run


def engine_network(predictor: Any) -> Network:
    """Our engine."""
    engine = predictor.engine
    return lambda images: engine.decode(engine.encode(images), {})


def load_task() -> Task:
    """The task that the environment describes."""
    threads = int(os.environ.get(THREADS, "0"))
    if threads:
        torch.set_num_threads(threads)
    checkpoint, runner = load_checkpoint(Path(os.environ[CHECKPOINT])), os.environ.get(RUNNER, "bf16")
    image_size = checkpoint.model.config.image_size
    if runner not in ("engine", "pipeline"):
        return LibraryTask(torch_network(checkpoint, is_bf16=runner == "bf16"), image_size)
    from service.app import create_app  # what runs PyTorch alone must not carry our service along
    from service.settings import read_settings

    predictor = create_app(read_settings(), [checkpoint]).state.predictors[0]
    return PipelineTask(predictor) if runner == "pipeline" else LibraryTask(engine_network(predictor), image_size)


def answer(task: Task, upload: bytes) -> bytes:
    """One photo from bytes to PNG."""
    prepared = task.prepare(upload)
    return task.draw(prepared, task.predict([prepared])[0])
