import io
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from models import letterbox
from models.image_files import ImageTooLargeError, UnsupportedImageError
from models.letterbox import Letterbox, _mean_colour, decode_image, decode_planes, image_tensor, planes_tensor

sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@given(original_size=sizes, image_size=st.sampled_from([16, 32, 65]))
def test_points_go_there_and_back(original_size: tuple[int, int], image_size: int) -> None:
    letterbox = Letterbox(original_size, image_size)
    (height, width), (top, left) = letterbox.content_size, letterbox.offset
    points = [(0.0, 0.0), (original_size[1] - 1.0, original_size[0] - 1.0)]
    for (x, y), (moved_x, moved_y) in zip(points, letterbox.apply_points(points), strict=True):
        assert (moved_x - left + 0.5) * original_size[1] / width - 0.5 == pytest.approx(x, abs=1e-6)
        assert (moved_y - top + 0.5) * original_size[0] / height - 0.5 == pytest.approx(y, abs=1e-6)


@given(original_size=sizes)
def test_content_fills_the_longer_side_and_padding_is_symmetric(original_size: tuple[int, int]) -> None:
    letterbox = Letterbox(original_size, 32)
    (height, width), (top, left) = letterbox.content_size, letterbox.offset
    assert max(height, width) == 32
    assert min(height, width) >= 1
    assert (32 - height - 2 * top) in (0, 1)
    assert (32 - width - 2 * left) in (0, 1)


def test_padding_is_the_mean_of_the_image() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = (200, 100, 40)
    square = Letterbox((4, 8), 8).apply_image(Image.fromarray(pixels))
    assert square.shape == (8, 8, 3)
    assert square[0, 0].tolist() == [100, 50, 20]
    assert square[7, 7].tolist() == [100, 50, 20]
    assert square[3, 0].tolist() == [200, 100, 40]


def test_label_map_is_nearest_and_padded_with_background() -> None:
    square = Letterbox((2, 4), 4).apply_label_map(np.array([[0, 1, 2, 255]] * 2, np.uint8))
    assert square.tolist() == [[0] * 4, [0, 1, 2, 255], [0, 1, 2, 255], [0] * 4]


def test_strips_are_the_plain_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    letterbox = Letterbox((157, 211), 32)
    plain = letterbox.restore_logits(logits)
    monkeypatch.setattr("models.letterbox._STRIP_PIXELS", 1000)
    strips = list(letterbox.restore_strips(logits))
    assert len(strips) > 9
    torch.testing.assert_close(torch.cat(strips, dim=1), plain)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.integers(0, 2**32))
@settings(deadline=None)
def test_photos_are_resized_as_pillow_does(height: int, width: int, side: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    letterbox = Letterbox((height, width), side)
    (content_height, content_width), (top, left) = letterbox.content_size, letterbox.offset
    square = letterbox.apply_image(Image.fromarray(pixels))
    content = square[top : top + content_height, left : left + content_width].astype(int)
    wanted = Image.fromarray(pixels).resize((content_width, content_height), Image.Resampling.BILINEAR)
    differences = np.abs(content - np.asarray(wanted).astype(int))
    assert differences.max() <= 2
    assert (differences > 1).sum() <= 1  # three values of 22 millions were, in 12,000 photos


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_the_padding_is_the_mean_of_the_content(height: int, width: int, seed: int) -> None:
    content = np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
    assert _mean_colour(content).tolist() == np.rint(content.reshape(3, -1).mean(axis=1)).tolist()


@pytest.mark.parametrize("original_size", [(1, 1), (1, 300), (300, 1), (33, 32)])
def test_restores_any_size(original_size: tuple[int, int]) -> None:
    letterbox = Letterbox(original_size, 32)
    logits = torch.zeros(3, 32, 32)
    logits[2] = 1
    mask = letterbox.restore_mask(logits)
    assert mask.shape == original_size
    assert (mask == 2).all()


def test_orientation_is_applied_and_the_size_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by a quarter to see it upright
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 1, 4))  # the left edge becomes the top one
    upright, size = decode_image(encode(image, "PNG", exif=exif))
    assert size == (8, 4)
    assert upright.size == (4, 8)
    assert np.asarray(upright)[0].min() == 255
    assert np.asarray(upright)[1:].max() == 0


def test_large_jpeg_is_decoded_reduced_but_keeps_its_size() -> None:
    data = encode(Image.new("RGB", (1600, 800), "teal"), "JPEG")
    reduced, size = decode_image(data, at_least=64)
    assert size == (800, 1600)
    assert 128 <= reduced.width < 1600
    whole, _ = decode_image(data, at_least=400)
    assert whole.size == (1600, 800)


@pytest.mark.parametrize(
    ("mode", "kind", "value", "wanted"),
    [
        ("L", "PNG", 100, (100, 100, 100)),
        ("I;16", "PNG", 0x8000, (127, 127, 127)),
        ("1", "PNG", 1, (255, 255, 255)),
        ("RGBA", "PNG", (10, 20, 30, 0), (255, 255, 255)),
        ("P", "GIF", 0, (0, 0, 0)),
        ("CMYK", "TIFF", (0, 255, 255, 0), (255, 0, 0)),
        ("RGB", "BMP", (1, 2, 3), (1, 2, 3)),
        ("RGB", "WEBP", (128, 128, 128), (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, kind: str, value: object, wanted: tuple[int, int, int]) -> None:
    image = Image.new(mode, (5, 3), value)  # type: ignore[arg-type]
    upright, size = decode_image(encode(image, kind))
    assert size == (3, 5)
    assert np.abs(np.asarray(upright).astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("data", [b"", b"not an image", encode(Image.new("RGB", (64, 64)))[:60], b"%PDF-1.4 hello"])
def test_other_content_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match=r"got \d+ bytes"):
        decode_image(data)


def test_formats_outside_the_list_are_refused() -> None:
    with pytest.raises(UnsupportedImageError):
        decode_image(encode(Image.new("RGB", (8, 8)), "PPM"))


def test_too_many_pixels_are_refused_from_the_header() -> None:
    data = encode(Image.new("L", (3000, 3000)))
    with pytest.raises(ImageTooLargeError, match="3000 x 3000"):
        decode_image(data[:200], max_pixels=1000)  # no pixel of it is there to decode


def test_image_tensor_is_scaled_to_one() -> None:
    tensor = image_tensor(np.full((4, 4, 3), 255, np.uint8))
    assert tensor.shape == (3, 4, 4)
    assert tensor.max() == 1


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Some structure in every block of a JPEG."""
    rough = Image.effect_noise((max(1, width // 4), max(1, height // 4)), 80)
    colours = Image.merge("RGB", (rough, rough.transpose(Image.Transpose.ROTATE_180), ImageOps.invert(rough)))
    return colours.resize((width, height)).convert(mode)


def upright_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


UPLOADS = {
    **{
        f"4:{kind}": encode(noise(75, 101), "JPEG", quality=90, subsampling=f"4:{kind}")
        for kind in ("4:4", "2:2", "2:0")
    },
    "progressive": encode(noise(64, 33), "JPEG", quality=75, progressive=True),
    "one row": encode(noise(1, 90), "JPEG"),
    "grey": encode(noise(40, 50, "L"), "JPEG"),
    "four colours": encode(noise(40, 50, "CMYK"), "JPEG"),
    "upright": encode(noise(40, 60), "JPEG", exif=upright_of(1)),
    "turned": encode(noise(40, 60), "JPEG", exif=upright_of(6)),
    "large": encode(noise(200, 300), "JPEG"),
    "no JPEG": encode(noise(40, 60)),
    "bytes behind the image": encode(noise(40, 60), "JPEG") + b"more",
}


@pytest.mark.parametrize("upload", UPLOADS.values(), ids=UPLOADS)
def test_planes_are_those_of_the_decoded_photo(upload: bytes) -> None:
    photo, size = decode_image(upload, at_least=32)
    planes, planes_size = decode_planes(upload, 32)
    assert planes_size == size
    square = Letterbox(size, 32).apply_image(photo)
    assert np.array_equal(planes.transpose(1, 2, 0), square)
    torch.testing.assert_close(planes_tensor(planes), image_tensor(square), rtol=0, atol=0)


def test_a_plain_jpeg_needs_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.letterbox.decode_image", None)
    assert decode_planes(UPLOADS["4:2:0"], 32)[1] == (75, 101)


def test_photos_decoded_side_by_side_leave_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first begins, the second begins, the first ends: filters kept around each photo would not come back."""
    second_has_begun, first_has_ended = threading.Event(), threading.Event()
    to_rgb = letterbox._to_rgb

    def in_turn(image: Image.Image) -> Image.Image:
        if threading.current_thread().name == "second":
            second_has_begun.set()
            assert first_has_ended.wait(10)
        else:
            second.start()
            assert second_has_begun.wait(10)
        return to_rgb(image)

    monkeypatch.setattr(letterbox, "_to_rgb", in_turn)
    second = threading.Thread(target=decode_image, args=(UPLOADS["4:2:0"],), name="second")
    before = list(warnings.filters)
    decode_image(UPLOADS["4:2:0"])
    first_has_ended.set()
    second.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize("kept", [0, 3, 200, -40])
def test_planes_of_a_damaged_upload_are_refused_alike(kept: int) -> None:
    upload = UPLOADS["4:2:0"][:kept]
    with pytest.raises(UnsupportedImageError) as plain:
        decode_image(upload)
    with pytest.raises(UnsupportedImageError) as found:
        decode_planes(upload, 32)
    assert str(found.value) == str(plain.value)


def test_planes_of_too_many_pixels_are_refused() -> None:
    with pytest.raises(ImageTooLargeError, match="got 101 x 75 = 7575 pixels, wanted at most 7574"):
        decode_planes(UPLOADS["4:2:0"], 32, max_pixels=7574)
