"""Folding changes no output: only where a batch norm alone reads."""

from collections.abc import Callable
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from models.architectures import list_architectures
from models.base import SegmentationModel
from models.engine import example_images, example_prompts
from models.folding import fold_batch_norms
from training.config import load_config
from training.train import build_model


def unsettle(model: nn.Module) -> None:
    """Batch norms as training leaves them: no two channels alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)


def unsettled_model(architecture: str) -> SegmentationModel:
    """A small network of this architecture, as if it had been trained."""
    torch.manual_seed(0)
    model = build_model(load_config(f"{architecture}-compact", smoke=True)).eval()
    unsettle(model)
    return model


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("architecture", list_architectures())
def test_every_architecture_folds_whole_and_gives_the_same(architecture: str) -> None:
    model = unsettled_model(architecture)
    images, prompts = example_images(model, 2), example_prompts(model, 2)
    with torch.inference_mode():
        before = model(images, prompts)
        norms = count_norms(model)
        folded = fold_batch_norms(model, lambda: model(images, prompts))
        torch.testing.assert_close(model(images, prompts), before, atol=1e-4, rtol=1e-4)
    assert folded == norms
    assert count_norms(model) == 0


class Pair(nn.Module):
    """A convolution and a batch norm, connected by `wiring`."""

    def __init__(self, wiring: Callable[["Pair", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.wiring = wiring

    def forward(self, images: Tensor) -> Tensor:
        return self.wiring(self, images)


WIRINGS: dict[str, tuple[Callable[[Pair, Tensor], Tensor], int]] = {
    "in a row": (lambda pair, x: pair.norm(pair.conv(x)), 1),
    "asked for its shape": (lambda pair, x: pair.norm(y) if (y := pair.conv(x)).shape[0] else y, 1),
    "norm first": (lambda pair, x: pair.conv(pair.norm(x)), 0),
    "read by another too": (lambda pair, x: pair.norm(y := pair.conv(x)) + y, 0),
    "changed in between": (lambda pair, x: pair.norm(pair.conv(x).relu()), 0),
    "changed in place": (lambda pair, x: pair.norm(pair.conv(x).relu_()), 0),
    "convolved twice": (lambda pair, x: pair.conv(pair.norm(pair.conv(x))), 0),
    "normalised twice": (lambda pair, x: pair.norm(pair.norm(pair.conv(x))), 0),
}


@pytest.mark.parametrize("name", WIRINGS)
def test_only_what_feeds_the_norm_alone_is_folded(name: str) -> None:
    wiring, folds = WIRINGS[name]
    torch.manual_seed(0)
    model = Pair(wiring).eval()
    unsettle(model)
    images = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        before = model(images)
        assert fold_batch_norms(model, lambda: model(images)) == folds
        torch.testing.assert_close(model(images), before)


def test_what_other_threads_run_meanwhile_is_not_counted() -> None:
    torch.manual_seed(0)
    model = Pair(WIRINGS["in a row"][0]).eval()
    unsettle(model)
    images = torch.rand(2, 3, 8, 8)

    def run() -> None:
        other = Thread(target=model, args=(images,))
        other.start()
        other.join()
        model(images)

    assert fold_batch_norms(model, run) == 1


def test_norms_that_still_learn_are_left() -> None:
    model = Pair(WIRINGS["in a row"][0]).train()
    assert fold_batch_norms(model, lambda: model(torch.rand(2, 3, 8, 8))) == 0
