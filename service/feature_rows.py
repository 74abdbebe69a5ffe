"""One photo's features out of a batch's, and a batch's out of those of photos, by few calls.

After each call into torch a thread may have to wait for the interpreter, and on a GPU each is a launch: five maps of
128 photos, copied one by one, filled the queue of launches that the next batch was waiting for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.base import Features


@dataclass(frozen=True)
class FeatureLayout:
    """Shapes [C_i, H_i, W_i] and types of one photo's features, in order."""

    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, features: Features) -> "FeatureLayout":
        """That of each row of `features`."""
        return cls(tuple(level.shape[1:] for level in features), tuple(level.dtype for level in features))

    def groups(self) -> list[list[int]]:
        """Places of the features that have one type, for each type."""
        return [
            [place for place, each in enumerate(self.dtypes) if each is dtype] for dtype in dict.fromkeys(self.dtypes)
        ]


@dataclass(frozen=True)
class FeatureRow:
    """One photo's features, in memory of its own."""

    layout: FeatureLayout
    parts: tuple[Tensor, ...]
    """For each of the layout's groups its features one behind the other, [1, N]."""

    @property
    def size_bytes(self) -> int:
        """Memory that it keeps alive."""
        return sum(part.numel() * part.element_size() for part in self.parts)


def split_features(features: Features) -> list[FeatureRow]:
    """Each row of `features`, [B, C_i, H_i, W_i] each."""
    layout = FeatureLayout.of(features)
    groups = [_split([features[place].flatten(1) for place in group]) for group in layout.groups()]
    return [FeatureRow(layout, parts) for parts in zip(*groups, strict=True)]


def join_features(rows: Sequence[FeatureRow]) -> Features:
    """The reverse of `split_features`, for rows of one layout from any batches."""
    layout = rows[0].layout
    joined: dict[int, Tensor] = {}
    for group, parts in zip(layout.groups(), zip(*(row.parts for row in rows), strict=True), strict=True):
        sizes = [layout.shapes[place].numel() for place in group]
        levels = torch.cat(parts).split_with_sizes(sizes, dim=1)
        joined |= {place: level.view(-1, *layout.shapes[place]) for place, level in zip(group, levels, strict=True)}
    return tuple(joined[place] for place in range(len(layout.shapes)))


def _split(levels: list[Tensor]) -> Sequence[Tensor]:
    """Rows [1, N] of `levels` [B, N_i] side by side, each in memory of its own."""
    if not levels[0].is_cuda:  # where nothing is launched, one copy less
        rows = zip(*(level.chunk(level.shape[0]) for level in levels), strict=True)
        return [torch.cat(row, dim=1) for row in rows]
    copies: tuple[Tensor, ...] = torch.split_copy(torch.cat(levels, dim=1), 1)  # type: ignore[assignment, func-returns-value]
    return copies
