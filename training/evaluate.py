"""Scores of any checkpoint on any folder in the official layout, at each photo's own size.

Photos pass through the functions that the service calls, so the mask that is measured is the mask that is served.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Generator, Tensor
from torch.utils.data import default_collate

from models.base import SegmentationModel
from models.letterbox import Array, Letterbox, image_tensor
from models.prompts import PointPrompt, Prompt, PromptKind, TextPrompt
from training import pet_names
from training.dataset import Boundary
from training.metrics import confusion_matrix, scores
from training.official_layout import BACKGROUND, IGNORE, ExampleError, OfficialList, PetRecord, read_photo, read_records
from training.preparation import assign_splits, seed_of

Prompter = Callable[[PetRecord, Array], Prompt]
"""(record, label map [H, W]) -> the prompt that this protocol gives, in pixels of the photo."""

Alter = Callable[[PetRecord, Image.Image], Image.Image]
"""(record, upright RGB photo) -> the photo that is segmented instead, of the same size."""


def _no_prompt(record: PetRecord, label_map: Array) -> Prompt:
    return None


def _true_breed(record: PetRecord, label_map: Array) -> Prompt:
    return TextPrompt(pet_names.fill("a photo of a {}", pet_names.phrase(pet_names.find_breed(record.breed))))


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
    confusion: dict[Boundary, Tensor]
    """[K, K] int64 over all counted pixels, rows the truth."""
    class_names: tuple[str, ...]
    photos: int
    skipped: dict[str, str]
    """Photo -> why it could not be read."""

    def summary(self) -> dict[str, Any]:
        """Scores for both boundary protocols, rounded for a model card."""
        both = {f"boundary_{key}": _rounded(scores(value, self.class_names)) for key, value in self.confusion.items()}
        return {"protocol": self.protocol, "photos": self.photos, **both}


def evaluate(
    model: SegmentationModel,
    root: Path,
    records: Sequence[PetRecord],
    protocol: str,
    *,
    device: torch.device | None = None,
    batch_size: int = 16,
    on_mask: Callable[[PetRecord, Array, Array], None] | None = None,
    alter: Alter | None = None,
    description: str | None = None,
) -> Evaluated:
    """Segment `records` of the official layout under `root` and count pixels at each photo's own size.

    A model with two classes is judged on animal against background. `on_mask` is called with each record, its mask
    [H, W] uint8 and its target [H, W] uint8. `alter` changes each photo before it is letterboxed; `description`
    stands before the progress bar.
    """
    protocols = PROTOCOLS[model.prompt_kind]
    if protocol not in protocols:
        raise ValueError(f"got protocol {protocol!r}, wanted one of {', '.join(protocols)}")
    classes = len(model.config.class_names)
    confusion: dict[Boundary, Tensor] = {
        "ignore": torch.zeros(classes, classes, dtype=torch.int64),
        "background": torch.zeros(classes, classes, dtype=torch.int64),
    }
    skipped: dict[str, str] = {}
    photos = 0
    batches = _batched(_examples(model, root, records, protocols[protocol], skipped, alter), batch_size)
    total = -(-len(records) // batch_size)
    for batch in track(batches, description=description or protocol, total=total, transient=True):
        logits = predict(model, [(image, prompt) for _, image, prompt, _, _ in batch], device)
        for (record, _, _, letterbox, target), scored in zip(batch, logits, strict=True):
            mask = letterbox.restore_mask(scored)
            binary = np.where((target != IGNORE) & (target > classes - 1), classes - 1, target)
            for boundary, counts in confusion.items():
                truth = np.where(binary == IGNORE, BACKGROUND, binary) if boundary == "background" else binary
                counts += confusion_matrix(torch.from_numpy(mask), torch.from_numpy(truth), classes)
            if on_mask is not None:
                on_mask(record, mask, binary)
            photos += 1
    return Evaluated(protocol, confusion, model.config.class_names, photos, skipped)


@torch.inference_mode()
def predict(
    model: SegmentationModel, examples: Sequence[tuple[Tensor, dict[str, Tensor]]], device: torch.device | None = None
) -> Tensor:
    """Logits [B, K, S, S] float32 on the CPU of images [3, S, S] with their prompt tensors."""
    device = device or torch.device("cpu")
    images = torch.stack([image for image, _ in examples]).to(device, memory_format=torch.channels_last)
    prompts = {key: value.to(device) for key, value in default_collate([prompt for _, prompt in examples]).items()}
    logits: Tensor = model.eval()(images, prompts)
    return logits.float().cpu()


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


_Example = tuple[PetRecord, Tensor, dict[str, Tensor], Letterbox, Array]


def _examples(
    model: SegmentationModel,
    root: Path,
    records: Sequence[PetRecord],
    prompter: Prompter,
    skipped: dict[str, str],
    alter: Alter | None,
) -> Iterator[_Example]:
    for record in records:
        try:
            photo = read_photo(root, record)
        except ExampleError as error:
            skipped[record.name] = str(error)
            continue
        image = photo.image if alter is None else alter(record, photo.image)
        letterbox = Letterbox((photo.image.height, photo.image.width), model.config.image_size)
        prompt = model.prompt_tensors(prompter(record, photo.label_map), letterbox)
        yield record, image_tensor(letterbox.apply_image(image)), prompt, letterbox, photo.label_map


def _batched(examples: Iterator[_Example], size: int) -> Iterator[list[_Example]]:
    batch: list[_Example] = []
    for example in examples:
        batch.append(example)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, dict) else round(float(value), 4) for key, value in values.items()
    }
