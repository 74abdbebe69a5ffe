"""Two mask heads on a frozen visual grid and a condition: the study's own, and one that adds finer maps.

The condition is whatever the prompt became on the grid: a text embedding spread over it, or encoded clicks.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.layers import ChannelAttention, ConvBlock, MergeBlock, ResidualBlock, resize, shrink_max, shrink_mean


class GridHead(nn.Module):
    """The study's head: fusion convolution, residual block, channel attention where wanted, 1x1 classifier."""

    def __init__(
        self, grid_channels: int, condition_channels: int, hidden: int, classes: int, dropout: float, attention: bool
    ) -> None:
        super().__init__()
        self.trunk = _fuse(grid_channels + condition_channels, hidden, dropout, attention)
        self.classifier = nn.Conv2d(hidden, classes, 1)

    def forward(self, grid: Tensor, condition: Tensor) -> Tensor:
        """grid [B, D, h, w], condition [B, C, h, w] -> logits [B, K, h, w]."""
        logits: Tensor = self.classifier(self.trunk(torch.cat([grid, condition], dim=1)))
        return logits


class PyramidHead(nn.Module):
    """The study's trunk on the grid, then level by level finer: backbone layers first, the image itself last.

    `guide` tells each level where the prompt points, so that fine levels need not guess it from the coarse one.
    """

    def __init__(
        self,
        grid_channels: int,
        condition_channels: int,
        guide_channels: int,
        layer_channels: Sequence[int],
        level_sizes: Sequence[int],
        widths: Sequence[int],
        classes: int,
        dropout: float,
    ) -> None:
        """level_sizes: side of each level in cells, one for each layer and the image's last; widths: one more."""
        super().__init__()
        if len(level_sizes) != len(layer_channels) + 1 or len(widths) != len(level_sizes) + 1:
            raise ValueError(
                f"got {len(layer_channels)} layers, {len(level_sizes)} level_sizes and {len(widths)} widths, "
                "wanted one level size more than layers (the image's), and one width more than level sizes (the grid's)"
            )
        self.level_sizes = tuple(level_sizes)
        self.trunk = _fuse(grid_channels + condition_channels + guide_channels, widths[0], dropout, attention=True)
        self.lateral = nn.ModuleList(
            ConvBlock(channels, width) for channels, width in zip([*layer_channels, 3], widths[1:], strict=True)
        )
        self.levels = nn.ModuleList(
            MergeBlock(coarse, fine + guide_channels, fine) for coarse, fine in pairwise(widths)
        )
        self.classifier = nn.Conv2d(widths[-1], classes, 1)

    def forward(
        self, grid: Tensor, condition: Tensor, guide: Tensor, layers: Sequence[Tensor], image: Tensor
    ) -> Tensor:
        """grid [B, D, h, w], condition [B, C, h, w], guide [B, G, any, any], layers each [B, C_i, h_i, w_i] coarse to
        fine, image [B, 3, S, S] -> logits [B, K, s, s] at the last level's size."""
        level = self.trunk(torch.cat([grid, condition, _guide_at(guide, grid.shape[-1])], dim=1))
        for block, lateral, source, size in zip(
            self.levels, self.lateral, [*layers, image], self.level_sizes, strict=True
        ):
            if source.shape[-1] > size:
                source = shrink_mean(source, size)
            skip = resize(lateral(source), size, size)
            level = block(level, skip, _guide_at(guide, size))
        logits: Tensor = self.classifier(level)
        return logits


def _fuse(in_channels: int, hidden: int, dropout: float, attention: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        ResidualBlock(hidden),
        ChannelAttention(hidden) if attention else nn.Identity(),
    )


def _guide_at(guide: Tensor, size: int) -> Tensor:
    """The guide at a level's size; its peaks survive where it shrinks, for a click is only a few pixels wide."""
    size = int(size)  # a tensor while the network is traced
    return shrink_max(guide, size) if guide.shape[-1] > size else resize(guide, size, size)
