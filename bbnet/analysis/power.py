"""The smallest difference between two methods that a study detects, from the variances that an earlier study found."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, special

from bbnet.analysis.contrasts import LEVEL

POWER = 0.8
QUANTILES = 2000


@dataclass(frozen=True)
class Components:
    """The variances of the difference between two methods, for one seed and the test items of a study.

    Args:
        items: number of test items.
        seeds: variance over seeds that remains with any number of items.
        shared: variance due to the choice of items that all seeds share.
        interaction: variance due to the choice of items of a single seed beyond that.
    """

    items: int
    seeds: float
    shared: float
    interaction: float


def components_of(contrasts: pd.DataFrame) -> Components | None:
    """Returns the mean components of contrasts of one metric; None if none of them has two seeds.

    Args:
        contrasts: rows of a table of `contrasts.contrasts_tables`.
    """
    rows = contrasts[contrasts["n_seeds"] > 1].dropna(subset=["n_items", "item_variance", "interaction_variance"])
    rows = rows[rows["n_items"] > 1]
    if not len(rows):
        return None
    variances = [np.var([float(value) for value in str(row).split()], ddof=1) for row in rows["differences"]]
    shared, interaction = rows["item_variance"].mean(), rows["interaction_variance"].mean()
    return Components(int(rows["n_items"].min()), max(0.0, np.mean(variances) - interaction), shared, interaction)


def detectable_difference(found: Components, seeds: int, contrasts: int, more_items: float = 1) -> float:
    """Returns the difference that is significant with a probability of 80 %, as the first of `contrasts` under Holm.

    It is computed for normal scores, averaged over the distribution of the estimated variance over seeds.

    Args:
        seeds: number of seeds, at least two.
        more_items: number of test items, relative to that of `found`.
    """
    level, items = LEVEL / contrasts, found.items * more_items
    shared, interaction = found.shared / more_items, found.interaction / more_items
    of_seeds = (found.seeds + interaction) / seeds
    estimates = special.chdtri(seeds - 1, (np.arange(QUANTILES) + 0.5) / QUANTILES) / (seeds - 1)
    t_seeds, t_items = (special.stdtrit(freedom, 1 - level / 2) for freedom in (seeds - 1, items - 1))
    squares = np.maximum(t_seeds**2 * of_seeds * estimates, t_items**2 * interaction / seeds) + t_items**2 * shared
    half_widths, error = np.sqrt(squares), np.sqrt(of_seeds + shared)
    if error == 0:
        return 0.0

    def excess(difference: float) -> float:
        beyond = special.ndtr((difference - half_widths) / error) + special.ndtr((-difference - half_widths) / error)
        return float(beyond.mean()) - POWER

    return float(optimize.brentq(excess, 0.0, half_widths.max() + 10 * error))
