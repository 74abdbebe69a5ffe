"""Outlines fill to the very mask they were traced from, in each consumer's own rasteriser."""

import json

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import measure

from service import outlines
from service.outlines import Outline
from service.rle import BoolMask
from tests.fakes import fill_polygons
from tests.unit.test_rle import bool_masks

DONUT = [
    "......",
    ".####.",
    ".#..#.",
    ".####.",
    ".....#",
]


def drawn(rows: list[str]) -> BoolMask:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def count_pieces(mask: BoolMask, connectivity: int = 1) -> int:
    return int(measure.label(mask, connectivity=connectivity).max())  # type: ignore[no-untyped-call]


def iou(one: BoolMask, other: BoolMask) -> float:
    return float((one & other).sum() / (one | other).sum())


def area(ring: npt.NDArray[np.float64]) -> float:
    """Positive for a ring that runs clockwise on the screen."""
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@settings(deadline=None, max_examples=50)
@given(bool_masks())
def test_exact_outlines_fill_to_the_mask(mask: BoolMask) -> None:
    pieces = outlines.trace(mask)
    assert (fill_polygons(outlines.coco_polygons(pieces), mask.shape) == mask).all()
    rings = [ring for piece in pieces for ring in (piece.exterior, *piece.holes)]
    assert sum(area(ring) for ring in rings) == mask.sum()
    assert all(area(piece.exterior) > 0 and all(area(hole) < 0 for hole in piece.holes) for piece in pieces)


@settings(deadline=None, max_examples=50)
@given(bool_masks())
def test_pieces_and_holes_are_the_connected_ones(mask: BoolMask) -> None:
    pieces = outlines.trace(mask)
    assert len(pieces) == count_pieces(mask)
    around = np.pad(~mask, 1, constant_values=True)
    assert sum(len(piece.holes) for piece in pieces) == count_pieces(around, connectivity=2) - 1


@settings(deadline=None, max_examples=50)
@given(bool_masks())
def test_each_hole_belongs_to_the_piece_around_it(mask: BoolMask) -> None:
    pieces = outlines.trace(mask)
    alone = [(fill_polygons(outlines.coco_polygons([piece]), mask.shape), piece) for piece in pieces]
    for filled, piece in alone:
        assert filled.sum() == sum(area(ring) for ring in (piece.exterior, *piece.holes))
        assert count_pieces(filled) == 1


def test_known_outlines() -> None:
    donut, dot = outlines.trace(drawn(DONUT))
    assert donut.exterior.tolist() == [[1, 1], [5, 1], [5, 4], [1, 4]]
    assert [hole.tolist() for hole in donut.holes] == [[[2, 3], [4, 3], [4, 2], [2, 2]]]
    assert dot == Outline(dot.exterior)
    assert dot.exterior.tolist() == [[5, 4], [6, 4], [6, 5], [5, 5]]
    assert outlines.trace(np.zeros((3, 4), dtype=bool)) == []


def test_a_hole_is_joined_by_a_cut_there_and_back() -> None:
    donut = outlines.trace(drawn(DONUT))[0]
    ring = outlines.as_one_ring(donut).tolist()
    assert ring == [[1, 1], [2, 2], [2, 3], [4, 3], [4, 2], [2, 2], [1, 1], [5, 1], [5, 4], [1, 4]]


def chelsea() -> BoolMask:
    """A large mask with a ragged edge, pieces and holes: the darker half of a photo of a cat, four times enlarged."""
    photo = Image.fromarray(skimage.data.chelsea()).convert("L")  # type: ignore[no-untyped-call]
    smooth = photo.resize((64, 48), Image.Resampling.BILINEAR).resize((1804, 1200), Image.Resampling.BICUBIC)
    return np.asarray(smooth) < 110


def test_a_tolerance_spares_points_and_little_else() -> None:
    mask = chelsea()
    counts, overlaps = [], []
    for tolerance in (0.0, 1.0, 3.0):
        polygons = outlines.coco_polygons(outlines.trace(mask, tolerance))
        counts.append(sum(map(len, polygons)) // 2)
        overlaps.append(iou(fill_polygons(polygons, mask.shape), mask))
    assert overlaps[0] == 1
    assert overlaps[1] >= 0.99
    assert counts[1] < counts[0] / 3
    assert counts[2] < counts[1]
    assert overlaps[2] < overlaps[1]


@settings(deadline=None, max_examples=50)
@given(bool_masks(), st.floats(0, 5))
def test_simplified_rings_lie_within_the_tolerance(mask: BoolMask, tolerance: float) -> None:
    for piece in outlines.trace(mask):
        for ring in (piece.exterior, *piece.holes):
            simple = outlines.simplify(ring, tolerance)
            assert 3 <= len(simple) <= len(ring)
            assert abs(area(simple)) > 0
            ends = np.roll(simple, -1, axis=0)
            spans = ends - simple
            offsets = ring[:, None] - simple  # [N, M, 2]
            shares = ((offsets * spans).sum(axis=2) / np.square(spans).sum(axis=1)).clip(0, 1)
            away = np.linalg.norm(offsets - shares[..., None] * spans, axis=2)
            assert away.min(axis=1).max() <= tolerance + 1e-9


def test_yolo_lines_name_the_class_and_shares_of_the_sides() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[5:10, 0:5] = mask[0:2, 10:20] = True
    lines = outlines.yolo_lines(outlines.trace(mask), 1, (10, 20))
    assert lines == ["1 0.5 0 1 0 1 0.2 0.5 0.2", "1 0 0.5 0.25 0.5 0.25 1 0 1"]


@settings(deadline=None, max_examples=50)
@given(bool_masks())
def test_yolo_lines_fill_to_the_mask(mask: BoolMask) -> None:
    height, width = mask.shape
    polygons = []
    for line in outlines.yolo_lines(outlines.trace(mask), 0, (height, width)):
        shares = np.array(line.split()[1:], dtype=float).reshape(-1, 2)
        assert ((shares >= 0) & (shares <= 1)).all()
        polygons.append((shares * (width, height)).ravel().tolist())
    assert (fill_polygons(polygons, mask.shape) == mask).all()


def test_geojson_has_closed_rings_and_real_holes() -> None:
    geometry = outlines.geojson_geometry(outlines.trace(drawn(DONUT)))
    assert json.loads(json.dumps(geometry)) == {
        "type": "MultiPolygon",
        "coordinates": [
            [
                [[1, 1], [5, 1], [5, 4], [1, 4], [1, 1]],
                [[2, 3], [4, 3], [4, 2], [2, 2], [2, 3]],
            ],
            [[[5, 4], [6, 4], [6, 5], [5, 5], [5, 4]]],
        ],
    }


@pytest.mark.parametrize("tolerance", [0.0, 100.0])
def test_a_single_pixel_keeps_its_square(tolerance: float) -> None:
    (pixel,) = outlines.trace(np.ones((1, 1), dtype=bool), tolerance)
    assert pixel.exterior.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
