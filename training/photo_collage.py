"""Whole photos laid side by side at their own sharpness, for evaluation: the same pairs and pictures every time.

`collage.py` draws random ones for training. Called by `referring.py`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from models.letterbox import Array
from training.official_layout import CAT, ExampleError, PetPhoto, PetRecord, read_photo
from training.preparation import seed_of

Pair = tuple[PetRecord, PetRecord]

Labels = tuple[Array, Array]
"""For each of two animals its label map [H, W] uint8 on the whole collage; the other animal is background."""


def species_pairs(records: Sequence[PetRecord]) -> list[Pair]:
    """As many pairs of a cat and a dog as there are, each record at most once; every other pair begins with the dog."""
    shuffled = _shuffled(records)
    cats = [record for record in shuffled if record.species == CAT]
    dogs = [record for record in shuffled if record.species != CAT]
    pairs = zip(cats, dogs, strict=False)  # what is left of the larger species stays out
    return [(dog, cat) if index % 2 else (cat, dog) for index, (cat, dog) in enumerate(pairs)]


def breed_pairs(records: Sequence[PetRecord]) -> list[Pair]:
    """Pairs of different breeds, of one species or two as chance has it; each record at most once."""
    pairs: list[Pair] = []
    waiting: list[PetRecord] = []  # all of one breed
    for record in _shuffled(records):
        if waiting and waiting[0].breed != record.breed:
            pairs.append((waiting.pop(), record))
        else:
            waiting.append(record)
    return pairs


def read_collages(
    root: Path, pairs: Sequence[Pair], skipped: dict[str, str]
) -> Iterator[tuple[Pair, Image.Image, Labels]]:
    """The collage of each pair; where a photo cannot be read, the pair is left out and the photo named in `skipped`."""
    for pair in pairs:
        photos: list[PetPhoto] = []
        for record in pair:
            try:
                photos.append(read_photo(root, record))
            except ExampleError as error:
                skipped[record.name] = str(error)
        if len(photos) == 2:
            yield pair, *lay_together(photos[0], photos[1])


def lay_together(first: PetPhoto, second: PetPhoto) -> tuple[Image.Image, Labels]:
    """Both photos as one picture, side by side or one above the other, whichever is nearer to a square.

    The larger is reduced so that the touching sides are equally long; nothing is enlarged.
    """
    beside = _sizes(first.image.size, second.image.size)
    across = _sizes(first.image.size[::-1], second.image.size[::-1])
    stacked = [(width, height) for height, width in across]
    is_beside = _elongation(beside, 0) <= _elongation(stacked, 1)
    sizes = beside if is_beside else stacked
    images, maps = [], []
    for photo, size in zip((first, second), sizes, strict=True):
        images.append(np.asarray(photo.image.resize(size, Image.Resampling.BILINEAR)))
        maps.append(np.asarray(Image.fromarray(photo.label_map).resize(size, Image.Resampling.NEAREST)))
    axis = 1 if is_beside else 0
    labels = (
        np.concatenate([maps[0], np.zeros_like(maps[1])], axis=axis),
        np.concatenate([np.zeros_like(maps[0]), maps[1]], axis=axis),
    )
    return Image.fromarray(np.concatenate(images, axis=axis)), labels


def _sizes(first: tuple[int, int], second: tuple[int, int]) -> list[tuple[int, int]]:
    """(width, height) of both when reduced to the smaller height."""
    height = min(first[1], second[1])
    return [(max(1, round(w * height / h)), height) for w, h in (first, second)]


def _elongation(sizes: Sequence[tuple[int, int]], along: int) -> float:
    """Longer by shorter side of both laid along axis 0 (x) or 1 (y)."""
    length, breadth = sum(size[along] for size in sizes), sizes[0][1 - along]
    return max(length, breadth) / min(length, breadth)


def _shuffled(records: Sequence[PetRecord]) -> list[PetRecord]:
    """An order that depends on each photo's name alone."""
    return sorted(records, key=lambda record: seed_of("collage", record.name))
