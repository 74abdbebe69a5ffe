import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import confusion_matrix, scores

labels = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def test_four_pixels_by_hand() -> None:
    mask, target = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2])
    confusion = confusion_matrix(mask, target, 3)
    assert confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    result = scores(confusion, ("background", "cat", "dog"))
    assert result["iou"] == {"background": 1.0, "cat": 0.5, "dog": 0.5}
    assert result["mean_iou"] == pytest.approx(2 / 3)
    assert result["dice"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert result["pixel_accuracy"] == pytest.approx(0.75)


def test_ignored_pixels_do_not_count() -> None:
    confusion = confusion_matrix(torch.tensor([0, 1, 2]), torch.tensor([0, 255, 255]), 3)
    assert confusion.sum() == 1
    assert confusion_matrix(torch.tensor([1]), torch.tensor([255]), 3).sum() == 0


def test_a_class_never_seen_is_left_out_of_the_mean() -> None:
    result = scores(confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 1]), 3), ("background", "cat", "dog"))
    assert result["mean_iou"] == 1
    assert set(result["iou"]) == {"background", "cat"}


@given(pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_iou_is_symmetric_and_between_0_and_1(pairs: list[tuple[int, int]]) -> None:
    first, second = torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])
    names = ("background", "cat", "dog")
    one, other = (scores(confusion_matrix(a, b, 3), names) for a, b in ((first, second), (second, first)))
    assert one == other
    assert 0 <= one["mean_iou"] <= 1


@given(values=labels)
def test_agreement_scores_one(values: list[int]) -> None:
    mask = torch.tensor(values)
    assert scores(confusion_matrix(mask, mask, 3), ("a", "b", "c"))["mean_iou"] == 1
