"""Losses on logits and objectives on batches.

A loss is (logits [B, K, H, W], target [B, H, W] int64) -> scalar and honours IGNORE; an objective is
(model, batch) -> scalar, so that the training loop knows neither losses nor stages.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from models.base import Features
from training.official_layout import IGNORE

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = dict[str, Any]
Objective = Callable[[Any, Batch], Tensor]
Lesson = Callable[[Features, Tensor, Batch], Tensor]
"""(features, logits [B, K, H, W] float32, batch) -> scalar: what is learned beside the label maps (lessons.py)."""

_FOCAL_GAMMA = 2.0
_DICE_SMOOTH = 1.0


def cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood over counted pixels, optionally weighted by class; 0 where none counts."""
    total = F.cross_entropy(logits, target, class_weights, ignore_index=IGNORE, reduction="sum")
    counted = target != IGNORE
    weight = counted.sum() if class_weights is None else class_weights[target[counted]].sum()
    return total / weight.clamp(min=1e-6)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over counted pixels and classes of the one-against-rest cross-entropy."""
    counted, one_hot = _one_hot(target, logits)
    losses = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    return _masked_mean(losses, counted)


def mean_squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over counted pixels and classes of (softmax - one-hot) squared (Brier 1950, per class)."""
    counted, one_hot = _one_hot(target, logits)
    return _masked_mean((logits.softmax(1) - one_hot).square(), counted)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - mean soft Dice over the classes (Milletari et al. 2016, section 3), sums over the whole batch."""
    counted, one_hot = _one_hot(target, logits)
    probabilities = logits.softmax(1) * counted
    intersection = (probabilities * one_hot).sum((0, 2, 3))
    cardinality = probabilities.sum((0, 2, 3)) + one_hot.sum((0, 2, 3))
    return 1 - ((2 * intersection + _DICE_SMOOTH) / (cardinality + _DICE_SMOOTH)).mean()


def hybrid(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus Dice (study, losses)."""
    return cross_entropy(logits, target) + dice(logits, target)


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over counted pixels of (1 - p)^2 times the cross-entropy (Lin et al. 2017, equation 4, gamma 2)."""
    losses = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    counted = target != IGNORE
    modulated = (1 - (-losses).exp()).pow(_FOCAL_GAMMA) * losses
    return modulated.sum() / counted.sum().clamp(min=1)


LOSSES: dict[str, Loss] = {
    "mse": mean_squared_error,
    "cross_entropy": cross_entropy,
    "bce": binary_cross_entropy,
    "dice": dice,
    "hybrid": hybrid,
    "focal": focal,
}
"""Losses by their name in a config; `weighted_cross_entropy` needs class weights and is built by `get_loss`."""


def get_loss(name: str, class_weights: Tensor | None = None) -> Loss:
    """The loss of that name; `weighted_cross_entropy` takes `class_weights` [K]."""
    if name == "weighted_cross_entropy":
        if class_weights is None:
            raise ValueError("weighted_cross_entropy needs class weights, got None")
        return lambda logits, target: cross_entropy(logits, target, class_weights.to(logits))
    if name not in LOSSES:
        raise ValueError(f"got loss {name!r}, wanted one of {', '.join([*LOSSES, 'weighted_cross_entropy'])}")
    return LOSSES[name]


def logits_of(model: Any, batch: Batch) -> Tensor:
    """Logits [B, K, S, S] float32 for a batch: from its features where it brings them along, else from its images."""
    kept = {"features": batch["features"]} if "features" in batch else {}
    logits: Tensor = model(batch["image"], batch["prompt"], **kept)
    return logits.float()


def segmentation(loss: Loss, lessons: Sequence[Lesson] = ()) -> Objective:
    """`loss` of the logits that the model gives for a batch's images and prompts, plus every lesson."""

    def objective(model: Any, batch: Batch) -> Tensor:
        if not lessons:
            return loss(logits_of(model, batch), batch["target"])
        features, logits = model.features_and_logits(batch["image"], batch["prompt"])
        logits = logits.float()
        total = loss(logits, batch["target"])
        for lesson in lessons:
            total = total + lesson(features, logits, batch)
        return total

    return objective


def reconstruction(model: Any, batch: Batch) -> Tensor:
    """Mean squared error between the images and their reconstruction (study, autoencoder stage 1)."""
    return F.mse_loss(cast(Tensor, model.reconstruct(batch["image"])).float(), batch["image"])


def frequency_weights(pixel_counts: Tensor) -> Tensor:
    """Class weights [K] from pixel counts [K]: median frequency balancing (Eigen & Fergus 2015, section 6.3.2)."""
    frequency = pixel_counts.double() / pixel_counts.sum().clamp(min=1)
    return (frequency.median() / frequency.clamp(min=1e-6)).float()


def _one_hot(target: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Counted pixels [B, 1, H, W] and the one-hot target [B, K, H, W] (zero where not counted), as logits' dtype."""
    counted = (target != IGNORE)[:, None]
    clean = target.masked_fill(target == IGNORE, 0)
    one_hot = F.one_hot(clean, logits.shape[1]).permute(0, 3, 1, 2) * counted
    return counted.to(logits), one_hot.to(logits)


def _masked_mean(losses: Tensor, counted: Tensor) -> Tensor:
    return (losses * counted).sum() / (counted.sum() * losses.shape[1]).clamp(min=1)
