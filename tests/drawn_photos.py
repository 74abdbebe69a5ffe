"""Photos painted pixel by pixel in the official layout, so that a test can foretell every score."""

from pathlib import Path

import numpy as np
from PIL import Image

from models.letterbox import Array
from training.official_layout import PetRecord, image_path, trimap_path

GREEN, RED, BLUE = (0, 255, 0), (255, 0, 0), (0, 0, 255)


def write_photo(root: Path, name: str, species: int, pixels: Array, animal: Array) -> PetRecord:
    """A lossless photo [H, W, 3] uint8 under its official name, with a trimap of `animal` [H, W] bool, no ring."""
    image_path(root, name).parent.mkdir(parents=True, exist_ok=True)
    trimap_path(root, name).parent.mkdir(parents=True, exist_ok=True)
    with image_path(root, name).open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    Image.fromarray(np.where(animal, 1, 2).astype(np.uint8)).save(trimap_path(root, name))
    return PetRecord(name, name.rpartition("_")[0], species)


def write_block(root: Path, name: str, species: int, size: int = 32) -> PetRecord:
    """What `ColourModel` segments without error: a red block for a cat, a blue one for a dog, on green ground."""
    animal = np.zeros((size, size), bool)
    animal[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = True
    pixels = np.where(animal[..., None], RED if species == 1 else BLUE, GREEN).astype(np.uint8)
    return write_photo(root, name, species, pixels, animal)
