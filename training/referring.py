"""Whether a model segments what the words name: an animal that is not there, and one of two in a collage.

Called by `measure.py` for models that take text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.base import SegmentationModel
from models.letterbox import Array
from models.prompts import Prompt, TextPrompt
from training.bootstrap import estimate_mean, estimate_mean_iou
from training.encoded_pictures import BATCH_SIZE, CPU, EncodedPictures, PhotoReader, progress
from training.evaluate import breed_prompt, count_pixels
from training.official_layout import BACKGROUND, CAT, IGNORE, PetRecord
from training.photo_collage import Pair, breed_pairs, read_collages, species_pairs

NOTHING = 0.01
"""Largest share of the photo that a mask may cover and still count as the answer "nothing"."""

Namer = Callable[[PetRecord], Prompt]
"""How an animal in a collage is asked for."""


@dataclass(frozen=True)
class AbsentScores:
    """N photos asked for the species that is not there."""

    covered_photo: Tensor
    """[N] float64: share of the photo's pixels in the mask."""
    covered_animal: Tensor
    """[N] float64: share of the animal's pixels in the mask, boundary left out."""
    skipped: dict[str, str]

    def summary(self, *, intervals: bool = True) -> dict[str, Any]:
        """How many photos were answered with (almost) nothing, and how much of the wrong animal was taken."""
        nothing = (self.covered_photo <= NOTHING).double()
        return {
            "photos": len(nothing),
            "answered_with_nothing": estimate_mean(nothing, intervals=intervals),
            "animal_covered": estimate_mean(self.covered_animal, intervals=intervals),
            **({"skipped": self.skipped} if self.skipped else {}),
        }


def evaluate_absent(
    model: SegmentationModel,
    root: Path,
    records: Sequence[PetRecord],
    *,
    device: torch.device = CPU,
    batch_size: int = BATCH_SIZE,
) -> AbsentScores:
    """Ask each photo of a cat for a dog, and each photo of a dog for a cat."""
    reader = PhotoReader(root, records)
    photo_shares: list[float] = []
    animal_shares: list[float] = []
    for batch in reader.batches("absent", batch_size):
        pictures = EncodedPictures(model, [photo.image for _, photo in batch], device)
        masks = pictures.masks([_prompt_for_the_other_species(record) for record, _ in batch])
        for (_, photo), mask in zip(batch, masks, strict=True):
            photo_shares.append(float((mask != BACKGROUND).mean()))
            animal_shares.append(_covered(mask, photo.label_map))
    return AbsentScores(torch.tensor(photo_shares).double(), torch.tensor(animal_shares).double(), reader.skipped)


@dataclass(frozen=True)
class ReferringScores:
    """N collages of two animals, each animal asked for once."""

    is_right: Tensor
    """[N, 2] bool: the mask covers a larger share of the named animal than of the other."""
    confusion: Tensor
    """[N, K, K] int64 of both questions; the named animal in its class, the other is background."""
    is_same_species: Tensor
    """[N] bool."""
    skipped: dict[str, str]

    def summary(self, *, intervals: bool = True) -> dict[str, Any]:
        """Share of questions answered with the right animal, and mean IoU; intervals by resampling collages."""
        right = self.is_right.double().mean(1) if len(self.is_right) else torch.zeros(0)
        alike = right[self.is_same_species]
        return {
            "collages": len(right),
            "accuracy": estimate_mean(right, intervals=intervals),
            **({"accuracy_same_species": estimate_mean(alike, intervals=intervals)} if len(alike) else {}),
            **estimate_mean_iou(self.confusion, intervals=intervals),
            **({"skipped": self.skipped} if self.skipped else {}),
        }


def evaluate_collages(
    model: SegmentationModel,
    root: Path,
    pairs: Sequence[Pair],
    name: Namer,
    *,
    device: torch.device = CPU,
    batch_size: int = BATCH_SIZE,
) -> ReferringScores:
    """Lay each pair of photos together and ask for the one animal, then for the other, as `name` calls them."""
    classes = len(model.config.class_names)
    skipped: dict[str, str] = {}
    right: list[list[bool]] = []
    confusion: list[Tensor] = []
    alike: list[bool] = []
    starts = range(0, len(pairs), batch_size)
    for start in progress(starts, "collages"):
        batch = [*read_collages(root, pairs[start : start + batch_size], skipped)]
        if not batch:
            continue
        pictures = EncodedPictures(model, [image for _, image, _ in batch], device)
        answers = [pictures.masks([name(pair[asked]) for pair, _, _ in batch]) for asked in (0, 1)]
        for (pair, _, labels), *masks in zip(batch, *answers, strict=True):
            right.append([_covered(masks[k], labels[k]) > _covered(masks[k], labels[1 - k]) for k in (0, 1)])
            confusion.append(torch.stack([count_pixels(masks[k], labels[k], "ignore", classes) for k in (0, 1)]).sum(0))
            alike.append(pair[0].species == pair[1].species)
    counts = torch.stack(confusion) if confusion else torch.zeros(0, classes, classes, dtype=torch.int64)
    return ReferringScores(
        torch.tensor(right, dtype=torch.bool).reshape(-1, 2), counts, torch.tensor(alike, dtype=torch.bool), skipped
    )


def evaluate_referring(
    model: SegmentationModel,
    root: Path,
    records: Sequence[PetRecord],
    *,
    device: torch.device = CPU,
    batch_size: int = BATCH_SIZE,
) -> dict[str, ReferringScores]:
    """Two tests on collages of `records`: a cat beside a dog named by species, two breeds named by breed."""
    tests: dict[str, tuple[list[Pair], Namer]] = {
        "by_species": (species_pairs(records), species_prompt),
        "by_breed": (breed_pairs(records), breed_prompt),
    }
    return {
        key: evaluate_collages(model, root, pairs, name, device=device, batch_size=batch_size)
        for key, (pairs, name) in tests.items()
    }


def species_prompt(record: PetRecord) -> TextPrompt:
    """The animal by its species."""
    return TextPrompt("a photo of a cat" if record.species == CAT else "a photo of a dog")


def _prompt_for_the_other_species(record: PetRecord) -> TextPrompt:
    return TextPrompt("a photo of a dog" if record.species == CAT else "a photo of a cat")


def _covered(mask: Array, label_map: Array) -> float:
    """Share of the animal's sure pixels that lie in the mask, whatever their class."""
    animal = (label_map != BACKGROUND) & (label_map != IGNORE)
    return float(((mask != BACKGROUND) & animal).sum() / max(1, animal.sum()))
