"""Ratios for the metrics of several tasks. Imports no torch."""

import numpy as np


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole, or NaN where the whole is 0."""
    whole = np.asarray(whole, dtype=float)
    return np.where(whole == 0, np.nan, part / np.where(whole == 0, 1, whole))
