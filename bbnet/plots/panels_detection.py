"""Plots test images (best, median and worst) with the boxes of a run and of the run that it is compared with."""

import json
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from bbnet.plots.style import lacking_note, shown_name

WIDTH_OF_IMAGE, HEIGHT_OF_ROW, HEIGHT_OF_LEGEND = 3.0, 3.0, 0.6  # in inches
LABEL_SIZE, LABEL_POINTS = 8, 72 * HEIGHT_OF_ROW - 12  # labels of rows stand upright, one above the other
METHOD_POINTS = 130
HIT, FALSE_ALARM, IGNORED = 1, 0, -1  # outcomes of the detections
COLOURS = {HIT: (0.0, 0.62, 0.45), FALSE_ALARM: (0.84, 0.37, 0.0), IGNORED: (0.45, 0.45, 0.45)}
TRUE = (1.0, 1.0, 1.0)
NAMES = {HIT: "hit", FALSE_ALARM: "false alarm", IGNORED: "ignored"}


def plot_panels(panels: Mapping[str, np.ndarray], model: str, method: str, budget: str) -> Figure:
    """Draws a row for the best, median and worst image: with the boxes of the reference, then with those of the run.

    The reference of a sparse run is the dense one, that of the dense run of a model the dense run of the baseline.

    Args:
        panels: the contents of `summary/panels/detection.npz`.
    """
    described = json.loads(str(panels["cases"]))
    ranks = [rank for rank in ("best", "median", "worst", "only") if f"{model}/{method}/b{budget}/{rank}" in described]
    size = (2 * WIDTH_OF_IMAGE, HEIGHT_OF_ROW * len(ranks) + HEIGHT_OF_LEGEND)
    figure, axes = plt.subplots(len(ranks), 2, figsize=size, squeeze=False)
    of_model = method == "dense"
    name = shown_name(model if of_model else method, METHOD_POINTS, LABEL_SIZE)
    for axis, title in zip(axes[0], ("baseline" if of_model else "dense", name), strict=True):
        axis.set_title(title)
    written = [name]
    for row, rank in zip(axes, ranks, strict=True):
        key = f"{model}/{method}/b{budget}/{rank}"
        for axis, run in zip(row, ("dense", "other"), strict=True):
            written += _draw_boxes(axis, {part.removeprefix(f"{key}/"): panels[part] for part in panels}, run)
        about = described[key]
        written.append(shown_name(about["image"], LABEL_POINTS, LABEL_SIZE))
        changes = f"Δhits {about['delta_hits']:+d}, Δfalse alarms {about['delta_alarms']:+d}"
        row[0].set_ylabel(f"{rank}\n{written[-1]}\n{changes}", fontsize=LABEL_SIZE)
    handles = [Patch(color=COLOURS[outcome], label=NAMES[outcome]) for outcome in COLOURS]
    handles.append(Patch(facecolor="none", edgecolor="black", linestyle="--", label="object (dotted: difficult)"))
    what = "dense" if of_model else f"{name}, budget {budget}"
    title = "; ".join(filter(None, [what, "scores of at least .3, overlaps of .5", lacking_note(written)]))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), title=title)
    return figure


def _draw_boxes(axis: Axes, case: Mapping[str, np.ndarray], run: str) -> list[str]:
    """Draws an image with its objects and the detections of a run; returns the names of classes as written."""
    axis.imshow(case["pixels"], interpolation="nearest", extent=(0, 1, 1, 0))
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    for box, difficult in zip(case["true_boxes"], case["true_difficult"], strict=True):
        _draw_box(axis, box, TRUE, ":" if difficult else "--")
    written = []
    columns = (case[f"{run}_{part}"] for part in ("boxes", "scores", "labels", "outcomes"))
    for box, score, label, outcome in zip(*columns, strict=True):
        colour = COLOURS[int(outcome)]
        _draw_box(axis, box, colour, "-")
        name = shown_name(str(case["classes"][label]), LABEL_POINTS, LABEL_SIZE)
        patch = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
        place = (float(box[0]), float(box[1]))
        axis.text(*place, f"{name} {float(score):.2f}", fontsize=6, color="white", va="bottom", bbox=patch)
        written.append(name)
    return written


def _draw_box(axis: Axes, box: np.ndarray, colour: tuple[float, ...], line: str) -> None:
    left, top, right, bottom = map(float, box)
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, ls=line, lw=1.2))
