import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from torch import Generator, Tensor

from training.augmentation import (
    Augmentation,
    AugmentationConfig,
    displacement_field,
    gaussian_smooth,
    identity_grid,
    resample,
)

PROBABILITIES = tuple(name for name in AugmentationConfig.model_fields if name.endswith("_probability"))
GEOMETRY = ("flip", "rotation", "translation", "crop", "scaling", "aspect", "elastic")
SIDE = 48


def only(*names: str, **ranges: Any) -> Augmentation:
    """An augmentation in which the named transforms always happen and no other does."""
    chances = {name: float(name.removesuffix("_probability") in names) for name in PROBABILITIES}
    return Augmentation(AugmentationConfig(**chances, **ranges))


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def disc(centre: tuple[float, float] = (20.0, 27.0), radius: float = 13.0) -> tuple[Tensor, Tensor]:
    """A bright disc on dark ground, and its label map with a ring of 255."""
    y, x = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")
    distance = torch.hypot(x - centre[0], y - centre[1])
    label = torch.where(distance < radius, 1, torch.where(distance < radius + 2, 255, 0)).to(torch.uint8)
    image = torch.where(distance < radius + 1, 220, 30).to(torch.uint8).expand(3, SIDE, SIDE).clone()
    return image, label


def test_the_defaults_are_the_studys_table() -> None:
    c = AugmentationConfig()
    assert (c.flip_probability, c.rotation_probability, c.rotation_degrees) == (0.5, 0.25, 45)
    assert (c.translation_probability, c.translation_fraction) == (0.05, 0.05)
    assert (c.crop_probability, c.crop_area) == (0.01, (0.9, 1.0))
    assert (c.scaling_probability, c.scaling_factor) == (0.05, (0.8, 1.2))
    assert c.jitter_probability == 1.0
    assert {c.jitter_brightness, c.jitter_contrast, c.jitter_saturation, c.jitter_hue} == {0.2}
    assert (c.blur_probability, c.blur_radius_px) == (0.3, (0.5, 1.5))
    ours = ("aspect", "low_resolution", "sharpness", "grey", "noise", "jpeg", "erasing")
    assert all(getattr(c, f"{name}_probability") == 0 for name in ours)


def test_an_unknown_key_or_impossible_chance_is_refused() -> None:
    with pytest.raises(ValidationError, match="rotation_angle"):
        AugmentationConfig.model_validate({"rotation_angle": 3})
    with pytest.raises(ValidationError, match="flip_probability"):
        AugmentationConfig(flip_probability=1.5)


def test_nothing_drawn_changes_nothing() -> None:
    image, label = disc()
    new_image, new_label = only()(image, label, generator())
    assert torch.equal(new_image, image) and torch.equal(new_label, label)


def test_flip_known_answer() -> None:
    image, label = disc()
    new_image, new_label = only("flip")(image, label, generator())
    assert torch.equal(new_image, image.flip(-1)) and torch.equal(new_label, label.flip(-1))


def test_rotation_by_a_quarter_turn_known_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.augmentation.uniform", lambda low, high, generator: high)
    image, label = disc()
    new_image, new_label = only("rotation", rotation_degrees=90)(image, label, generator())
    assert torch.equal(new_label, torch.rot90(label, -1)) or torch.equal(new_label, torch.rot90(label, 1))
    assert torch.equal(new_image, torch.rot90(image, -1, (1, 2))) or torch.equal(
        new_image, torch.rot90(image, 1, (1, 2))
    )


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("seed", range(3))
def test_geometry_moves_image_and_label_together(name: str, seed: int) -> None:
    image, label = disc()
    new_image, new_label = only(name)(image, label, generator(seed))
    bright = new_image[0] > 125
    assert bright[new_label == 1].float().mean() > 0.99
    # Opened space takes the image's mean, which is dark too: only the disc is bright.
    assert (~bright[new_label == 0]).float().mean() > 0.99


def test_all_geometry_together_keeps_them_aligned() -> None:
    image, label = disc((24, 24), 10)
    for seed in range(20):
        new_image, new_label = only(*GEOMETRY)(image, label, generator(seed))
        bright = new_image[0] > 125
        assert bright[new_label == 1].float().mean() > 0.97
        assert (~bright[new_label == 0]).float().mean() > 0.97


def test_scaling_scales_the_area(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.augmentation.uniform", lambda low, high, generator: high)
    image, label = disc((23.5, 23.5), 10)
    _, larger = only("scaling", scaling_factor=(1.0, 1.5))(image, label, generator())
    assert float((larger == 1).sum() / (label == 1).sum()) == pytest.approx(1.5**2, rel=0.05)


def test_crop_takes_a_part_of_the_given_area() -> None:
    ramp = torch.arange(SIDE, dtype=torch.uint8).expand(3, SIDE, SIDE).clone()
    shown, _ = only("crop", crop_area=(0.25, 0.25))(ramp, torch.zeros(SIDE, SIDE, dtype=torch.uint8), generator(1))
    assert int(shown.max()) - int(shown.min()) == pytest.approx(SIDE / 2, abs=1.5)


def test_opened_space_is_the_images_mean_and_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.augmentation.uniform", lambda low, high, generator: low)
    image, _ = disc()
    label = torch.full((SIDE, SIDE), 2, dtype=torch.uint8)
    new_image, new_label = only("scaling", scaling_factor=(0.5, 1.0))(image, label, generator())
    mean = image.float().mean(dim=(1, 2))
    assert (new_image[:, :8].float() - mean[:, None, None]).abs().max() <= 1
    assert (new_label[:8] == 0).all() and (new_label[20:28, 20:28] == 2).all()


@pytest.mark.parametrize("name", [name.removesuffix("_probability") for name in PROBABILITIES])
def test_every_transform_changes_something_and_no_input(name: str) -> None:
    image, label = disc()
    image = (image.float() + 20 * torch.randn(image.shape, generator=generator())).clamp(0, 255).to(torch.uint8)
    image[0] //= 2  # in colour, or hue, saturation and grey would have nothing to do
    kept_image, kept_label = image.clone(), label.clone()
    new_image, _ = only(name)(image, label, generator(5))
    assert not torch.equal(new_image, image)
    assert torch.equal(image, kept_image) and torch.equal(label, kept_label)


@pytest.mark.parametrize("name", ["jitter", "blur", "low_resolution", "sharpness", "grey", "noise", "jpeg"])
def test_photometry_leaves_the_label_alone(name: str) -> None:
    image, label = disc()
    assert torch.equal(only(name)(image, label, generator(2))[1], label)


def test_erased_pixels_are_ignored() -> None:
    image, label = disc()
    new_image, new_label = only("erasing")(image, label, generator())
    erased = (new_image != image).any(dim=0)
    assert erased.any() and (new_label[erased] == 255).all()
    assert torch.equal(new_label[~erased & (new_label != 255)], label[~erased & (new_label != 255)])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    chances=st.fixed_dictionaries({name: st.sampled_from([0.0, 0.5, 1.0]) for name in PROBABILITIES}),
    side=st.integers(16, 40),
)
def test_any_mixture_keeps_shape_type_values_and_repeats(seed: int, chances: dict[str, float], side: int) -> None:
    pixels = generator(seed)
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=pixels)
    label = torch.tensor((0, 1, 2, 255), dtype=torch.uint8)[torch.randint(0, 4, (side, side), generator=pixels)]
    augmentation = Augmentation(AugmentationConfig(**chances))
    first = augmentation(image, label, generator(seed))
    again = augmentation(image, label, generator(seed))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert first[0].shape == image.shape and first[0].dtype == torch.uint8
    assert first[1].shape == label.shape and first[1].dtype == torch.uint8
    assert set(first[1].flatten().tolist()) <= {0, 1, 2, 255}


def test_the_order_is_shuffled() -> None:
    augmentation = only("rotation", "translation", "scaling")
    orders = set()
    for seed in range(60):
        drawn = augmentation._draw(augmentation._geometry, generator(seed))
        orders.add(tuple(step.__name__ for step in drawn))
    assert len(orders) == math.factorial(3)


def test_transforms_happen_as_often_as_they_should() -> None:
    augmentation = Augmentation(AugmentationConfig())
    source = generator(0)
    drawn = [step.__name__ for _ in range(4000) for step in augmentation._draw(augmentation._geometry, source)]
    assert drawn.count("_flip") / 4000 == pytest.approx(0.5, abs=0.03)
    assert drawn.count("_rotate") / 4000 == pytest.approx(0.25, abs=0.03)
    assert drawn.count("_translate") / 4000 == pytest.approx(0.05, abs=0.015)


def test_a_crooked_pair_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got image \(3, 8, 8\) and label map \(8, 9\)"):
        only()(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 9, dtype=torch.uint8), generator())


def test_resampling_on_its_own_grid_is_the_identity() -> None:
    image, label = disc()
    moved, labels = resample(image.float(), label, identity_grid(SIDE))
    assert torch.allclose(moved, image.float(), atol=1e-3) and torch.equal(labels, label)


@pytest.mark.parametrize(("sigma", "alpha"), [(0.05, 0.02), (0.15, 0.05)])
def test_displacements_are_as_strong_as_asked_and_smooth(sigma: float, alpha: float) -> None:
    fields = torch.stack([displacement_field(96, sigma, alpha, generator(seed)) for seed in range(8)])
    # Coordinates span 2, so a fraction of the side is twice that number.
    assert fields.square().mean().sqrt().item() == pytest.approx(2 * alpha, rel=0.1)
    # White noise under a Gaussian of s pixels correlates as exp(-d^2 / 4 s^2): neighbours differ by 1 / (sqrt(2) s).
    steps = (fields[..., 1:] - fields[..., :-1]).square().mean().sqrt() / fields.square().mean().sqrt()
    assert steps.item() == pytest.approx(1 / (math.sqrt(2) * sigma * 96), rel=0.25)


@pytest.mark.parametrize("sigma", [0.5, 1.5, 3.0])
def test_smoothing_agrees_with_scipy(sigma: float) -> None:
    planes = torch.rand(2, 20, 24, generator=generator())
    # scipy's truncate is in sigmas; ours takes ceil(3 sigma) pixels to each side.
    wanted = [ndimage.gaussian_filter(p.numpy(), sigma, mode="nearest", radius=math.ceil(3 * sigma)) for p in planes]
    assert np.allclose(gaussian_smooth(planes, sigma).numpy(), np.stack(wanted), atol=1e-5)
