"""Logits -> mask -> what people download: indexed PNG, COCO RLE, overlay, cutout, probability.

The mask comes from `Letterbox.restore_mask`, as in evaluation: what is served is what was measured.
"""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from models.letterbox import Array, Letterbox
from service.png import encode_indexed
from service.rle import encode_rle

Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
"""RGB of class 0, 1, 2...: black ground, then the palette of Okabe and Ito, told apart by colour-blind eyes too."""


def _voc_colour(index: int) -> Colour:
    """Pascal VOC's colour of a class: of its index, bit 0 is red's highest bit, bit 1 green's, bit 2 blue's, ..."""
    red, green, blue = (
        sum(((index >> (3 * step + channel)) & 1) << (7 - step) for step in range(3)) for channel in range(3)
    )
    return red, green, blue


VOC_COLOURS: tuple[Colour, ...] = tuple(_voc_colour(index) for index in range(256))
"""The palette of Pascal VOC's own masks; 255, their border that counts for nothing, is cream and never predicted."""

_TINT = 0.45
"""Share of the class colour in an overlay's tinted pixels."""

_PNG_LEVEL = 1
"""Of the pictures that hold pixels of the photo: higher levels cost four times the time for few bytes."""


@dataclass(frozen=True)
class Segment:
    """One class's pixels in a mask."""

    category_id: int
    """Class index, the value of these pixels in the PNG."""
    score: float
    """Mean probability of the class over its pixels, in [0, 1]."""
    area: int
    bbox: tuple[int, int, int, int]
    """(x, y, width, height) in pixels of the upload."""
    size: tuple[int, int]
    """(height, width) of the mask."""
    counts: list[int]
    """Run lengths in column-major order, background first."""


def encode_png(mask: Array) -> bytes:
    """Mask [H, W] uint8 -> indexed PNG: pixel value = class, the palette gives it a colour on any viewer."""
    return encode_indexed(mask, _palette())


def encode_voc_png(mask: Array) -> bytes:
    """The same with 8 bits a pixel and Pascal VOC's whole palette, as its tools expect."""
    return encode_indexed(mask, VOC_COLOURS, depth=8)


def find_segments(mask: Array, logits: Tensor, letterbox: Letterbox) -> list[Segment]:
    """One segment for each class but the background that has pixels in `mask` [H, W], in class order.

    logits: Tensor [K, s, s], those that `mask` was restored from. Scores are averaged on the model's square, before
    enlarging: the mean is the same but for the border, at a cost that does not grow with the photo.
    """
    probabilities = letterbox.crop(logits.float()).softmax(dim=0)
    winners = probabilities.argmax(dim=0)
    segments = []
    for category_id in range(1, logits.shape[0]):
        inside = mask == category_id
        if not inside.any():
            continue
        columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        own = probabilities[category_id]
        cells = own[winners == category_id]
        # Between grid cells a class may win without winning any cell; its best cell then stands for it.
        score = cells.mean() if cells.numel() else own.max()
        segments.append(
            Segment(
                category_id=category_id,
                score=round(float(score), 4),
                area=int(np.count_nonzero(inside)),
                bbox=(x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1),
                size=(mask.shape[0], mask.shape[1]),
                counts=encode_rle(inside),
            )
        )
    return segments


def draw_overlay(photo: Image.Image, mask: Array) -> bytes:
    """RGB photo with the mask's classes tinted and outlined, PNG of the same size.

    mask: [H, W] uint8, of the photo's size.
    """
    colours = Image.fromarray(mask)
    colours.putpalette([value for colour in _palette() for value in colour])
    colours = colours.convert("RGB")
    tinted = Image.composite(Image.blend(photo, colours, _TINT), photo, _stencil(mask > 0))
    line = _outline(mask, width_px=max(2, min(mask.shape) // 150))
    return _png(Image.composite(colours, tinted, _stencil(line)))


def draw_cutout(photo: Image.Image, mask: Array) -> bytes:
    """The photo's animals on transparent ground: RGBA PNG of the same size; mask: [H, W] uint8.

    Transparent pixels are black: the rest of the photo must neither show through nor swell the file.
    """
    stencil = _stencil(mask > 0)
    cutout = Image.composite(photo, Image.new("RGB", photo.size), stencil)
    cutout.putalpha(stencil)
    return _png(cutout)


def draw_probability(logits: Tensor, letterbox: Letterbox) -> bytes:
    """Confidence that a pixel is no background, 0 to 255, as 8-bit grey PNG at the upload's size.

    logits: Tensor [K, s, s]; resized first, then softmax, as the mask's argmax is taken.
    """
    strips = [
        (1 - strip.softmax(dim=0)[0]).mul_(255).round_().to(torch.uint8).cpu().numpy()
        for strip in letterbox.restore_strips(logits)
    ]
    return _png(Image.fromarray(np.concatenate(strips)))


def _outline(mask: Array, width_px: int) -> npt.NDArray[np.bool_]:
    """Pixels of a class that lie within `width_px` of another class: [H, W] bool."""
    line = np.zeros(mask.shape, dtype=bool)
    for step in range(1, width_px + 1):
        differs = mask[step:] != mask[:-step]
        line[step:] |= differs
        line[:-step] |= differs
        differs = mask[:, step:] != mask[:, :-step]
        line[:, step:] |= differs
        line[:, :-step] |= differs
    return line & (mask > 0)


def _stencil(is_inside: npt.NDArray[np.bool_]) -> Image.Image:
    """[H, W] bool -> grey image, 255 inside."""
    return Image.fromarray(is_inside.astype(np.uint8) * np.uint8(255))


@cache
def _palette() -> tuple[Colour, ...]:
    """256 colours: `COLOURS`, again from the second on once they are used up."""
    return (COLOURS[0], *(COLOURS[1 + index % (len(COLOURS) - 1)] for index in range(255)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()
