"""What a network learns beside its label maps: what a teacher sees, and the animal's breed. Called by train.py."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Features, SegmentationModel
from models.layers import resize
from training.dataset import BREEDS
from training.encoding import feature_shapes
from training.losses import Batch, Lesson

BREED_HEAD = "breed_head"
"""Submodule that guesses the breed while a model trains; no checkpoint keeps it."""


def distillation(teacher: SegmentationModel, weight: float, feature_weight: float = 0.0) -> Lesson:
    """`weight` times the mean KL(teacher || student) of a pixel (Hinton et al. 2015, temperature 1).

    `feature_weight` times `pairwise_distillation` of both models' deepest features is added. The teacher sees the
    images at the size it was trained on.
    """
    side = teacher.config.image_size

    def lesson(features: Features, logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            known, judged = teacher.features_and_logits(resize(batch["image"], side, side), batch["prompt"])
            soft = resize(judged.float(), *logits.shape[-2:]).softmax(1)
        divergence = F.kl_div(logits.log_softmax(1), soft, reduction="none").sum(1)
        total = weight * divergence.mean()
        if feature_weight > 0:
            total = total + feature_weight * pairwise_distillation(features[-1].float(), known[-1].float())
        return total

    return lesson


def pairwise_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities between all places of a batch (Liu et al. 2019, equation 2).

    student: Tensor [B, C, h, w], teacher: Tensor [B, D, H, W], resized to h x w; the widths need not agree, so nothing
    is learned to join them. Each map is centred over the batch first: similarity to the mean says nothing.
    """
    return (_similarities(student) - _similarities(resize(teacher, *student.shape[-2:]))).square().mean()


def _similarities(features: Tensor) -> Tensor:
    places = features.permute(0, 2, 3, 1).flatten(0, 2)  # [B, C, h, w] -> [Bhw, C]
    places = F.normalize(places - places.mean(0), dim=1)
    return places @ places.T


def breed_naming(head: nn.Module, weight: float) -> Lesson:
    """`weight` times the cross-entropy of the breeds that `head` names from the mean of the deepest features.

    Species are mixed up more than outlines are, and 37 names tell a network more of an animal than two do: finer labels
    make better features for the coarse question (Chen et al. 2018, "Understanding the impact of label granularity on
    CNN-based image classification"). An example without a known animal counts as nothing.
    """

    def lesson(features: Features, logits: Tensor, batch: Batch) -> Tensor:
        named = head(features[-1].float().mean((2, 3))).log_softmax(1)  # [B, C, h, w] -> [B, 37]
        cost: Tensor = -(batch["breeds"] * named).sum(1).mean()
        return weight * cost

    return lesson


def add_breed_head(model: SegmentationModel) -> None:
    """Give `model` the layer that `breed_naming` trains, as a part that only training reads."""
    deepest = feature_shapes(type(model), model.config, model.config.image_size).features[-1]
    if deepest is None:
        raise ValueError(f"got {type(model).__name__}, whose deepest features are its images; wanted a network's")
    model.add_module(BREED_HEAD, nn.Linear(deepest[0], len(BREEDS)))
    model.training_only = (*model.training_only, BREED_HEAD)
