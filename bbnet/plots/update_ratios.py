"""Plots how far a step moves each layer's weight, relative to the weight, from several points of runs."""

from types import ModuleType

import pandas as pd
from matplotlib.figure import Figure

from bbnet.analysis.summary import Summary
from bbnet.diagnostics.thresholds import FAST_RATIO, SLOW_RATIO
from bbnet.plots.by_depth import layer_weights, plot_by_depth

USUAL = 1e-3


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    flow, series = (summary.read(f"diagnostics/{name}") for name in ("gradient_flow", "gradient_flow_series"))
    shown = layer_weights(flow, series, "update_ratio")
    lines = {"slow": SLOW_RATIO, "usual": USUAL, "fast": FAST_RATIO}
    return plot_by_depth(shown, list(summary.study["methods"]), "update_ratio", "norm of update / weight", lines), shown
