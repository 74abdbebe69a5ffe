"""A checkpoint as ONNX graphs, for runtimes without torch. Called by `petseg export`; needs the extra `onnx`.

An image-only model is one graph, a prompted one an encoder and a decoder, so that many prompts cost one encoding:

    <name>.onnx            images -> logits
    <name>-encoder.onnx    images -> feature0, feature1, ...
    <name>-decoder.onnx    feature0, feature1, ..., the prompt's tensors -> logits

`images` are [B, 3, S, S] float32 RGB in [0, 1], letterboxed as `letterbox.py` does; what the network normalises, the
graph normalises. Any number of rows. Each file's metadata holds the model card, so it says everything itself.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from models.base import SegmentationModel
from models.checkpoint import CARD_KEY, Checkpoint
from models.engine import DecodeGraph, EncodeGraph, example_images, takes_prompt
from models.letterbox import Letterbox
from models.prompts import PointPrompt, Prompt, PromptKind, PromptTensors, TextPrompt

DIGEST_KEY = "checkpoint_digest"
PART_KEY = "part"
_TRACED_ROWS = 2
_CHECKED_ROWS = 3
"""Another number than was traced: a graph that took the batch for a constant fails its check."""
_TOLERANCE = 1e-3
"""Largest difference from torch, as a share of the largest output."""


class ExportError(ValueError):
    """The export cannot be made here, or does not give what torch gives; says what was got, wanted, and the fix."""


@dataclass(frozen=True)
class Exported:
    """One graph that was written and found equal."""

    path: Path
    part: str
    """"image", "encoder" or "decoder"."""
    largest_difference: float
    """From torch's outputs, as a share of the largest."""


def export_onnx(checkpoint: Checkpoint, folder: Path) -> list[Exported]:
    """Write the graphs of `checkpoint` into `folder` and compare each with torch; returns them.

    The network must be on the CPU, as `load_checkpoint` leaves it. Raises ExportError.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ExportError(f"got no {' and '.join(missing)}, which the export needs; pip install 'petseg[onnx]'")
    model = checkpoint.model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    encode = EncodeGraph(model, enlarges=True)

    def images(rows: int) -> tuple[Tensor, ...]:
        return (example_images(model, rows),)

    if not takes_prompt(model):
        return [
            _Graph(checkpoint, "image", encode, images, ("images",), ("logits",)).write(
                folder / f"{checkpoint.name}.onnx"
            )
        ]

    def features_and_prompt(rows: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (*encode(*images(rows)), *_example_prompts(model, rows).values())

    prompt = tuple(_example_prompts(model, 1))
    levels = tuple(f"feature{level}" for level in range(len(features_and_prompt(1)) - len(prompt)))
    decode = DecodeGraph(model, len(levels), prompt, enlarges=True)
    encoder = _Graph(checkpoint, "encoder", encode, images, ("images",), levels)
    decoder = _Graph(checkpoint, "decoder", decode, features_and_prompt, (*levels, *prompt), ("logits",))
    return [each.write(folder / f"{checkpoint.name}-{each.part}.onnx") for each in (encoder, decoder)]


@dataclass(frozen=True)
class _Graph:
    """One graph to be written."""

    checkpoint: Checkpoint
    part: str
    module: nn.Module
    example: Callable[[int], tuple[Tensor, ...]]
    """The module's arguments for so many rows."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def write(self, path: Path) -> Exported:
        """Convert, describe, write and check."""
        try:
            program = self._convert()
        except Exception as error:  # the exporter raises many kinds; all mean the same here
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExportError(f"{path.name}: got a network that does not convert to ONNX ({reason})") from error
        card = self.checkpoint.card.model_dump_json()
        program.model.metadata_props.update({CARD_KEY: card, DIGEST_KEY: self.checkpoint.digest, PART_KEY: self.part})
        program.save(path, external_data=False)
        return Exported(path, self.part, self._check(path))

    def _convert(self) -> Any:
        arguments = self.example(_TRACED_ROWS)
        rows = {0: Dim("batch", min=1, max=1 << 16)}
        # The arguments of `*tensors` are one tuple to the exporter.
        shapes: tuple[Any, ...] = (rows,) if self.part != "decoder" else (tuple(rows for _ in arguments),)
        with torch.no_grad(), warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
            warnings.simplefilter("ignore")  # of the exporter's own retiring parts
            # Traced here: torch.onnx would try again with the batch as a constant where it cannot be dynamic.
            traced = torch.export.export(self.module.eval(), arguments, dynamic_shapes=shapes, strict=False)
            return torch.onnx.export(
                traced, dynamo=True, input_names=self.input_names, output_names=self.output_names, verbose=False
            )

    def _check(self, path: Path) -> float:
        """The largest difference from torch; ExportError where it is not rounding."""
        import onnxruntime

        arguments = self.example(_CHECKED_ROWS)
        with torch.no_grad():
            outputs = self.module(*arguments)
        wanted = [each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,))]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feeds = {name: each.numpy() for name, each in zip(self.input_names, arguments, strict=True)}
        found = session.run(self.output_names, feeds)
        largest = 0.0
        for name, got, expected in zip(self.output_names, found, wanted, strict=True):
            scale = max(float(np.abs(expected).max()), _TOLERANCE)
            difference = float(np.abs(got - expected).max()) / scale if got.shape == expected.shape else float("inf")
            if not difference <= _TOLERANCE:
                raise ExportError(
                    f"{path.name}: got {name} {difference:.2g} of its largest value away from torch's, "
                    f"wanted at most {_TOLERANCE}"
                )
            largest = max(largest, difference)
        return largest


def _example_prompts(model: SegmentationModel, rows: int) -> PromptTensors:
    """Prompts of the model's kind; of a text model the first row has none, so that it picks its own."""
    side = model.config.image_size
    given: Prompt = TextPrompt("a photo of a dog")
    if model.prompt_kind is PromptKind.POINTS:
        given = PointPrompt(((side / 3, side / 2), (side / 8, side / 8)), (1, 0))
    prompts = [given] * rows
    if not model.prompt_required:
        prompts[0] = None
    tensors = [model.prompt_tensors(prompt, Letterbox((side, side), side)) for prompt in prompts]
    return {name: torch.stack([each[name] for each in tensors]) for name in tensors[0]}


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Within this block these loggers say only errors."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
