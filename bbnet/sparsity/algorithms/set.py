"""SET (Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity").

Training starts from a magnitude mask at the budget. Each refresh drops a share of every slab's connections, those of
smallest magnitude, and grows as many of the pruned ones at random, with weight 0 and new optimiser state. In the paper
the share is constant and the first mask is random; here the share falls along a cosine to 0 at the freeze and the first
mask is computed from the weights of the warm start. Both are as for RigL, so that the two differ only in what grows.
"""

from torch import Tensor

from bbnet.sparsity.algorithms import DropAndGrow, SlabView


class SET(DropAndGrow):
    """Keeps the number of live connections of each slab constant and moves them at random."""

    def growth(self, slab: SlabView) -> Tensor | None:
        return slab.noise(fresh=True) if slab.step > 0 else None
