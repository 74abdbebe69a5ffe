"""One view on open_clip's three kinds of image tower: a grid of visual tokens in the joint space, and finer maps.

`clip_backbone.py` picks the view for its model. The maps are [B, C, h, w] whatever the tower is made of.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

VisualOutput = tuple[Tensor, Tensor, tuple[Tensor, ...]]
"""Grid [B, D, h, w], image embedding [B, D], the layers asked for, each [B, C, h, w]."""


class VisualTower(ABC):
    """How to read one kind of image tower. Holds the open_clip module, no weights of its own."""

    grid_stride: int
    """Input pixels per side of one grid cell; image sizes must be multiples of it."""
    layer_channels: tuple[int, ...]
    """Channels of each layer that can be asked for, from the first to the last."""
    layer_strides: tuple[int, ...]
    """Input pixels per side of one cell of each layer."""

    @abstractmethod
    def encode(self, images: Tensor, layers: Sequence[int]) -> VisualOutput:
        """Grid, image embedding and layers of `images` [B, 3, S, S], normalised, in one forward pass."""


def view_tower(visual: nn.Module) -> VisualTower:
    """The view that fits `visual`; ValueError for towers whose tokens do not live in the joint space."""
    if isinstance(visual, VisionTransformer):
        return _TransformerTower(visual)
    if isinstance(visual, ModifiedResNet):
        return _ResNetTower(visual)
    if isinstance(visual, TimmModel):
        return _TimmTower(visual)
    raise ValueError(
        f"got an image tower {type(visual).__name__}, wanted a VisionTransformer, ModifiedResNet or timm CNN"
    )


class _TransformerTower(VisualTower):
    """Every token passes the final norm and the projection that CLIP trained for the class token."""

    def __init__(self, visual: Any) -> None:
        if visual.attn_pool is not None or visual.proj is None:
            raise ValueError("got a ViT with attentional pooling, wanted one that projects its tokens")
        self.visual = visual
        self.grid_stride = visual.patch_size[0]
        depth, width = len(visual.transformer.resblocks), visual.conv1.out_channels
        self.layer_channels = (width,) * depth
        self.layer_strides = (self.grid_stride,) * depth

    def encode(self, images: Tensor, layers: Sequence[int]) -> VisualOutput:
        visual = self.visual
        height, width = images.shape[-2] // self.grid_stride, images.shape[-1] // self.grid_stride
        tokens, found = visual.transformer.forward_intermediates(self._embed(images), indices=sorted({0, *layers}))
        maps = dict(zip(sorted({0, *layers}), found, strict=True))
        pooled, _ = visual._pool(tokens)
        projected = visual.ln_post(tokens[:, 1:]) @ visual.proj  # [B, h*w, D]
        return (
            _to_map(projected, height, width),
            pooled @ visual.proj,
            tuple(_to_map(maps[layer][:, 1:], height, width) for layer in layers),
        )

    def _embed(self, images: Tensor) -> Tensor:
        """VisionTransformer._embeds, but for any multiple of the patch size."""
        visual = self.visual
        patches = visual.conv1(images)  # [B, C, h, w]
        positions = _resize_positions(visual.positional_embedding, visual.grid_size, patches.shape[-2:])
        classes = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([classes, patches.flatten(2).transpose(1, 2)], dim=1)  # [B, 1 + h*w, C]
        embedded: Tensor = visual.ln_pre(tokens + positions.to(tokens.dtype))
        return embedded


class _ResNetTower(VisualTower):
    """Attention pooling's value and output projections, applied where a token stands (Zhou et al. 2022, MaskCLIP)."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.grid_stride = 32
        width = visual.conv3.out_channels
        self.layer_channels = (width, *(width * 4 * 2**stage for stage in range(4)))
        self.layer_strides = (4, 4, 8, 16, 32)

    def encode(self, images: Tensor, layers: Sequence[int]) -> VisualOutput:
        output = self.visual.forward_intermediates(images, indices=[0, 1, 2, 3, 4], intermediates_only=True)
        maps = output["image_intermediates"]
        pool = self.visual.attnpool
        tokens = maps[-1].flatten(2).transpose(1, 2)  # [B, C, h, w] -> [B, h*w, C]
        grid = _to_map(pool.c_proj(pool.v_proj(tokens)), *maps[-1].shape[-2:])
        return grid, _attention_pool(pool, maps[-1]), tuple(maps[layer] for layer in layers)


class _TimmTower(VisualTower):
    """A timm CNN with average pooling: the head applied to every location as if it were the whole image."""

    def __init__(self, visual: Any) -> None:
        trunk = visual.trunk
        if "pool" in visual.head._modules or getattr(trunk, "output_fmt", "NCHW") != "NCHW":
            raise ValueError("got a timm tower with attention pooling or channels last, wanted an average-pooled CNN")
        if not hasattr(trunk, "feature_info") or hasattr(trunk, "patch_embed"):
            raise ValueError(f"got timm tower {type(trunk).__name__}, wanted a CNN with feature_info")
        for module in list(trunk.modules()):
            for name, part in module.named_children():
                if isinstance(part, nn.AdaptiveAvgPool2d) and part.output_size in (1, (1, 1)):
                    setattr(module, name, _MapMean())
        self.visual = visual
        stages = list(trunk.feature_info)
        self.layer_channels = tuple(stage["num_chs"] for stage in stages)
        self.layer_strides = tuple(stage["reduction"] for stage in stages)
        self.grid_stride = self.layer_strides[-1]

    def encode(self, images: Tensor, layers: Sequence[int]) -> VisualOutput:
        trunk = self.visual.trunk
        wanted = sorted({0, *layers})
        last, found = trunk.forward_intermediates(images, indices=wanted)  # [B, C, h, w]
        maps = dict(zip(wanted, found, strict=True))
        batch, channels, height, width = last.shape
        locations = last.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        grid = _to_map(self._project(locations).view(batch, height * width, -1), height, width)
        return grid, self._project(last), tuple(maps[layer] for layer in layers)

    def _project(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D]: pooling, then the projection into the joint space."""
        projected: Tensor = self.visual.head(self.visual.trunk.forward_head(maps))
        return projected


class _MapMean(nn.Module):
    """Mean of [B, C, h, w] over its places, [B, C, 1, 1]. Of one place it is that place.

    OpenVINO sums over a single place too: a seventh of the tower's time, for a grid of locations that are pooled alone.
    """

    def forward(self, maps: Tensor) -> Tensor:
        return maps if maps.shape[-2:] == (1, 1) else F.adaptive_avg_pool2d(maps, 1)


def _to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, h*w, C] -> [B, C, h, w], row by row."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)


def _resize_positions(positions: Tensor, trained: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Position embeddings [1 + h*w, C] of a `trained` grid for a `wanted` one; the class token's stays as it is."""
    if tuple(trained) == tuple(wanted):
        return positions
    grid = _to_map(positions[None, 1:], trained[0], trained[1])
    resized = F.interpolate(grid.float(), tuple(wanted), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], resized.flatten(2)[0].T.to(positions.dtype)])


def _attention_pool(pool: Any, maps: Tensor) -> Tensor:
    """`pool` on [B, C, h, w] of any size: its position embeddings follow the grid."""
    side = round((pool.positional_embedding.shape[0] - 1) ** 0.5)
    positions = _resize_positions(pool.positional_embedding, (side, side), maps.shape[-2:])
    tokens = maps.flatten(2).transpose(1, 2)  # [B, h*w, C]
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + positions.to(maps.dtype)
    query, key, value = (
        projection(inputs).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)  # [B, heads, L, C / heads]
        for projection, inputs in ((pool.q_proj, tokens[:, :1]), (pool.k_proj, tokens), (pool.v_proj, tokens))
    )
    attended = F.scaled_dot_product_attention(query, key, value)
    pooled: Tensor = pool.c_proj(attended.transpose(1, 2).flatten(2)[:, 0])
    return pooled
