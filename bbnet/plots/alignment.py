"""Plots how similar the features of each layer are to those of the dense run of the same seed, by linear CKA on dev."""

from collections.abc import Sequence
from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bbnet.analysis.diagnosed import POINTS
from bbnet.analysis.summary import Summary
from bbnet.plots.by_depth import RUN, SMALLEST_WIDTH, WIDTH_OF_LAYER, WIDTH_OF_REST, name_layers
from bbnet.plots.style import DENSE_COLOUR, LINES, method_colours, method_label

HEIGHT = 4.2
BEFORE = {
    "initialisation": {"color": "0.65", "linestyle": ":", "linewidth": 1.2},
    "warm_start": {"color": DENSE_COLOUR, "linestyle": ":", "linewidth": 1.2},
}


def draw(summary: Summary, task: ModuleType) -> tuple[Figure, pd.DataFrame]:
    """Returns the figure of one task and model, and the data shown."""
    rows = summary.read("diagnostics/alignment")
    order = {key: place for place, key in enumerate(dict.fromkeys(zip(rows["layer"], rows["call"], strict=True)))}
    places = [order[key] for key in zip(rows["layer"], rows["call"], strict=True)]
    shown = rows.assign(place=pd.Series(places, index=rows.index, dtype=int))
    # The initial weights and the warm start of a seed are the same for all methods.
    is_shown = (shown["method"] != "dense") | (shown["point"] != "end")
    shown = shown[is_shown & ((shown["point"] == "end") | ~shown.duplicated(["point", "seed", "place"]))]
    return plot_alignment(shown, list(summary.study["methods"])), shown


def plot_alignment(shown: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Draws a line for each run, and dotted ones for the initial weights and the warm start of a seed.

    Args:
        shown: rows of `alignment.csv` of one task and model, with `place`, the number of the layer.
        methods: labels of all methods of the study, which determine the colours.
    """
    width = max(SMALLEST_WIDTH, WIDTH_OF_LAYER * shown["place"].nunique()) + WIDTH_OF_REST
    figure, axis = plt.subplots(figsize=(width, HEIGHT))
    colours, handles = method_colours(methods), {}
    for (point, method, side, budget, _), run in shown.groupby(["point", *RUN], sort=False):
        run = run.sort_values("place")
        if point in BEFORE:
            (handles[POINTS[point]],) = axis.plot(run["place"], run["cka"], **BEFORE[point])
        else:
            style = {"color": colours[method], "linestyle": LINES[side], "marker": ".", "markersize": 3}
            name = f"{method_label(method, side)}, budget {budget}"
            (handles[name],) = axis.plot(run["place"], run["cka"], **style)
    names = {
        row.place: f"{row.layer} ({row.call + 1})" if row.call else row.layer
        for row in shown.drop_duplicates("place").itertuples()
    }
    name_layers(axis, names)
    axis.set(ylabel="linear CKA with dense, on dev", ylim=(0, 1.03))
    title = "one line per seed" if handles else "no run to compare with dense"
    figure.legend(list(handles.values()), list(handles), loc="outside right center", title=title)
    return figure
