"""Top-K: at each position the largest outputs of a layer pass, the others are 0 (Ahmad & Scheinkman 2019).

The rival of the authors' notebooks: largest by signed value, in training and in evaluation, weights dense. Unlike there
survivors are not rescaled; unlike Ahmad & Scheinkman units are not boosted by their duty cycle.
"""

import torch
from torch import Tensor

from bbnet.sparsity.algorithms import ActivationGating


class TopK(ActivationGating):
    """The `count` units of largest output at each position."""

    def kept(self, outputs: Tensor, count: int) -> Tensor:
        largest = outputs.topk(count, dim=-1, sorted=False).indices
        return torch.zeros_like(outputs, dtype=torch.bool).scatter_(-1, largest, True)
