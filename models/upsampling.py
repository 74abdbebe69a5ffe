"""The class that wins at each pixel of bilinearly resized logits, without resizing most of them.

A bilinear value is a weighted mean of the four grid points around it. Where one class wins at all four, it wins at
every pixel between them: the differences to the other classes are means of positive numbers. So the winners of the
grid are repeated, and only the few pixels in cells that a border crosses are computed. Called by letterbox.py.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

_UNSURE = 255
"""Stands for a cell in which more than one class may win."""
_MARGIN = 1e-4
"""A lead that rounding may turn, as a share of the largest score; float32 keeps seven digits."""

_STRIP_PIXELS = 1 << 19
"""Pixels filled at once, which bounds memory where every cell is unsure."""


def resize_argmax(scores: Floats, height: int, width: int) -> Bytes:
    """`resize(scores, (height, width)).argmax(0)` for the bilinear resize of torch with align_corners=False.

    scores: [K, h, w], K < 255, of any size against the result. Returns [height, width] uint8.
    """
    rows, columns = _Axis(scores.shape[1], height), _Axis(scores.shape[2], width)
    flat = np.ascontiguousarray(scores).reshape(len(scores), -1)
    widened = _find_winners(scores).take(columns.before, axis=1)  # [h, width]
    mask = np.empty((height, width), np.uint8)
    for start in range(0, height, strip := max(1, _STRIP_PIXELS // width)):
        part = mask[start : start + strip]
        part[:] = widened.take(rows.before[start : start + strip], axis=0)
        places = np.flatnonzero(part == _UNSURE)
        row = places // width
        column = places - width * row
        part.reshape(-1)[places] = _interpolate_argmax(flat, rows.at(row + start, scores.shape[2]), columns.at(column))
    return mask


class _Ends(NamedTuple):
    """The grid points beside each of N pixels along one axis, as places in memory, each [N]."""

    before: Indices
    after: Indices
    weights: Floats
    """Of `after`; `before` has the rest."""


class _Axis:
    """Where the pixels of one axis lie on the grid of scores."""

    def __init__(self, points: int, pixels: int) -> None:
        scale = np.float32(points / pixels)
        half = np.float32(0.5)
        positions = np.maximum((np.arange(pixels, dtype=np.float32) + half) * scale - half, 0)
        self.before: Indices = np.minimum(positions.astype(np.intp), points - 1)
        """[pixels]: the grid point before each pixel."""
        self._after: Indices = np.minimum(self.before + 1, points - 1)
        self._weights: Floats = positions - self.before.astype(np.float32)

    def at(self, pixels: Indices, step: int = 1) -> _Ends:
        """Both ends of each of `pixels`; step: elements from one grid point to the next."""
        return _Ends(step * self.before[pixels], step * self._after[pixels], self._weights[pixels])


def _find_winners(scores: Floats) -> Bytes:
    """[h, w]: the class that wins in the whole cell to the lower right of each grid point, or _UNSURE."""
    winners = np.zeros(scores.shape[1:], np.uint8)
    best, second = scores[0].copy(), np.full_like(scores[0], -np.inf)
    for index, plane in enumerate(scores[1:], start=1):
        np.copyto(winners, np.uint8(index), where=plane > best)
        np.maximum(second, np.minimum(best, plane), out=second)
        np.maximum(best, plane, out=best)
    second += _MARGIN * max(scores.max(), -scores.min())
    winners[~(best > second)] = _UNSURE
    is_other_right = winners[:, 1:] != winners[:, :-1]
    cells = winners.copy()  # at the right and lower edge a cell has no far side
    cells[:, :-1][is_other_right] = _UNSURE
    cells[:-1][winners[1:] != winners[:-1]] = _UNSURE
    cells[:-1, :-1][is_other_right[1:]] = _UNSURE  # with the two above, all four corners are compared
    return cells


def _interpolate_argmax(flat: Floats, vertical: _Ends, horizontal: _Ends) -> Bytes:
    """The winner at each of N places between four points of `flat` [K, h * w]: [N] uint8."""
    upper_left, upper_right = vertical.before + horizontal.before, vertical.before + horizontal.after
    lower_left, lower_right = vertical.after + horizontal.before, vertical.after + horizontal.after
    winners = np.zeros(len(upper_left), np.uint8)
    best: Floats | None = None
    for index, plane in enumerate(flat):
        upper = _blend(plane.take(upper_left), plane.take(upper_right), horizontal.weights)
        lower = _blend(plane.take(lower_left), plane.take(lower_right), horizontal.weights)
        score = _blend(upper, lower, vertical.weights)
        if best is None:
            best = score
        else:
            np.copyto(winners, np.uint8(index), where=score > best)
            np.maximum(best, score, out=best)
    return winners


def _blend(before: Floats, after: Floats, weights: Floats) -> Floats:
    """before + weights * (after - before), in the memory of both."""
    after -= before
    after *= weights
    before += after
    return before
