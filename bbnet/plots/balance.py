"""Plots the balance line: selectivity of units against their degree, in the warm start and after training."""

from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbnet.analysis.balance import selectivity
from bbnet.analysis.claims import SLAB, with_warm_start
from bbnet.analysis.summary import Summary
from bbnet.plots.style import method_colours, method_label

MAX_METHODS = 8
WIDTH_OF_METHOD, WIDTH_OF_REST, HEIGHT = 2.3, 0.8, 5.0
LABEL_POINTS = 75  # beside the side and the budget
ROWS = {"on_rate_before": "warm start", "on_rate": "after training"}


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    return plot_balance(summary.read("slabs"), with_warm_start(summary.read("units")))


def plot_balance(slabs: pd.DataFrame, units: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draws one column of axes per method with unequal degrees. Returns the figure and the units shown.

    Each column shows the smallest budget and first seed with unequal degrees, with the on-rates of the warm start above
    and those of the run below. Points are the units that are not silent; each line is the fit of one slab.

    Args:
        slabs: `slabs.csv` of one task and model.
        units: `claims.with_warm_start` of the same task and model.
    """
    colours = method_colours(list(slabs["method"]))
    fitted = slabs.dropna(subset="r2")
    methods = list(dict.fromkeys(zip(fitted["method"], fitted["side"], strict=True)))[:MAX_METHODS]
    columns = max(1, len(methods))
    size = (WIDTH_OF_METHOD * columns + WIDTH_OF_REST, HEIGHT)
    figure, axes = plt.subplots(len(ROWS), columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    drawn = [units[:0]]
    for column, (method, side) in zip(axes.T, methods, strict=False):
        fits = fitted[fitted["method"] == method]
        budget, seed = min(zip(fits["budget"], fits["seed"], strict=True))
        fits = fits[(fits["budget"] == budget) & (fits["seed"] == seed)]
        mine = units[(units["method"] == method) & ~units["silent"].astype(bool)]
        mine = mine[(mine["budget"] == budget) & (mine["seed"] == seed)]
        drawn.append(mine)
        column[0].set_title(f"{method_label(method, side, LABEL_POINTS)}, budget {budget.lstrip('0')}")
        for axis, rates, r2 in zip(column, ROWS, ("r2_before", "r2"), strict=True):
            _draw_units(axis, mine, rates, colours[method])
            fit = f"median $R^2$ = {fits[r2].median():.2f}"
            axis.annotate(fit, (0.97, 0.97), xycoords="axes fraction", ha="right", va="top")
        column[1].set_xlabel("degree (share of fan)")
    if not methods:
        axes[0, 0].set_title("all degrees are equal")
    for row, name in zip(axes, ROWS.values(), strict=True):
        row[0].set_ylabel(f"{name}:\nselectivity log((1 − a) / a)")
    return figure, pd.concat(drawn)


def _draw_units(axis: Axes, units: pd.DataFrame, rates: str, colour: str) -> None:
    x, y = units["degree"] / units["fan"], selectivity(units[rates])
    axis.plot(x, y, ".", color=colour, markersize=2, alpha=0.35, rasterized=True)
    for _, slab in units.assign(x=x, y=y).groupby(SLAB, sort=False):
        if slab["x"].nunique() > 1 and slab["y"].notna().all():
            ends = np.array([slab["x"].min(), slab["x"].max()])
            axis.plot(ends, np.polyval(np.polyfit(slab["x"], slab["y"], 1), ends), color="0.25", linewidth=0.9)
