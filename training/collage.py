"""Scenes of one or two animals: what `dataset.py` shows and what `prompt_sampling.py` draws prompts from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from models.prompts import Prompt
from training.augmentation import uniform
from training.official_layout import BACKGROUND, CAT, DOG, IGNORE


class Pet(Protocol):
    """What a scene needs to know of an animal: `PetRecord` and the manifest's `Example` both say it."""

    @property
    def breed(self) -> str:
        """Breed key, for example "american_bulldog"."""

    @property
    def species(self) -> int:
        """1 cat, 2 dog."""


@dataclass(frozen=True)
class Scene:
    """A square with the animals of one or more photographs."""

    label_map: Tensor
    """[S, S] uint8 {0 background, 1 cat, 2 dog, 255 ignored}."""
    owners: Tensor
    """[S, S] uint8: k + 1 where a pixel, boundary included, is of pets[k]; 0 elsewhere."""
    pets: tuple[Pet, ...]

    @classmethod
    def of_one(cls, label_map: Tensor, pet: Pet) -> "Scene":
        """The scene of a single photograph."""
        return cls(label_map, (label_map != BACKGROUND).to(torch.uint8), (pet,))

    def visible(self) -> tuple[int, ...]:
        """Indices of the pets of which any pixel is left in the picture."""
        return tuple(index for index in range(len(self.pets)) if self.pixels(index).any())

    def pixels(self, index: int) -> Tensor:
        """[S, S] bool: where pets[index] surely is, without its boundary."""
        return (self.owners == index + 1) & (self.label_map != IGNORE)


View = tuple[Tensor, Scene]
"""Image [3, S, S] uint8 and its scene of one pet."""

Sampler = Callable[[Scene, Generator], tuple[Prompt, Tensor]]
"""Scene -> (prompt, target [S, S] int64); `prompt_sampling.py` holds those that prompt."""


def whole_scene(scene: Scene, generator: Generator) -> tuple[Prompt, Tensor]:
    """The sampler of image-only models: no prompt, and every animal in its class."""
    return None, scene.label_map.long()


def collage(first: View, second: View, generator: Generator) -> View:
    """One square with the animals of both: side by side, one in a corner, or one cut out and laid over the other.

    The third layout follows copy-paste augmentation (Ghiasi et al., CVPR 2021): two animals on one ground, which no
    straight seam gives away. Which part an animal takes is drawn as well.
    """
    layout = int(torch.randint(3, (), generator=generator))
    if layout != 2 and bool(torch.rand((), generator=generator) < 0.5):
        first, second = second, first
    return (_side_by_side, _in_corner, _cut_out)[layout](first, second, generator)


def _side_by_side(first: View, second: View, generator: Generator) -> View:
    side = first[0].shape[-1]
    seam = round(side * uniform(0.35, 0.65, generator))
    upright = bool(torch.rand((), generator=generator) < 0.5)
    cells = ((0, 0, side, seam), (0, seam, side, side - seam))
    if not upright:
        cells = ((0, 0, seam, side), (seam, 0, side - seam, side))
    canvas = _Canvas(side, (first, second))
    for owner, (view, cell) in enumerate(zip((first, second), cells, strict=True), start=1):
        canvas.lay(owner, *_fitted(view, cell[2], cell[3], generator), cell[0], cell[1])
    return canvas.view()


def _in_corner(first: View, second: View, generator: Generator) -> View:
    side = first[0].shape[-1]
    height, width = (round(side * uniform(0.35, 0.6, generator)) for _ in range(2))
    top = (side - height) * int(torch.randint(2, (), generator=generator))
    left = (side - width) * int(torch.randint(2, (), generator=generator))
    canvas = _Canvas(side, (first, second))
    canvas.lay(1, first[0], first[1].label_map, 0, 0)
    canvas.lay(2, *_fitted(second, height, width, generator), top, left)
    return canvas.view()


def _cut_out(first: View, second: View, generator: Generator) -> View:
    image, scene = second
    box = _bounding_box(scene.label_map)
    side = image.shape[-1]
    if box is None:
        return first
    top, left, height, width = box
    scale = uniform(0.3, 0.7, generator) * side / max(height, width)
    new_height, new_width = max(4, round(height * scale)), max(4, round(width * scale))
    new_height, new_width = min(new_height, side), min(new_width, side)
    pixels, label = _resized(
        image[:, top : top + height, left : left + width],
        scene.label_map[top : top + height, left : left + width],
        new_height,
        new_width,
    )
    # The animal may stand partly outside, by up to a quarter of itself.
    row = int(uniform(-0.25 * new_height, side - 0.75 * new_height, generator))
    column = int(uniform(-0.25 * new_width, side - 0.75 * new_width, generator))
    up, lft = max(0, -row), max(0, -column)
    down, right = min(new_height, side - row), min(new_width, side - column)
    canvas = _Canvas(side, (first, second))
    canvas.lay(1, first[0], first[1].label_map, 0, 0)
    canvas.lay(2, pixels[:, up:down, lft:right], label[up:down, lft:right], row + up, column + lft, only_pet=True)
    return canvas.view()


class _Canvas:
    """A square that views are laid on, later ones over earlier ones."""

    def __init__(self, side: int, views: tuple[View, View]) -> None:
        self.image = torch.zeros((3, side, side), dtype=torch.uint8)
        self.label_map = torch.zeros((side, side), dtype=torch.uint8)
        self.owners = torch.zeros((side, side), dtype=torch.uint8)
        self.pets = tuple(pet for _, scene in views for pet in scene.pets)

    def lay(self, owner: int, image: Tensor, label: Tensor, top: int, left: int, *, only_pet: bool = False) -> None:
        area = (slice(top, top + label.shape[0]), slice(left, left + label.shape[1]))
        shown = (label != BACKGROUND) if only_pet else torch.ones_like(label, dtype=torch.bool)
        self.image[:, *area] = torch.where(shown, image, self.image[:, *area])
        self.label_map[area] = torch.where(shown, label, self.label_map[area])
        owned = (label != BACKGROUND).to(torch.uint8) * owner
        self.owners[area] = torch.where(shown, owned, self.owners[area])

    def view(self) -> View:
        return self.image, Scene(self.label_map, self.owners, self.pets)


def _fitted(view: View, height: int, width: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A part of `view` of the cell's aspect around the animal, from all that fits to close up, resized to the cell."""
    image, scene = view
    side = image.shape[-1]
    top, left, box_height, box_width = _bounding_box(scene.label_map) or (0, 0, side, side)
    widest = side / max(height, width)
    # Never enlarged beyond the source's own pixels, nor closer than the whole animal.
    closest = min(widest, max(1.0, 1.1 * max(box_height / height, box_width / width)))
    scale = uniform(closest, widest, generator)
    crop_height, crop_width = min(side, round(height * scale)), min(side, round(width * scale))
    row = min(max(0, top + box_height // 2 - crop_height // 2), side - crop_height)
    column = min(max(0, left + box_width // 2 - crop_width // 2), side - crop_width)
    area = (slice(row, row + crop_height), slice(column, column + crop_width))
    return _resized(image[:, *area], scene.label_map[area], height, width)


def _resized(image: Tensor, label: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    pixels = F.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False, antialias=True)[
        0
    ]
    labels = F.interpolate(label[None, None].float(), (height, width), mode="nearest-exact")[0, 0]
    return pixels.clamp(0, 255).round_().to(torch.uint8), labels.to(torch.uint8)


def _bounding_box(label_map: Tensor) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of the animal, or None where it has left the picture."""
    pet = (label_map == CAT) | (label_map == DOG)
    rows, columns = pet.any(dim=1).nonzero(), pet.any(dim=0).nonzero()
    if len(rows) == 0:
        return None
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
