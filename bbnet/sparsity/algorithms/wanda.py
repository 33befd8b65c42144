"""Wanda (Sun et al. 2024, "A simple and effective pruning approach for large language models").

The score of a connection is its magnitude times the l2 norm of its input. Scores are compared among the connections of
one output, and every output keeps equally many. In the paper a trained network is pruned once after calibration; here
pruning is gradual and the norms are averages over training batches. On side `out` connections are compared per output
as well, since all connections of one input have the same norm.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import ClassVar

import torch
from torch import Tensor

from bbnet.sparsity.algorithms import SlabView, WeightMasking
from bbnet.sparsity.degrees import connection_count
from bbnet.sparsity.masks import keep_largest


class Wanda(WeightMasking):
    """Each output of the layer keeps its connections with the largest product of magnitude and input norm."""

    uses_input_norms: ClassVar[bool] = True

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> Iterator[Tensor]:
        return (self._mask(slab, connection_count(budget, *slab.mask.shape)) for slab in slabs)

    def ranking(self, slab: SlabView) -> Tensor:
        return slab.unscaled_scores() * slab.input_norms

    def _mask(self, slab: SlabView, count: int) -> Tensor:
        by_output = self.ranking(slab) if slab.side == "in" else self.ranking(slab).T.contiguous()
        outputs = len(by_output)
        one_more = torch.arange(outputs, device=by_output.device) < count % outputs
        mask = keep_largest(by_output, count // outputs + one_more.long())
        return mask if slab.side == "in" else mask.T.contiguous()
