"""Words for the 37 breeds, and for what is neither cat nor dog."""

import random

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from training.pet_names import (
    NEUTRAL_PROMPTS,
    SPECIES_WORDS,
    TEMPLATES,
    breeds,
    distractors,
    fill,
    find_breed,
    speaks_of_pets,
    zero_shot_prompts,
)
from training.prompt_texts import (
    BREED_INDEX,
    BREED_SPECIES,
    SPECIES,
    held_out_distractors,
    sample_texts,
    stranger_vocabulary,
    training_distractors,
)


def test_there_are_12_cat_and_25_dog_breeds_keyed_as_files_are() -> None:
    assert [breed.species for breed in breeds()] == ["cat"] * 12 + ["dog"] * 25
    assert all(breed.key[0].isupper() == (breed.species == "cat") for breed in breeds())
    assert all(breed.key.replace("_", " ").lower() == breed.name.lower() for breed in breeds())
    assert len({breed.key for breed in breeds()}) == 37


def test_no_phrase_stands_for_two_breeds() -> None:
    phrases = [phrase.lower() for breed in breeds() for phrase in (breed.name, *breed.synonyms)]
    assert len(phrases) == len(set(phrases))
    assert not set(phrases) & {word for words in SPECIES_WORDS.values() for word in words}


def test_find_breed_knows_file_names_and_names_the_others() -> None:
    assert find_breed("english_cocker_spaniel").name == "English Cocker Spaniel"
    with pytest.raises(ValueError, match="got breed 'Lynx', wanted one of Abyssinian, Bengal"):
        find_breed("Lynx")


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        ("a photo of a {}", "Siamese cat", "a photo of a Siamese cat"),
        ("a photo of a {}.", "Abyssinian", "a photo of an Abyssinian."),
        ("a {}", "Egyptian Mau", "an Egyptian Mau"),
        ("the {}", "American Bulldog", "the American Bulldog"),
        ("{}", "pug", "pug"),
    ],
)
def test_fill_minds_the_article(template: str, name: str, expected: str) -> None:
    assert fill(template, name) == expected


def test_templates_hold_one_place_each() -> None:
    assert len(TEMPLATES) >= 10
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_distractors_are_hundreds_of_words_without_a_pet() -> None:
    words = distractors()
    assert len(words) == len(set(words)) > 800
    assert {"car", "rabbit", "horse", "sofa", "tree", "person"} <= set(words)
    pets = {"beagle", "pug", "timber wolf", "red fox", "tabby", "tiger", "lion", "Siamese cat", "dingo", "cat", "dog"}
    assert not pets & set(words)
    assert not any({"cat", "dog"} & set(word.lower().split()) for word in words)


def test_zero_shot_prompts_name_the_species_first_then_each_breed() -> None:
    prompts = zero_shot_prompts()
    assert list(prompts) == ["cat", "dog"]
    assert (len(prompts["cat"]), len(prompts["dog"])) == (13, 26)
    assert prompts["cat"][0] == "a photo of a cat"
    assert "a photo of an Egyptian Mau cat" in prompts["cat"]
    assert "a photo of an American Bulldog" in prompts["dog"]


@pytest.mark.parametrize("word", ["kitten", "puppies", "beagles", "pet", "spaniel", "photo", "wolf", "dalmatian"])
def test_words_that_speak_of_pets(word: str) -> None:
    assert speaks_of_pets(word)


@pytest.mark.parametrize("word", ["zebra", "teapot", "harbour", "guitar"])
def test_words_that_do_not(word: str) -> None:
    assert not speaks_of_pets(word)


def test_rows_lead_from_breed_to_species() -> None:
    assert SPECIES == ("cat", "dog")
    assert BREED_SPECIES.tolist() == [0] * 12 + [1] * 25
    assert [BREED_INDEX[breed.key] for breed in breeds()] == list(range(37))


def test_a_steps_texts_hold_one_sentence_per_class() -> None:
    texts = sample_texts(random.Random(0), 5)
    for breed, sentence in zip(breeds(), texts.breeds, strict=True):
        assert any(phrase in sentence for phrase in (breed.name, *breed.synonyms))
    for words, sentence in zip(SPECIES_WORDS.values(), texts.species, strict=True):
        assert any(word in sentence for word in words)
    assert texts.neutral in NEUTRAL_PROMPTS
    assert len(texts.distractors) == 5
    assert len(texts.all) == 37 + 2 + 1 + 5
    assert sample_texts(random.Random(0), 5) == texts
    assert sample_texts(random.Random(1), 5) != texts


def test_logits_come_apart_in_the_order_of_the_texts() -> None:
    texts = sample_texts(random.Random(0), 3)
    logits = torch.arange(43.0).expand(2, 43)
    parts = texts.split(logits)
    assert [part.shape[1] for part in parts] == [37, 2, 1, 3]
    assert [part[1, 0].item() for part in parts] == [0, 37, 39, 40]


def test_held_out_words_are_never_trained_on() -> None:
    held_out = set(held_out_distractors())
    assert len(held_out) > 80
    assert not held_out & set(training_distractors())
    assert held_out | set(training_distractors()) == set(distractors())


def test_the_vocabulary_of_strangers_leaves_out_pets_and_held_out_words() -> None:
    vocabulary = stranger_vocabulary(SimpleTokenizer())
    assert len(vocabulary) > 20_000
    held_out = {word for phrase in held_out_distractors() for word in phrase.lower().split()}
    assert not set(vocabulary) & (held_out | {"cat", "dog", "kitten", "puppy", "siamese", "pug", "photo", "pet"})


def test_half_of_the_distractors_come_from_a_vocabulary() -> None:
    texts = sample_texts(random.Random(0), 20, ["zyzzyva"])
    assert sum("zyzzyva" in sentence for sentence in texts.distractors) == 10
