"""Features kept on disk: the tower runs once for each view, and the run goes as if it had run for each epoch."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from typer.testing import CliRunner

from models.checkpoint import load_checkpoint
from models.clip_backbone import ClipBackbone
from training import feature_cache
from training.cli import app
from training.config import TrainConfig, load_config
from training.dataset import PetDataset
from training.encoding import describe, feature_shapes
from training.feature_cache import CachedPets, FeatureCache, Shapes
from training.run_state import RunState
from training.train import Run, build_model, open_training_set, train

RECIPES = ["clip-vitl14", "prompt-vitl14", "clip-compact"]
VIEWS = 2
EPOCHS = 2


def recipe(name: str, **data: object) -> TrainConfig:
    """A recipe's tiny variant with two kept views."""
    table = load_config(name, smoke=True).model_dump()
    vision = table["model"]["backbone"]["open_clip_config"]["vision_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_name"] = "test_efficientnet"
    stages = [{**stage, "epochs": EPOCHS, "patience": EPOCHS} for stage in table["stages"]]
    data = {**table["data"], "validation_fraction": 0.25, "views": VIEWS, "cache_features": True, **data}
    return TrainConfig.model_validate({**table, "data": data, "stages": stages})


@pytest.fixture
def run(raw_pets: Path, tmp_path: Path) -> Run:
    return Run("kept", recipe("clip-vitl14"), raw_pets, tmp_path / "prepared", tmp_path / "out")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of each call of the real tower, those on the meta device left out."""
    counts: list[int] = []
    encode_image = ClipBackbone.encode_image

    def counted(self: ClipBackbone, images: Tensor, *rest: Any) -> Any:
        if not images.is_meta:
            counts.append(len(images))
        return encode_image(self, images, *rest)

    monkeypatch.setattr(ClipBackbone, "encode_image", counted)
    yield counts


def fabric(config: TrainConfig) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, precision=config.precision)


def losses(run: Run) -> list[float]:
    with (run.out / "log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_with_kept_features_is_the_run_without(name: str, run: Run, encoded: list[int]) -> None:
    kept = replace(run, config=recipe(name))
    checkpoint = load_checkpoint(train(kept, fabric(kept.config)))
    assert sum(encoded) == 18 * VIEWS + 6  # the train part's views, and the validation part once
    encoded.clear()

    fresh = replace(run, config=recipe(name, cache_features=False), out=run.out / "fresh")
    train(fresh, fabric(fresh.config))
    assert sum(encoded) == (16 + 6) * EPOCHS  # whole batches of 18 photos, and the validation part
    assert losses(kept) == pytest.approx(losses(fresh), rel=2e-3)  # float16 on disk
    assert len(set(losses(kept))) == EPOCHS
    assert checkpoint.card.training["data"]["cache_features"] is True


def test_with_mixed_precision_the_losses_are_the_same_to_the_last_bit(run: Run) -> None:
    mixed = {**run.config.model_dump(), "precision": "bf16-mixed"}
    kept = replace(run, config=TrainConfig.model_validate(mixed))
    mixed["data"] = {**mixed["data"], "cache_features": False}
    fresh = replace(run, config=TrainConfig.model_validate(mixed), out=run.out / "fresh")
    train(kept, fabric(kept.config))
    train(fresh, fabric(fresh.config))
    assert losses(kept) == losses(fresh)


class KilledError(Exception):
    """Stands for a SIGKILL."""


def test_a_killed_run_resumes_to_the_same_curve(run: Run, encoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replace(run, out=run.out / "whole")
    train(whole, fabric(run.config))
    encoded.clear()
    save = RunState.save

    def save_and_die(self: RunState, *args: Any) -> None:
        save(self, *args)
        if self.progress.epoch == 1:
            raise KilledError

    monkeypatch.setattr(RunState, "save", save_and_die)
    with pytest.raises(KilledError):
        train(run, fabric(run.config))
    monkeypatch.setattr(RunState, "save", save)
    train(run, fabric(run.config))
    assert losses(run) == losses(whole)
    assert encoded == []  # all from the disk


def open_pets(run: Run, views: int = VIEWS) -> tuple[PetDataset, FeatureCache]:
    config = run.config.model_copy(update={"data": run.config.data.model_copy(update={"views": views})})
    model = build_model(config)
    pets = open_training_set(config, model, run.prepare(model.config.image_size))
    return pets, FeatureCache(run.features, pets, describe(model, pets, config.precision))


def encode(images: Tensor) -> tuple[Tensor, ...]:
    """Stands for the tower: features of the right shapes that tell the images apart."""
    mean = images.mean((1, 2, 3), keepdim=True)
    grids = [mean.expand(-1, 16, 4, 4)] * 3
    return (images, mean.expand(-1, 16, 1, 1), *grids)


def test_a_killed_encoding_goes_on_after_the_last_whole_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pets, cache = open_pets(run)
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 5 * cache.content.shapes.row_bytes)
    rows = 0

    def encode_and_die(images: Tensor) -> tuple[Tensor, ...]:
        nonlocal rows
        rows += len(images)
        if rows > 12:
            raise KilledError
        return encode(images)

    with pytest.raises(KilledError):
        cache.fill(encode_and_die, 4)
    assert cache.count_missing() == 18 * VIEWS - 10  # two files of five
    assert not list(cache.folder.glob("*.partial"))
    cache.fill(encode, 4)
    assert cache.count_missing() == 0
    for index in (0, 4, 5, 17):
        for number in range(VIEWS):
            (image, scene), features = cache.read(index, number)
            expected, wanted = pets.view(index, number)
            assert torch.equal(image, expected)
            assert torch.equal(scene.label_map, wanted.label_map)
            assert torch.equal(scene.owners, wanted.owners)
            assert scene.pets == wanted.pets
            torch.testing.assert_close(features[0], image / 255.0)
            torch.testing.assert_close(features[2], (image / 255.0).mean().expand(16, 4, 4), rtol=1e-3, atol=0)


def test_collages_are_kept_with_both_animals(run: Run) -> None:
    together = replace(run, config=recipe("clip-vitl14", collage_probability=1.0))
    pets, cache = open_pets(together)
    cache.fill(encode, 4)
    assert max(len(cache.read(index, 0)[0][1].pets) for index in range(len(pets))) == 2
    example = CachedPets(cache)[3]
    assert torch.equal(example["target"], pets[3]["target"])
    assert torch.equal(example["prompt"]["tokens"], pets[3]["prompt"]["tokens"])


def test_more_views_are_added_beside_those_there_are(run: Run) -> None:
    _, two = open_pets(run)
    two.fill(encode, 4)
    _, three = open_pets(run, views=3)
    assert three.folder == two.folder
    assert three.count_missing() == 18


def test_processes_share_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cache = open_pets(run)
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 5 * cache.content.shapes.row_bytes)
    shares = [cache.count_missing(rank, 2) for rank in range(2)]
    assert sum(shares) == cache.count_missing() == 18 * VIEWS
    cache.fill(encode, 4, rank=1, processes=2)
    assert cache.count_missing() == shares[0]


def test_an_epoch_shows_one_view_and_prompts_change(run: Run) -> None:
    _, cache = open_pets(run)
    cache.fill(encode, 4)
    examples = CachedPets(cache)
    seen: dict[bytes, set[bytes]] = {}
    for epoch in range(8):
        examples.set_epoch(epoch)
        example = examples[0]
        seen.setdefault(example["image"].numpy().tobytes(), set()).add(example["prompt"]["tokens"].numpy().tobytes())
    assert len(seen) == VIEWS
    assert max(len(prompts) for prompts in seen.values()) > 1


def test_both_recipes_read_the_same_files(run: Run) -> None:
    _, clip = open_pets(run)
    _, prompt = open_pets(replace(run, config=recipe("prompt-vitl14")))
    assert clip.folder == prompt.folder
    shown = [load_config(name) for name in ("clip-vitl14", "prompt-vitl14")]
    assert shown[0].data == shown[1].data
    assert shown[0].augmentation == shown[1].augmentation
    assert shown[0].model["backbone"] == shown[1].model["backbone"]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"precision": "bf16-mixed"}, {"data": {"collage_probability": 0.5}}, {"augmentation": {}}]
)
def test_what_decides_the_content_decides_the_folder(run: Run, change: dict[str, Any]) -> None:
    _, cache = open_pets(run)
    table = run.config.model_dump()
    table |= {**change, "data": {**table["data"], **change.get("data", {})}}
    other = replace(run, config=TrainConfig.model_validate(table))
    assert open_pets(other)[1].folder != cache.folder


def test_the_size_of_the_large_recipe_is_known_without_its_weights() -> None:
    config = load_config("clip-vitl14")
    with torch.device("meta"):
        model = build_model(config)
    shapes = feature_shapes(type(model), model.config, 224)
    assert shapes.features == (None, (768, 1, 1), (768, 16, 16), *[(1024, 16, 16)] * 3)
    assert shapes.row_bytes == 2 * (768 + 768 * 256 + 3 * 1024 * 256) + 5 * 224 * 224 + 16


def test_a_full_disk_is_said_beforehand(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cache = open_pets(run)
    monkeypatch.setattr(Shapes, "row_bytes", 10**15)
    with pytest.raises(ValueError, match=r"features: got .* GB free under .*wanted 36000000\.0 GB.*take fewer views"):
        cache.check_space()


def test_values_beyond_half_precision_are_refused(run: Run) -> None:
    _, cache = open_pets(run)

    def large(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(feature * 1e9 for feature in encode(images))

    with pytest.raises(ValueError, match=r'wanted what torch\.float16 holds; take precision = "bf16-mixed"'):
        cache.fill(large, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"cache_features": True}}, "cache_features without views"),
        ({"stages": [{"trainable": ["backbone", "head"]}]}, r"got trainable \['backbone'\] with cache_features"),
        ({"stages": [{"objective": "reconstruction"}]}, "got objective 'reconstruction' with cache_features"),
        ({"architecture": "unet", "model": {}}, "got cache_features for unet, whose encoder learns"),
    ],
)
def test_configs_that_cannot_be_kept_are_refused(change: dict[str, Any], message: str) -> None:
    table = load_config("clip-vitl14").model_dump()
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({**table, **change})


def test_the_command_says_the_size_and_then_encodes(raw_pets: Path, tmp_path: Path, encoded: list[int]) -> None:
    places = ["--data", str(raw_pets), "--prepared", str(tmp_path / "prepared")]
    said = CliRunner().invoke(app, ["features", "prompt", "--smoke", "--views", "3", "--estimate", *places])
    assert said.exit_code == 0, said.output
    assert "22 photos x 3 views x 0.01 MB" in said.output
    assert encoded == []
    for _ in range(2):
        done = CliRunner().invoke(app, ["features", "prompt", "--smoke", "--views", "3", *places])
        assert done.exit_code == 0, done.output
        assert sum(encoded) == 22 * 3 + 2  # the second time nothing is left
    refused = CliRunner().invoke(app, ["features", "prompt", "--smoke", *places])
    assert "keeps no features; give --views" in str(refused.exception)
