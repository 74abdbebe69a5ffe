"""UNet decoder on any ImageNet encoder of timm; the model to recommend for image-only work."""

from typing import Any, cast

import timm
from pydantic import model_validator
from torch import Tensor, nn

from models.base import ArchitectureConfig, Features, SegmentationModel
from models.layers import MergeBlock, Vote, resize_to
from models.prompts import PromptTensors


class TimmUNetConfig(ArchitectureConfig):
    """Defaults: EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation) at 224 pixels."""

    image_size: int = 224
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    encoder: str = "tf_efficientnet_lite0"
    """Name of a timm model that offers `features_only`."""
    decoder_widths: tuple[int, ...] = (160, 80, 40, 24)
    """Channels after each upsampling, coarsest first; a fifth one adds a level at the image's own resolution."""
    dropout: float = 0.1
    vote: bool = False
    """Whether the mean of the deepest level votes on the classes of all pixels."""

    @model_validator(mode="after")
    def _known_encoder(self) -> "TimmUNetConfig":
        if not timm.is_model(self.encoder):
            raise ValueError(f"got encoder {self.encoder!r}, wanted a name from timm.list_models()")
        return self


class TimmUNet(SegmentationModel):
    """Encoder levels of strides 2 to 32, decoded coarse to fine with a skip from each."""

    Config = TimmUNetConfig

    def __init__(self, config: TimmUNetConfig) -> None:
        super().__init__(config)
        self.encoder = timm.create_model(config.encoder, features_only=True, pretrained=False)
        feature_info: Any = self.encoder.feature_info
        channels: list[int] = [3, *feature_info.channels()]
        if len(channels) - 2 > len(config.decoder_widths) or len(config.decoder_widths) > len(channels) - 1:
            raise ValueError(
                f"got {len(config.decoder_widths)} decoder_widths, "
                f"wanted {len(channels) - 2} or {len(channels) - 1} for {config.encoder}"
            )
        coarse_first = channels[::-1]
        inputs = [coarse_first[0], *config.decoder_widths[:-1]]
        self.up = nn.ModuleList(
            MergeBlock(deep, skip, width)
            for deep, skip, width in zip(inputs, coarse_first[1:], config.decoder_widths, strict=False)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.head = nn.Conv2d(config.decoder_widths[-1], len(config.class_names), 1)
        self.vote = Vote(coarse_first[0], len(config.class_names)) if config.vote else None

    def encode(self, images: Tensor) -> Features:
        normalised = self.normalise(images)
        return (normalised, *self.encoder(normalised))  # [B, 3, S, S], then strides 2, 4, 8, 16, 32

    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        return resize_to(self.decode_native(features, prompt), features[0])

    def decode_native(self, features: Features, prompt: PromptTensors) -> Tensor:
        *skips, level = features
        level = self.dropout(level)
        for block, skip in zip(self.up, reversed(skips), strict=False):
            level = block(level, skip)
        logits = cast(Tensor, self.head(level))  # [B, C, S/2, S/2] -> [B, K, S/2, S/2]
        return logits if self.vote is None else logits + self.vote(features[-1])
