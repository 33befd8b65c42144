"""Plots the norm of the gradient of each layer's weight, in steps from several points of runs."""

from types import ModuleType

import pandas as pd
from matplotlib.figure import Figure

from bbnet.analysis.summary import Summary
from bbnet.diagnostics.thresholds import HIGH_NORM, LOW_NORM, VANISHING_NORM
from bbnet.plots.by_depth import layer_weights, plot_by_depth


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    flow, series = (summary.read(f"diagnostics/{name}") for name in ("gradient_flow", "gradient_flow_series"))
    shown = layer_weights(flow, series, "gradient_norm")
    thresholds = {"vanishing": VANISHING_NORM, "low": LOW_NORM, "high": HIGH_NORM}
    return plot_by_depth(
        shown, list(summary.study["methods"]), "gradient_norm", "norm of the gradient", thresholds
    ), shown
