"""Brush strokes as Label Studio's own packages read them."""

import importlib
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings

from models.letterbox import Array
from service.brush_rle import encode_brush
from service.rle import BoolMask
from tests.unit.test_rle import bool_masks


def decode_brush(data: list[int]) -> Array:
    """The values of a stream, read bit by bit as the format's own reader does."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    count, value_bits = take(32), take(5) + 1
    length_bits = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        is_run = take(1)
        length = take(length_bits[take(2)]) + 1
        values += [take(value_bits)] * length if is_run else [take(value_bits) for _ in range(length)]
    assert len(values) == count
    assert len(bits) - at < 8
    return np.array(values, dtype=np.uint8)


@settings(deadline=None)
@given(bool_masks())
def test_a_stroke_is_four_channels_of_the_mask(mask: BoolMask) -> None:
    values = decode_brush(encode_brush(mask)).reshape(*mask.shape, 4)
    assert (values == 255 * mask[..., None]).all()


def test_runs_longer_than_their_field_are_split() -> None:
    mask = np.zeros((400, 300), dtype=bool)
    mask[100:300] = True  # 240,000 values in one run, of which one field tells at most 65,536
    assert (decode_brush(encode_brush(mask)).reshape(400, 300, 4)[..., 3] == 255 * mask).all()


def test_known_stroke() -> None:
    # 4 values, 8 bits each, lengths of 3, 4, 8, 16 bits; a repeat of 4 values (011) of 255.
    header = "00000000000000000000000000000100" + "00111" + "0010" + "0011" + "0111" + "1111"
    bits = header + "1" + "00" + "011" + "11111111"
    data = encode_brush(np.ones((1, 1), dtype=bool))
    assert "".join(f"{byte:08b}" for byte in data) == bits + "0" * (-len(bits) % 8)


def converter() -> ModuleType:
    for name in ("label_studio_sdk.converter.brush", "label_studio_converter.brush"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("needs label-studio-sdk or label-studio-converter, which nothing else here does")


@pytest.mark.filterwarnings("ignore")
def test_label_studio_s_own_package_agrees() -> None:
    brush = converter()
    rng = np.random.default_rng(0)
    for height, width, share in ((7, 5, 0.5), (64, 48, 0.02), (300, 451, 0.999), (1, 1, 1.0), (40, 30, 0.0)):
        mask = rng.random((height, width)) < share
        ours = encode_brush(mask)
        assert (brush.decode_rle(ours).reshape(height, width, 4)[..., 3] == 255 * mask).all()
        theirs = brush.mask2rle(255 * mask.astype(np.uint8))
        assert ours == theirs[: len(ours)]
        assert not any(theirs[len(ours) :])
