"""Which cells of a task no other cell beats at equal or lower cost."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from bbnet.analysis.metric import Metric

COSTS = ("flops", "parameters")
FRONTS = tuple(f"front_{cost}" for cost in COSTS)
KEYS = ["model", "method", "side", "budget"]


def on_front(costs: np.ndarray, values: np.ndarray, better: Literal["higher", "lower"]) -> np.ndarray:
    """Returns which points, [points] of bool, are on the Pareto front: those that no other point dominates.

    A point dominates another if it costs no more, its value is no worse, and one of both is better. So equal points are
    on the front together. A point whose cost or value is NaN is not on it.
    """
    gains = values if better == "higher" else -values
    no_dearer, no_worse = costs[:, None] <= costs, gains[:, None] >= gains
    dominates = no_dearer & no_worse & ((costs[:, None] < costs) | (gains[:, None] > gains))
    return ~dominates.any(axis=0) & ~np.isnan(costs) & ~np.isnan(gains)


def points_table(cells: pd.DataFrame, metrics: Mapping[str, Metric]) -> pd.DataFrame:
    """Returns one row per cell and metric: mean, interval, number of seeds, costs, and on which fronts the mean is.

    The fronts, `front_{cost}`, are those of the means over seeds of all cells, without regard to their intervals.

    Args:
        cells: `cells.csv` of one task, with all of its models.
        metrics: the metrics to show, by name.
    """
    costs = cells[cells["metric"].isin(COSTS)].pivot_table(index=KEYS, columns="metric", values="mean", sort=False)
    parts = []
    for name, metric in metrics.items():
        points = cells.loc[cells["metric"] == name, [*KEYS, "metric", "n_seeds", "mean", "low", "high"]]
        points = points.join(costs[list(COSTS)], on=KEYS)
        fronts = {
            front: on_front(points[cost].to_numpy(), points["mean"].to_numpy(), metric.better)
            for cost, front in zip(COSTS, FRONTS, strict=True)
        }
        parts.append(points.assign(**fronts))
    return pd.concat(parts, ignore_index=True)
