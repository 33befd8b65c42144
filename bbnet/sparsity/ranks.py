"""Reductions over the ranks of distributed training. With one rank they do nothing."""

from torch import Tensor, distributed


def rank_count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> None:
    """Replaces `tensor` in-place by its sum over all ranks."""
    if rank_count() > 1:
        distributed.all_reduce(tensor)


def mean_over_ranks(tensor: Tensor) -> None:
    """Replaces `tensor` in-place by its mean over all ranks."""
    if rank_count() > 1:
        distributed.all_reduce(tensor)
        tensor /= rank_count()
