"""Mean IoU of any checkpoints against the strength of each corruption: a table, curves and example strips.

    <out>/robustness.json            everything, read by `comparison.py`
    <out>/robustness.csv             one row for each model, corruption and severity
    <out>/curves.png, curves.svg     all corruptions on one page; <out>/<corruption>.png one alone
    <out>/<model>-strips.png         one photo through all severities with that model's masks

Called by `petseg-train robustness`. Ground truth stays that of the clean photo, behind an occluder too.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from models.base import SegmentationModel
from models.checkpoint import Checkpoint
from models.letterbox import Array
from training.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from training.encoded_pictures import BATCH_SIZE, CPU, EncodedPictures, PhotoReader
from training.evaluate import PROTOCOLS, Prompter, count_pixels, every_kth, model_target, select_records
from training.figures import GREY, SERIES, new_figure, outlined, save, show_pictures, style
from training.metrics import class_iou, mean_iou
from training.official_layout import IGNORE, PetRecord, image_path, read_photo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRIP_PX = 260

Step = tuple[str, int]
"""Corruption and severity."""


@dataclass(frozen=True)
class Robustness:
    """One model's scores."""

    model: str
    protocol: str
    classes: int
    photos: int
    mean_iou: Mapping[str, tuple[float, ...]]
    """Corruption -> mean IoU at severity 0, 1, 2, ... with the boundary ignored."""

    def summary(self) -> dict[str, Any]:
        """For robustness.json: the curves, the clean score, the mean of all others, and the share that is kept."""
        clean = next(iter(self.mean_iou.values()))[0]
        corrupted = mean(value for curve in self.mean_iou.values() for value in curve[1:])
        return {
            "protocol": self.protocol,
            "classes": self.classes,
            "photos": self.photos,
            "clean": round(clean, 4),
            "corrupted": round(corrupted, 4),
            "kept": round(corrupted / clean, 4) if clean else 0.0,
            "mean_iou": {name: [round(value, 4) for value in curve] for name, curve in self.mean_iou.items()},
        }


def measure(
    checkpoint: Checkpoint,
    root: Path,
    records: Sequence[PetRecord],
    *,
    device: torch.device = CPU,
    batch_size: int = BATCH_SIZE,
) -> Robustness:
    """Scores under the headline protocol at every corruption and severity; every photo is read once."""
    model = checkpoint.model.to(device)
    protocol, prompter = headline(model)
    classes = len(model.config.class_names)
    clean: Step = (next(iter(CORRUPTIONS)), 0)
    steps = [clean, *product(CORRUPTIONS, SEVERITIES[1:])]
    confusion = {step: torch.zeros(classes, classes, dtype=torch.int64) for step in steps}
    photos = 0
    reader = PhotoReader(root, records)
    for batch in reader.batches(checkpoint.name, batch_size):
        prompts = [prompter(record, photo.label_map) for record, photo in batch]
        targets = [model_target(photo.label_map, classes) for _, photo in batch]
        for step, counts in confusion.items():
            images = [corrupt(photo.image, *step, record.name) for record, photo in batch]
            for mask, target in zip(EncodedPictures(model, images, device).masks(prompts), targets, strict=True):
                counts += count_pixels(mask, target, "ignore", classes)
        photos += len(batch)
    score = {step: float(mean_iou(counts)) for step, counts in confusion.items()}
    curves = {name: (score[clean], *(score[name, severity] for severity in SEVERITIES[1:])) for name in CORRUPTIONS}
    return Robustness(checkpoint.name, protocol, classes, photos, curves)


def headline(model: SegmentationModel) -> tuple[str, Prompter]:
    """The first protocol of the model's kind."""
    return next(iter(PROTOCOLS[model.prompt_kind].items()))


def common_records(
    checkpoints: Sequence[Checkpoint], root: Path, split: str, limit: int | None = None
) -> tuple[PetRecord, ...]:
    """At most `limit` photos of a split, spread evenly over it; the same part for all models, or ValueError."""
    drawn = {
        select_records(
            root,
            split,
            checkpoint.card.training.get("data", {}).get("validation_fraction", 0.1),
            checkpoint.card.training.get("seed", 0),
        )
        for checkpoint in checkpoints
    }
    if len(drawn) != 1:
        raise ValueError(f"got models whose {split} parts differ, wanted one part for all; measure on the test split")
    records = drawn.pop()
    return records if limit is None else every_kth(records, limit)


def write_tables(results: Sequence[Robustness], split: str, out: Path) -> None:
    """robustness.json and robustness.csv."""
    out.mkdir(parents=True, exist_ok=True)
    axes = {
        name: {"title": each.title, "unit": each.unit, "strengths": each.strengths}
        for name, each in CORRUPTIONS.items()
    }
    models = {result.model: result.summary() for result in results}
    report = {"split": split, "boundary": "ignore", "corruptions": axes, "models": models}
    (out / "robustness.json").write_text(json.dumps(report, indent=2) + "\n")
    with (out / "robustness.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "protocol", "corruption", "severity", "strength", "unit", "mean_iou"))
        for result, (name, each) in product(results, CORRUPTIONS.items()):
            for severity, value in enumerate(result.mean_iou[name]):
                row = (name, severity, each.strengths[severity], each.unit, round(value, 4))
                writer.writerow((result.model, result.protocol, *row))


def read_tables(path: Path, split: str, photos: int) -> list[Robustness]:
    """The results in a robustness.json. Raises ValueError where it is of another split or number of photos."""
    report = json.loads(path.read_text())
    results = [
        Robustness(name, each["protocol"], each["classes"], each["photos"], each["mean_iou"])
        for name, each in report["models"].items()
    ]
    if report["split"] != split or any(result.photos != photos for result in results):
        raise ValueError(
            f"{path}: got {sorted({result.photos for result in results})} photos of {report['split']}, wanted the "
            f"{photos} of {split} that are measured now"
        )
    return results


def draw_curves(results: Sequence[Robustness], out: Path) -> None:
    """All corruptions on one page, and each alone; every model in each."""
    columns = 4
    page = new_figure(12.5, 6.2)
    grid = page.subplots(len(CORRUPTIONS) // columns, columns, sharey=True)
    for axes, name in zip(grid.flat, CORRUPTIONS, strict=True):
        _draw_axes(axes, results, name)
    for axes in grid[:, 0]:
        axes.set_ylabel("mean IoU", fontsize=9, color=GREY)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=10)
    for suffix in ("png", "svg"):
        save(page, out / f"curves.{suffix}")
    for name in CORRUPTIONS:
        figure = new_figure(5.6, 3.6)
        axes = figure.subplots()
        _draw_axes(axes, results, name)
        axes.set_ylabel("mean IoU", fontsize=9, color=GREY)
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        save(figure, out / f"{name}.png")


def _draw_axes(axes: "Axes", results: Sequence[Robustness], corruption: str) -> None:
    each = CORRUPTIONS[corruption]
    style(axes, each.title)
    for result, (colour, marker) in zip(results, _series(len(results)), strict=True):
        axes.plot(
            SEVERITIES, result.mean_iou[corruption], color=colour, marker=marker, markersize=4, label=result.model
        )
    axes.set_xticks(SEVERITIES, [f"{strength:g}" for strength in each.strengths])
    axes.set_xlabel(each.unit, fontsize=8, color=GREY)
    axes.set_ylim(0, 1)
    axes.set_yticks(np.linspace(0, 1, 6))


def _series(count: int) -> list[tuple[str, str]]:
    return [SERIES[index % len(SERIES)] for index in range(count)]


def draw_strips(checkpoint: Checkpoint, root: Path, record: PetRecord, path: Path, device: torch.device = CPU) -> None:
    """One photo through all severities of each corruption, a row each, with the model's mask and the animal's IoU."""
    model = checkpoint.model.to(device)
    _, prompter = headline(model)
    photo = read_photo(root, record)
    prompt = prompter(record, photo.label_map)
    columns, aspect = len(SEVERITIES), photo.image.height / photo.image.width
    figure = new_figure(1.9 * columns, (1.84 * aspect + 0.24) * len(CORRUPTIONS) + 0.3)
    title = f"{checkpoint.name} on {record.name}: strength, and IoU of the animal"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", fontweight="bold")
    for row, (name, each) in zip(figure.subplots(len(CORRUPTIONS), columns), CORRUPTIONS.items(), strict=True):
        images = [corrupt(photo.image, name, severity, record.name) for severity in SEVERITIES]
        masks = EncodedPictures(model, images, device).masks([prompt] * columns)
        ious = [animal_iou(mask, photo.label_map, len(model.config.class_names)) for mask in masks]
        captions = [f"{strength:g}   IoU {iou:.2f}" for strength, iou in zip(each.strengths, ious, strict=True)]
        captions[0] = f"{each.title}   IoU {ious[0]:.2f}"
        pictures = [outlined(np.asarray(image), mask, STRIP_PX) for image, mask in zip(images, masks, strict=True)]
        show_pictures(row, pictures, captions)
    save(figure, path)


def animal_iou(mask: Array, label_map: Array, classes: int) -> float:
    """IoU of the animal's own class, in [0, 1], the boundary ignored; a cat painted as a dog scores 0."""
    target = model_target(label_map, classes)
    species = int(target[target != IGNORE].max())
    return float(class_iou(count_pixels(mask, target, "ignore", classes))[species])


def find_record(root: Path, records: Sequence[PetRecord], name: str | None = None) -> PetRecord:
    """The photo `name`, or without one the photo of the most pixels, which shows most."""
    found = [record for record in records if name in (None, record.name)]
    if not found:
        raise ValueError(f"got photo {name!r}, wanted one of these {len(records)}, such as {records[0].name}")
    return max(found, key=lambda record: _pixels(image_path(root, record.name)))


def _pixels(path: Path) -> int:
    """Told from the header; 0 where there is none."""
    try:
        with Image.open(path) as header:
            return header.width * header.height
    except OSError:
        return 0
