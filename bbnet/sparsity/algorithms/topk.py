"""Top-K: at each position the largest outputs of a layer are kept and the others set to 0 (Ahmad & Scheinkman 2019).

As in the authors' notebooks, outputs are compared by signed value, in training and in evaluation, and weights stay
dense. Unlike the notebooks, the kept outputs are not rescaled. Unlike Ahmad & Scheinkman, units are not boosted by
their duty cycle.
"""

import numpy as np
import torch
from torch import Tensor

from bbnet.sparsity.algorithms import ActivationGating


class TopK(ActivationGating):
    """Keeps the `count` units with the largest output at each position."""

    def kept(self, outputs: Tensor, count: int) -> Tensor:
        if outputs.device.type == "cpu" and not torch.compiler.is_compiling():
            return _above_threshold(outputs.flatten(0, -2), count).reshape(outputs.shape)
        return _largest(outputs, count)


def _largest(outputs: Tensor, count: int) -> Tensor:
    largest = outputs.topk(count, dim=-1, sorted=False).indices
    return torch.zeros_like(outputs, dtype=torch.bool).scatter_(-1, largest, True)


def _above_threshold(outputs: Tensor, count: int) -> Tensor:
    """Computes `_largest` by numpy's partition, which takes a third of the time of torch's topk on a CPU."""
    # numpy has no bfloat16; float32 represents its values exactly.
    values = (outputs.float() if outputs.dtype == torch.bfloat16 else outputs).numpy()
    place = values.shape[1] - count
    kept = torch.from_numpy(values >= np.partition(values, place, axis=1)[:, place, None])
    # The threshold is not unique or is NaN in these rows.
    (unsure,) = torch.nonzero(kept.sum(1) != count, as_tuple=True)
    if len(unsure):
        kept[unsure] = _largest(outputs[unsure], count)
    return kept
