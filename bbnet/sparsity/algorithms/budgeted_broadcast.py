"""Budgeted Broadcast (arXiv 2510.01263): the degree of a unit follows the log-odds of its on-rate.

The published rule, read literally, hands units that are never on the largest degree; here they get the smallest
(`silent: literal` keeps the reading). The published controller has a free offset d0 and no budget; here d0 is solved
so that the budget is met to the connection.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from bbnet.sparsity.algorithms import SlabView, WeightMasking
from bbnet.sparsity.degrees import allocate_degrees
from bbnet.sparsity.masks import keep_largest


class BudgetedBroadcast(WeightMasking):
    """Each unit keeps its k_j largest connections, k_j from its on-rate. SP-in: side `in`; SP-out: side `out`."""

    uses_on_rates: ClassVar[bool] = True

    law: Literal["log_odds", "linear", "uniform", "shuffled", "inverted", "traffic"] = Field(
        "log_odds", description="How degrees follow on-rates; all but log_odds are controls."
    )
    gain: float = Field(0.10, gt=0, le=10, description="1 / (beta * fan): degrees per fan and nat of log-odds.")
    silent: Literal["smallest", "literal"] = Field(
        "smallest", description="Degree of units that were never on: k_min, or what the law gives them."
    )

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> list[Tensor]:
        return [keep_largest(slab.scores, self._degrees(slab, budget)) for slab in slabs]

    def _degrees(self, slab: SlabView, budget: Decimal) -> Tensor:
        try:
            return allocate_degrees(
                slab.on_rates,
                slab.scores.shape[1],
                budget,
                law=self.law,
                gain=self.gain,
                silent=slab.silent if self.silent == "smallest" else None,
                generator=slab.generator(),
            )
        except ValueError as error:
            raise ValueError(f"slab {slab.name}: {error}") from None
