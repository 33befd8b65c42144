"""SET (Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity").

From a magnitude mask at the budget on, each refresh drops a share of the connections of every slab, those of smallest
magnitude, and grows as many at random among all that are then pruned, at weight 0 with fresh optimiser state. Unlike
there, where the share is constant and the first mask random, the share falls along a cosine to 0 at the freeze and the
first mask is of the warm start's weights: both as for RigL, from which it then differs in what grows alone.
"""

from torch import Tensor

from bbnet.sparsity.algorithms import DropAndGrow, SlabView


class SET(DropAndGrow):
    """The live count of each slab stays constant; its connections move at random."""

    def growth(self, slab: SlabView) -> Tensor | None:
        return slab.noise(fresh=True) if slab.step > 0 else None
