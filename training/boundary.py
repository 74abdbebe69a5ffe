"""How well a mask follows the animal's outline: boundary IoU at the photo's own size. Called by `evaluate.py`."""

import math

from scipy import ndimage

from models.letterbox import Array
from training.official_layout import IGNORE

TOLERANCE = 0.02
"""Width of the compared band as a fraction of the photo's diagonal: the paper's value for photos."""


def tolerance_px(height: int, width: int) -> int:
    """`TOLERANCE` in pixels of a photo, at least one."""
    return max(1, round(TOLERANCE * math.hypot(height, width)))


def boundary_iou(mask: Array, target: Array, class_index: int, distance_px: int) -> float:
    """IoU of two bands: the pixels of the predicted and of the true region within `distance_px` of their own outline.

    Cheng et al., "Boundary IoU", CVPR 2021; the picture's edge is part of an outline. Ignored pixels are cut out of
    both regions before the bands are taken. So the true band begins at the inner edge of the ignored ring, an outline
    anywhere inside the ring is right, one that stays short of the ring moves the predicted band inwards, and what
    spills out beyond it joins the union. 1 where both regions are empty.

    mask, target: [H, W] class indices, 255 ignored in the target.
    """
    truth = _band(target == class_index, distance_px)
    predicted = _band((mask == class_index) & (target != IGNORE), distance_px)
    union = int((truth | predicted).sum())
    return int((truth & predicted).sum()) / union if union else 1.0


def _band(region: Array, distance_px: int) -> Array:
    """[H, W] bool: pixels of `region` less than `distance_px` + 1 from its outside, counted along each axis."""
    window = 2 * distance_px + 1
    kept: Array = ndimage.minimum_filter(region, size=window, mode="constant", cval=0)
    return region & ~kept
