"""Plots ROC curves of verification: true accept rate against false accept rate."""

from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbnet.analysis.statistics import curves_table
from bbnet.analysis.summary import Summary
from bbnet.plots.style import DENSE_COLOUR, LINES, SEEDS_FOR_INTERVALS, method_colours, method_label, seeds_title

WIDTH_OF_BUDGET, WIDTH_OF_REST, HEIGHT = 3.4, 2.2, 3.6


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    curves = curves_table(summary.read("items"), task.roc_points)
    return plot_roc(curves), curves.drop(columns="seeds")


def plot_roc(curves: pd.DataFrame) -> Figure:
    """Draws one axis per budget, with each method's true accept rate, averaged over seeds, at every false accept rate.

    With at least 3 seeds, a band shows the 95 % interval at each point; otherwise thin lines show the single seeds.

    Args:
        curves: `statistics.curves_table` of one task and model; its points are false accept rates.
    """
    colours = method_colours(list(curves["method"]))
    dense = curves[curves["method"] == "dense"]
    budgets = sorted(set(curves[curves["method"] != "dense"]["budget"])) or sorted(set(dense["budget"]))
    width = WIDTH_OF_BUDGET * len(budgets) + WIDTH_OF_REST
    figure, axes = plt.subplots(1, len(budgets), figsize=(width, HEIGHT), sharey=True, squeeze=False)
    points, seeds = sorted(set(curves["point"])), curves["n_seeds"]
    curves, dense = curves.dropna(subset="mean"), dense.dropna(subset="mean")
    for axis, budget in zip(axes[0], budgets, strict=True):
        axis.plot(points, points, color="0.7", linewidth=0.8, linestyle=":", label="chance")
        if len(dense):
            _draw_curve(axis, dense, DENSE_COLOUR, "--", "dense")
        sparse = curves[(curves["budget"] == budget) & (curves["method"] != "dense")]
        for (method, side), curve in sparse.groupby(["method", "side"], sort=False):
            _draw_curve(axis, curve, colours[method], LINES[side], method_label(method, side))
        axis.set(xscale="log", xlim=(points[0], 1), ylim=(0, 1), xlabel="false accept rate")
        axis.set_title(f"budget {budget}" if len(curves) else "no genuine or no impostor pairs")
    axes[0, 0].set_ylabel("true accept rate")
    handles = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right center", title=seeds_title(seeds))
    return figure


def _draw_curve(axis: Axes, curve: pd.DataFrame, colour: str, line: str, label: str) -> None:
    curve = curve.sort_values("point")
    axis.plot(curve["point"], curve["mean"], color=colour, linestyle=line, linewidth=1.2, label=label)
    if curve["n_seeds"].min() >= SEEDS_FOR_INTERVALS:
        low, high = curve["low"].clip(0, 1), curve["high"].clip(0, 1)
        axis.fill_between(curve["point"], low, high, color=colour, alpha=0.15, linewidth=0)
    else:
        for single in zip(*curve["seeds"], strict=True):
            axis.plot(curve["point"], single, color=colour, linewidth=0.5, alpha=0.6)
