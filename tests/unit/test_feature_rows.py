"""Photos' features are taken out of batches and put together again as they were."""

import pytest
import torch

from models.base import Features
from service.feature_rows import join_features, split_features


def features(rows: int) -> Features:
    return (
        torch.randn(rows, 6, 1, 1),
        torch.randn(rows, 4, 5, 7, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last),
        torch.randn(rows, 3, 2, 2),
        torch.randn(rows, 1, 3, 3, dtype=torch.bfloat16),
    )


def test_rows_of_several_batches_make_a_new_one() -> None:
    first, second = features(3), features(1)
    one, two, three = split_features(first)
    (four,) = split_features(second)
    joined = join_features([three, four, one, three])
    for level, a, b in zip(joined, first, second, strict=True):
        assert level.dtype is a.dtype
        assert torch.equal(level, torch.stack([a[2], b[0], a[0], a[2]]))
    assert two.layout == one.layout == four.layout


def test_a_row_owns_what_it_counts_and_no_more() -> None:
    given = features(4)
    for row in split_features(given):
        assert row.size_bytes == sum(level[0].numel() * level.element_size() for level in given)
        assert row.size_bytes == sum(part.untyped_storage().nbytes() for part in row.parts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="splits on a GPU, and torch sees none here")
def test_a_gpu_splits_alike() -> None:
    given = features(3)
    on_gpu = split_features(tuple(level.cuda() for level in given))
    for row, wanted in zip(on_gpu, split_features(given), strict=True):
        assert [part.cpu().tolist() for part in row.parts] == [part.tolist() for part in wanted.parts]
        assert row.size_bytes == sum(part.untyped_storage().nbytes() for part in row.parts)
