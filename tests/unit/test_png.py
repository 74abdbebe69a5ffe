"""Indexed PNG by hand: every value comes back, at every depth, and other readers see the palette."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from service.masks import COLOURS
from service.png import choose_depth, encode_indexed, pack

PALETTE = [(value, 255 - value, value // 2) for value in range(256)]


def read(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("highest", [1, 3, 4, 15, 16, 255])
@given(data=st.data())
def test_every_value_comes_back(highest: int, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    mask = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, highest)))
    image = read(encode_indexed(mask, PALETTE))
    assert image.mode == "P"
    assert image.size == mask.shape[::-1]
    assert (np.asarray(image) == mask).all()
    shown = np.asarray(image.convert("RGB"))
    assert (shown == np.array(PALETTE, np.uint8)[mask]).all()


def test_known_bytes() -> None:
    mask = np.array([[0, 1, 2, 3, 3], [3, 2, 1, 0, 1]], np.uint8)
    assert pack(mask, 2).tolist() == [[0b00011011, 0b11000000], [0b11100100, 0b01000000]]
    assert pack(np.array([[1, 15, 7]], np.uint8), 4).tolist() == [[0x1F, 0x70]]


def test_the_depth_is_the_least_that_holds_the_classes() -> None:
    assert [choose_depth(highest) for highest in (0, 3, 4, 15, 16, 255)] == [2, 2, 4, 4, 8, 8]


def test_a_depth_can_be_asked_for() -> None:
    image = read(encode_indexed(np.array([[0, 1]], np.uint8), PALETTE, depth=8))
    assert np.asarray(image).tolist() == [[0, 1]]
    assert (np.array(image.getpalette()).reshape(-1, 3) == PALETTE).all()


def test_a_short_palette_repeats_its_last_colour() -> None:
    mask = np.array([[3]], np.uint8)
    assert read(encode_indexed(mask, COLOURS[:2])).convert("RGB").getpixel((0, 0)) == COLOURS[1]


def test_columns_of_a_larger_array_are_encoded_as_they_are_seen() -> None:
    whole = np.random.default_rng(0).integers(0, 4, (9, 40), dtype=np.uint8)
    view = whole[:, ::2]
    assert (np.asarray(read(encode_indexed(view, PALETTE))) == view).all()
