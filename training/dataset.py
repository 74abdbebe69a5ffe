"""Prepared squares -> examples for the DataLoader: image, prompt, target. Called by `train.py` and `evaluate.py`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset

from models.base import Features
from models.prompts import Prompt, PromptTensors
from training.augmentation import Augmentation
from training.collage import Sampler, Scene, View, collage, whole_scene
from training.official_layout import BACKGROUND, IGNORE
from training.pet_names import breeds
from training.preparation import Example, Split, read_manifest, seed_of

Boundary = Literal["ignore", "background"]
"""What boundary pixels count as: `ignore` is the fair protocol, `background` the study's."""


LARGE_PX = 256
"""Longer side above which a photo counts as large."""

BREEDS: dict[str, int] = {breed.key: index for index, breed in enumerate(breeds())}
"""Breed key -> its place among the 37."""


class Sample(TypedDict):
    """One example; `default_collate` adds the batch axis."""

    image: Tensor
    """[3, S, S] float32 in [0, 1]."""
    prompt: PromptTensors
    target: Tensor
    """[S, S] int64, 255 ignored."""
    breeds: Tensor
    """[37] float32: equal shares of the breeds in the picture, zeros where none is known; not what is prompted for."""
    features: NotRequired[Features]
    """What the encoder gave for `image` without a batch axis, where it was kept (feature_cache.py)."""


def no_prompt(prompt: Prompt) -> PromptTensors:
    """The tensors of image-only models: none."""
    return {}


class PetDataset(Dataset[Sample]):
    """One split of a prepared folder.

    Every random draw comes from a generator seeded by (seed, epoch, index): an example depends on neither the order
    nor the number of workers, so a resumed run sees what an unbroken one would have seen. Offline copies are read for
    the training split only; the others measure photographs.

    With `views`, each example has that many fixed views; an epoch shows one of them, under a prompt of its own.
    """

    def __init__(
        self,
        prepared: Path,
        split: Split,
        *,
        boundary: Boundary = "ignore",
        augment: Augmentation | None = None,
        sampler: Sampler = whole_scene,
        make_prompt: Callable[[Prompt], PromptTensors] = no_prompt,
        seed: int = 0,
        collage_probability: float = 0.0,
        views: int = 0,
        repeat_large: int = 1,
        in_memory: bool = True,
    ) -> None:
        """repeat_large: how often an epoch shows each photo of more than LARGE_PX pixels, other draws each time."""
        manifest = read_manifest(prepared)
        self.prepared = prepared
        self.image_size = manifest.settings.image_size
        self.records: tuple[Example, ...] = tuple(
            example
            for example in manifest.examples
            if example.split == split and (split == "train" or example.name == example.photo)
        )
        self.records += (repeat_large - 1) * tuple(each for each in self.records if max(each.original_size) > LARGE_PX)
        if not self.records:
            raise ValueError(f"{prepared} holds no {split} examples; prepare it with a {split} part")
        self.boundary = boundary
        self.augment = augment
        self.sampler = sampler
        self.make_prompt = make_prompt
        self.seed = seed
        self.collage_probability = collage_probability
        self.views = views
        # Shared, so that workers which live on between epochs see the change too.
        self._epoch: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._pixels = self._read_all() if in_memory else None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the draws of this epoch; call it before iterating the DataLoader."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        generator = self._generator(index)
        return self._sample(*self._drawn(index, generator), generator)

    def draw(self, index: int) -> tuple[Tensor, Prompt, Tensor]:
        """The example before it becomes model input: image [3, S, S] uint8, prompt, target [S, S] int64."""
        generator = self._generator(index)
        image, scene = self._drawn(index, generator)
        return image, *self._asked(scene, generator)

    def view_number(self, index: int) -> int:
        """Which of the example's fixed views this epoch shows."""
        return seed_of(self.seed, "view of epoch", int(self._epoch), index) % self.views

    def view(self, index: int, number: int) -> View:
        """Fixed view `number` of an example, the same in every epoch: image [3, S, S] uint8 and its scene."""
        return self._scene(index, Generator().manual_seed(seed_of(self.seed, "view", number, index)))

    def sample(self, index: int, view: View) -> Sample:
        """This epoch's prompt and target for a fixed view of the example."""
        return self._sample(*view, self._generator(index))

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Image [3, S, S] uint8 and label map [S, S] uint8 as prepared; not to be written to."""
        pixels = self._read_one(index) if self._pixels is None else self._pixels[index]
        return pixels[:3], pixels[3]

    def _generator(self, index: int) -> Generator:
        if not 0 <= index < len(self.records):  # also what ends plain iteration over a sequence
            raise IndexError(f"got index {index}, wanted 0 to {len(self.records) - 1}")
        return Generator().manual_seed(seed_of(self.seed, int(self._epoch), index))

    def _drawn(self, index: int, generator: Generator) -> View:
        return self.view(index, self.view_number(index)) if self.views else self._scene(index, generator)

    def _asked(self, scene: Scene, generator: Generator) -> tuple[Prompt, Tensor]:
        prompt, target = self.sampler(scene, generator)
        if self.boundary == "background":
            target = torch.where(target == IGNORE, BACKGROUND, target)
        return prompt, target

    def _sample(self, image: Tensor, scene: Scene, generator: Generator) -> Sample:
        prompt, target = self._asked(scene, generator)
        return {
            "image": image.float().div_(255.0),
            "prompt": self.make_prompt(prompt),
            "target": target,
            "breeds": _breed_shares(scene),
        }

    def _scene(self, index: int, generator: Generator) -> tuple[Tensor, Scene]:
        image, label = self._augmented(index, generator)
        scene = Scene.of_one(label, self.records[index])
        if torch.rand((), generator=generator).item() >= self.collage_probability:
            return image, scene
        other = int(torch.randint(len(self.records), (), generator=generator))
        other_image, other_label = self._augmented(other, generator)
        return collage((image, scene), (other_image, Scene.of_one(other_label, self.records[other])), generator)

    def _augmented(self, index: int, generator: Generator) -> tuple[Tensor, Tensor]:
        image, label = self.read(index)
        return (image, label) if self.augment is None else self.augment(image, label, generator)

    def _read_one(self, index: int) -> Tensor:
        name = self.records[index].name
        with Image.open(self.prepared / "images" / f"{name}.png") as file:
            image = np.asarray(file)
        with Image.open(self.prepared / "labels" / f"{name}.png") as file:
            label = np.asarray(file)
        return torch.from_numpy(np.concatenate((image, label[..., None]), axis=2)).permute(2, 0, 1)

    def _read_all(self) -> Tensor:
        """[N, 4, S, S] uint8: RGB and label. Forked workers share these pages, for nobody writes to them."""
        pixels = torch.empty((len(self.records), 4, self.image_size, self.image_size), dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:
            for index, pair in enumerate(pool.map(self._read_one, range(len(self.records)))):
                pixels[index] = pair
        return pixels


def _breed_shares(scene: Scene) -> Tensor:
    shares = torch.zeros(len(BREEDS))
    for index in scene.visible():
        place = BREEDS.get(scene.pets[index].breed)  # a data set of one's own may have others
        if place is not None:
            shares[place] += 1
    return shares / shares.sum().clamp(min=1)
