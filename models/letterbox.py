"""From upload bytes to the model's square and back: decoding, letterboxing, restoring masks.

The service and `training/evaluate.py` share these functions, so the mask that is served is the mask that was measured.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torch import Tensor

from models.image_files import FORMATS, MAX_FRAMES, ImageError, ImageTooLargeError, UnsupportedImageError, check_file
from models.layers import resize
from models.upsampling import resize_argmax, resize_twice_argmax

Array = npt.NDArray[np.uint8]

# Pillow warns of odd metadata in files that it reads all the same. For good rather than around each photo:
# `catch_warnings` swaps the filters of all threads, and where two of them overlap the later one leaves its own behind.
warnings.filterwarnings("ignore", module=r"PIL\.")

_STRIP_PIXELS = 1 << 20
"""Pixels restored at once, so that a 12-megapixel photo needs no 12-megapixel float logits."""

_MOST_COPIED_PIXELS = 1 << 21
"""A photo of more is resized without a copy of it: two of a large one would weigh more than the time they save."""


@dataclass(frozen=True)
class Letterbox:
    """Moves images, label maps, points and logits between an upload and the model's square.

    The longer side becomes `image_size` with the aspect kept; the rest is padded symmetrically with the image's own
    per-channel mean (study, data preparation). A 1-pixel side stays at least one pixel.
    """

    original_size: tuple[int, int]
    """Upload (height, width) in pixels, after EXIF orientation."""
    image_size: int
    """Side S of the model's square in pixels."""

    @property
    def content_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the resized upload inside the square."""
        height, width = self.original_size
        longer = max(height, width)
        return max(1, round(height * self.image_size / longer)), max(1, round(width * self.image_size / longer))

    @property
    def offset(self) -> tuple[int, int]:
        """(top, left) padding in pixels."""
        height, width = self.content_size
        return (self.image_size - height) // 2, (self.image_size - width) // 2

    @property
    def _content(self) -> tuple[slice, slice]:
        """Rows and columns of the square that the resized upload fills."""
        (height, width), (top, left) = self.content_size, self.offset
        return slice(top, top + height), slice(left, left + width)

    def apply_image(self, image: Image.Image) -> Array:
        """RGB image of any size -> [S, S, 3] uint8. The image may be a reduced decoding of the upload."""
        return np.ascontiguousarray(self.image_planes(image).transpose(1, 2, 0))

    def image_planes(self, image: Image.Image) -> Array:
        """The same as planes [3, S, S], which networks read: no copy from plane to pixel order and back."""
        if image.mode != "RGB":
            raise ValueError(f"got an image of mode {image.mode}, wanted RGB; pass it through decode_image first")
        return self._pad(_resize_photo(image, *self.content_size))

    def resize_planes(self, planes: Tensor) -> Array:
        """As `image_planes`, of an RGB image's own planes [3, H, W] uint8."""
        return self._pad(_resize_planes(planes, *self.content_size))

    def _pad(self, content: Array) -> Array:
        """Planes [3, h, w] in the middle of a square of their mean colour, [3, S, S] uint8."""
        height, width = self.content_size
        top, left = self.offset
        square = np.empty((3, self.image_size, self.image_size), np.uint8)
        square[:] = _mean_colour(content)[:, None, None]
        square[:, top : top + height, left : left + width] = content
        return square

    def apply_label_map(self, label_map: Array, padding: int = 0) -> Array:
        """Label map [H, W] uint8 -> [S, S] uint8 by nearest neighbour; padding is background."""
        height, width = self.content_size
        top, left = self.offset
        content = Image.fromarray(label_map).resize((width, height), Image.Resampling.NEAREST)
        square = np.full((self.image_size, self.image_size), padding, np.uint8)
        square[top : top + height, left : left + width] = np.asarray(content)
        return square

    def apply_points(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Upload (x, y) pixels -> square (x, y) pixels; pixel centres map onto pixel centres."""
        (height, width), (top, left) = self.content_size, self.offset
        scale_y, scale_x = height / self.original_size[0], width / self.original_size[1]
        return [((x + 0.5) * scale_x - 0.5 + left, (y + 0.5) * scale_y - 0.5 + top) for x, y in points]

    def crop(self, logits: Tensor) -> Tensor:
        """Scores [K, s, s] of the square -> [K, h, w] at its size, without the padding."""
        square = resize(logits[None], self.image_size, self.image_size)[0]
        return square[:, *self._content]

    def restore_logits(self, logits: Tensor) -> Tensor:
        """Scores [K, s, s] of the square -> [K, H, W] float32 at the upload's size, bilinear by way of S."""
        content = self.crop(logits.float())
        return F.interpolate(content[None], self.original_size, mode="bilinear", align_corners=False)[0]

    def restore_mask(self, logits: Tensor) -> Array:
        """Scores [K, s, s] of the square -> mask [H, W] uint8: resize the logits, then argmax.

        Equal to `restore_logits(logits).argmax(0)`, though only what a border crosses is resized at all.
        """
        logits = logits.float().cpu()
        if max(logits.shape[1:]) < self.image_size:
            return resize_twice_argmax(logits.numpy(), self.image_size, *self._content, *self.original_size)
        return resize_argmax(self.crop(logits).numpy(), *self.original_size)

    def restore_strips(self, logits: Tensor) -> Iterator[Tensor]:
        """`restore_logits` in strips of rows, top to bottom, each [K, rows, W] float32; one strip for small uploads."""
        height, width = self.original_size
        rows = max(1, _STRIP_PIXELS // width)
        if rows >= height:
            yield self.restore_logits(logits)
        else:
            yield from _resize_in_strips(self.crop(logits.float()), height, width, rows)


def _resize_photo(photo: Image.Image, height: int, width: int) -> Array:
    """RGB photo -> planes [3, height, width] uint8, bilinear with antialiasing.

    Pillow's way (a triangle as wide as the reduction) by torch, which does it in vectors of bytes: within 1 of Pillow's
    values, and within 2 once in millions, in a third of the time. Large photos stay with Pillow, which needs no copies
    of them.
    """
    if photo.width * photo.height > _MOST_COPIED_PIXELS:
        return np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    return _resize_planes(torch.from_numpy(np.array(photo)).permute(2, 0, 1), height, width)


def _resize_planes(planes: Tensor, height: int, width: int) -> Array:
    """Planes [3, H, W] uint8 -> [3, height, width]; quickest where colours come last in memory."""
    resized = F.interpolate(planes[None], (height, width), mode="bilinear", antialias=True, align_corners=False)
    resized_planes: Array = resized[0].numpy()
    return resized_planes


def _mean_colour(content: Array) -> Array:
    """Rounded mean of each of the planes [3, h, w] uint8: [3] uint8."""
    pixels = content.reshape(3, -1)
    # The narrowest type that holds the sum: twice as fast as numpy's own choice.
    sums = pixels.sum(axis=1, dtype=np.uint32 if pixels.shape[1] < 1 << 24 else np.uint64)
    means: Array = np.rint(sums / pixels.shape[1]).astype(np.uint8)
    return means


def _resize_in_strips(content: Tensor, height: int, width: int, rows: int) -> Iterator[Tensor]:
    """The bilinear resize of `content` [K, h, w] to [K, height, width], `rows` rows at a time."""
    source_height = content.shape[1]
    positions = ((torch.arange(height, device=content.device) + 0.5) * (source_height / height) - 0.5).clamp(min=0)
    upper = positions.floor().long().clamp(max=source_height - 1)
    lower = (upper + 1).clamp(max=source_height - 1)
    weight = (positions - upper)[:, None]
    widened = F.interpolate(content[None], (source_height, width), mode="bilinear", align_corners=False)[0]
    for start in range(0, height, rows):
        strip = slice(start, start + rows)
        yield torch.lerp(widened[:, upper[strip]], widened[:, lower[strip]], weight[strip])


def decode_image(
    data: bytes, *, max_pixels: int = 1 << 26, max_frames: int = MAX_FRAMES, at_least: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Upload bytes -> (upright RGB image, original (height, width)).

    Takes the first frame, applies the EXIF orientation, lays transparency on white and scales 16-bit grey to 8 bits.
    With `at_least`, a JPEG more than four times that many pixels on its longer side is decoded at a reduced scale
    that is still at least twice it: the returned image is then smaller than the returned size. On smaller photos
    reduced decoding would change masks, so they are decoded whole.

    Raises UnsupportedImageError for other or damaged content, ImageTooLargeError above `max_pixels` or `max_frames`.
    """
    if not data:
        raise UnsupportedImageError("got 0 bytes, wanted an image; send the file's content")
    name = check_file(data, max_frames)
    try:
        image = Image.open(io.BytesIO(data), formats=[name])
        width, height = image.size
        if width * height > max_pixels:
            raise ImageTooLargeError(
                f"got {width} x {height} = {width * height} pixels, wanted at most {max_pixels}; scale it down"
            )
        if at_least is not None and max(width, height) > 4 * at_least:
            scale = 2 * at_least / max(width, height)
            image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
        image.load()
        # Only this tag is asked for: the others may be long, and none matters here.
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        upright = _to_rgb(image)
        if orientation in _UPRIGHT:
            upright = upright.transpose(_UPRIGHT[orientation])
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageTooLargeError(
            f"got an image of too many pixels, wanted at most {max_pixels}; scale it down"
        ) from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged input; all mean the same to the caller
        raise UnsupportedImageError(
            f"got {len(data)} bytes that do not decode as {', '.join(FORMATS)}; send a whole file of one of these"
        ) from error
    return upright, ((width, height) if orientation in (5, 6, 7, 8) else (height, width))


def decode_planes(
    data: bytes, image_size: int, *, max_pixels: int = 1 << 26, max_frames: int = MAX_FRAMES
) -> tuple[Array, tuple[int, int]]:
    """Upload bytes -> (square [3, S, S] uint8, original (height, width)): `decode_image`, then `image_planes`.

    Most JPEGs are decoded by simplejpeg: the same library behind it and the same pixels, without Pillow's copies
    between its rows of four bytes and ours of three. Raises what `decode_image` raises.
    """
    photo = _read_plain_jpeg(data, 4 * image_size, max_pixels, max_frames)
    if photo is not None:
        height, width, _ = photo.shape
        letterbox = Letterbox((height, width), image_size)
        return letterbox.resize_planes(torch.from_numpy(photo).permute(2, 0, 1)), (height, width)
    image, original_size = decode_image(data, max_pixels=max_pixels, max_frames=max_frames, at_least=image_size)
    return Letterbox(original_size, image_size).image_planes(image), original_size


def _read_plain_jpeg(data: bytes, longest: int, max_pixels: int, max_frames: int) -> Array | None:
    """An upright colour JPEG within these bounds, [H, W, 3] uint8; None for all else, and for damaged ones."""
    try:
        if check_file(data, max_frames) != "JPEG":
            return None
        header = Image.open(io.BytesIO(data), formats=["JPEG"])
        is_small = max(header.size) <= longest and header.width * header.height <= min(max_pixels, _MOST_COPIED_PIXELS)
        is_upright = header.getexif().get(ExifTags.Base.Orientation, 1) not in _UPRIGHT
        # Two parsers may read a broken header differently, and the limits are those of the size that was read here.
        is_as_read = simplejpeg.decode_jpeg_header(data)[:2] == (header.height, header.width)
        if header.mode != "RGB" or not (is_small and is_upright and is_as_read):
            return None
        photo: Array = simplejpeg.decode_jpeg(data, "RGB")
        return photo
    except Exception:  # whatever is wrong, Pillow has the last word
        return None


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: npt.NDArray[Any]) -> Array:
    """Grey [H, W] of 16 or more bits -> uint8; a peak above 255 means 16 bits. In strips, which bounds memory."""
    peak = 65535.0 if values.max(initial=0) > 255 else 255.0
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP_PIXELS // values.shape[1])
    for start in range(0, len(values), rows):
        strip = slice(start, start + rows)
        grey[strip] = values[strip].astype(np.float64).clip(0, peak) * (255.0 / peak)
    return grey


def image_tensor(square: Array) -> Tensor:
    """[S, S, 3] uint8 RGB -> [3, S, S] float32 in [0, 1]."""
    return planes_tensor(square.transpose(2, 0, 1))


def planes_tensor(planes: Array) -> Tensor:
    """[3, S, S] uint8 RGB -> the same in float32, in [0, 1]."""
    return torch.from_numpy(planes).float().div_(255.0)
