"""Structure that costs a decoder more than its pixels is refused before decoding; what encoders write is not."""

import io
import struct
import tracemalloc
import zlib

import pytest
from PIL import Image

from models import image_files
from models.image_files import ImageTooLargeError, UnsupportedImageError, check_file
from models.letterbox import decode_image
from tests.fakes import encode, picture

PHOTO = picture(40, 30)


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def segment(marker: int, content: bytes = b"") -> bytes:
    """A JPEG segment."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def tiff(*tags: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A little-endian TIFF of one directory; each tag is (tag, type, count, value or offset)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", following)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("JPEG", encode(PHOTO, "JPEG")),
        ("JPEG", encode(PHOTO, "JPEG", progressive=True, exif=Image.Exif(), icc_profile=bytes(200_000))),
        ("PNG", encode(PHOTO, "PNG")),
        ("PNG", encode(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(9)] * 5)),
        ("WEBP", encode(PHOTO, "WEBP")),
        ("WEBP", encode(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(9)] * 5)),
        ("GIF", encode(PHOTO, "GIF", comment=b"c" * 1000)),
        ("GIF", encode(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(9)] * 5)),
        ("BMP", encode(PHOTO, "BMP")),
        ("TIFF", encode(PHOTO, "TIFF", compression="tiff_lzw")),
        ("TIFF", encode(PHOTO, "TIFF", save_all=True, append_images=[PHOTO] * 5)),
        ("TIFF", encode(PHOTO, "TIFF", big_tiff=True)),
    ],
)
def test_what_encoders_write_passes_and_is_told_by_content(name: str, data: bytes) -> None:
    assert check_file(data) == name
    assert decode_image(data)[1] == (30, 40)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_one_frame_more_than_allowed(kind: str) -> None:
    frames = [PHOTO, *(PHOTO.rotate(90 * turn) for turn in (1, 2, 3))]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode_image(data, max_frames=4)[1] == (30, 40)
    with pytest.raises(ImageTooLargeError, match=r"of 4 frames or more, wanted at most 3; send a single picture"):
        decode_image(data, max_frames=3)


def test_a_jpeg_of_many_scans() -> None:
    whole = encode(PHOTO, "JPEG", progressive=True)
    start = whole.index(b"\xff\xda")
    scan = segment(0xDA, b"\x01\x01\x00\x01\x05\x00") + b"\x00\xff\x00\xff\xd0\x00"
    head, rest = whole[:start], whole[start:]
    scans = rest.count(b"\xff\xda")
    assert check_file(head + scan * (image_files.MAX_SCANS - scans) + rest) == "JPEG"
    with pytest.raises(UnsupportedImageError, match=r"got a JPEG with 33 scans or more, wanted at most 32"):
        check_file(head + scan * (image_files.MAX_SCANS - scans + 1) + rest)


def test_scans_are_not_hidden_behind_a_false_end() -> None:
    hidden = segment(0xFE, b"\xff\xd9") + segment(0xDA, b"\x01\x01\x00\x01\x05\x00")
    with pytest.raises(UnsupportedImageError, match="33 scans"):
        check_file(b"\xff\xd8" + hidden * 40)


def test_what_follows_the_end_of_a_jpeg_is_not_counted() -> None:
    trailer = b"\xff\xda\x00\x04\x00\x00" * 100  # a motion photo carries a film behind its picture
    assert decode_image(encode(PHOTO, "JPEG") + trailer)[1] == (30, 40)


FLOODS = {
    "jpeg segments": (b"\xff\xd8", segment(0xFE), b""),
    "jpeg junk": (b"\xff\xd8\xff\xe0\x00\x02", b"\x00", b"\xff\xd9"),
    "png chunks": (encode(PHOTO)[:33], chunk(b"prVt"), encode(PHOTO)[33:]),
    "webp chunks": (b"RIFF\xff\xff\xff\x00WEBP", b"JUNK\x00\x00\x00\x00", b""),
    "gif blocks": (b"GIF89a\x01\x00\x01\x00\x00\x00\x00!\xfe", b"\x01c", b"\x00;"),
    "gif extensions": (b"GIF89a\x01\x00\x01\x00\x00\x00\x00", b"!\xfe\x00", b";"),
    "gif junk": (b"GIF89a\x01\x00\x01\x00\x00\x00\x00", b"\x00", b";"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_small_blocks(name: str) -> None:
    head, block, tail = FLOODS[name]
    limits = {"gif": image_files.MAX_GIF_BLOCKS, "jpeg junk": image_files.MAX_JUNK_BYTES}
    limit = limits.get(name, limits.get(name.split()[0], image_files.MAX_BLOCKS))
    with pytest.raises(UnsupportedImageError, match=r"or more, wanted at most|bytes between two segments"):
        decode_image(head + block * (limit + 1) + tail)


def test_a_tiff_of_many_strips() -> None:
    whole = tiff((256, 4, 1, 8), (257, 4, 1, 8), (273, 4, image_files.MAX_BLOCKS, 8))
    assert check_file(whole) == "TIFF"
    more = tiff((256, 4, 1, 8), (257, 4, 1, 8), (273, 4, image_files.MAX_BLOCKS + 1, 8))
    with pytest.raises(UnsupportedImageError, match="got a TIFF with 65537 values in a tag or more"):
        check_file(more)
    assert check_file(tiff((37500, 7, 1 << 20, 8))) == "TIFF"  # a camera's notes are bytes, not numbers


def test_a_tiff_of_huge_tiles() -> None:
    assert check_file(tiff((322, 4, 1, 4096), (323, 3, 1, 4096))) == "TIFF"
    with pytest.raises(UnsupportedImageError, match="tiles of 16781312 pixels, wanted at most 16777216"):
        check_file(tiff((322, 4, 1, 4096), (323, 3, 1, 4097)))


def test_a_tiff_whose_directories_run_in_a_circle() -> None:
    assert check_file(tiff((256, 4, 1, 8), following=8)) == "TIFF"


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_a_big_tiff_is_walked_alike(byte_order: str) -> None:
    head = {"<": b"II+\0", ">": b"MM\0+"}[byte_order] + struct.pack(f"{byte_order}HHQ", 8, 0, 16)
    entry = struct.pack(f"{byte_order}HHQQ", 273, 16, 70000, 8)
    with pytest.raises(UnsupportedImageError, match="70000 values in a tag"):
        check_file(head + struct.pack(f"{byte_order}Q", 1) + entry + bytes(8))


def test_run_length_coded_bmp_is_refused() -> None:
    data = bytearray(encode(PHOTO.convert("P"), "BMP"))
    struct.pack_into("<I", data, 30, 1)
    with pytest.raises(UnsupportedImageError, match="got a BMP with run-length coded rows, wanted plain ones"):
        check_file(bytes(data))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8", b"RIFF1234WEBX", b"MM\0\0", b"%PDF-1.7", b"<svg/>", b"P6 1 1 255 abc", b"\0\0\1\0", b" GIF89a"],
)
def test_other_content_is_refused_whatever_its_name(data: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match=r"got \d+ bytes"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_no_prefix_of_a_file_ends_the_walk_with_another_error(kind: str) -> None:
    data = encode(PHOTO, kind)
    for size in range(len(data)):
        try:
            check_file(data[:size])
        except UnsupportedImageError:
            assert size < 12  # not even the format is told


def test_16_bit_grey_needs_no_copy_of_wider_numbers() -> None:
    deep = Image.new("I;16", (1500, 1500), 30000)
    buffer = io.BytesIO()
    deep.save(buffer, "PNG")
    decode_image(encode(PHOTO))  # imports
    tracemalloc.start()
    try:
        upright, _ = decode_image(buffer.getvalue())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert upright.getpixel((0, 0)) == (116, 116, 116)
    assert peak < 1500 * 1500 * 12
