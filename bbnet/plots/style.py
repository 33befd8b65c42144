"""The style of all figures. Colours show methods; markers and line styles show sides, and remain legible in grey."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import LoadFlags
from matplotlib.patheffects import withStroke

MARKERS = {"none": "s", "in": "o", "out": "^", "both": "D"}
METHOD_SHAPES = ("o", "s", "^", "D", "v", "<", ">", "p", "d", "h", "*", "P", "X")
METHOD_FILLS = ("full", "none", "left", "top")
LINES = {"none": "-", "in": "-", "out": "--", "both": "-."}
DENSE_COLOUR = "0.25"
SEEDS_FOR_INTERVALS = 3
SIZE_OF_POINT_LABEL = (20, 8)  # width and height in points of what is written beside a point
DODGE, MAX_DODGE = 0.13, 0.76
COLOURBLIND_COLOURS = 10
SIDE_SUFFIX = re.compile("_(in|out|both)$")
FONT = "DejaVu Sans"  # comes with matplotlib and has the widest letters of the sans-serif fonts that the style names
LABEL_SIZE, LABEL_POINTS = 9.6, 130  # largest letters of legends, titles and ticks, and the width of a method there
LACKING = "□"  # in place of a character that the font lacks
FILE_METADATA = {".pdf": {"CreationDate": None}, ".png": {}}


def use_style() -> None:
    seaborn.set_theme(
        context="paper",
        style="ticks",
        rc={
            "axes.grid": True,
            "grid.color": "0.92",
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": 150,  # of files too: widths of letters depend on it, and the layout must be that of the files
            "legend.frameon": False,
            "pdf.fonttype": 42,
        },
    )


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """Returns a colour per method, with dense in grey. It depends only on `methods` and their order.

    Labels that differ only in a final side, such as sp_in and sp_out, share a colour; marker and line style differ.
    """
    families = {method: SIDE_SUFFIX.sub("", method) for method in methods if method != "dense"}
    colours = model_colours(list(families.values()))
    return {"dense": DENSE_COLOUR} | {method: colours[family] for method, family in families.items()}


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """Returns a colour per model, in the order of their first occurrence."""
    names = list(dict.fromkeys(models))
    palette = seaborn.color_palette("colorblind" if len(names) <= COLOURBLIND_COLOURS else "husl", max(len(names), 1))
    return dict(zip(names, palette.as_hex(), strict=True)) if names else {}


def method_markers(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns the shape and the fill of the marker of each method, where colours show something else.

    They are different for up to 52 methods, and depend only on `methods` and their order.
    """
    shapes = [(shape, fill) for fill in METHOD_FILLS for shape in METHOD_SHAPES]
    return dict(zip(dict.fromkeys(methods), cycle(shapes), strict=False))


def method_label(method: str, side: str, width: float = LABEL_POINTS) -> str:
    """Returns a method and its side for a legend or title; a method wider than `width` points is shortened."""
    shown = shown_name(method, width, LABEL_SIZE)
    return shown if side == "none" else f"{shown} ({side})"


def shown_name(name: str, width: float, size: float, font: str = FONT) -> str:
    """Returns a name, such as that of a file, as it is written on a figure: in one line, and never as mathematics.

    Characters that the font lacks become `LACKING`. A name wider than `width` is shortened in the middle.

    Args:
        width, size: largest width of the name and size of its letters, in points.
    """
    known = _advances(font)
    whole = "".join(
        letter if letter.isprintable() and letter in known else LACKING for letter in unicodedata.normalize("NFC", name)
    )
    shown, kept = whole, len(whole)
    while kept > 2 and size * sum(known[letter] for letter in shown) > width:
        kept -= 1
        shown = f"{whole[: kept - kept // 2]}…{whole[len(whole) - kept // 2 :]}"
    return shown.replace("$", r"\$")


def lacking_note(names: Iterable[str]) -> str:
    """Returns a remark for a figure with these names if `LACKING` is in one of them, otherwise an empty text."""
    return f"{LACKING}: a character that the font lacks" if any(LACKING in name for name in names) else ""


@cache
def _advances(font: str) -> dict[str, float]:
    """Returns the width of each character that the font has, as a multiple of the size of the letters."""
    file = font_manager.get_font(font_manager.findfont(font))
    glyphs = {chr(code): file.load_glyph(glyph, LoadFlags.NO_SCALE) for code, glyph in file.get_charmap().items()}
    return {letter: glyph.horiAdvance / file.units_per_EM for letter, glyph in glyphs.items()}


def seeds_title(n_seeds: pd.Series, remark: str = "") -> str:
    """Returns the title of a legend: how seeds are shown, and the smallest number of seeds of a cell."""
    if not len(n_seeds):
        return "nothing to show"
    fewest = n_seeds.min()
    shown = "mean, 95 % interval" if fewest >= SEEDS_FOR_INTERVALS else "mean and single seeds"
    return f"{shown}\n({fewest} seed{'s' if fewest > 1 else ''}{remark})"


def note(figure: Figure, text: str) -> None:
    """Writes a remark above the figure, such as the number of missing runs. An empty text is not drawn."""
    if text:
        figure.suptitle(text, color="firebrick", fontsize="medium")


def save(figure: Figure, data: pd.DataFrame, paths: Sequence[Path]) -> None:
    """Writes the figure to each path in the format of its suffix, and its data to paths that end with .csv.

    No creation date is written, so that equal figures are equal files.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # otherwise the layout would be recomputed for each format
    for path in paths:
        if path.suffix == ".csv":
            data.to_csv(path, index=False)
        else:
            figure.savefig(path, metadata=FILE_METADATA[path.suffix])
    plt.close(figure)


def draw_cell(axis: Axes, x: float, cell: pd.Series, singles: Sequence[float], colour: str, side: str) -> None:
    """Draws a cell's mean with its 95 % interval, or with single seeds as small points if there are fewer than 3."""
    if cell["n_seeds"] >= SEEDS_FOR_INTERVALS:
        axis.plot([x] * 2, [cell["low"], cell["high"]], color=colour, linewidth=1.0)
    else:
        axis.plot([x] * len(singles), singles, ".", color=colour, markersize=4, alpha=0.6)
    axis.plot([x], [cell["mean"]], color=colour, marker=MARKERS[side], markersize=5, linestyle="none")


def label_points(
    axis: Axes, points: Sequence[tuple[float, float, str, str]], offset: tuple[float, float] = (9, 0)
) -> None:
    """Writes a text beside each point (x, y, text, colour), shifted further where it would overlap another text.

    The figure must have been drawn, because places depend on the limits of the axes.

    Args:
        offset: of the text from its point, in points of length, to the right (else to the left) and up. Texts below
            their points are shifted down, others up.
    """
    width, height = SIZE_OF_POINT_LABEL
    right, upward = offset[0] > 0, -1 if offset[1] < 0 else 1
    taken: list[tuple[float, float]] = []
    for x, y, text, colour in sorted(points, key=lambda point: upward * point[1]):
        across, up = axis.transData.transform((x, y)) * 72 / axis.figure.dpi
        place = upward * (up + offset[1])
        for other_across, other_place in taken:
            if abs(across - other_across) < width:
                place = max(place, other_place + height)
        taken.append((across, place))
        white_edge = [withStroke(linewidth=2, foreground="white")]
        style = {"color": colour, "fontsize": 7, "va": "center", "path_effects": white_edge}
        style |= {"ha": "left" if right else "right", "xytext": (offset[0], upward * place - up)}
        axis.annotate(text, (x, y), textcoords="offset points", **style)


def side_by_side(count: int) -> np.ndarray:
    """Returns the offsets of `count` methods around a position on an axis whose positions are 1 apart."""
    return (np.arange(count) - (count - 1) / 2) * min(DODGE, MAX_DODGE / count)


def method_handles(methods: Sequence[tuple[str, str]], colours: Mapping[str, str]) -> list[plt.Line2D]:
    """Returns a legend handle for each method and side."""
    style = {"markersize": 5, "linestyle": "none"}
    return [
        plt.Line2D([], [], color=colours[method], marker=MARKERS[side], label=method_label(method, side), **style)
        for method, side in methods
    ]
