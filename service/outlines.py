"""Masks as polygons: exact outlines along the pixels' edges, simplified, and as COCO, YOLO and GeoJSON write them.

Coordinates are (x, y) in pixels, origin at the photo's top left corner: pixel (0, 0) covers the square from (0, 0) to
(1, 1), as in COCO, so a point lies on a pixel's edge and runs up to the width and the height.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.rle import BoolMask

Ring = npt.NDArray[np.float64]
"""[N, 2] (x, y), closed without repeating its first point."""


@dataclass(frozen=True)
class Outline:
    """One connected piece of a mask; pixels that touch at a corner alone are two pieces.

    The exterior runs clockwise as seen on the screen, holes the other way.
    """

    exterior: Ring
    holes: tuple[Ring, ...] = ()


def trace(mask: BoolMask, tolerance: float = 0.0) -> list[Outline]:
    """The outlines of a mask [H, W], from top to bottom.

    tolerance: how far an outline may lie from the pixels' edges, in pixels; 0 is exact, with a point at each turn.
    """
    corners = _find_corners(mask)
    if not corners.x.size:
        return []
    rings, ring_of_corner = _follow(corners)
    points = np.column_stack([corners.x, corners.y]).astype(np.float64)
    exteriors: list[Ring] = []
    holes: dict[int, list[Ring]] = {}
    place: list[int] = []
    for ring in rings:
        x, y = int(corners.x[ring[0]]), int(corners.y[ring[0]])
        outline = simplify(points[ring], tolerance)
        if mask[y, x]:
            place.append(len(exteriors))
            exteriors.append(outline)
        else:
            parent = place[ring_of_corner[corners.left_of(mask, x, y)]]
            place.append(parent)
            holes.setdefault(parent, []).append(outline[::-1])
    return [Outline(exterior, tuple(holes.get(index, ()))) for index, exterior in enumerate(exteriors)]


def simplify(ring: Ring, tolerance: float) -> Ring:
    """`ring` [N, 2] with the fewest points that Douglas and Peucker's method finds within `tolerance` pixels of it.

    A ring that would lose its area stays as it is.
    """
    if tolerance <= 0 or len(ring) <= 4:
        return ring
    closed = np.concatenate([ring, ring[:1]])
    farthest = int(np.square(ring - ring[0]).sum(axis=1).argmax())
    is_kept = np.zeros(len(closed), dtype=bool)
    is_kept[[0, farthest, -1]] = True
    spans = [(0, farthest), (farthest, len(ring))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            middle = first + 1 + worst
            is_kept[middle] = True
            spans += [(first, middle), (middle, last)]
    kept = closed[:-1][is_kept[:-1]]
    return kept if len(kept) >= 3 and _area(kept) > 0 else ring


def as_one_ring(outline: Outline) -> Ring:
    """The outline with each hole joined to the exterior by a cut of no width, walked there and back.

    COCO and YOLO have no holes; filled by the even-odd rule, as pycocotools and OpenCV fill, the cut leaves no trace.
    """
    ring = outline.exterior
    for hole in outline.holes:
        squared = np.square(ring[:, None] - hole[None]).sum(axis=2) if len(ring) * len(hole) < 1 << 20 else None
        if squared is None:  # too many pairs for one table: the hole's first point will do
            squared = np.square(ring[:, None] - hole[None, :1]).sum(axis=2)
        at, start = np.unravel_index(int(squared.argmin()), squared.shape)
        turned = np.roll(hole, -int(start), axis=0)
        ring = np.concatenate([ring[: at + 1], turned, turned[:1], ring[at:]])
    return ring


def coco_polygons(outlines: list[Outline]) -> list[list[float]]:
    """COCO's `segmentation`: one flat [x, y, x, y, ...] for each piece, to a hundredth of a pixel."""
    return [as_one_ring(outline).ravel().round(2).tolist() for outline in outlines]


def yolo_lines(outlines: list[Outline], class_index: int, size: tuple[int, int]) -> list[str]:
    """YOLO's segmentation labels: `class x y x y ...` for each piece, coordinates as shares of the photo's sides.

    size: (height, width) of the photo in pixels.
    """
    height, width = size
    lines = []
    for outline in outlines:
        shares = (as_one_ring(outline) / (width, height)).ravel()
        lines.append(" ".join([str(class_index), *(f"{share:.6g}" for share in shares.tolist())]))
    return lines


def geojson_geometry(outlines: list[Outline]) -> dict[str, Any]:
    """A GeoJSON MultiPolygon whose positions are pixels: exteriors first, then their holes, rings closed."""

    def close(ring: Ring) -> list[list[float]]:
        return [*ring.round(2).tolist(), ring[0].round(2).tolist()]

    pieces = [[close(ring) for ring in (outline.exterior, *outline.holes)] for outline in outlines]
    return {"type": "MultiPolygon", "coordinates": pieces}


@dataclass(frozen=True)
class _Corners:
    """The points where outlines turn, in row-major order, and who follows whom.

    Where two pixels touch at a corner alone, two corners lie at one point: one for each of the pixels.
    """

    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    along_row: npt.NDArray[np.int64]
    """[N]: the corner at the other end of the horizontal edge."""
    along_column: npt.NDArray[np.int64]
    """[N]: the corner at the other end of the vertical edge."""
    column_order: npt.NDArray[np.int64]
    """[N]: corners sorted by x, then y; two by two they are the ends of the vertical edges."""
    column_keys: npt.NDArray[np.int64]
    """[N / 2]: one sortable number for the upper end of each vertical edge, in `column_order`."""
    rows: int

    def left_of(self, mask: BoolMask, x: int, y: int) -> int:
        """A corner of the vertical edge that a walk to the left from pixel (x, y), just right of the mask, meets last.

        That is where the run of the mask's pixels begins that ends at x: an edge of the same connected piece.
        """
        gaps = np.flatnonzero(~mask[y, :x])
        run_start = int(gaps[-1]) + 1 if gaps.size else 0
        edge = int(np.searchsorted(self.column_keys, run_start * self.rows + y, side="right")) - 1
        return int(self.column_order[2 * edge])


def _find_corners(mask: BoolMask) -> _Corners:
    """Each point of the pixel grid that has 1, 3 or, at opposite corners, 2 of its 4 pixels in the mask [H, W].

    Along one row of the grid the corners are, two by two, the ends of the outlines' horizontal edges; along one column
    those of the vertical edges. So sorting finds all edges at once.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), dtype=np.uint8)
    padded[1:-1, 1:-1] = mask
    # Bits: 1 the pixel up and left of the grid point, 2 up and right, 4 down and left, 8 down and right.
    code = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, :-1] << 2 | padded[1:, 1:] << 3
    is_falling, is_rising = code == 0b1001, code == 0b0110
    y, x = np.nonzero(_TURNS[code])
    twice = (is_falling | is_rising)[y, x]
    rising = is_rising[y, x]
    repeats = 1 + twice.astype(np.int64)
    second = np.zeros(int(repeats.sum()), dtype=bool)
    second[np.cumsum(repeats)[twice] - 1] = True
    y, x, rising = (np.repeat(values, repeats) for values in (y, x, rising))
    # In a row the left pixel's corner comes first, in a column the upper one's: where the two pixels lie on a rising
    # diagonal, these are not the same.
    column_order = np.lexsort((second ^ rising, y, x))
    along_row, along_column = np.empty_like(y), np.empty_like(y)
    pairs = np.arange(y.size)
    along_row[pairs] = pairs ^ 1
    along_column[column_order] = column_order[pairs ^ 1]
    upper = column_order[::2]
    rows = height + 1
    return _Corners(x, y, along_row, along_column, column_order, x[upper] * rows + y[upper], rows)


_TURNS = np.array([bits.bit_count() in (1, 3) or bits in (0b1001, 0b0110) for bits in range(16)])
"""[16]: whether an outline turns at a grid point with these of its four pixels in the mask."""


def _follow(corners: _Corners) -> tuple[list[list[int]], npt.NDArray[np.int64]]:
    """The closed rings, each from its upper left corner and to the right at first, and the ring of each corner."""
    along_row, along_column = corners.along_row.tolist(), corners.along_column.tolist()
    ring_of_corner = [-1] * len(along_row)
    rings: list[list[int]] = []
    for start in range(len(along_row)):
        if ring_of_corner[start] >= 0:
            continue
        ring, corner = [], start
        while ring_of_corner[corner] < 0:
            across = along_row[corner]
            ring += [corner, across]
            ring_of_corner[corner] = ring_of_corner[across] = len(rings)
            corner = along_column[across]
        rings.append(ring)
    return rings, np.asarray(ring_of_corner)


def _distances(points: Ring, first: Ring, last: Ring) -> npt.NDArray[np.float64]:
    """Distance of each of `points` [N, 2] from the segment between `first` [2] and `last` [2]."""
    span = last - first
    length = float(span @ span)
    offsets = points - first
    if length == 0:
        return np.hypot(offsets[:, 0], offsets[:, 1])
    along = np.clip(offsets @ span / length, 0, 1)
    away = offsets - along[:, None] * span
    return np.hypot(away[:, 0], away[:, 1])


def _area(ring: Ring) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
