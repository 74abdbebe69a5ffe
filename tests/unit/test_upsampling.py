"""The winner of resized logits without resizing most of them: equal to the plain resize, pixel by pixel."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models import upsampling
from models.letterbox import Letterbox
from models.upsampling import resize_argmax, resize_twice_argmax


@pytest.fixture(autouse=True, scope="module", params=["compiled", "numpy"])
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to the same masks."""
    if request.param == "compiled" and upsampling.compiled is None:
        pytest.skip("petseg was installed without a C compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(upsampling, "compiled", None)
        yield


def plain(scores: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Enlarged scores [K, height, width] as torch's bilinear resize gives them."""
    return F.interpolate(scores[None], (height, width), mode="bilinear", align_corners=False)[0]


def assert_equal(mask: np.ndarray, enlarged: torch.Tensor) -> None:
    """Equal wherever float32 tells the two best scores apart, which it does nearly everywhere."""
    assert has_few_ties(assert_equal_but_for_ties(mask, enlarged))


def assert_equal_if_drawn(mask: np.ndarray, enlarged: torch.Tensor) -> None:
    """The same of drawn scores; those with many ties, such as one in every copy of a row, prove nothing."""
    assume(has_few_ties(assert_equal_but_for_ties(mask, enlarged)))


def assert_equal_but_for_ties(mask: np.ndarray, enlarged: torch.Tensor) -> np.ndarray:
    """Where the ties are, [height, width] bool."""
    best = enlarged.topk(2, dim=0).values
    is_tie: np.ndarray = (best[0] - best[1] < 1e-5 * enlarged.abs().max()).numpy()
    assert mask.dtype == np.uint8
    assert ((mask == enlarged.argmax(0).numpy()) | is_tie).all()
    return is_tie


def has_few_ties(is_tie: np.ndarray) -> bool:
    return bool(is_tie.sum() <= 1 + 0.001 * is_tie.size or is_tie.all())


@given(
    st.integers(0, 2**32),
    st.integers(2, 6),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(0, 90), st.integers(0, 90)),
)
@settings(max_examples=80, deadline=None)
def test_equals_the_plain_resize(seed: int, classes: int, grid: tuple[int, int], more: tuple[int, int]) -> None:
    scores = torch.randn(classes, *grid, generator=torch.Generator().manual_seed(seed))
    height, width = grid[0] + more[0], grid[1] + more[1]
    enlarged = plain(scores, height, width)
    assert_equal_if_drawn(resize_argmax(scores.numpy(), height, width), enlarged)


@given(st.integers(0, 2**32), st.tuples(st.integers(1, 150), st.integers(1, 150)))
@settings(max_examples=80, deadline=None)
def test_regions_wider_than_a_cell_equal_the_plain_resize(seed: int, size: tuple[int, int]) -> None:
    few = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(seed))
    scores = F.interpolate(few[None], (40, 50), mode="bicubic")[0]
    assert_equal_if_drawn(resize_argmax(scores.numpy(), *size), plain(scores, *size))


@given(
    st.integers(0, 2**32),
    st.integers(2, 5),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 30),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
@settings(max_examples=150, deadline=None)
def test_two_resizes_equal_the_plain_ones(
    seed: int,
    classes: int,
    grid: tuple[int, int],
    more: int,
    window: tuple[float, float, float, float],
    size: tuple[int, int],
) -> None:
    scores = torch.randn(classes, *grid, generator=torch.Generator().manual_seed(seed))
    square = max(grid) + more
    rows, columns = (slice_of(square, *ends) for ends in (window[:2], window[2:]))
    enlarged = plain(plain(scores, square, square)[:, rows, columns], *size)
    assert_equal_if_drawn(resize_twice_argmax(scores.numpy(), square, rows, columns, *size), enlarged)


def slice_of(side: int, one: float, other: float) -> slice:
    """Some part of `side`, not empty."""
    start, stop = sorted((one, other))
    return slice(int(start * (side - 1)), int(start * (side - 1)) + 1 + int((stop - start) * (side - 1)))


@given(st.integers(0, 2**32), st.integers(20, 60), st.tuples(st.integers(1, 150), st.integers(1, 150)))
@settings(max_examples=80, deadline=None)
def test_two_resizes_of_wide_regions_equal_the_plain_ones(seed: int, square: int, size: tuple[int, int]) -> None:
    few = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(seed))
    scores = F.interpolate(few[None], (20, 20), mode="bicubic")[0]
    whole = slice(0, square)
    enlarged = plain(plain(scores, square, square), *size)
    assert_equal_if_drawn(resize_twice_argmax(scores.numpy(), square, whole, whole, *size), enlarged)


def test_most_points_between_are_never_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsampling, "compiled", None)  # which computes all points of the square
    computed = []
    interpolate = upsampling._interpolate

    def count(flat: upsampling.Floats, vertical: upsampling._Ends, horizontal: upsampling._Ends) -> object:
        computed.append(len(vertical.before))
        return interpolate(flat, vertical, horizontal)

    monkeypatch.setattr(upsampling, "_interpolate", count)
    scores = torch.zeros(3, 112, 112)
    scores[0] = 1
    scores[1, 30:60, 40:80] = 2
    resize_twice_argmax(scores.numpy(), 224, slice(0, 224), slice(0, 224), 375, 500)
    points, pixels = computed
    assert 0 < points < 0.06 * 224 * 224
    assert 0 < pixels < 0.06 * 375 * 500


@pytest.mark.parametrize("size", [(7, 9), (40, 3), (3, 40), (1, 1), (16, 20), (157, 211)])
@pytest.mark.parametrize("strip_pixels", [1, 300, 1 << 19])
def test_any_size_in_any_strips_equals_the_plain_resize(
    size: tuple[int, int], strip_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsampling, "_STRIP_PIXELS", strip_pixels)
    scores = torch.randn(3, 16, 20, generator=torch.Generator().manual_seed(0))
    assert_equal(resize_argmax(scores.numpy(), *size), plain(scores, *size))


def test_a_photo_of_12_megapixels_equals_the_plain_resize() -> None:
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 128), indexing="ij"))
    cat = 0.5 - (grid - torch.tensor([0.1, -0.3])[:, None, None]).norm(dim=0)
    dog = 0.3 - (grid - torch.tensor([-0.2, 0.4])[:, None, None]).norm(dim=0)
    logits = 8 * torch.stack([torch.zeros_like(cat), cat, dog])
    square = F.pad(logits, (0, 0, 16, 16))
    letterbox = Letterbox((3000, 4000), 128)
    mask = letterbox.restore_mask(square)
    assert_equal(mask, plain(logits, 3000, 4000))
    assert set(np.unique(mask)) == {0, 1, 2}


def test_no_border_no_work_and_ties_go_to_the_first_class() -> None:
    scores = np.zeros((3, 4, 5), np.float32)
    assert (resize_argmax(scores, 40, 50) == 0).all()
    scores[2] = 1
    assert (resize_argmax(scores, 40, 50) == 2).all()


def test_a_class_that_wins_between_grid_points_only_is_found() -> None:
    # At the left point class 0 wins, at the right one class 2; class 1 is second at both and first halfway.
    scores = np.array([[[9, 0]], [[8, 8]], [[0, 9]]], np.float32)
    assert set(np.unique(resize_argmax(scores, 1, 100))) == {0, 1, 2}


@pytest.mark.parametrize("original_size", [(1000, 20), (20, 1000), (100, 1000), (40, 4000)])
@pytest.mark.parametrize("side", [4, 32, 64])
def test_uploads_too_narrow_to_be_enlarged_are_restored_too(original_size: tuple[int, int], side: int) -> None:
    letterbox = Letterbox(original_size, 64)
    logits = torch.randn(3, side, side, generator=torch.Generator().manual_seed(1))
    assert_equal(letterbox.restore_mask(logits), letterbox.restore_logits(logits))
