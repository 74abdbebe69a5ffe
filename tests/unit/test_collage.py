from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from training.collage import Scene, View, collage, whole_scene
from training.official_layout import CAT, DOG

SIDE = 40


@dataclass(frozen=True)
class Animal:
    breed: str
    species: int


SIAMESE, BEAGLE = Animal("Siamese", CAT), Animal("beagle", DOG)


def view(pet: Animal, colour: int, box: tuple[int, int, int, int]) -> View:
    """A square animal in one plain colour on black, with a boundary ring of one pixel; box = (top, left, h, w)."""
    top, left, height, width = box
    label = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    label[top : top + height, left : left + width] = 255
    label[top + 1 : top + height - 1, left + 1 : left + width - 1] = pet.species
    image = torch.where(label != 0, colour, 0).to(torch.uint8).expand(3, SIDE, SIDE).clone()
    return image, Scene.of_one(label, pet)


boxes = st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(8, 25), st.integers(8, 25))


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 2**32), first=boxes, second=boxes)
def test_label_owner_and_pixels_agree_in_every_layout(
    seed: int, first: tuple[int, int, int, int], second: tuple[int, int, int, int]
) -> None:
    image, scene = collage(view(SIAMESE, 120, first), view(BEAGLE, 240, second), Generator().manual_seed(seed))
    assert image.shape == (3, SIDE, SIDE) and image.dtype == torch.uint8
    assert scene.label_map.shape == scene.owners.shape == (SIDE, SIDE)
    assert {pet.breed for pet in scene.pets} == {"Siamese", "beagle"}
    assert torch.equal(scene.owners == 0, scene.label_map == 0)
    for index, pet in enumerate(scene.pets):
        sure = scene.pixels(index)
        assert (scene.label_map[sure] == pet.species).all()
        # Resizing blends colours only within the boundary ring's reach, so the inside keeps the animal's own.
        colour = 120 if pet is SIAMESE else 240
        assert bool(sure.any()) == (index in scene.visible())
        if sure.any():
            assert (image[0][sure].float() - colour).abs().median() < 25


def test_both_animals_are_seen_as_a_rule() -> None:
    generator = Generator().manual_seed(0)
    views = view(SIAMESE, 120, (5, 5, 25, 25)), view(BEAGLE, 240, (10, 10, 20, 20))
    seen = [len(collage(*views, generator)[1].visible()) for _ in range(100)]
    assert sum(count == 2 for count in seen) > 90


def test_layouts_and_sides_vary() -> None:
    views = view(SIAMESE, 120, (5, 5, 25, 25)), view(BEAGLE, 240, (10, 10, 20, 20))
    pictures = {bytes(collage(*views, Generator().manual_seed(seed))[0].numpy().tobytes()) for seed in range(30)}
    assert len(pictures) == 30


def test_the_same_generator_gives_the_same_collage() -> None:
    views = view(SIAMESE, 120, (5, 5, 25, 25)), view(BEAGLE, 240, (10, 10, 20, 20))
    one, other = (collage(*views, Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1].owners, other[1].owners)


def test_the_parts_are_left_as_they_were() -> None:
    views = view(SIAMESE, 120, (5, 5, 25, 25)), view(BEAGLE, 240, (10, 10, 20, 20))
    copies = [(image.clone(), scene.label_map.clone()) for image, scene in views]
    for seed in range(20):
        collage(*views, Generator().manual_seed(seed))
    for (image, scene), (kept_image, kept_label) in zip(views, copies, strict=True):
        assert torch.equal(image, kept_image) and torch.equal(scene.label_map, kept_label)


@pytest.mark.parametrize("seed", range(12))
def test_an_animal_that_has_left_its_photo_is_not_there(seed: int) -> None:
    empty = (torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), Scene.of_one(torch.zeros(SIDE, SIDE).byte(), BEAGLE))
    _, scene = collage(view(SIAMESE, 120, (5, 5, 25, 25)), empty, Generator().manual_seed(seed))
    assert all(scene.pets[index] is SIAMESE for index in scene.visible())


def test_one_photo_is_a_scene_of_one_and_its_whole_target() -> None:
    _, scene = view(BEAGLE, 240, (5, 5, 25, 25))
    prompt, target = whole_scene(scene, Generator())
    assert scene.visible() == (0,)
    assert prompt is None
    assert target.dtype == torch.int64 and torch.equal(target, scene.label_map.long())
    ring: Tensor = scene.label_map == 255
    assert (scene.owners[ring] == 1).all() and not scene.pixels(0)[ring].any()
