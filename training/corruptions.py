"""Eight distortions of a photo at rising severity (SPEC section 4), at the photo's own size. Called by `robustness.py`.

A photo meets the same draw at every severity, only stronger: the noise is one field scaled up, and each occluder lies
within the next. So a curve rises or falls by the strength alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from training.augmentation import gaussian_smooth
from training.preparation import seed_of

Pixels = npt.NDArray[np.float32]
"""[H, W, 3] RGB, grey levels of an 8-bit photo; may leave [0, 255] until it is rounded."""

Apply = Callable[[Pixels, float, np.random.Generator], Pixels]


@dataclass(frozen=True)
class Corruption:
    """One distortion."""

    title: str
    unit: str
    """What a strength counts."""
    strengths: tuple[float, ...]
    """Strength at severity 0, which leaves the photo as it is, at severity 1, and so on."""
    apply: Apply


def _gaussian_noise(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return pixels + np.float32(strength) * rng.standard_normal(pixels.shape, np.float32)


def _gaussian_blur(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    sigma_px = strength / 100 * max(pixels.shape[:2])
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))  # [H, W, 3] -> [3, H, W]
    blurred: Pixels = gaussian_smooth(planes, sigma_px).numpy().transpose(1, 2, 0)
    return blurred


def _salt_and_pepper(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    draw = rng.random(pixels.shape[:2], np.float32)
    share = strength / 100
    noisy = pixels.copy()
    noisy[draw < share / 2] = 0
    noisy[draw >= 1 - share / 2] = 255
    return noisy


def _brightness(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return pixels + np.float32(strength)


def _contrast(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    mean = np.float32(pixels.mean())
    stretched: Pixels = mean + np.float32(strength) * (pixels - mean)
    return stretched


def _occlusion(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    side = math.sqrt(strength / 100)
    rows, columns = round(height * side), round(width * side)
    # The corner moves so that a larger rectangle covers a smaller one and none leaves the photo.
    top, left = (
        math.floor(place * free) for place, free in zip(rng.random(2), (height - rows, width - columns), strict=True)
    )
    covered = pixels.copy()
    covered[top : top + rows, left : left + columns] = 0
    return covered


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption("Gaussian noise", "sigma, grey levels", (0, 10, 20, 35, 50, 80), _gaussian_noise),
    "gaussian_blur": Corruption(
        "Gaussian blur", "sigma, % of the longer side", (0, 0.4, 0.8, 1.6, 2.4, 4), _gaussian_blur
    ),
    "salt_and_pepper": Corruption("Salt and pepper", "% of the pixels", (0, 1, 3, 6, 12, 25), _salt_and_pepper),
    "brightness_up": Corruption("Brightness up", "grey levels added", (0, 25, 50, 75, 100, 150), _brightness),
    "brightness_down": Corruption("Brightness down", "grey levels added", (0, -25, -50, -75, -100, -150), _brightness),
    "contrast_up": Corruption("Contrast up", "factor about the mean", (1, 1.25, 1.5, 2, 3, 5), _contrast),
    "contrast_down": Corruption("Contrast down", "factor about the mean", (1, 0.75, 0.5, 0.3, 0.2, 0.1), _contrast),
    "occlusion": Corruption("Occlusion", "% of the photo, black", (0, 5, 10, 20, 30, 45), _occlusion),
}
"""Each distortion by name. Values that leave [0, 255] are clipped, as a camera's are."""

SEVERITIES = range(6)


def corrupt(image: Image.Image, corruption: str, severity: int, name: str) -> Image.Image:
    """The RGB photo `name` distorted, at its own size; the same in every call. Severity 0 is the photo itself."""
    if corruption not in CORRUPTIONS:
        raise ValueError(f"got corruption {corruption!r}, wanted one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"got severity {severity}, wanted {SEVERITIES[0]} to {SEVERITIES[-1]}")
    if severity == 0:
        return image
    chosen = CORRUPTIONS[corruption]
    rng = np.random.default_rng(seed_of(corruption, name))
    pixels = chosen.apply(np.asarray(image, np.float32), chosen.strengths[severity], rng)
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
