"""RigL (Evci et al. 2020, "Rigging the Lottery"): drop the smallest weights, grow where the dense gradient is largest.

Training starts from a magnitude mask at the budget. Each refresh drops a share of every slab's connections, those of
smallest magnitude, and grows as many of the pruned ones, those with the largest gradient of the loss, with weight 0 and
new optimiser state. As in the authors' code, a connection that was just dropped may grow again at once, and then keeps
its value. The share falls along a cosine (their eq. 1) to 0 at the freeze. Unlike the paper, the optimiser's step is
also taken at a refresh and the drop uses the weights after it, the first mask is computed from the weights of the warm
start, and units are compared at their scale before any rescaling.
"""

from typing import ClassVar

from torch import Tensor

from bbnet.sparsity.algorithms import DropAndGrow, SlabView


class RigL(DropAndGrow):
    """Keeps the number of live connections of each slab constant and moves them to where the gradient is largest."""

    uses_gradient: ClassVar[bool] = True

    def growth(self, slab: SlabView) -> Tensor | None:
        """Returns the gradients with respect to the weights before any rescaling."""
        return None if slab.gradient is None else slab.gradient * slab.scale[:, None]
