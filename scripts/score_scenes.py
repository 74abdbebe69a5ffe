"""Score image-only checkpoints on scenes made of the large validation photos: several animals, small ones, parts.

`python scripts/score_scenes.py DATA CHECKPOINT...` prints the table of docs/training.md. Photos from elsewhere are not
at hand; these stand in for them, and leave the test list alone.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from models.checkpoint import load_checkpoint
from models.letterbox import Array
from training.encoded_pictures import EncodedPictures, PhotoReader
from training.evaluate import count_pixels, select_records
from training.metrics import mean_iou
from training.official_layout import BACKGROUND, IGNORE

LARGE_PX = 256
"""Most photos of the set at hand have 128 pixels on the longer side; those of more are sharp."""
HEIGHT_PX = 400
"""Of two photos side by side."""
SMALLEST_PX = 40
"""A part of fewer pixels on a side is left out."""

Scene = tuple[Image.Image, Array]
"""A picture and its label map [H, W] {0, 1, 2, 255}."""


def read_large_photos(data: Path) -> list[Scene]:
    """The large photos of the validation part."""
    reader = PhotoReader(data, select_records(data, "validation", validation_fraction=0.1, seed=0))
    photos = [photo for batch in reader.batches("reading") for _, photo in batch]
    return [(photo.image, photo.label_map) for photo in photos if max(photo.image.size) > LARGE_PX]


def pair(photos: list[Scene], generator: np.random.Generator) -> Iterator[Scene]:
    """Two photos of one height side by side, each photo once."""
    order = generator.permutation(len(photos))
    for left, right in zip(order[::2], order[1::2], strict=False):
        halves = [_resize(photos[left]), _resize(photos[right])]
        pixels = np.concatenate([np.asarray(image) for image, _ in halves], axis=1)
        yield Image.fromarray(pixels), np.concatenate([label_map for _, label_map in halves], axis=1)


def shrink(photos: list[Scene], factor: int) -> Iterator[Scene]:
    """Each photo in the middle of its own blurred enlargement, `factor` times as wide and high."""
    for image, label_map in photos:
        width, height = factor * image.width, factor * image.height
        left, top = (width - image.width) // 2, (height - image.height) // 2
        ground = image.resize((width, height)).filter(ImageFilter.GaussianBlur(width // 12))
        ground.paste(image, (left, top))
        labels = np.full((height, width), BACKGROUND, np.uint8)
        labels[top : top + image.height, left : left + image.width] = label_map
        yield ground, labels


def cut(photos: list[Scene], generator: np.random.Generator) -> Iterator[Scene]:
    """A quarter of each animal's box, so that its outline leaves the picture."""
    for image, label_map in photos:
        rows, columns = np.nonzero((label_map != BACKGROUND) & (label_map != IGNORE))
        top, bottom = _half(int(rows.min()), int(rows.max()), generator)
        left, right = _half(int(columns.min()), int(columns.max()), generator)
        if min(bottom - top, right - left) >= SMALLEST_PX:
            yield image.crop((left, top, right, bottom)), label_map[top:bottom, left:right]


def _half(first: int, last: int, generator: np.random.Generator) -> tuple[int, int]:
    middle = (first + last) // 2
    return (first, middle) if generator.random() < 0.5 else (middle, last)


def _resize(scene: Scene) -> Scene:
    image, label_map = scene
    size = (max(1, image.width * HEIGHT_PX // image.height), HEIGHT_PX)
    labels = Image.fromarray(label_map).resize(size, Image.Resampling.NEAREST)
    return image.resize(size, Image.Resampling.LANCZOS), np.asarray(labels)


def score(checkpoint: Path, scenes: list[Scene]) -> float:
    """Mean IoU in [0, 1], boundary ignored, each scene counted alike."""
    model = load_checkpoint(checkpoint).model
    classes = len(model.config.class_names)
    total = torch.zeros(classes, classes, dtype=torch.float64)
    for image, label_map in scenes:
        mask = EncodedPictures(model, [image]).masks([None])[0]
        counts = count_pixels(mask, label_map, "ignore", classes).double()
        total += counts / counts.sum().clamp(min=1)
    return float(mean_iou(total))


def main(data: Path, checkpoints: list[Path]) -> None:
    """Print one row for each checkpoint."""
    photos, generator = read_large_photos(data), np.random.default_rng(0)
    sets = {
        "two animals": [*pair(photos, generator)],
        "half as large": [*shrink(photos, 2)],
        "a third": [*shrink(photos, 3)],
        "a quarter of it": [*cut(photos, generator)],
    }
    print(f"| model | {' | '.join(sets)} |\n|---|{'---:|' * len(sets)}")
    for checkpoint in checkpoints:
        cells = [f"{score(checkpoint, scenes):.3f}" for scenes in sets.values()]
        print(f"| {checkpoint.stem} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
