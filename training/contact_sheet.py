"""A contact sheet: what the model will see in training, as one picture to look at."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from models.letterbox import Array
from models.prompts import PointPrompt, Prompt, TextPrompt
from training.dataset import PetDataset
from training.official_layout import CAT, DOG, IGNORE

CLASS_COLOURS = {CAT: (230, 60, 60), DOG: (60, 90, 240), IGNORE: (250, 220, 40)}
_CAPTION_PX = 14
_CELL_PX = 160


def contact_sheet(dataset: PetDataset, path: Path, count: int = 36) -> None:
    """Writes a PNG of `count` examples, spread evenly over the split: each image beside itself with its target.

    Red is cat (or the clicked object), blue dog, yellow ignored; text prompts stand below, clicks are drawn as dots
    (green object, red background).
    """
    count = min(count, len(dataset))
    if count < 1:
        raise ValueError(f"got count={count}, wanted at least 1 example")
    columns = math.ceil(math.sqrt(count / 2))
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * 2 * _CELL_PX, rows * (_CELL_PX + _CAPTION_PX)), "white")
    for position in range(count):
        row, column = divmod(position, columns)
        cell = _cell(*dataset.draw(position * len(dataset) // count))
        sheet.paste(cell, (column * 2 * _CELL_PX, row * (_CELL_PX + _CAPTION_PX)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def overlay(image: Array, target: Array) -> Array:
    """Image [H, W, 3] uint8 with the classes of `target` [H, W] laid over it half transparent."""
    blended = image.copy()
    for value, colour in CLASS_COLOURS.items():
        chosen = target == value
        blended[chosen] = (blended[chosen].astype(np.uint16) + np.array(colour, np.uint16)) // 2
    return blended


def _cell(image: Tensor, prompt: Prompt, target: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy()  # [3, S, S] -> [S, S, 3]
    pair = np.concatenate((pixels, overlay(pixels, target.to(torch.uint8).numpy())), axis=1)
    cell = Image.new("RGB", (2 * _CELL_PX, _CELL_PX + _CAPTION_PX), "white")
    cell.paste(Image.fromarray(pair).resize((2 * _CELL_PX, _CELL_PX), Image.Resampling.BILINEAR))
    pen = ImageDraw.Draw(cell)
    if isinstance(prompt, TextPrompt):
        pen.text((2, _CELL_PX + 1), prompt.text, fill="black")
    if isinstance(prompt, PointPrompt):
        scale = _CELL_PX / pixels.shape[0]
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            centre = ((x + 0.5) * scale, (y + 0.5) * scale)
            pen.circle(centre, 4, fill=(40, 200, 60) if label else (220, 30, 30), outline="white")
    return cell
