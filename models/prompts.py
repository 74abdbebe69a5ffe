"""What a user may point out besides the image, and its fixed-shape tensor form.

A prompt becomes a dict of tensors whose shapes never vary, so `default_collate` batches every model alike.
Called by `base.SegmentationModel.prompt_tensors`, the training sampler and the service routes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

MAX_POINTS = 64
"""Clicks one request may carry; every click tensor is padded to this length."""

PADDING_LABEL = -1

PromptTensors = dict[str, Tensor]


class PromptKind(StrEnum):
    """What a model takes besides the image."""

    NONE = "none"
    TEXT = "text"
    POINTS = "points"


@dataclass(frozen=True)
class TextPrompt:
    """The user's own words, for example "a photo of a Siamese cat"."""

    text: str


@dataclass(frozen=True)
class PointPrompt:
    """Clicks in (x, y) pixels of the upright upload, origin top left; labels 1 object, 0 background."""

    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.points) != len(self.labels):
            raise ValueError(
                f"got {len(self.points)} points and {len(self.labels)} labels; give one label (1 or 0) per point"
            )
        if not 1 <= len(self.points) <= MAX_POINTS:
            raise ValueError(f"got {len(self.points)} points; give 1 to {MAX_POINTS}")
        if wrong := set(self.labels) - {0, 1}:
            raise ValueError(f"got point labels {sorted(wrong)}; a label is 1 (object) or 0 (background)")


Prompt = TextPrompt | PointPrompt | None


def prompt_kind(prompt: Prompt) -> PromptKind:
    """The kind of model that `prompt` is meant for; None is NONE."""
    if isinstance(prompt, TextPrompt):
        return PromptKind.TEXT
    return PromptKind.POINTS if isinstance(prompt, PointPrompt) else PromptKind.NONE


def example_prompt(kind: PromptKind, image_size: int) -> Prompt:
    """Some prompt of `kind` for a square of side `image_size`."""
    examples: dict[PromptKind, Prompt] = {
        PromptKind.NONE: None,
        PromptKind.TEXT: TextPrompt("a photo of a pet"),
        PromptKind.POINTS: PointPrompt(((image_size / 2, image_size / 2),), (1,)),
    }
    return examples[kind]


def point_tensors(points: Sequence[tuple[float, float]], labels: Sequence[int]) -> PromptTensors:
    """Clicks as tensors padded to `MAX_POINTS`.

    Returns `points` [MAX_POINTS, 2] float32, (x, y) as given, and `point_labels` [MAX_POINTS] int64, padding -1.
    """
    padded_points = torch.zeros(MAX_POINTS, 2)
    padded_labels = torch.full((MAX_POINTS,), PADDING_LABEL, dtype=torch.int64)
    if points:
        padded_points[: len(points)] = torch.tensor(points, dtype=torch.float32)
        padded_labels[: len(labels)] = torch.tensor(labels, dtype=torch.int64)
    return {"points": padded_points, "point_labels": padded_labels}
