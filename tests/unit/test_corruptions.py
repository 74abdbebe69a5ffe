from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.letterbox import Array
from training.corruptions import CORRUPTIONS, SEVERITIES, corrupt


def photo(height: int = 60, width: int = 80) -> Image.Image:
    """Grey levels from 40 to 215 in blocks, so that each distortion has something to change and room to do so."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(40, 216, (-(-height // 5), -(-width // 5), 3), np.uint8)
    return Image.fromarray(blocks.repeat(5, axis=0).repeat(5, axis=1)[:height, :width])


def corrupted(corruption: str, severity: int, image: Image.Image | None = None, name: str = "cat_1") -> Array:
    return np.asarray(corrupt(image or photo(), corruption, severity, name))


def flat(value: int) -> Image.Image:
    return Image.new("RGB", (200, 100), (value, value, value))


def test_the_eight_of_the_study_at_five_strengths() -> None:
    assert len(CORRUPTIONS) == 8
    assert all(len(each.strengths) == len(SEVERITIES) == 6 for each in CORRUPTIONS.values())


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_severity_0_is_the_photo(corruption: str) -> None:
    assert np.array_equal(corrupted(corruption, 0), np.asarray(photo()))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_same_photo_is_always_distorted_alike(corruption: str) -> None:
    for severity in SEVERITIES:
        assert np.array_equal(corrupted(corruption, severity), corrupted(corruption, severity))


@pytest.mark.parametrize("corruption", ["gaussian_noise", "salt_and_pepper", "occlusion"])
def test_another_photo_gets_another_draw(corruption: str) -> None:
    assert not np.array_equal(corrupted(corruption, 3), corrupted(corruption, 3, name="cat_2"))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_severity_is_further_from_the_photo(corruption: str) -> None:
    clean = np.asarray(photo(), np.float64)
    errors = [np.abs(corrupted(corruption, severity) - clean).mean() for severity in SEVERITIES]
    assert errors == sorted(errors)
    assert all(later > earlier for earlier, later in pairwise(errors))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@given(height=st.integers(1, 40), width=st.integers(1, 40), severity=st.sampled_from(SEVERITIES))
def test_any_size_is_kept(corruption: str, height: int, width: int, severity: int) -> None:
    assert corrupted(corruption, severity, photo(height, width)).shape == (height, width, 3)


def test_brightness_adds_grey_levels_and_clips() -> None:
    image = Image.fromarray(np.array([[[0, 100, 230]]], np.uint8))
    assert corrupted("brightness_up", 2, image).tolist() == [[[50, 150, 255]]]
    assert corrupted("brightness_down", 2, image).tolist() == [[[0, 50, 180]]]


def test_contrast_stretches_about_the_mean() -> None:
    image = Image.fromarray(np.array([[[100] * 3, [140] * 3]], np.uint8))  # mean 120
    assert corrupted("contrast_up", 3, image)[0, :, 0].tolist() == [80, 160]
    assert corrupted("contrast_down", 2, image)[0, :, 0].tolist() == [110, 130]


def test_noise_has_the_spread_that_is_named() -> None:
    noise = corrupted("gaussian_noise", 2, flat(128)).astype(float) - 128
    assert noise.std() == pytest.approx(20, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.5)


def test_salt_and_pepper_hit_the_share_that_is_named() -> None:
    noisy = corrupted("salt_and_pepper", 4, flat(128))
    assert (noisy == 255).all(axis=2).mean() == pytest.approx(0.06, abs=0.01)
    assert (noisy == 0).all(axis=2).mean() == pytest.approx(0.06, abs=0.01)
    assert set(np.unique(noisy)) == {0, 128, 255}


def test_blur_spreads_a_point_by_its_sigma() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[50, 50] = 255
    middle = corrupted("gaussian_blur", 3, Image.fromarray(pixels))[50, 50, 0]  # sigma 1.6 px
    assert middle == pytest.approx(255 / (2 * np.pi * 1.6**2), abs=1)
    assert np.array_equal(corrupted("gaussian_blur", 5, flat(77)), np.asarray(flat(77)))


def test_occluders_cover_their_share_and_hold_one_another() -> None:
    covered = [(corrupted("occlusion", severity, flat(200)) == 0).all(axis=2) for severity in SEVERITIES]
    for severity, area in enumerate(CORRUPTIONS["occlusion"].strengths):
        assert covered[severity].mean() == pytest.approx(area / 100, abs=0.005)
    for smaller, larger in pairwise(covered):
        assert not (smaller & ~larger).any()


def test_unknown_names_and_severities_are_refused() -> None:
    with pytest.raises(ValueError, match="got corruption 'fog', wanted one of gaussian_noise"):
        corrupt(photo(), "fog", 1, "cat_1")
    with pytest.raises(ValueError, match="got severity 6, wanted 0 to 5"):
        corrupt(photo(), "occlusion", 6, "cat_1")
