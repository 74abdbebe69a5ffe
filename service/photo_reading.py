"""A request's photo before the network: decoded, letterboxed and checked, whichever process does it."""

from models.image_files import ImageTooLargeError, UnsupportedImageError
from models.letterbox import Array
from models.prompts import PointPrompt, Prompt
from service.errors import (
    ImageGone,
    ImageIdNotKept,
    ImageTooLarge,
    InvalidRequest,
    UnsupportedImage,
    pointer,
)
from service.image_processes import ImageWork
from service.image_work import PhotoLimits, read_planes


def read_upload(work: ImageWork, upload: bytes, limits: PhotoLimits, image_size: int) -> tuple[Array, tuple[int, int]]:
    """The network's square as planes [3, S, S] uint8, and the photo's own (height, width).

    Raises ImageTooLarge or UnsupportedImage.
    """
    try:
        return work.call(read_planes, upload, limits, image_size)
    except ImageTooLargeError as error:
        raise ImageTooLarge(str(error)) from error
    except UnsupportedImageError as error:
        raise UnsupportedImage(str(error)) from error


def check_points(prompt: Prompt, original_size: tuple[int, int]) -> None:
    """Raise InvalidRequest for clicks outside the photo of `original_size` (height, width)."""
    if not isinstance(prompt, PointPrompt):
        return
    height, width = original_size
    errors = [
        {
            "pointer": pointer("points", index),
            "detail": f"got ({x:g}, {y:g}), wanted 0 <= x < {width}, 0 <= y < {height}",
        }
        for index, (x, y) in enumerate(prompt.points)
        if not (0 <= x < width and 0 <= y < height)
    ]
    if errors:
        raise InvalidRequest(
            f"got a click outside the image, wanted pixels of the upright {width} x {height} image; "
            "x runs to the right and y down from the top left corner",
            errors=errors,
        )


def image_not_kept(model: str) -> ImageIdNotKept:
    """The refusal of an image id where no features are kept."""
    return ImageIdNotKept(f"got an image_id, but {model} keeps no features; send the image itself")


def image_gone(digest: str) -> ImageGone:
    """The refusal of an image id whose photo is not held."""
    return ImageGone(f"got image_id sha256:{digest}, which is not held (any more); send the image itself again")
