"""Joint random transforms of an image and its label map (SPEC table of the study, and knobs of our own).

One draw serves both. Geometry is composed in the drawn order into one map of coordinates and sampled once: the same
picture as transform after transform, without resampling blur and several times faster. Called by `dataset.py` on the
fly, by `preparation.py` for the offline expansion.
"""

import math
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as TF

from training.official_layout import IGNORE

Probability = float
Range = tuple[float, float]


class AugmentationConfig(BaseModel):
    """Each transform's probability and range. The defaults are the study's table; what it does not have is off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip_probability: Probability = Field(0.5, ge=0, le=1)
    rotation_probability: Probability = Field(0.25, ge=0, le=1)
    rotation_degrees: float = Field(45.0, ge=0, le=180)
    translation_probability: Probability = Field(0.05, ge=0, le=1)
    translation_fraction: float = Field(0.05, ge=0, le=1)
    """Largest shift along each axis, as a fraction of the side."""
    crop_probability: Probability = Field(0.01, ge=0, le=1)
    crop_area: Range = (0.9, 1.0)
    """Area of the square crop as a fraction of the image; the crop is resized to the full side."""
    scaling_probability: Probability = Field(0.05, ge=0, le=1)
    scaling_factor: Range = (0.8, 1.2)
    elastic_probability: Probability = Field(0.1, ge=0, le=1)
    elastic_sigma: float = Field(0.06, gt=0)
    """Standard deviation of the smoothing Gaussian, as a fraction of the side."""
    elastic_alpha: float = Field(0.02, ge=0)
    """Root mean square displacement along each axis, as a fraction of the side."""
    jitter_probability: Probability = Field(1.0, ge=0, le=1)
    jitter_brightness: float = Field(0.2, ge=0, le=1)
    jitter_contrast: float = Field(0.2, ge=0, le=1)
    jitter_saturation: float = Field(0.2, ge=0, le=1)
    jitter_hue: float = Field(0.2, ge=0, le=0.5)
    """Largest hue shift, as a fraction of the colour circle."""
    blur_probability: Probability = Field(0.3, ge=0, le=1)
    blur_radius_px: Range = (0.5, 1.5)
    """Standard deviation of the Gaussian, in pixels."""

    aspect_probability: Probability = Field(0.0, ge=0, le=1)
    aspect_ratio: Range = (0.75, 1.33)
    """Width stretched against height by this ratio, at constant area."""
    low_resolution_probability: Probability = Field(0.0, ge=0, le=1)
    low_resolution_factor: Range = (0.4, 1.0)
    """Scaled down by this factor and up again: a smaller photo enlarged. Half of them without antialiasing."""
    sharpness_probability: Probability = Field(0.0, ge=0, le=1)
    sharpness_factor: Range = (0.3, 3.0)
    """1 keeps the image, 0 softens, above 1 sharpens."""
    grey_probability: Probability = Field(0.0, ge=0, le=1)
    noise_probability: Probability = Field(0.0, ge=0, le=1)
    noise_sigma: Range = (0.0, 0.1)
    """Standard deviation of Gaussian pixel noise, for an image in [0, 1]."""
    jpeg_probability: Probability = Field(0.0, ge=0, le=1)
    jpeg_quality: tuple[int, int] = (20, 90)
    erasing_probability: Probability = Field(0.0, ge=0, le=1)
    erasing_area: Range = (0.02, 0.15)
    """Area of a rectangle of one random colour, as a fraction of the image; its pixels are ignored in the loss."""


def uniform(low: float, high: float, generator: Generator) -> float:
    """One number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


Step = Callable[[Tensor, Generator], Tensor]


class Augmentation:
    """Applies one random draw of `config` to an image and its label map.

    Of all transforms those drawn are shuffled for each pair. Empty space opened by geometry takes the image's own
    mean and the label background, as the padding of the preparation does: the padding is visible to the network in
    service as well, so it must learn that it is background and not merely ignore it.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config
        c = config
        self._geometry: tuple[tuple[Probability, Step], ...] = (
            (c.flip_probability, self._flip),
            (c.rotation_probability, self._rotate),
            (c.translation_probability, self._translate),
            (c.crop_probability, self._crop),
            (c.scaling_probability, self._scale),
            (c.aspect_probability, self._stretch),
            (c.elastic_probability, self._deform),
        )
        self._photometry: tuple[tuple[Probability, Step], ...] = (
            (c.jitter_probability, self._jitter),
            (c.blur_probability, self._blur),
            (c.low_resolution_probability, self._lower_resolution),
            (c.sharpness_probability, self._sharpen),
            (c.grey_probability, self._grey),
            (c.noise_probability, self._add_noise),
            (c.jpeg_probability, self._compress),
        )

    def __call__(self, image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """image: Tensor [3, S, S] uint8; label: Tensor [S, S] uint8 with 255 ignored -> the same shapes and types."""
        side = image.shape[-1]
        if image.shape[-2] != side or label.shape != (side, side):
            raise ValueError(
                f"got image {tuple(image.shape)} and label map {tuple(label.shape)}, wanted [3, S, S] and [S, S]"
            )
        geometry, photometry = self._draw(self._geometry, generator), self._draw(self._photometry, generator)
        # The position of the one resampling among the photometric steps is part of the shuffled order.
        before = int(torch.randint(len(photometry) + 1, (), generator=generator)) if geometry else 0
        pixels = image.float().div_(255.0)
        for step in photometry[:before]:
            pixels = step(pixels, generator)
        if geometry:
            coordinates = identity_grid(side)
            for step in geometry:
                coordinates = step(coordinates, generator)
            pixels, label = resample(pixels, label, coordinates)
        for step in photometry[before:]:
            pixels = step(pixels, generator)
        if happens(self.config.erasing_probability, generator):
            pixels, label = self._erase(pixels, label, generator)
        return pixels.clamp(0, 1).mul_(255.0).round_().to(torch.uint8), label

    @staticmethod
    def _draw(steps: tuple[tuple[Probability, Step], ...], generator: Generator) -> list[Step]:
        chances = torch.rand(len(steps), generator=generator).tolist()
        drawn = [step for (probability, step), chance in zip(steps, chances, strict=True) if chance < probability]
        return [drawn[i] for i in torch.randperm(len(drawn), generator=generator).tolist()]

    # Geometry: output coordinates [S, S, 2] (x, y in [-1, 1]) -> the input coordinates that they are read from.

    def _flip(self, coordinates: Tensor, generator: Generator) -> Tensor:
        return coordinates * coordinates.new_tensor((-1.0, 1.0))

    def _rotate(self, coordinates: Tensor, generator: Generator) -> Tensor:
        angle = math.radians(uniform(-self.config.rotation_degrees, self.config.rotation_degrees, generator))
        cos, sin = math.cos(angle), math.sin(angle)
        return coordinates @ coordinates.new_tensor(((cos, sin), (-sin, cos)))

    def _translate(self, coordinates: Tensor, generator: Generator) -> Tensor:
        # The square spans 2 in these coordinates, so a fraction of the side is twice that number.
        shift = (torch.rand(2, generator=generator) * 2 - 1) * 2 * self.config.translation_fraction
        return coordinates + shift

    def _crop(self, coordinates: Tensor, generator: Generator) -> Tensor:
        side = math.sqrt(uniform(*self.config.crop_area, generator))
        return coordinates * side + (torch.rand(2, generator=generator) * 2 - 1) * (1 - side)

    def _scale(self, coordinates: Tensor, generator: Generator) -> Tensor:
        low, high = self.config.scaling_factor
        # Drawn on a log scale: halving and doubling are equally likely.
        return coordinates / math.exp(uniform(math.log(low), math.log(high), generator))

    def _stretch(self, coordinates: Tensor, generator: Generator) -> Tensor:
        low, high = self.config.aspect_ratio
        root = math.exp(uniform(math.log(low), math.log(high), generator) / 2)
        return coordinates * coordinates.new_tensor((1 / root, root))

    def _deform(self, coordinates: Tensor, generator: Generator) -> Tensor:
        field = displacement_field(
            coordinates.shape[0], self.config.elastic_sigma, self.config.elastic_alpha, generator
        )
        # The field lives on the square of this step; earlier steps have moved the coordinates within it.
        offsets = F.grid_sample(field[None], coordinates[None], padding_mode="border", align_corners=False)[0]
        return coordinates + offsets.permute(1, 2, 0)  # [2, S, S] -> [S, S, 2]

    # Photometry: image [3, S, S] float32 in [0, 1] -> the same.

    def _jitter(self, image: Tensor, generator: Generator) -> Tensor:
        c = self.config
        factors = {
            TF.adjust_brightness: uniform(1 - c.jitter_brightness, 1 + c.jitter_brightness, generator),
            TF.adjust_contrast: uniform(1 - c.jitter_contrast, 1 + c.jitter_contrast, generator),
            TF.adjust_saturation: uniform(1 - c.jitter_saturation, 1 + c.jitter_saturation, generator),
            TF.adjust_hue: uniform(-c.jitter_hue, c.jitter_hue, generator),
        }
        adjustments = list(factors.items())
        for index in torch.randperm(len(adjustments), generator=generator).tolist():
            adjust, factor = adjustments[index]
            image = adjust(image, factor)
        return image

    def _blur(self, image: Tensor, generator: Generator) -> Tensor:
        return gaussian_smooth(image, uniform(*self.config.blur_radius_px, generator))

    def _lower_resolution(self, image: Tensor, generator: Generator) -> Tensor:
        side = image.shape[-1]
        smaller = max(8, round(side * uniform(*self.config.low_resolution_factor, generator)))
        antialias = happens(0.5, generator)
        down = F.interpolate(image[None], (smaller, smaller), mode="bilinear", align_corners=False, antialias=antialias)
        return F.interpolate(down, (side, side), mode="bilinear", align_corners=False)[0]

    def _sharpen(self, image: Tensor, generator: Generator) -> Tensor:
        low, high = self.config.sharpness_factor
        factor = math.exp(uniform(math.log(low), math.log(high), generator))
        sharpened: Tensor = TF.adjust_sharpness(image, factor)
        return sharpened

    def _grey(self, image: Tensor, generator: Generator) -> Tensor:
        grey: Tensor = TF.rgb_to_grayscale(image, num_output_channels=3)
        return grey

    def _add_noise(self, image: Tensor, generator: Generator) -> Tensor:
        sigma = uniform(*self.config.noise_sigma, generator)
        return (image + sigma * torch.randn(image.shape, generator=generator)).clamp_(0, 1)

    def _compress(self, image: Tensor, generator: Generator) -> Tensor:
        low, high = self.config.jpeg_quality
        quality = int(torch.randint(low, high + 1, (), generator=generator))
        # Pillow's codec: torchvision's goes through torch.jit, which is being retired.
        buffer = BytesIO()
        pixels = image.mul(255.0).round_().to(torch.uint8).permute(1, 2, 0)  # [3, S, S] -> [S, S, 3]
        Image.fromarray(pixels.numpy()).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as compressed:
            return torch.from_numpy(np.array(compressed)).permute(2, 0, 1).float().div_(255.0)

    def _erase(self, image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        side = image.shape[-1]
        area, ratio = uniform(*self.config.erasing_area, generator), math.exp(uniform(-0.7, 0.7, generator))
        height = min(side, max(1, round(side * math.sqrt(area * ratio))))
        width = min(side, max(1, round(side * math.sqrt(area / ratio))))
        top = int(torch.randint(side - height + 1, (), generator=generator))
        left = int(torch.randint(side - width + 1, (), generator=generator))
        image, label = image.clone(), label.clone()
        image[:, top : top + height, left : left + width] = torch.rand((3, 1, 1), generator=generator)
        # What lies under the patch cannot be seen, so neither answer is punished.
        label[top : top + height, left : left + width] = IGNORE
        return image, label


def identity_grid(side: int) -> Tensor:
    """Coordinates [S, S, 2] float32, (x, y) of the pixel centres in [-1, 1]."""
    centres = (torch.arange(side) * 2 + 1) / side - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack((x, y), dim=-1)


def resample(image: Tensor, label: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Image [3, S, S] float32 (bilinear) and label map [S, S] uint8 (nearest) read at `coordinates` [S, S, 2].

    Outside the square lie the image's own mean and background.
    """
    mean = image.mean(dim=(1, 2), keepdim=True)
    grid = coordinates[None]
    moved = F.grid_sample((image - mean)[None], grid, padding_mode="zeros", align_corners=False)[0] + mean
    labels = F.grid_sample(label[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, labels[0, 0].to(torch.uint8)


def displacement_field(side: int, sigma: float, alpha: float, generator: Generator) -> Tensor:
    """Random smooth displacements [2, S, S] in coordinates of [-1, 1] (Simard, Steinkraus and Platt, ICDAR 2003).

    N(0, 1) noise is smoothed by a Gaussian of standard deviation `sigma` (a fraction of the side) and scaled so that
    its root mean square is `alpha` (a fraction of the side): the strength then depends on neither sigma nor the side.
    """
    # Smooth noise needs no fine grid: it is drawn at a quarter of the side and enlarged.
    coarse = max(4, side // 4)
    noise = gaussian_smooth(torch.randn((2, coarse, coarse), generator=generator), sigma * coarse)
    rms = noise.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12)
    field = F.interpolate(noise[None], (side, side), mode="bilinear", align_corners=False)[0]
    return field / rms * (2 * alpha)


def gaussian_smooth(planes: Tensor, sigma_px: float) -> Tensor:
    """Each plane of [C, H, W] convolved with a Gaussian, as two passes of one axis; edges are repeated."""
    radius = min(math.ceil(3 * sigma_px), planes.shape[-1] - 1, planes.shape[-2] - 1)
    if radius < 1:
        return planes
    offsets = torch.arange(-radius, radius + 1, dtype=planes.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    weights = (kernel / kernel.sum()).tolist()
    for axis, padding in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        # A sum of shifted planes: on a CPU many times faster than conv2d with a single channel.
        padded, length = F.pad(planes, padding, mode="replicate"), planes.shape[axis]
        planes = padded.narrow(axis, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            planes.add_(padded.narrow(axis, shift, length), alpha=weight)
    return planes


def happens(probability: Probability, generator: Generator) -> bool:
    """True with that probability."""
    return torch.rand((), generator=generator).item() < probability
