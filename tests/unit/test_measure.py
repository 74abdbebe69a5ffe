"""All protocols of each prompt kind on drawn photos, with fakes and with the real networks in their tiny variants."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.base import ArchitectureConfig, SegmentationModel
from models.prompts import PromptKind
from tests.fakes import ClickModel, ColourModel, TextModel
from training.config import load_config
from training.evaluate import every_kth
from training.measure import as_json, measure, protocol_names
from training.official_layout import PetRecord, read_records
from training.train import build_model

CONFIG = ArchitectureConfig(image_size=32)


def numbers(results: Any) -> list[float]:
    if isinstance(results, dict):
        return [number for value in results.values() for number in numbers(value)]
    if isinstance(results, list):
        return [number for value in results for number in numbers(value)]
    return [] if isinstance(results, str) else [results]


def smoke(recipe: str) -> SegmentationModel:
    return build_model(load_config(recipe, smoke=True))


@pytest.mark.parametrize(
    ("model", "protocols"),
    [
        (ColourModel(CONFIG), {"image"}),
        (TextModel(CONFIG), {"self_picked", "true_breed", "neutral", "absent", "collages"}),
        (ClickModel(CONFIG), {"one_click", "clicks"}),
    ],
)
def test_every_kind_is_measured_whole(model: SegmentationModel, protocols: set[str], raw_pets: Path) -> None:
    results = measure(model, raw_pets, read_records(raw_pets, "test"), batch_size=5)
    assert set(results) == protocols == set(protocol_names(model.prompt_kind))
    assert all(result["photos"] == 12 for name, result in results.items() if name != "collages")
    assert all(round(number, 4) == number and 0 <= abs(number) <= 20 for number in numbers(results))
    headline = results[protocol_names(model.prompt_kind)[0]]["boundary_ignore"]
    low, high = headline["mean_iou_interval"]
    assert low <= headline["mean_iou"] <= high
    assert json.loads(as_json(results)) == results


@pytest.mark.parametrize("recipe", ["unet-compact", "clip-compact", "prompt-compact"])
def test_the_real_networks_are_measured(recipe: str, raw_pets: Path) -> None:
    model = smoke(recipe)
    results = measure(model, raw_pets, every_kth(read_records(raw_pets, "test"), 3))
    assert set(results) == set(protocol_names(model.prompt_kind))


def test_one_protocol_without_intervals(raw_pets: Path) -> None:
    records = read_records(raw_pets, "test")
    results = measure(TextModel(CONFIG), raw_pets, records, ["absent"], intervals=False)
    assert set(results) == {"absent"}
    assert "interval" not in as_json(results)


def test_unknown_protocol_is_named(raw_pets: Path) -> None:
    with pytest.raises(ValueError, match="got protocol 'clicks', wanted one of image"):
        measure(ColourModel(CONFIG), raw_pets, (), ["clicks"])


def test_the_headline_comes_first() -> None:
    assert [protocol_names(kind)[0] for kind in PromptKind] == ["image", "self_picked", "one_click"]


def test_an_interval_stays_on_its_line() -> None:
    assert as_json({"a": {"interval": [0.1, 0.2]}}).splitlines()[2].strip() == '"interval": [0.1, 0.2]'


def test_every_kth_photo_of_the_list() -> None:
    records = [PetRecord(f"pug_{number}", "pug", 2) for number in range(10)]
    assert every_kth(records, 4) == (records[0], records[3], records[6], records[9])
    assert every_kth(records, 10) == every_kth(records, 99) == tuple(records)
    assert every_kth([], 5) == ()
