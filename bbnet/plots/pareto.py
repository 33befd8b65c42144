"""Pareto plot: a metric against net density and against FLOPs."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bbnet.plots.style import MARKERS, method_colours

SEEDS_FOR_INTERVALS = 3
AXES = {"net_density": "net density (kept share of all weights)", "flops": "FLOPs per sample (share of dense)"}


def plot_pareto(cells: pd.DataFrame, runs: pd.DataFrame, metric: str) -> Figure:
    """Mean of `metric` over seeds for every method and budget; points are labelled by budget, dense is a band.

    With at least 3 seeds bars and band are the 95 % interval; below, single seeds are drawn as small points and thin
    lines beside the mean.

    Args:
        cells: `cells.csv` of one task and model.
        runs: `runs.csv` of the same.
    """
    figure, axes = plt.subplots(1, len(AXES), figsize=(9, 3.8), sharey=True)
    values = cells.pivot_table(index=["method", "side", "budget"], columns="metric", values="mean", sort=False)
    flops_of_dense = float(values.loc["dense", "flops"].iloc[0])
    bounds = cells[cells["metric"] == metric].set_index(["method", "side", "budget"])
    singles = runs[runs["metric"] == metric]
    colours = method_colours(list(values.index.get_level_values("method")))
    for axis, (cost, label) in zip(axes, AXES.items(), strict=True):
        costs = values[cost] / (flops_of_dense if cost == "flops" else 1.0)
        _draw_dense(axis, bounds.loc["dense"].iloc[0], singles[singles["method"] == "dense"]["value"])
        for (method, side), points in values[metric].drop("dense").groupby(level=["method", "side"], sort=False):
            _draw_method(axis, method, side, points, costs, bounds, singles, colours[method])
        axis.set_xlabel(label)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    unit = bounds["unit"].iloc[0]
    axes[0].set_ylabel(f"test {metric} ({unit})")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title=_legend_title(bounds["n_seeds"]))
    return figure


def _legend_title(n_seeds: pd.Series) -> str:
    fewest = n_seeds.min()
    shown = "mean, 95 % interval" if fewest >= SEEDS_FOR_INTERVALS else "mean and single seeds"
    return f"{shown}\n({fewest} seed{'s' if fewest > 1 else ''})"


def _draw_dense(axis: Axes, dense: pd.Series, singles: pd.Series) -> None:
    axis.axhline(dense["mean"], color="0.25", linewidth=1.2, linestyle="--", label="dense")
    if dense["n_seeds"] >= SEEDS_FOR_INTERVALS:
        axis.axhspan(dense["low"], dense["high"], color="0.85", zorder=0)
    else:
        for value in singles:
            axis.axhline(value, color="0.7", linewidth=0.7, zorder=0)


def _draw_method(
    axis: Axes,
    method: str,
    side: str,
    points: pd.Series,
    costs: pd.Series,
    bounds: pd.DataFrame,
    singles: pd.DataFrame,
    colour: str,
) -> None:
    budgets = points.index.get_level_values("budget")
    x = costs[points.index].to_numpy()
    axis.plot(x, points.to_numpy(), color=colour, marker=MARKERS[side], markersize=6, linewidth=1.2, label=_label(method, side))
    for place, budget in zip(x, budgets, strict=True):
        bound = bounds.loc[(method, side, budget)]
        if bound["n_seeds"] >= SEEDS_FOR_INTERVALS:
            axis.vlines(place, bound["low"], bound["high"], color=colour, linewidth=1.0)
        else:
            of_cell = singles[(singles["method"] == method) & (singles["budget"] == budget)]["value"]
            axis.plot([place] * len(of_cell), of_cell, color=colour, marker=".", linestyle="none", markersize=4, alpha=0.6)
        axis.annotate(
            budget.lstrip("0"), (place, bound["mean"]), xytext=(5, -9), textcoords="offset points", color=colour, fontsize=7
        )


def _label(method: str, side: str) -> str:
    return method if side == "none" else f"{method} ({side})"
