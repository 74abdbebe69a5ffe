"""Ways to compute a merge block: the same function as it was trained, for engines, in less time.

COARSE_FIRST: doubled bilinearly, each value of a map becomes four pixels, and a 3x3 convolution multiplies each of them
by nine weights. To double is to put zeros between the values and to smooth by [1 3 3 1] / 4 along both axes;
convolutions may change places, so the 3x3 one may read the values between their zeros, nine products for each, and
smoothing comes last, on fewer channels. Beyond its edge an enlarged map goes on as its outermost pixels, where the
convolution reads zeros. What it would have read there is taken off along the four edges.

SPLIT: a convolution of concatenated maps is the sum of one of each. Beside products as cheap as matrix units make them,
concatenating two wide maps takes a third as long as their convolution.

What is changed here can be trained no more.
"""

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import MergeBlock, resize, resize_to

_SMOOTH = (0.25, 0.75, 0.75, 0.25)
_TILE_CHANNELS = 16
"""Matrix units compute so many outputs at once. What does not fill them is wasted once more by each further
convolution: split, `timm_unet`, which merges 64 and 24 channels into 40, does 0.97 to 1.00 times as much."""


class Merging(StrEnum):
    """How merge blocks are computed."""

    JOINED = "joined"
    """As trained: enlarged, concatenated, convolved."""
    SPLIT = "split"
    COARSE_FIRST = "coarse first"


class _Parts:
    """A merge block taken apart: the first convolution by what it reads, and all that follows it."""

    def __init__(self, block: MergeBlock) -> None:
        first, *others = block.children()
        head, *after = first.children()
        convolution = cast(nn.Conv2d, head)
        self.coarse, self.fine = convolution.weight.detach().tensor_split([block.coarse_channels], dim=1)
        """[out, C, 3, 3] each."""
        self.bias = convolution.bias
        self.after = nn.Sequential(*after, *others)


class SplitMerge(nn.Module):
    """What `block` computes, its first convolution as the sum of one of the enlarged map and one of the finer ones."""

    @staticmethod
    def suits(block: MergeBlock, coarse: Tensor, fine: Tensor) -> bool:
        """Whether its channels fill matrix units."""
        parts = _Parts(block)
        channels = (parts.coarse.shape[1], parts.fine.shape[1], parts.fine.shape[0])
        return all(count % _TILE_CHANNELS == 0 for count in channels)

    def __init__(self, block: MergeBlock) -> None:
        super().__init__()
        parts = _Parts(block)
        self.coarse = _convolution(parts.coarse, padding=1)
        self.fine = _convolution(parts.fine, parts.bias, padding=1)
        self.after = parts.after

    def forward(self, coarse: Tensor, *fine: Tensor) -> Tensor:
        """As the block's: coarse [B, C, h, w], fine each [B, C_i, H, W] -> [B, out, H, W]."""
        result: Tensor = self.after(self.fine(_join(fine)) + self.coarse(resize_to(coarse, fine[0])))
        return result


class CoarseMerge(nn.Module):
    """What `block` computes of a coarse map and finer ones of twice its size, its first convolution split in two."""

    @staticmethod
    def suits(block: MergeBlock, coarse: Tensor, fine: Tensor) -> bool:
        """Whether `coarse` is half the size of `fine`."""
        return tuple(2 * side for side in coarse.shape[-2:]) == tuple(fine.shape[-2:])

    def __init__(self, block: MergeBlock) -> None:
        super().__init__()
        parts = _Parts(block)
        coarse, channels = parts.coarse, len(parts.coarse)
        self.fine = _convolution(parts.fine, parts.bias, padding=1)
        # A transposed convolution writes what a convolution reads: its kernel is turned.
        self.between_zeros = nn.ConvTranspose2d(coarse.shape[1], channels, 3, stride=2, padding=1, bias=False)
        self.between_zeros.weight = _fixed(coarse.transpose(0, 1).flip(2, 3))
        smooth = torch.tensor(_SMOOTH)
        self.smooth = _convolution((smooth[:, None] * smooth).expand(channels, 1, 4, 4), groups=channels)
        self.beyond_rows = _convolution(torch.cat([coarse[:, :, :1], coarse[:, :, 2:]]), groups=2)
        self.beyond_columns = _convolution(
            torch.cat([coarse[:, :, :, :1], coarse[:, :, :, 2:]]), padding=(1, 0), groups=2
        )
        self.after = parts.after

    def forward(self, coarse: Tensor, *fine: Tensor) -> Tensor:
        """As the block's: coarse [B, C, h, w], fine each [B, C_i, 2h, 2w] -> [B, out, 2h, 2w]."""
        spread = self.between_zeros(F.pad(coarse, (1, 1, 1, 1), mode="replicate"))  # [B, out, 2h + 3, 2w + 3]
        merged = self.smooth(spread) + self.fine(_join(fine))
        for excess in self._beyond_edges(coarse):
            merged = merged - excess
        result: Tensor = self.after(merged)
        return result

    def _beyond_edges(self, coarse: Tensor) -> Iterator[Tensor]:
        """What was read beyond each edge: [B, out, 2h, 2w], zero but for the row or column at that edge.

        The corners are in the rows.
        """
        height, width = (2 * int(side) for side in coarse.shape[-2:])  # tensors while the network is traced
        rows = resize(torch.cat([coarse[:, :, :1], coarse[:, :, -1:]], dim=1), 1, width)
        above, below = self.beyond_rows(F.pad(rows, (1, 1, 0, 0), mode="replicate")).chunk(2, dim=1)
        columns = resize(torch.cat([coarse[:, :, :, :1], coarse[:, :, :, -1:]], dim=1), height, 1)
        left, right = self.beyond_columns(columns).chunk(2, dim=1)
        first_row, last_row = _ends(height, coarse)[..., None]
        first_column, last_column = _ends(width, coarse)[:, None]
        yield from (above * first_row, below * last_row, left * first_column, right * last_column)


_WAYS: dict[Merging, type[SplitMerge] | type[CoarseMerge]] = {
    Merging.SPLIT: SplitMerge,
    Merging.COARSE_FIRST: CoarseMerge,
}


def rewrite_merges(model: nn.Module, merging: Merging, run: Callable[[], object]) -> int:
    """Have the merge blocks of `model` compute in the way of `merging` where it suits them; returns how many do.

    run: calls `model` once on any input, which shows the maps; a block that does not run stays as it is.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, MergeBlock)}
    if merging not in _WAYS or not blocks:
        return 0
    way, suited = _WAYS[merging], set[nn.Module]()

    def look(block: MergeBlock, inputs: tuple[Tensor, ...]) -> None:
        if way.suits(block, *inputs[:2]):
            suited.add(block)

    hooks = [block.register_forward_pre_hook(look) for block in blocks.values()]
    try:
        with torch.inference_mode():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    for name, block in blocks.items():
        if block in suited:
            model.set_submodule(name, way(block))
    return len(suited)


def _join(maps: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]


def _convolution(weight: Tensor, bias: Tensor | None = None, **options: Any) -> nn.Conv2d:
    channels, per_group, *kernel = weight.shape
    convolution = nn.Conv2d(
        per_group * options.get("groups", 1), channels, (kernel[0], kernel[1]), bias=bias is not None, **options
    )
    convolution.weight, convolution.bias = _fixed(weight), None if bias is None else _fixed(bias.detach())
    return convolution


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.clone(memory_format=torch.contiguous_format), requires_grad=False)


def _ends(length: int, like: Tensor) -> Tensor:
    """[2, length]: one at the first place and zeros, one at the last place and zeros; in the type of `like`."""
    return torch.eye(length, dtype=like.dtype, device=like.device)[[0, -1]]
