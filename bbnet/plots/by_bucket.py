"""Plots a metric relative to dense for each bucket of the training data (Head, Mid and Tail)."""

from collections.abc import Mapping
from itertools import pairwise
from types import ModuleType
from typing import Literal

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbnet.analysis.collect import KEYS
from bbnet.analysis.summary import Summary
from bbnet.plots.style import DENSE_COLOUR, draw_cell, method_colours, method_handles, seeds_title, side_by_side

WIDTH_OF_BUDGET, WIDTH_OF_REST = 3.2, 2.7
HEIGHT, HEIGHT_OF_LEGEND_ENTRY = 2.5, 0.2
DENSE_LINE = {"color": DENSE_COLOUR, "linewidth": 1.2, "linestyle": "--", "label": "dense"}


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    cells, runs, items = (summary.read(name) for name in ("cells", "runs", "items"))
    _, of_one_run = next(iter(items.groupby(KEYS, sort=False)))
    names = [metric for of_buckets in task.BY_BUCKET.values() for metric in of_buckets.values()]
    sizes, better = task.bucket_sizes(of_one_run), task.METRICS[names[0]].better
    figure = plot_by_bucket(cells, runs, task.BY_BUCKET, sizes, common_name(task), better, task.COUNTED)
    return figure, cells[cells["metric"].isin(names)]


def common_name(task: ModuleType) -> str:
    """Returns the name that the relative metrics of all buckets share, such as ΔWER of `ΔWER head`."""
    bucket, metric = next(iter(next(iter(task.BY_BUCKET.values())).items()))
    return task.METRICS[metric].title.removesuffix(f" {bucket}")


def plot_by_bucket(
    cells: pd.DataFrame,
    runs: pd.DataFrame,
    metrics: Mapping[str, Mapping[str, str]],
    sizes: Mapping[str, Mapping[str, int]],
    name: str,
    better: Literal["higher", "lower"],
    counted: str,
) -> Figure:
    """Draws one column of axes per budget and one row per test set, with all methods in each bucket and dense at 0.

    If no type is in a bucket, as in balanced data, the figure says so.
    With at least 3 seeds, the mean and its 95 % interval are shown; otherwise the mean and the single seeds.

    Args:
        cells: `cells.csv` of one task and model.
        runs: `runs.csv` of the same task and model.
        metrics: by test set and bucket, the metric relative to dense; all have the same unit.
        sizes: by test set and bucket, the number of `counted`.
        name: the common name of the metrics, such as ΔWER.
        better: the direction that is better.
        counted: what buckets consist of, such as words.
    """
    relative = cells[cells["metric"].isin([metric for row in metrics.values() for metric in row.values()])]
    if relative.empty:
        figure, axis = plt.subplots(figsize=(WIDTH_OF_BUDGET + WIDTH_OF_REST, HEIGHT_OF_LEGEND_ENTRY * 3))
        axis.set_axis_off()
        axis.set_title(f"nothing to show: no {counted} are in a bucket")
        return figure
    budgets = sorted(set(relative["budget"]))
    colours = method_colours(list(cells["method"]))
    methods = list(dict.fromkeys(zip(relative["method"], relative["side"], strict=True)))
    height = max(HEIGHT * len(metrics), HEIGHT_OF_LEGEND_ENTRY * (len(methods) + 1)) + 0.6
    width = WIDTH_OF_BUDGET * len(budgets) + WIDTH_OF_REST
    figure, axes = plt.subplots(len(metrics), len(budgets), figsize=(width, height), sharey="row", squeeze=False)
    for row, (test_set, of_buckets) in zip(axes, metrics.items(), strict=True):
        row[0].set_ylabel(test_set)
        for axis, budget in zip(row, budgets, strict=True):
            axis.axhline(0, **DENSE_LINE)
            _draw_buckets(axis, {bucket: sizes[test_set][bucket] for bucket in of_buckets}, counted)
            of_budget = relative[relative["budget"] == budget]
            present = [key for key in methods if key in set(zip(of_budget["method"], of_budget["side"], strict=True))]
            for (method, side), place in zip(present, side_by_side(len(present)), strict=True):
                of_method = of_budget[(of_budget["method"] == method) & (of_budget["side"] == side)]
                singles = runs[(runs["method"] == method) & (runs["budget"] == budget)]
                for x, metric in enumerate(of_buckets.values()):
                    values = singles[singles["metric"] == metric]["value"].dropna()
                    for _, cell in of_method[of_method["metric"] == metric].iterrows():
                        draw_cell(axis, x + place, cell, values, colours[method], side)
    for axis, budget in zip(axes[0], budgets, strict=True):
        axis.set_title(f"budget {budget}")
    figure.supylabel(f"{name} relative to dense\n({relative['unit'].iloc[0]}; {better} is better)", fontsize="medium")
    handles = [plt.Line2D([], [], **DENSE_LINE), *method_handles(methods, colours)]
    title = seeds_title(relative["n_seeds"], "; methods in this\norder from left to right")
    figure.legend(handles=handles, loc="outside right center", title=title)
    return figure


def _draw_buckets(axis: Axes, sizes: Mapping[str, int], counted: str) -> None:
    """Labels the buckets with their names and sizes below the axis, and draws lines between them."""
    places = range(len(sizes))
    axis.set_xticks(places, [f"{bucket}\n{size:,} {counted}" for bucket, size in sizes.items()])
    axis.set_xlim(-0.5, len(sizes) - 0.5)
    axis.tick_params(axis="x", length=0)
    axis.grid(visible=False, axis="x")
    for left, right in pairwise(places):
        axis.axvline((left + right) / 2, color="0.85", linewidth=0.8, zorder=0)
