"""Slabs of networks that consist of residual blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bbnet.sparsity.slab import Slab


@dataclass(frozen=True)
class Convolution:
    """A convolution that may be sparsified.

    Args:
        name: dotted name of the layer.
        outputs: the module whose output has the sign of the activation into which the convolution's output goes.
        inputs: the module whose output has the sign of what the convolution reads.
    """

    name: str
    outputs: str
    inputs: str


def slabs_of_blocks(blocks: Sequence[Sequence[Convolution]], side: Literal["in", "out", "both"]) -> list[Slab]:
    """Returns one slab for each convolution of the blocks, so that all sides have the same weights.

    On side `in` the units are the output channels of a convolution, on side `out` its input channels. On side `both`
    the first, third, ... block uses side `in`, the others side `out`.
    """
    chosen = []
    for number, block in enumerate(blocks):
        own_side = side if side != "both" else ("in", "out")[number % 2]
        for layer in block:
            units = layer.outputs if own_side == "in" else layer.inputs
            chosen.append(Slab(layer.name, own_side, units, normalised=own_side == "in"))
    return chosen
