"""Plots mask churn, the share of connections that each refresh changes."""

from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bbnet.analysis.collect import KEYS
from bbnet.analysis.summary import Summary
from bbnet.plots.style import LINES, method_colours, method_label

WIDTH_OF_BUDGET, WIDTH_OF_REST, HEIGHT, HEIGHT_OF_LEGEND_ENTRY = 3.4, 2.2, 3.4, 0.2


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    churn = churn_table(summary.read("refreshes"))
    return plot_churn(churn, list(summary.read("cells")["method"])), churn


def churn_table(refreshes: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per run and refresh; churn is (pruned + regrown) / (before + after) over all slabs."""
    sums = refreshes.groupby([*KEYS, "step"], sort=False)[["connections", "pruned", "regrown"]].sum().reset_index()
    before_and_after = 2 * sums["connections"] + sums["pruned"] - sums["regrown"]
    return sums.assign(churn=(sums["pruned"] + sums["regrown"]) / before_and_after)


def plot_churn(churn: pd.DataFrame, methods: list[str]) -> Figure:
    """Draws one axis per budget, with one line per method and seed.

    Args:
        churn: `churn_table` of one task and model.
        methods: all methods of the task and model; they determine the colours.
    """
    colours = method_colours(methods)
    budgets = sorted(set(churn["budget"]))
    columns, shown = max(1, len(budgets)), dict.fromkeys(zip(churn["method"], churn["side"], strict=True))
    height = max(HEIGHT, 0.6 + HEIGHT_OF_LEGEND_ENTRY * (len(shown) + 1))
    size = (WIDTH_OF_BUDGET * columns + WIDTH_OF_REST, height)
    figure, axes = plt.subplots(1, columns, figsize=size, sharey=True, squeeze=False)
    for axis, budget in zip(axes[0], budgets, strict=False):
        of_budget = churn[churn["budget"] == budget]
        for (method, side, _), run in of_budget.groupby(["method", "side", "seed"], sort=False):
            style = {"color": colours[method], "linestyle": LINES[side], "linewidth": 1.0, "alpha": 0.85}
            axis.plot(run["step"], run["churn"], **style)
        axis.set(title=f"budget {budget}", xlabel="step of the sparse phase")
    if not budgets:
        axes[0, 0].set_title("no method refreshes masks")
    axes[0, 0].set(ylim=(0, None), ylabel="connections changed by a refresh\n(share of those before and after)")
    handles = [
        plt.Line2D([], [], color=colours[method], linestyle=LINES[side], label=method_label(method, side))
        for method, side in shown
    ]
    figure.legend(handles=handles, loc="outside right center", title="one line per seed")
    return figure
