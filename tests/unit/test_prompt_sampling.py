from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from torch import Generator, Tensor

from models.letterbox import Array
from models.prompts import PointPrompt, PromptKind, TextPrompt
from training import pet_names
from training.collage import Sampler, Scene, whole_scene
from training.official_layout import CAT, DOG
from training.prompt_sampling import (
    PointSampler,
    PointSamplingConfig,
    SamplingConfig,
    TextSampler,
    TextSamplingConfig,
    border_click,
    keep_pets,
    make_sampler,
    next_click,
    object_target,
)

SIDE = 32


@dataclass(frozen=True)
class Animal:
    breed: str
    species: int


SIAMESE, PERSIAN, BEAGLE = Animal("Siamese", CAT), Animal("Persian", CAT), Animal("beagle", DOG)


def scene(*pets: Animal) -> Scene:
    """Up to two animals of 10 x 10 pixels in a ring of one pixel: the first at the left, the second at the right."""
    label, owners = torch.zeros(SIDE, SIDE, dtype=torch.uint8), torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    for index, pet in enumerate(pets):
        left = 2 + 16 * index
        label[10:22, left : left + 12] = 255
        label[11:21, left + 1 : left + 11] = pet.species
        owners[10:22, left : left + 12] = index + 1
    return Scene(label, owners, pets)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def texts(**probabilities: float) -> TextSampler:
    chances = dict.fromkeys(("breed", "species", "neutral", "absent"), 0.0) | probabilities
    shares = {key: value for key, value in chances.items() if key.endswith("share")}
    named = {f"{key}_probability": value for key, value in chances.items() if not key.endswith("share")}
    return TextSampler(TextSamplingConfig(**named, **shares))


def asked(sampler: Sampler, shown: Scene, seed: int) -> tuple[str, Tensor]:
    prompt, target = sampler(shown, generator(seed))
    assert isinstance(prompt, TextPrompt) and target.dtype == torch.int64
    return prompt.text, target


def clicked(sampler: Sampler, shown: Scene, seed: int) -> tuple[PointPrompt, Tensor]:
    prompt, target = sampler(shown, generator(seed))
    assert isinstance(prompt, PointPrompt) and target.dtype == torch.int64
    return prompt, target


def species_in(target: Tensor) -> set[int]:
    return set(target.flatten().tolist()) - {0, 255}


# Clicks


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_every_click_says_the_truth_about_its_target(seed: int) -> None:
    sampler = PointSampler(PointSamplingConfig(absent_probability=0, border_probability=0, extra_probability=1))
    prompt, target = clicked(sampler, scene(SIAMESE, BEAGLE), seed)
    assert prompt.labels[0] == 1
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        assert target[int(y), int(x)] == label


def test_each_animal_is_clicked_and_only_it_is_the_object() -> None:
    sampler = PointSampler(PointSamplingConfig(absent_probability=0))
    shown = scene(SIAMESE, BEAGLE)
    objects: Counter[int] = Counter()
    for seed in range(60):
        _, target = clicked(sampler, shown, seed)
        index = int(shown.owners[target == 1].amax()) - 1
        assert torch.equal(target, object_target(shown, index))
        objects[index] += 1
    assert min(objects[0], objects[1]) > 15


def test_object_target_known_answer() -> None:
    shown = scene(SIAMESE, BEAGLE)
    target = object_target(shown, 1)
    assert int((target == 1).sum()) == 100 and int((target == 255).sum()) == 44
    # The other animal and its ring are certainly not this one.
    assert (target[:, :16] == 0).all()


def test_the_studys_case_is_one_click_from_the_foreground() -> None:
    sampler = PointSampler(PointSamplingConfig(absent_probability=0, border_probability=0, extra_probability=0))
    points = set()
    for seed in range(40):
        prompt, target = clicked(sampler, scene(BEAGLE), seed)
        assert prompt.labels == (1,)
        points.add(prompt.points)
        (x, y) = prompt.points[0]
        assert target[int(y), int(x)] == 1
    assert len(points) > 25


def test_negative_clicks_tell_two_animals_apart() -> None:
    sampler = PointSampler(
        PointSamplingConfig(absent_probability=0, extra_probability=1, max_extra=4, negative_share=1)
    )
    shown, on_the_other, negatives = scene(SIAMESE, BEAGLE), 0, 0
    for seed in range(60):
        prompt, target = clicked(sampler, shown, seed)
        mine = int(shown.owners[target == 1].amax())
        for (x, y), label in zip(prompt.points[1:], prompt.labels[1:], strict=True):
            assert label == 0 and shown.owners[int(y), int(x)] != mine
            on_the_other += int(shown.owners[int(y), int(x)] != 0)
            negatives += 1
    assert 0.4 < on_the_other / negatives < 0.9


@pytest.mark.parametrize("seed", range(10))
def test_a_click_on_background_asks_for_nothing(seed: int) -> None:
    prompt, target = clicked(PointSampler(PointSamplingConfig(absent_probability=1, border_px=1)), scene(SIAMESE), seed)
    (x, y) = prompt.points[0]
    rows, columns = (scene(SIAMESE).label_map != 0).nonzero(as_tuple=True)
    assert int(torch.maximum((rows - y).abs(), (columns - x).abs()).min()) > 2
    assert prompt.labels == (1,) and (target == 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_badly_placed_click_still_means_its_animal(seed: int) -> None:
    config = PointSamplingConfig(absent_probability=0, border_probability=1, border_px=2, extra_probability=0)
    prompt, target = clicked(PointSampler(config), scene(SIAMESE), seed)
    (x, y) = prompt.points[0]
    rows, columns = (target == 1).nonzero(as_tuple=True)
    top, bottom, left, right = int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())
    assert -2 <= min(x - left, right - x, y - top, bottom - y) <= 1
    assert target[int(y), int(x)] != 0 and (target == 1).any()


def test_a_square_without_animals_asks_for_nothing() -> None:
    blank = Scene(torch.zeros(SIDE, SIDE).byte(), torch.zeros(SIDE, SIDE).byte(), (SIAMESE,))
    _, target = clicked(PointSampler(PointSamplingConfig(absent_probability=0)), blank, 0)
    assert (target == 0).all()
    ignored = Scene(torch.full((SIDE, SIDE), 255).byte(), torch.ones(SIDE, SIDE).byte(), (SIAMESE,))
    prompt, target = clicked(PointSampler(PointSamplingConfig(absent_probability=0)), ignored, 0)
    assert len(prompt.points) == 1 and (target == 255).all()


# The next click


def test_next_click_known_answers() -> None:
    target = np.zeros((9, 12), np.uint8)
    target[2:7, 1:6] = 1
    empty = np.zeros_like(target)
    assert next_click(target, empty) == (3.0, 4.0, 1)
    assert next_click(target, target) is None
    too_much = target.copy()
    too_much[0:7, 7:12] = 1
    # The picture's border is an edge too, so the middle column and the third row are three pixels from any.
    assert next_click(target, too_much) == (9.0, 2.0, 0)


def test_next_click_takes_the_larger_error_and_ignores_255() -> None:
    target = np.zeros((10, 30), np.uint8)
    target[:, :12] = 255
    target[4:7, 14:17] = 1
    mask = np.zeros_like(target)
    mask[:, :12] = 1  # a large area that does not count
    mask[3:8, 22:27] = 1  # 25 pixels too many, against 9 missing
    assert next_click(target, mask) == (24.0, 5.0, 0)


small_masks = hnp.arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 1]))
small_targets = hnp.arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 1, 255]))


@given(target=small_targets, mask=small_masks, seed=st.none() | st.integers(0, 99))
def test_next_click_lies_on_an_error_and_says_what_is_true_there(target: Array, mask: Array, seed: int | None) -> None:
    click = next_click(target, mask, None if seed is None else generator(seed))
    wrong = (target != 255) & (target != mask)
    assert (click is None) == (not wrong.any())
    if click is not None:
        x, y, label = click
        assert wrong[int(y), int(x)] and target[int(y), int(x)] == label


@given(target=small_targets)
def test_clicking_until_nothing_is_wrong_ends(target: Array) -> None:
    mask = np.zeros_like(target)
    clicks = 0
    while (click := next_click(target, mask)) is not None:
        mask[int(click[1]), int(click[0])] = click[2]
        clicks += 1
    assert clicks == (target == 1).sum()


@given(target=small_targets, seed=st.integers(0, 99))
def test_border_clicks_lie_on_the_object_near_its_edge(target: Array, seed: int) -> None:
    assume((target == 1).any())
    x, y, label = border_click(target, 1, generator(seed))
    assert label == 1 and target[int(y), int(x)] == 1
    around = np.pad(target, 1, constant_values=1)[int(y) : int(y) + 3, int(x) : int(x) + 3]
    assert (around != 1).any() or (target == 1).all()


def test_nothing_to_click_is_an_error() -> None:
    with pytest.raises(ValueError, match="without object pixels"):
        border_click(np.zeros((4, 4), np.uint8), 1, generator())


# Text


@pytest.mark.parametrize("seed", range(12))
def test_a_breed_leaves_only_that_breed(seed: int) -> None:
    shown = scene(SIAMESE, PERSIAN)
    text, target = asked(texts(breed=1), shown, seed)
    named = [b for b in pet_names.breeds() if any(name in text for name in (b.name, *b.synonyms))]
    breed = next(b.key for b in named if b.key in ("Siamese", "Persian"))
    index = [pet.breed for pet in shown.pets].index(breed)
    assert torch.equal(target, keep_pets(shown, [index]))
    assert (shown.owners[target != 0] == index + 1).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_species_leaves_all_of_it_and_nothing_else(seed: int) -> None:
    text, target = asked(texts(species=1), scene(SIAMESE, BEAGLE), seed)
    is_cat = any(word in text for word in pet_names.SPECIES_WORDS["cat"])
    assert species_in(target) == ({CAT} if is_cat else {DOG})
    both_cats = scene(SIAMESE, PERSIAN)
    assert torch.equal(asked(texts(species=1), both_cats, seed)[1], both_cats.label_map.long())


def test_a_neutral_prompt_keeps_everyone() -> None:
    shown = scene(SIAMESE, BEAGLE)
    text, target = asked(texts(neutral=1), shown, 0)
    assert text in pet_names.NEUTRAL_PROMPTS
    assert torch.equal(target, shown.label_map.long())


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_there_gives_background(seed: int) -> None:
    text, target = asked(texts(absent=1, distractor_share=0.0), scene(BEAGLE), seed)
    assert (target == 0).all()
    cats = [n for b in pet_names.breeds() if b.species == "cat" for n in (b.name, *b.synonyms)]
    assert any(word in text for word in (*cats, *pet_names.SPECIES_WORDS["cat"]))


@pytest.mark.parametrize("seed", range(8))
def test_with_both_species_there_only_things_are_absent(seed: int) -> None:
    text, target = asked(texts(absent=1, distractor_share=0.0), scene(SIAMESE, BEAGLE), seed)
    assert (target == 0).all()
    assert any(word in text for word in pet_names.distractors())


@pytest.mark.parametrize("seed", range(8))
def test_the_wrong_breed_of_the_right_species_gives_background(seed: int) -> None:
    text, target = asked(texts(absent=1, same_species_share=1.0), scene(BEAGLE), seed)
    assert (target == 0).all()
    dogs = [n for b in pet_names.breeds() if b.species == "dog" and b.key != "beagle" for n in (b.name, *b.synonyms)]
    assert any(name in text for name in dogs) and "Beagle" not in text


def test_an_animal_out_of_sight_is_not_named() -> None:
    shown = scene(SIAMESE, BEAGLE)
    hidden = Scene(torch.where(shown.owners == 2, 0, shown.label_map), shown.owners * (shown.owners == 1), shown.pets)
    assert all(species_in(asked(texts(breed=1), hidden, seed)[1]) == {CAT} for seed in range(10))
    blank = Scene(torch.zeros(SIDE, SIDE).byte(), torch.zeros(SIDE, SIDE).byte(), (SIAMESE,))
    assert (asked(texts(breed=1), blank, 0)[1] == 0).all()


def test_kinds_of_text_come_as_often_as_they_should() -> None:
    sampler = TextSampler(TextSamplingConfig())
    source, empty = generator(), 0
    for _ in range(1000):
        _, target = sampler(scene(BEAGLE), source)
        empty += int((target == 0).all())
    assert empty / 1000 == pytest.approx(0.2, abs=0.04)


def test_probabilities_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"sum to 1\.2"):
        TextSamplingConfig(breed_probability=0.6)


def test_an_unknown_breed_is_named() -> None:
    with pytest.raises(ValueError, match="got breed 'wolf'"):
        texts(breed=1)(scene(Animal("wolf", DOG)), generator())


def test_each_kind_has_its_sampler() -> None:
    config = SamplingConfig(points=PointSamplingConfig(border_px=7))
    assert make_sampler(PromptKind.NONE, config) is whole_scene
    assert isinstance(make_sampler(PromptKind.TEXT, config), TextSampler)
    points = make_sampler(PromptKind.POINTS, config)
    assert isinstance(points, PointSampler) and points.config.border_px == 7


@pytest.mark.parametrize("kind", list(PromptKind))
def test_the_generator_alone_decides(kind: PromptKind) -> None:
    sampler = make_sampler(kind, SamplingConfig())
    one, other = (sampler(scene(SIAMESE, BEAGLE), generator(3)) for _ in range(2))
    assert one[0] == other[0] and torch.equal(one[1], other[1])
