"""Gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune").

Each slab keeps its largest connections, or, with `global`, the largest of all slabs together are kept, so that one slab
may lose much and another nothing. The magnitude of a convolution's connection is the l2 norm of its kernel. Unlike the
paper, a pruned weight keeps its value and competes again at the next refresh, as for every algorithm here, and the ramp
and the freeze are those of the study.
"""

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal

from torch import Tensor

from bbnet.sparsity.algorithms import SlabView, WeightMasking
from bbnet.sparsity.degrees import connection_count, weight_count
from bbnet.sparsity.masks import keep_largest_of_all, keep_largest_of_slabs
from bbnet.sparsity.parameters.magnitude import Parameters


class Magnitude(WeightMasking, Parameters):
    """Keeps the K largest connections. Units are compared at their scale before any rescaling."""

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> Iterable[Tensor]:
        if self.distribution == "global":
            total = weight_count(budget, [slab.shape for slab in slabs])
            scores = [slab.unscaled_scores() for slab in slabs]
            return keep_largest_of_slabs(scores, [math.prod(slab.taps) for slab in slabs], total)
        counts = [connection_count(budget, *slab.mask.shape) for slab in slabs]
        return (keep_largest_of_all(slab.unscaled_scores(), count) for slab, count in zip(slabs, counts, strict=True))
