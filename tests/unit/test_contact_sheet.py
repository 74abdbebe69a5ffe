from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.prompts import PromptKind
from training.contact_sheet import contact_sheet, overlay
from training.dataset import PetDataset
from training.prompt_sampling import SamplingConfig, make_sampler


@pytest.mark.parametrize("kind", list(PromptKind))
def test_a_sheet_shows_every_kind_of_prompt(prepared_pets: Path, tmp_path: Path, kind: PromptKind) -> None:
    dataset = PetDataset(prepared_pets, "train", sampler=make_sampler(kind, SamplingConfig()), collage_probability=0.5)
    contact_sheet(dataset, tmp_path / "new" / "sheet.png", count=8)
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size == (2 * 2 * 160, 4 * 174)
        assert len(sheet.getcolors(1 << 20) or []) > 500


def test_the_split_may_be_smaller_than_the_sheet(prepared_pets: Path, tmp_path: Path) -> None:
    contact_sheet(PetDataset(prepared_pets, "validation"), tmp_path / "sheet.png", count=1000)
    assert (tmp_path / "sheet.png").exists()
    with pytest.raises(ValueError, match="count=0"):
        contact_sheet(PetDataset(prepared_pets, "validation"), tmp_path / "sheet.png", count=0)


def test_overlay_colours_each_class_and_leaves_background() -> None:
    image = np.full((1, 4, 3), 100, np.uint8)
    shown = overlay(image, np.array([[0, 1, 2, 255]], np.uint8))
    assert shown[0].tolist() == [[100, 100, 100], [165, 80, 80], [80, 95, 170], [175, 160, 70]]
    assert (image == 100).all()
