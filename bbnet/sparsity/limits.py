"""The smallest budget, fan and degree. Nothing here imports torch, so that a study can be validated without it."""

import math
from decimal import Decimal

SMALLEST_BUDGET = Decimal("0.05")
SMALLEST_FAN = 8


def smallest_degree(fan: int, share: float | Decimal = SMALLEST_BUDGET) -> int:
    """Returns k_min = ceil(max(1, share * n)), exactly, since 0.05 * 140 is 7.000000000000001 in floating point."""
    return max(1, math.ceil(Decimal(str(share)) * fan))
