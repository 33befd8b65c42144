"""Top-K by a partition keeps what torch's topk keeps, to the entry, whatever ties or NaN there are."""

import pytest
import torch

from bbnet.sparsity.algorithms.topk import TopK, _largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("levels", [None, 1, 2, 7])
@pytest.mark.parametrize("units", [1, 2, 9, 64])
def test_a_partition_keeps_what_topk_keeps(units, levels, dtype):
    outputs = torch.randn(5, 4, units, generator=torch.Generator().manual_seed(units)).to(dtype)
    if levels is not None:
        outputs = (outputs * levels).round()
    for count in {1, units // 2, units - 1, units} - {0}:
        kept = TopK().kept(outputs, count)
        assert torch.equal(kept, _largest(outputs, count))
        assert (kept.sum(-1) == count).all()


def test_rows_with_nan_or_infinity_keep_as_many():
    outputs = torch.randn(6, 8)
    outputs[0, 3] = outputs[1] = float("nan")
    outputs[2, :5] = float("inf")
    outputs[3, :6] = -float("inf")
    kept = TopK().kept(outputs, 3)
    assert torch.equal(kept, _largest(outputs, 3))
    assert (kept.sum(-1) == 3).all()


def test_outputs_that_are_no_rows_of_memory_are_ranked_by_unit():
    """As behind a convolution, whose channels are not the last axis."""
    maps = torch.randn(2, 6, 5, 5)
    outputs = maps.movedim(1, -1)
    assert torch.equal(TopK().kept(outputs, 2), _largest(outputs.contiguous(), 2))
