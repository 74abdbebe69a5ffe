import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.architectures.unet import UNet, UNetConfig
from models.base import ArchitectureConfig
from models.checkpoint import ModelCard, load_checkpoint, read_card, save_checkpoint
from models.letterbox import Array
from models.prompts import PointPrompt, PromptKind, TextPrompt
from tests.drawn_photos import write_block
from tests.fakes import ClickModel, ColourModel, TextModel
from training.boundary import boundary_iou, tolerance_px
from training.cli import app
from training.evaluate import PROTOCOLS, evaluate, evaluate_protocols, mixed_species, select_records
from training.official_layout import PetRecord, read_photo, read_records, records_fingerprint


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig(image_size=32, widths=(4, 8)))


def test_counts_every_pixel_at_the_photos_own_size(unet: UNet, raw_pets: Path) -> None:
    records = read_records(raw_pets, "test")
    seen: dict[str, tuple[Array, Array]] = {}
    result = evaluate(
        unet, raw_pets, records, "image", batch_size=5, on_mask=lambda r, m, t: seen.update({r.name: (m, t)})
    )
    assert result.photos == len(records) == len(seen)
    pixels = ignored = 0
    for record in records:
        photo = read_photo(raw_pets, record)
        mask, target = seen[record.name]
        assert mask.shape == target.shape == (photo.image.height, photo.image.width)
        pixels += target.size
        ignored += int((target == 255).sum())
    assert ignored > 0
    assert int(result.confusion["ignore"].sum()) == pixels - ignored
    assert int(result.confusion["background"].sum()) == pixels
    wanted = [boundary_iou(*seen[each.name], each.species, tolerance_px(*seen[each.name][0].shape)) for each in records]
    assert result.boundary_iou.tolist() == wanted
    assert len(set(wanted)) > 6


def test_batches_do_not_change_the_count(unet: UNet, raw_pets: Path) -> None:
    records = read_records(raw_pets, "test")
    one, many = (evaluate(unet, raw_pets, records, "image", batch_size=size) for size in (1, 7))
    difference = (one.confusion["ignore"] - many.confusion["ignore"]).abs().sum()
    assert difference <= 1e-4 * one.confusion["ignore"].sum()


def test_scores_of_each_photo_are_kept(tmp_path: Path) -> None:
    # ColourModel paints red a cat: right on the first photo, a cat of another colour on the second is missed.
    blue = write_block(tmp_path, "pug_1", 2)
    records = (write_block(tmp_path, "Siamese_1", 1), PetRecord(blue.name, "Siamese", 1))
    result = evaluate(ColourModel(ArchitectureConfig(image_size=32)), tmp_path, records, "image")
    assert result.photo_names == ("Siamese_1", "pug_1")
    empty, full = 32 * 32 - 256, 256
    assert result.by_photo["ignore"].tolist() == [
        [[empty, 0, 0], [0, full, 0], [0, 0, 0]],
        [[empty, 0, 0], [0, 0, full], [0, 0, 0]],
    ]
    assert result.boundary_iou.tolist() == [1, 0]
    summary = result.summary()
    # Background 1, cat 1/2, dog 0.
    assert summary["boundary_ignore"]["mean_iou"] == 0.5
    assert summary["boundary_ignore"]["mean_iou_interval"] == [pytest.approx(1 / 3, abs=1e-4), 1.0]
    assert summary["boundary_iou"] == {"mean": 0.5, "interval": [0.0, 1.0]}


def test_an_animal_painted_as_two_species_is_counted() -> None:
    def photo(cat: int, dog: int) -> list[list[int]]:
        return [[50, 9, 9], [3, cat, dog], [0, 0, 0]]

    # Of 100 painted pixels 5 may be of the other species; an animal that is not found is not mixed.
    confusions = torch.tensor([photo(95, 5), photo(94, 6), photo(6, 94), photo(0, 100), photo(0, 0)])
    assert mixed_species(confusions).tolist() == [0, 1, 1, 0, 0]


def test_protocols_share_one_encoding(raw_pets: Path) -> None:
    model = TextModel(ArchitectureConfig(image_size=32))
    records = read_records(raw_pets, "test")
    together = evaluate_protocols(model, raw_pets, records, ["self_picked", "neutral"])
    assert sum(model.encoded_rows) == len(records)
    assert sum(model.decoded_rows) == 2 * len(records)
    for name, result in together.items():
        alone = evaluate(model, raw_pets, records, name)
        assert torch.equal(alone.confusion["ignore"], result.confusion["ignore"])
    assert not torch.equal(together["neutral"].confusion["ignore"], together["self_picked"].confusion["ignore"])


def test_a_missing_photo_is_named_and_skipped(unet: UNet, raw_pets: Path) -> None:
    records = (*read_records(raw_pets, "test")[:2], PetRecord("Siamese_9999", "Siamese", 1))
    result = evaluate(unet, raw_pets, records, "image")
    assert result.photos == 2
    assert list(result.skipped) == ["Siamese_9999"]
    assert list(result.summary()["skipped"]) == ["Siamese_9999"]


def test_clicks_are_judged_on_animal_against_background(raw_pets: Path) -> None:
    model = ClickModel(ClickModel.Config(image_size=32, class_names=("background", "object")))
    result = evaluate(model, raw_pets, read_records(raw_pets, "test"), "one_click")
    assert result.confusion["ignore"].shape == (2, 2)
    assert result.confusion["ignore"][1].sum() > 0


def test_the_prompt_of_each_protocol() -> None:
    record = PetRecord("american_bulldog_7", "american_bulldog", 2)
    label_map = np.zeros((5, 6), np.uint8)
    label_map[2, 3], label_map[2, 4] = 2, 255
    assert PROTOCOLS[PromptKind.TEXT]["self_picked"](record, label_map) is None
    assert PROTOCOLS[PromptKind.TEXT]["true_breed"](record, label_map) == TextPrompt("a photo of an American Bulldog")
    assert PROTOCOLS[PromptKind.TEXT]["neutral"](record, label_map) == TextPrompt("a photo of a pet")
    assert PROTOCOLS[PromptKind.POINTS]["one_click"](record, label_map) == PointPrompt(((3.0, 2.0),), (1,))


def test_the_parts_of_trainval_are_apart(raw_pets: Path) -> None:
    train, validation = (set(select_records(raw_pets, split, 0.25, 0)) for split in ("train", "validation"))
    assert not train & validation
    assert train | validation == set(select_records(raw_pets, "trainval", 0.25, 0))
    with pytest.raises(ValueError, match="got split 'holdout'"):
        select_records(raw_pets, "holdout", 0.25, 0)


def test_unknown_protocol_is_named(unet: UNet, raw_pets: Path) -> None:
    with pytest.raises(ValueError, match="got protocol 'one_click', wanted one of image"):
        evaluate(unet, raw_pets, (), "one_click")


@pytest.fixture
def checkpoint(unet: UNet, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    metrics = {"test": {"old": {"mean_iou": 0.1}}}
    save_checkpoint(
        path, unet, ModelCard(architecture="unet", config=unet.config.model_dump(mode="json"), metrics=metrics)
    )
    return path


def test_the_command_records_its_scores_in_the_card(checkpoint: Path, raw_pets: Path) -> None:
    before = load_checkpoint(checkpoint).model.state_dict()
    result = CliRunner().invoke(app, ["evaluate", str(checkpoint), "--data", str(raw_pets), "--record"])
    assert result.exit_code == 0, result.output
    metrics = read_card(checkpoint).metrics["test"]
    assert metrics["image"]["photos"] == 12
    assert 0 < metrics["image"]["boundary_ignore"]["mean_iou"] < 1
    assert metrics["old"] == {"mean_iou": 0.1}
    named = records_fingerprint(raw_pets, select_records(raw_pets, "test", 0.25, 0))
    assert metrics["data"] == f"raw, test list, fingerprint {named[:12]}"
    printed = json.loads(result.stdout)
    assert printed["image"] == metrics["image"]
    after = load_checkpoint(checkpoint).model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_command_on_a_few_photos_in_a_hurry(checkpoint: Path, raw_pets: Path) -> None:
    arguments = ["evaluate", str(checkpoint), "--data", str(raw_pets), "--quick", "--limit", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["image"]["photos"] == 4
    assert "interval" not in result.stdout
    refused = CliRunner().invoke(app, [*arguments, "--record"])
    assert isinstance(refused.exception, ValueError)
    assert "got --record with --limit" in str(refused.exception)
    assert read_card(checkpoint).metrics == {"test": {"old": {"mean_iou": 0.1}}}
