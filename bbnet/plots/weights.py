"""Plots histograms of the weights of each layer, in units of h, the magnitude of binary weights."""

from collections.abc import Mapping
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from bbnet.analysis.summary import Summary
from bbnet.analysis.weights import BIN_CENTRES, BIN_WIDTH, BINS
from bbnet.plots.style import method_label, shown_name

COLUMNS = 3
WIDTH_OF_PART, WIDTH_OF_REST, HEIGHT_OF_LAYER, HEIGHT_OF_REST = 3.6, 1.0, 0.17, 1.1
POINTS_FOR_NAME, SIZE_OF_NAME = 95, 7  # of a layer
LABEL_POINTS = 85  # of a method, beside the side and the budget
FEWEST_LAYERS = 8  # that determine the height
LIMIT = 1.05  # of the axis in units of h, unless weights lie beyond it


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of the latent weights of one task and model, and the data shown: means over seeds."""
    rows = summary.read("weights")
    latent = rows[rows["kind"] == "latent"]
    keys = ["method", "side", "budget", "layer"]
    shares = latent[BINS].div(latent["weights"], axis=0).assign(**{key: latent[key] for key in keys})
    shown = shares.groupby(keys, sort=False).mean().reset_index()
    parts = {
        f"{method_label(method, side, LABEL_POINTS)}, budget {budget}": part.set_index("layer")[BINS]
        for (method, side, budget), part in shown.groupby(keys[:3], sort=False)
    }
    return plot_weights(parts), shown


def plot_weights(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws one axis per part, in which each layer is a row whose shades are the shares of its weights in each bin.

    Args:
        parts: by title, shares [layers, `BINS`], whose index names the layers.
    """
    count = max(1, len(parts))
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    layers = max((len(part) for part in parts.values()), default=1)
    size = (
        WIDTH_OF_REST + WIDTH_OF_PART * columns,
        rows * (HEIGHT_OF_REST + HEIGHT_OF_LAYER * max(layers, FEWEST_LAYERS)),
    )
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, squeeze=False)
    used = np.abs(BIN_CENTRES[_is_used(parts)]).max(initial=0)
    limit = max(LIMIT, used + BIN_WIDTH / 2)
    image = None
    for axis, (title, part) in zip(axes.flat, parts.items(), strict=False):
        edges = np.append(BIN_CENTRES - BIN_WIDTH / 2, BIN_CENTRES[-1] + BIN_WIDTH / 2)
        norm = PowerNorm(0.5, 0, 1)
        image = axis.pcolormesh(edges, np.arange(len(part) + 1) - 0.5, part, cmap="magma_r", norm=norm, rasterized=True)
        names = [shown_name(layer or "(model)", POINTS_FOR_NAME, SIZE_OF_NAME) for layer in part.index]
        axis.set_yticks(range(len(part)), names, fontsize=SIZE_OF_NAME)
        axis.set(title=title, xlim=(-limit, limit), ylim=(len(part) - 0.5, -0.5))
        axis.grid(visible=False)
    for axis in axes.flat[len(parts) :]:
        axis.set_axis_off()
    figure.supxlabel("weight (units of h)", fontsize="medium")
    if image is None:
        axes[0, 0].set_title("no run has binary weights")
    else:
        figure.colorbar(image, ax=axes, label="share of the layer's weights", ticks=[0, 0.05, 0.2, 0.5, 1])
    return figure


def _is_used(parts: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Returns which bins have weights: bool [bins]."""
    return np.any([(part > 0).any(axis=0) for part in parts.values()] or [np.zeros(len(BINS), bool)], axis=0)
