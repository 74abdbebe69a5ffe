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
from tests.drawn_photos import write_photo
from tests.fakes import ClickModel
from training.click_evaluation import MAX_CLICKS, ClickScores, evaluate_clicks
from training.official_layout import PetRecord, trimap_path

CONFIG = ArchitectureConfig(image_size=32, class_names=("background", "object"))


class SilentModel(ClickModel):
    """Takes clicks and answers "nothing"."""

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        nothing = torch.full_like(images[:, 0], -1.0)
        return torch.stack([torch.zeros_like(nothing), nothing], dim=1)


def write_discs(root: Path, name: str, *centres: tuple[int, int]) -> PetRecord:
    """A black photo whose animal is what ClickModel answers to a click on each of `centres` (x, y)."""
    y, x = np.mgrid[:32, :32]
    animal = np.zeros((32, 32), bool)
    for centre_x, centre_y in centres:
        animal |= np.hypot(x - centre_x, y - centre_y) < 5
    return write_photo(root, name, 1, np.zeros((32, 32, 3), np.uint8), animal)


def test_one_and_two_discs_by_hand(tmp_path: Path) -> None:
    records = [write_discs(tmp_path, "Siamese_1", (10, 12)), write_discs(tmp_path, "Siamese_2", (8, 8), (24, 23))]
    model = ClickModel(CONFIG)
    result = evaluate_clicks(model, tmp_path, records)
    assert result.iou[0].tolist() == [1.0] * MAX_CLICKS
    assert result.iou[1].tolist() == [0.5] + [1.0] * (MAX_CLICKS - 1)
    assert result.clicks_needed(0.9).tolist() == [1, 2]
    summary = result.summary(intervals=False)
    assert summary["photos"] == 2
    assert summary["noc"] == {"85": {"mean": 1.5, "failed": 0.0}, "90": {"mean": 1.5, "failed": 0.0}}
    # A disc has 69 pixels: 138 of 207 are found at the first click, and of 1,910 pixels wrongly or rightly empty 1,841.
    wanted = (138 / 207 + 1841 / 1910) / 2
    assert summary["after_clicks"]["1"]["boundary_ignore"]["mean_iou"] == pytest.approx(wanted, abs=1e-4)
    for count in ("2", "3", "5"):
        assert summary["after_clicks"][count]["boundary_background"]["mean_iou"] == 1
    border = summary["border_click"]
    assert 0.5 < border["mean_iou"] < wanted
    assert border["drop"] == pytest.approx(wanted - border["mean_iou"], abs=2e-4)
    # Encoded once; decoded for the border, the first click, and the second on the one photo that needs it.
    assert model.encoded_rows == [2]
    assert model.decoded_rows == [2, 2, 1]


def test_a_photo_that_never_gets_there_counts_as_the_cap(tmp_path: Path) -> None:
    records = [write_discs(tmp_path, f"Siamese_{number}", (12, 12)) for number in (1, 2)]
    summary = evaluate_clicks(SilentModel(CONFIG), tmp_path, records).summary()
    assert summary["noc"]["90"] == {"mean": 20.0, "interval": [20.0, 20.0], "failed": 1.0}
    assert summary["border_click"]["drop"] == 0
    assert summary["border_click"]["drop_interval"] == [0.0, 0.0]


def test_a_missing_photo_is_named_and_none_at_all_is_no_fault(tmp_path: Path) -> None:
    summary = evaluate_clicks(ClickModel(CONFIG), tmp_path, [PetRecord("Siamese_9", "Siamese", 1)]).summary()
    assert summary["photos"] == 0
    assert list(summary["skipped"]) == ["Siamese_9"]


class StubbornModel(ClickModel):
    """Answers the disc of the first click, whatever is clicked later."""

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        labels = prompt["point_labels"].clone()
        labels[:, 1:] = -1
        return super().score(images, {**prompt, "point_labels": labels})


def test_nobody_clicks_on_when_every_figure_is_settled(tmp_path: Path) -> None:
    record = write_discs(tmp_path, "Siamese_1", (12, 12))
    trimap = np.array(Image.open(trimap_path(tmp_path, record.name)))
    trimap[25, 25] = 1  # never found: 69 of 70 pixels stay right
    Image.fromarray(trimap).save(trimap_path(tmp_path, record.name))
    model = StubbornModel(CONFIG)
    result = evaluate_clicks(model, tmp_path, [record])
    assert result.iou[0].tolist() == pytest.approx([69 / 70] * MAX_CLICKS)
    assert len(model.decoded_rows) == 1 + 5


def test_a_goal_is_reached_at_its_very_value() -> None:
    iou, none = torch.tensor([[0.8, 0.85, 0.9] + [0.0] * 17], dtype=torch.float64), torch.zeros(1, 4, 2, 2)
    result = ClickScores({"ignore": none, "background": none}, none[:, 0], iou, {})
    assert [float(result.clicks_needed(goal)) for goal in (0.85, 0.9)] == [2, 3]


@given(curves=st.lists(st.lists(st.floats(0, 1), min_size=MAX_CLICKS, max_size=MAX_CLICKS), min_size=1, max_size=5))
def test_a_higher_goal_needs_no_fewer_clicks(curves: list[list[float]]) -> None:
    iou, none = torch.tensor(curves, dtype=torch.float64), torch.zeros(len(curves), 4, 2, 2)
    result = ClickScores({"ignore": none, "background": none}, none[:, 0], iou, {})
    lower, higher = result.clicks_needed(0.85), result.clicks_needed(0.9)
    assert (lower <= higher).all()
    assert lower.min() >= 1
    assert higher.max() <= MAX_CLICKS
