"""Mutated image files without end, each made from (seed, index) alone, so that any one can be made again."""

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from PIL import Image

from tests.fakes import encode, picture

MAX_PIXELS = 1 << 22
"""Of the server that is fuzzed; the bombs aim above and below it."""


@dataclass(frozen=True)
class Mutant:
    """One file."""

    index: int
    kind: str
    data: bytes
    size: tuple[int, int] | None = None
    """(width, height) of the answer where the file is sound; None where the server may accept or refuse it."""


def make_mutant(seed: int, index: int) -> Mutant:
    """The file number `index` of the corpus `seed`; kinds take turns."""
    chance = random.Random(f"{seed}/{index}")
    kinds = list(_MAKERS)
    kind = kinds[index % len(kinds)]
    made = _MAKERS[kind](chance)
    data, size = made if isinstance(made, tuple) else (made, None)
    return Mutant(index, kind, data, size)


@cache
def sound_files() -> tuple[bytes, ...]:
    """Small files of every format, as encoders write them: what is mutated."""
    photo = picture(90, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a photo"
    frames = [photo.rotate(angle) for angle in (30, 60)]
    options: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("JPEG", photo, {"exif": exif}),
        ("JPEG", photo, {"progressive": True, "icc_profile": bytes(3000)}),
        ("JPEG", photo.convert("CMYK"), {}),
        ("PNG", photo, {"exif": exif}),
        ("PNG", photo.convert("P"), {"transparency": 3}),
        ("PNG", photo.convert("RGBA"), {"optimize": True}),
        ("PNG", photo, {"save_all": True, "append_images": frames}),
        ("WEBP", photo, {"exif": exif}),
        ("WEBP", photo.convert("RGBA"), {"lossless": True}),
        ("WEBP", photo, {"save_all": True, "append_images": frames}),
        ("GIF", photo, {"comment": b"a comment"}),
        ("GIF", photo, {"save_all": True, "append_images": frames, "disposal": 2}),
        ("BMP", photo, {}),
        ("BMP", photo.convert("1"), {}),
        ("TIFF", photo, {"compression": "tiff_lzw"}),
        ("TIFF", photo, {"compression": "tiff_adobe_deflate", "exif": exif}),
        ("TIFF", photo, {"compression": "jpeg"}),
        ("TIFF", photo, {"save_all": True, "append_images": frames}),
        ("TIFF", photo, {"big_tiff": True}),
    ]
    return tuple(encode(image, kind, **chosen) for kind, image, chosen in options)


def flip_bits(chance: random.Random) -> bytes:
    """Single bits, early ones more often: headers lie there."""
    data = bytearray(chance.choice(sound_files()))
    for _ in range(chance.choice((1, 2, 8, 64))):
        place = int(len(data) * chance.random() ** chance.choice((1, 3)))
        data[place] ^= 1 << chance.randrange(8)
    return bytes(data)


def truncate(chance: random.Random) -> bytes:
    """The beginning of a file."""
    data = chance.choice(sound_files())
    return data[: chance.randrange(len(data))]


def splice(chance: random.Random) -> bytes:
    """Parts left out, doubled, overwritten, or taken from another file."""
    data = chance.choice(sound_files())
    for _ in range(chance.randint(1, 4)):
        start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        other = chance.choice(sound_files())
        part = data[start:end]
        filled = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF))]) * len(part)
        put = chance.choice((b"", part * chance.randint(2, 30), filled, other[start:end], chance.randbytes(len(part))))
        data = (data[:start] + put + data[end:])[: 1 << 20]
    return data


def lie_about_size(chance: random.Random) -> bytes:
    """Sides, counts or lengths in a header that the content does not bear out; checksums are right."""
    number = chance.choice((0, 1, 2, 255, 2047, 2049, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1))
    data = bytearray(chance.choice(sound_files()))
    short, long = min(number, 65535), number
    if data[:4] == b"\x89PNG":
        struct.pack_into(">I", data, chance.choice((16, 20)), long)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif data[:2] == b"\xff\xd8":
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        struct.pack_into(">H", data, frame + chance.choice((2, 5, 7)), short)
    elif data[:3] == b"GIF":
        struct.pack_into("<H", data, chance.choice((6, 8, data.index(b",") + 5, data.index(b",") + 7)), short)
    elif data[:2] == b"BM":
        struct.pack_into("<I", data, chance.choice((2, 10, 14, 18, 22, 34, 46)), long)
    elif data[:4] == b"RIFF":
        struct.pack_into("<I", data, chance.choice((4, 16, 20, 24, 26, 27)), long)
    else:
        _lie_in_a_tiff(data, chance, long)
    return bytes(data)


def _lie_in_a_tiff(data: bytearray, chance: random.Random, number: int) -> None:
    """One number of one tag: its kind, count or value."""
    is_big = data[2] == 43
    start = struct.unpack_from("<Q" if is_big else "<I", data, 8 if is_big else 4)[0]
    count = struct.unpack_from("<Q" if is_big else "<H", data, start)[0]
    entry = start + (8 if is_big else 2) + chance.randrange(count) * (20 if is_big else 12)
    place, form = chance.choice(((2, "<H"), (4, "<I"), (12 if is_big else 8, "<I")))
    struct.pack_into(form, data, entry + place, min(number, 65535) if form == "<H" else number)


def bomb(chance: random.Random) -> bytes:
    """Little to send and much to decode: pixels, metadata, scans, frames, blocks."""
    return chance.choice(_BOMBS)(chance)


def _pixels_png(chance: random.Random) -> bytes:
    side = chance.choice((2049, 5000, 30000))
    rows = zlib.compress(bytes(min(side, 5000) * (side // 8 + 1)), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, chance.choice((0, 1)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _text_png(chance: random.Random) -> bytes:
    content = zlib.compress(bytes(chance.choice((1 << 20, 30 << 20))), 9)
    kind = chance.choice((b"zTXt", b"iTXt", b"iCCP"))
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    whole = encode(picture(9, 9))
    return whole[:33] + _chunk(kind, head + content) * chance.choice((1, 80)) + whole[33:]


def _chunks_png(chance: random.Random) -> bytes:
    whole = encode(picture(9, 9))
    return (
        whole[:33]
        + _chunk(chance.choice((b"tEXt", b"prVt", b"IDAT")), b"") * chance.randint(1000, 200_000)
        + whole[33:]
    )


def _scans_jpeg(chance: random.Random) -> bytes:
    whole = encode(Image.new("RGB", (2000, 2000), "red"), "JPEG", progressive=True)
    start = whole.index(b"\xff\xda")
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x05\x00\x00"
    return whole[:start] + scan * chance.choice((3, 20, 1000, 50_000)) + whole[start:]


def _segments_jpeg(chance: random.Random) -> bytes:
    whole = encode(picture(9, 9), "JPEG")
    marker = chance.choice((b"\xff\xe1", b"\xff\xfe", b"\xff\xdb", b"\xff\xe2"))
    content = chance.choice((b"", b"Exif\0\0II*\0\x08\0\0\0", b"ICC_PROFILE\0\1\1", b"MPF\0II*\0\x08\0\0\0"))
    segment = marker + struct.pack(">H", len(content) + 2) + content
    return whole[:2] + segment * chance.choice((2, 300, 100_000)) + whole[2:]


def _exif_jpeg(chance: random.Random) -> bytes:
    count = chance.choice((10, 5000))
    entries = b"".join(struct.pack("<HHII", 0x0112 + index, 4, 15000, 8) for index in range(count))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + entries
    whole = encode(picture(9, 9), "JPEG")
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", min(65535, len(exif) + 2)) + exif[:65533] + whole[2:]


def _frames_gif(chance: random.Random) -> bytes:
    frame = b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x4c\x01\0"
    head = (
        b"GIF89a" + struct.pack("<HH", *chance.choice(((1, 1), (2000, 2000), (65535, 65535)))) + b"\xf0\0\0" + bytes(6)
    )
    return head + frame * chance.choice((1, 900, 1100, 60_000)) + b";"


def _blocks_gif(chance: random.Random) -> bytes:
    comment = chance.choice((b"\x01c", b"\xff" + b"c" * 255)) * chance.choice((1000, 8000))
    return b"GIF89a\x09\0\x09\0\0\0\0" + (b"!\xfe" + comment + b"\0") * chance.choice((1, 3)) + b";"


def _strips_tiff(chance: random.Random) -> bytes:
    side = chance.choice((100, 2000, 60_000))
    strips = chance.choice((1, 2000, 100_000))
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, chance.choice((1, 5, 8, 32773)))]
    tags += [(262, 3, 1, 1), (273, 4, strips, 8), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, strips, 8)]
    tags += chance.choice(([], [(322, 4, 1, 1 << 15), (323, 4, 1, 1 << 15), (324, 4, 1, 8), (325, 4, 1, 8)]))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + bytes(4 * strips)


def _canvas_webp(chance: random.Random) -> bytes:
    still = encode(picture(9, 9), "WEBP")
    side = chance.choice((2050, 16383, (1 << 24) - 1))
    sides = struct.pack("<I", side)[:3] * 2
    frames = chance.choice((1, 2000))
    frame = b"ANMF" + struct.pack("<I", 16 + len(still) - 12) + bytes(6) + b"\x08\0\0" * 2 + bytes(4) + still[12:]
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + sides + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body += frame * frames
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _rle_bmp(chance: random.Random) -> bytes:
    side = chance.choice((64, 2000))
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, chance.choice((4, 8)), chance.choice((1, 2)), 0, 0, 0, 256, 0)
    body = chance.choice((b"\0\0", b"\x01\x07", b"\xff\x07", b"\0\2\xff\xff")) * chance.choice((100, 200_000))
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + head + bytes(1024) + body


_BOMBS = (
    _pixels_png,
    _text_png,
    _chunks_png,
    _scans_jpeg,
    _segments_jpeg,
    _exif_jpeg,
    _frames_gif,
    _blocks_gif,
    _strips_tiff,
    _canvas_webp,
    _rle_bmp,
)


def polyglot(chance: random.Random) -> bytes:
    """Two things in one: an image before, behind or inside something else."""
    image, other = chance.choice(sound_files()), chance.choice(sound_files())
    foreign = chance.choice(
        (b"<html><script>alert(1)</script>", b"%PDF-1.7\n", b"PK\x03\x04", b"#!/bin/sh\n", b"\x7fELF")
    )
    cut = chance.randrange(4, 40)
    return chance.choice(
        (image + foreign, foreign + image, image + other, image[:cut] + other[cut:], image[:cut] + foreign)
    )


def noise(chance: random.Random) -> bytes:
    """Random bytes behind the beginning of some format, or of none."""
    begins = (b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF\xff\xff\0\0WEBPVP8L")
    return chance.choice(begins) + chance.randbytes(chance.randrange(3000))


def narrow(chance: random.Random) -> tuple[bytes, tuple[int, int]]:
    """Sound, and as long and thin, or as small, as can be."""
    length = chance.choice((1, 2, 1000, 16000))
    size = chance.choice(((1, length), (length, 1), (2, length), (length, 3)))
    kind = chance.choice(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"))
    return encode(Image.new("RGB", size, chance.choice(("red", "blue"))), kind), size


def odd_mode(chance: random.Random) -> tuple[bytes, tuple[int, int]]:
    """Sound, of every kind of pixel and turn that formats have."""
    kind, mode = chance.choice(_MODES)
    size = (chance.randint(1, 200), chance.randint(1, 200))
    image = picture(*size) if mode in ("RGB", "P") else picture(*size).convert("RGB" if mode in _FROM_RGB else "L")
    image = image.convert("L").convert(mode) if mode in ("I;16", "I", "F") else image.convert(mode)
    turn = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535))
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(image, kind, exif=exif) if kind in ("JPEG", "PNG", "WEBP", "TIFF") else encode(image, kind)
    turned = kind in ("JPEG", "PNG", "WEBP", "TIFF") and turn in (5, 6, 7, 8)
    return data, size[::-1] if turned else size


_FROM_RGB = frozenset({"RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "P", "PA"})
_MODES = [
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("PNG", mode) for mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("GIF", mode) for mode in ("1", "L", "P")),
    *(("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(("TIFF", mode) for mode in ("1", "L", "LA", "P", "PA", "I", "I;16", "F", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")),
]

_MAKERS: dict[str, Callable[[random.Random], bytes | tuple[bytes, tuple[int, int]]]] = {
    "bit flips": flip_bits,
    "truncation": truncate,
    "splices": splice,
    "lying headers": lie_about_size,
    "bombs": bomb,
    "polyglots": polyglot,
    "noise": noise,
    "narrow": narrow,
    "odd modes": odd_mode,
}


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
