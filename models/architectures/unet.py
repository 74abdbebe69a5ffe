"""UNet (Ronneberger et al. 2015) at the study's sizes: 64 channels doubled over four levels to 1024."""

from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ArchitectureConfig, Features, SegmentationModel
from models.layers import DoubleConv, MergeBlock, Vote
from models.prompts import PromptTensors


class UNetConfig(ArchitectureConfig):
    """Defaults are the study's."""

    image_size: int = 128
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels of each level, finest first; between two levels the map is halved."""
    dropout: float = 0.25
    vote: bool = False
    """Whether the mean of the deepest level votes on the classes of all pixels; the study's does not."""


class UNet(SegmentationModel):
    """Contracting path, then bilinear upsamplings, each concatenated with its encoder twin."""

    Config = UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.down = nn.ModuleList(
            DoubleConv(fan_in, fan_out, config.dropout) for fan_in, fan_out in pairwise((3, *widths))
        )
        self.up = nn.ModuleList(
            MergeBlock(deep, shallow, shallow, config.dropout) for deep, shallow in pairwise(reversed(widths))
        )
        self.head = nn.Conv2d(widths[0], len(config.class_names), 1)
        self.vote = Vote(widths[-1], len(config.class_names)) if config.vote else None

    def encode(self, images: Tensor) -> Features:
        level = self.down[0](self.normalise(images))  # [B, C, S, S]
        pyramid = [level]
        for block in self.down[1:]:
            level = block(F.max_pool2d(level, 2))  # [B, 2C, H/2, W/2]
            pyramid.append(level)
        return tuple(pyramid)

    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        *skips, level = features
        for block, skip in zip(self.up, reversed(skips), strict=True):
            level = block(level, skip)
        logits = cast(Tensor, self.head(level))  # [B, C, S, S] -> [B, K, S, S]
        return logits if self.vote is None else logits + self.vote(features[-1])
