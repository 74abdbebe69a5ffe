import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses import (
    LOSSES,
    Lesson,
    cross_entropy,
    dice,
    focal,
    frequency_weights,
    get_loss,
    hybrid,
    mean_squared_error,
    reconstruction,
    segmentation,
)
from training.official_layout import IGNORE

# Two pixels: the first says class 0 with probability 3/4, the second is undecided between two classes.
LOGITS = torch.tensor([[[[math.log(3.0), 0.0]], [[0.0, 0.0]]]])
TARGET = torch.tensor([[[0, 1]]])


def random_pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 4, generator=generator), torch.randint(0, 3, (2, 4, 4), generator=generator)


def test_cross_entropy_by_hand() -> None:
    assert cross_entropy(LOGITS, TARGET).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_weighted_cross_entropy_equals_torch() -> None:
    logits, target = random_pair()
    weights = torch.tensor([0.5, 2.0, 3.0])
    expected = F.cross_entropy(logits, target, weights)
    torch.testing.assert_close(get_loss("weighted_cross_entropy", weights)(logits, target), expected)


def test_mean_squared_error_by_hand() -> None:
    # (1/4)^2 for both classes of the first pixel, (1/2)^2 for both of the second.
    assert mean_squared_error(LOGITS, TARGET).item() == pytest.approx((2 / 16 + 2 / 4) / 4)


def test_binary_cross_entropy_equals_torch() -> None:
    logits, target = random_pair()
    one_hot = F.one_hot(target, 3).permute(0, 3, 1, 2).float()
    expected = F.binary_cross_entropy_with_logits(logits, one_hot)
    torch.testing.assert_close(get_loss("bce")(logits, target), expected)


def test_dice_by_hand() -> None:
    # Class 0: p = 3/4 + 1/2, truth 1, overlap 3/4; class 1: p = 1/4 + 1/2, truth 1, overlap 1/2; smoothing 1.
    expected = 1 - ((1.5 + 1) / (2.25 + 1) + (1 + 1) / (1.75 + 1)) / 2
    assert dice(LOGITS, TARGET).item() == pytest.approx(expected)


def test_hybrid_is_the_sum() -> None:
    assert hybrid(LOGITS, TARGET).item() == pytest.approx(
        cross_entropy(LOGITS, TARGET).item() + dice(LOGITS, TARGET).item()
    )


def test_focal_by_hand() -> None:
    expected = ((1 / 4) ** 2 * math.log(4 / 3) + (1 / 2) ** 2 * math.log(2)) / 2
    assert focal(LOGITS, TARGET).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", [*LOSSES, "weighted_cross_entropy"])
def test_ignored_pixels_change_nothing(name: str) -> None:
    loss = get_loss(name, torch.tensor([1.0, 2.0, 3.0]))
    logits, target = random_pair()
    target[:, :, 3] = IGNORE
    changed = logits.clone()
    changed[:, :, :, 3] += 5 * torch.randn(2, 3, 4)
    torch.testing.assert_close(loss(logits, target), loss(changed, target))


@pytest.mark.parametrize("name", [*LOSSES, "weighted_cross_entropy"])
def test_all_ignored_is_finite_with_a_finite_gradient(name: str) -> None:
    logits = random_pair()[0].requires_grad_()
    loss = get_loss(name, torch.ones(3))(logits, torch.full((2, 4, 4), IGNORE))
    torch.autograd.backward(loss)
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", [*LOSSES, "weighted_cross_entropy"])
def test_the_truth_costs_less_than_a_guess(name: str) -> None:
    loss = get_loss(name, torch.ones(3))
    _, target = random_pair()
    certain = 10 * F.one_hot(target, 3).permute(0, 3, 1, 2).float() - 5
    assert loss(certain, target) < loss(torch.zeros_like(certain), target)


def test_unknown_loss_is_named() -> None:
    with pytest.raises(ValueError, match="got loss 'huber', wanted one of mse"):
        get_loss("huber")


def test_frequency_weights_are_one_for_the_median_class() -> None:
    torch.testing.assert_close(frequency_weights(torch.tensor([80, 20, 10])), torch.tensor([0.25, 1.0, 2.0]))


class Model(torch.nn.Module):
    """Gives the image's channels as logits."""

    def forward(self, images: Tensor, prompt: dict[str, Tensor]) -> Tensor:
        return images

    def features_and_logits(self, images: Tensor, prompt: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        return (images + 1,), images

    def reconstruct(self, images: Tensor) -> Tensor:
        return images * 0.5


def test_objectives() -> None:
    logits, target = random_pair()
    batch = {"image": logits, "prompt": {}, "target": target}
    plain = segmentation(cross_entropy)(Model(), batch)
    torch.testing.assert_close(plain, cross_entropy(logits, target))
    torch.testing.assert_close(reconstruction(Model(), batch), (logits * 0.5).square().mean())


def test_lessons_see_features_and_logits_and_are_added() -> None:
    logits, target = random_pair()
    batch = {"image": logits, "prompt": {}, "target": target}
    lessons: list[Lesson] = [
        lambda features, logits, batch: (features[-1] - logits).mean(),  # 1
        lambda features, logits, batch: batch["target"].new_tensor(2.0, dtype=torch.float32),
    ]
    taught = segmentation(cross_entropy, lessons)(Model(), batch)
    torch.testing.assert_close(taught, cross_entropy(logits, target) + 3)
