"""Features of a frozen encoder on disk: each view of a photo is encoded once, and an epoch costs only the head.

    <folder>/cache.json                    what decides the content, and the shapes
    <folder>/view000-000000.safetensors    rows of one view: features in 16 bits, image, labels, whose pixels they are

The folder's name is the digest of what decides its content, so another encoder, photo or augmentation is another
folder, and more views of the same are added beside those there are. Filled and read by `train.py`.
"""

import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.base import Features
from training.augmentation import AugmentationConfig
from training.collage import Scene, View
from training.dataset import PetDataset, Sample
from training.preparation import Example

FORMAT_VERSION = 1
SHARD_BYTES = 256 << 20
_NO_PET = -1
_MOST_PETS = 2

Encode = Callable[[Tensor], Features]
"""Images [B, 3, S, S] float32 in [0, 1] on the CPU -> features, in inference."""
Shard = tuple[int, int]
"""(number of the view, first example)."""


class Shapes(BaseModel):
    """What `encode` gives for one image; known without weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int
    features: tuple[tuple[int, int, int] | None, ...]
    """(C, h, w) of each feature; None where the feature is the image itself, which is kept as pixels."""

    @property
    def row_bytes(self) -> int:
        """Of one view of one photo: 16-bit features, the image, the label map and whose pixels they are."""
        numbers = sum(c * h * w for c, h, w in filter(None, self.features))
        return 2 * numbers + 5 * self.image_size**2 + 8 * _MOST_PETS

    @property
    def rows_per_shard(self) -> int:
        """Examples in one file."""
        return max(1, SHARD_BYTES // self.row_bytes)


class Content(BaseModel):
    """Contents of cache.json: everything that decides what the rows hold, but how many views there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    encoder_digest: str
    examples_sha256: str
    """Of the prepared images and label maps."""
    augmentation: AugmentationConfig | None
    collage_probability: float
    seed: int
    precision: str
    """Lightning Fabric's name of the arithmetic that encodes."""
    shapes: Shapes


@dataclass(frozen=True)
class Need:
    """What the views of a data set take on disk."""

    examples: int
    views: int
    row_bytes: int

    @property
    def total_bytes(self) -> int:
        """Of all views."""
        return self.examples * self.views * self.row_bytes

    def __str__(self) -> str:
        size = f"{self.row_bytes / 1e6:.2f} MB = {self.total_bytes / 1e9:.2f} GB"
        return f"{self.examples} photos x {self.views} views x {size}"


class FeatureCache:
    """The cached views of one data set under `parent`; the same data set in the same order reads them."""

    def __init__(self, parent: Path, pets: PetDataset, content: Content) -> None:
        written = content.model_dump_json(indent=1)
        self.folder = parent / hashlib.sha256(written.encode()).hexdigest()[:16]
        self.pets = pets
        self.content = content
        self._written = written
        self._dtype = torch.bfloat16 if content.precision == "bf16-mixed" else torch.float16
        self._positions = {record.name: index for index, record in enumerate(pets.records)}
        self._files: dict[Path, Any] = {}

    def need(self) -> Need:
        """What all views take."""
        return Need(len(self.pets), self.pets.views, self.content.shapes.row_bytes)

    def check_space(self) -> None:
        """ValueError where what is missing does not fit on the disk."""
        existing = next(folder for folder in self.folder.absolute().parents if folder.exists())
        free, wanted = shutil.disk_usage(existing).free, self.count_missing() * self.content.shapes.row_bytes
        if wanted > free:
            raise ValueError(
                f"features: got {free / 1e9:.1f} GB free under {existing}, wanted {wanted / 1e9:.1f} GB "
                f"({self.need()}); take fewer views, or another --prepared"
            )

    def count_missing(self, rank: int = 0, processes: int = 1) -> int:
        """Views that are not on disk yet, or this process's share of them."""
        return sum(len(self._rows(shard)) for shard in self._missing()[rank::processes])

    def fill(
        self,
        encode: Encode,
        batch_size: int,
        *,
        workers: int = 0,
        rank: int = 0,
        processes: int = 1,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        """Encode this process's share of what is missing. Whole files appear, so a killed run goes on after the last.

        workers: processes that draw the views. `on_batch` is called after each batch.
        """
        todo = deque(self._missing()[rank::processes])
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "cache.json").write_text(self._written + "\n")
        views = _Views(self.pets, [(number, index) for number, first in todo for index in self._rows((number, first))])
        rows: list[dict[str, Tensor]] = []
        for batch in DataLoader(views, batch_size, num_workers=workers, collate_fn=list):
            for row in self._encode(encode, batch):
                rows.append(row)
                if len(rows) == len(self._rows(todo[0])):
                    self._write(todo.popleft(), rows)
                    rows = []
            on_batch()

    def read(self, index: int, number: int) -> tuple[View, Features]:
        """View `number` of an example, and its features without a batch axis: 16-bit for bf16-mixed, else float32."""
        shard = (number, index - index % self.content.shapes.rows_per_shard)
        file, row = self._open(shard), index - shard[1]
        image, label_map, owners, pets = (
            file.get_slice(name)[row] for name in ("image", "label_map", "owners", "pets")
        )
        known = tuple(self.pets.records[position] for position in pets.tolist() if position != _NO_PET)
        features = (
            _as_input(image) if shape is None else _widened(file.get_slice(f"feature{position}")[row])
            for position, shape in enumerate(self.content.shapes.features)
        )
        return (image, Scene(label_map, owners, known)), tuple(features)

    def _encode(self, encode: Encode, batch: list[View]) -> Iterator[dict[str, Tensor]]:
        features = encode(torch.stack([_as_input(image) for image, _ in batch]))
        stored = {
            f"feature{position}": self._narrowed(feature)
            for position, (feature, shape) in enumerate(zip(features, self.content.shapes.features, strict=True))
            if shape is not None
        }
        for row, (image, scene) in enumerate(batch):
            pets = [self._positions[cast(Example, pet).name] for pet in scene.pets]
            yield {
                "image": image,
                "label_map": scene.label_map,
                "owners": scene.owners,
                "pets": torch.tensor(pets + [_NO_PET] * (_MOST_PETS - len(pets))),
                **{name: feature[row] for name, feature in stored.items()},
            }

    def _narrowed(self, feature: Tensor) -> Tensor:
        narrow = feature.to(self._dtype).cpu()
        if not narrow.isfinite().all():
            raise ValueError(
                f"features: got values up to {feature.abs().max().item():.3g}, wanted what {self._dtype} holds; "
                'take precision = "bf16-mixed"'
            )
        return narrow

    def _write(self, shard: Shard, rows: list[dict[str, Tensor]]) -> None:
        tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        handle, unfinished = tempfile.mkstemp(".partial", dir=self.folder)  # two processes may write the same file
        os.close(handle)
        try:
            save_file(tensors, unfinished)
            Path(unfinished).replace(self._path(shard))
        finally:
            Path(unfinished).unlink(missing_ok=True)

    def _missing(self) -> list[Shard]:
        starts = range(0, len(self.pets), self.content.shapes.rows_per_shard)
        wanted = ((number, first) for number in range(self.pets.views) for first in starts)
        return [shard for shard in wanted if not self._path(shard).exists()]

    def _rows(self, shard: Shard) -> range:
        """The examples in a file."""
        return range(shard[1], min(shard[1] + self.content.shapes.rows_per_shard, len(self.pets)))

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"view{shard[0]:03d}-{shard[1]:06d}.safetensors"

    def _open(self, shard: Shard) -> Any:
        path = self._path(shard)
        if path not in self._files:  # mapped into memory, not read; a loader's worker maps its own
            self._files[path] = safe_open(path, "pt")
        return self._files[path]


class CachedPets(Dataset[Sample]):
    """The examples of `cache.pets` with `features`, which spare the encoder; prompts are drawn anew in each epoch."""

    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache

    def set_epoch(self, epoch: int) -> None:
        """Chooses the draws of this epoch; call it before iterating the DataLoader."""
        self.cache.pets.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.cache.pets)

    def __getitem__(self, index: int) -> Sample:
        pets = self.cache.pets
        view, features = self.cache.read(index, pets.view_number(index))
        return {**pets.sample(index, view), "features": features}


class _Views(Dataset[View]):
    """(number, index) of views, drawn in a loader's workers."""

    def __init__(self, pets: PetDataset, wanted: Iterable[tuple[int, int]]) -> None:
        self.pets = pets
        self.wanted = list(wanted)

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, position: int) -> View:
        number, index = self.wanted[position]
        return self.pets.view(index, number)


def _as_input(image: Tensor) -> Tensor:
    """[3, S, S] uint8 -> float32 in [0, 1]."""
    return image.float().div_(255.0)


def _widened(feature: Tensor) -> Tensor:
    """float16 -> float32, which every layer takes; bfloat16 stays, for bf16-mixed would narrow it again."""
    return feature.float() if feature.dtype is torch.float16 else feature
