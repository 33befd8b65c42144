"""Plots the test images that a method, and dense, classify wrongly with most confidence, and the answers of both."""

import json
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bbnet.plots.style import lacking_note, shown_name

WIDTH_OF_IMAGE, HEIGHT_OF_ROW, HEIGHT_OF_LEGEND = 1.8, 2.5, 0.5  # in inches
SIZE, LINE_POINTS = 7.5, 10.5
NAME_POINTS, METHOD_POINTS = 44, 42  # both and a probability stand below an image
RIGHT, WRONG = (0.0, 0.52, 0.38), (0.78, 0.30, 0.0)


def plot_panels(panels: Mapping[str, np.ndarray], model: str, method: str, budget: str) -> Figure:
    """Draws a row of the images on which the method is most confidently wrong, and a row of those of dense.

    Below each image are its true class, and of both runs the predicted class with its probability.

    Args:
        panels: the contents of `summary/panels/classification.npz`.
    """
    described = json.loads(str(panels["cases"]))
    start = f"{model}/{method}/b{budget}/"
    method = shown_name(method, METHOD_POINTS, SIZE)
    rows = {
        name: [key for key in described if key.startswith(f"{start}{run}_")]
        for run, name in (("other", method), ("dense", "dense"))
    }
    columns = max(1, *map(len, rows.values()))
    size = (WIDTH_OF_IMAGE * max(columns, 3), HEIGHT_OF_ROW * len(rows) + HEIGHT_OF_LEGEND)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    written: list[str] = []
    for row, (name, keys) in zip(axes, rows.items(), strict=True):
        for axis in row:
            axis.set_axis_off()
        most = "most confident errors" if keys else "no errors"
        row[0].set_title(f"{name}: {most}", loc="left", fontsize=SIZE + 1.5)
        for axis, key in zip(row, sorted(keys, key=lambda key: int(key.rpartition("_")[2])), strict=False):
            axis.imshow(panels[f"{key}/pixels"], interpolation="nearest")
            names = {of: str(panels[f"{key}/{of}"]) for of in ("true", "dense", "other")}
            written += _write_answers(axis, names, described[key], method)
    handles = [Patch(color=RIGHT, label="right"), Patch(color=WRONG, label="wrong")]
    title = "; ".join(filter(None, [f"{method}, budget {budget}; probability of the answer", lacking_note(written)]))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), title=title)
    return figure


def _write_answers(axis: Axes, names: Mapping[str, str], about: Mapping[str, Any], method: str) -> list[str]:
    """Writes the true class and both answers below an image; returns the names as written."""
    lines = [(shown_name(names["true"], NAME_POINTS, SIZE), "black", "true: {}")]
    for run, name in (("other", method), ("dense", "dense")):
        answer, of_run = shown_name(names[run], NAME_POINTS, SIZE), about[run]
        lines.append((answer, RIGHT if of_run["right"] else WRONG, f"{name}: {{}} {of_run['confidence']:.3f}"))
    for number, (name, colour, pattern) in enumerate(lines, start=1):
        axis.annotate(
            pattern.format(name),
            (0, 0),
            xycoords="axes fraction",
            xytext=(0, -LINE_POINTS * number),
            textcoords="offset points",
            fontsize=SIZE,
            color=colour,
        )
    return [name for name, _, _ in lines]
