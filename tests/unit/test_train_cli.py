"""`petseg-train` from a drawn data set to a checkpoint."""

import importlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.checkpoint import read_card
from training.cli import app, main


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_lists_the_recipes() -> None:
    assert "timm_unet-compact" in run("configs")


def test_draws_prepares_and_trains(tmp_path: Path) -> None:
    data, prepared = ["--data", str(tmp_path / "drawn")], ["--prepared", str(tmp_path / "prepared")]
    run("synthetic", str(tmp_path / "drawn"), "--count", "24", "--image-size", "48")
    assert "train" in run("prepare", "autoencoder-compact", *data, *prepared)
    out = tmp_path / "run"
    assert "wrote" in run("train", "unet-compact", "--smoke", "--out", str(out), *data, *prepared)
    assert read_card(out / "unet-compact.safetensors").architecture == "unet"


def test_contact_sheet(raw_pets: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = ["--data", str(raw_pets), "--prepared", str(tmp_path / "prepared"), "--out", str(sheet)]
    run("contact-sheet", "unet", "--count", "4", *arguments)
    assert sheet.stat().st_size > 0


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["petseg-train", "train", "vnet"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("petseg-train: got config 'vnet', wanted a TOML file or one of autoencoder")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("training.cli.app", lambda: importlib.import_module("lightning_that_is_not.fabric"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    wanted = "petseg-train: got no lightning_that_is_not here, wanted it to train; pip install 'petseg[train]'\n"
    assert capsys.readouterr().err == wanted


def test_a_defect_of_our_own_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.cli.app", lambda: importlib.import_module("training.no_such_module"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main()
