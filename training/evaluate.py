"""Scores of any checkpoint on any folder in the official layout, at each photo's own size: one prompt, one mask.

Photos pass through the functions that the service calls, so the mask that is measured is the mask that is served.
What takes more than one prompt has its own file: `click_evaluation.py`, `referring.py`. `measure.py` runs them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from models.base import SegmentationModel
from models.letterbox import Array
from models.prompts import PointPrompt, Prompt, PromptKind, TextPrompt
from training import pet_names
from training.bootstrap import estimate_mean, estimate_mean_iou
from training.boundary import boundary_iou, tolerance_px
from training.dataset import Boundary
from training.encoded_pictures import BATCH_SIZE, CPU, EncodedPictures, PhotoReader
from training.metrics import confusion_matrix, scores
from training.official_layout import BACKGROUND, IGNORE, OfficialList, PetRecord, read_records
from training.preparation import assign_splits, seed_of

Prompter = Callable[[PetRecord, Array], Prompt]
"""(record, label map [H, W]) -> the prompt that this protocol gives, in pixels of the photo."""

MIXED_SHARE = 0.05
"""A speck of the other species is no mixed animal."""

OnMask = Callable[[PetRecord, Array, Array], None]
"""Told of each record, its mask [H, W] uint8 and its target [H, W] uint8 in the model's classes."""


def _no_prompt(record: PetRecord, label_map: Array) -> Prompt:
    return None


def breed_prompt(record: PetRecord) -> TextPrompt:
    """The breed as the file name gives it away (study)."""
    return TextPrompt(pet_names.fill("a photo of a {}", pet_names.phrase(pet_names.find_breed(record.breed))))


def _true_breed(record: PetRecord, label_map: Array) -> Prompt:
    return breed_prompt(record)


def _neutral(record: PetRecord, label_map: Array) -> Prompt:
    return TextPrompt("a photo of a pet")


def _one_click(record: PetRecord, label_map: Array) -> Prompt:
    """One pixel of the animal, each as likely, the same for a photo in every evaluation (study: drawn at random)."""
    rows, columns = np.nonzero((label_map != BACKGROUND) & (label_map != IGNORE))
    chosen = int(torch.randint(len(rows), (), generator=Generator().manual_seed(seed_of("click", record.name))))
    return PointPrompt(((float(columns[chosen]), float(rows[chosen])),), (1,))


PROTOCOLS: dict[PromptKind, dict[str, Prompter]] = {
    PromptKind.NONE: {"image": _no_prompt},
    PromptKind.TEXT: {"self_picked": _no_prompt, "true_breed": _true_breed, "neutral": _neutral},
    PromptKind.POINTS: {"one_click": _one_click},
}
"""What the models of each kind are asked, the headline protocol first."""


@dataclass(frozen=True)
class Evaluated:
    """One protocol's outcome."""

    protocol: str
    photo_names: tuple[str, ...]
    by_photo: dict[Boundary, Tensor]
    """[N, K, K] int64 over each photo's counted pixels, rows the truth."""
    boundary_iou: Tensor
    """[N] float64 of the animal's outline, boundary ring ignored."""
    class_names: tuple[str, ...]
    skipped: dict[str, str]
    """Photo -> why it could not be read."""

    @property
    def photos(self) -> int:
        """How many were read."""
        return len(self.photo_names)

    @property
    def confusion(self) -> dict[Boundary, Tensor]:
        """[K, K] int64 over all counted pixels."""
        return {boundary: counts.sum(0) for boundary, counts in self.by_photo.items()}

    def summary(self, *, intervals: bool = True) -> dict[str, Any]:
        """Scores for both boundary protocols, rounded for a model card; intervals by resampling photos."""
        both = {
            f"boundary_{key}": estimate_mean_iou(counts, intervals=intervals)
            | _rounded(scores(counts.sum(0), self.class_names))
            for key, counts in self.by_photo.items()
        }
        outline = {"boundary_iou": estimate_mean(self.boundary_iou, intervals=intervals)}
        if len(self.class_names) > 2:
            mixed = mixed_species(self.by_photo["ignore"])
            outline["mixed_species"] = estimate_mean(mixed, intervals=intervals)
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {"protocol": self.protocol, "photos": self.photos, **both, **outline, **skipped}


def mixed_species(confusions: Tensor) -> Tensor:
    """Whether each photo's animal is painted as two species: the lesser takes more than 5 % of what is painted of it.

    confusions: Tensor [N, K, K] with rows the truth and channel 0 the background -> Tensor [N] float64 of 0 and 1.
    """
    painted = confusions[:, 1:, 1:].sum(1).double()  # [N, K - 1], on the animal's own pixels
    others = painted.sum(1) - painted.amax(1)
    return (others > MIXED_SHARE * painted.sum(1)).double()


def evaluate(
    model: SegmentationModel,
    root: Path,
    records: Sequence[PetRecord],
    protocol: str,
    *,
    device: torch.device = CPU,
    batch_size: int = BATCH_SIZE,
    on_mask: OnMask | None = None,
) -> Evaluated:
    """`evaluate_protocols` of one protocol."""
    told = None if on_mask is None else {protocol: on_mask}
    return evaluate_protocols(model, root, records, (protocol,), device=device, batch_size=batch_size, on_mask=told)[
        protocol
    ]


def evaluate_protocols(
    model: SegmentationModel,
    root: Path,
    records: Sequence[PetRecord],
    protocols: Sequence[str],
    *,
    device: torch.device = CPU,
    batch_size: int = BATCH_SIZE,
    on_mask: dict[str, OnMask] | None = None,
) -> dict[str, Evaluated]:
    """Segment `records` of the official layout under `root` and count pixels at each photo's own size.

    Every photo is read and encoded once for all protocols. A model with two classes is judged on animal against
    background. `on_mask` holds listeners by protocol.
    """
    prompters = PROTOCOLS[model.prompt_kind]
    for name in protocols:
        if name not in prompters:
            raise ValueError(f"got protocol {name!r}, wanted one of {', '.join(prompters)}")
    classes = len(model.config.class_names)
    reader = PhotoReader(root, records)
    counts = {name: _Counts(classes) for name in protocols}
    names: list[str] = []
    for batch in reader.batches(", ".join(protocols), batch_size):
        pictures = EncodedPictures(model, [photo.image for _, photo in batch], device)
        targets = [model_target(photo.label_map, classes) for _, photo in batch]
        names += [record.name for record, _ in batch]
        for name in protocols:
            prompts = [prompters[name](record, photo.label_map) for record, photo in batch]
            for (record, _), mask, target in zip(batch, pictures.masks(prompts), targets, strict=True):
                counts[name].add(mask, target)
                if on_mask is not None and name in on_mask:
                    on_mask[name](record, mask, target)
    return {
        name: Evaluated(name, tuple(names), *counted.stacked(), model.config.class_names, reader.skipped)
        for name, counted in counts.items()
    }


class _Counts:
    """What one protocol counts of each photo."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._confusion: dict[Boundary, list[Tensor]] = {"ignore": [], "background": []}
        self._boundary_iou: list[float] = []

    def add(self, mask: Array, target: Array) -> None:
        for boundary, confusions in self._confusion.items():
            confusions.append(count_pixels(mask, target, boundary, self._classes))
        animal = int(target[target != IGNORE].max())
        self._boundary_iou.append(boundary_iou(mask, target, animal, tolerance_px(*target.shape)))

    def stacked(self) -> tuple[dict[Boundary, Tensor], Tensor]:
        empty = torch.zeros(0, self._classes, self._classes, dtype=torch.int64)
        by_photo = {key: torch.stack(each) if each else empty for key, each in self._confusion.items()}
        return by_photo, torch.tensor(self._boundary_iou, dtype=torch.float64)


def model_target(label_map: Array, classes: int) -> Array:
    """Label map [H, W] {0 background, 1 cat, 2 dog, 255} in the classes of a model; with two, any animal is class 1."""
    return np.where((label_map != IGNORE) & (label_map >= classes), np.uint8(classes - 1), label_map)


def count_pixels(mask: Array, target: Array, boundary: Boundary, classes: int) -> Tensor:
    """Confusion matrix [K, K] int64 of one photo; pixels of target 255 are left out, or are background."""
    truth = np.where(target == IGNORE, np.uint8(BACKGROUND), target) if boundary == "background" else target
    return confusion_matrix(torch.from_numpy(mask), torch.from_numpy(truth), classes)


def select_records(root: Path, split: str, validation_fraction: float, seed: int) -> tuple[PetRecord, ...]:
    """Records of an official list ("test", "trainval"), or of trainval's "train" or "validation" part."""
    if split in ("test", "trainval"):
        official: OfficialList = "test" if split == "test" else "trainval"
        return read_records(root, official)
    if split not in ("train", "validation"):
        raise ValueError(f"got split {split!r}, wanted test, trainval, train or validation")
    records = read_records(root, "trainval")
    assigned = assign_splits(records, validation_fraction, 0.0, seed)
    return tuple(record for record in records if assigned[record.name] == split)


def every_kth(records: Sequence[PetRecord], limit: int) -> tuple[PetRecord, ...]:
    """At most `limit` records, every k-th of the list: lists are sorted by breed, so all breeds stay in proportion."""
    return tuple(records[:: -(-len(records) // limit) or 1])


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, dict) else round(float(value), 4) for key, value in values.items()
    }
