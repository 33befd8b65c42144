"""Panels of speech recognition: reference and hypotheses word below word, best, median and worst case."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import jiwer
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

FONT, FONT_SIZE = "DejaVu Sans Mono", 7.5
CHARACTER_POINTS = 0.602 * FONT_SIZE
LINE_POINTS, LINES_BETWEEN = 12.5, 0.8
WIDTH, MARGIN_POINTS = 7.5, 20
TITLE_LINES, LEGEND_LINES = 3.0, 2.0
LONGEST_WORD = 24
ERRORS = {"substitutions": "S", "deletions": "D", "insertions": "I"}
STYLES = {
    "equal": {"color": "0.15"},
    "substituted": {
        "color": "#b34700",
        "weight": "bold",
        "bbox": {"boxstyle": "square,pad=0.12", "facecolor": "#fdebdd", "edgecolor": "#b34700", "linewidth": 0.6},
    },
    "deleted": {"color": "#7b2d5e", "weight": "bold"},
    "inserted": {
        "color": "#00609c",
        "weight": "bold",
        "bbox": {"boxstyle": "square,pad=0.12", "facecolor": "#dcecf7", "edgecolor": "none"},
    },
}
SAMPLES = {"substituted": "WORD", "deleted": "––––", "inserted": "+WORD"}
GAP_IN_LEGEND = 4


@dataclass(frozen=True)
class Word:
    """What is written at one place of a line; `kind` is one of STYLES."""

    text: str
    kind: str = "equal"

    def shown(self) -> str:
        return self.text if len(self.text) <= LONGEST_WORD else f"{self.text[: LONGEST_WORD - 1]}…"


Column = tuple[Word, ...]  # of the reference, then of each hypothesis
NOTHING = Word("")


def plot_panels(panels: Mapping[str, np.ndarray], model: str, method: str, budget: str) -> Figure:
    """Best, median and worst case by errors of dense minus errors of the method; long utterances go on below.

    Args:
        panels: `summary/panels/asr.npz`.
    """
    described = json.loads(str(panels["cases"]))
    names = ("reference", "dense", method)
    margin = max(map(len, names)) + 2
    room = int((72 * WIDTH - MARGIN_POINTS) / CHARACTER_POINTS) - margin
    cases = {}
    for rank in ("best", "median", "worst"):
        key = f"{model}/{method}/b{budget}/{rank}"
        if key in described:
            reference, *hypotheses = (str(panels[f"{key}/{name}"]) for name in ("reference", "dense", "other"))
            cases[_title(rank, described[key], method)] = list(wrap(align(reference, hypotheses), room))
    lines = [len(blocks) * (len(names) + LINES_BETWEEN) + TITLE_LINES for blocks in cases.values()]
    rows = [*lines, LEGEND_LINES]
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(WIDTH, sum(rows) * LINE_POINTS / 72), squeeze=False, height_ratios=rows
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, blocks) in zip(axes.flat, cases.items(), strict=False):
        axis.set_title(title, loc="left", fontsize="medium")
        for number, block in enumerate(blocks):
            _write_block(axis, block, names, margin, number * (len(names) + LINES_BETWEEN))
    _write_legend(axes[-1, 0], f"{method}, budget {budget}")
    return figure


def align(reference: str, hypotheses: Sequence[str]) -> list[Column]:
    """Columns of words that belong together, by the fewest edits between the reference and each hypothesis.

    Words that are inserted at the same place of the reference share columns.
    """
    words = reference.split()
    found = [_align_one(reference, hypothesis) for hypothesis in hypotheses]
    columns = []
    for place in range(len(words) + 1):
        inserted = [insertions[place] for _, insertions in found]
        columns += [(NOTHING, *row) for row in zip_longest(*inserted, fillvalue=NOTHING)]
        if place < len(words):
            columns.append((Word(words[place]), *(aligned[place] for aligned, _ in found)))
    return columns


def _align_one(reference: str, hypothesis: str) -> tuple[list[Word], list[list[Word]]]:
    """What stands for each word of the reference, and what is inserted before each and at the end."""
    output = jiwer.process_words(reference, hypothesis)
    (words,), (heard,), (chunks,) = output.references, output.hypotheses, output.alignments
    aligned = [Word("–" * len(word), "deleted") for word in words]
    inserted: list[list[Word]] = [[] for _ in range(len(words) + 1)]
    for chunk in chunks:
        written = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            inserted[chunk.ref_start_idx] += [Word(f"+{word}", "inserted") for word in written]
        elif chunk.type != "delete":
            kind = "equal" if chunk.type == "equal" else "substituted"
            aligned[chunk.ref_start_idx : chunk.ref_end_idx] = [Word(word, kind) for word in written]
    return aligned, inserted


def wrap(columns: Sequence[Column], room: int) -> Iterator[list[Column]]:
    """Blocks of columns, each at most `room` characters wide with a space behind every column."""
    block: list[Column] = []
    for column in columns:
        if block and sum(map(_width, [*block, column])) > room:
            yield block
            block = []
        block.append(column)
    yield block


def _width(column: Column) -> int:
    return max(len(word.shown()) for word in column) + 1


def _title(rank: str, about: Mapping[str, Any], method: str) -> str:
    errors = []
    for name, counts in (("dense", about["dense"]), (method, about["other"])):
        parts = " + ".join(f"{counts[kind]} {letter}" for kind, letter in ERRORS.items())
        errors.append(f"{name} {sum(counts.values())} = {parts}")
    return f"{rank}: {about['utterance']} ({about['test_set']}), {about['words']} words; errors: {', '.join(errors)}"


def _write_block(axis: Axes, block: Sequence[Column], names: Sequence[str], margin: int, line: float) -> None:
    for row, name in enumerate(names):
        _write(axis, name, 0, line + row, color="0.5")
    character = margin
    for column in block:
        for row, word in enumerate(column):
            if word.text:
                _write(axis, word.shown(), character, line + row, **STYLES[word.kind])
        character += _width(column)


def _write_legend(axis: Axes, about: str) -> None:
    _write(axis, about, 0, 0, color="0.5")
    character = len(about) + GAP_IN_LEGEND
    for kind, sample in SAMPLES.items():
        _write(axis, sample, character, 0, **STYLES[kind])
        _write(axis, kind, character + len(sample) + 1, 0, color="0.5")
        character += len(f"{sample} {kind}") + GAP_IN_LEGEND


def _write(axis: Axes, text: str, character: int, line: float, **style: Any) -> Text:
    """Text at a place counted in characters and lines from the upper left corner of the axes."""
    place = (character * CHARACTER_POINTS, -(line + 0.7) * LINE_POINTS)
    corner = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": place, "textcoords": "offset points"}
    return axis.annotate(text, **corner, family=FONT, fontsize=FONT_SIZE, va="center_baseline", **style)
