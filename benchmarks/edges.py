"""What stands around the network, each way of doing it beside the others: decoding, enlarging, encoding.

One thread, CPU time, the ways taking turns. The first way of each step is the plain one that the others are held to.
"""

import io
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.requests import read_photos
from benchmarks.statistics import median
from models.checkpoint import load_checkpoint
from models.letterbox import Array, Letterbox, decode_image, decode_planes, image_tensor
from service.masks import COLOURS
from service.png import encode_indexed, pack
from service.rle import encode_rle

_SERVED = " (served)"


@dataclass(frozen=True)
class EdgeRow:
    """One way of one step on one size of photo."""

    step: str
    photo: str
    way: str
    ms: float
    of_plain: float
    """Its time by the plain way's."""
    size_bytes: int
    """Of what it wrote; 0 where it writes nothing."""


def measure_edges(checkpoint: Path, photos: Path, large_photos: Path, repeats: int) -> list[EdgeRow]:
    """Every way of every step, on a small and on a 12-megapixel photo."""
    model = load_checkpoint(checkpoint).model
    rows = []
    for photo, folder in (("100 KB", photos), ("12 megapixels", large_photos)):
        upload = read_photos(folder)[0]
        image, size = decode_image(upload)
        letterbox = Letterbox(size, model.config.image_size)
        with torch.inference_mode():
            logits = model.decode_native(model.encode(image_tensor(letterbox.apply_image(image))[None]), {})[0]
        mask = letterbox.restore_mask(logits)
        steps: dict[str, dict[str, Callable[[], object]]] = {
            "decode and letterbox": _decodings(upload, letterbox),
            "logits to mask": _enlargings(logits, letterbox),
            "mask to PNG": _encodings(mask),
            "mask to RLE": _runs(mask > 0),
        }
        for step, ways in steps.items():
            rows += _measure_ways(step, photo, ways, repeats)
    return rows


def _measure_ways(step: str, photo: str, ways: dict[str, Callable[[], object]], repeats: int) -> list[EdgeRow]:
    spent: dict[str, list[float]] = {way: [] for way in ways}
    sizes = {way: len(made) if isinstance(made := run(), bytes) else 0 for way, run in ways.items()}
    for _ in range(repeats):
        for way, run in ways.items():
            started_at = time.thread_time()
            run()
            spent[way].append(time.thread_time() - started_at)
    plain = next(iter(spent))
    return [
        EdgeRow(
            step,
            photo,
            way,
            1000 * median(times),
            median([own / other for own, other in zip(times, spent[plain], strict=True)]),
            sizes[way],
        )
        for way, times in spent.items()
    ]


def _decodings(upload: bytes, letterbox: Letterbox) -> dict[str, Callable[[], object]]:
    side = letterbox.image_size
    return {
        "at full size": lambda: letterbox.apply_image(decode_image(upload)[0]),
        "at a reduced scale where the photo is four times the square": lambda: letterbox.apply_image(
            decode_image(upload, at_least=side)[0]
        ),
        "the same to planes, smaller JPEGs by simplejpeg" + _SERVED: lambda: decode_planes(upload, side),
    }


def _enlargings(logits: torch.Tensor, letterbox: Letterbox) -> dict[str, Callable[[], object]]:
    return {
        "enlarge everything, torch.argmax": lambda: letterbox.restore_logits(logits).argmax(0),
        "enlarge everything, running maximum": lambda: _running_maximum(logits, letterbox),
        "only cells that a border crosses" + _SERVED: lambda: letterbox.restore_mask(logits),
    }


def _running_maximum(logits: torch.Tensor, letterbox: Letterbox) -> torch.Tensor:
    enlarged = letterbox.restore_logits(logits)
    best, mask = enlarged[0], torch.zeros(enlarged.shape[1:], dtype=torch.uint8)
    for index, scores in enumerate(enlarged[1:], start=1):
        mask.masked_fill_(scores > best, index)
        best = torch.maximum(best, scores)
    return mask


def _encodings(mask: Array) -> dict[str, Callable[[], object]]:
    def pillow(level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
        image, buffer = Image.fromarray(mask), io.BytesIO()
        image.putpalette([value for colour in COLOURS for value in colour])
        image.save(buffer, "PNG", compress_level=level, compress_type=strategy)
        return buffer.getvalue()

    return {
        "Pillow, level 6": lambda: pillow(6),
        "Pillow, level 1": lambda: pillow(1),
        "Pillow, run lengths": lambda: pillow(1, zlib.Z_RLE),
        "8 bits, up filter, run lengths": lambda: _deflate(_filter_up(mask)),
        "2 bits, up filter, run lengths": lambda: _deflate(_filter_up(pack(mask, 2))),
        "2 bits, run lengths" + _SERVED: lambda: encode_indexed(mask, COLOURS),
    }


def _runs(inside: npt.NDArray[np.bool_]) -> dict[str, Callable[[], object]]:
    return {
        "loop over pixels in Python": lambda: _loop_rle(inside),
        "vectorised" + _SERVED: lambda: encode_rle(inside),
    }


def _filter_up(rows: Array) -> Array:
    filtered = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2
    filtered[:, 1:] = rows
    filtered[1:, 1:] -= rows[:-1]
    return filtered


def _deflate(rows: Array) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 8, zlib.Z_RLE)
    return compressor.compress(rows.data) + compressor.flush()


def _loop_rle(inside: npt.NDArray[np.bool_]) -> list[int]:
    counts, run, value = [], 0, False
    for pixel in inside.T.ravel().tolist():
        if pixel != value:
            counts.append(run)
            run, value = 0, pixel
        run += 1
    return [*counts, run]
