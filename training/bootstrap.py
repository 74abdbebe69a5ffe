"""How sure a score is: bootstrap intervals over photographs. Called by every module that evaluates.

A score here is a function of sums over photos (one confusion matrix, a mean), so that all resamples are one product.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.metrics import mean_iou

RESAMPLES = 1000
LEVEL = 0.95


def interval(
    per_photo: Tensor,
    statistic: Callable[[Tensor], Tensor],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval (Efron 1979) of a score, drawing as many photos as there are with replacement.

    per_photo: Tensor [N, ...], what each photo adds. `statistic` turns sums over photos [R, ...] into R scores.
    """
    photos = len(per_photo)
    if photos == 0:
        raise ValueError("got 0 photos, wanted at least one to resample")
    drawn = np.random.default_rng(seed).multinomial(photos, np.full(photos, 1 / photos), size=resamples)
    sums = torch.from_numpy(drawn).double() @ per_photo.double().reshape(photos, -1)  # [R, N] @ [N, D] -> [R, D]
    scores = statistic(sums.reshape(resamples, *per_photo.shape[1:]))
    tail = (1 - level) / 2
    low, high = torch.quantile(scores.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def estimate_mean(values: Tensor, *, intervals: bool = True) -> dict[str, Any]:
    """Mean of one value per photo [N] with its interval, rounded for a model card; {} without photos."""
    if len(values) == 0:
        return {}
    mean = {"mean": round(float(values.double().mean()), 4)}
    return mean | _rounded("interval", values, lambda sums: sums / len(values)) if intervals else mean


def estimate_mean_iou(confusions: Tensor, *, intervals: bool = True) -> dict[str, Any]:
    """Mean IoU of all pixels of N photos, from their confusion matrices [N, K, K], with its interval; {} without."""
    if len(confusions) == 0:
        return {}
    mean = {"mean_iou": round(float(mean_iou(confusions.sum(0))), 4)}
    return mean | _rounded("mean_iou_interval", confusions, mean_iou) if intervals else mean


def _rounded(key: str, per_photo: Tensor, statistic: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {key: [round(bound, 4) for bound in interval(per_photo, statistic)]}
