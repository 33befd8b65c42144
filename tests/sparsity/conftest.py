"""Settings of hypothesis, and exact shares, shared by the tests of the sparsity core."""

import math
from fractions import Fraction

import pytest
from hypothesis import settings

settings.register_profile("bbnet", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("bbnet")


@pytest.fixture(scope="session")
def literal_erk():
    """Weights of slabs [(units, fan, taps)] as Evci et al.'s code finds them: the densest slab is capped, and again."""

    def shares(total, shapes):
        sizes = [math.prod((units, fan, *taps)) for units, fan, taps in shapes]
        raw = [Fraction(sum((units, fan, *taps)), math.prod((units, fan, *taps))) for units, fan, taps in shapes]
        whole = set()
        while len(whole) < len(shapes):
            others = [slab for slab in range(len(shapes)) if slab not in whole]
            left = total - sum(sizes[slab] for slab in whole)
            epsilon = Fraction(left) / sum(raw[slab] * sizes[slab] for slab in others)
            densest = max(others, key=lambda slab: raw[slab])
            if epsilon * raw[densest] <= 1:
                return [size if slab in whole else epsilon * raw[slab] * size for slab, size in enumerate(sizes)]
            whole.add(densest)
        return sizes

    return shares
