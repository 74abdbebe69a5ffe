"""Photos to send: crops of scikit-image's cat, as large as the photos of Oxford-IIIT Pet (100 KB), or larger."""

import io
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageEnhance, ImageFilter

WANTED_BYTES = 100_000
COUNT = 64
"""More than any batch or any number of waiting callers holds: one photo twice in a batch would be encoded once."""

_SIZES = ((500, 375), (375, 500), (500, 333), (480, 480))
"""(width, height) in pixels, in turn."""


def write_photos(
    folder: Path, count: int = COUNT, scale: float = 1.0, wanted_bytes: int = WANTED_BYTES, first: int = 0
) -> Path:
    """`count` different JPEG files of about `wanted_bytes` in `folder`; `scale` enlarges the sides. Same every time.

    first: number of the first; photos of other numbers are other crops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cat = Image.fromarray(skimage.data.chelsea())  # type: ignore[no-untyped-call]
    for index in range(first, first + count):
        (folder / f"{index:03}.jpg").write_bytes(_compress(_vary(cat, index, scale), wanted_bytes))
    return folder


def write_large_photos(folder: Path, count: int = 4) -> Path:
    """`count` photos of 12 megapixels and about 3 MB, as phones take them."""
    return write_photos(folder, count, scale=8.0, wanted_bytes=3_000_000)


def _vary(cat: Image.Image, index: int, scale: float) -> Image.Image:
    """Another crop, tone and side of the cat, with a sensor's noise."""
    generator = np.random.default_rng(index)
    width, height = (round(scale * side) for side in _SIZES[index % len(_SIZES)])
    zoom = generator.uniform(0.75, 1.0) * min(cat.width / width, cat.height / height)
    left = generator.uniform(0, cat.width - zoom * width)
    top = generator.uniform(0, cat.height - zoom * height)
    box = (left, top, left + zoom * width, top + zoom * height)
    photo = cat.resize((width, height), Image.Resampling.LANCZOS, box=box)
    photo = ImageEnhance.Brightness(photo).enhance(generator.uniform(0.8, 1.2)).filter(ImageFilter.SHARPEN)
    if index % 2:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    noisy = np.asarray(photo) + generator.normal(0, 4, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _compress(photo: Image.Image, wanted_bytes: int) -> bytes:
    """`photo` at the highest quality that stays within `wanted_bytes`, by bisection."""
    low, high = 40, 99
    data = _jpeg(photo, low)
    while low < high:
        middle = (low + high + 1) // 2
        tried = _jpeg(photo, middle)
        if len(tried) <= wanted_bytes:
            low, data = middle, tried
        else:
            high = middle - 1
    return data


def _jpeg(photo: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
