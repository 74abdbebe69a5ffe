"""Random views of prepared squares for contrastive training: crop, flip, colour jitter."""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from training.augmentation import uniform
from training.dataset import PetDataset
from training.preparation import seed_of
from training.prompt_texts import BREED_INDEX


class ViewConfig(BaseModel):
    """Ranges of the random views."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_area: tuple[float, float] = (0.35, 1.0)
    """Area of the crop as a fraction of the square."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Width by height of the crop."""
    jitter: float = Field(0.3, ge=0, le=1)
    """Brightness, contrast and saturation change by up to this fraction."""
    grey_probability: float = Field(0.1, ge=0, le=1)


class Views(Dataset[tuple[Tensor, int]]):
    """One random view of each photo per epoch: (image [3, S, S] float32 in [0, 1], row of `breeds()`).

    The draw depends on seed, epoch and index alone.
    """

    def __init__(self, photos: PetDataset, image_size: int, config: ViewConfig, seed: int, epoch: int) -> None:
        self.photos, self.image_size, self.config = photos, image_size, config
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = Generator().manual_seed(seed_of(self.seed, self.epoch, index))
        image, _ = self.photos.read(index)
        view = random_view(image, self.image_size, self.config, generator)
        return view, BREED_INDEX[self.photos.records[index].breed]


class Squares(Dataset[tuple[Tensor, int]]):
    """The photos as the service would show them: whole letterboxed squares, (image [3, S, S] in [0, 1], breed row)."""

    def __init__(self, photos: PetDataset) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, _ = self.photos.read(index)
        return image.float().div_(255.0), BREED_INDEX[self.photos.records[index].breed]


def random_view(image: Tensor, image_size: int, config: ViewConfig, generator: Generator) -> Tensor:
    """image: Tensor [3, H, W] uint8 -> [3, S, S] float32 in [0, 1]."""
    top, left, height, width = _draw_crop(image.shape[-2], image.shape[-1], config, generator)
    view: Tensor = TF.resized_crop(image, top, left, height, width, [image_size, image_size], antialias=True)
    if torch.rand((), generator=generator).item() < 0.5:
        view = view.flip(-1)
    view = view.float().div_(255.0)
    if torch.rand((), generator=generator).item() < config.grey_probability:
        grey: Tensor = TF.rgb_to_grayscale(view, num_output_channels=3)
        return grey
    low, high = 1 - config.jitter, 1 + config.jitter
    view = TF.adjust_brightness(view, uniform(low, high, generator))
    view = TF.adjust_contrast(view, uniform(low, high, generator))
    view = TF.adjust_saturation(view, uniform(low, high, generator))
    return view


def _draw_crop(height: int, width: int, config: ViewConfig, generator: Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels inside the image; area and ratio drawn as in torchvision."""
    area = height * width * uniform(*config.crop_area, generator)
    ratio = math.exp(uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1]), generator))
    crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
    crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
    top = int(torch.randint(height - crop_height + 1, (), generator=generator))
    left = int(torch.randint(width - crop_width + 1, (), generator=generator))
    return top, left, crop_height, crop_width
