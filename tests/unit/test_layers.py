"""Layers that are computed in another way than torch computes them, and give the same."""

import pytest
import torch
import torch.nn.functional as F

from models.layers import resize, shrink_max, shrink_mean


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 3, 96, 96), (192, 192)), ((1, 1, 12, 12), (192, 192)), ((1, 2, 7, 9), (30, 4)), ((3, 4, 1, 5), (2, 5))],
)
def test_maps_of_few_channels_are_resized_as_torch_resizes_them(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(maps, *size), wanted, atol=1e-6, rtol=1e-6)
    resized = resize(maps.bfloat16(), *size)
    assert resized.dtype is torch.bfloat16
    torch.testing.assert_close(resized.float(), wanted, atol=2**-7, rtol=0)


@pytest.mark.parametrize(("size", "cells"), [(8, 4), (6, 4), (7, 7), (1, 1)])
def test_pooling_by_cells_is_adaptive_pooling(size: int, cells: int) -> None:
    maps = torch.rand(2, 3, size, size)
    torch.testing.assert_close(shrink_mean(maps, cells), F.adaptive_avg_pool2d(maps, cells))
    torch.testing.assert_close(shrink_max(maps, cells), F.adaptive_max_pool2d(maps, cells))
