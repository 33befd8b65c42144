"""Draws: the scores of one run for several calibration sets, which are nested in its seed.

The items of such a run have the column `draw`, a number from 0. Its scores are means over draws, so that seeds stay the
units of replication: the variance over seeds contains that of the draws, divided by their number.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # a job that trains does not need pandas, whose import takes half a second
    import pandas as pd

DRAW = "draw"


def joined_draws(of_draws: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the items of all draws, one after the other, with the column `draw`."""
    joined = {name: np.concatenate([items[name] for items in of_draws]) for name in of_draws[0]}
    sizes = [len(next(iter(items.values()))) for items in of_draws]
    return joined | {DRAW: np.repeat(np.arange(len(of_draws)), sizes)}


def split_draws(items: "pd.DataFrame") -> "list[pd.DataFrame]":
    """Returns the items of each draw of a run, without the column; those of a run without draws are one."""
    if DRAW not in items or items[DRAW].isna().all():
        return [items.drop(columns=DRAW, errors="ignore")]
    return [of_draw.drop(columns=DRAW).reset_index(drop=True) for _, of_draw in items.groupby(DRAW)]


def mean_metrics(metrics: Callable[..., Mapping], of_draws: Sequence, *others) -> dict[str, float]:
    """Returns the mean over draws of each metric, NaN if it is NaN for one of them.

    Args:
        metrics: function of the items of a draw, and of `others`.
    """
    values = [metrics(items, *others) for items in of_draws]
    return {name: float(np.mean([float(of_draw[name]) for of_draw in values])) for name in values[0]}
