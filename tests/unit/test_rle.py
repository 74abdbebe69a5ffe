"""RLE as pycocotools reads and writes it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from service import rle
from service.rle import BoolMask
from tests.fakes import decode_rle


@st.composite
def bool_masks(draw: st.DrawFn) -> BoolMask:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    return np.random.default_rng(seed).random((height, width)) < share


def coco_counts(mask: BoolMask) -> str:
    counts = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts


@given(bool_masks())
def test_rle_there_and_back(mask: BoolMask) -> None:
    counts = rle.encode_rle(mask)
    assert sum(counts) == mask.size
    assert all(run > 0 for run in counts[1:])
    assert (decode_rle(mask.shape, counts) == mask).all()
    assert (decode_rle(mask.shape, rle.compress_counts(counts)) == mask).all()
    assert (rle.decode_rle(mask.shape, counts) == mask).all()
    assert (rle.decode_rle(mask.shape, coco_counts(mask)) == mask).all()
    assert rle.expand_counts(coco_counts(mask)) == counts


@given(bool_masks())
def test_compressed_counts_are_those_of_pycocotools(mask: BoolMask) -> None:
    assert rle.compress_counts(rle.encode_rle(mask)) == coco_counts(mask)


def test_long_runs_compress_as_in_pycocotools() -> None:
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[:, 700:703] = True
    mask[5, 1999] = True
    assert rle.compress_counts(rle.encode_rle(mask)) == coco_counts(mask)


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        ([[0, 1, 1], [0, 0, 1]], [2, 1, 1, 2]),
        ([[1, 1, 0], [1, 0, 0]], [0, 3, 3]),
        ([[0, 0, 0], [0, 0, 0]], [6]),
        ([[1, 1, 1], [1, 1, 1]], [0, 6]),
        ([[1]], [0, 1]),
    ],
)
def test_known_rle(rows: list[list[int]], counts: list[int]) -> None:
    assert rle.encode_rle(np.array(rows, dtype=bool)) == counts


def test_counts_of_another_mask_are_refused() -> None:
    with pytest.raises(ValueError, match="got RLE counts of 5 pixels, wanted 2 x 3 = 6"):
        rle.decode_rle((2, 3), [2, 3])
    with pytest.raises(ValueError, match="end within a number"):
        rle.decode_rle((2, 3), "Q")
