"""The smallest budget, fan and degree. Nothing here imports torch, so that a study can be validated without it."""

from decimal import Decimal

SMALLEST_BUDGET = Decimal("0.05")
SMALLEST_FAN = 8


def smallest_degree(fan: int) -> int:
    """Returns k_min = ceil(max(1, 0.05 n)), in integers, since 0.05 * 140 is 7.000000000000001 in floating point."""
    return max(1, -(-fan // 20))
