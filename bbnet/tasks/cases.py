"""Selects the test items that panels show. Imports no torch."""

import numpy as np


def ranked_cases(gain: np.ndarray, relevant: np.ndarray) -> dict[str, int]:
    """Returns the items of the best, median and worst gain; of two there is no median, and one is the `only` case.

    Args:
        gain: [items]; of equal ones, the earlier ranks higher.
        relevant: bool [items], the items to select from, unless there are none.
    """
    candidates = np.flatnonzero(relevant) if relevant.any() else np.arange(len(gain))
    ranked = candidates[np.argsort(-gain[candidates], kind="stable")]
    places = {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}
    if len(ranked) < 3:
        places = {"best": 0, "worst": 1} if len(ranked) == 2 else {"only": 0}
    return {rank: int(ranked[place]) for rank, place in places.items()}
