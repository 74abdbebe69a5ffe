"""What a network learns beside its label maps."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.architectures import get_architecture
from training.dataset import BREEDS
from training.lessons import BREED_HEAD, add_breed_head, breed_naming, distillation, pairwise_distillation


class Teacher(nn.Module):
    """Takes the image for its features and logits."""

    class config:  # noqa: N801
        image_size = 4

    def features_and_logits(self, images: Tensor, prompt: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        return (images,), images


class Contrary(Teacher):
    def features_and_logits(self, images: Tensor, prompt: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        return (images,), -images


class Forgetful(Teacher):
    def features_and_logits(self, images: Tensor, prompt: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        return (images.flip(2),), images


def learned(teacher: Teacher, feature_weight: float) -> float:
    """What a student costs that answers as `Teacher` does."""
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    lesson = distillation(teacher, 3.0, feature_weight)  # type: ignore[arg-type]
    return lesson((images,), images, {"image": images, "prompt": {}}).item()


def test_a_teacher_that_agrees_in_everything_teaches_nothing() -> None:
    assert learned(Teacher(), 2.0) == pytest.approx(0, abs=1e-6)


def test_a_teacher_of_other_logits_or_features_does() -> None:
    assert learned(Contrary(), 0.0) > 0.1
    assert learned(Forgetful(), 2.0) > 0.1
    assert learned(Forgetful(), 0.0) == pytest.approx(0, abs=1e-6)


def test_pairwise_distillation_sees_likeness_alone() -> None:
    features = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    # Turned, scaled, shifted and in a wider space, places are as alike as they were.
    turn = torch.linalg.qr(torch.randn(5, 3, generator=torch.Generator().manual_seed(1))).Q
    turned = 2 * torch.einsum("oc,bchw->bohw", turn, features) + 7
    torch.testing.assert_close(pairwise_distillation(features, turned), torch.tensor(0.0))
    # Two places that differ and two that are the same: half of the four similarities are 1 against -1.
    apart, same = torch.tensor([[[[1.0, -1.0]]]]), torch.tensor([[[[1.0, 1.0]]], [[[-1.0, -1.0]]]])
    torch.testing.assert_close(pairwise_distillation(apart.repeat(2, 1, 1, 1), same), torch.tensor(2.0))


def shares(*breeds: str) -> Tensor:
    row = torch.zeros(len(BREEDS))
    for breed in breeds:
        row[BREEDS[breed]] = 1 / len(breeds)
    return row


def test_breed_naming_by_hand() -> None:
    # The mean of the map, 2, is the logit of the Beagle; the 36 others have 0.
    head = nn.Linear(1, len(BREEDS), bias=False)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[BREEDS["beagle"]] = 1
    features = torch.tensor([[[[1.0, 3.0]]]]).expand(3, 1, 1, 2)
    batch = {"breeds": torch.stack([shares("beagle"), shares("beagle", "Siamese"), shares()])}
    total = math.log(math.exp(2) + 36)
    wanted = 0.5 * ((total - 2) + (total - 1) + 0) / 3
    assert breed_naming(head, 0.5)((features,), features, batch).item() == pytest.approx(wanted)


@pytest.mark.parametrize("architecture", ["unet", "timm_unet", "autoencoder"])
def test_a_breed_head_reads_the_deepest_features(architecture: str) -> None:
    kind = get_architecture(architecture)
    model = kind(kind.Config(image_size=64))
    add_breed_head(model)
    features, logits = model.features_and_logits(torch.rand(2, 3, 64, 64), {})
    batch = {"breeds": torch.stack([shares("pug"), shares("Siamese")])}
    loss = breed_naming(model.get_submodule(BREED_HEAD), 1.0)(features, logits, batch)
    torch.autograd.backward(loss)
    assert all(parameter.grad is not None for parameter in model.get_submodule(BREED_HEAD).parameters())
    assert BREED_HEAD in model.training_only
    assert BREED_HEAD not in kind.training_only  # of this network, not of its kind
