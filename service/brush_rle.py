"""Masks as Label Studio's brush tool stores them: bit-packed run lengths of RGBA pixels, row by row.

The stream (thi.ng's rle-pack): 32 bits number of values, 5 bits bits per value less one, four times 4 bits bits per
run length less one; then for each run 1 bit "one value repeated", 2 bits which of the four lengths, the length less
one, the value. Each pixel is four equal values, 255 in the mask and 0 beside it.
"""

import numpy as np
import numpy.typing as npt

from service.rle import BoolMask

_LENGTH_BITS = np.array([3, 4, 8, 16])
_HEADER_BITS = 32 + 5 + 4 * 4
_VALUE_BITS = 8
_CHANNELS = 4


def encode_brush(mask: BoolMask) -> list[int]:
    """Binary mask [H, W] -> the bytes of its brush, as Label Studio keeps them in JSON."""
    lengths, values = _runs(mask.ravel())
    kind = np.searchsorted(1 << _LENGTH_BITS, lengths)
    length_bits = _LENGTH_BITS[kind]
    # One number for each run, at most 27 bits: the repeat flag, the kind, the length and the value, in this order.
    code = (0b100 | kind) << length_bits | (lengths - 1)
    code = code << _VALUE_BITS | np.where(values, 255, 0)
    header = mask.size * _CHANNELS
    for bits, number in ((5, _VALUE_BITS), *((4, int(bits)) for bits in _LENGTH_BITS)):
        header = header << bits | (number - 1)
    head = _bits(np.array([header]), np.array([_HEADER_BITS]))
    runs = _bits(code, 3 + length_bits + _VALUE_BITS)
    packed: list[int] = np.packbits(np.concatenate([head, runs])).tolist()
    return packed


def _runs(flat: BoolMask) -> tuple[npt.NDArray[np.int64], BoolMask]:
    """Lengths, in values of a channel, and values of the runs of `flat` [N]; none longer than 16 bits can tell."""
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    longest = 1 << int(_LENGTH_BITS[-1])
    pieces = -(-lengths // longest)
    last = np.cumsum(pieces) - 1
    split = np.full(int(pieces.sum()), longest)
    split[last] = lengths - (pieces - 1) * longest
    return split, np.repeat(flat[starts], pieces)


def _bits(numbers: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The lowest `widths` [N] bits of each of `numbers` [N], highest first, one after the other."""
    shifts = np.arange(int(widths.max()) - 1, -1, -1)
    table = (numbers[:, None] >> shifts & 1).astype(np.uint8)
    return table[shifts < widths[:, None]]
