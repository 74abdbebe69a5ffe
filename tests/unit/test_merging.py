"""Each way to merge maps gives the same, up to the very corners."""

import pytest
import torch
from torch import Tensor, nn

from models.architectures import list_architectures
from models.engine import example_images, example_prompts
from models.folding import fold_batch_norms
from models.layers import MergeBlock
from models.merging import CoarseMerge, Merging, SplitMerge, rewrite_merges
from tests.unit.test_folding import unsettle, unsettled_model


class Merge(nn.Module):
    def __init__(self, coarse_channels: int, fine_channels: int, out_channels: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block: nn.Module = MergeBlock(coarse_channels, fine_channels, out_channels, dropout=0.5)
        unsettle(self)
        self.eval()

    def forward(self, coarse: Tensor, *fine: Tensor) -> Tensor:
        merged: Tensor = self.block(coarse, *fine)
        return merged


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def check_that_it_gives_the_same(
    merging: Merging, way: type[nn.Module], merge: Merge, coarse: Tensor, fine: tuple[Tensor, ...], is_folded: bool
) -> None:
    with torch.inference_mode():
        if is_folded:
            fold_batch_norms(merge, lambda: merge(coarse, *fine))
        before = merge(coarse, *fine)
        assert rewrite_merges(merge, merging, lambda: merge(coarse, *fine)) == 1
        assert isinstance(merge.block, way)
        torch.testing.assert_close(merge(coarse, *fine), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_folded", [True, False], ids=["folded", "with batch norms"])
@pytest.mark.parametrize(("height", "width"), [(5, 5), (4, 7), (2, 3), (1, 6), (1, 1)])
def test_doubled_maps_give_the_same(height: int, width: int, is_folded: bool) -> None:
    fine = (noise(3, 3, 2 * height, 2 * width), noise(3, 1, 2 * height, 2 * width))
    coarse = noise(3, 7, height, width)
    check_that_it_gives_the_same(Merging.COARSE_FIRST, CoarseMerge, Merge(7, 4), coarse, fine, is_folded)


@pytest.mark.parametrize("is_folded", [True, False], ids=["folded", "with batch norms"])
@pytest.mark.parametrize("size", [(8, 8), (7, 12), (4, 4)], ids=str)
def test_split_maps_give_the_same(size: tuple[int, int], is_folded: bool) -> None:
    fine = (noise(3, 10, *size), noise(3, 6, *size))
    check_that_it_gives_the_same(Merging.SPLIT, SplitMerge, Merge(32, 16, 16), noise(3, 32, 4, 4), fine, is_folded)


@pytest.mark.parametrize("channels", [(24, 16, 16), (32, 24, 16), (32, 16, 24)], ids=str)
def test_maps_that_do_not_fill_matrix_units_stay_joined(channels: tuple[int, int, int]) -> None:
    merge, coarse, fine = Merge(*channels), noise(1, channels[0], 2, 2), noise(1, channels[1], 4, 4)
    assert rewrite_merges(merge, Merging.SPLIT, lambda: merge(coarse, fine)) == 0
    assert isinstance(merge.block, MergeBlock)


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (7, 8), (12, 12)], ids=str)
def test_other_enlargings_come_before_the_convolution(size: tuple[int, int]) -> None:
    merge, coarse, fine = Merge(3, 2), noise(1, 3, 4, 4), noise(1, 2, *size)
    assert rewrite_merges(merge, Merging.COARSE_FIRST, lambda: merge(coarse, fine)) == 0
    assert isinstance(merge.block, MergeBlock)


@pytest.mark.parametrize("merging", Merging)
def test_blocks_that_do_not_run_stay_as_they_are(merging: Merging) -> None:
    merge = Merge(16, 16, 16)
    assert rewrite_merges(merge, merging, lambda: None) == 0
    assert isinstance(merge.block, MergeBlock)


@pytest.mark.parametrize("merging", Merging)
def test_a_network_without_such_blocks_does_not_run(merging: Merging) -> None:
    def run() -> None:
        raise AssertionError("ran")

    assert rewrite_merges(nn.Sequential(nn.Conv2d(3, 3, 3)), merging, run) == 0


@pytest.mark.parametrize("merging", Merging)
@pytest.mark.parametrize("architecture", list_architectures())
def test_every_architecture_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, architecture: str, merging: Merging
) -> None:
    monkeypatch.setattr("models.merging._TILE_CHANNELS", 1)  # the networks of tests have few
    model = unsettled_model(architecture)
    images, prompts = example_images(model, 2), example_prompts(model, 2)
    with torch.inference_mode():
        fold_batch_norms(model, lambda: model(images, prompts))
        before = model(images, prompts)
        replaced = rewrite_merges(model, merging, lambda: model(images, prompts))
        torch.testing.assert_close(model(images, prompts), before, atol=1e-4, rtol=1e-4)
    assert replaced == sum(isinstance(module, SplitMerge | CoarseMerge) for module in model.modules())
    # The autoencoder's decoder has transposed convolutions.
    assert (replaced > 0) == (merging is not Merging.JOINED and architecture != "autoencoder")
