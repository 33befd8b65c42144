"""The half range h of latent weights. Imports no torch."""

import math
from collections.abc import Sequence


def glorot_half_range(shape: Sequence[int]) -> float:
    """Returns sqrt(1.5 / (fan_in + fan_out)) of a weight [out, in, *taps] or its transpose.

    Both fans count the taps (Glorot & Bengio 2010; the constant 1.5 is that of the code of Courbariaux et al. 2015).
    """
    return (1.5 / (math.prod(shape[2:]) * (shape[0] + shape[1]))) ** 0.5
