"""What is done with a photo before the network: a plain function of plain data, which any process can run."""

from dataclasses import dataclass

from PIL import Image

from models.image_files import MAX_FRAMES
from models.letterbox import Array, Letterbox, decode_image


@dataclass(frozen=True)
class PhotoLimits:
    """What a photo may be at most."""

    max_pixels: int = 1 << 26
    max_frames: int = MAX_FRAMES


def read_photo(upload: bytes, limits: PhotoLimits, at_least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """`decode_image` within `limits`."""
    return decode_image(upload, max_pixels=limits.max_pixels, max_frames=limits.max_frames, at_least=at_least)


def read_square(upload: bytes, limits: PhotoLimits, image_size: int) -> tuple[Array, tuple[int, int]]:
    """Upload bytes -> (the model's square [S, S, 3] uint8, the photo's upright (height, width)).

    Raises UnsupportedImageError and ImageTooLargeError.
    """
    photo, original_size = read_photo(upload, limits, at_least=image_size)
    return Letterbox(original_size, image_size).apply_image(photo), original_size
