"""Forest plot of the factors that a study varies: differences from the default, and from rivals with the same value."""

from collections.abc import Mapping
from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbnet.analysis.metric import Metric
from bbnet.analysis.sensitivity import DEFAULT, Condition, conditions, sensitivity_table
from bbnet.analysis.summary import Summary
from bbnet.plots.style import DENSE_COLOUR, LABEL_SIZE, SEEDS_FOR_INTERVALS, model_colours, shown_name

WIDTH_OF_COLUMN, WIDTH_OF_LABELS, HEIGHT_OF_ROW, HEIGHT_OF_REST = 3.8, 2.0, 0.22, 1.6
GAP = 0.8  # rows between two factors
SPREAD = 0.25  # rows between two rivals
LABEL_POINTS = 120
MARKER = {"marker": "o", "markersize": 5.5, "markerfacecolor": "white"}
DEFAULT_MARKER = MARKER | {"marker": "s"}


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task, and the data shown."""
    table = sensitivity_table(summary)
    metrics = {name: task.METRICS[name] for name in task.PRIMARY}
    varied = conditions(summary.study, summary.task)
    return plot_sensitivity(table, varied, metrics, summary.study["reference"]), table


def plot_sensitivity(
    table: pd.DataFrame, varied: list[Condition], metrics: Mapping[str, Metric], reference: str
) -> Figure:
    """Draws a row of axes per metric and budget, and in each a line per value of a factor, grouped by factor.

    On the left is the difference of each value from the default, which is marked by a square. On the right is the
    difference of the reference from its rivals, all with this value; dotted lines show it for the defaults. Bars are
    95 % intervals; with fewer than 3 seeds, small points are the single seeds. Significant differences are filled.

    Args:
        table: `sensitivity_table`.
        varied: the values of each factor. Those without any contrast are left out, except the defaults.
        metrics: the metrics to show, by name.
        reference: label of the reference method.
    """
    factors, shown = set(table["factor"]), set(zip(table["factor"], table["value"], strict=True))
    values = [one for one in varied if one.factor in factors and (one.default or (one.factor, one.text) in shown)]
    places = _places(values)
    rivals = [against for against in dict.fromkeys(table["against"]) if against != DEFAULT]
    colours = model_colours([DEFAULT, *rivals])
    rows = [(metric, budget) for metric in metrics for budget in sorted(set(table["budget"]))] or [(None, None)]
    height = HEIGHT_OF_ROW * (max(places.values(), default=0) + 2) + HEIGHT_OF_REST
    size = (WIDTH_OF_LABELS + WIDTH_OF_COLUMN * 2, height * len(rows))
    figure, axes = plt.subplots(len(rows), 2, figsize=size, sharey="row", squeeze=False)
    for (name, budget), (left, right) in zip(rows, axes, strict=True):
        contrasts = table[(table["metric"] == name) & (table["budget"] == budget)]
        _draw(left, contrasts, places, {DEFAULT: 0.0}, colours)
        for value in values:
            if value.default:
                left.plot([0], [places[value.factor, value.text]], color=colours[DEFAULT], **DEFAULT_MARKER)
        offsets = {rival: SPREAD * (number - (len(rivals) - 1) / 2) for number, rival in enumerate(rivals)}
        _draw(right, contrasts, places, offsets, colours)
        _label(left, values, places)
        if name is None:
            left.set_title("nothing to compare")
            continue
        own, at = shown_name(reference, LABEL_POINTS, LABEL_SIZE), f"budget {budget.lstrip('0')}"
        left.set_title(f"{own}: value − default ({at})")
        right.set_title(f"{own} − rival, same value ({at})")
        for axis in (left, right):
            axis.set_xlabel(f"difference in test {metrics[name].heading}; {metrics[name].better} is better")
    enough = bool(len(table)) and table["n_seeds"].min() >= SEEDS_FOR_INTERVALS
    figure.legend(handles=_handles(rivals, colours, enough), loc="outside lower center", ncols=3)
    return figure


def _places(values: list[Condition]) -> dict[tuple[str, str], float]:
    """Returns the height of each value of each factor, from above, with a gap between factors."""
    factors = list(dict.fromkeys(value.factor for value in values))
    return {
        (value.factor, value.text): number + GAP * (1 + factors.index(value.factor))
        for number, value in enumerate(values)
    }


def _draw(
    axis: Axes,
    contrasts: pd.DataFrame,
    places: Mapping[tuple[str, str], float],
    offsets: Mapping[str, float],
    colours: Mapping[str, str],
) -> None:
    """Draws the contrasts with each of `offsets`, by which the lines of several are apart."""
    axis.axvline(0, color=DENSE_COLOUR, linewidth=1.0, linestyle="--")
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    shown = contrasts[contrasts["against"].isin(list(offsets))]
    for against, effect in shown.loc[shown["default"].astype(bool), ["against", "effect"]].drop_duplicates().to_numpy():
        axis.axvline(effect, color=colours[against], linewidth=1.0, linestyle=":")
    for row in shown.to_dict("records"):
        place, colour = places[row["factor"], row["value"]] + offsets[row["against"]], colours[row["against"]]
        if row["n_seeds"] >= SEEDS_FOR_INTERVALS:
            axis.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=1.2)
        else:
            singles = [float(one) for one in str(row["differences"]).split()]
            axis.plot(singles, [place] * len(singles), ".", color=colour, markersize=4, alpha=0.6)
        face = {} if row["verdict"] == "none" else {"markerfacecolor": colour}
        axis.plot([row["effect"]], [place], color=colour, **(DEFAULT_MARKER if row["default"] else MARKER) | face)


def _label(axis: Axes, values: list[Condition], places: Mapping[tuple[str, str], float]) -> None:
    """Writes each value beside its line, and the factor above the first of them."""
    texts = [f"{shown_name(value.text, LABEL_POINTS, LABEL_SIZE)}{' (default)' * value.default}" for value in values]
    heights = [places[value.factor, value.text] for value in values]
    axis.set_yticks(heights, texts)
    for factor in dict.fromkeys(value.factor for value in values):
        first = min(height for (other, _), height in places.items() if other == factor)
        at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
        style = {"fontweight": "bold", "ha": "right", "va": "center", "fontsize": "small"}
        axis.annotate(factor, (0, first - GAP), (-4, 0), **at, **style)
    axis.set_ylim(max(heights, default=0) + 1, -0.8)


def _handles(rivals: list[str], colours: Mapping[str, str], with_intervals: bool) -> list[plt.Line2D]:
    shown = "95 % interval" if with_intervals else "single seeds"
    style = {"color": "0.4", "linestyle": "-" if with_intervals else "none", "linewidth": 1.2}
    handles = [
        plt.Line2D([], [], **style, **DEFAULT_MARKER, label="default"),
        plt.Line2D([], [], **style, **MARKER, label=f"mean of paired differences, {shown}"),
        plt.Line2D([], [], **style, marker="o", markersize=5.5, label="p < .05 (Holm, over all contrasts of the task)"),
    ]
    for rival in rivals:
        label = f"rival: {shown_name(rival, LABEL_POINTS, LABEL_SIZE)}"
        handles.append(plt.Line2D([], [], color=colours[rival], linewidth=1.2, label=label))
    return handles
