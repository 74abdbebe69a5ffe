"""What came of a run, as a folder to look at. Called by `petseg-train report`, and at the end of `train`.

<out>/index.html         one page with everything, pictures included
<out>/metrics.json       scores on the validation part, and the animal's IoU on each photo
<out>/curves.png  confusion.png  best.png  worst.png
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.base import SegmentationModel
from models.checkpoint import Checkpoint, ModelCard, load_checkpoint
from models.prompts import PointPrompt, TextPrompt
from training.encoded_pictures import CPU, EncodedPictures, PhotoReader
from training.evaluate import PROTOCOLS, Evaluated, evaluate_protocols, every_kth, model_target, select_records
from training.figures import GREY, SERIES, new_figure, outlined, save, show_pictures, style
from training.metrics import class_iou
from training.official_layout import PetRecord
from training.run_log import read_log

EXAMPLES = 9
"""Best masks shown, and as many worst."""
_PICTURE_PX = 260
_LABELS = {"loss": "training", "validation_loss": "validation", "mean_iou": "mean IoU"}
_FIGURES = {
    "curves": "Loss and IoU, epoch by epoch, on the prepared squares",
    "confusion": "Where the pixels of each class went",
    "worst": "Worst masks: photo, truth (yellow: the ignored boundary), mask",
    "best": "Best masks: photo, truth, mask",
}


def write_report(
    run: Path, data: Path, out: Path | None = None, *, limit: int | None = None, device: torch.device = CPU
) -> Path:
    """Measure the finished run in the folder `run` on its validation photos of `data`; returns the page's path.

    Raises ValueError where the folder does not hold one checkpoint, or no validation photo can be read.
    """
    out = out or run / "report"
    checkpoint = load_checkpoint(find_checkpoint(run))
    model = checkpoint.model.to(device).to(memory_format=torch.channels_last)
    records = validation_records(checkpoint.card, data)
    records = records if limit is None else every_kth(records, limit)
    results = evaluate_protocols(model, data, records, list(PROTOCOLS[model.prompt_kind]), device=device)
    headline = next(iter(results.values()))
    if headline.photos == 0:
        raise ValueError(f"{data}: none of the {len(records)} validation photos can be read")
    by_photo = photo_ious(headline)
    metrics = {
        "checkpoint": checkpoint.name,
        "split": "validation",
        "protocols": {name: result.summary() for name, result in results.items()},
        "iou_by_photo": dict(sorted(by_photo.items(), key=lambda item: item[1])),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw_curves(read_log(run / "log.csv"), out / "curves.png")
    draw_confusion(headline.confusion["ignore"], headline.class_names, out / "confusion.png")
    order = [record for name in metrics["iou_by_photo"] for record in records if record.name == name]
    count = min(EXAMPLES, -(-len(order) // 2))
    for name, chosen in (("worst", order[:count]), ("best", order[::-1][:count])):
        draw_examples(model, data, chosen, by_photo, out / f"{name}.png", device)
    page = out / "index.html"
    page.write_text(render_page(checkpoint, metrics, out), encoding="utf-8")
    return page


def find_checkpoint(run: Path) -> Path:
    """The checkpoint that a run leaves in its folder, beside those of its earlier stages."""
    paths = sorted(run.glob("*.safetensors"))
    found = [path for path in paths if not any(path.stem.startswith(f"{other.stem}-") for other in paths)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{run}: got checkpoints {names}, wanted one; finish the run with petseg-train train")
    return found[0]


def validation_records(card: ModelCard, data: Path) -> tuple[PetRecord, ...]:
    """The photos that chose this run's best epoch."""
    fraction = card.training.get("data", {}).get("validation_fraction", 0.1)
    return select_records(data, "validation", fraction, card.training.get("seed", 0))


def photo_ious(result: Evaluated) -> dict[str, float]:
    """Photo -> IoU of the animal's own class, in [0, 1], boundary ignored; a cat painted as a dog scores 0."""
    confusions = result.by_photo["ignore"]
    animals = confusions.sum(2)[:, 1:].argmax(1) + 1  # the one animal class that the truth holds
    ious = class_iou(confusions)[torch.arange(len(animals)), animals]
    return {name: round(float(iou), 4) for name, iou in zip(result.photo_names, ious, strict=True)}


def draw_curves(rows: Sequence[dict[str, str]], path: Path) -> None:
    """For each stage its losses and, where it has them, its IoUs; the epoch that was kept is marked."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    if not stages:
        raise ValueError(f"{path}: got a log without epochs, wanted the log.csv of a run")
    figure = new_figure(10, 3.2 * len(stages))
    for (left, right), stage in zip(figure.subplots(len(stages), 2, squeeze=False), stages, strict=True):
        of_stage = [row for row in rows if row["stage"] == stage]
        style(left, f"{stage}: loss")
        style(right, f"{stage}: IoU on validation")
        losses = {name: values for name in ("loss", "validation_loss") if (values := _column(of_stage, name))}
        ious = {name.split("/")[-1]: values for name in _iou_columns(of_stage) if (values := _column(of_stage, name))}
        for axes, lines in ((left, losses), (right, ious)):
            for (name, values), (colour, _) in zip(lines.items(), SERIES, strict=False):
                strong = name in ("loss", "validation_loss", "mean_iou")
                axes.plot(
                    *zip(*values, strict=True), color=colour, lw=2 if strong else 1, label=_LABELS.get(name, name)
                )
            axes.set_xlabel("epoch", fontsize=8, color=GREY)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if len(lines) > 1:
                axes.legend(frameon=False, fontsize=8)
        left.set_ylim(bottom=0)
        if ious:
            best = max(ious["mean_iou"], key=lambda point: point[1])
            right.plot(*best, "o", color=SERIES[0][0])
            right.annotate(
                f"{best[1]:.4f}", best, (0, 7), textcoords="offset points", ha="right", fontsize=9, color=SERIES[0][0]
            )
        else:
            right.set_visible(False)
    save(figure, path)


def _iou_columns(rows: Sequence[dict[str, str]]) -> list[str]:
    return [name for name in rows[0] if name == "mean_iou" or name.startswith("iou/")]


def _column(rows: Sequence[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """(epoch, value) of the epochs that measured it."""
    return [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name)]


def draw_confusion(confusion: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Of all pixels of each true class, the share predicted as each class, in %."""
    counts = confusion.double()
    shares = (100 * counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    classes = range(len(class_names))
    figure = new_figure(5.4, 3.8)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row in classes:
        for column in classes:
            ink = "white" if shares[row, column] > 55 else "#222222"
            axes.text(column, row, f"{shares[row, column]:.1f} %", ha="center", va="center", color=ink)
    axes.set_xticks(classes, class_names)
    totals = [f"{int(total):,} px" for total in counts.sum(1)]
    axes.set_yticks(classes, [f"true {name}\n{total}" for name, total in zip(class_names, totals, strict=True)])
    axes.set_xlabel("predicted", color=GREY)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)


def draw_examples(
    model: SegmentationModel,
    data: Path,
    records: Sequence[PetRecord],
    by_photo: dict[str, float],
    path: Path,
    device: torch.device = CPU,
) -> None:
    """Photo, truth and headline mask of each record side by side, three records a row; prompts are shown."""
    prompter = next(iter(PROTOCOLS[model.prompt_kind].values()))
    per_row = min(3, len(records))
    rows = -(-len(records) // per_row)
    figure = new_figure(1.65 * 3 * per_row, 1.95 * rows)
    grid = figure.subplots(rows, 3 * per_row, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    places = iter(grid.reshape(-1, 3))
    for batch in PhotoReader(data, records).batches(path.stem):
        prompts = [prompter(record, photo.label_map) for record, photo in batch]
        masks = EncodedPictures(model, [photo.image for _, photo in batch], device).masks(prompts)
        for (record, photo), prompt, mask, axes in zip(batch, prompts, masks, places, strict=False):
            image = np.asarray(photo.image)
            target = model_target(photo.label_map, len(model.config.class_names))
            empty = np.zeros_like(mask)
            pictures = [outlined(image, each, _PICTURE_PX) for each in (empty, target, mask)]
            said = prompt.text if isinstance(prompt, TextPrompt) else ""
            show_pictures(axes, pictures, (record.name, said, f"IoU {by_photo[record.name]:.2f}"))
            if isinstance(prompt, PointPrompt):
                scale = _PICTURE_PX / max(mask.shape)
                x, y = zip(*prompt.points, strict=True)
                axes[2].scatter(np.array(x) * scale, np.array(y) * scale, s=22, c="#28c83c", edgecolors="white")
    save(figure, path)


def render_page(checkpoint: Checkpoint, metrics: dict[str, Any], folder: Path) -> str:
    """The page as one HTML file without anything outside it: tables, and the figures of `folder`."""
    card = checkpoint.card
    facts = {
        "architecture": card.architecture,
        "summary": card.summary,
        "best epoch": f"mean IoU {card.metrics.get('validation', {}).get('mean_iou', '-')} on the prepared squares",
        "trained on": f"{card.data.get('train', '-')} photos, {card.data.get('validation', '-')} kept for validation",
        "commit": card.git_commit or "-",
        "file": f"sha256 {checkpoint.digest}",
    }
    listed = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    figures = "".join(
        f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{_base64(folder / f"{name}.png")}">'
        for name, title in _FIGURES.items()
    )
    recipe = html.escape(json.dumps(card.training, indent=2))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(checkpoint.name)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(checkpoint.name)}</h1><table>{listed}</table>"
        f"<h2>Scores on the validation part, at each photo's own size</h2>{_score_table(metrics['protocols'])}"
        f"{figures}<details><summary>Recipe</summary><pre>{recipe}</pre></details></html>\n"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h2{font-size:1.1rem;margin-top:2rem}img{max-width:100%}table{border-collapse:collapse}"
    "th,td{padding:.25rem .8rem .25rem 0;text-align:left;border-bottom:1px solid #e6e6e6;font-weight:normal}"
    "th{color:#666}pre{background:#f6f6f6;padding:1rem;overflow:auto}"
)


def _score_table(protocols: dict[str, dict[str, Any]]) -> str:
    head = (
        "protocol",
        "boundary",
        "photos",
        "mean IoU",
        "95 % interval",
        "IoU of each class",
        "Dice",
        "pixel accuracy",
    )
    lines = ["".join(f"<th>{each}</th>" for each in head)]
    for name, result in protocols.items():
        for boundary in ("ignore", "background"):
            scored = result[f"boundary_{boundary}"]
            low, high = scored["mean_iou_interval"]
            classes = ", ".join(f"{each} {value:.3f}" for each, value in scored["iou"].items())
            cells: tuple[object, ...] = (
                name,
                boundary,
                result["photos"],
                f"<b>{scored['mean_iou']:.4f}</b>",
                f"{low:.3f} to {high:.3f}",
            )
            cells += (classes, f"{scored['dice']:.4f}", f"{scored['pixel_accuracy']:.4f}")
            lines.append("".join(f"<td>{each}</td>" for each in cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
