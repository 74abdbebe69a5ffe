"""What is done with a photo before the network: a plain function of plain data, which any process can run."""

from dataclasses import dataclass

from PIL import Image

from models.image_files import MAX_FRAMES
from models.letterbox import Array, decode_image, decode_planes


@dataclass(frozen=True)
class PhotoLimits:
    """What a photo may be at most."""

    max_pixels: int = 1 << 26
    max_frames: int = MAX_FRAMES


def read_photo(upload: bytes, limits: PhotoLimits, at_least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """`decode_image` within `limits`."""
    return decode_image(upload, max_pixels=limits.max_pixels, max_frames=limits.max_frames, at_least=at_least)


def read_planes(upload: bytes, limits: PhotoLimits, image_size: int) -> tuple[Array, tuple[int, int]]:
    """`decode_planes` within `limits`."""
    return decode_planes(upload, image_size, max_pixels=limits.max_pixels, max_frames=limits.max_frames)
