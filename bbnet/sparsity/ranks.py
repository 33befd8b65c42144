"""Sums over the ranks that train one model together; nothing happens where there is one rank."""

from torch import Tensor, distributed


def rank_count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> None:
    """In place."""
    if rank_count() > 1:
        distributed.all_reduce(tensor)


def mean_over_ranks(tensor: Tensor) -> None:
    """In place."""
    if rank_count() > 1:
        distributed.all_reduce(tensor)
        tensor /= rank_count()
