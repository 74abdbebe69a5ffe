"""Segmentation scores, all from one confusion matrix over all counted pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from training.official_layout import IGNORE


def confusion_matrix(mask: Tensor, target: Tensor, classes: int) -> Tensor:
    """Counts [K, K] int64, rows are the truth, columns the prediction; pixels of target 255 do not count.

    mask, target: Tensor of one shape, integer class indices.
    """
    counted = target != IGNORE
    if not counted.any():
        return torch.zeros(classes, classes, dtype=torch.int64)
    return multiclass_confusion_matrix(mask[counted].long(), target[counted].long(), classes, validate_args=False)


def class_iou(confusion: Tensor) -> Tensor:
    """IoU [..., K] float64 from counts [..., K, K]; NaN for a class neither there nor predicted."""
    counts = confusion.double()
    both = counts.diagonal(dim1=-2, dim2=-1)
    return both / (counts.sum(-1) + counts.sum(-2) - both)


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean of `class_iou` [...] over the classes seen; 0 where nothing was counted."""
    return class_iou(confusion).nanmean(-1).nan_to_num(0.0)


def scores(confusion: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Per-class IoU and Dice, their means, and pixel accuracy, in [0, 1]; means leave out a class never seen."""
    counts, iou = confusion.double(), class_iou(confusion)
    both, seen = counts.diag(), ~iou.isnan()
    dice = 2 * both / (counts.sum(0) + counts.sum(1)).clamp(min=1)
    return {
        "mean_iou": float(mean_iou(confusion)),
        "iou": {name: round(float(value), 4) for name, value, ok in zip(class_names, iou, seen, strict=True) if ok},
        "dice": float(dice[seen].mean()) if seen.any() else 0.0,
        "pixel_accuracy": float(both.sum() / counts.sum().clamp(min=1)),
    }
