"""RIA (Zhang et al. 2024, "Plug-and-play: an efficient post-training pruning method for large language models").

The relative importance of a weight is its share of the magnitudes of its output plus its share of those of its input.
The score is the relative importance times the square root of the input's norm (the paper's exponent a = 0.5). As in the
published code, the largest scores of a layer are kept. In the paper a trained network is pruned once.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import ClassVar

import torch
from torch import Tensor

from bbnet.sparsity.algorithms import SlabView, WeightMasking
from bbnet.sparsity.degrees import connection_count
from bbnet.sparsity.masks import keep_largest_of_all


class RIA(WeightMasking):
    """Each slab keeps its connections with the largest relative importance and activation."""

    uses_input_norms: ClassVar[bool] = True

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> Iterator[Tensor]:
        return (keep_largest_of_all(self.ranking(slab), connection_count(budget, *slab.mask.shape)) for slab in slabs)

    def ranking(self, slab: SlabView) -> Tensor:
        magnitudes = slab.unscaled_scores()
        smallest = torch.finfo(magnitudes.dtype).tiny  # all shares of an input or output without weights are 0
        shares = magnitudes / magnitudes.sum(1, keepdim=True).clamp_(min=smallest)
        shares.addcdiv_(magnitudes, magnitudes.sum(0, keepdim=True).clamp_(min=smallest))
        return shares.mul_(slab.input_norms.sqrt())
