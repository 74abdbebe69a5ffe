"""A drawn data set in the official layout: cats and dogs on textured ground, for tests and first runs.

Cats have pointed ears and a long raised tail, dogs hanging ears, a muzzle and a short tail; breeds differ in colours.
Called by `petseg-train synthesise` and by the tests; nothing is downloaded.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from models.letterbox import Array
from training.official_layout import CAT, DOG, image_path, trimap_path

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Breed:
    key: str
    number: int
    """Class among the 37 of the official list."""
    number_in_species: int
    species: int
    fur: Colour
    points: Colour
    """Colour of ears, tail and muzzle."""


_BREEDS = (
    _Breed("Siamese", 33, 11, CAT, (222, 204, 178), (74, 56, 48)),
    _Breed("Russian_Blue", 28, 10, CAT, (112, 122, 138), (88, 96, 112)),
    _Breed("beagle", 5, 4, DOG, (236, 228, 214), (150, 90, 46)),
    _Breed("pug", 26, 18, DOG, (206, 172, 128), (44, 38, 36)),
)

_OVERSAMPLING = 4
"""Shapes are drawn this much larger and reduced, so that edges are smooth."""


def generate(out: Path, count: int, image_size: int, seed: int = 0) -> Path:
    """Writes `count` photos, their trimaps and the three lists under `out`; returns `out`.

    Longer sides are `image_size` pixels, aspects between 3:4 and 4:3. Of each breed every third photo is in test.txt,
    the others in trainval.txt. The same seed draws the same pictures. Raises ValueError where `out` holds a data set.
    """
    if count < len(_BREEDS) or image_size < 32:
        raise ValueError(
            f"got count={count} and image_size={image_size}, wanted at least {len(_BREEDS)} photos of 32 pixels"
        )
    lists = out / "annotations"
    if (lists / "list.txt").exists():
        raise ValueError(f"{out} holds a data set already; choose another folder or delete it")
    (out / "images").mkdir(parents=True, exist_ok=True)
    (lists / "trimaps").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"list": [], "trainval": [], "test": []}
    for index in range(count):
        breed, number = _BREEDS[index % len(_BREEDS)], index // len(_BREEDS) + 1
        name = f"{breed.key}_{number}"
        image, trimap = _picture(breed, image_size, np.random.default_rng((seed, index)))
        image.save(image_path(out, name), "JPEG", quality=92)
        Image.fromarray(trimap).save(trimap_path(out, name))
        line = f"{name} {breed.number} {breed.species} {breed.number_in_species}"
        lines["list"].append(line)
        lines["test" if number % 3 == 0 else "trainval"].append(line)
    for list_name, entries in lines.items():
        (lists / f"{list_name}.txt").write_text("".join(f"{entry}\n" for entry in sorted(entries)))
    return out


def _picture(breed: _Breed, image_size: int, rng: np.random.Generator) -> tuple[Image.Image, Array]:
    """One photo and its trimap [H, W] uint8 {1 pet, 2 background, 3 boundary}."""
    shorter = int(rng.integers(3 * image_size // 4, image_size + 1))
    width, height = (image_size, shorter) if rng.random() < 0.5 else (shorter, image_size)
    fur_mask, point_mask = _animal(breed.species, width, height, rng)
    image = _texture(width, height, _ground(rng), rng, roughness=22.0)
    image.paste(_texture(width, height, breed.fur, rng, roughness=8.0), mask=fur_mask)
    image.paste(_texture(width, height, breed.points, rng, roughness=8.0), mask=point_mask)
    shape = ImageChops.lighter(fur_mask, point_mask).point(lambda value: 255 * (value >= 128))
    ring_px = 2 * max(1, round(image_size / 100)) + 1
    inside = np.asarray(shape.filter(ImageFilter.MinFilter(ring_px))) > 0
    around = np.asarray(shape.filter(ImageFilter.MaxFilter(ring_px))) > 0
    return image, np.where(inside, 1, np.where(around, 3, 2)).astype(np.uint8)


def _ground(rng: np.random.Generator) -> Colour:
    red, green, blue = (int(value) for value in rng.integers(40, 216, 3))
    return red, green, blue


def _texture(width: int, height: int, colour: Colour, rng: np.random.Generator, *, roughness: float) -> Image.Image:
    """Colour with coarse patches of standard deviation `roughness` in 8-bit steps, and fine grain."""
    coarse = rng.normal(0, roughness, (max(2, height // 12), max(2, width // 12), 3))
    patches = np.stack(
        [
            np.asarray(
                Image.fromarray(coarse[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
            )
            for c in range(3)
        ],
        axis=-1,
    )
    values = np.array(colour, np.float64) + patches + rng.normal(0, 7, (height, width, 1))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _animal(species: int, width: int, height: int, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Masks [H, W] of the fur and of the points, of a sitting animal somewhere in the picture."""
    size = rng.uniform(0.55, 0.85) * min(width, height)
    x, y = rng.uniform(0.5 * size, width - 0.5 * size), rng.uniform(0.5 * size, height - 0.5 * size)
    pen = _Pen(width, height, (x, y), size, math.radians(rng.uniform(-15, 15)), mirrored=bool(rng.random() < 0.5))
    (_draw_cat if species == CAT else _draw_dog)(pen)
    return pen.masks()


class _Pen:
    """Draws in the animal's own unit square, centre at the origin, y down, onto two masks of the picture."""

    def __init__(
        self, width: int, height: int, centre: tuple[float, float], size: float, angle: float, *, mirrored: bool
    ) -> None:
        self._size = (width, height)
        canvas = (width * _OVERSAMPLING, height * _OVERSAMPLING)
        self._fur, self._points = Image.new("L", canvas), Image.new("L", canvas)
        cos, sin = math.cos(angle) * size * _OVERSAMPLING, math.sin(angle) * size * _OVERSAMPLING
        self._turn = np.array(((cos, -sin), (sin, cos))) @ np.diag((-1.0 if mirrored else 1.0, 1.0))
        self._centre = np.array(centre) * _OVERSAMPLING

    def polygon(self, corners: npt.ArrayLike, *, points: bool = False) -> None:
        placed = np.asarray(corners, np.float64) @ self._turn.T + self._centre
        mask = self._points if points else self._fur
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in placed], fill=255)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, *, points: bool = False) -> None:
        turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        outline = np.stack((x + radius_x * np.cos(turn), y + radius_y * np.sin(turn)), axis=1)
        self.polygon(outline, points=points)

    def masks(self) -> tuple[Image.Image, Image.Image]:
        return self._fur.resize(self._size, Image.Resampling.BOX), self._points.resize(self._size, Image.Resampling.BOX)


def _draw_cat(pen: _Pen) -> None:
    bend = np.linspace(0, 1, 16)
    spine = np.stack((0.2 + 0.25 * np.sin(2.4 * bend), 0.4 - 0.75 * bend), axis=1)
    thick = np.array((0.035, 0.0))
    pen.polygon(np.concatenate((spine - thick, (spine + thick)[::-1])), points=True)
    pen.ellipse(0.0, 0.2, 0.23, 0.29)
    pen.ellipse(-0.08, -0.16, 0.18, 0.16)
    for side in (-1, 1):
        tip = -0.08 + side * 0.15
        pen.polygon(((tip - 0.09, -0.2), (tip + 0.09, -0.2), (tip + side * 0.04, -0.45)), points=True)


def _draw_dog(pen: _Pen) -> None:
    pen.polygon(((0.36, -0.02), (0.49, -0.16), (0.47, 0.1)), points=True)
    pen.ellipse(0.1, 0.1, 0.34, 0.17)
    for x in (-0.18, -0.06, 0.24, 0.36):
        pen.polygon(((x - 0.04, 0.1), (x + 0.04, 0.1), (x + 0.04, 0.46), (x - 0.04, 0.46)))
    pen.ellipse(-0.24, -0.16, 0.17, 0.18)
    pen.ellipse(-0.37, -0.08, 0.12, 0.08, points=True)
    for x in (-0.36, -0.1):
        pen.ellipse(x, -0.16, 0.055, 0.17, points=True)
