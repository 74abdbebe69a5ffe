from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from models.base import ArchitectureConfig
from models.prompts import PromptTensors
from tests.drawn_photos import write_block
from tests.fakes import TextModel
from training.official_layout import PetPhoto, PetRecord
from training.photo_collage import breed_pairs, lay_together, species_pairs
from training.referring import evaluate_absent, evaluate_referring

CONFIG = ArchitectureConfig(image_size=32)
BREEDS = (("Siamese", 1), ("Bengal", 1), ("beagle", 2), ("pug", 2))


class GreedyModel(TextModel):
    """Takes every animal, whatever it is asked for."""

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        return super().score(images, {**prompt, "named": torch.ones_like(prompt["named"])})


@pytest.fixture
def blocks(tmp_path: Path) -> list[PetRecord]:
    """Two cats and two dogs, in colours that ColourModel tells apart without error."""
    return [write_block(tmp_path, f"{breed}_1", species) for breed, species in BREEDS]


def test_a_model_that_reads_takes_nothing_of_what_is_not_named(tmp_path: Path, blocks: list[PetRecord]) -> None:
    summary = evaluate_absent(TextModel(CONFIG), tmp_path, blocks, batch_size=3).summary()
    assert summary == {
        "photos": 4,
        "answered_with_nothing": {"mean": 1.0, "interval": [1.0, 1.0]},
        "animal_covered": {"mean": 0.0, "interval": [0.0, 0.0]},
    }


def test_a_model_that_does_not_read_takes_it_all(tmp_path: Path, blocks: list[PetRecord]) -> None:
    summary = evaluate_absent(GreedyModel(CONFIG), tmp_path, blocks).summary(intervals=False)
    assert summary["answered_with_nothing"] == {"mean": 0.0}
    assert summary["animal_covered"] == {"mean": 1.0}


def test_a_cat_beside_a_dog_named_by_species(tmp_path: Path, blocks: list[PetRecord]) -> None:
    result = evaluate_referring(TextModel(CONFIG), tmp_path, blocks)["by_species"].summary()
    assert result["collages"] == 2
    assert result["accuracy"] == {"mean": 1.0, "interval": [1.0, 1.0]}
    assert result["mean_iou"] > 0.95
    assert "accuracy_same_species" not in result


def test_both_animals_are_no_answer(tmp_path: Path, blocks: list[PetRecord]) -> None:
    result = evaluate_referring(GreedyModel(CONFIG), tmp_path, blocks)["by_species"].summary()
    assert result["accuracy"]["mean"] == 0
    assert result["mean_iou"] < 0.8


def test_breeds_it_has_no_word_for_are_wrong_answers(tmp_path: Path) -> None:
    # "a photo of a Siamese cat" names a cat to TextModel, "a photo of a Pug" nothing.
    records = [write_block(tmp_path, "Siamese_1", 1), write_block(tmp_path, "pug_1", 2)]
    result = evaluate_referring(TextModel(CONFIG), tmp_path, records)["by_breed"].summary(intervals=False)
    assert result["collages"] == 1
    assert result["accuracy"] == {"mean": 0.5}


def test_a_pair_with_a_missing_photo_is_left_out(tmp_path: Path, blocks: list[PetRecord]) -> None:
    records = [blocks[0], PetRecord("pug_9", "pug", 2)]
    summary = evaluate_referring(TextModel(CONFIG), tmp_path, records)["by_species"].summary()
    assert summary["collages"] == 0
    assert list(summary["skipped"]) == ["pug_9"]


def photo(width: int, height: int, species: int) -> PetPhoto:
    label_map = np.full((height, width), species, np.uint8)
    return PetPhoto(Image.new("RGB", (width, height), (40 * species, 0, 0)), label_map, "PNG")


@pytest.mark.parametrize(
    ("first", "second", "size", "seam"),
    [
        ((20, 40), (20, 40), (40, 40), (20, 40)),  # two upright photos stand beside each other
        ((40, 20), (40, 20), (40, 40), (40, 20)),  # two wide ones lie one above the other
        ((40, 80), (20, 40), (40, 40), (20, 40)),  # the larger is reduced
    ],
)
def test_laid_together_nearest_to_a_square(
    first: tuple[int, int], second: tuple[int, int], size: tuple[int, int], seam: tuple[int, int]
) -> None:
    image, (ours, theirs) = lay_together(photo(*first, 1), photo(*second, 2))
    assert image.size == size
    assert ours.shape == theirs.shape == size[::-1]
    width, height = seam
    assert (ours[:height, :width] == 1).all()
    assert int((ours == 1).sum()) == width * height
    assert np.array_equal(theirs == 2, ours == 0)
    assert np.array_equal(np.asarray(image)[..., 0], 40 * (ours + theirs))


records_of = st.lists(st.tuples(st.sampled_from(BREEDS), st.integers(1, 99)), unique=True, max_size=25)


@given(drawn=records_of)
def test_laws_of_pairs(drawn: list[tuple[tuple[str, int], int]]) -> None:
    records = [PetRecord(f"{breed}_{number}", breed, species) for (breed, species), number in drawn]
    by_species, by_breed = species_pairs(records), breed_pairs(records)
    for pairs in (by_species, by_breed):
        used = [record for pair in pairs for record in pair]
        assert len(set(used)) == len(used)
        assert set(used) <= set(records)
    assert all({first.species, second.species} == {1, 2} for first, second in by_species)
    assert all(first.breed != second.breed for first, second in by_breed)
    cats = sum(record.species == 1 for record in records)
    assert len(by_species) == min(cats, len(records) - cats)
    left = {record.breed for record in records} - {record.breed for pair in by_breed for record in pair}
    assert len(left) <= 1
    assert species_pairs(records[::-1]) == by_species
