import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.bootstrap import estimate_mean, estimate_mean_iou, interval
from training.metrics import mean_iou

counts = st.lists(st.lists(st.integers(0, 50), min_size=9, max_size=9), min_size=1, max_size=8)


def test_a_share_is_as_sure_as_the_binomial_law_says() -> None:
    answers = torch.cat([torch.ones(3000), torch.zeros(1000)])
    low, high = estimate_mean(answers)["interval"]
    deviation = (0.75 * 0.25 / 4000) ** 0.5
    assert low == pytest.approx(0.75 - 1.96 * deviation, abs=0.2 * deviation)
    assert high == pytest.approx(0.75 + 1.96 * deviation, abs=0.2 * deviation)


def test_two_photos_by_hand() -> None:
    # One photo all right, one all wrong: both drawn twice, or once each, with probabilities 1/4, 1/4 and 1/2.
    confusions = torch.tensor([[[4, 0], [0, 4]], [[0, 4], [4, 0]]])
    assert estimate_mean_iou(confusions) == {"mean_iou": 0.3333, "mean_iou_interval": [0.0, 1.0]}
    assert interval(confusions, mean_iou, level=0.4) == pytest.approx((1 / 3, 1 / 3))


def test_without_intervals_the_score_stands_alone() -> None:
    assert estimate_mean(torch.tensor([0.0, 1.0, 1.0]), intervals=False) == {"mean": 0.6667}
    assert estimate_mean_iou(torch.eye(2)[None], intervals=False) == {"mean_iou": 1.0}


def test_no_photos_have_no_score() -> None:
    assert estimate_mean(torch.zeros(0)) == {}
    assert estimate_mean_iou(torch.zeros(0, 3, 3)) == {}
    with pytest.raises(ValueError, match="got 0 photos"):
        interval(torch.zeros(0), lambda sums: sums)


@settings(max_examples=30, deadline=None)
@given(photos=counts, copies=st.integers(1, 5), factor=st.integers(1, 7))
def test_laws_of_the_interval(photos: list[list[int]], copies: int, factor: int) -> None:
    confusions = torch.tensor(photos).reshape(-1, 3, 3)
    low, high = interval(confusions, mean_iou, resamples=100)
    assert 0 <= low <= high <= 1
    # The same seed draws the same photos, and larger photos of the same shares change nothing.
    assert interval(confusions * factor, mean_iou, resamples=100) == pytest.approx((low, high))
    # Photos that are all alike leave no doubt.
    alike = confusions[:1].repeat(copies, 1, 1)
    assert interval(alike, mean_iou, resamples=50) == pytest.approx((float(mean_iou(confusions[0])),) * 2)
