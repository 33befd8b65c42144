"""Plots histograms of the live weights of each layer, before training, in the warm start and at the end of runs."""

from collections.abc import Mapping
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from bbnet.analysis.diagnosed import POINTS
from bbnet.analysis.summary import Summary
from bbnet.plots.style import method_label, shown_name

COLUMNS = 4
BINS = 64  # of the histograms of a probe
WIDTH_OF_PART, WIDTH_OF_REST, HEIGHT_OF_LAYER, HEIGHT_OF_REST = 2.6, 1.9, 0.17, 0.9
POINTS_FOR_NAME, SIZE_OF_NAME = 140, 7  # of a layer
LABEL_POINTS = 60  # of a method, beside the side and the budget
FEWEST_LAYERS = 8  # that determine the height
EDGES = np.linspace(-1, 1, BINS + 1)
PART = ["method", "side", "budget", "seed", "point"]


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    rows, flow = summary.read("diagnostics/histograms"), summary.read("diagnostics/gradient_flow")
    layers = flow[flow["units"].notna()].drop_duplicates("parameter")[["parameter", "module"]]
    shown = layers.merge(rows[rows["kind"] == "weight"], left_on="parameter", right_on="name")
    # The initial weights and the warm start of a seed are the same for all methods.
    first = shown[shown["point"] != "end"].drop_duplicates(["point", "seed", "parameter", "low"])
    first = first.sort_values("point", key=lambda points: points.map(list(POINTS).index), kind="stable")
    shown = pd.concat([first, shown[shown["point"] == "end"]])[["module", "parameter", *PART, "low", "high", "count"]]
    return plot_weight_histograms(shared_bins(shown)), shown


def shared_bins(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns by title the shares of weights [layers, bins], over the same range of a layer in all parts.

    Ranges are from -2^k to 2^k with a k of each part; wider bins contain whole bins of narrower ones.
    """
    ends = rows[["low", "high"]].abs().max(axis=1)
    limits = 2.0 ** np.ceil(np.log2(ends.groupby(rows["parameter"]).transform("max")))
    centres = (rows["low"] + rows["high"]) / 2 / limits
    binned = rows.assign(bin=np.floor((centres + 1) * BINS / 2).astype(int))
    parts = {}
    for (method, side, budget, seed, point), part in binned.groupby(PART, sort=False):
        title = f"{method_label(method, side, LABEL_POINTS)}, {budget.lstrip('0')}" if point == "end" else POINTS[point]
        counts = part.groupby(["module", "bin"], sort=False)["count"].sum().unstack(fill_value=0)
        counts = counts.reindex(columns=range(BINS), fill_value=0)
        parts[f"{title}, seed {seed}"] = counts.div(counts.sum(axis=1), axis=0)
    return parts


def plot_weight_histograms(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws an axis for each part, in which each layer is a row whose shades are the shares of its weights in each bin.

    Args:
        parts: by title, shares [layers, bins] whose index names the layers, from the smallest to the largest weight.
    """
    columns = min(COLUMNS, max(1, len(parts)))
    rows = -(-max(1, len(parts)) // columns)
    layers = max((len(part) for part in parts.values()), default=1)
    height = rows * (HEIGHT_OF_REST + HEIGHT_OF_LAYER * max(layers, FEWEST_LAYERS))
    size = (WIDTH_OF_REST + WIDTH_OF_PART * columns, height)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    image = None
    for axis, (title, part) in zip(axes.flat, parts.items(), strict=False):
        norm = PowerNorm(0.5, 0, 0.5)
        places = np.arange(len(part) + 1) - 0.5
        image = axis.pcolormesh(EDGES, places, part, cmap="magma_r", norm=norm, rasterized=True)
        names = [shown_name(layer or "(model)", POINTS_FOR_NAME, SIZE_OF_NAME) for layer in part.index]
        axis.set_yticks(range(len(part)), names, fontsize=SIZE_OF_NAME)
        axis.set(title=title, xlim=(-1, 1), ylim=(len(part) - 0.5, -0.5))
        axis.grid(visible=False)
    for axis in axes.flat[len(parts) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(parts) - columns) : len(parts)]:
        axis.tick_params(labelbottom=True)
    figure.supxlabel("live weight, relative to the range of the layer", fontsize="medium")
    if image is None:
        axes[0, 0].set_title("no layer was probed")
    else:
        figure.colorbar(image, ax=axes, label="share of live weights", extend="max", ticks=[0, 0.05, 0.2, 0.5])
    return figure
