"""Plots which runs of the grid are done."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from bbnet.analysis.summary import Summary
from bbnet.plots.style import LABEL_SIZE, method_label, shown_name

CELL_WIDTH, CELL_HEIGHT, WIDTH_OF_LABELS, HEIGHT_OF_REST = 1.1, 0.24, 2.6, 1.1
MODEL_POINTS = 80
NOTHING, SOME, ALL = range(3)
COLOURS = ListedColormap(["#d9d9d9", "#fdd49e", "#c7e9c0"])


def draw(summary: Summary, task: None) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of the whole study, and the data shown."""
    counts = coverage_table(summary.read("grid"))
    return plot_coverage(counts), counts


def coverage_table(grid: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per task, model, method and budget: number of runs (`asked`), and number of each status."""
    keys = ["task", "model", "method", "side", "budget"]
    counts = grid.groupby([*keys, "status"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["done", "failed", "stale", "missing"], fill_value=0)
    counts.insert(0, "asked", counts.sum(axis=1))
    return counts.reset_index()


def plot_coverage(counts: pd.DataFrame) -> Figure:
    """Draws a row per task, model and method, and a column per budget. Cells count done, failed and stale runs."""
    rows = list(dict.fromkeys(zip(counts["task"], counts["model"], counts["method"], strict=True)))
    budgets = sorted(set(counts["budget"]))
    shades = [[float("nan")] * len(budgets) for _ in rows]
    size = (WIDTH_OF_LABELS + CELL_WIDTH * len(budgets), HEIGHT_OF_REST + CELL_HEIGHT * len(rows))
    figure, axis = plt.subplots(figsize=size)
    for _, cell in counts.iterrows():
        place = rows.index((cell["task"], cell["model"], cell["method"])), budgets.index(cell["budget"])
        shades[place[0]][place[1]] = ALL if cell["done"] == cell["asked"] else SOME if cell["done"] else NOTHING
        others = [f"{cell[status]} {status}" for status in ("failed", "stale") if cell[status]]
        text = ", ".join([f"{cell['done']}/{cell['asked']}", *others])
        axis.annotate(text, place[::-1], ha="center", va="center", fontsize="small")
    axis.imshow(shades, cmap=COLOURS, vmin=NOTHING, vmax=ALL, aspect="auto")
    axis.set_xticks(range(len(budgets)), budgets)
    axis.set_yticks(range(len(rows)), [_label(*row) for row in rows])
    axis.set_xlabel("budget (cells: runs done / all runs)")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def _label(task: str, model: str, method: str) -> str:
    return f"{task} {shown_name(model, MODEL_POINTS, LABEL_SIZE)}: {method_label(method, 'none')}"
