"""Masks: selecting an exact number of the largest connections, ties broken by index, and packing masks as bits."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def keep_largest(scores: Tensor, degrees: Tensor) -> Tensor:
    """Returns a bool mask [units, fan] of the `degrees[j]` largest `scores` of each row j, ties to the lower index.

    Args:
        scores: [units, fan], finite.
        degrees: int64 [units], each in [0, fan].
    Raises: ValueError if a score is NaN or infinite.
    """
    # aminmax propagates NaN, and on a CPU takes a tenth of the time of isfinite().all().
    if not bool(torch.stack(scores.aminmax()).isfinite().all()):
        raise ValueError("weights hold NaN or infinite values")
    return _keep_by_partition(scores, degrees) if scores.device.type == "cpu" else _keep_by_sort(scores, degrees)


def keep_largest_of_all(scores: Tensor, count: int) -> Tensor:
    """Returns a bool mask of the `count` largest entries of `scores`, ties to the lower flat index."""
    return keep_largest(scores.reshape(1, -1), torch.tensor([count], device=scores.device)).reshape(scores.shape)


def keep_largest_of_slabs(scores: Sequence[Tensor], kernels: Sequence[int], total: int) -> list[Tensor]:
    """Returns bool masks of the largest entries of all `scores` together, ties to the earlier entry.

    Entries are kept from the largest one on, until the next one would exceed `total` weights.

    Args:
        kernels: the number of weights of an entry, for each of `scores`.
    """
    joined = torch.cat([each.flatten() for each in scores])
    if len(set(kernels)) == 1:
        kept = keep_largest_of_all(joined, total // kernels[0])
    else:
        weights = torch.cat(
            [
                torch.full_like(each.flatten(), kernel, dtype=torch.int64)
                for each, kernel in zip(scores, kernels, strict=True)
            ]
        )
        order = joined.argsort(descending=True, stable=True)
        kept = torch.empty_like(joined, dtype=torch.bool)
        kept[order] = weights[order].cumsum(0) <= total
    parts = kept.split([each.numel() for each in scores])
    return [part.reshape(each.shape) for part, each in zip(parts, scores, strict=True)]


def drop_and_grow(mask: Tensor, magnitudes: Tensor, growth: Tensor | None, count: int, share: float) -> Tensor:
    """Drops the smallest entries of `mask` and grows the best of all others, to exactly `count` entries.

    floor(share * count) entries grow. As many are dropped, plus those that `mask` has in excess of `count`. An entry
    that was just dropped may grow again.

    Args:
        mask: bool [units, fan], at least `count` entries.
        magnitudes: [units, fan], non-negative; the smallest are dropped.
        growth: [units, fan], non-negative; the largest grow. None if nothing is to grow.
    """
    grown = 0 if growth is None else math.floor(share * count)
    kept = keep_largest_of_all(torch.where(mask, magnitudes, -1.0), count - grown)
    return kept | keep_largest_of_all(torch.where(kept, -1.0, growth), grown) if grown else kept


def project_to_pattern(mask: Tensor, ranking: Tensor, kept: int, size: int) -> Tensor:
    """Returns a mask with as many entries as `mask`, `kept` or more in each `size` consecutive connections of a unit.

    Within a group, entries of `mask` come first, then the higher rank, then the lower index. While the density is
    above `kept` / `size`, as on the ramp, the best of the other entries of `mask` are kept too. At density
    `kept` / `size` the result is N:M.

    Args:
        mask: bool [units, fan], fan a multiple of `size`, of density `kept` / `size` or more.
        ranking: [units, fan], finite and not negative.
    """
    best_first = ranking.reshape(-1, size).argsort(dim=1, descending=True, stable=True)
    in_mask = mask.reshape(-1, size).gather(1, best_first)
    order = best_first.gather(1, in_mask.byte().argsort(dim=1, descending=True, stable=True))
    in_group = torch.zeros_like(in_mask).scatter_(1, order[:, :kept], True).reshape(mask.shape)
    rest = int(mask.sum()) - int(in_group.sum())
    others = mask & ~in_group
    return in_group | keep_largest_of_all(torch.where(others, ranking, -1.0), rest) if rest else in_group


def _keep_by_sort(scores: Tensor, degrees: Tensor) -> Tensor:
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept = torch.arange(scores.shape[1], device=scores.device) < degrees[:, None]
    return torch.zeros_like(kept).scatter_(1, order, kept)


def _keep_by_partition(scores: Tensor, degrees: Tensor) -> Tensor:
    """Finds each row's threshold by a partition per degree, which on a CPU is far cheaper than a sort."""
    # numpy has no bfloat16; float32 represents all of its values.
    scores = scores.float() if scores.dtype == torch.bfloat16 else scores
    values, wanted = scores.detach().numpy(), degrees.numpy()
    units, fan = values.shape
    thresholds = np.full((units, 1), np.inf, dtype=values.dtype)
    for degree in np.unique(wanted[wanted > 0]):
        rows = np.flatnonzero(wanted == degree)
        of_degree = values[rows]
        of_degree.partition(fan - degree, axis=1)
        thresholds[rows, 0] = of_degree[:, fan - degree]
        del of_degree  # as large as the scores
    kept = values >= thresholds
    tied = np.flatnonzero(np.count_nonzero(kept, axis=1) != wanted)
    if len(tied):
        above = values[tied] > thresholds[tied]
        level = kept[tied] & ~above
        remaining = wanted[tied, None] - np.count_nonzero(above, axis=1, keepdims=True)
        number = np.int32 if fan < 2**31 else np.int64  # half the memory, where it suffices
        kept[tied] = above | (level & (np.cumsum(level, axis=1, dtype=number) <= remaining))
    return torch.from_numpy(kept)


def pack_masks(masks: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns masks packed to 1 bit per connection (uint8, C order), and their shapes "[units, fan]", by name."""
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in masks.items()}
    return packed, {name: str(list(mask.shape)) for name, mask in masks.items()}


def unpack_masks(packed: dict[str, Tensor], shapes: dict[str, str]) -> dict[str, Tensor]:
    """Inverts `pack_masks`: returns masks, bool [units, fan], by name."""
    masks = {}
    for name, bits in packed.items():
        units, fan = (int(extent) for extent in shapes[name].strip("[]").split(","))
        flat = np.unpackbits(bits.cpu().numpy(), count=units * fan)
        masks[name] = torch.from_numpy(flat.astype(bool).reshape(units, fan))
    return masks
