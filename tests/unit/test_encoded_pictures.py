from pathlib import Path

import numpy as np
import pytest

from models.base import ArchitectureConfig
from tests.drawn_photos import write_block
from tests.fakes import ColourModel, picture
from training.encoded_pictures import EncodedPictures, PhotoReader
from training.official_layout import PetRecord

CONFIG = ArchitectureConfig(image_size=32)


def test_prompts_reach_the_pictures_they_are_about() -> None:
    model = ColourModel(CONFIG)
    pictures = EncodedPictures(model, [picture(60, 40), picture(20, 33)])
    wide, upright = pictures.masks([None, None])
    assert wide.shape == (40, 60)
    assert upright.shape == (33, 20)
    assert set(np.unique(wide)) == {0, 1, 2}
    again, once_more, first = pictures.masks([None] * 3, rows=[1, 1, 0])
    assert np.array_equal(again, upright)
    assert np.array_equal(once_more, upright)
    assert np.array_equal(first, wide)
    assert model.encoded_rows == [2]
    with pytest.raises(ValueError, match="zip"):
        pictures.masks([None], rows=[0, 1])


def test_batches_hold_what_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = [write_block(tmp_path, f"pug_{number}", 2) for number in (1, 2, 3)]
    gone = [PetRecord(f"pug_{number}", "pug", 2) for number in (7, 8)]
    reader = PhotoReader(tmp_path, [there[0], *gone, *there[1:]])
    batches = [[record.name for record, _ in batch] for batch in reader.batches("pugs", 2)]
    assert batches == [["pug_1"], ["pug_2"], ["pug_3"]]
    assert list(reader.skipped) == ["pug_7", "pug_8"]
    assert capsys.readouterr().out == ""
