import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from models.checkpoint import Checkpoint, ModelCard, load_checkpoint, read_card, update_card
from tests.fakes import ClickModel, TextModel, fake_checkpoint
from training.cli import app
from training.comparison import (
    Compared,
    class_table,
    compare,
    further_lines,
    markdown_table,
    replace_table,
    summary_table,
)
from training.costs import Costs, describe_timing, measure_costs

COSTS = Costs(1_500_000, 9_000_000, 3_100_000, None, 12.4, 3.2)


def scored(mean_iou: float, **more: Any) -> dict[str, Any]:
    return {
        "photos": 7,
        "boundary_ignore": {
            "mean_iou": mean_iou,
            "mean_iou_interval": [mean_iou - 0.01, mean_iou + 0.01],
            "iou": {"background": 0.9, "cat": 0.8, "dog": 0.7},
            "dice": 0.95,
            "pixel_accuracy": 0.97,
        },
        "boundary_background": {"mean_iou": mean_iou - 0.125, "iou": {"background": 0.8}, "dice": 0.9},
        **more,
    }


def with_test(checkpoint: Checkpoint, architecture: str, test: dict[str, Any]) -> Checkpoint:
    card = checkpoint.card.model_copy(update={"architecture": architecture, "metrics": {"test": test}})
    return dataclasses.replace(checkpoint, card=card)


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.fixture
def clicks() -> Compared:
    test = {
        "data": "Drawn pets, test list",
        "one_click": scored(0.75),
        "clicks": {
            "after_clicks": {"1": scored(0.7), "3": {"boundary_ignore": {"mean_iou": 0.875}}},
            "noc": {"90": {"mean": 2.25, "failed": 0.125}},
            "border_click": {"mean_iou": 0.5, "drop": 0.25},
        },
    }
    return Compared(with_test(fake_checkpoint(ClickModel, "prompt"), "prompt", test), COSTS)


def test_the_studys_row_stands_beside_ours(clicks: Compared) -> None:
    first, third = rows_of(summary_table([clicks]))
    assert first[:7] == ["`prompt`, one click", "0.83", "**0.750**", "0.740 to 0.760", "0.625", "0.950", "0.970"]
    assert first[7:] == ["1.50 M", "3.1 MB", "12 ms"]
    assert third == ["`prompt`, 3 clicks", "-", "**0.875**", *["-"] * 4, "", "", ""]


def test_the_study_gave_clip_the_true_breed() -> None:
    test = {"self_picked": scored(0.5), "true_breed": scored(0.75)}
    clip = Compared(with_test(fake_checkpoint(TextModel, "clip"), "clip", test), COSTS)
    assert [row[:2] for row in rows_of(summary_table([clip]))] == [
        ["`clip`, prompt picked by itself", "-"],
        ["`clip`, true breed given", "0.89"],
    ]
    study = next(row for row in rows_of(class_table([clip])) if row[0] == "clip, study")
    assert study == [
        "clip, study",
        "true breed given",
        "as background",
        "0.89",
        "0.96 / 0.87 / 0.85",
        "0.943",
        "0.967",
        "-",
    ]


def test_each_class_under_both_boundary_protocols(unet: Checkpoint) -> None:
    test = {"image": scored(0.875, boundary_iou={"mean": 0.625})}
    study, ignored, background = rows_of(class_table([Compared(with_test(unet, "unet", test), COSTS)]))
    assert study[0] == "unet, study"
    assert ignored[2:] == ["ignored", "0.875", "0.900 / 0.800 / 0.700", "0.950", "0.970", "0.625"]
    assert background[2:] == ["as background", "0.750", "0.800", "0.900", "-", "-"]


def test_prompts_beyond_the_first_are_told(clicks: Compared) -> None:
    needed, border = further_lines([clicks])
    assert "(NoC@90): 2.25 on average; never reached on 12.5 % of photos" in needed
    assert "mean IoU 0.500, 0.250 lower" in border
    test = {
        "absent": {"answered_with_nothing": {"mean": 0.75}, "animal_covered": {"mean": 0.125}},
        "collages": {"by_breed": {"collages": 8, "accuracy": {"mean": 0.5}, "mean_iou": 0.25}},
    }
    absent, collages = further_lines([Compared(with_test(fake_checkpoint(TextModel, "clip"), "clip", test), COSTS)])
    assert "an empty mask on 75.0 % of photos; 12.5 % of the wrong animal taken" in absent
    assert "named by breed: the right one in 50.0 % of 8 collages, mean IoU 0.250" in collages


def test_mixed_species_are_told(unet: Checkpoint) -> None:
    test = {"image": scored(0.875, mixed_species={"mean": 0.0625})}
    (line,) = further_lines([Compared(with_test(unet, "unet", test), COSTS)])
    assert line == "- `unet`: one animal painted as two species (over 5 % of it) on 6.2 % of photos."


def test_an_earlier_stage_is_told(unet: Checkpoint) -> None:
    checkpoint = with_test(unet, "unet", {"image": scored(0.875)})
    checkpoint.card.metrics["stages"] = {"unet-first": {"test": {"image": scored(0.75)}}}
    (line,) = further_lines([Compared(checkpoint, COSTS)])
    assert line == "- `unet`, trained as `unet-first`: mean IoU 0.750, boundary as background 0.625."


def test_a_model_not_measured_has_a_row_of_dashes(unet: Checkpoint) -> None:
    (row,) = rows_of(summary_table([Compared(unet, COSTS)]))
    assert row == ["`unet`", "0.79", *["-"] * 5, "1.50 M", "3.1 MB", "12 ms"]


def test_costs_are_counted(unet: Checkpoint) -> None:
    costs = measure_costs(unet.model, 1234, repeats=3)
    assert costs.parameters == costs.own_parameters == sum(p.numel() for p in unet.model.parameters())
    assert (costs.file_bytes, costs.backbone_bytes, costs.next_prompt_ms) == (1234, None, None)
    assert costs.latency_ms > 0


def test_a_frozen_backbone_is_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fake_checkpoint(ClickModel, "click").model
    model.add_module("head", torch.nn.Linear(2, 3))
    model.add_module("backbone", torch.nn.Linear(4, 5))
    monkeypatch.setattr(ClickModel, "frozen", ("backbone",))
    costs = measure_costs(model, 1, repeats=1)
    assert (costs.own_parameters, costs.parameters) == (9, 34)
    assert costs.next_prompt_ms is not None


def test_timing_names_its_threads() -> None:
    count = torch.get_num_threads()
    assert f", {count} thread{'s' * (count > 1)} (of " in describe_timing()


def test_only_what_is_between_the_markers_is_replaced() -> None:
    text = "before\n<!-- table:start -->\nold\n<!-- table:end -->\nafter\n"
    wanted = "before\n<!-- table:start -->\n\n| new |\n\n<!-- table:end -->\nafter\n"
    assert replace_table(text, "| new |") == wanted
    assert replace_table(wanted, "| new |") == wanted
    for broken in ("", text + text, "<!-- table:end --><!-- table:start -->"):
        with pytest.raises(ValueError, match="wanted both lines in the README"):
            replace_table(broken, "| new |")


def test_a_table_of_two_columns() -> None:
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_one_command_writes_the_page_and_the_readme(checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, mean_iou in (("worse", 0.5), ("better", 0.75)):
        path = folder / f"{name}.safetensors"
        shutil.copy(checkpoint_folder / "unet.safetensors", path)
        metrics = {"test": {"data": "Drawn pets, test list", "image": scored(mean_iou)}}
        update_card(path, read_card(path).model_copy(update={"metrics": metrics}))
    report = {
        "split": "test",
        "corruptions": {"occlusion": {"title": "Occlusion"}},
        "models": {
            "better": {
                "photos": 5,
                "clean": 0.75,
                "corrupted": 0.375,
                "kept": 0.5,
                "mean_iou": {"occlusion": [0.75, 0.5, 0.25]},
            }
        },
    }
    (tmp_path / "curves.svg").write_text("<svg/>")
    (tmp_path / "robustness.json").write_text(json.dumps(report))
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "comparison.md"
    readme.write_text("# Pets\n<!-- table:start -->\n<!-- table:end -->\nthe end\n")
    options = ["--out", str(page), "--readme", str(readme), "--robustness", str(tmp_path / "robustness.json")]
    result = CliRunner().invoke(app, ["compare", str(folder), *options])
    assert result.exit_code == 0, result.output
    table = summary_table(compare(folder, repeats=1)).splitlines()
    assert [line.split(" | ")[:3] for line in table[2:]] == [
        ["| `better`", "0.79", "**0.750**"],
        ["| `worse`", "0.79", "**0.500**"],
    ]
    text = page.read_text()
    assert "Drawn pets, test list, 7 photos, at each photo's own size" in text
    assert "| `better` | 0.750 | 0.375 | **0.375** | 50 % |" in text
    assert "(../curves.svg)" in text
    assert str(tmp_path) not in text
    assert "| `better` | 0.79 | **0.750** |" in readme.read_text()
    assert readme.read_text().endswith("<!-- table:end -->\nthe end\n")


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got no \*\.safetensors"):
        compare(tmp_path)


def test_a_real_card_reads_back(checkpoint_folder: Path) -> None:
    (only,) = compare(checkpoint_folder, repeats=1)
    assert only.checkpoint.digest == load_checkpoint(checkpoint_folder / "unet.safetensors").digest
    assert isinstance(only.checkpoint.card, ModelCard)
    assert only.headline == 0.0
