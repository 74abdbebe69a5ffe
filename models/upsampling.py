"""The class that wins at each pixel of bilinearly resized logits, without resizing most of them.

A bilinear value is a weighted mean of the four grid points around it. Where one class wins at all four, it wins at
every pixel between them: the differences to the other classes are means of positive numbers. So the winners of the
grid are repeated, and only the few pixels in cells that a border crosses are computed. Where the logits are enlarged
twice, to the model's square and from there to the photo, the same holds for the points of the square. Called by
letterbox.py.

`_upsampling.pyx` does the same in C where petseg was installed with a compiler; the tests run both.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

try:
    from models import _upsampling
except ImportError:
    _upsampling = None  # type: ignore[assignment]

compiled = _upsampling
"""None where petseg was installed without a C compiler, or runs from a checkout of its own."""

Bools = npt.NDArray[np.bool_]
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
    margin = _margin(scores)
    if compiled is not None:
        return _fill_compiled(scores, margin, height, width)
    return _fill(_Points(_flatten(scores), _find_winners(scores, margin)), height, width)


def resize_twice_argmax(scores: Floats, square: int, rows: slice, columns: slice, height: int, width: int) -> Bytes:
    """`resize_argmax(resize(scores, (square, square))[:, rows, columns], height, width)`.

    scores: [K, h, w], K < 255, h and w <= square: a smaller square's points could lie cells apart.
    """
    margin = _margin(scores)
    down, across = _Axis(scores.shape[1], square, rows), _Axis(scores.shape[2], square, columns)
    if compiled is not None:  # all points: to find out which are needed would take as long
        enlarged = compiled.enlarge(np.ascontiguousarray(scores), *down.table, *across.table)
        return _fill_compiled(enlarged, margin, height, width)
    winners = _find_cells(_find_winners(scores, margin)).take(across.before, axis=1).take(down.before, axis=0)
    # Of neighbours in sure cells both cells have the same winner, for these share a point. So what lies between points
    # of different winners has an unsure one at a corner, and all its corners are computed here.
    row, column, places = _find_places(_with_neighbours(winners == _UNSURE))
    found = list(_interpolate(_flatten(scores), down.at(row, scores.shape[2]), across.at(column)))
    winners.reshape(-1)[places] = _find_winners(found, margin)
    flat = np.empty((len(scores), winners.size), np.float32)  # nothing reads the others
    for plane, values in zip(flat, found, strict=True):
        plane[places] = values
    return _fill(_Points(flat, winners), height, width)


class _Points(NamedTuple):
    """A grid of h x w points."""

    scores: Floats
    """[K, h * w]; of points that lie within one class's region they may be missing."""
    winners: Bytes
    """[h, w]: the class that wins, or _UNSURE where two are too close to tell."""


class _Ends(NamedTuple):
    """The grid points beside each of N pixels along one axis, as places in memory, each [N]."""

    before: Indices
    after: Indices
    weights: Floats
    """Of `after`; `before` has the rest."""


class _Axis:
    """Where the pixels of one axis, or of `part` of it, lie on the grid of scores."""

    def __init__(self, points: int, pixels: int, part: slice = slice(None)) -> None:
        scale = np.float32(points / pixels)
        half = np.float32(0.5)
        positions = np.maximum((np.arange(pixels, dtype=np.float32)[part] + half) * scale - half, 0)
        self.before: Indices = np.minimum(positions.astype(np.intp), points - 1)
        """[pixels]: the grid point before each pixel."""
        self._after: Indices = np.minimum(self.before + 1, points - 1)
        self._weights: Floats = positions - self.before.astype(np.float32)

    @property
    def table(self) -> tuple[Indices, Floats]:
        """The grid point before each pixel and the weight of the next one: what `_upsampling.pyx` reads."""
        return self.before, self._weights

    def at(self, pixels: Indices, step: int = 1) -> _Ends:
        """Both ends of each of `pixels`; step: elements from one grid point to the next."""
        return _Ends(step * self.before[pixels], step * self._after[pixels], self._weights[pixels])


def _fill_compiled(scores: Floats, margin: np.float32, height: int, width: int) -> Bytes:
    rows, columns = _Axis(scores.shape[1], height), _Axis(scores.shape[2], width)
    return compiled.fill(np.ascontiguousarray(scores), float(margin), *rows.table, *columns.table)


def _fill(points: _Points, height: int, width: int) -> Bytes:
    """The winner at each of [height, width] pixels of the resized scores of `points`."""
    rows, columns = _Axis(points.winners.shape[0], height), _Axis(points.winners.shape[1], width)
    widened = _find_cells(points.winners).take(columns.before, axis=1)  # [h, width]
    mask = np.empty((height, width), np.uint8)
    for start in range(0, height, strip := max(1, _STRIP_PIXELS // width)):
        part = mask[start : start + strip]
        part[:] = widened.take(rows.before[start : start + strip], axis=0)
        row, column, places = _find_places(part == _UNSURE)
        ends = rows.at(row + start, points.winners.shape[1]), columns.at(column)
        part.reshape(-1)[places] = _argmax(_interpolate(points.scores, *ends))
    return mask


def _flatten(scores: Floats) -> Floats:
    """[K, h, w] -> [K, h * w]."""
    return np.ascontiguousarray(scores).reshape(len(scores), -1)


def _margin(scores: Floats) -> np.float32:
    largest: np.float32 = max(scores.max(), -scores.min())
    return np.float32(_MARGIN) * largest


def _find_winners(planes: Iterable[Floats], margin: np.float32) -> Bytes:
    """The class that wins at each place of K `planes` of one shape, or _UNSURE where it leads by less than `margin`."""
    first, *others = planes
    winners = np.zeros(first.shape, np.uint8)
    best, second = first.copy(), np.full_like(first, -np.inf)
    for index, plane in enumerate(others, start=1):
        np.copyto(winners, np.uint8(index), where=plane > best)
        np.maximum(second, np.minimum(best, plane), out=second)
        np.maximum(best, plane, out=best)
    second += margin
    winners[~(best > second)] = _UNSURE
    return winners


def _find_cells(winners: Bytes) -> Bytes:
    """[h, w]: the class that wins in the whole cell to the lower right of each grid point, or _UNSURE."""
    is_other_right = winners[:, 1:] != winners[:, :-1]
    cells = winners.copy()  # at the right and lower edge a cell has no far side
    cells[:, :-1][is_other_right] = _UNSURE
    cells[:-1][winners[1:] != winners[:-1]] = _UNSURE
    cells[:-1, :-1][is_other_right[1:]] = _UNSURE  # with the two above, all four corners are compared
    return cells


def _with_neighbours(marks: Bools) -> Bools:
    """`marks` [h, w] and the eight places around each of them."""
    above_and_below = marks.copy()
    above_and_below[1:] |= marks[:-1]
    above_and_below[:-1] |= marks[1:]
    around = above_and_below.copy()
    around[:, 1:] |= above_and_below[:, :-1]
    around[:, :-1] |= above_and_below[:, 1:]
    return around


def _find_places(marks: Bools) -> tuple[Indices, Indices, Indices]:
    """Row, column and place in memory of each of N `marks` [h, w], each [N]."""
    places = np.flatnonzero(marks)
    row = places // marks.shape[1]
    return row, places - marks.shape[1] * row, places


def _interpolate(flat: Floats, vertical: _Ends, horizontal: _Ends) -> Iterator[Floats]:
    """The scores at each of N places between four points of `flat` [K, h * w]: K times [N]."""
    upper_left, upper_right = vertical.before + horizontal.before, vertical.before + horizontal.after
    lower_left, lower_right = vertical.after + horizontal.before, vertical.after + horizontal.after
    for plane in flat:
        upper = _blend(plane.take(upper_left), plane.take(upper_right), horizontal.weights)
        lower = _blend(plane.take(lower_left), plane.take(lower_right), horizontal.weights)
        yield _blend(upper, lower, vertical.weights)


def _blend(before: Floats, after: Floats, weights: Floats) -> Floats:
    """before + weights * (after - before), in the memory of both."""
    after -= before
    after *= weights
    before += after
    return before


def _argmax(planes: Iterator[Floats]) -> Bytes:
    """The class that wins at each of N places, the first of equals: [N] uint8. Reads one plane after the other."""
    best = next(planes)
    winners = np.zeros(best.shape, np.uint8)
    for index, plane in enumerate(planes, start=1):
        np.copyto(winners, np.uint8(index), where=plane > best)
        np.maximum(best, plane, out=best)
    return winners
