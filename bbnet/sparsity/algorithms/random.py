"""A random mask that never changes (Liu et al. 2022, "The unreasonable effectiveness of random pruning").

Exactly K connections of each slab are kept, rather than each with probability b. Unlike the paper, the mask is applied
after the study's dense warm-up instead of before training. With `ramp`, connections are removed in one random order.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal

from torch import Tensor

from bbnet.sparsity.algorithms import SlabView, SparseFromStart
from bbnet.sparsity.masks import keep_largest_of_all


class Random(SparseFromStart):
    """Keeps K connections of each slab, drawn once."""

    def masks(self, slabs: Sequence[SlabView], budget: Decimal) -> Iterable[Tensor]:
        if self.starts_sparse and all(slab.step > 0 for slab in slabs):
            return [slab.mask for slab in slabs]
        counts = self.counts(slabs, budget)
        return (keep_largest_of_all(slab.noise(), count) for slab, count in zip(slabs, counts, strict=True))

    def ranking(self, slab: SlabView) -> Tensor:
        return slab.noise()
