"""Forest plot of the contrasts: paired differences between a method and dense or another method, with intervals."""

from collections.abc import Mapping
from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbnet.analysis.metric import Metric
from bbnet.analysis.summary import Summary
from bbnet.plots.style import DENSE_COLOUR, MARKERS, SEEDS_FOR_INTERVALS, method_colours, method_label

WIDTH_OF_METRIC, WIDTH_OF_LABELS, HEIGHT_OF_ROW, HEIGHT_OF_REST = 4.2, 2.6, 0.2, 1.3
LABEL_POINTS = 90  # of each of two methods
KEYS = ["budget", "method", "side", "reference", "reference_side"]


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    contrasts, cells = summary.read("contrasts"), summary.read("cells")
    metrics = {name: task.METRICS[name] for name in task.PRIMARY}
    return plot_contrasts(contrasts, metrics, list(cells["method"])), contrasts


def plot_contrasts(contrasts: pd.DataFrame, metrics: Mapping[str, Metric], methods: list[str]) -> Figure:
    """Draws one column of axes per metric and one row per contrast, ordered by budget. Significant ones are filled.

    Args:
        contrasts: `contrasts.csv` of one task and model.
        metrics: the metrics to show, by name.
        methods: all methods of the task and model; they determine the colours.
    """
    rows = list(dict.fromkeys(contrasts.sort_values("budget", kind="stable")[KEYS].itertuples(index=False, name=None)))
    colours = method_colours(methods)
    metrics = {name: metric for name, metric in metrics.items() if name in set(contrasts["metric"])}
    columns = max(1, len(metrics))
    size = (WIDTH_OF_LABELS + WIDTH_OF_METRIC * columns, HEIGHT_OF_REST + HEIGHT_OF_ROW * len(rows))
    figure, axes = plt.subplots(1, columns, figsize=size, sharey=True, squeeze=False)
    for axis, (name, metric) in zip(axes[0], metrics.items(), strict=False):
        of_metric = contrasts[contrasts["metric"] == name].set_index(KEYS)
        axis.axvline(0, color=DENSE_COLOUR, linewidth=1.0, linestyle="--")
        for place, row in enumerate(rows):
            if row in of_metric.index:
                _draw_contrast(axis, place, of_metric.loc[row], colours[row[1]], MARKERS[row[2]])
        axis.set_xlabel(f"difference in test {metric.heading}; {metric.better} is better")
        axis.grid(visible=False, axis="y")
    if not rows:
        axes[0, 0].set_title("nothing to compare")
    _label_rows(axes[0, 0], rows)
    axes[0, 0].invert_yaxis()
    enough = len(contrasts) and contrasts["n_seeds"].min() >= SEEDS_FOR_INTERVALS
    figure.legend(handles=_handles(bool(enough)), loc="outside lower center", ncols=2)
    return figure


def _draw_contrast(axis: Axes, place: int, contrast: pd.Series, colour: str, marker: str) -> None:
    """Draws one contrast: the mean with its 95 % interval, or with the single seeds if there are fewer than 3."""
    if contrast["n_seeds"] >= SEEDS_FOR_INTERVALS:
        axis.plot([contrast["low"], contrast["high"]], [place] * 2, color=colour, linewidth=1.2)
    else:
        singles = [float(one) for one in str(contrast.get("differences", "")).split()]
        axis.plot(singles, [place] * len(singles), ".", color=colour, markersize=4, alpha=0.6)
    face = "white" if contrast["verdict"] == "none" else colour
    axis.plot([contrast["effect"]], [place], color=colour, marker=marker, markersize=6, markerfacecolor=face)


def _label_rows(axis: Axes, rows: list[tuple]) -> None:
    labels = [
        " − ".join(method_label(*one, LABEL_POINTS) for one in ((method, side), (reference, other)))
        + f"   {budget.lstrip('0')}"
        for budget, method, side, reference, other in rows
    ]
    axis.set_yticks(range(len(rows)), labels)
    axis.tick_params(axis="y", length=0)
    for place in range(1, len(rows)):
        if rows[place][0] != rows[place - 1][0]:
            for other in axis.figure.axes:
                other.axhline(place - 0.5, color="0.85", linewidth=0.8)


def _handles(with_intervals: bool) -> list[plt.Line2D]:
    style = {"color": "0.4", "marker": "o", "linestyle": "-" if with_intervals else "none", "linewidth": 1.2}
    shown = "95 % interval" if with_intervals else "single seeds"
    return [
        plt.Line2D([], [], **style, markerfacecolor="white", label=f"mean of paired differences, {shown}"),
        plt.Line2D([], [], **style, label="p < .05 (Holm, over all contrasts of the task)"),
    ]
