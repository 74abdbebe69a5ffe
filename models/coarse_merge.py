"""Merge blocks that convolve the coarse map before enlarging it: the same function, for a quarter of its products.

Doubled bilinearly, each value of a map becomes four pixels, and a 3x3 convolution multiplies each of them by nine
weights. To double is to put zeros between the values and to smooth by [1 3 3 1] / 4 along both axes; convolutions may
change places, so the 3x3 one may read the values between their zeros, nine products for each, and smoothing comes last,
on fewer channels.

Beyond its edge an enlarged map goes on as its outermost pixels, where the convolution reads zeros. What it would have
read there is taken off along the four edges.

For engines: what is changed here can be trained no more.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import MergeBlock, resize

_SMOOTH = (0.25, 0.75, 0.75, 0.25)


def convolve_before_enlarging(model: nn.Module, run: Callable[[], object]) -> int:
    """Replace each merge block of `model` that doubles its coarse map; returns how many.

    run: calls `model` once on any input, which shows the sizes of the maps.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, MergeBlock)}
    if not blocks:
        return 0
    doubling: set[nn.Module] = set()

    def look(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        coarse, fine = inputs[0].shape[-2:], inputs[1].shape[-2:]
        if (2 * coarse[0], 2 * coarse[1]) == tuple(fine):
            doubling.add(block)

    hooks = [block.register_forward_pre_hook(look) for block in blocks.values()]
    try:
        with torch.inference_mode():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    for name, block in blocks.items():
        if block in doubling:
            model.set_submodule(name, CoarseMerge(block))
    return len(doubling)


class CoarseMerge(nn.Module):
    """What `block` computes of a coarse map and finer ones of twice its size, its first convolution split in two."""

    def __init__(self, block: MergeBlock) -> None:
        super().__init__()
        first, *others = block.children()
        head, *after = first.children()
        convolution = cast(nn.Conv2d, head)
        coarse, fine = convolution.weight.detach().tensor_split([block.coarse_channels], dim=1)
        channels = convolution.out_channels
        self.fine = _convolution(fine, convolution.bias, padding=1)
        # A transposed convolution writes what a convolution reads: its kernel is turned.
        self.between_zeros = nn.ConvTranspose2d(block.coarse_channels, channels, 3, stride=2, padding=1, bias=False)
        self.between_zeros.weight = _fixed(coarse.transpose(0, 1).flip(2, 3))
        smooth = torch.tensor(_SMOOTH)
        self.smooth = _convolution((smooth[:, None] * smooth).expand(channels, 1, 4, 4), groups=channels)
        self.beyond_rows = _convolution(torch.cat([coarse[:, :, :1], coarse[:, :, 2:]]), groups=2)
        self.beyond_columns = _convolution(
            torch.cat([coarse[:, :, :, :1], coarse[:, :, :, 2:]]), padding=(1, 0), groups=2
        )
        self.after = nn.Sequential(*after, *others)

    def forward(self, coarse: Tensor, *fine: Tensor) -> Tensor:
        """As the block's: coarse [B, C, h, w], fine each [B, C_i, 2h, 2w] -> [B, out, 2h, 2w]."""
        spread = self.between_zeros(F.pad(coarse, (1, 1, 1, 1), mode="replicate"))  # [B, out, 2h + 3, 2w + 3]
        merged = self.smooth(spread) + self.fine(torch.cat(fine, dim=1) if len(fine) > 1 else fine[0])
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
