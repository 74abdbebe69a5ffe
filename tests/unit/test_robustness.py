import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from models.checkpoint import Checkpoint, ModelCard, save_checkpoint
from tests.fakes import ClickModel, ColourModel, fake_checkpoint
from training.cli import app
from training.corruptions import CORRUPTIONS, SEVERITIES
from training.evaluate import evaluate
from training.metrics import mean_iou
from training.official_layout import read_records
from training.robustness import (
    Robustness,
    animal_iou,
    common_records,
    draw_strips,
    find_record,
    measure,
    read_tables,
    write_tables,
)


def test_the_clean_score_is_the_evaluated_one(unet: Checkpoint, raw_pets: Path) -> None:
    records = read_records(raw_pets, "test")[:4]
    result = measure(unet, raw_pets, records)
    wanted = float(mean_iou(evaluate(unet.model, raw_pets, records, "image").confusion["ignore"]))
    assert {curve[0] for curve in result.mean_iou.values()} == {wanted}
    assert result.photos == 4
    assert [*result.mean_iou] == [*CORRUPTIONS]
    assert all(len(curve) == len(SEVERITIES) for curve in result.mean_iou.values())
    assert len({value for curve in result.mean_iou.values() for value in curve}) > 20


def test_a_click_model_is_asked_its_headline_protocol(raw_pets: Path) -> None:
    checkpoint = fake_checkpoint(ClickModel, "click")
    result = measure(checkpoint, raw_pets, read_records(raw_pets, "test")[:3])
    assert (result.protocol, result.classes) == ("one_click", 2)
    # The disc around the click hardly looks at the pixels, so no distortion moves it.
    assert np.ptp(result.mean_iou["contrast_down"]) < 0.02


def test_summary_sets_the_corrupted_beside_the_clean() -> None:
    curves = {"gaussian_noise": (0.8, 0.6, 0.4), "occlusion": (0.8, 0.5, 0.1)}
    summary = Robustness("unet", "image", 3, 7, curves).summary()
    assert (summary["clean"], summary["corrupted"], summary["kept"]) == (0.8, 0.4, 0.5)


def test_the_same_photos_for_all_models(unet: Checkpoint, raw_pets: Path) -> None:
    other = Checkpoint("other", unet.model, unet.card.model_copy(update={"training": {"seed": 5}}), "0")
    assert len(common_records([unet, other], raw_pets, "test")) == 12
    assert len(common_records([unet, other], raw_pets, "test", 5)) <= 5
    assert common_records([unet], raw_pets, "validation")
    with pytest.raises(ValueError, match="validation parts differ"):
        common_records([unet, other], raw_pets, "validation")


def test_animal_iou_of_four_pixels() -> None:
    label_map = np.array([[0, 2, 2, 255]], np.uint8)
    assert animal_iou(np.array([[2, 2, 0, 2]], np.uint8), label_map, 3) == pytest.approx(1 / 3)
    assert animal_iou(np.array([[0, 1, 1, 0]], np.uint8), label_map, 3) == 0
    assert animal_iou(np.array([[0, 1, 1, 0]], np.uint8), label_map, 2) == 1


def test_the_strip_shows_a_photo_by_name_or_the_largest(raw_pets: Path) -> None:
    records = read_records(raw_pets, "test")
    assert find_record(raw_pets, records, records[3].name) == records[3]
    assert find_record(raw_pets, records) in records
    with pytest.raises(ValueError, match="got photo 'tiger'"):
        find_record(raw_pets, records, "tiger")


def test_strips_are_drawn_for_a_colour_model(raw_pets: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "strips.png"
    draw_strips(fake_checkpoint(ColourModel, "colour"), raw_pets, read_records(raw_pets, "test")[0], path)
    with Image.open(path) as strips:
        assert strips.width > 1000
        assert len(strips.convert("RGB").getcolors(1 << 24) or []) > 1000


def test_one_command_for_all_models(unet: Checkpoint, checkpoint_folder: Path, raw_pets: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.safetensors"
    config = unet.model.config.model_dump(mode="json")
    save_checkpoint(second, unet.model, ModelCard(architecture="unet", config=config))
    out = tmp_path / "out"
    models = [str(checkpoint_folder / "unet.safetensors"), str(second)]
    result = CliRunner().invoke(
        app, ["robustness", *models, "--data", str(raw_pets), "--out", str(out), "--limit", "3"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads((out / "robustness.json").read_text())
    assert [*report["models"]] == ["unet", "second"]
    assert report["models"]["unet"] == report["models"]["second"]
    with (out / "robustness.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(CORRUPTIONS) * len(SEVERITIES)
    blur = [float(row["mean_iou"]) for row in rows if (row["model"], row["corruption"]) == ("unet", "gaussian_blur")]
    assert blur == report["models"]["unet"]["mean_iou"]["gaussian_blur"]
    pictures = {"curves.png", "curves.svg", "unet-strips.png", "second-strips.png", *(f"{c}.png" for c in CORRUPTIONS)}
    assert {path.name for path in out.iterdir()} == {"robustness.json", "robustness.csv", *pictures}


def test_models_measured_before_stay_beside(checkpoint_folder: Path, raw_pets: Path, tmp_path: Path) -> None:
    before = tmp_path / "robustness.json"
    curves = {name: (0.75,) * len(SEVERITIES) for name in CORRUPTIONS}
    write_tables([Robustness(name, "image", 3, 3, curves) for name in ("unet", "other")], "test", tmp_path)
    out, unet = tmp_path / "out", checkpoint_folder / "unet.safetensors"
    words = ["robustness", unet, "--data", raw_pets, "--beside", before, "--out", out, "--limit", 3]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    models = json.loads((out / "robustness.json").read_text())["models"]
    assert [*models] == ["other", "unet"]
    assert models["other"] == json.loads(before.read_text())["models"]["other"]
    assert models["unet"]["mean_iou"] != models["other"]["mean_iou"]
    with pytest.raises(ValueError, match=r"got \[3\] photos of test, wanted the 2 of validation"):
        read_tables(before, "validation", 2)


def test_two_models_of_one_name_are_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    path = str(checkpoint_folder / "unet.safetensors")
    result = CliRunner().invoke(app, ["robustness", path, path, "--out", str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert "wanted each name once" in str(result.exception)
