"""Plots passages of test documents, each token coloured by how much worse a method predicts it than dense."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bbnet.plots.style import lacking_note, shown_name

FONT, FONT_SIZE, TITLE_SIZE = "DejaVu Sans Mono", 7.0, 8.5
CHARACTER_POINTS, LINE_POINTS = 0.602 * FONT_SIZE, 11.5
CHARACTERS = 118  # in a line
MARGIN_POINTS, TOP_POINTS, LEGEND_POINTS, BAR_POINTS = 12, 22, 48, 8  # a note may stand at the top
LINE_END, TAB = "↵", "    "
MOST_NATS = 4.0  # differences beyond this have the same colour
DARK = 0.45  # brightness of a colour below which its text is white
DOCUMENT_POINTS, METHOD_POINTS = 170, 80
RANKS = ("best", "median", "worst", "only")


def plot_panels(panels: Mapping[str, np.ndarray], model: str, method: str, budget: str) -> Figure:
    """Draws a passage of the document on which the method gains most against dense, of the median, and of the worst.

    A passage is that around the token whose loss rises most, which is named above it with its losses.

    Args:
        panels: the contents of `summary/panels/language.npz`.
    """
    described = json.loads(str(panels["cases"]))
    keys = {rank: f"{model}/{method}/b{budget}/{rank}" for rank in RANKS}
    shown = {rank: _passage(panels, key) for rank, key in keys.items() if key in described}
    layouts = {rank: placed([str(text) for text in passage["tokens"]]) for rank, passage in shown.items()}
    heights = {rank: 4 + layout[-1][-1][2] for rank, layout in layouts.items()}
    method = shown_name(method, METHOD_POINTS, TITLE_SIZE)
    figure, axis = _empty_page(sum(heights.values()))
    shades = ScalarMappable(Normalize(-MOST_NATS, MOST_NATS), plt.get_cmap("RdBu_r"))
    first, written = 0, []
    for rank, passage in shown.items():
        titles = _titles(rank, described[keys[rank]], passage, method)
        for number, title in enumerate(titles):
            axis.text(0, first + number + 0.5, title, fontsize=TITLE_SIZE - number, va="center_baseline")
        written += titles
        written += _write_passage(axis, passage, layouts[rank], first + len(titles), shades)
        first += heights[rank]
    bar = figure.colorbar(shades, cax=figure.add_axes(_bar_place(figure)), orientation="horizontal")
    about = f"nats by which the loss of {method}, budget {budget}, is above that of dense"
    bar.set_label("; ".join(filter(None, [about, lacking_note(written)])), fontsize=TITLE_SIZE)
    return figure


def placed(texts: Sequence[str]) -> list[list[tuple[str, int, int]]]:
    """Returns the parts of each token as (text, character, line), in lines of at most `CHARACTERS` characters.

    A line break is shown as `LINE_END` and ends the line. A token without text has one empty part.
    """
    character, line, found = 0, 0, []
    for text in texts:
        parts = []
        for letter in text.replace("\t", TAB) or [""]:
            if character == CHARACTERS:
                character, line = 0, line + 1
            shown = LINE_END if letter == "\n" else letter
            if parts and parts[-1][2] == line:
                parts[-1] = (parts[-1][0] + shown, parts[-1][1], line)
            else:
                parts.append((shown, character, line))
            character, line = (0, line + 1) if letter == "\n" else (character + len(shown), line)
        found.append(parts)
    return found


def _passage(panels: Mapping[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    return {name: panels[f"{key}/{name}"] for name in ("tokens", "dense", "other")}


def _empty_page(lines: int) -> tuple[Figure, Axes]:
    """Returns a figure, and axes whose units are characters and lines from the upper left corner."""
    width, height = CHARACTERS * CHARACTER_POINTS, lines * LINE_POINTS
    size = np.array([width + 2 * MARGIN_POINTS, height + TOP_POINTS + LEGEND_POINTS])
    figure = plt.figure(figsize=tuple(size / 72), layout="none")
    axis = figure.add_axes((*(np.array([MARGIN_POINTS, LEGEND_POINTS]) / size), *(np.array([width, height]) / size)))
    axis.set_axis_off()
    axis.set(xlim=(0, CHARACTERS), ylim=(max(lines, 1), 0))
    return figure, axis


def _bar_place(figure: Figure) -> tuple[float, float, float, float]:
    width, height = 72 * figure.get_size_inches()
    return 0.25, (LEGEND_POINTS - 2 * BAR_POINTS) / height, 0.5, BAR_POINTS / height


def _write_passage(
    axis: Axes,
    passage: Mapping[str, np.ndarray],
    layout: Sequence[Sequence[tuple[str, int, int]]],
    first: int,
    shades: ScalarMappable,
) -> list[str]:
    """Writes the tokens from line `first` on, and returns them as written."""
    written = []
    for parts, colour in zip(layout, shades.to_rgba(passage["other"] - passage["dense"]), strict=True):
        bright = np.dot(colour[:3], (0.3, 0.6, 0.1))
        for text, character, line in parts:
            axis.broken_barh([(character, len(text))], (first + line, 1), facecolor=colour)
            shown = shown_name(text, np.inf, FONT_SIZE, FONT)
            style = {"family": FONT, "fontsize": FONT_SIZE, "color": "white" if bright < DARK else "0.1"}
            axis.text(character, first + line + 0.5, shown, va="center_baseline", **style)
            written.append(shown)
    return written


def _titles(rank: str, about: Mapping[str, Any], passage: Mapping[str, np.ndarray], method: str) -> list[str]:
    document = shown_name(about["document"], DOCUMENT_POINTS, TITLE_SIZE)
    means = f"dense {about['dense']:.2f}, {method} {about['other']:.2f}"
    peak = int(np.argmax(passage["other"] - passage["dense"]))
    token = shown_name(str(passage["tokens"][peak]).replace("\n", LINE_END), METHOD_POINTS, TITLE_SIZE)
    of_peak = f"dense {passage['dense'][peak]:.2f}, {method} {passage['other'][peak]:.2f}"
    return [
        f"{rank}: {document}, {about['tokens']} tokens; nats per token: {means}",
        f"largest rise: “{token}”, {of_peak}",
    ]
