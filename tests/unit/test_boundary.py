import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from models.letterbox import Array
from training.boundary import boundary_iou, tolerance_px

label_maps = arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 1, 2, 255]))
masks = arrays(np.uint8, (9, 11), elements=st.integers(0, 2))


def square(size: int, margin: int) -> Array:
    """[size, size]: class 1 but for a margin of background."""
    target = np.zeros((size, size), np.uint8)
    target[margin : size - margin, margin : size - margin] = 1
    return target


def test_a_mask_one_pixel_too_wide_by_hand() -> None:
    truth, mask = square(20, 5), square(20, 4)
    # Bands of one pixel lie beside each other; of two, the outer ring of the truth (36) is in both (64 and 80).
    assert boundary_iou(mask, truth, 1, 1) == 0
    assert boundary_iou(mask, truth, 1, 2) == pytest.approx(36 / (64 + 80 - 36))


def test_the_pictures_edge_is_an_outline() -> None:
    everything = np.ones((6, 6), np.uint8)
    hollow = square(6, 1) ^ np.uint8(1)
    assert boundary_iou(hollow, everything, 1, 1) == 1


def test_an_outline_anywhere_in_the_ring_is_right_and_short_of_it_is_not() -> None:
    target = square(30, 8)
    target[(square(30, 6) == 1) & (target == 0)] = 255
    for margin in (6, 7, 8):
        assert boundary_iou(square(30, margin), target, 1, 2) == 1
    assert boundary_iou(square(30, 9), target, 1, 2) < 0.5
    assert boundary_iou(square(30, 4), target, 1, 2) < 0.5


def test_the_wrong_species_scores_nothing() -> None:
    assert boundary_iou(square(20, 5) * np.uint8(2), square(20, 5), 1, 3) == 0


@pytest.mark.parametrize(("height", "width", "pixels"), [(300, 400, 10), (96, 128, 3), (1, 1, 1)])
def test_tolerance_follows_the_diagonal(height: int, width: int, pixels: int) -> None:
    assert tolerance_px(height, width) == pixels


@settings(max_examples=60, deadline=None)
@given(target=label_maps, mask=masks, other=masks, distance=st.integers(1, 3))
def test_laws(target: Array, mask: Array, other: Array, distance: int) -> None:
    score = boundary_iou(mask, target, 1, distance)
    assert 0 <= score <= 1
    assert boundary_iou(np.where(target == 255, other, mask), target, 1, distance) == score
    assert boundary_iou(np.where(target == 255, other, target), target, 1, distance) == 1


@settings(max_examples=60, deadline=None)
@given(truth=masks, mask=masks, distance=st.integers(1, 3))
def test_equals_the_papers_erosion(truth: Array, mask: Array, distance: int) -> None:
    def band(region: Array) -> Array:
        eroded = ndimage.binary_erosion(region == 1, np.ones((3, 3)), iterations=distance)
        left: Array = (region == 1) & ~eroded
        return left

    both, either = (band(truth) & band(mask)).sum(), (band(truth) | band(mask)).sum()
    assert boundary_iou(mask, truth, 1, distance) == pytest.approx(both / either if either else 1)
