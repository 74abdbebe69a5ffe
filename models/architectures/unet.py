"""UNet (Ronneberger et al. 2015) at the study's sizes: 64 channels doubled over four levels to 1024."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ArchitectureConfig, Features, SegmentationModel
from models.layers import DoubleConv, resize_to
from models.prompts import PromptTensors


class UNetConfig(ArchitectureConfig):
    """Defaults are the study's."""

    image_size: int = 128
    width: int = 64
    """Channels of the first level; each of the `depth` levels below doubles them."""
    depth: int = 4
    """Number of 2x downsamplings."""
    dropout: float = 0.25


class UNet(SegmentationModel):
    """Contracting path, then bilinear upsamplings, each concatenated with its encoder twin."""

    Config = UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            DoubleConv(fan_in, fan_out, config.dropout) for fan_in, fan_out in zip([3, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            DoubleConv(deep + shallow, shallow, config.dropout)
            for shallow, deep in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.head = nn.Conv2d(config.width, len(config.class_names), 1)

    def encode(self, images: Tensor) -> Features:
        level = self.down[0](self.normalise(images))  # [B, width, S, S]
        pyramid = [level]
        for block in self.down[1:]:
            level = block(F.max_pool2d(level, 2))  # [B, 2C, H/2, W/2]
            pyramid.append(level)
        return tuple(pyramid)

    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        *skips, level = features
        for block, skip in zip(self.up, reversed(skips), strict=True):
            level = block(torch.cat([resize_to(level, skip), skip], dim=1))
        return cast(Tensor, self.head(level))  # [B, width, S, S] -> [B, K, S, S]
