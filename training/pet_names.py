"""The 37 breeds of Oxford-IIIT Pet in the words people use for them, and words for what is neither cat nor dog.

The contrastive training and the prompt sampler draw from here; `zero_shot_prompts` goes into backbone and model cards.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Species = Literal["cat", "dog"]


@dataclass(frozen=True)
class Breed:
    """One breed as the data set names it and as people say it."""

    key: str
    """The name in file names without the number: "Maine_Coon", "american_bulldog"."""
    name: str
    """How a sentence spells it: "Maine Coon"."""
    species: Species
    synonyms: tuple[str, ...]
    """Other ways to say it, each as good after "a photo of a" as the name itself."""


_CATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Abyssinian", ("Abyssinian cat",)),
    ("Bengal", ("Bengal cat", "spotted Bengal cat")),
    ("Birman", ("Birman cat", "sacred cat of Burma")),
    ("Bombay", ("Bombay cat", "black Bombay cat")),
    ("British Shorthair", ("British Shorthair cat", "British blue cat")),
    ("Egyptian Mau", ("Egyptian Mau cat", "spotted Egyptian cat")),
    ("Maine Coon", ("Maine Coon cat", "Maine shag cat")),
    ("Persian", ("Persian cat", "Persian longhair cat")),
    ("Ragdoll", ("Ragdoll cat",)),
    ("Russian Blue", ("Russian Blue cat",)),
    ("Siamese", ("Siamese cat", "seal point Siamese")),
    ("Sphynx", ("Sphynx cat", "hairless cat", "Sphinx cat")),
)
_DOGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("American Bulldog", ("American Bulldog dog",)),
    ("American Pit Bull Terrier", ("American Pit Bull", "pit bull", "pitbull terrier")),
    ("Basset Hound", ("Basset", "Basset Hound dog")),
    ("Beagle", ("Beagle dog",)),
    ("Boxer", ("Boxer dog", "German Boxer")),
    ("Chihuahua", ("Chihuahua dog",)),
    ("English Cocker Spaniel", ("cocker spaniel", "English cocker")),
    ("English Setter", ("setter dog", "English Setter dog")),
    ("German Shorthaired", ("German Shorthaired Pointer", "German pointer", "pointer dog")),
    ("Great Pyrenees", ("Great Pyrenees dog", "Pyrenean mountain dog")),
    ("Havanese", ("Havanese dog", "Bichon Havanese")),
    ("Japanese Chin", ("Japanese Chin dog", "Japanese spaniel")),
    ("Keeshond", ("Keeshond dog", "Dutch barge dog")),
    ("Leonberger", ("Leonberger dog",)),
    ("Miniature Pinscher", ("Miniature Pinscher dog", "min pin", "pinscher")),
    ("Newfoundland", ("Newfoundland dog",)),
    ("Pomeranian", ("Pomeranian dog", "Pomeranian spitz")),
    ("Pug", ("Pug dog",)),
    ("Saint Bernard", ("St. Bernard", "Saint Bernard dog", "St Bernard dog")),
    ("Samoyed", ("Samoyed dog", "white Samoyed")),
    ("Scottish Terrier", ("Scottish Terrier dog", "Scottie", "Scotch terrier")),
    ("Shiba Inu", ("Shiba Inu dog", "Shiba")),
    ("Staffordshire Bull Terrier", ("Staffordshire terrier", "Staffie", "Staffordshire Bull Terrier dog")),
    ("Wheaten Terrier", ("soft-coated wheaten terrier", "Wheaten Terrier dog")),
    ("Yorkshire Terrier", ("Yorkie", "Yorkshire Terrier dog")),
)

TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a photo of a {}.",
    "a picture of a {}",
    "a close-up photo of a {}",
    "a photo of my {}",
    "a picture of a cute {}",
    "a blurry photo of a {}",
    "an image of a {}",
    "a photo of the {}, a kind of pet",
    "there is a {} in the photo",
    "the {}",
    "a {}",
    "my {}",
    "one {}",
    "find the {}",
    "{}",
    "{}",
)
"""Sentences around a name; the bare name stands twice, for it is what people type."""

SPECIES_WORDS: dict[Species, tuple[str, ...]] = {
    "cat": ("cat", "kitten", "kitty", "feline", "house cat", "domestic cat", "pet cat", "pussycat", "cats", "tomcat"),
    "dog": ("dog", "puppy", "doggy", "canine", "hound", "domestic dog", "pet dog", "doggie", "dogs", "pup"),
}

NEUTRAL_PROMPTS: tuple[str, ...] = (
    "a photo of a pet",
    "a photo of an animal",
    "an animal",
    "a pet",
    "the animal",
    "the pet",
    "a picture of my pet",
    "a furry animal",
    "pet",
    "animal",
    "a cat or a dog",
    "the main animal in the photo",
)

_PLAIN_WORDS: tuple[str, ...] = (
    *("car", "truck", "bus", "bicycle", "motorcycle", "train", "boat", "airplane", "road", "street", "traffic light"),
    *(
        "tree",
        "flower",
        "grass",
        "forest",
        "plant",
        "leaf",
        "sky",
        "cloud",
        "mountain",
        "river",
        "beach",
        "snow",
        "sea",
    ),
    *("person", "man", "woman", "child", "baby", "hand", "face", "people", "crowd", "foot", "leg", "hair", "finger"),
    *("rabbit", "horse", "bird", "fish", "cow", "sheep", "pig", "mouse", "hamster", "guinea pig", "duck", "chicken"),
    *("elephant", "giraffe", "zebra", "monkey", "snake", "lizard", "turtle", "frog", "spider", "butterfly", "parrot"),
    *(
        "sofa",
        "couch",
        "chair",
        "table",
        "bed",
        "blanket",
        "pillow",
        "carpet",
        "floor",
        "wall",
        "window",
        "door",
        "lamp",
    ),
    *("house", "building", "kitchen", "garden", "fence", "bridge", "room", "curtain", "shelf", "box", "basket", "bowl"),
    *("cup", "bottle", "plate", "knife", "fork", "spoon", "pizza", "cake", "apple", "banana", "bread", "cheese", "egg"),
    *(
        "book",
        "phone",
        "laptop",
        "keyboard",
        "television",
        "clock",
        "bag",
        "shoe",
        "hat",
        "shirt",
        "toy",
        "ball",
        "key",
    ),
    *("guitar", "piano", "camera", "umbrella", "pen", "paper", "background", "nothing", "an empty room", "landscape"),
)

_PET_CLASSES = range(151, 294)
"""Among ImageNet's 1,000: dogs, wolves, foxes, cats. The wild ones too, for their pictures look like pets."""

_PET_STEMS = (
    *("cat", "kit", "dog", "pup", "pet", "paw", "fur", "meow", "purr", "woof", "bark", "feline", "canine", "hound"),
    *("terrier", "retriev", "poodle", "bull", "spaniel", "husk", "corgi", "tabby", "mutt", "breed", "animal", "mammal"),
)


@cache
def breeds() -> tuple[Breed, ...]:
    """All 37, cats first, each in alphabetical order."""
    cats = tuple(Breed(name.replace(" ", "_"), name, "cat", synonyms) for name, synonyms in _CATS)
    # The data set writes cat breeds with capitals and dog breeds without.
    return cats + tuple(Breed(name.replace(" ", "_").lower(), name, "dog", synonyms) for name, synonyms in _DOGS)


def find_breed(key: str) -> Breed:
    """The breed that file names call `key`; ValueError for an unknown one."""
    for breed in breeds():
        if breed.key == key:
            return breed
    raise ValueError(f"got breed {key!r}, wanted one of {', '.join(breed.key for breed in breeds())}")


@cache
def distractors() -> tuple[str, ...]:
    """Several hundred things that are neither cat nor dog: ImageNet's other classes and plain words."""
    classes = [names for number, names in enumerate(_imagenet_classes()) if number not in _PET_CLASSES]
    words = {names[0]: _innocent(names) for names in classes} | {word: word for word in _PLAIN_WORDS}
    return tuple(words[key] for key in sorted(words.keys() - _pet_phrases()))


def speaks_of_pets(word: str) -> bool:
    """Whether a lower-case word stands in a breed's name, a prompt or a pet class of ImageNet, or begins like one."""
    return word.startswith(_PET_STEMS) or word in _pet_vocabulary() or word.removesuffix("s") in _pet_vocabulary()


def zero_shot_prompts() -> dict[str, tuple[str, ...]]:
    """Class name -> the prompts among which a model picks its own: the species, then each of its breeds."""
    return {
        species: (
            f"a photo of a {species}",
            *(f"a photo of {article(phrase)} {phrase}" for phrase in _breed_phrases(species)),
        )
        for species in SPECIES_WORDS
    }


def article(phrase: str) -> str:
    """ "a" or "an"."""
    return "an" if phrase[0].lower() in "aeiou" else "a"


def fill(template: str, name: str) -> str:
    """`template` with `name` in it, and the article that fits."""
    if article(name) == "an":
        template = template.replace("a {}", "an {}")
    return template.format(name)


def phrase(breed: Breed) -> str:
    """The breed as a sentence names it: "Siamese cat", "Beagle"."""
    return f"{breed.name} cat" if breed.species == "cat" else breed.name


def _breed_phrases(species: str) -> Iterable[str]:
    for breed in breeds():
        if breed.species == species:
            yield phrase(breed)


def _innocent(names: tuple[str, ...]) -> str:
    """The first name without a species in it: a lemur is called "Madagascar cat" too."""
    return next((name for name in names if not {"cat", "dog"} & set(name.lower().split())), names[0])


def _pet_phrases() -> set[str]:
    return {word for words in SPECIES_WORDS.values() for word in words} | {
        name for breed in breeds() for name in (breed.name, *breed.synonyms)
    }


@cache
def _pet_vocabulary() -> frozenset[str]:
    """Single words, lower-case; those of the sentences around a name are among them."""
    of_classes = {name for number in _PET_CLASSES for name in _imagenet_classes()[number]}
    phrases = _pet_phrases() | of_classes | {*NEUTRAL_PROMPTS, *TEMPLATES}
    return frozenset(word for phrase in phrases for word in re.findall("[a-z]+", phrase.lower()))


@cache
def _imagenet_classes() -> tuple[tuple[str, ...], ...]:
    """The names of each of the 1,000 classes, from the lists that come with timm."""
    folder = resources.files("timm") / "data" / "_info"
    lemmas = dict(line.split("\t") for line in (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    return tuple(tuple(lemmas[synset].split(", ")) for synset in (folder / "imagenet_synsets.txt").read_text().split())
