"""Scene -> (prompt, target): the only place that invents prompts.

In training the square is its own upload, so clicks are in pixels of the square. Called by `dataset.py`; evaluation and
the iterative training of clicks call `next_click` and `border_click`.
"""

from typing import Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage
from torch import Generator, Tensor

from models.letterbox import Array
from models.prompts import MAX_POINTS, PointPrompt, Prompt, PromptKind, TextPrompt
from training import pet_names
from training.augmentation import happens
from training.collage import Pet, Sampler, Scene, whole_scene
from training.official_layout import BACKGROUND, CAT, DOG, IGNORE

OBJECT = 1
"""The clicked animal in the binary target of POINTS."""

Click = tuple[float, float, int]
"""(x, y) in pixels and the label: 1 object, 0 background."""

T = TypeVar("T")

_SPECIES: dict[int, pet_names.Species] = {CAT: "cat", DOG: "dog"}


class PointSamplingConfig(BaseModel):
    """How clicks are drawn for training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    absent_probability: float = Field(0.05, ge=0, le=1)
    """The one click hits background well away from any animal: the target is all background."""
    border_probability: float = Field(0.1, ge=0, le=1)
    """The first click lies at the edge of the animal, its boundary ring included: badly placed."""
    border_px: int = Field(3, ge=1)
    extra_probability: float = Field(0.4, ge=0, le=1)
    """More clicks follow the first; 0 is the study's case of one positive click."""
    max_extra: int = Field(4, ge=1, le=MAX_POINTS - 1)
    negative_share: float = Field(0.5, ge=0, le=1)
    """Share of the extra clicks that say "not this"."""


class TextSamplingConfig(BaseModel):
    """What a text prompt names, by probability; together 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    breed_probability: float = Field(0.4, ge=0, le=1)
    species_probability: float = Field(0.25, ge=0, le=1)
    neutral_probability: float = Field(0.15, ge=0, le=1)
    """"a photo of a pet": all animals stay."""
    absent_probability: float = Field(0.2, ge=0, le=1)
    """Something that is not there: the target is all background."""
    distractor_share: float = Field(0.3, ge=0, le=1)
    """Of the absent ones, the share that names no pet at all; the rest name the other species or a breed of it."""
    same_species_share: float = Field(0.0, ge=0, le=1)
    """Of the absent breeds, the share of the right species but the wrong breed: harder than telling cat from dog."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.breed_probability + self.species_probability + self.neutral_probability + self.absent_probability
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four probabilities of a text prompt sum to {total}, wanted 1")
        return self


class SamplingConfig(BaseModel):
    """How the prompts of both kinds are drawn; a model reads the part of its own kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: TextSamplingConfig = TextSamplingConfig()
    points: PointSamplingConfig = PointSamplingConfig()


def make_sampler(kind: PromptKind, config: SamplingConfig) -> Sampler:
    """The sampler of a model's prompt kind."""
    if kind is PromptKind.TEXT:
        return TextSampler(config.text)
    return PointSampler(config.points) if kind is PromptKind.POINTS else whole_scene


class PointSampler:
    """Clicks on one of the animals; the target is binary: {0 background, 1 the clicked animal, 255 its boundary}."""

    def __init__(self, config: PointSamplingConfig) -> None:
        self.config = config

    def __call__(self, scene: Scene, generator: Generator) -> tuple[Prompt, Tensor]:
        """Clicks and their target [S, S] int64."""
        visible = scene.visible()
        if not visible or happens(self.config.absent_probability, generator):
            click = _random_pixel(_far_from_animals(scene, 2 * self.config.border_px), generator)
            if click is not None:
                return PointPrompt((click,), (1,)), torch.zeros_like(scene.label_map, dtype=torch.int64)
        if not visible:
            # The whole square is ignored or near it: any click serves, for no pixel counts against it.
            return PointPrompt(((0.0, 0.0),), (1,)), torch.full_like(scene.label_map, IGNORE, dtype=torch.int64)
        target = object_target(scene, _choose(visible, generator))
        points, labels = self._clicks(scene, target, generator)
        return PointPrompt(tuple(points), tuple(labels)), target

    def _clicks(
        self, scene: Scene, target: Tensor, generator: Generator
    ) -> tuple[list[tuple[float, float]], list[int]]:
        first = None
        if happens(self.config.border_probability, generator):
            first = _random_pixel(_edge(target, self.config.border_px), generator)
        first = first or _random_pixel(target == OBJECT, generator)
        assert first is not None, "a visible animal has pixels"
        points, labels = [first], [1]
        if not happens(self.config.extra_probability, generator):
            return points, labels
        others = (scene.owners != 0) & (target == BACKGROUND) & (scene.label_map != IGNORE)
        for _ in range(1 + int(torch.randint(self.config.max_extra, (), generator=generator))):
            negative = happens(self.config.negative_share, generator)
            # Where another animal is in the picture, half of the negative clicks tell the two apart.
            candidates = others if negative and happens(0.5, generator) and others.any() else target == BACKGROUND
            click = _random_pixel(candidates if negative else target == OBJECT, generator)
            if click is not None:
                points.append(click)
                labels.append(0 if negative else 1)
        return points, labels


def object_target(scene: Scene, index: int) -> Tensor:
    """Binary target [S, S] int64 of pets[index]: another animal and its boundary are background."""
    owned = scene.owners == index + 1
    target = torch.where(owned, OBJECT, BACKGROUND)
    return torch.where(owned & (scene.label_map == IGNORE), IGNORE, target)


def next_click(target: Array, mask: Array, generator: Generator | None = None) -> Click | None:
    """The click that corrects most: in the largest region where `mask` is wrong, as far from its edge as can be.

    The protocol of interactive segmentation (Sofiiuk et al., RITM, 2021). With a generator, a random pixel of the
    region's inner half instead of its very centre, for training.

    target: [H, W] {0 background, 1 object, 255 ignored}; mask: [H, W] {0, 1}. None where the mask has no error.
    With an empty mask this is the first click.
    """
    best: tuple[int, Array, int] | None = None
    for label, wrong in ((1, (target == OBJECT) & (mask == 0)), (0, (target == BACKGROUND) & (mask != 0))):
        regions, count = ndimage.label(wrong)
        if count == 0:
            continue
        areas = np.bincount(regions.ravel())[1:]
        largest = int(areas.argmax())
        if best is None or areas[largest] > best[0]:
            best = int(areas[largest]), regions == largest + 1, label
    if best is None:
        return None
    # The picture's own border counts as an edge too, hence the ring of zeros.
    distance = ndimage.distance_transform_edt(np.pad(best[1], 1))[1:-1, 1:-1]
    if generator is None:
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    else:
        inner = np.argwhere(distance > distance.max() / 2)
        y, x = inner[int(torch.randint(len(inner), (), generator=generator))]
    return float(x), float(y), best[2]


def border_click(target: Array, border_px: int, generator: Generator) -> Click:
    """A positive click on the object within `border_px` of its edge: what a hasty hand places.

    target: [H, W] {0, 1 object, 255 ignored}. Raises ValueError where there is no object.
    """
    near = _near(torch.from_numpy(target != OBJECT), border_px) & torch.from_numpy(target == OBJECT)
    click = _random_pixel(near if near.any() else torch.from_numpy(target == OBJECT), generator)
    if click is None:
        raise ValueError("got a target without object pixels; there is nothing to click")
    return click[0], click[1], 1


class TextSampler:
    """Names a breed, a species, any pet, or what is not there; animals that are not named become background."""

    def __init__(self, config: TextSamplingConfig) -> None:
        self.config = config

    def __call__(self, scene: Scene, generator: Generator) -> tuple[Prompt, Tensor]:
        """A sentence and its target [S, S] int64 {0 background, 1 cat, 2 dog, 255 ignored}."""
        c = self.config
        visible = scene.visible()
        draw = torch.rand((), generator=generator).item()
        if not visible or draw < c.absent_probability:
            name = self._absent_name([scene.pets[index] for index in visible], generator)
            return TextPrompt(_sentence(name, generator)), keep_pets(scene, ())
        if draw < c.absent_probability + c.neutral_probability:
            return TextPrompt(_choose(pet_names.NEUTRAL_PROMPTS, generator)), scene.label_map.long()
        named = scene.pets[_choose(visible, generator)]
        if draw < c.absent_probability + c.neutral_probability + c.species_probability:
            name = _choose(pet_names.SPECIES_WORDS[_SPECIES[named.species]], generator)
            kept = [index for index, pet in enumerate(scene.pets) if pet.species == named.species]
        else:
            name = _breed_name(pet_names.find_breed(named.breed), generator)
            kept = [index for index, pet in enumerate(scene.pets) if pet.breed == named.breed]
        return TextPrompt(_sentence(name, generator)), keep_pets(scene, kept)

    def _absent_name(self, present: list[Pet], generator: Generator) -> str:
        there = {_SPECIES[pet.species] for pet in present}
        if present and happens(self.config.same_species_share, generator):
            shown = {pet.breed for pet in present}
            others = [breed for breed in pet_names.breeds() if breed.species in there and breed.key not in shown]
            return _breed_name(_choose(others, generator), generator)
        missing = sorted(set(_SPECIES.values()) - there)
        if not missing or happens(self.config.distractor_share, generator):
            return _choose(pet_names.distractors(), generator)
        species = _choose(missing, generator)
        if happens(0.5, generator):
            return _choose(pet_names.SPECIES_WORDS[species], generator)
        others = [breed for breed in pet_names.breeds() if breed.species == species]
        return _breed_name(_choose(others, generator), generator)


def keep_pets(scene: Scene, kept: "list[int] | tuple[int, ...]") -> Tensor:
    """The label map [S, S] int64 with only pets[kept]; the others, their boundary included, become background."""
    if len(kept) == len(scene.pets):
        return scene.label_map.long()
    stays = torch.zeros_like(scene.owners, dtype=torch.bool)
    for index in kept:
        stays |= scene.owners == index + 1
    return torch.where(stays, scene.label_map, BACKGROUND).long()


def _sentence(name: str, generator: Generator) -> str:
    return pet_names.fill(_choose(pet_names.TEMPLATES, generator), name)


def _breed_name(breed: pet_names.Breed, generator: Generator) -> str:
    return _choose((breed.name, *breed.synonyms), generator)


def _far_from_animals(scene: Scene, distance_px: int) -> Tensor:
    return ~_near(scene.label_map != BACKGROUND, distance_px)


def _edge(target: Tensor, border_px: int) -> Tensor:
    """[S, S] bool: pixels of the object or of its boundary ring that are within `border_px` of where it surely ends."""
    inside = target == OBJECT
    return _near(~inside, border_px) & inside | _near(inside, border_px) & (target == IGNORE)


def _near(pixels: Tensor, distance_px: int) -> Tensor:
    """[H, W] bool: within `distance_px`, counted along each axis, of one of `pixels`."""
    window = 2 * distance_px + 1
    return F.max_pool2d(pixels[None].float(), window, stride=1, padding=distance_px)[0] > 0


def _random_pixel(candidates: Tensor, generator: Generator) -> tuple[float, float] | None:
    """(x, y) of one of the true pixels of `candidates` [H, W], each as likely; None where there are none."""
    pixels = candidates.nonzero()
    if len(pixels) == 0:
        return None
    y, x = pixels[int(torch.randint(len(pixels), (), generator=generator))].tolist()
    return float(x), float(y)


def _choose(options: "tuple[T, ...] | list[T]", generator: Generator) -> T:
    return options[int(torch.randint(len(options), (), generator=generator))]
