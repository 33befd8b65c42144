"""Budgeted Broadcast (arXiv 2510.01263): the degree of a unit follows the log-odds of its on-rate.

This differs from the paper in two ways. The published rule, taken literally, gives the largest degree to units that are
never on; here they get the smallest (`silent: literal` keeps the published rule). The published controller has a free
offset d0 and no budget; here d0 is solved so that the budget is met exactly.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import ClassVar

from torch import Tensor

from bbnet.sparsity.algorithms import SlabView, WeightMasking
from bbnet.sparsity.degrees import allocate_degrees
from bbnet.sparsity.limits import smallest_degree
from bbnet.sparsity.masks import keep_largest
from bbnet.sparsity.parameters.budgeted_broadcast import Parameters


class BudgetedBroadcast(WeightMasking, Parameters):
    """Each unit keeps its k_j largest connections, with k_j from its on-rate. SP-in is side `in`, SP-out side `out`."""

    uses_on_rates: ClassVar[bool] = True

    @property
    def uses_input_norms(self) -> bool:
        return self.score == "wanda"

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> Iterator[Tensor]:
        return (keep_largest(self._scores(slab), self._degrees(slab, budget)) for slab in slabs)

    def ranking(self, slab: SlabView) -> Tensor:
        return slab.unscaled_scores() * slab.input_norms if self.uses_input_norms else slab.unscaled_scores()

    def _scores(self, slab: SlabView) -> Tensor:
        return slab.scores * slab.input_norms if self.uses_input_norms else slab.scores

    def average_decay(self) -> float:
        return self.decay

    def smallest_degree(self, fan: int) -> int:
        return smallest_degree(fan, self.k_min)

    def _degrees(self, slab: SlabView, budget: Decimal) -> Tensor:
        fan = slab.mask.shape[1]
        try:
            return allocate_degrees(
                slab.on_rates,
                fan,
                budget,
                law=self.law,
                gain=self.gain,
                min_degree=self.smallest_degree(fan),
                silent=slab.silent if self.silent == "smallest" else None,
                generator=slab.generator(),
            )
        except ValueError as error:
            raise ValueError(f"slab {slab.name}: {error}") from None
