"""COCO run lengths of binary masks, there and back; numpy alone, so that the client reads them without torch."""

import numpy as np
import numpy.typing as npt

BoolMask = npt.NDArray[np.bool_]


def encode_rle(mask: BoolMask) -> list[int]:
    """Binary mask [H, W] -> uncompressed COCO counts: runs in column-major order, beginning with background.

    The counts sum to H * W; the first is 0 where the top left pixel is foreground.
    """
    flat = mask.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(edges, prepend=0, append=flat.size)
    return [0, *counts.tolist()] if flat[0] else counts.tolist()


def compress_counts(counts: list[int]) -> str:
    """Uncompressed COCO counts -> the compressed string form of pycocotools.

    From the fourth on, each count is stored as its difference to the one before the last; each number as groups of
    five bits, lowest first, with a sixth bit that says that more follow, moved into printable characters.
    """
    values = np.asarray(counts, dtype=np.int64)
    values[3:] -= np.asarray(counts[1:-2], dtype=np.int64)
    groups: list[npt.NDArray[np.int64]] = []
    is_open = np.ones(values.shape, dtype=bool)
    used = []
    while is_open.any():
        group = values & 0x1F
        values = values >> 5
        is_negative = (group & 0x10) != 0
        more = np.where(is_negative, values != -1, values != 0)
        groups.append(group | np.where(more, 0x20, 0))
        used.append(is_open)
        is_open = is_open & more
    characters = (np.stack(groups, axis=1) + 48).astype(np.uint8)
    text: bytes = characters[np.stack(used, axis=1)].tobytes()
    return text.decode("ascii")


def expand_counts(text: str) -> list[int]:
    """The reverse of `compress_counts`. Raises ValueError for a text that ends within a number."""
    numbers: list[int] = []
    value, shift = 0, 0
    for byte in text.encode("ascii"):
        group = byte - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            is_negative = bool(group & 0x10)
            numbers.append(value - (1 << shift) if is_negative else value)
            value, shift = 0, 0
    if shift:
        raise ValueError(f"got RLE counts that end within a number: ...{text[-12:]!r}; send all of them")
    for index in range(3, len(numbers)):
        numbers[index] += numbers[index - 2]
    return numbers


def decode_rle(size: tuple[int, int], counts: str | list[int]) -> BoolMask:
    """COCO RLE of either form -> binary mask [H, W]; size: (height, width). Raises ValueError for other sums."""
    height, width = size
    runs = expand_counts(counts) if isinstance(counts, str) else counts
    if sum(runs) != height * width:
        raise ValueError(f"got RLE counts of {sum(runs)} pixels, wanted {height} x {width} = {height * width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T
