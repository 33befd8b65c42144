"""Gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune").

Each slab keeps its largest connections. Unlike there, a pruned weight keeps its value and competes again at the next
refresh, as for every algorithm here, and the ramp and freeze are the study's.
"""

from collections.abc import Sequence
from decimal import Decimal

from torch import Tensor

from bbnet.sparsity.algorithms import SlabView, WeightMasking
from bbnet.sparsity.degrees import connection_count
from bbnet.sparsity.masks import keep_largest_of_all


class Magnitude(WeightMasking):
    """The K largest connections of each slab, units compared at the scale they had before any rescaling."""

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> list[Tensor]:
        return [
            keep_largest_of_all(slab.scores / slab.scale[:, None], connection_count(budget, *slab.scores.shape))
            for slab in slabs
        ]
