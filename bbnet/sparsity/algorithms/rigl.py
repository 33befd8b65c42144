"""RigL (Evci et al. 2020, "Rigging the Lottery"): drop the smallest weights, grow where the dense gradient is largest.

From a magnitude mask at the budget on, each refresh drops a share of the connections of every slab, those of smallest
magnitude, and grows as many: those of the largest gradient of the loss among all that are then pruned, at weight 0 with
fresh optimiser state. As in the authors' code, what was just dropped may grow again at once, and then keeps its value.
The share falls along a cosine (their eq. 1) to 0 at the freeze. Unlike there, the optimiser's step of a refresh is
taken too and the drop looks at the weights after it, the first mask is of the warm start's weights, and units are
compared at the scale they had before any rescaling.
"""

from typing import ClassVar

from torch import Tensor

from bbnet.sparsity.algorithms import DropAndGrow, SlabView


class RigL(DropAndGrow):
    """The live count of each slab stays constant; its connections move to where the gradient is."""

    uses_gradient: ClassVar[bool] = True

    def growth(self, slab: SlabView) -> Tensor | None:
        """Gradients of the weights as they were before any rescaling."""
        return None if slab.gradient is None else slab.gradient * slab.scale[:, None]
