"""Pareto plot of the primary metrics against budget, net density and FLOPs."""

from collections.abc import Mapping
from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform

from bbnet.analysis.metric import Metric
from bbnet.analysis.summary import Summary
from bbnet.binary.settings import is_binary
from bbnet.plots.style import (
    LINES,
    MARKERS,
    SEEDS_FOR_INTERVALS,
    label_points,
    method_colours,
    method_label,
    seeds_title,
)

MAX_LABELLED_METHODS = 8
DODGE_POINTS = 3
MAX_DODGE_POINTS = 24
WIDTH, HEIGHT, HEIGHT_OF_LEGEND_ENTRY = 12, 3.8, 0.2
BYTES = {"bytes": "stored bytes (share of dense)"}
AXES = {
    "budget": "budget (kept share of the slabs)",
    "net_density": "net density (kept share of all weights)",
    "flops": "FLOPs per sample (share of dense)",
}


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown. Bytes are shown where weights are binary."""
    cells = summary.read("cells")
    binary = any(map(is_binary, summary.study["methods"].values()))
    axes = AXES | BYTES if binary else AXES
    shown = cells["metric"].isin([*task.PRIMARY, *axes])
    metrics = {name: task.METRICS[name] for name in task.PRIMARY}
    return plot_pareto(cells, summary.read("runs"), metrics, axes, WIDTH * len(axes) / len(AXES)), cells[shown]


def plot_pareto(
    cells: pd.DataFrame,
    runs: pd.DataFrame,
    metrics: Mapping[str, Metric],
    costs_shown: Mapping[str, str] = AXES,
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Figure:
    """Draws the mean over seeds of each metric for every method and budget, with a row of axes per metric.

    Points are labelled with their budgets unless there are too many methods. A method that keeps all weights is not
    shown against net density. With at least 3 seeds, bars and the band of dense are 95 % intervals; otherwise small
    points and thin lines show the single seeds.

    Args:
        cells: `cells.csv` of one task and model.
        runs: `runs.csv` of the same task and model.
        metrics: the metrics to show, by name.
        costs_shown: the label of the axis of each cost to show, which are some of `AXES` and `BYTES`.
        width: of the figure, in inches.
        height: of a row of axes, in inches.
    """
    values = cells.pivot_table(index=["method", "side", "budget"], columns="metric", values="mean", sort=False)
    costs = {
        "budget": pd.Series(values.index.get_level_values("budget").astype(float), values.index),
        "net_density": values["net_density"],
    }
    for name in ("flops", "bytes"):
        if name in costs_shown:
            costs[name] = values[name] / float(values.loc["dense", name].iloc[0])
    metrics = {name: metric for name, metric in metrics.items() if name in values}
    colours = method_colours(list(values.index.get_level_values("method")))
    size = width, max(height * len(metrics), 1 + HEIGHT_OF_LEGEND_ENTRY * len(colours))
    figure, axes = plt.subplots(len(metrics), len(costs_shown), figsize=size, sharex="col", sharey="row", squeeze=False)
    for (name, metric), row in zip(metrics.items(), axes, strict=True):
        bounds = cells[cells["metric"] == name].set_index(["method", "side", "budget"])
        singles = runs[runs["metric"] == name]
        for axis, cost in zip(row, costs_shown, strict=True):
            _draw_dense(axis, bounds.loc["dense"].iloc[0], singles[singles["method"] == "dense"]["value"])
            for _, points in _shown(values, name, cost).groupby(level=["method", "side"], sort=False):
                _draw_method(axis, costs[cost], points.sort_index(), bounds, singles, colours)
            axis.margins(x=0.12, y=0.08)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g} %")
        row[0].set_ylabel(f"test {metric.heading}")
    for axis, label in zip(axes[-1], costs_shown.values(), strict=True):
        axis.set_xlabel(label)
    handles, labels = axes[-1, -1].get_legend_handles_labels()
    title = seeds_title(cells[cells["metric"].isin(metrics)]["n_seeds"], "; methods of equal cost\nare side by side")
    figure.legend(handles, labels, loc="outside right center", title=title)
    if len(colours) > MAX_LABELLED_METHODS:
        return figure
    figure.draw_without_rendering()
    for name, row in zip(metrics, axes, strict=True):
        for axis, cost in zip(row, costs_shown, strict=True):
            shown = _shown(values, name, cost)
            label_points(
                axis, [(costs[cost][key], shown[key], key[2].lstrip("0"), colours[key[0]]) for key in shown.index]
            )
    return figure


def _shown(values: pd.DataFrame, metric: str, cost: str) -> pd.Series:
    """Returns the means to show against `cost`. For net density, methods that keep all weights are left out."""
    sparse = values.drop("dense")
    if cost == "net_density":
        sparse = sparse[sparse.groupby(level="method")["net_density"].transform("min") < 1]
    return sparse[metric]


def _draw_dense(axis: Axes, dense: pd.Series, singles: pd.Series) -> None:
    axis.axhline(dense["mean"], color="0.25", linewidth=1.2, linestyle="--", label="dense")
    if dense["n_seeds"] >= SEEDS_FOR_INTERVALS:
        axis.axhspan(dense["low"], dense["high"], color="0.85", zorder=0)
    else:
        for value in singles:
            axis.axhline(value, color="0.6", linewidth=0.8, zorder=1.5)


def _dodge(axis: Axes, methods: list[str], method: str) -> Transform:
    """Returns a data transform shifted by a few points per method, so that methods of equal cost do not overlap."""
    points = min(DODGE_POINTS, MAX_DODGE_POINTS / len(methods)) * (methods.index(method) - len(methods) / 2)
    return axis.transData + ScaledTranslation(points / 72, 0, axis.figure.dpi_scale_trans)


def _draw_method(
    axis: Axes, x: pd.Series, y: pd.Series, bounds: pd.DataFrame, singles: pd.DataFrame, colours: dict[str, str]
) -> None:
    """Draws the points of one method, `y` by method, side and budget, and the spread over seeds of each."""
    method, side, _ = y.index[0]
    colour = colours[method]
    style = {"color": colour, "marker": MARKERS[side], "linestyle": LINES[side], "markersize": 5, "linewidth": 1.0}
    lines = axis.plot(x[y.index].to_numpy(), y.to_numpy(), label=method_label(method, side), **style)
    for *_, budget in y.index:
        cost, bound = x[method, side, budget], bounds.loc[(method, side, budget)]
        if bound["n_seeds"] >= SEEDS_FOR_INTERVALS:
            lines += axis.plot([cost] * 2, [bound["low"], bound["high"]], color=colour, linewidth=1.0)
        else:
            of_cell = singles[(singles["method"] == method) & (singles["budget"] == budget)]["value"]
            lines += axis.plot([cost] * len(of_cell), of_cell, ".", color=colour, markersize=4, alpha=0.6)
    place = _dodge(axis, list(colours), method)
    for line in lines:
        line.set_transform(place)
