from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import pet_names
from training.official_layout import CAT, DOG, read_photo, read_records
from training.synthetic import generate


def test_the_same_seed_draws_the_same_pictures(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(tmp_path / name, 4, 40, seed)
    pixels = {name: (tmp_path / name / "images" / "pug_1.jpg").read_bytes() for name in "abc"}
    assert pixels["a"] == pixels["b"] != pixels["c"]


def test_lists_photos_and_trimaps_agree(raw_pets: Path) -> None:
    everything = read_records(raw_pets, "list")
    assert sorted(record.name for record in everything) == sorted(p.stem for p in (raw_pets / "images").iterdir())
    trainval, test = read_records(raw_pets, "trainval"), read_records(raw_pets, "test")
    assert set(trainval) | set(test) == set(everything)
    assert not set(trainval) & set(test)
    assert {record.species for record in trainval} == {record.species for record in test} == {CAT, DOG}
    assert {record.breed for record in everything} <= {breed.key for breed in pet_names.breeds()}


def test_animals_are_a_visible_part_of_the_picture_within_a_ring(raw_pets: Path) -> None:
    for record in read_records(raw_pets, "list"):
        trimap = np.asarray(Image.open(raw_pets / "annotations" / "trimaps" / f"{record.name}.png"))
        assert 0.03 < (trimap == 1).mean() < 0.6
        assert (trimap == 3).any() and (trimap == 2).any()
        # No pet pixel touches background: the ring closes around the animal.
        pet, background = trimap == 1, trimap == 2
        assert not (pet[:, 1:] & background[:, :-1]).any() and not (pet[:, :-1] & background[:, 1:]).any()
        assert not (pet[1:] & background[:-1]).any() and not (pet[:-1] & background[1:]).any()
        photo = read_photo(raw_pets, record)
        assert max(photo.image.size) == 64
        assert (photo.label_map == record.species).any()


def test_impossible_requests_are_refused(tmp_path: Path, raw_pets: Path) -> None:
    with pytest.raises(ValueError, match="count=2"):
        generate(tmp_path, 2, 64)
    with pytest.raises(ValueError, match="holds a data set already"):
        generate(raw_pets, 8, 64)
