"""The balance line of a slab: log((1 - a) / a) of the on-rates a of its units on their degrees. Imports no pandas."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

NO_SPREAD = 1e-9  # sums of squares up to this are rounding errors
CLIP = 1e-3  # minimum distance of on-rates from 0 and 1, as in the allocation of degrees
SIDES = ("in", "out")
DEGREES = {"live": "degree", "effective": "effective degree"}
COLUMNS = [f"line_{side}_{degree}_{value}" for side in SIDES for degree in DEGREES for value in ("slope", "r2")]

Rates = TypeVar("Rates")


def selectivity(on_rates: Rates) -> Rates:
    """Returns log((1 - a) / a) of on-rates a, an array or pandas Series, clipped to [1e-3, 1 - 1e-3]."""
    rates = np.clip(on_rates, CLIP, 1 - CLIP)
    return np.log((1 - rates) / rates)


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Returns slope and R^2 of the least-squares line of y on x, both [n]; NaN if all x or all y are equal."""
    if len(x) == 0:
        return np.nan, np.nan
    x, y = x - np.mean(x), y - np.mean(y)
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    return (xy / xx, xy**2 / (xx * yy)) if min(xx, yy) > NO_SPREAD else (np.nan, np.nan)


def effective_degrees(magnitudes: np.ndarray) -> np.ndarray:
    """Returns (sum |w|)^2 / sum w^2 of each unit's connections, the participation ratio.

    It is n for n connections of equal magnitude, less if some are larger than others, and 0 for none. So a dense unit
    has one as well, which shows on how many connections its weight is spread.

    Args:
        magnitudes: [units, fan], 0 for a pruned connection.
    """
    squares = (magnitudes**2).sum(1)
    return magnitudes.sum(1) ** 2 / np.where(squares > 0, squares, 1)


def mean_lines(slabs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the slopes and R^2 of both kinds of degree: `COLUMNS`, means over the slabs of a side, weighted by units.

    `live` are the numbers of connections that a unit has, `effective` those of `effective_degrees`. Slopes are those on
    the degree as a share of the fan, so that they can be compared between slabs: a rule with `gain` g draws 1 / g. A
    value is NaN if no slab of that side has a line, as in a slab with equal degrees.

    Args:
        slabs: of each slab `side`, `fan`, `on_rates` [units], `silent` bool [units], `live` and `effective` [units].
            Silent units are left out of the fits.
    """
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in COLUMNS}
    for slab in slabs:
        on = ~slab["silent"]
        y = selectivity(slab["on_rates"][on])
        for degree in DEGREES:
            slope, r2 = fit_line(slab[degree][on].astype(float), y)
            if not np.isnan(r2):
                start = f"line_{slab['side']}_{degree}"
                found[f"{start}_slope"].append((slope * slab["fan"], len(on)))
                found[f"{start}_r2"].append((r2, len(on)))
    return {
        name: float(np.average([value for value, _ in values], weights=[units for _, units in values]))
        if values
        else float("nan")
        for name, values in found.items()
    }
