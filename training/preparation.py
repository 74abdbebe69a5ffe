"""Raw data set -> prepared squares on disk, once: resized, padded, split, digested; what is unusable is named.

    <out>/images/<name>.png    [S, S, 3] uint8 RGB
    <out>/labels/<name>.png    [S, S] uint8 {0 background, 1 cat, 2 dog, 255 boundary}
    <out>/manifest.json        settings, and each example's split, breed and digests
    <out>/report.json          what was skipped or noted, and why

Written by `petseg-train prepare`, read by `dataset.py`.
"""

import hashlib
import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.progress import track

from models.letterbox import Array, Letterbox
from training.augmentation import Augmentation, AugmentationConfig
from training.official_layout import CAT, DOG, ExampleError, PetRecord, read_photo, read_records

FORMAT_VERSION = 1

Split = Literal["train", "validation", "test"]


class Settings(BaseModel):
    """Everything that decides what a prepared folder holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int
    copies: int
    """Augmented copies beside each photo of trainval."""
    validation_fraction: float
    test_fraction: float
    """Cut from trainval too, as in the study's 70/15/15; 0 keeps the official test list."""
    seed: int
    splits: tuple[str, ...]
    lists_sha256: str
    """Of the names in the official lists that were read."""
    augmentation: AugmentationConfig | None
    """How copies were made; None without copies."""


class Example(BaseModel):
    """One prepared pair of image and label map."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    photo: str
    """The photograph it came from: `name` itself, or what an augmented copy was made of."""
    split: Split
    breed: str
    species: int
    image_sha256: str
    label_sha256: str
    original_size: tuple[int, int]
    """(height, width) of the photograph."""


class Manifest(BaseModel):
    """Contents of manifest.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    settings: Settings
    examples: tuple[Example, ...]


class Report(BaseModel):
    """Contents of report.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    counts: dict[str, int]
    """Examples by split and species, for example "train cat"."""
    skipped: dict[str, str]
    """Photo -> why it cannot be used."""
    noted: dict[str, str]
    """Photo -> what was odd although it could be used."""


def prepare(
    root: Path,
    out: Path,
    image_size: int,
    *,
    copies: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    splits: Sequence[Literal["trainval", "test"]] = ("trainval", "test"),
    augmentation: AugmentationConfig | None = None,
) -> Manifest:
    """Prepares the official layout under `root` into the folder `out`; returns its manifest.

    A folder prepared with the same settings is left as it is. The folder appears whole or not at all.

    Raises ValueError where `out` was prepared with other settings, or where nothing usable is left.
    """
    _check(copies, validation_fraction, test_fraction, splits)
    lists = {name: read_records(root, name) for name in splits}
    settings = Settings(
        image_size=image_size,
        copies=copies,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        splits=tuple(splits),
        lists_sha256=_digest(json.dumps({name: [r.name for r in records] for name, records in lists.items()}).encode()),
        augmentation=(augmentation or AugmentationConfig()) if copies else None,
    )
    if (out / "manifest.json").exists():
        return _existing(out, settings)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds files but no manifest.json; choose an empty folder")

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a run that was killed left behind
    for folder in ("images", "labels"):
        (partial / folder).mkdir(parents=True)
    split_of = assign_splits(lists.get("trainval", ()), validation_fraction, test_fraction, seed)
    split_of |= {record.name: "test" for record in lists.get("test", ())}
    worker = _Worker(root, partial, settings, split_of)
    records = [record for of_list in lists.values() for record in of_list]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        # Pillow lets other threads run while it decodes, resizes and compresses.
        done = track(pool.map(worker, records), description=f"preparing {image_size} px", total=len(records))
        examples = tuple(example for of_photo in done for example in of_photo)
    if not examples:
        raise ValueError(f"none of the {len(records)} photos under {root} can be used: {worker.skipped}")
    manifest = Manifest(format_version=FORMAT_VERSION, settings=settings, examples=examples)
    report = Report(
        counts=_counts(examples), skipped=dict(sorted(worker.skipped.items())), noted=dict(sorted(worker.noted.items()))
    )
    (partial / "report.json").write_text(report.model_dump_json(indent=2) + "\n")
    (partial / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
    if out.exists():
        out.rmdir()  # empty, as checked above
    partial.rename(out)
    return manifest


def _check(copies: int, validation_fraction: float, test_fraction: float, splits: Sequence[str]) -> None:
    if copies < 0:
        raise ValueError(f"got copies={copies}, wanted 0 or more")
    if not (validation_fraction >= 0 and test_fraction >= 0 and validation_fraction + test_fraction < 1):
        raise ValueError(
            f"got validation_fraction={validation_fraction} and test_fraction={test_fraction}, "
            "wanted two numbers from 0 that leave something to train on"
        )
    if test_fraction and "test" in splits:
        raise ValueError('a test part cut from trainval and the official test list exclude each other; drop "test"')


def _existing(out: Path, settings: Settings) -> Manifest:
    manifest = read_manifest(out)
    if manifest.settings != settings:
        got, wanted = manifest.settings.model_dump(), settings.model_dump()
        other = ", ".join(f"{key}={got[key]} instead of {wanted[key]}" for key in got if got[key] != wanted[key])
        raise ValueError(f"{out} was prepared with {other}; choose another folder or delete this one")
    return manifest


def read_manifest(prepared: Path) -> Manifest:
    """The manifest of a prepared folder. Raises ValueError where it is missing or of another version."""
    path = prepared / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; prepare the data set first: petseg-train prepare") from None
    except ValidationError as error:
        raise ValueError(f"{path} is not a manifest of this program: {error}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise ValueError(f"{path}: got format {manifest.format_version}, wanted {FORMAT_VERSION}; prepare it again")
    return manifest


def fingerprint(prepared: Path) -> str:
    """Sha256 over the digests of all training examples: the identity of what a model was trained on."""
    return examples_digest(example for example in read_manifest(prepared).examples if example.split == "train")


def examples_digest(examples: Iterable[Example]) -> str:
    """Sha256 over the digests of these examples' images and label maps, in any order."""
    pairs = sorted((example.name, example.image_sha256, example.label_sha256) for example in examples)
    return _digest(json.dumps(pairs).encode())


def assign_splits(
    records: Iterable[PetRecord], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, Split]:
    """Photo name -> its split, by photograph and stratified by breed.

    Within a breed the photos stand in the order of a digest of seed and name, so one photo more or less moves few
    others; the fractions are rounded over the whole list and not per breed, so that small breeds lose nothing.
    """
    by_breed: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        by_breed[record.breed].append(record.name)
    shuffled = [
        sorted(by_breed[breed], key=lambda name: _digest(f"{seed} {name}".encode())) for breed in sorted(by_breed)
    ]
    splits: dict[str, Split] = {}
    position = 0
    for names in shuffled:
        for name in names:
            splits[name] = _split_at(position, validation_fraction, test_fraction)
            position += 1
    return splits


def _split_at(position: int, validation_fraction: float, test_fraction: float) -> Split:
    """Evenly spread: any run of n photos holds n * fraction of each split, to within two."""
    if _steps(position, validation_fraction):
        return "validation"
    # The test part is spread over what validation leaves, so that the two never want the same photo.
    left_before = position - math.floor(position * validation_fraction)
    return "test" if _steps(left_before, test_fraction / (1 - validation_fraction)) else "train"


def _steps(position: int, fraction: float) -> bool:
    """Whether the count of every 1/fraction-th position rises at this one."""
    return math.floor((position + 1) * fraction) > math.floor(position * fraction)


class _Worker:
    """Prepares one photo and its copies; collects what was skipped and noted. Called from several threads."""

    def __init__(self, root: Path, out: Path, settings: Settings, split_of: dict[str, Split]) -> None:
        self.root, self.out, self.settings, self.split_of = root, out, settings, split_of
        self.augmentation = Augmentation(settings.augmentation) if settings.augmentation else None
        self.skipped: dict[str, str] = {}
        self.noted: dict[str, str] = {}
        self.from_trainval = frozenset(
            record.name for record in (read_records(root, "trainval") if "trainval" in settings.splits else ())
        )

    def __call__(self, record: PetRecord) -> list[Example]:
        try:
            photo = read_photo(self.root, record)
        except ExampleError as error:
            self.skipped[record.name] = str(error)
            return []
        if photo.stored_format != "JPEG":
            self.noted[record.name] = f"a {photo.stored_format} file named .jpg, decoded by its content"
        original_size = (photo.image.height, photo.image.width)
        letterbox = Letterbox(original_size, self.settings.image_size)
        image, label = letterbox.apply_image(photo.image), letterbox.apply_label_map(photo.label_map)
        if not np.isin(label, (CAT, DOG)).any():
            self.skipped[record.name] = f"the animal vanishes at {self.settings.image_size} px"
            return []
        examples = [self._write(record, record.name, image, label, original_size)]
        if self.augmentation and record.name in self.from_trainval:
            for number in range(1, self.settings.copies + 1):
                name = f"{record.name}_copy{number:02d}"
                generator = torch.Generator().manual_seed(seed_of(self.settings.seed, name))
                pair = self.augmentation(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label), generator)
                copy_image, copy_label = pair[0].permute(1, 2, 0).numpy(), pair[1].numpy()
                examples.append(self._write(record, name, copy_image, copy_label, original_size))
        return examples

    def _write(self, record: PetRecord, name: str, image: Array, label: Array, size: tuple[int, int]) -> Example:
        digests = []
        for folder, pixels in (("images", image), ("labels", label)):
            buffer = BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            (self.out / folder / f"{name}.png").write_bytes(buffer.getvalue())
            digests.append(_digest(buffer.getvalue()))
        return Example(
            name=name,
            photo=record.name,
            split=self.split_of[record.name],
            breed=record.breed,
            species=record.species,
            image_sha256=digests[0],
            label_sha256=digests[1],
            original_size=size,
        )


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any values, so that neighbouring epochs and indices give unrelated draws."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _counts(examples: Sequence[Example]) -> dict[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for example in examples:
        counts[f"{example.split} {'cat' if example.species == CAT else 'dog'}"] += 1
    return dict(sorted(counts.items()))
