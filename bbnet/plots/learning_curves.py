"""Plots learning curves: the selection metric on dev and the density after each epoch."""

from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bbnet.analysis.collect import KEYS
from bbnet.analysis.summary import Summary
from bbnet.plots.style import LINES, method_colours, method_label

PHASES = {"warm_up": ("end of warm-up", ":"), "sparse": ("start of the freeze", "--")}


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    history, shown = summary.read("history"), f"dev_{task.SELECTION}"
    columns = [*KEYS, "epoch", "phase", "step", "density", shown, "selected"]
    heading = task.METRICS[task.SELECTION].heading
    return plot_learning_curves(history, task.SELECTION, heading), history[columns]


def plot_learning_curves(history: pd.DataFrame, metric: str, heading: str) -> Figure:
    """Draws one column per budget, with one line per method and seed, dense in grey. Vertical lines end the phases.

    Args:
        history: `history.parquet` of one task and model.
        metric: name of the metric. Its values on dev are in the column `dev_{metric}`.
        heading: title and unit of the metric.
    """
    dense = history[history["method"] == "dense"]
    budgets = sorted(set(history["budget"]) - set(dense["budget"])) or sorted(set(dense["budget"]))
    layout = {"sharex": True, "sharey": "row", "squeeze": False, "height_ratios": (3, 1)}
    figure, axes = plt.subplots(2, len(budgets), figsize=(4.0 * len(budgets) + 1.2, 4.8), **layout)
    colours = method_colours(list(history["method"]))
    ends = {phase: history[history["phase"] == phase]["epoch"].max() for phase in PHASES}
    for (curve, density), budget in zip(axes.T, budgets, strict=True):
        shown = pd.concat([dense, history[(history["budget"] == budget) & (history["method"] != "dense")]])
        for (method, side, _), run in shown.groupby(["method", "side", "seed"], sort=False):
            line = {"color": colours[method], "linestyle": LINES[side], "linewidth": 1.0, "alpha": 0.85}
            curve.plot(run["epoch"], run[f"dev_{metric}"], **line)
            density.plot(run["epoch"], run["density"], **line)
            selected = run[run["selected"]]
            curve.plot(selected["epoch"], selected[f"dev_{metric}"], color=colours[method], marker="o", markersize=4)
        for axis in (curve, density):
            for phase, (_, style) in PHASES.items():
                axis.axvline(ends[phase], color="0.6", linestyle=style, linewidth=1.0)
        curve.set_title(f"budget {budget}")
        density.set(xlabel="epoch", ylim=(0, 1.08))
    axes[0, 0].set_ylabel(f"dev {heading}")
    axes[1, 0].set_ylabel("density of slabs\n(share)")
    sides = dict(zip(history["method"], history["side"], strict=True))
    handles = [
        plt.Line2D([], [], color=colour, linestyle=LINES[sides[method]], label=method_label(method, "none"))
        for method, colour in colours.items()
    ]
    handles.append(plt.Line2D([], [], color="0.4", marker="o", linestyle="none", markersize=4, label="selected epoch"))
    handles += [plt.Line2D([], [], color="0.6", linestyle=style, label=label) for label, style in PHASES.values()]
    figure.legend(handles=handles, loc="outside right center", title="one line per seed")
    return figure
