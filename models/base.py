"""The one interface: every network encodes images into features, then decodes features and a prompt into logits.

Training, checkpoints and the service know models only through this class.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.letterbox import Letterbox
from models.prompts import PointPrompt, Prompt, PromptKind, PromptTensors, point_tensors, prompt_kind

Features = tuple[Tensor, ...]
"""What `encode` gives: each [B, C_i, H_i, W_i]; a UNet pyramid, one bottleneck, or CLIP layers."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ArchitectureConfig(BaseModel):
    """What every network is configured by; each architecture adds its own widths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retired: ClassVar[tuple[str, ...]] = ()
    """Dotted names of fields that older cards hold and nothing reads any longer; a card's reader drops them."""

    image_size: int = Field(ge=16)
    """Side S of the square input in pixels."""
    class_names: tuple[str, ...] = ("background", "cat", "dog")
    """Channel k of the logits scores class_names[k]; channel 0 is background."""
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD


class PromptMismatchError(ValueError):
    """The prompt is of a kind that the model does not take, or a needed one is missing."""


class SegmentationModel(nn.Module, ABC):
    """A network that segments [B, 3, S, S] images into K classes."""

    Config: ClassVar[type[ArchitectureConfig]]
    prompt_kind: ClassVar[PromptKind] = PromptKind.NONE
    prompt_required: ClassVar[bool] = False
    """Whether a request without a prompt is refused."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Submodules never trained, kept in eval(), left out of the checkpoint and shared between models."""
    training_only: tuple[str, ...] = ()
    """Submodules that only training reads; left out of the checkpoint and dropped on loading."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(1, 3, 1, 1), persistent=False)

    @abstractmethod
    def encode(self, images: Tensor) -> Features:
        """Features of the pixels alone.

        images: Tensor [B, 3, S, S], float32 in [0, 1]; normalised inside.
        """

    @abstractmethod
    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        """Logits [B, K, S, S] of `features` under a batch of prompts ({} for image-only models).

        prompt: as `prompt_tensors` gives it, or as `embed_prompt` does.
        """

    def decode_native(self, features: Features, prompt: PromptTensors) -> Tensor:
        """The logits before `decode` enlarges them, [B, K, s, s] with s <= S: their bilinear resize is what it gives.

        What `Letterbox` restores a mask from: a network that ends by enlarging need not do so where nothing reads most
        of the values. Here: a network whose last map is as large as the square.
        """
        return self.decode(features, prompt)

    def embed_prompt(self, features: Features, prompt: PromptTensors) -> PromptTensors:
        """A batch of prompts in the form that the layers read: a text's embedding, the clicks' heatmaps.

        Look-ups and small tensors, which engines leave to torch; they compile the rest of `decode`. What is embedded
        already is given back. The prompt may still be on the CPU where the features are on a GPU. Here: nothing to
        embed.
        """
        return prompt

    def forward(self, images: Tensor, prompt: PromptTensors, features: Features | None = None) -> Tensor:
        """Logits [B, K, S, S] of images [B, 3, S, S] under a batch of prompts.

        features: what `encode` gave for these images before, to spare it now.
        """
        return self.decode(self.encode(images) if features is None else features, prompt)

    def features_and_logits(self, images: Tensor, prompt: PromptTensors) -> tuple[Features, Tensor]:
        """What `encode` and `decode` give, for an objective that reads both."""
        features = self.encode(images)
        return features, self.decode(features, prompt)

    def encoder_digest(self) -> str | None:
        """Identity of `encode`'s function where models share it, or None where the checkpoint's own digest stands.

        Features cached under one digest serve every model that gives the same digest.
        """
        return None

    def prompt_tensors(self, prompt: Prompt, letterbox: Letterbox) -> PromptTensors:
        """One request's prompt -> fixed-shape tensors without a batch axis, coordinates in the model's square.

        Raises PromptMismatchError for a kind that this model does not take, or a missing required one.
        """
        check_prompt(prompt, self.prompt_kind, self.prompt_required)
        if isinstance(prompt, PointPrompt):
            return point_tensors(letterbox.apply_points(prompt.points), prompt.labels)
        return {}

    def chosen_prompts(self, features: Features, prompt: PromptTensors) -> list[str | None]:
        """For each row, the text the model prompted itself with, or None where the caller's prompt was used."""
        return [None] * features[0].shape[0]

    def normalise(self, images: Tensor) -> Tensor:
        """[0, 1] RGB -> zero mean and unit variance under the backbone's own statistics."""
        return (images - self.pixel_mean) / self.pixel_std

    def drop_training_parts(self) -> None:
        """Forget the submodules that serving never reads."""
        for name in self.training_only:
            delattr(self, name)

    def train(self, mode: bool = True) -> "SegmentationModel":
        """As nn.Module.train, but the frozen submodules stay in eval()."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self


def check_prompt(prompt: Prompt, wanted: PromptKind, is_required: bool) -> None:
    """Raise PromptMismatchError for a prompt of another kind than `wanted`, or where a required one is missing."""
    got = prompt_kind(prompt)
    if prompt is not None and got is not wanted:
        raise PromptMismatchError(f"got a {got} prompt, this model takes {describe_kind(wanted)}")
    if prompt is None and is_required:
        raise PromptMismatchError(f"got no prompt, this model needs {describe_kind(wanted)}")


def describe_kind(kind: PromptKind) -> str:
    """Words for an error message."""
    return {PromptKind.NONE: "no prompt", PromptKind.TEXT: "a text prompt", PromptKind.POINTS: "clicks"}[kind]
