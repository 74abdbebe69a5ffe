"""Indexed PNG of a mask, written by hand: 2 or 4 bits a pixel where the classes fit.

Packing first leaves zlib a quarter of the bytes. Neither Pillow nor a filter does better on masks: see
benchmarks/steps.md.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_INDEXED = 3
"""PNG's colour type of pixels that point into a palette."""

# For each depth: pixels that one word holds, a byte each, and the factor that moves them side by side into the word's
# highest byte. With 2 bits, b0 + b1 << 8 + b2 << 16 + b3 << 24 times the factor holds b0 b1 b2 b3 in bits 31 to 24.
_PACKING: dict[int, tuple[npt.DTypeLike, int]] = {
    2: ("<u4", 1 << 30 | 1 << 20 | 1 << 10 | 1),
    4: ("<u2", 1 << 12 | 1),
}


def encode_indexed(
    mask: npt.NDArray[np.uint8], palette: Sequence[tuple[int, int, int]], depth: int | None = None
) -> bytes:
    """Mask [H, W] uint8 -> PNG file whose pixel values are the mask's.

    palette: RGB of the values 0, 1, 2...; as many are written as the depth has values, the last one repeated.
    depth: bits a pixel, 2, 4 or 8; None takes the fewest that hold the mask's values.
    """
    height, width = mask.shape
    depth = depth or choose_depth(int(mask.max()))
    packed = pack(mask, depth) if depth < 8 else mask
    rows = np.zeros((height, packed.shape[1] + 1), np.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = packed
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 8, zlib.Z_RLE)
    data = compressor.compress(rows.data) + compressor.flush()
    colours = [palette[min(value, len(palette) - 1)] for value in range(1 << depth)]
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, _INDEXED, 0, 0, 0)),
            _chunk(b"PLTE", b"".join(map(bytes, colours))),
            _chunk(b"IDAT", data),
            _chunk(b"IEND", b""),
        )
    )


def choose_depth(highest: int) -> int:
    """Bits a pixel: the fewest of 2, 4 and 8 that hold the value `highest`."""
    return 2 if highest < 4 else 4 if highest < 16 else 8


def pack(mask: npt.NDArray[np.uint8], depth: int) -> npt.NDArray[np.uint8]:
    """[H, W] values below 2^depth -> [H, ceil(W * depth / 8)] bytes, leftmost pixel in the highest bits."""
    word, factor = _PACKING[depth]
    pixels = 8 // depth
    missing = -mask.shape[1] % pixels
    even = np.pad(mask, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(mask)
    words = even.view(word)
    highest_bytes: npt.NDArray[np.uint8] = (words * words.dtype.type(factor)).view(np.uint8)[:, pixels - 1 :: pixels]
    return highest_bytes


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
