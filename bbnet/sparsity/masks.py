"""Which connections a unit keeps: exact counts of the largest, ties by index; and masks as packed bits."""

import numpy as np
import torch
from torch import Tensor


def keep_largest(scores: Tensor, degrees: Tensor) -> Tensor:
    """Bool mask [units, fan]: exactly `degrees[j]` entries per row, at the largest `scores`, ties to the lower index.

    Args:
        scores: [units, fan], finite.
        degrees: int64 [units], each in [0, fan].
    Raises: ValueError if a score is NaN or infinite.
    """
    # amin and amax carry NaN along, and cost a tenth of isfinite().all() on a CPU.
    if not bool(torch.stack(scores.aminmax()).isfinite().all()):
        raise ValueError("weights hold NaN or infinite values")
    return _keep_by_partition(scores, degrees) if scores.device.type == "cpu" else _keep_by_sort(scores, degrees)


def keep_largest_of_all(scores: Tensor, count: int) -> Tensor:
    """Bool mask of the shape of `scores`: exactly `count` entries, at the largest, ties to the lower flat index."""
    return keep_largest(scores.reshape(1, -1), torch.tensor([count], device=scores.device)).reshape(scores.shape)


def _keep_by_sort(scores: Tensor, degrees: Tensor) -> Tensor:
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept = torch.arange(scores.shape[1], device=scores.device) < degrees[:, None]
    return torch.zeros_like(kept).scatter_(1, order, kept)


def _keep_by_partition(scores: Tensor, degrees: Tensor) -> Tensor:
    """A partition finds each row's threshold; rows of one degree share a call. Far cheaper than a sort on a CPU."""
    # numpy has no bfloat16, and float32 holds all of it.
    scores = scores.float() if scores.dtype == torch.bfloat16 else scores
    values, wanted = scores.detach().numpy(), degrees.numpy()
    units, fan = values.shape
    thresholds = np.full((units, 1), np.inf, dtype=values.dtype)
    for degree in np.unique(wanted[wanted > 0]):
        rows = np.flatnonzero(wanted == degree)
        thresholds[rows, 0] = np.partition(values[rows], fan - degree, axis=1)[:, fan - degree]
    kept = values >= thresholds
    tied = np.flatnonzero(np.count_nonzero(kept, axis=1) != wanted)
    if len(tied):
        above = values[tied] > thresholds[tied]
        level = values[tied] == thresholds[tied]
        room = wanted[tied, None] - np.count_nonzero(above, axis=1, keepdims=True)
        kept[tied] = above | (level & (np.cumsum(level, axis=1) <= room))
    return torch.from_numpy(kept)


def pack_masks(masks: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Masks as 1 bit per connection (uint8, C order), and their shapes "[units, fan]" by name."""
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in masks.items()}
    return packed, {name: str(list(mask.shape)) for name, mask in masks.items()}


def unpack_masks(packed: dict[str, Tensor], shapes: dict[str, str]) -> dict[str, Tensor]:
    """The inverse of `pack_masks`: bool [units, fan] by name."""
    masks = {}
    for name, bits in packed.items():
        units, fan = (int(extent) for extent in shapes[name].strip("[]").split(","))
        flat = np.unpackbits(bits.numpy(), count=units * fan)
        masks[name] = torch.from_numpy(flat.astype(bool).reshape(units, fan))
    return masks
