"""Plots the balance line over training: its R^2 and slope after each epoch, of degrees and of effective degrees."""

from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbnet.analysis.balance import DEGREES, SIDES
from bbnet.analysis.statistics import half_width
from bbnet.analysis.summary import Summary
from bbnet.plots.style import SEEDS_FOR_INTERVALS, method_label

COLUMNS = 5
WIDTH_OF_METHOD, WIDTH_OF_REST, HEIGHT_OF_BLOCK, HEIGHT_OF_REST = 2.0, 0.9, 3.3, 0.8
LABEL_POINTS = 60  # of a method, beside its side and the budget
VALUES = {"r2": "$R^2$ of the line", "slope": "slope (nats\nper share of fan)"}
LINEAR = 10  # up to which the axis of slopes is linear
SLOPES = (-100, -30, -10, 0, 10, 30, 100)
LINES = {"live": {"color": "C0", "linestyle": "-"}, "effective": {"color": "C1", "linestyle": "--"}}
ENDS = {"warm_up": ":", "sparse": "--"}


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    data = lines_over_training(summary.read("history"))
    return plot_lines(data), data


def lines_over_training(history: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per cell, side of its slabs, step, kind of degree and value (r2, slope): mean and interval.

    The mean and its 95 % interval (`low`, `high`; t) are over the `n_seeds` seeds for which there is a line. Until the
    end of the warm-up the rows are those of the dense network that all methods share. Of dense networks there are the
    sides that another method has.

    Args:
        history: `history.parquet` of one task and model whose training has `watch_balance`.
    """
    keys = ["method", "side", "budget", "phase", "step"]
    parts = []
    for slab_side in [side for side in SIDES if history["side"].isin([side, "both"]).any()] or SIDES:
        own = history[(history["side"] == slab_side) | history["side"].isin(["none", "both"])]
        for degree in DEGREES:
            for value in VALUES:
                column = f"line_{slab_side}_{degree}_{value}"
                names = {"slab_side": slab_side, "degree": degree, "value": value}
                part = own[[*keys, "seed", column]].rename(columns={column: "found"}).assign(**names)
                parts.append(part.dropna(subset="found"))
    rows = pd.concat(parts, ignore_index=True)
    cells = rows.groupby([*keys[:3], "slab_side", "degree", "value", *keys[3:]], sort=False)["found"]
    order = {method: place for place, method in enumerate(dict.fromkeys(history["method"]))}
    table = cells.agg(mean="mean", half=_half, n_seeds="size").reset_index()
    table = table.sort_values("method", key=lambda methods: methods.map(order), kind="stable", ignore_index=True)
    low, high = table["mean"] - table["half"], table["mean"] + table["half"]
    return table.drop(columns="half").assign(low=low, high=high)


def _half(values: pd.Series) -> float:
    return half_width(values.to_numpy()) if len(values) >= SEEDS_FOR_INTERVALS else np.nan


def plot_lines(data: pd.DataFrame) -> Figure:
    """Draws R^2 above the slope for each method, side of slabs and budget, at most `COLUMNS` beside one another.

    With at least 3 seeds the mean is in its 95 % interval. Vertical lines mark the end of the warm-up, from which on
    methods have masks, and the start of the freeze. Slopes are on an axis that is linear around 0.

    Args:
        data: `lines_over_training`.
    """
    keys = ["method", "slab_side", "budget"]
    parts = list(dict.fromkeys(zip(*(data[name] for name in keys), strict=True)))
    columns, blocks = min(COLUMNS, max(1, len(parts))), max(1, -(-len(parts) // COLUMNS))
    size = (WIDTH_OF_METHOD * max(2, columns) + WIDTH_OF_REST, HEIGHT_OF_BLOCK * blocks + HEIGHT_OF_REST)
    figure, axes = plt.subplots(len(VALUES) * blocks, columns, figsize=size, sharex=True, squeeze=False)
    slopes = data[data["value"] == "slope"]["mean"]
    ends = {"r2": (-0.02, 1.02), "slope": (1.2 * min(-LINEAR, slopes.min()), 1.2 * max(LINEAR, slopes.max()))}
    pairs = axes.reshape(blocks, len(VALUES), columns).transpose(0, 2, 1).reshape(-1, len(VALUES))
    for pair, (method, side, budget) in zip(pairs, parts, strict=False):
        shown = data[(data["method"] == method) & (data["slab_side"] == side) & (data["budget"] == budget)]
        below = "" if method == "dense" else f", {budget.lstrip('0')}"
        pair[0].set_title(f"{method_label(method, side, LABEL_POINTS)}{below}", fontsize="medium")
        for axis, value in zip(pair, VALUES, strict=True):
            for phase, style in ENDS.items():
                axis.axvline(shown[shown["phase"] == phase]["step"].max(), color="0.6", linestyle=style, linewidth=0.9)
            for degree in DEGREES:
                _draw_line(axis, shown[(shown["degree"] == degree) & (shown["value"] == value)], degree)
            if value == "slope":
                axis.axhline(0, color="0.6", linewidth=0.6)
                axis.set_yscale("symlog", linthresh=LINEAR)
                axis.set_yticks(SLOPES, [f"{slope:g}" for slope in SLOPES], minor=False)
                axis.yaxis.set_minor_locator(ticker.NullLocator())
            axis.set_ylim(*(ends[value] if len(data) else (0, 1)))
    for pair in pairs[len(parts) :] if parts else ():
        for axis in pair:
            axis.set_axis_off()
    if not parts:
        axes[0, 0].set_title("no slab has a line")
    for number, row in enumerate(axes):
        row[0].set_ylabel(list(VALUES.values())[number % len(VALUES)])
        for axis in row[1:]:
            axis.tick_params(labelleft=False)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    handles = [plt.Line2D([], [], label=name, **LINES[degree]) for degree, name in DEGREES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _draw_line(axis: Axes, rows: pd.DataFrame, degree: str) -> None:
    rows = rows.sort_values("step")
    axis.plot(rows["step"], rows["mean"], linewidth=1.1, **LINES[degree])
    axis.fill_between(rows["step"], rows["low"], rows["high"], color=LINES[degree]["color"], alpha=0.2, linewidth=0)
