"""Data sets that several tests read, made once for each test run."""

from pathlib import Path

import pytest

from training.preparation import prepare
from training.synthetic import generate


@pytest.fixture(scope="session")
def raw_pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 drawn photos of 64 px in the official layout: 24 in trainval.txt, 12 in test.txt. Not to be written to."""
    return generate(tmp_path_factory.mktemp("pets") / "raw", count=36, image_size=64)


@pytest.fixture(scope="session")
def prepared_pets(raw_pets: Path) -> Path:
    """The same prepared at 48 px with a quarter of trainval as validation. Not to be written to."""
    folder = raw_pets.parent / "prepared"
    prepare(raw_pets, folder, 48, validation_fraction=0.25)
    return folder
