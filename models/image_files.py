"""What a photo's file says of its structure, read before any decoder runs: its format, and whether to open it at all.

A decoder's cost is not its pixels alone: a JPEG of a thousand scans is a thousand passes over the image, a file of a
million one-byte blocks is a million turns of an interpreter's loop. Each check here walks the blocks once, reads no
pixel, and stops at its limit; truncated structure is left to the decoder, which refuses it.
"""

import re
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Image formats that are read; told from the content, never from a file name."""

MAX_FRAMES = 1000
"""Frames of one file unless the caller says otherwise; only the first is ever decoded."""

MAX_BLOCKS = 1 << 16
"""Chunks, segments or strips of one file: at 32 MB one for each 512 bytes."""

MAX_GIF_BLOCKS = 1 << 20
"""GIF cuts all data into blocks of at most 255 bytes."""

MAX_SCANS = 32
"""Passes over one JPEG; encoders write up to 15."""

MAX_JUNK_BYTES = 4096
"""Between two JPEG segments; encoders write none."""

MAX_TILE_PIXELS = 1 << 24
"""One TIFF tile, which is decoded whole however small the image is."""


class ImageError(ValueError):
    """The bytes are not an image that can be segmented; the message says got, wanted and fix."""


class UnsupportedImageError(ImageError):
    """Not one of `FORMATS`, or damaged."""


class ImageTooLargeError(ImageError):
    """More pixels or frames than allowed; told from the header before any pixel is decoded."""


def check_file(data: bytes, max_frames: int = MAX_FRAMES) -> str:
    """The format of `data`, one of `FORMATS`.

    Raises UnsupportedImageError for another, or for structure that no encoder writes; ImageTooLargeError for more than
    `max_frames` frames.
    """
    name = next((name for name, (magic, _) in _CHECKS.items() if magic.match(data)), None)
    if name is None:
        kinds = ", ".join(FORMATS)
        raise UnsupportedImageError(
            f"got {len(data)} bytes that do not decode as {kinds}; send a whole file of one of these"
        )
    with suppress(IndexError, struct.error):  # the file ends before its structure does
        _CHECKS[name][1](data, max_frames)
    return name


def _check_jpeg(data: bytes, max_frames: int) -> None:
    scans, blocks, place = 0, 0, 2
    while (found := _JPEG_MARKER.search(data, place)) is not None:
        marker, start = found[0][1], found.end()
        if not scans and found.start() - place > MAX_JUNK_BYTES:
            raise _odd("JPEG", f"{found.start() - place} bytes between two segments", f"at most {MAX_JUNK_BYTES}")
        blocks += 1
        scans += marker == _SCAN
        _bound("JPEG", "segments", blocks, MAX_BLOCKS)
        _bound("JPEG", "scans", scans, MAX_SCANS)
        if marker == _END:
            return
        place = start if marker in _BARE else start + _unpack(">H", data, start)[0]


def _check_png(data: bytes, max_frames: int) -> None:
    blocks, place = 0, 8
    while place < len(data):
        size, kind = _unpack(">I4s", data, place)
        blocks += 1
        _bound("PNG", "chunks", blocks, MAX_BLOCKS)
        if kind == b"acTL":
            _bound_frames("PNG", _unpack(">I", data, place + 8)[0], max_frames)
        elif kind == b"IEND":
            return
        place += 12 + size


def _check_webp(data: bytes, max_frames: int) -> None:
    blocks, frames, place = 0, 0, 12
    while place < len(data):
        kind, size = _unpack("<4sI", data, place)
        blocks += 1
        frames += kind == b"ANMF"
        _bound("WebP", "chunks", blocks, MAX_BLOCKS)
        _bound_frames("WebP", frames, max_frames)
        place += 8 + size + size % 2


def _check_gif(data: bytes, max_frames: int) -> None:
    blocks, frames, place = 0, 0, 13 + _colour_table(data[10])
    while (kind := data[place]) != _GIF_END:
        if kind == _GIF_EXTENSION:
            place += 2
        elif kind == _GIF_IMAGE:
            frames += 1
            _bound_frames("GIF", frames, max_frames)
            place += 11 + _colour_table(data[place + 9])
        else:
            place += 1  # junk, which decoders skip
        if kind in (_GIF_EXTENSION, _GIF_IMAGE):
            while size := data[place]:
                place += 1 + size
                blocks += 1
                if blocks > MAX_GIF_BLOCKS:
                    break
            place += 1
        blocks += 1
        _bound("GIF", "blocks", blocks, MAX_GIF_BLOCKS)


def _check_bmp(data: bytes, max_frames: int) -> None:
    (header_size,) = _unpack("<I", data, 14)
    if header_size >= 20 and _unpack("<I", data, 30)[0] in (1, 2):
        raise _odd("BMP", "run-length coded rows", "plain ones")  # decoded in Python: seconds for each megapixel


def _check_tiff(data: bytes, max_frames: int) -> None:
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2 if order == "<" else 3] == 43
    count_form, entry_form, offset_form, entry_bytes = ("Q", "HHQ", "Q", 20) if is_big else ("H", "HHI", "I", 12)
    (place,) = _unpack(order + offset_form, data, 8 if is_big else 4)
    seen: set[int] = set()
    while place and place not in seen:
        seen.add(place)
        _bound_frames("TIFF", len(seen), max_frames)
        (count,) = _unpack(order + count_form, data, place)
        _bound("TIFF", "tags", count, MAX_BLOCKS)
        entries = place + struct.calcsize("=" + count_form)
        place = entries + count * entry_bytes
        if len(seen) == 1:
            starts = range(entries, place, entry_bytes)
            _check_tags([_unpack(order + entry_form, data, start) for start in starts], data, order, is_big, entries)
        (place,) = _unpack(order + offset_form, data, place)


def _check_tags(tags: list[tuple[int, ...]], data: bytes, order: str, is_big: bool, entries: int) -> None:
    """Bound the lists of numbers, of which strip offsets are one, and the size of a tile."""
    sides: dict[int, int] = {}
    for index, (tag, kind, count) in enumerate(tags):
        if kind not in _BYTE_KINDS:
            _bound("TIFF", "values in a tag", count, MAX_BLOCKS)
        if tag in _TILE_SIDES and kind in _INTEGERS and count == 1:
            start = entries + index * (20 if is_big else 12) + (12 if is_big else 8)
            (sides[tag],) = _unpack(order + _INTEGERS[kind], data, start)
    if len(sides) == 2 and (pixels := sides[_TILE_SIDES[0]] * sides[_TILE_SIDES[1]]) > MAX_TILE_PIXELS:
        raise _odd("TIFF", f"tiles of {pixels} pixels", f"at most {MAX_TILE_PIXELS}")


_SCAN, _END = 0xDA, 0xD9
_BARE = frozenset({0x01, 0xD8})
"""JPEG markers without a length."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""The next segment: neither a stuffed 0xFF of the coded data, nor a restart within it, nor fill."""

_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B

_BYTE_KINDS = frozenset({1, 2, 6, 7})
"""TIFF types of one byte, which stay bytes when read."""
_INTEGERS = {3: "H", 4: "I", 16: "Q"}
_TILE_SIDES = (322, 323)

_CHECKS: dict[str, tuple[re.Pattern[bytes], Callable[[bytes, int], None]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), _check_jpeg),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), _check_png),
    "WEBP": (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _check_webp),
    "GIF": (re.compile(rb"GIF8[79]a"), _check_gif),
    "BMP": (re.compile(rb"BM"), _check_bmp),
    "TIFF": (re.compile(rb"II[*+]\x00|MM\x00[*+]"), _check_tiff),
}
"""How each format begins, and what is checked of it."""


def _colour_table(flags: int) -> int:
    """Bytes of a GIF's colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _unpack(form: str, data: bytes, place: int) -> tuple[Any, ...]:
    return struct.unpack_from(form, data, place)


def _bound(name: str, what: str, count: int, limit: int) -> None:
    if count > limit:
        raise _odd(name, f"{count} {what} or more", f"at most {limit}")


def _bound_frames(name: str, frames: int, limit: int) -> None:
    if frames > limit:
        raise ImageTooLargeError(
            f"got a {name} of {frames} frames or more, wanted at most {limit}; send a single picture"
        )


def _odd(name: str, got: str, wanted: str) -> UnsupportedImageError:
    return UnsupportedImageError(f"got a {name} with {got}, wanted {wanted}; save it anew as a plain JPEG or PNG")
