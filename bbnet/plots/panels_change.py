"""Plots change detection cases (best, median and worst): true and false positives of a method and of dense."""

import json
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bbnet.plots.style import lacking_note, shown_name

HEIGHT_OF_ROW = 2.05  # in inches
LABEL_SIZE, LABEL_POINTS = 8, 72 * HEIGHT_OF_ROW - 12  # labels of rows stand upright, one above the other
METHOD_POINTS = 130
COLUMNS = ("A", "B", "label", "true positives", "false positives")
BOTH, DENSE_ONLY, METHOD_ONLY, MISSED = (0.0, 0.62, 0.45), (0.84, 0.37, 0.0), (0.0, 0.45, 0.70), (0.95, 0.90, 0.25)


def plot_panels(panels: Mapping[str, np.ndarray], model: str, method: str, budget: str) -> Figure:
    """Draws a row for the best, median and worst case by ΔTP - ΔFP: both dates, label, true and false positives.

    Args:
        panels: the contents of `summary/panels/change.npz`.
    """
    described = json.loads(str(panels["cases"]))
    ranks = [rank for rank in ("best", "median", "worst", "only") if f"{model}/{method}/b{budget}/{rank}" in described]
    figure, axes = plt.subplots(len(ranks), len(COLUMNS), figsize=(9, HEIGHT_OF_ROW * len(ranks) + 0.7), squeeze=False)
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title)
    images_shown: list[str] = []
    for row, rank in zip(axes, ranks, strict=True):
        key = f"{model}/{method}/b{budget}/{rank}"
        case = {name: panels[f"{key}/{name}"] for name in ("A", "B", "label", "dense", "other")}
        label, dense, other = case["label"], case["dense"], case["other"]
        true_positives = _colour(case["B"], label, dense, other)
        false_positives = _colour(case["B"], ~label, dense, other, mark_missed=False)
        images = [case["A"], case["B"], label.astype(float), true_positives, false_positives]
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        about = described[key]
        images_shown.append(shown_name(about["image"], LABEL_POINTS, LABEL_SIZE))
        changes = f"ΔTP {about['delta_tp']:+d}, ΔFP {about['delta_fp']:+d}"
        row[0].set_ylabel(f"{rank}\n{images_shown[-1]}\n{changes}", fontsize=LABEL_SIZE)
    method = shown_name(method, METHOD_POINTS, LABEL_SIZE)
    names = (f"{method} and dense", f"{method} only", "dense only", "missed by both")
    colours = (BOTH, METHOD_ONLY, DENSE_ONLY, MISSED)
    handles = [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)]
    title = "; ".join(filter(None, [f"{method}, budget {budget}", "Δ in pixels", lacking_note(images_shown)]))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), title=title)
    return figure


def _colour(
    background: np.ndarray, region: np.ndarray, dense: np.ndarray, other: np.ndarray, mark_missed: bool = True
) -> np.ndarray:
    """Returns the image in pale grey. In `region`, colours show whether dense, the method or both predict change."""
    grey = background.mean(axis=2, keepdims=True) / 255
    shown = np.repeat(0.35 * grey + 0.65, 3, axis=2)
    shown[region & dense & other] = BOTH
    shown[region & dense & ~other] = DENSE_ONLY
    shown[region & ~dense & other] = METHOD_ONLY
    if mark_missed:
        shown[region & ~dense & ~other] = MISSED
    return shown
