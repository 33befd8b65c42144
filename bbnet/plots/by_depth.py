"""Plots figures of gradient flow against the depth of a layer, in steps from several points of runs."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbnet.analysis.collect import KEYS
from bbnet.analysis.diagnosed import POINTS
from bbnet.plots.style import LINES, method_colours, method_label, shown_name

WIDTH_OF_LAYER, SMALLEST_WIDTH, WIDTH_OF_REST, HEIGHT, HEIGHT_OF_NAMES = 0.16, 4.0, 2.4, 2.3, 1.8
RUN = ["method", "side", "budget", "seed"]
MOST_NAMES = 40  # of layers below the axis
SIZE_OF_NAME, POINTS_FOR_NAME = 6.5, 140
ALPHA = 0.3  # of all bands together


def layer_weights(flow: pd.DataFrame, series: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Returns a figure of the weights of layers: mean, smallest and largest over the bins of the observed steps.

    Args:
        flow, series: `gradient_flow` and `gradient_flow_series` of the summary, of one task and model.
        figure: a column of both.
    """
    keys = [*KEYS, "point", "parameter"]
    layers = flow[(flow["status"] == "watched") & flow["units"].notna()]
    ends = series.groupby(keys, sort=False)[figure].agg(["min", "max"]).reset_index()
    ends = ends.rename(columns={"min": f"{figure}_smallest", "max": f"{figure}_largest"})
    shown = layers[[*keys, "depth", "module", figure]].merge(ends, on=keys, how="left")
    # Every run has the same parameters, so their places say the order of the layers.
    order = {depth: place for place, depth in enumerate(sorted(set(shown["depth"])))}
    return shown.assign(layer=shown["depth"].map(order)).drop(columns="depth")


def plot_by_depth(
    shown: pd.DataFrame, methods: Sequence[str], figure: str, label: str, lines: Mapping[str, float]
) -> Figure:
    """Draws a row of axes for each point, with a line for each run and a band from its smallest to its largest value.

    Args:
        shown: `layer_weights`.
        methods: labels of all methods of the study, which determine the colours.
        label: of the axes.
        lines: values that are marked by a line with a name, as far as they lie in the axes.
    """
    count = shown["layer"].nunique()
    width = max(SMALLEST_WIDTH, WIDTH_OF_LAYER * count) + WIDTH_OF_REST
    there = set(shown["point"])
    points = {point: title for point, title in POINTS.items() if point in there or not there}
    size = (width, HEIGHT * len(points) + HEIGHT_OF_NAMES)
    panels, axes = plt.subplots(len(points), 1, figsize=size, sharex=True, sharey=True, squeeze=False)
    axes = list(axes.flat)
    colours, handles = method_colours(methods), {}
    alpha = ALPHA / max(3, shown.groupby(RUN).ngroups)
    for axis, (point, title) in zip(axes, points.items(), strict=True):
        for (method, side, budget, _), run in shown[shown["point"] == point].groupby(RUN, sort=False):
            run = run.sort_values("layer")
            style = {"color": colours[method], "linestyle": LINES[side]}
            values = run[figure].where(run[figure] > 0)
            (handles[method, side, budget],) = axis.plot(run["layer"], values, marker=".", markersize=3, **style)
            low, high = (run[f"{figure}_{end}"].where(lambda ends: ends > 0) for end in ("smallest", "largest"))
            axis.fill_between(run["layer"], low, high, color=colours[method], alpha=alpha, linewidth=0)
        axis.set(title=f"steps from the {title}", ylabel=label, yscale="log")
    for axis in axes:  # now that all have the same limits
        _mark(axis, lines)
    name_layers(axes[-1], shown.drop_duplicates("layer").set_index("layer")["module"].to_dict())
    labels = [f"{method_label(method, side)}, budget {budget}" for method, side, budget in handles]
    title = "line: mean of observed steps;\nband: smallest to largest" if handles else "nothing to show"
    panels.legend(list(handles.values()), labels, loc="outside right center", title=title)
    return panels


def _mark(axis: Axes, lines: Mapping[str, float]) -> None:
    low, high = axis.get_ylim()
    for name, value in lines.items():
        if low < value < high:
            axis.axhline(value, color="0.6", linewidth=0.8, linestyle=":", zorder=1)
            place = {"xycoords": ("axes fraction", "data"), "xytext": (2, 0), "textcoords": "offset points"}
            axis.annotate(name, (1, value), **place, va="center", fontsize=SIZE_OF_NAME, color="0.4")


def name_layers(axis: Axes, names: dict[int, str]) -> None:
    """Writes the names of layers below an axis, of many layers only some of them."""
    places = sorted(names)
    places = places[:: -(-len(places) // MOST_NAMES) or 1]
    shown = [shown_name(names[place] or "(model)", POINTS_FOR_NAME, SIZE_OF_NAME) for place in places]
    axis.set_xticks(places, shown, rotation=90, fontsize=SIZE_OF_NAME)
    axis.set_xlim(-0.5, max([*names, 0]) + 0.5)
