"""The look that all figures share: colour = method, marker and line = side; fit for grey and for the colour-blind."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
import seaborn

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

MARKERS = {"none": "s", "in": "o", "out": "^", "both": "D"}
LINES = {"none": "-", "in": "-", "out": "--", "both": "-."}
DENSE_COLOUR = "0.25"
SEEDS_FOR_INTERVALS = 3
COLOURBLIND_COLOURS = 10
SIDE_SUFFIX = re.compile("_(in|out|both)$")
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
            "savefig.dpi": 200,
            "legend.frameon": False,
            "pdf.fonttype": 42,
        },
    )


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """A colour per method, dense in grey; depends on the order of `methods` alone.

    Labels that differ in the side at their end alone, as sp_in and sp_out, share a colour: marker and line tell them.
    """
    families = {method: SIDE_SUFFIX.sub("", method) for method in methods if method != "dense"}
    names = list(dict.fromkeys(families.values()))
    palette = seaborn.color_palette("colorblind" if len(names) <= COLOURBLIND_COLOURS else "husl", max(len(names), 1))
    colours = dict(zip(names, palette.as_hex(), strict=True)) if names else {}
    return {"dense": DENSE_COLOUR} | {method: colours[family] for method, family in families.items()}


def method_label(method: str, side: str) -> str:
    return method if side == "none" else f"{method} ({side})"


def seeds_title(n_seeds: pd.Series, remark: str = "") -> str:
    """The legend's title: what is drawn of the seeds, and how many there are at least."""
    fewest = n_seeds.min()
    shown = "mean, 95 % interval" if fewest >= SEEDS_FOR_INTERVALS else "mean and single seeds"
    return f"{shown}\n({fewest} seed{'s' if fewest > 1 else ''}{remark})"


def read_table(path: Path, task: str, model: str) -> pd.DataFrame:
    """Rows of one task and model from a .csv or .parquet of the summary."""
    table = pd.read_csv(path, dtype={"budget": str}) if path.suffix == ".csv" else pd.read_parquet(path)
    return table[(table["task"] == task) & (table["model"] == model)]


def note(figure: Figure, text: str) -> None:
    """A remark above the figure, such as that cells are missing; nothing for an empty text."""
    if text:
        figure.suptitle(text, color="firebrick", fontsize="medium")


def save(figure: Figure, paths: Sequence[Path]) -> None:
    """Writes the figure under each path, in the format of its suffix, without dates: equal figures are equal files."""
    for path in paths:
        figure.savefig(path, metadata=FILE_METADATA[path.suffix])
    plt.close(figure)
