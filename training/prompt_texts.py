"""Which sentences one step of contrastive training reads, and which of them each image matches.

Breeds repeat inside a batch, so images are matched with classes of texts, not one text with one image.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from training.pet_names import (
    NEUTRAL_PROMPTS,
    SPECIES_WORDS,
    TEMPLATES,
    Breed,
    breeds,
    distractors,
    fill,
    speaks_of_pets,
)

SPECIES = tuple(SPECIES_WORDS)
"""Columns of the species logits."""
BREED_SPECIES = torch.tensor([SPECIES.index(breed.species) for breed in breeds()])
"""[37] int64: row of `breeds()` -> column of the species."""
BREED_INDEX = {breed.key: row for row, breed in enumerate(breeds())}

_HELD_OUT_EVERY = 10
_WORD = re.compile("[a-z]{3,}")


@dataclass(frozen=True)
class StepTexts:
    """One sentence per class, drawn anew each step."""

    breeds: tuple[str, ...]
    species: tuple[str, ...]
    neutral: str
    distractors: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """In the order in which `split` takes the logits apart."""
        return (*self.breeds, *self.species, self.neutral, *self.distractors)

    def split(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits [B, all] -> breeds [B, 37], species [B, 2], neutral [B, 1], distractors [B, N]."""
        sizes = [len(self.breeds), len(self.species), 1, len(self.distractors)]
        breed, species, neutral, distractor = torch.split(logits, sizes, dim=1)
        return breed, species, neutral, distractor


def sample_texts(generator: random.Random, distractor_count: int, vocabulary: Sequence[str] = ()) -> StepTexts:
    """Template, synonym and distractor words by chance; with a `vocabulary`, half of the distractors come from it."""
    drawn = distractor_count // 2 if vocabulary else 0
    strangers = generator.sample(training_distractors(), distractor_count - drawn)
    strangers += [" ".join(generator.choices(vocabulary, k=generator.choice((1, 1, 2)))) for _ in range(drawn)]
    return StepTexts(
        breeds=tuple(_in_a_sentence(generator.choice(_names(breed)), generator) for breed in breeds()),
        species=tuple(_in_a_sentence(generator.choice(words), generator) for words in SPECIES_WORDS.values()),
        neutral=generator.choice(NEUTRAL_PROMPTS),
        distractors=tuple(_in_a_sentence(word, generator) for word in strangers),
    )


def training_distractors() -> tuple[str, ...]:
    """Nine tenths of the words; the rest measures whether unseen words are turned down too."""
    return tuple(word for number, word in enumerate(distractors()) if number % _HELD_OUT_EVERY)


def held_out_distractors() -> tuple[str, ...]:
    """Every tenth word."""
    return distractors()[::_HELD_OUT_EVERY]


def stranger_vocabulary(tokenizer: SimpleTokenizer) -> tuple[str, ...]:
    """The whole words among CLIP's byte pairs, less all that speaks of pets and less the held-out distractors'.

    A text tower that saw a thousand words has random embeddings for the others, so any of them may pass for an animal.
    """
    held_out = {word for phrase in held_out_distractors() for word in phrase.lower().split()}
    words = (token.removesuffix("</w>") for token in tokenizer.encoder if token.endswith("</w>"))
    return tuple(
        sorted(word for word in words if _WORD.fullmatch(word) and word not in held_out and not speaks_of_pets(word))
    )


def _names(breed: Breed) -> tuple[str, ...]:
    """The breed's own name as often as all its synonyms together."""
    return (breed.name,) * len(breed.synonyms) + breed.synonyms


def _in_a_sentence(name: str, generator: random.Random) -> str:
    return fill(generator.choice(TEMPLATES), name)
