"""Plots the on-rate of units against their degree, in the warm start and after training, of the diagnosed runs."""

from collections.abc import Sequence
from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bbnet.analysis.claims import with_warm_start
from bbnet.analysis.collect import KEYS
from bbnet.analysis.summary import Summary
from bbnet.plots.by_depth import RUN
from bbnet.plots.style import method_colours, method_label

MOST_RUNS = 8
WIDTH_OF_RUN, WIDTH_OF_REST, HEIGHT = 2.2, 0.8, 4.6
LABEL_POINTS = 75  # beside the side and the budget
ROWS = {"on_rate_before": "warm start", "on_rate": "after training"}


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    diagnosed = summary.read("diagnostics/runs")[KEYS].drop_duplicates()
    shown = with_warm_start(summary.read("units")).merge(diagnosed, on=KEYS)
    return plot_on_rates(shown, list(summary.study["methods"])), shown


def plot_on_rates(units: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Draws a column of axes for each run whose units differ in degree, of at most eight runs.

    Args:
        units: `claims.with_warm_start` of one task and model.
        methods: labels of all methods of the study, which determine the colours.
    """
    colours = method_colours(methods)
    shares = units.assign(share=units["degree"] / units["fan"])
    by_run = shares.groupby(RUN, sort=False)
    runs = [(keys, run) for keys, run in by_run if run["share"].nunique() > 1]
    shown = runs[:MOST_RUNS]
    columns = max(1, len(shown))
    size = (WIDTH_OF_RUN * columns + WIDTH_OF_REST, HEIGHT)
    figure, axes = plt.subplots(len(ROWS), columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for column, ((method, side, budget, _), run) in zip(axes.T, shown, strict=False):
        column[0].set_title(f"{method_label(method, side, LABEL_POINTS)}, {budget.lstrip('0')}")
        for axis, rates in zip(column, ROWS, strict=True):
            axis.plot(run["share"], run[rates], ".", color=colours[method], markersize=2.5, alpha=0.4, rasterized=True)
        column[1].set_xlabel("degree (share of fan)")
    if not shown:
        axes[0, 0].set_title("all degrees are equal")
    for row, name in zip(axes, ROWS.values(), strict=True):
        row[0].set(ylabel=f"{name}: on-rate", ylim=(-0.03, 1.03))
    return figure
