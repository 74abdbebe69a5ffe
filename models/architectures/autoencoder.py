"""The study's two-stage autoencoder: a reconstruction stage trains the encoder, a segmentation decoder reads it.

Masci et al. 2011 pretrain a convolutional encoder the same way. Serving needs the encoder and the segmentation decoder
alone, so the bottleneck and the reconstruction decoder are left out of checkpoints.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.base import ArchitectureConfig, Features, SegmentationModel
from models.layers import ContextBlock, Vote
from models.prompts import PromptTensors


class AutoencoderConfig(ArchitectureConfig):
    """Defaults are the study's."""

    image_size: int = 128
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels after each stride-2 convolution; 128 pixels become 256 x 8 x 8."""
    bottleneck: int = 512
    dropout: float = 0.1
    context_blocks: int = 0
    """Blocks on the 256 x 8 x 8 map before the segmentation decoder; the study has none.

    There a place of the map sees 31 pixels and its decoder sees little more, so that cat and dog are painted into one
    animal. With blocks, each place sees the whole image, and the mean of the map votes on the classes of all pixels.
    """


class Autoencoder(SegmentationModel):
    """Strided encoder; `reconstruct` for the first stage, `decode` for the second."""

    Config = AutoencoderConfig
    training_only = ("bottleneck", "reconstruction")

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        widths, deepest = config.widths, config.widths[-1]
        side = config.image_size // 2 ** len(widths)
        self.encoder = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Dropout2d(config.dropout)
            )
            for fan_in, fan_out in pairwise((3, *widths))
        )
        self.bottleneck = nn.Sequential(
            nn.Flatten(),
            nn.Linear(deepest * side**2, config.bottleneck),
            nn.ReLU(inplace=True),
            nn.Linear(config.bottleneck, deepest * side**2),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (deepest, side, side)),
        )
        self.reconstruction = nn.ModuleList(
            _upsample(2 * deep, shallow) for deep, shallow in pairwise((*reversed(widths), 3))
        )
        self.context = nn.Sequential(*(ContextBlock(deepest) for _ in range(config.context_blocks)))
        self.vote = Vote(deepest, len(config.class_names)) if config.context_blocks else None
        self.segmentation = nn.Sequential(
            *(
                nn.Sequential(
                    _upsample(deep, shallow),
                    nn.BatchNorm2d(shallow),
                    nn.ReLU(inplace=True),
                    nn.Dropout2d(config.dropout),
                )
                for deep, shallow in pairwise((*reversed(widths), max(1, widths[0] // 2)))
            ),
            nn.Conv2d(max(1, widths[0] // 2), len(config.class_names), 3, padding=1),
        )

    def encode(self, images: Tensor) -> Features:
        return (self.context(self._levels(images)[-1]),)  # [B, 256, 8, 8]

    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        logits: Tensor = self.segmentation(features[0])  # [B, 256, 8, 8] -> [B, K, 128, 128]
        return logits if self.vote is None else logits + self.vote(features[0])

    def reconstruct(self, images: Tensor) -> Tensor:
        """The first stage's output: images [B, 3, S, S] in [0, 1] -> the same, through the bottleneck with skips."""
        levels = self._levels(images)
        level = self.bottleneck(levels[-1])  # [B, 256, 8, 8] -> [B, 512] -> [B, 256, 8, 8]
        *blocks, last = self.reconstruction
        for block, skip in zip(blocks, reversed(levels), strict=False):
            level = torch.relu(block(torch.cat([level, skip], dim=1)))  # [B, C, h, w] -> [B, C/2, 2h, 2w]
        return torch.sigmoid(last(torch.cat([level, levels[0]], dim=1)))

    def _levels(self, images: Tensor) -> Features:
        level = self.normalise(images)
        levels = []
        for block in self.encoder:
            level = block(level)
            levels.append(level)
        return tuple(levels)


def _upsample(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
