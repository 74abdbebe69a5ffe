"""The class that wins at each pixel of bilinearly resized logits, in two ways that give the same.

`resize_argmax` computes every pixel, a few rows at a time, so that all it touches stays in the cache: torch's resize
takes twice as long and more. On large photos `enlarge_argmax` computes only where the winner is not sure. A bilinear
value is a weighted mean of the four grid points around it. Where one class wins at all four, it wins at every pixel
between them: the differences to the other classes are means of positive numbers. Only the cells that a border crosses
are computed pixel by pixel, so a 12-megapixel mask costs little more than writing it. Called by letterbox.py.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

_UNSURE = 255
"""Stands for a grid point whose winner leads by less than rounding may turn."""
_MARGIN = 1e-4
"""Such a lead, as a share of the largest score; float32 keeps seven digits."""

_STRIP_PIXELS = 1 << 15
"""Pixels computed at once: with three scores of each, about what a core's second cache holds."""


def resize_argmax(scores: Floats, height: int, width: int) -> npt.NDArray[np.uint8]:
    """`resize(scores, (height, width)).argmax(0)` for the bilinear resize of torch with align_corners=False.

    scores: [K, h, w], K < 256, of any size against the result. Returns [height, width] uint8.
    """
    rows, columns = _Axis(scores.shape[1], height), _Axis(scores.shape[2], width)
    widened = _between(scores, columns.before, columns.after, columns.weights, axis=2)  # [K, h, width]
    mask = np.zeros((height, width), np.uint8)
    for start in range(0, height, strip := max(1, _STRIP_PIXELS // width)):
        part = slice(start, start + strip)
        ends = rows.before[part], rows.after[part], rows.weights[part, None]
        best = _between(widened[0], *ends, axis=0)  # [strip, width]
        for index, plane in enumerate(widened[1:], start=1):
            enlarged = _between(plane, *ends, axis=0)
            np.copyto(mask[part], np.uint8(index), where=enlarged > best)
            np.maximum(best, enlarged, out=best)
    return mask


def enlarge_argmax(scores: Floats, height: int, width: int) -> npt.NDArray[np.uint8]:
    """As `resize_argmax`, where K < 255, h <= height and w <= width."""
    rows, columns = _Axis(scores.shape[1], height), _Axis(scores.shape[2], width)
    winners = scores.argmax(axis=0).astype(np.uint8)
    mask = np.repeat(np.repeat(winners, columns.sizes, axis=1), rows.sizes, axis=0)
    corners = np.pad(scores, ((0, 0), (0, 1), (0, 1)), mode="edge")  # [K, h+1, w+1]: past the end nothing changes
    upper, left = np.nonzero(_is_mixed(scores, winners))
    row_sizes, column_sizes = rows.sizes[upper], columns.sizes[left]
    # Cells differ by a pixel in size; those of one size are computed together.
    for cell_height in np.unique(row_sizes):
        for cell_width in np.unique(column_sizes):
            chosen = (row_sizes == cell_height) & (column_sizes == cell_width)
            if cell_height and cell_width and chosen.any():
                _fill_cells(mask, corners, rows, columns, upper[chosen], left[chosen], cell_height, cell_width)
    return mask


class _Axis:
    """Where the pixels of one axis lie on the grid of scores."""

    def __init__(self, points: int, pixels: int) -> None:
        scale = np.float32(points / pixels)
        half = np.float32(0.5)
        positions = np.maximum((np.arange(pixels, dtype=np.float32) + half) * scale - half, 0)
        self.before: Indices = np.minimum(positions.astype(np.intp), points - 1)
        """[pixels]: the grid point before each pixel."""
        self.after: Indices = np.minimum(self.before + 1, points - 1)
        self.weights: Floats = positions - self.before.astype(np.float32)
        """[pixels] of the grid point after each pixel; the one before it has the rest."""
        self.starts = np.searchsorted(self.before, np.arange(points))
        """[points]: first pixel at or behind each grid point."""
        self.sizes = np.diff(self.starts, append=pixels)
        """[points]: pixels from each grid point to the next."""


def _between(scores: Floats, before: Indices, after: Indices, weights: Floats, axis: int) -> Floats:
    """Scores along `axis` at n places between the points `before` and `after`; weights: of `after`, to broadcast."""
    blended: Floats = scores.take(before, axis)
    rise = scores.take(after, axis)
    rise -= blended
    rise *= weights
    blended += rise
    return blended


def _is_mixed(scores: Floats, winners: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """[h, w]: whether the cell to the lower right of each grid point may hold more than one class."""
    best_two = np.partition(scores, scores.shape[0] - 2, axis=0)[-2:]
    is_sure = best_two[1] - best_two[0] > _MARGIN * np.abs(scores).max()
    padded = np.pad(np.where(is_sure, winners, np.uint8(_UNSURE)), ((0, 1), (0, 1)), mode="edge")
    own, right, below, across = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    mixed: npt.NDArray[np.bool_] = (own == _UNSURE) | (own != right) | (own != below) | (own != across)
    return mixed


def _fill_cells(
    mask: npt.NDArray[np.uint8],
    corners: Floats,
    rows: _Axis,
    columns: _Axis,
    upper: Indices,
    left: Indices,
    cell_height: int,
    cell_width: int,
) -> None:
    """Compute M cells of one size pixel by pixel, in place; `upper` and `left` [M] are their grid points."""
    tops, lefts = rows.starts[upper], columns.starts[left]
    down = rows.weights[tops[:, None] + np.arange(cell_height)][:, :, None]  # [M, ph, 1]
    across = columns.weights[lefts[:, None] + np.arange(cell_width)]  # [M, pw]
    best: Floats | None = None
    classes = np.zeros((len(upper), cell_height, cell_width), np.uint8)
    for index, plane in enumerate(corners):
        above = _blend(plane[upper, left], plane[upper, left + 1], across)  # [M, pw]
        below = _blend(plane[upper + 1, left], plane[upper + 1, left + 1], across)
        scores = above[:, None, :] * (1 - down) + below[:, None, :] * down  # [M, ph, pw]
        if best is None:
            best = scores
        else:
            classes[scores > best] = index
            np.maximum(best, scores, out=best)
    for top, start, cell in zip(tops.tolist(), lefts.tolist(), classes, strict=True):
        mask[top : top + cell_height, start : start + cell_width] = cell


def _blend(before: Floats, after: Floats, weights: Floats) -> Floats:
    """[M], [M], [M, n] -> [M, n]."""
    blended: Floats = before[:, None] * (1 - weights) + after[:, None] * weights
    return blended
