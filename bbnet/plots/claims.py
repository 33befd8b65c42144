"""Plots entropy, correlation and rank of units against the budget, next to dense on the same slabs."""

from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bbnet.analysis.claims import MEASURES
from bbnet.analysis.statistics import CELL_KEYS, half_width
from bbnet.analysis.summary import Summary
from bbnet.plots.style import DENSE_COLOUR, draw_cell, method_colours, method_handles, seeds_title, side_by_side

WIDTH, HEIGHT, HEIGHT_OF_LEGEND_ENTRY = 8.6, 5.4, 0.2
DENSE = {"color": DENSE_COLOUR, "marker": "_", "markersize": 9, "linestyle": "none", "label": "dense, same slabs"}


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    claims = summary.read("claims")
    claims = claims[claims["measure"].isin(MEASURES)]
    return plot_claims(claims, list(summary.read("cells")["method"])), claims


def plot_claims(claims: pd.DataFrame, methods: list[str]) -> Figure:
    """Draws one axis per measure, with all methods at each budget and the value of dense on the same slabs.

    With at least 3 seeds, the mean and its 95 % interval over seeds are shown; otherwise the mean and single seeds.

    Args:
        claims: `claims.csv` of one task and model.
        methods: all methods of the task and model; they determine the colours.
    """
    colours = method_colours(methods)
    shown = list(dict.fromkeys(zip(claims["method"], claims["side"], strict=True)))
    budgets = sorted(set(claims["budget"]))
    height = max(HEIGHT, 1 + HEIGHT_OF_LEGEND_ENTRY * len(shown))
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, height), sharex=True)
    for axis, (measure, label) in zip(axes.flat, MEASURES.items(), strict=True):
        of_measure = claims[claims["measure"] == measure]
        for (method, side, budget), cell in of_measure.groupby(["method", "side", "budget"], sort=False):
            x = budgets.index(budget) + side_by_side(len(shown))[shown.index((method, side))]
            axis.plot([x], [cell["dense"].mean()], **DENSE | {"label": None}, zorder=1.5)
            draw_cell(axis, x, _mean(cell["value"]), cell["value"], colours[method], side)
        axis.set_xticks(range(len(budgets)), budgets)
        axis.set(ylabel=label, xlim=(-0.5, max(1, len(budgets)) - 0.5))
        axis.grid(visible=False, axis="x")
    for axis in axes[-1]:
        axis.set_xlabel("budget")
    seeds = claims.groupby([*CELL_KEYS, "measure"])["seed"].nunique()
    handles = [plt.Line2D([], [], **DENSE), *method_handles(shown, colours)]
    title = seeds_title(seeds, "; methods in this\norder from left to right")
    figure.legend(handles=handles, loc="outside right center", title=title)
    return figure


def _mean(values: pd.Series) -> pd.Series:
    half = half_width(values.to_numpy())
    mean = values.mean()
    return pd.Series({"mean": mean, "low": mean - half, "high": mean + half, "n_seeds": len(values)})
