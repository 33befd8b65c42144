"""Gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune").

Each slab keeps its largest connections, or all slabs together keep the largest of all (`global`, where a slab may lose
much and another nothing). Unlike there, a pruned weight keeps its value and competes again at the next refresh, as for
every algorithm here, and the ramp and freeze are the study's.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from pydantic import Field
from torch import Tensor

from bbnet.sparsity.algorithms import SlabView, WeightMasking
from bbnet.sparsity.degrees import connection_count
from bbnet.sparsity.masks import keep_largest_of_all, keep_largest_of_slabs


class Magnitude(WeightMasking):
    """The K largest connections, units compared at the scale they had before any rescaling."""

    distribution: Literal["uniform", "global"] = Field(
        "uniform", description="The largest of each slab, or of all slabs together."
    )

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> list[Tensor]:
        scores = [slab.unscaled_scores() for slab in slabs]
        counts = [connection_count(budget, *slab.scores.shape) for slab in slabs]
        if self.distribution == "global":
            return keep_largest_of_slabs(scores, sum(counts))
        return [keep_largest_of_all(each, count) for each, count in zip(scores, counts, strict=True)]
