"""A checkpoint in 8-bit integers: the same masks but for few pixels, served like any, refused without OpenVINO."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.checkpoint import (
    Checkpoint,
    CheckpointError,
    ModelCard,
    backbone_digest,
    load_checkpoint,
    read_card,
    save_checkpoint,
    save_quantized,
)
from models.engine import EngineError, Precision, example_images, example_prompts
from models.engine_choice import EngineBuilder, EngineOptions
from models.tensor_file import write_safetensors
from service.app import create_app
from service.reload import read_folder
from service.settings import Settings, SettingsError
from training import quantize as quantization
from training.cli import app
from training.config import load_config
from training.official_layout import read_records
from training.quantize import as_served, quantize
from training.train import build_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def int8(checkpoint_folder: Path, raw_pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny UNet in integers. Not to be written to."""
    out = tmp_path_factory.mktemp("int8") / "unet-int8.safetensors"
    quantize(load_checkpoint(checkpoint_folder / "unet.safetensors"), raw_pets, read_records(raw_pets, "trainval"), out)
    return out


def test_masks_differ_in_few_pixels(int8: Path, unet: Checkpoint) -> None:
    images = example_images(unet.model, 8)
    with torch.inference_mode():
        wanted = unet.model(images, {}).argmax(1)
    served = as_served(load_checkpoint(int8), Precision.FP32)
    assert (served(images, {}).argmax(1) == wanted).float().mean() > 0.9
    assert len(wanted.unique()) == 3


def test_the_card_says_how_it_came_about(int8: Path, unet: Checkpoint) -> None:
    card = read_card(int8)
    assert card.quantization is not None
    assert card.quantization.source == unet.digest
    assert card.quantization.calibration["photos"] == 24
    assert card.quantization.made_with.startswith("nncf ")
    assert card.metrics == {}
    assert card.config == unet.card.config


def test_it_is_served_like_any_other(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = create_app(Settings(checkpoints=int8.parent, engine="auto")).state.predictors[0]
    assert (predictor.checkpoint.name, predictor.engine.name) == ("unet-int8", "openvino int8")
    monkeypatch.setattr("models.openvino_graph.is_installed", lambda: False)
    with pytest.raises(SettingsError, match=r"PETSEG_ENGINE: unet-int8: got a checkpoint of 8-bit integers for torch"):
        create_app(Settings(checkpoints=int8.parent, engine="auto"))
    with pytest.raises(EngineError, match="on cuda, wanted OpenVINO on a cpu"):
        EngineBuilder(torch.device("cuda"), EngineOptions()).build(load_checkpoint(int8))


def test_without_an_engine_it_refuses_to_run(int8: Path) -> None:
    model = load_checkpoint(int8).model
    with pytest.raises(CheckpointError, match="got graphs for OpenVINO, wanted weights"):
        model(example_images(model, 1), {})


def test_it_is_not_quantized_twice(int8: Path, raw_pets: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got unet-int8, which is quantized already"):
        quantize(load_checkpoint(int8), raw_pets, read_records(raw_pets, "test"), tmp_path / "twice.safetensors")


def test_a_frozen_tower_stays_as_it_is_shared(raw_pets: Path, tmp_path: Path) -> None:
    config = load_config("prompt", smoke=True)
    torch.manual_seed(0)
    model = build_model(config).eval()
    card = ModelCard(
        architecture=config.architecture,
        config=model.config.model_dump(mode="json"),
        backbone_digest=backbone_digest(model),
    )
    save_checkpoint(tmp_path / "prompt.safetensors", model, card)
    source, records = load_checkpoint(tmp_path / "prompt.safetensors"), read_records(raw_pets, "test")
    made = quantize(source, raw_pets, records, tmp_path / "prompt-int8.safetensors")
    engine = EngineBuilder(CPU, EngineOptions()).build(made)
    images, prompts = example_images(model, 2), example_prompts(model, 2)
    logits = engine.decode(engine.encode(images), prompts)
    with torch.inference_mode():
        wanted = model(images, prompts)
    assert logits.shape == wanted.shape
    assert np.corrcoef(logits.flatten(), wanted.flatten())[0, 1] > 0.98
    assert list(made.graphs) == ["decode"]
    assert engine.shared_encoder == source.model.encoder_digest() is not None
    torch.testing.assert_close(made.model.encode(images), source.model.encode(images))
    with pytest.raises(CheckpointError, match="got graphs for OpenVINO, wanted weights"):
        made.model.decode(made.model.encode(images), prompts)


def test_an_encoder_in_integers_has_a_digest_of_its_own(int8: Path) -> None:
    checkpoint = load_checkpoint(int8)
    assert EngineBuilder(CPU, EngineOptions()).build(checkpoint).shared_encoder == checkpoint.graphs["encode"].digest


def test_files_of_other_parts_are_refused(int8: Path, tmp_path: Path) -> None:
    card = read_card(int8).model_dump_json()
    broken = tmp_path / "broken.safetensors"
    write_safetensors(broken, {"encode.xml": torch.zeros(4, dtype=torch.uint8)}, {"model_card": card})
    with pytest.raises(CheckpointError, match=r"broken.safetensors: tensors: got \['encode.xml'\], wanted"):
        load_checkpoint(broken)
    graphs = load_checkpoint(int8).graphs
    save_quantized(broken, {"decode": graphs["encode"]}, read_card(int8))
    with pytest.raises(CheckpointError, match=r"broken.safetensors: tensors: got graphs of decode, wanted encode"):
        load_checkpoint(broken)
    with pytest.raises(ValueError, match="got a card without quantization"):
        save_quantized(broken, graphs, read_card(int8).model_copy(update={"quantization": None}))


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["quantize", *arguments])
    return result.exit_code, result.output + str(result.exception or "")


def test_the_command_measures_what_it_made(checkpoint_folder: Path, raw_pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet-int8.safetensors"
    common = [str(checkpoint_folder / "unet.safetensors"), "--data", str(raw_pets), "--out", str(out)]
    code, said = run(*common, "--split", "test", "--max-loss", "100")
    assert code == 0, said
    assert "mean IoU 0." in said and "12 photos of test" in said
    measured = read_card(out).metrics["test"]
    assert measured["image"]["photos"] == 12
    assert 0 <= measured["mean_iou_before"] <= 1

    before = out.read_bytes()
    code, said = run(*common, "--split", "test", "--max-loss", "-100")
    assert code != 0
    assert "wanted a loss of at most -100.0 points" in said
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_served_folder_gets_the_file_only_once_it_is_measured(
    checkpoint_folder: Path, raw_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, seen = quantization.measure_loss, []

    def look(*arguments: Any) -> Any:
        seen.append(read_folder(tmp_path))
        return measure(*arguments)

    monkeypatch.setattr(quantization, "measure_loss", look)
    out = tmp_path / "unet.safetensors"
    source = str(checkpoint_folder / "unet.safetensors")
    code, said = run(source, "--data", str(raw_pets), "--out", str(out), "--split", "test", "--max-loss", "100")
    assert code == 0, said
    assert seen == [{}]
    assert list(read_folder(tmp_path)) == [out]
    assert load_checkpoint(out).name == "unet"


def test_the_source_is_not_written_over(checkpoint_folder: Path, raw_pets: Path, tmp_path: Path) -> None:
    source, link = tmp_path / "unet.safetensors", tmp_path / "link.safetensors"
    source.write_bytes((checkpoint_folder / "unet.safetensors").read_bytes())
    link.symlink_to(source)
    before = source.read_bytes()
    for out in (source, link):
        code, said = run(str(source), "--data", str(raw_pets), "--out", str(out), "--split", "test")
        assert code != 0
        assert f"got --out {out}, the checkpoint itself; wanted another file" in said
    assert source.read_bytes() == before


def test_evaluation_goes_through_the_engine(int8: Path, raw_pets: Path) -> None:
    arguments = ["evaluate", str(int8), "--data", str(raw_pets), "--quick"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert '"photos": 12' in result.output


def test_nncf_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ValueError, match=r"got no NNCF \(nncf\), wanted it to quantize; pip install 'petseg\[train\]'"):
        quantization.load_nncf()
