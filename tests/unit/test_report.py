import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from typer.testing import CliRunner

from models.checkpoint import load_checkpoint
from models.letterbox import Array
from tests.fakes import ClickModel, fake_checkpoint
from training.cli import app
from training.config import TrainConfig
from training.evaluate import evaluate
from training.metrics import mean_iou
from training.official_layout import PetRecord, read_records
from training.report import draw_curves, draw_examples, find_checkpoint, photo_ious, validation_records, write_report
from training.robustness import animal_iou
from training.run_log import read_log
from training.train import Run, train

TINY = {
    "architecture": "unet",
    "model": {"image_size": 32, "widths": [4, 8]},
    "data": {"validation_fraction": 0.25},
    "stages": [{"epochs": 2, "batch_size": 4}],
}


@pytest.fixture(scope="module")
def run(raw_pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Only its report/ may be written to."""
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig.model_validate(TINY)
    checkpoint = train(
        Run("tiny", config, raw_pets, folder / "prepared", folder / "run"), Fabric(accelerator="cpu", devices=1)
    )
    return checkpoint.parent


def test_the_report_holds_what_evaluation_gives(run: Path, raw_pets: Path, tmp_path: Path) -> None:
    page = write_report(run, raw_pets, tmp_path / "report")
    assert {path.name for path in page.parent.iterdir()} == {
        *("index.html", "metrics.json", "curves.png", "confusion.png", "best.png", "worst.png")
    }
    checkpoint = load_checkpoint(run / "tiny.safetensors")
    records = validation_records(checkpoint.card, raw_pets)
    ious: dict[str, float] = {}

    def judge(record: PetRecord, mask: Array, target: Array) -> None:
        ious[record.name] = animal_iou(mask, target, 3)

    result = evaluate(checkpoint.model, raw_pets, records, "image", on_mask=judge)
    metrics = json.loads((page.parent / "metrics.json").read_text())
    scored = metrics["protocols"]["image"]
    assert scored["photos"] == len(records) == 6
    assert scored["boundary_ignore"]["mean_iou"] == round(float(mean_iou(result.confusion["ignore"])), 4)
    assert metrics["iou_by_photo"] == pytest.approx(ious, abs=1e-4)
    assert [*metrics["iou_by_photo"].values()] == sorted(metrics["iou_by_photo"].values())
    assert photo_ious(result) == metrics["iou_by_photo"]


def test_the_page_needs_no_other_file(run: Path, raw_pets: Path, tmp_path: Path) -> None:
    text = write_report(run, raw_pets, tmp_path).read_text()
    assert len(re.findall(r'src="data:image/png;base64,', text)) == text.count("<img") == 4
    scored = json.loads((tmp_path / "metrics.json").read_text())["protocols"]["image"]["boundary_ignore"]
    assert f"<b>{scored['mean_iou']:.4f}</b>" in text
    assert load_checkpoint(run / "tiny.safetensors").digest in text


def test_the_command_writes_into_the_run(run: Path, raw_pets: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(run), "--data", str(raw_pets), "--limit", "3"])
    assert result.exit_code == 0, result.output
    assert json.loads((run / "report" / "metrics.json").read_text())["protocols"]["image"]["photos"] == 3


def test_training_ends_with_a_report_unless_told_not_to(raw_pets: Path, tmp_path: Path) -> None:
    shared = ["train", "unet-compact", "--smoke", "--data", str(raw_pets), "--prepared", str(tmp_path / "prepared")]
    for name, options in (("with", []), ("without", ["--no-report"])):
        result = CliRunner().invoke(app, [*shared, "--out", str(tmp_path / name), *options])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "with" / "report" / "index.html").exists()
    assert not (tmp_path / "without" / "report").exists()


def test_curves_of_stages_that_measure_different_things(tmp_path: Path) -> None:
    rows = [
        {"stage": "reconstruction", "epoch": "1", "loss": "0.5", "validation_loss": "0.4", "mean_iou": ""},
        {"stage": "segmentation", "epoch": "1", "loss": "2.0", "validation_loss": "", "mean_iou": "0.5"},
        {"stage": "segmentation", "epoch": "2", "loss": "1.0", "validation_loss": "", "mean_iou": "0.25"},
    ]
    sizes = []
    for name, chosen in (("both", rows), ("last", rows[1:])):
        draw_curves(chosen, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            sizes.append(image.size)
    assert sizes[0][1] == 2 * sizes[1][1]
    with pytest.raises(ValueError, match="a log without epochs"):
        draw_curves(read_log(tmp_path / "log.csv"), tmp_path / "none.png")


def test_clicks_are_drawn_on_the_mask(raw_pets: Path, tmp_path: Path) -> None:
    records = read_records(raw_pets, "test")[:2]
    model = fake_checkpoint(ClickModel, "click").model
    draw_examples(model, raw_pets, records, {record.name: 0.5 for record in records}, tmp_path / "best.png")
    with Image.open(tmp_path / "best.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert (0x28, 0xC8, 0x3C) in colours


def test_per_photo_scores_do_not_forgive_the_wrong_animal(run: Path, raw_pets: Path) -> None:
    model = load_checkpoint(run / "tiny.safetensors").model
    result = evaluate(model, raw_pets, read_records(raw_pets, "test")[:1], "image")
    confusion = torch.tensor([[[50, 0, 0], [0, 0, 0], [10, 30, 10]]])  # a dog painted as a cat for the most part
    judged = replace(result, by_photo={"ignore": confusion, "background": confusion})
    assert [*photo_ious(judged).values()] == [0.2]


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got checkpoints none, wanted one"):
        find_checkpoint(tmp_path)
