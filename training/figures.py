"""One plain look for the figures of `robustness.py` and `report.py`; matplotlib is imported only where one is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import ndimage

from models.letterbox import Array
from training.contact_sheet import CLASS_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#e69f00", "v"),
    ("#56b4e9", "P"),
    ("#444444", "X"),
)
"""Colour and marker of each line in turn: a palette for every kind of colour vision (Okabe and Ito 2008)."""

GREY = "#666666"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of that size in inches, without pyplot: no window, no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def style(axes: "Axes", title: str = "") -> None:
    """A quiet frame: the lines are what is looked at."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors=GREY, labelsize=8, length=3)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")


def save(figure: "Figure", path: Path) -> None:
    """Write the figure in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def show_pictures(axes: Sequence["Axes"], pictures: Sequence[Array], captions: Sequence[str]) -> None:
    """One picture [H, W, 3] uint8 in each of `axes`, without a frame, its caption above it."""
    for each, picture, caption in zip(axes, pictures, captions, strict=True):
        each.imshow(picture)
        each.set_axis_off()
        each.set_title(caption, fontsize=8, color="#222222", pad=3)


def outlined(image: Array, mask: Array, side: int) -> Array:
    """Image [H, W, 3] uint8 enlarged or reduced to `side` pixels, the classes of `mask` [H, W] tinted and outlined."""
    scale = side / max(mask.shape)
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    shown = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    labels = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    for value, colour in CLASS_COLOURS.items():
        inside = labels == value
        line = inside & ~ndimage.binary_erosion(inside, iterations=2)
        shown[inside] = np.rint(0.8 * shown[inside] + 0.2 * np.array(colour)).astype(np.uint8)
        shown[line] = colour
    return shown
