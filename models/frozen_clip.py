"""What `clip` and `prompt` share: encoding by a frozen CLIP alone, so that both read the same cached features."""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from models.base import ArchitectureConfig, Features, SegmentationModel
from models.clip_backbone import BackboneConfig, ClipBackbone, load_backbone
from models.layers import resize_to
from models.mask_heads import GridHead, PyramidHead
from models.prompts import PromptTensors


class FrozenClipConfig(ArchitectureConfig):
    """Defaults are the study's: ViT-L/14 at 224 pixels, a 768 x 16 x 16 grid, the `grid` head."""

    retired: ClassVar[tuple[str, ...]] = ("backbone.image_size",)

    image_size: int = 224
    pixel_mean: tuple[float, float, float] = OPENAI_DATASET_MEAN
    pixel_std: tuple[float, float, float] = OPENAI_DATASET_STD
    backbone: BackboneConfig = BackboneConfig(name="ViT-L-14", pretrained="openai")
    head: Literal["grid", "pyramid"] = "grid"
    """The study's head on the grid alone, or one with finer maps of the backbone and the image."""
    hidden: int = 256
    """Channels of the grid head."""
    level_sizes: tuple[int, ...] = ()
    """Pyramid head: side in cells of each finer level, one for each backbone layer, then one for the image."""
    widths: tuple[int, ...] = ()
    """Pyramid head: channels on the grid, then at each level."""
    dropout: float = 0.25


class FrozenClip(SegmentationModel):
    """A mask head on a frozen CLIP. `encode` is the backbone alone and gives (image, pooled, grid, *layers)."""

    frozen = ("backbone",)
    config: FrozenClipConfig
    backbone: ClipBackbone

    def __init__(self, config: FrozenClipConfig, guide_channels: int, attention: bool) -> None:
        super().__init__(config)
        self.backbone = load_backbone(config.backbone)
        for name in ("pixel_mean", "pixel_std"):
            got, wanted = getattr(config, name), getattr(self.backbone, name)
            if got != wanted:
                raise ValueError(f"{name}: got {got}, wanted {wanted}, which {self.backbone.name} was trained with")
        channels, classes = self.backbone.grid_channels, len(config.class_names)
        self.head: nn.Module
        if config.head == "grid":
            self.head = GridHead(channels, channels, config.hidden, classes, config.dropout, attention)
        else:
            layer_channels = self.backbone.layer_channels(config.backbone.layers)
            self.head = PyramidHead(
                channels,
                channels,
                guide_channels,
                layer_channels,
                config.level_sizes,
                config.widths,
                classes,
                config.dropout,
            )

    def encode(self, images: Tensor) -> Features:
        grid, pooled, layers = self.backbone.encode_image(self.normalise(images), self.config.backbone.layers)
        return (images, pooled[:, :, None, None], grid, *layers)

    def encoder_digest(self) -> str:
        return f"{self.backbone.digest}/{self.config.image_size}/{self.config.backbone.layers}"

    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        return resize_to(self.decode_native(features, prompt), features[0])

    @abstractmethod
    def decode_native(self, features: Features, prompt: PromptTensors) -> Tensor: ...

    def segment(self, features: Features, condition: Tensor, guide: Tensor) -> Tensor:
        """Logits [B, K, s, s] of `features` under a condition [B, D, h, w] and a guide [B, G, any, any]."""
        image, _, grid, *layers = features
        inputs = (grid, condition) if self.config.head == "grid" else (grid, condition, guide, layers, image)
        logits: Tensor = self.head(*inputs)
        return logits


def cosine_map(features: Tensor, vectors: Tensor) -> Tensor:
    """Cosine of each cell of `features` [B, C, h, w] with `vectors` [B, C] -> [B, 1, h, w] in [-1, 1]."""
    return (F.normalize(features, dim=1) * F.normalize(vectors, dim=1)[:, :, None, None]).sum(1, keepdim=True)
