"""Plots training steps to a level of accuracy, and the accuracy on test, by width of the network."""

from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbnet.analysis.scaling import exponents, placed, steps_by_width, steps_table
from bbnet.analysis.summary import Summary
from bbnet.plots.style import MARKERS, draw_cell, method_colours, method_handles, method_label, seeds_title

WIDTH_OF_COLUMN, WIDTH_OF_REST, HEIGHT = 4.3, 2.2, 6.4
HEIGHT_OF_LEGEND_ENTRY = 0.2
SPREAD = 0.30  # of the methods at a width, in units of its logarithm to base 2
LABEL_POINTS = 90
NEVER = 1.25  # runs that never got there are drawn at this multiple of the steps that they had


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of all models of one task, and the data shown: steps of single runs, and cells."""
    models = summary.study["tasks"][summary.task]["models"]
    metric = task.METRICS[task.SELECTION]
    steps = placed(steps_table(summary.read("history"), task.SELECTION, task.LEVEL), models, task.scaled)
    cells, runs = (
        placed(table[table["metric"] == task.SELECTION], models, task.scaled)
        for table in (summary.read("cells"), summary.read("runs"))
    )
    name = f"{task.LEVEL:g} dev {metric.title}"
    figure = plot_steps(steps, cells, runs, f"steps to {name}", f"test {metric.heading}")
    shown = steps_by_width(steps).merge(
        cells[["formula", "method", "side", "budget", "width", "mean", "low", "high"]],
        on=["formula", "method", "side", "budget", "width"],
    )
    return figure, shown


def plot_steps(steps: pd.DataFrame, cells: pd.DataFrame, runs: pd.DataFrame, upper: str, lower: str) -> Figure:
    """Draws one column of axes per formula and budget: steps above the metric on test, both by width.

    Of the steps all seeds are shown, with lines through the medians and the exponents in a legend. Hollow markers on
    the line `never` are runs that did not get there. Of the metric the mean is shown with its 95 % interval, or with
    single seeds if there are fewer than 3.

    Args:
        steps, cells, runs: `steps_table`, and the rows of one metric of `cells.csv` and `runs.csv`, with the columns of
            `scaling.placed`.
        upper, lower: labels of the axes.
    """
    colours = method_colours(list(cells["method"]))
    methods = list(dict.fromkeys(zip(cells["method"], cells["side"], strict=True)))
    budgets = sorted(set(cells["budget"]) - {"1.00"}) or ["1.00"]
    columns = [(formula, budget) for formula in dict.fromkeys(steps["formula"]) for budget in budgets]
    height = max(HEIGHT, 1 + HEIGHT_OF_LEGEND_ENTRY * len(methods))
    size = (WIDTH_OF_COLUMN * len(columns) + WIDTH_OF_REST, height)
    figure, axes = plt.subplots(2, len(columns), figsize=size, sharex="col", sharey="row", squeeze=False)
    medians, fits = steps_by_width(steps), exponents(steps)
    never = NEVER * steps["last_step"].max()
    for (first, second), (formula, budget) in zip(axes.T, columns, strict=True):
        parts = [
            table[(table["formula"] == formula) & table["budget"].isin([budget, "1.00"])]
            for table in (steps, medians, fits, cells, runs)
        ]
        _draw_steps(first, *parts[:3], methods, colours, never)
        _draw_metric(second, *parts[3:], methods, colours)
        first.set_title(f"{formula}, budget {budget.lstrip('0')}")
        widths = sorted(set(parts[0]["width"]))
        second.set_xticks(widths, [str(width) for width in widths])
        second.set_xlim(widths[0] / 2**0.5, widths[-1] * 2**0.5)
        second.minorticks_off()
        second.set_xlabel("width (units of each hidden layer)")
    axes[0, 0].set_ylabel(upper)
    axes[1, 0].set_ylabel(lower)
    handles = method_handles(methods, colours)
    figure.legend(handles=handles, loc="outside right center", title=seeds_title(cells["n_seeds"]))
    return figure


def _shifted(width: float, number: int, methods: int) -> float:
    """Returns the place of a method beside the width, on a logarithmic axis."""
    return width * 2 ** (SPREAD * (2 * number / max(1, methods - 1) - 1))


def _draw_steps(axis: Axes, steps, medians, fits, methods, colours, never: float) -> None:
    axis.set(xscale="log", yscale="log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_minor_locator(ticker.NullLocator())
    axis.axhline(never, color="0.6", linestyle=":", linewidth=1.0)
    axis.annotate("never", (0.99, never), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4")
    handles = []
    for number, (method, side) in enumerate(methods):
        style = {"color": colours[method], "marker": MARKERS[side], "linestyle": "none"}
        own = steps[(steps["method"] == method) & (steps["side"] == side)]
        x = _shifted(own["width"].to_numpy(float), number, len(methods))
        there = own["steps"].notna().to_numpy()
        axis.plot(x[there], own["steps"][there], markersize=3, alpha=0.7, **style)
        axis.plot(x[~there], np.full((~there).sum(), never), markersize=4, fillstyle="none", **style)
        line = medians[(medians["method"] == method) & (medians["side"] == side)].dropna(subset="median")
        axis.plot(_shifted(line["width"], number, len(methods)), line["median"], color=colours[method], linewidth=1.0)
        for _, fit in fits[(fits["method"] == method) & (fits["side"] == side)].iterrows():
            text = f"{method_label(method, 'none', LABEL_POINTS)}: {fit['exponent']:.2f}"
            interval = f" [{fit['low']:.2f}, {fit['high']:.2f}]" if np.isfinite(fit["low"]) else ""
            handles.append(plt.Line2D([], [], color=colours[method], label=text + interval))
    if handles:
        axis.legend(handles=handles, loc="lower left", title="exponent of the width", fontsize="x-small")


def _draw_metric(axis: Axes, cells, runs, methods, colours) -> None:
    for number, (method, side) in enumerate(methods):
        own = cells[(cells["method"] == method) & (cells["side"] == side)].sort_values("width")
        x = _shifted(own["width"].to_numpy(float), number, len(methods))
        for place, (_, cell) in zip(x, own.iterrows(), strict=True):
            singles = runs[(runs["method"] == method) & (runs["model"] == cell["model"])]["value"]
            draw_cell(axis, place, cell, singles, colours[method], side)
        axis.plot(x, own["mean"], color=colours[method], linewidth=1.0)
