"""Conv blocks that two or more architectures share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_CHANNELS = 4
"""Maps of so few channels are resized by products. OpenVINO resizes them value by value: two of 96 x 96 to 192 x 192
took 0.5 ms of a core, as products 0.1; from 16 channels on its own way is the faster one."""


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, LeakyReLU(0.1): [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.1, inplace=True),
        )


class DoubleConv(nn.Sequential):
    """Two ConvBlocks with dropout (study, UNet): [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__(
            ConvBlock(in_channels, out_channels),
            ConvBlock(out_channels, out_channels),
            nn.Dropout2d(dropout),
        )


class MergeBlock(DoubleConv):
    """A coarse map, enlarged to the size of finer ones and concatenated with them, through a DoubleConv."""

    def __init__(self, coarse_channels: int, fine_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__(coarse_channels + fine_channels, out_channels, dropout)
        self.coarse_channels = coarse_channels

    def forward(self, coarse: Tensor, *fine: Tensor) -> Tensor:
        """coarse [B, coarse_channels, h, w], fine each [B, C_i, H, W], in all fine_channels -> [B, out, H, W]."""
        merged = torch.cat([resize_to(coarse, fine[0]), *fine], dim=1)
        for module in self:
            merged = module(merged)
        return merged


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with an identity skip (He et al. 2016): [B, C, H, W] -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(inputs + self.block(inputs))


class ContextBlock(nn.Module):
    """Depthwise 7x7 convolution, then two 1x1 convolutions, with a skip (Liu et al. 2022, section 2.6).

    [B, C, H, W] -> the same shape, with batch norm so that it folds into the convolutions. On an 8 x 8 map two of them
    let each place see all others.
    """

    def __init__(self, channels: int, expansion: int = 2) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, expansion * channels, 1, bias=False),
            nn.BatchNorm2d(expansion * channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(expansion * channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        added: Tensor = inputs + self.block(inputs)
        return added


class ChannelAttention(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, section 3): channels weighted by a gate of their global means."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        gated: Tensor = inputs * self.gate(inputs)
        return gated


class Vote(nn.Conv2d):
    """The whole image's vote on the classes of all its pixels: [B, C, h, w] -> [B, K, 1, 1], to be added to the logits.

    A 1x1 convolution of the mean over the map (Liu et al. 2015, ParseNet, section 3.1: a global feature added to local
    ones). Where each pixel judges for itself, one animal is easily painted as two species. It begins at zero, so that a
    trained network which is given one goes on as the same network.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.mean((2, 3), keepdim=True))


def is_recorded(tensor: Tensor) -> bool:
    """Whether code that runs on `tensor` is traced, compiled or only sized up: it may not depend on values then."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing() or tensor.is_meta)  # type: ignore[attr-defined, no-untyped-call]


def send_ahead(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting for what a GPU has still to compute."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def resize_to(features: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize of [B, C, h, w] to the height and width of `like`."""
    return resize(features, like.shape[-2], like.shape[-1])


def resize(features: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of [B, C, h, w] to [B, C, height, width]."""
    if features.shape[-2:] == (height, width):
        return features
    if features.shape[1] <= _FEW_CHANNELS:
        old_height, old_width = (int(side) for side in features.shape[-2:])  # tensors while the network is traced
        down = bilinear_weights(old_height, int(height), features)
        across = bilinear_weights(old_width, int(width), features)
        return down @ features @ across.T
    return F.interpolate(features, (height, width), mode="bilinear", align_corners=False)


def bilinear_weights(old: int, new: int, like: Tensor) -> Tensor:
    """What each of `new` places takes of each of `old` ones where a row is resized bilinearly: [new, old].

    On the device and in the type of `like`. Made anew each time: one kept from a trace would be no tensor after it.
    """
    places = (torch.arange(new, device=like.device) + 0.5) * (old / new) - 0.5
    distances = places.clamp(0, old - 1)[:, None] - torch.arange(old, device=like.device)
    return (1 - distances.abs()).clamp(min=0).to(like.dtype)


def shrink_mean(features: Tensor, size: int) -> Tensor:
    """Means over equal cells: [B, C, h, w] -> [B, C, size, size]."""
    cell = _cell(features, size)
    return F.avg_pool2d(features, cell) if cell else F.adaptive_avg_pool2d(features, size)


def shrink_max(features: Tensor, size: int) -> Tensor:
    """Maxima over equal cells: [B, C, h, w] -> [B, C, size, size]."""
    cell = _cell(features, size)
    return F.max_pool2d(features, cell) if cell else F.adaptive_max_pool2d(features, size)


def _cell(features: Tensor, size: int) -> tuple[int, int] | None:
    """Height and width of each of `size` x `size` cells, or None where they do not divide the map.

    Pooling by cells is what engines have fast kernels for; adaptive pooling took a fifth of a mask head's time.
    """
    height, width = int(features.shape[-2]), int(features.shape[-1])  # tensors while the network is traced
    return (height // size, width // size) if height % size == 0 and width % size == 0 else None
