"""Pareto plot of all models and methods of a task: the primary metrics against FLOPs and against kept parameters."""

from collections.abc import Mapping
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from bbnet.analysis.metric import Metric
from bbnet.analysis.pareto import KEYS, points_table
from bbnet.analysis.summary import Summary
from bbnet.plots.style import (
    LABEL_POINTS,
    LABEL_SIZE,
    SEEDS_FOR_INTERVALS,
    label_points,
    method_label,
    method_markers,
    model_colours,
    seeds_title,
    shown_name,
)

AXES = {"flops": "FLOPs per sample (two per MAC)", "parameters": "kept parameters"}
WIDTH_OF_AXES, WIDTH_OF_LEGEND, HEIGHT, HEIGHT_OF_LEGEND_ENTRY = 4.8, 2.4, 4.2, 0.2
LOGARITHMIC_FROM = 10  # largest cost, relative to the smallest
SAME_COST = 1.01  # costs up to this factor are side by side
DODGE_POINTS, MAX_DODGE_POINTS = 6, 20
BESIDE_FRONT = (-5, 7)  # offset of a budget from its point: where no point is, to the left and better
FRONT_COLOUR, GREY = "0.3", "0.45"


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task with all of its models, and the data shown."""
    metrics = {name: task.METRICS[name] for name in task.PRIMARY}
    points = points_table(summary.read("cells"), metrics)
    return plot_models(points, summary.read("runs"), metrics, summary.baseline), points


def plot_models(points: pd.DataFrame, runs: pd.DataFrame, metrics: Mapping[str, Metric], baseline: str) -> Figure:
    """Draws the mean over seeds of each metric for every cell, with a row of axes per metric and a column per cost.

    Colours are models and markers methods. The points on the Pareto front have a dark edge and their budget beside
    them. With at least 3 seeds, bars are 95 % intervals; otherwise small points are the single seeds.

    Args:
        points: `pareto.points_table` of one task.
        runs: `runs.csv` of the same task.
        metrics: the metrics to show, by name.
        baseline: the model that the legend calls the baseline.
    """
    colours = model_colours(list(points["model"]))
    methods = list(dict.fromkeys(zip(points["method"], points["side"], strict=True)))
    markers = method_markers([method for method, _ in methods])
    entries = len(colours) + len(methods) + 1
    size = (
        WIDTH_OF_AXES * len(AXES) + WIDTH_OF_LEGEND,
        max(HEIGHT * len(metrics), 1 + HEIGHT_OF_LEGEND_ENTRY * entries),
    )
    figure, axes = plt.subplots(len(metrics), len(AXES), figsize=size, sharex="col", sharey="row", squeeze=False)
    for cost, column in zip(AXES, axes.T, strict=True):
        _scale(column[0], points[cost])
        column[-1].set_xlabel(AXES[cost])
    singles = {keys: values.to_numpy() for keys, values in runs.groupby(["metric", *KEYS], sort=False)["value"]}
    for (name, metric), row in zip(metrics.items(), axes, strict=True):
        of_metric = points[points["metric"] == name].dropna(subset="mean")
        for cost, axis in zip(AXES, row, strict=True):
            offsets = _offsets(of_metric[cost], of_metric["mean"], metric.better)
            for point, offset in zip(of_metric.itertuples(), offsets, strict=True):
                seeds = singles[name, *(getattr(point, key) for key in KEYS)]
                _draw_point(axis, point, cost, seeds, colours[point.model], markers[point.method], offset)
            _draw_front(axis, of_metric[of_metric[f"front_{cost}"]], cost, of_metric[cost].max())
            axis.margins(x=0.08, y=0.08)
        row[0].set_ylabel(f"test {metric.heading}")
    title = seeds_title(points["n_seeds"], "; points of equal\ncost are side by side")
    figure.legend(handles=_handles(colours, methods, markers, baseline), loc="outside right center", title=title)
    figure.draw_without_rendering()
    for (name, metric), row in zip(metrics.items(), axes, strict=True):
        beside = BESIDE_FRONT if metric.better == "higher" else (BESIDE_FRONT[0], -BESIDE_FRONT[1])
        for cost, axis in zip(AXES, row, strict=True):
            front = points[(points["metric"] == name) & points[f"front_{cost}"]]
            budgets = front["budget"].str.lstrip("0")
            of_models = front["model"].map(colours)
            label_points(axis, list(zip(front[cost], front["mean"], budgets, of_models, strict=True)), beside)
    return figure


def _scale(axis: Axes, costs: pd.Series) -> None:
    """Scales the axis of a cost, logarithmically if the costs differ much."""
    if costs.max() > LOGARITHMIC_FROM * costs.min():
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _offsets(costs: pd.Series, means: pd.Series, better: str) -> np.ndarray:
    """Returns by how many points of length each cell is shifted, so that cells of equal cost are side by side.

    The best of them is at its place, the next ones alternate to its right and left.
    """
    offsets = np.zeros(len(costs))
    ordered = np.argsort(costs.to_numpy(), kind="stable")
    ranks = means.rank(method="first", ascending=better == "lower").to_numpy()
    while len(ordered):
        equal = ordered[costs.iloc[ordered].to_numpy() <= SAME_COST * costs.iloc[ordered[0]]]
        steps = np.array([(place + 1) // 2 * (1 if place % 2 else -1) for place in range(len(equal))])
        width = min(DODGE_POINTS, MAX_DODGE_POINTS / max(1, len(equal) // 2))
        offsets[equal[np.argsort(ranks[equal])]] = width * steps
        ordered = ordered[len(equal) :]
    return offsets


def _draw_point(
    axis: Axes, point: tuple, cost: str, seeds: np.ndarray, colour: str, marker: tuple[str, str], offset: float
) -> None:
    """Draws the mean of a cell and its interval, or its single seeds."""
    x, (shape, fill) = getattr(point, cost), marker
    if point.n_seeds >= SEEDS_FOR_INTERVALS:
        lines = axis.plot([x] * 2, [point.low, point.high], color=colour, linewidth=0.9, alpha=0.55)
    else:
        lines = axis.plot([x] * len(seeds), seeds, ".", color=colour, markersize=4, alpha=0.6)
    on_front = getattr(point, f"front_{cost}")
    edge = "black" if on_front else "white" if fill == "full" else colour
    style = {"color": colour, "marker": shape, "fillstyle": fill, "markersize": 7, "linestyle": "none"}
    style |= {"markeredgecolor": edge, "markeredgewidth": 1.1 if on_front else 0.6, "zorder": 3.5 if on_front else 3}
    lines += axis.plot([x], [point.mean], **style)
    for line in lines:
        line.set_transform(axis.transData + ScaledTranslation(offset / 72, 0, axis.figure.dpi_scale_trans))


def _draw_front(axis: Axes, front: pd.DataFrame, cost: str, most: float) -> None:
    """Draws what can be reached up to each cost, as steps from point to point and on to the largest cost."""
    steps = front.sort_values(cost)
    x, y = [*steps[cost], most], [*steps["mean"], *steps["mean"][-1:]]
    if len(steps):
        axis.step(x, y, where="post", color=FRONT_COLOUR, linewidth=1.1, linestyle="--", zorder=1.5)


def _handles(
    colours: Mapping[str, str], methods: list[tuple[str, str]], markers: Mapping[str, tuple[str, str]], baseline: str
) -> list:
    of_models = [
        Patch(color=colour, label=shown_name(model, LABEL_POINTS, LABEL_SIZE) + " (baseline)" * (model == baseline))
        for model, colour in colours.items()
    ]
    of_methods = []
    for method, side in methods:
        shape, fill = markers[method]
        style = {"color": GREY, "marker": shape, "fillstyle": fill, "markersize": 7, "linestyle": "none"}
        of_methods.append(plt.Line2D([], [], label=method_label(method, side), **style))
    style = {"color": FRONT_COLOUR, "linestyle": "--", "linewidth": 1.1, "marker": "o", "markerfacecolor": "white"}
    front = plt.Line2D([], [], **style, markeredgecolor="black", label="Pareto front of the means")
    return [*of_models, *of_methods, front]
