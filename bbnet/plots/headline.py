"""Pareto plot of the first primary metric against FLOPs, the one figure that a reader should see."""

from types import ModuleType

import pandas as pd
from matplotlib.figure import Figure

from bbnet.analysis.summary import Summary
from bbnet.plots.pareto import AXES, plot_pareto

WIDTH, HEIGHT = 8, 4.6


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    cells, name = summary.read("cells"), task.PRIMARY[0]
    metrics, costs = {name: task.METRICS[name]}, {"flops": AXES["flops"]}
    figure = plot_pareto(cells, summary.read("runs"), metrics, costs, WIDTH, HEIGHT)
    return figure, cells[cells["metric"].isin([name, *costs])]
