"""All checkpoints of a folder side by side, beside what the study published, as one generated Markdown page.

Quality comes from what `petseg-train evaluate --record` wrote into the cards, robustness from the JSON that
`petseg-train robustness` wrote; sizes and latency are measured now. Called by `petseg-train compare`.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from models.checkpoint import Checkpoint, load_checkpoint
from training.costs import Costs, describe_timing, measure_costs
from training.evaluate import MIXED_SHARE, PROTOCOLS

TABLE_START, TABLE_END = "<!-- table:start -->", "<!-- table:end -->"
"""Lines of a README between which `replace_table` writes."""
EMPTY = "-"


@dataclass(frozen=True)
class Published:
    """A row of the study's table (SPEC section 4)."""

    mean_iou: float
    iou: tuple[float, ...]
    """Background, cat, dog; () where it was not published."""
    dice: float
    pixel_accuracy: float


STUDY = {
    ("unet", "image"): Published(0.79, (0.93, 0.70, 0.73), 0.876, 0.935),
    ("autoencoder", "image"): Published(0.46, (0.84, 0.19, 0.36), 0.59, 0.814),
    ("clip", "true_breed"): Published(0.89, (0.96, 0.87, 0.85), 0.943, 0.967),
    ("prompt", "one_click"): Published(0.83, (), 0.90, 0.952),
}
"""By architecture and by the protocol that the study used."""

PROTOCOL_TITLES = {
    "image": "",
    "self_picked": "prompt picked by itself",
    "true_breed": "true breed given",
    "neutral": '"a photo of a pet"',
    "one_click": "one click",
}


@dataclass(frozen=True)
class Compared:
    """One model's line."""

    checkpoint: Checkpoint
    costs: Costs

    @property
    def test(self) -> dict[str, Any]:
        """What the card holds of the test list."""
        scores: dict[str, Any] = self.checkpoint.card.metrics.get("test", {})
        return scores

    def rows(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(protocol, what is shown of it, scores), the headline first; one empty row for a model not measured."""
        protocols = PROTOCOLS[self.checkpoint.model.prompt_kind]
        measured = [name for name in protocols if name in self.test]
        for name in measured or list(protocols)[:1]:
            yield name, PROTOCOL_TITLES.get(name, name), self.test.get(name, {})
        after_clicks = self.test.get("clicks", {}).get("after_clicks", {})
        for count, scored in after_clicks.items():
            # The first of them is the headline once more, drawn in another way.
            if count != "1":
                yield f"{count}_clicks", f"{count} clicks", scored

    @property
    def headline(self) -> float:
        """Mean IoU of the first row, 0 where it was not measured."""
        _, _, scored = next(self.rows())
        return float(scored.get("boundary_ignore", {}).get("mean_iou", 0.0))


def compare(folder: Path, *, repeats: int = 30) -> list[Compared]:
    """All checkpoints of `folder`, the best headline first."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder}: got no *.safetensors, wanted a folder of checkpoints")
    compared = []
    for path in paths:
        checkpoint = load_checkpoint(path)
        compared.append(Compared(checkpoint, measure_costs(checkpoint.model, path.stat().st_size, repeats)))
    return sorted(compared, key=lambda each: -each.headline)


def summary_table(compared: Sequence[Compared]) -> str:
    """The table for a README: each model and way of asking, with the study's figure beside ours."""
    head = ("model", "study", "mean IoU", "95 % interval", "boundary as background", "Dice", "pixels right")
    costs = ("own parameters", "file", "one photo")
    rows = []
    for each in compared:
        for position, (protocol, title, scored) in enumerate(each.rows()):
            ignore, background = scored.get("boundary_ignore", {}), scored.get("boundary_background", {})
            study = STUDY.get((each.checkpoint.card.architecture, protocol))
            low_high = ignore.get("mean_iou_interval")
            quality = (
                f"`{each.checkpoint.name}`" + (f", {title}" if title else ""),
                f"{study.mean_iou:.2f}" if study else EMPTY,
                f"**{ignore['mean_iou']:.3f}**" if ignore else EMPTY,
                f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else EMPTY,
                *(_three(value) for value in (background.get("mean_iou"), ignore.get("dice"))),
                _three(ignore.get("pixel_accuracy")),
            )
            spent = (
                f"{each.costs.own_parameters / 1e6:.2f} M",
                f"{each.costs.file_bytes / 1e6:.1f} MB",
                f"{each.costs.latency_ms:.0f} ms",
            )
            rows.append((*quality, *(spent if position == 0 else ("", "", ""))))
    return markdown_table((*head, *costs), rows)


def class_table(compared: Sequence[Compared]) -> str:
    """IoU of each class and of the outline, under both boundary protocols, the study's row above ours."""
    head = ("model", "asked", "boundary", "mean IoU", "background / cat / dog", "Dice", "pixels right", "boundary IoU")
    rows: list[tuple[str, ...]] = []
    for each in compared:
        name, architecture = f"`{each.checkpoint.name}`", each.checkpoint.card.architecture
        for protocol, title, scored in each.rows():
            if study := STUDY.get((architecture, protocol)):
                ious = " / ".join(f"{value:.2f}" for value in study.iou) or EMPTY
                figures = (f"{study.mean_iou:.2f}", ious, _three(study.dice), _three(study.pixel_accuracy), EMPTY)
                rows.append((f"{architecture}, study", title, "as background", *figures))
            for boundary, said in (("boundary_ignore", "ignored"), ("boundary_background", "as background")):
                if found := scored.get(boundary):
                    ious = " / ".join(f"{value:.3f}" for value in found.get("iou", {}).values()) or EMPTY
                    outline = scored.get("boundary_iou", {}).get("mean") if boundary == "boundary_ignore" else None
                    rest = (_three(found.get("dice")), _three(found.get("pixel_accuracy")), _three(outline))
                    rows.append((name, title, said, _three(found["mean_iou"]), ious, *rest))
    return markdown_table(head, rows, texts=3)


def further_lines(compared: Sequence[Compared]) -> list[str]:
    """What the scores of one mask for each photo do not say, a list item each."""
    lines = []
    for each in compared:
        name, test = f"`{each.checkpoint.name}`", each.test
        for stage, measured in each.checkpoint.card.metrics.get("stages", {}).items():
            ious = [
                measured["test"]["image"][f"boundary_{boundary}"]["mean_iou"] for boundary in ("ignore", "background")
            ]
            lines.append(
                f"- {name}, trained as `{stage}`: mean IoU {ious[0]:.3f}, boundary as background {ious[1]:.3f}."
            )
        for _, title, scored in each.rows():
            if mixed := scored.get("mixed_species"):
                asked = f", {title}" if title else ""
                lines.append(
                    f"- {name}{asked}: one animal painted as two species (over {100 * MIXED_SHARE:.0f} % of it) on "
                    f"{100 * mixed['mean']:.1f} % of photos."
                )
        if absent := test.get("absent"):
            share, covered = absent["answered_with_nothing"]["mean"], absent["animal_covered"]["mean"]
            lines.append(
                f"- {name}, asked for the species that is not there: an empty mask on {100 * share:.1f} % of photos; "
                f"{100 * covered:.1f} % of the wrong animal taken."
            )
        for kind, found in test.get("collages", {}).items():
            lines.append(
                f"- {name}, two animals in one picture, named {kind.replace('_', ' ')}: the right one in "
                f"{100 * found['accuracy']['mean']:.1f} % of {found['collages']} collages, "
                f"mean IoU {found['mean_iou']:.3f}."
            )
        for goal, needed in test.get("clicks", {}).get("noc", {}).items():
            lines.append(
                f"- {name}, clicks until IoU {goal} % (NoC@{goal}): {needed['mean']:.2f} on average; "
                f"never reached on {100 * needed['failed']:.1f} % of photos."
            )
        if border := test.get("clicks", {}).get("border_click"):
            lines.append(
                f"- {name}, first click near the outline: mean IoU {border['mean_iou']:.3f}, "
                f"{border['drop']:.3f} lower."
            )
    return lines


def robustness_table(report: dict[str, Any]) -> str:
    """Mean IoU on clean photos, the mean over the severities of each corruption, over all, and the share kept."""
    head = ("model", "clean", *(each["title"] for each in report["corruptions"].values()), "all", "kept")
    rows = [
        (
            f"`{name}`",
            _three(found["clean"]),
            *(_three(mean(found["mean_iou"][corruption][1:])) for corruption in report["corruptions"]),
            f"**{found['corrupted']:.3f}**",
            f"{100 * found['kept']:.0f} %",
        )
        for name, found in report["models"].items()
    ]
    return markdown_table(head, rows)


def cost_table(compared: Sequence[Compared]) -> str:
    """Sizes and latencies."""
    head = ("model", "input", "own parameters", "with backbone", "file", "backbone file", "one photo", "next prompt")
    rows = [
        (
            f"`{each.checkpoint.name}`",
            f"{each.checkpoint.model.config.image_size} px",
            f"{each.costs.own_parameters / 1e6:.2f} M",
            f"{each.costs.parameters / 1e6:.2f} M",
            f"{each.costs.file_bytes / 1e6:.1f} MB",
            EMPTY if each.costs.backbone_bytes is None else f"{each.costs.backbone_bytes / 1e6:.1f} MB, shared",
            f"{each.costs.latency_ms:.1f} ms",
            EMPTY if each.costs.next_prompt_ms is None else f"{each.costs.next_prompt_ms:.1f} ms",
        )
        for each in compared
    ]
    return markdown_table(head, rows)


def render_page(compared: Sequence[Compared], robustness: dict[str, Any] | None = None, curves: str = "") -> str:
    """The whole page; `curves` is where its picture of the robustness curves lies."""
    photos = sorted({scored["photos"] for each in compared for _, _, scored in each.rows() if "photos" in scored})
    data = sorted({each.test["data"] for each in compared if "data" in each.test})
    counted = f", {' and '.join(map(str, photos))} photos" if photos else ""
    sections = [
        "# All models side by side",
        "Generated by `petseg-train compare`; do not edit. Quality is what `petseg-train evaluate --record` wrote into "
        f"each checkpoint's card: {', '.join(data) or 'nothing measured yet'}{counted}, at each photo's own size, all "
        "pixels in one confusion matrix, boundary pixels ignored unless said otherwise. The study's figures took the "
        "boundary for background, and its `clip` was given the true breed; its full-size networks stand beside our "
        "compact ones.",
        summary_table(compared),
        "## Each class, both boundary protocols",
        "With two classes (clicks) the columns are background / the clicked animal. Boundary IoU: of the outline's "
        "surroundings, mean over photos.",
        class_table(compared),
    ]
    if lines := further_lines(compared):
        sections += ["## Beyond one mask", "\n".join(lines)]
    if robustness:
        count = " or ".join(map(str, sorted({found["photos"] for found in robustness["models"].values()})))
        sections += [
            "## Robustness",
            f"Mean IoU on {count} photos ({robustness['split']}), clean and then as the mean over five strengths of "
            "each distortion; `all` is the mean of the eight, `kept` its share of the clean score.",
            robustness_table(robustness),
            *([f"![Mean IoU against the strength of each distortion]({curves})"] if curves else []),
        ]
    sections += ["## Size and latency", describe_timing(), cost_table(compared)]
    return "\n\n".join(sections) + "\n"


def write_page(
    compared: Sequence[Compared], out: Path, *, robustness: Path | None = None, readmes: Sequence[Path] = ()
) -> None:
    """Write the page, and the table into other documents that have its markers."""
    report = json.loads(robustness.read_text()) if robustness else None
    picture = robustness.with_name("curves.svg") if robustness else None
    curves = Path(os.path.relpath(picture, out.parent)).as_posix() if picture and picture.exists() else ""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render_page(compared, report, curves), encoding="utf-8")
    for readme in readmes:
        text = replace_table(readme.read_text(encoding="utf-8"), f"{summary_table(compared)}\n\n{describe_timing()}")
        readme.write_text(text, encoding="utf-8")


def replace_table(text: str, table: str) -> str:
    """`text` with what stands between the two markers replaced. Raises ValueError without exactly one of each."""
    if text.count(TABLE_START) != 1 or text.count(TABLE_END) != 1 or text.index(TABLE_END) < text.index(TABLE_START):
        raise ValueError(f"got no single {TABLE_START} followed by one {TABLE_END}, wanted both lines in the README")
    before, _, rest = text.partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    return f"{before}{TABLE_START}\n\n{table}\n\n{TABLE_END}{after}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; its first `texts` columns to the left, the others to the right."""
    rules = ["---" if column < texts else "---:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rules, *rows))


def _three(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.3f}"
