"""Contrastive training: the objective's known values, views, zero-shot figures, and a run from photos to a file."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from models import clip_backbone
from models.backbone_file import build_clip, read_backbone_card
from models.clip_backbone import BackboneConfig, load_backbone
from models.folders import BACKBONE_FOLDER_VARIABLE
from training import contrastive
from training.config import find_config
from training.contrastive import embed_photos, normalise, train_backbone
from training.contrastive_config import ContrastiveConfig, read_contrastive_config
from training.contrastive_loss import contrastive_loss
from training.dataset import PetDataset
from training.pet_names import breeds
from training.prompt_texts import BREED_SPECIES
from training.text_stage import train_text_tower
from training.views import Squares, ViewConfig, Views, random_view
from training.zero_shot import embed_text, measure_zero_shot

RECIPE = find_config("petclip")
SMOKE = read_contrastive_config(RECIPE, smoke=True)
TEXTS = ["a photo of a cat", "dog", "my cute Egyptian Mau, a kind of pet"]


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(0)
    return build_clip(SMOKE.open_clip_config).eval()


def loss_of(rows: Tensor, breed: Tensor, species: Tensor, neutral: Tensor, distractor: Tensor) -> float:
    return contrastive_loss(breed, species, neutral, distractor, rows, label_smoothing=0.0).item()


def test_the_loss_of_equal_logits_is_what_chance_gives() -> None:
    rows = torch.tensor([0, 1, 12, 13])  # two cats, two dogs
    zeros = torch.zeros(4, 37)
    got = loss_of(rows, zeros, torch.zeros(4, 2), torch.zeros(4, 1), torch.zeros(4, 5))
    expected = math.log(37) + math.log(2) + math.log(6) + math.log(4)  # breed, species, own against 5, text to image
    assert got == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_perfect_match_is_none_although_breeds_repeat() -> None:
    rows = torch.tensor([3, 3, 20])
    breed = 50.0 * F.one_hot(rows, 37)
    species = 50.0 * F.one_hot(BREED_SPECIES[rows], 2)
    got = loss_of(rows, breed, species, torch.full((3, 1), 50.0), torch.full((3, 4), -50.0))
    # Two images share one text, so it cannot tell them apart: half of ln 2 for the breed, half for the species.
    assert got == pytest.approx(0.5 * (math.log(2) / 2) * 2, abs=1e-4)


def test_a_stranger_that_is_nearer_costs() -> None:
    rows = torch.tensor([0, 12])
    breed, species, neutral = torch.zeros(2, 37), torch.zeros(2, 2), torch.zeros(2, 1)
    near = loss_of(rows, breed, species, neutral, torch.full((2, 3), 4.0))
    far = loss_of(rows, breed, species, neutral, torch.full((2, 3), -4.0))
    assert near > far + 4


def test_the_loss_reaches_every_text_it_should() -> None:
    rows = torch.tensor([0, 12])
    parts = [torch.zeros(2, width, requires_grad=True) for width in (37, 2, 1, 3)]
    breed, species, neutral, distractor = parts
    contrastive_loss(breed, species, neutral, distractor, rows, 0.1).backward()  # type: ignore[no-untyped-call]
    for part in parts:
        assert part.grad is not None
        assert part.grad.abs().sum() > 0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**31), st.integers(8, 40))
def test_views_are_squares_in_range_for_any_photo(height: int, width: int, seed: int, side: int) -> None:
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    config = ViewConfig(crop_area=(0.2, 1.0), jitter=1.0)
    view = random_view(image, side, config, torch.Generator().manual_seed(seed))
    assert view.shape == (3, side, side)
    assert view.dtype == torch.float32
    assert 0 <= view.min() <= view.max() <= 1


def test_a_view_without_chance_is_the_photo_or_its_mirror() -> None:
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = ViewConfig(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), jitter=0.0, grey_probability=0.0)
    seen = set()
    for seed in range(8):
        view = random_view(image, 16, config, torch.Generator().manual_seed(seed))
        mirrored = torch.allclose(view, image.flip(-1) / 255, atol=1e-6)
        assert mirrored or torch.allclose(view, image / 255, atol=1e-6)
        seen.add(mirrored)
    assert seen == {True, False}


def test_views_repeat_by_epoch_and_index(prepared_pets: Path) -> None:
    photos = PetDataset(prepared_pets, "train")
    first, again, later = (Views(photos, 24, ViewConfig(), 0, epoch) for epoch in (0, 0, 1))
    assert torch.equal(first[3][0], again[3][0])
    assert not torch.equal(first[3][0], later[3][0])
    assert breeds()[first[3][1]].key == photos.records[3].breed


def test_text_embeddings_are_the_same_when_cut_to_the_longest(clip: Any) -> None:
    tokens = SimpleTokenizer()(TEXTS)
    torch.testing.assert_close(embed_text(clip, tokens), clip.encode_text(tokens), rtol=1e-4, atol=1e-5)


def test_other_text_towers_are_asked_as_they_are() -> None:
    text = {**SMOKE.open_clip_config["text_cfg"], "no_causal_mask": True, "pool_type": "last"}
    clip: Any = build_clip({**SMOKE.open_clip_config, "text_cfg": text}).eval()
    tokens = SimpleTokenizer()(TEXTS)
    torch.testing.assert_close(embed_text(clip, tokens), clip.encode_text(tokens))


class _Lookup:
    """A text tower that knows each breed's and species' direction by the words in the sentence."""

    text_pool_type = None
    context_length = 77

    def __init__(self) -> None:
        self.words = sorted(
            [(breed.name.lower(), row) for row, breed in enumerate(breeds())] + [("cat", 37), ("dog", 38)],
            key=lambda pair: -len(pair[0]),
        )

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([[self._row(text.lower())] for text in texts])

    def _row(self, text: str) -> int:
        return next((row for word, row in self.words if re.search(rf"\b{word}\b", text)), 39)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens[:, 0], 40).float()


def test_zero_shot_figures_of_a_perfect_and_of_a_mistaken_model() -> None:
    lookup, rows = _Lookup(), torch.arange(37)
    images = torch.zeros(37, 40)
    images[rows, rows] = 1.0
    images[rows, 37 + BREED_SPECIES] = 0.5
    perfect = measure_zero_shot(lookup, lookup.tokenize, images, rows, scale=20.0)
    assert set(perfect.values()) == {1.0}
    mistaken = measure_zero_shot(lookup, lookup.tokenize, images.roll(12, dims=0), rows, scale=20.0)
    assert mistaken["breed_accuracy"] == 0.0
    assert mistaken["species_accuracy"] == pytest.approx(13 / 37, abs=1e-4)  # only dogs shifted among dogs fit
    strange = measure_zero_shot(lookup, lookup.tokenize, F.one_hot(torch.full((37,), 39), 40).float(), rows, 20.0)
    assert strange["distractor_rejection"] == strange["distractor_top1"] == 0.0


def test_the_last_stage_teaches_the_text_tower_alone(fabric: Fabric) -> None:
    torch.manual_seed(0)
    clip: Any = build_clip(SMOKE.open_clip_config).eval()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    rows = torch.tensor([0, 5, 14, 30] * 4)
    images = torch.randn(4, 16, generator=torch.Generator().manual_seed(1)).repeat(4, 1)
    config = SMOKE.model_copy(update={"text_steps": 150, "text_learning_rate": 5e-3, "text_batch_size": 8})
    figures = measure_zero_shot(clip, SimpleTokenizer(), images, rows, 14.0)
    train_text_tower(fabric, clip, images, rows, config)
    changed = {name for name, value in clip.state_dict().items() if not torch.equal(value, before[name])}
    assert {"text_projection", "token_embedding.weight"} <= changed
    assert not any(name.startswith("visual.") or name == "logit_scale" for name in changed)
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    after = measure_zero_shot(clip, SimpleTokenizer(), images, rows, 14.0)
    assert after["distractor_rejection"] > max(0.9, figures["distractor_rejection"])
    assert after["species_accuracy"] == 1.0


def test_the_shipped_recipe_is_a_compact_clip() -> None:
    config = read_contrastive_config(RECIPE)
    assert (config.image_size, config.open_clip_config["embed_dim"]) == (224, 256)
    sizes = [config.image_size_of(epoch) for epoch in range(config.epochs)]
    assert sizes == sorted(sizes)
    with torch.device("meta"):
        clip = build_clip(config.open_clip_config)
    halved = sum(tensor.numel() * (2 if tensor.ndim > 1 else 4) for tensor in clip.state_dict().values())
    assert halved < 18e6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("speed = 3", "speed: Extra inputs"),
        ('image_weights = "imagenet"', "image_weights: .*got 'imagenet', wanted one of random, efficientnet"),
        ("batch_size = 1", "batch_size: "),
    ],
)
def test_a_wrong_choice_is_named_with_its_file(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    kept = [old for old in RECIPE.read_text().splitlines() if not old.startswith(line.split("=")[0])]
    path.write_text("\n".join([line, *kept]))
    with pytest.raises(ValueError, match=rf"mine\.toml: {message}"):
        read_contrastive_config(path)


def test_a_run_ends_in_a_backbone_file_that_loads(
    prepared_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_backbone, "_instances", {})
    monkeypatch.setenv(BACKBONE_FOLDER_VARIABLE, str(tmp_path))
    fabric = Fabric(accelerator="cpu", devices=1)
    out = tmp_path / "petclip.safetensors"
    figures = train_backbone(SMOKE, prepared_pets, out, tmp_path / "run", fabric=fabric)
    card = read_backbone_card(out)
    assert card.metrics | figures == card.metrics
    assert (card.seed, card.training) == (SMOKE.seed, json.loads(SMOKE.model_dump_json()))
    assert card.zero_shot_prompts["cat"][0] == "a photo of a cat"
    assert (card.data["train"], card.data["validation"]) == (18, 6)
    backbone = load_backbone(BackboneConfig(file="petclip"))
    held_out = PetDataset(prepared_pets, "validation")
    images, rows = embed_photos(fabric, backbone.clip, held_out, 4)
    assert measure_zero_shot(backbone.clip, SimpleTokenizer(), images, rows, backbone.logit_scale.item()) == figures
    whole = torch.stack([Squares(held_out)[index][0] for index in range(2)])
    torch.testing.assert_close(backbone.clip.encode_image(normalise(whole)), images[:2], rtol=1e-4, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    prepared_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fabric: Fabric
) -> None:
    config = ContrastiveConfig.model_validate(
        {**SMOKE.model_dump(), "stages": [{"image_size": 32, "epochs": 2}], "text_steps": 0}
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_backbone(config, prepared_pets, whole / "clip.safetensors", whole, fabric=fabric)

    finished: list[dict[str, float]] = []
    measured = contrastive.measure

    def stop_in_the_second_epoch(*arguments: Any) -> dict[str, float]:
        if finished:
            raise KeyboardInterrupt
        finished.append(measured(*arguments))
        return finished[0]

    with monkeypatch.context() as patch:
        patch.setattr(contrastive, "measure", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train_backbone(config, prepared_pets, stopped / "clip.safetensors", stopped, fabric=fabric)
    assert not (stopped / "clip.safetensors").exists()
    train_backbone(config, prepared_pets, stopped / "clip.safetensors", stopped, fabric=fabric)

    assert (stopped / "clip.safetensors").read_bytes() == (whole / "clip.safetensors").read_bytes()
    with (stopped / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["loss"]) > 0 for row in rows)


def test_the_state_of_another_run_is_refused(prepared_pets: Path, tmp_path: Path, fabric: Fabric) -> None:
    train_backbone(SMOKE, prepared_pets, tmp_path / "clip.safetensors", tmp_path, fabric=fabric)
    other = SMOKE.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match=r"state\.pt: got the state of a run with another config"):
        train_backbone(other, prepared_pets, tmp_path / "clip.safetensors", tmp_path, fabric=fabric)
    assert train_backbone(other, prepared_pets, tmp_path / "clip.safetensors", tmp_path, resume=False, fabric=fabric)
