"""Plots speech recognition cases (best, median and worst): reference and hypotheses, aligned word by word."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbnet.analysis.alignment import align
from bbnet.plots.style import lacking_note, shown_name

FONT, FONT_SIZE, TITLE_SIZE = "DejaVu Sans Mono", 7.5, 8.5
CHARACTER_POINTS, LINE_POINTS = 0.602 * FONT_SIZE, 12.5
WIDTH, MARGIN_POINTS, NOTE_POINTS = 7.5, 20, 30
GAP_OF_NAMES, GAP_OF_WORDS, GAP_OF_LEGEND = 2, 1.4, 4  # in characters
GAP_OF_TITLE, GAP_OF_BLOCKS, GAP_OF_CASES = 1.4, 0.7, 0.6  # in lines
LONGEST_WORD = 24
UTTERANCE_POINTS, METHOD_POINTS = 180, 110
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


@dataclass(frozen=True)
class Word:
    """A word to show; `kind` is a key of `STYLES`."""

    text: str
    kind: str = "equal"

    def shown(self) -> str:
        return self.text if len(self.text) <= LONGEST_WORD else f"{self.text[: LONGEST_WORD - 1]}…"


Column = tuple[Word, ...]  # corresponding words: that of the reference first, then that of each hypothesis
NOTHING = Word("")


def plot_panels(panels: Mapping[str, np.ndarray], model: str, method: str, budget: str) -> Figure:
    """Draws the best, median and worst case by errors of dense minus errors of the method. Long utterances are wrapped.

    Args:
        panels: the contents of `summary/panels/asr.npz`.
    """
    described = json.loads(str(panels["cases"]))
    names = ("reference", "dense", shown_name(method, METHOD_POINTS, FONT_SIZE, FONT))
    margin = max(map(len, names)) + GAP_OF_NAMES
    room = (72 * WIDTH - MARGIN_POINTS) / CHARACTER_POINTS - margin
    figure, axis = plt.subplots()
    axis.set_axis_off()
    line, titles = 0.0, []
    for rank in ("best", "median", "worst", "only"):
        key = f"{model}/{method}/b{budget}/{rank}"
        if key not in described:
            continue
        titles.append(_title(rank, described[key], method))
        _write(axis, titles[-1], 0, line, family="sans-serif", fontsize=TITLE_SIZE)
        line += GAP_OF_TITLE
        reference, *hypotheses = (str(panels[f"{key}/{name}"]) for name in ("reference", "dense", "other"))
        for block in wrap(columns_of(reference, hypotheses), room):
            _write_block(axis, block, names, margin, line)
            line += len(names) + GAP_OF_BLOCKS
        line += GAP_OF_CASES
    _write_legend(axis, f"{names[-1]}, budget {budget}", line)
    if remark := lacking_note(titles):
        line += 1
        _write(axis, remark, 0, line, color="0.5")
    figure.set_size_inches(WIDTH, ((line + 1) * LINE_POINTS + NOTE_POINTS) / 72)
    return figure


def columns_of(reference: str, hypotheses: Sequence[str]) -> list[Column]:
    """Returns columns of corresponding words, by the alignment with which errors are counted.

    Words that several hypotheses insert at the same position of the reference share columns.
    """
    words = reference.split()
    found = [_aligned(words, hypothesis.split()) for hypothesis in hypotheses]
    columns = []
    for place in range(len(words) + 1):
        inserted = [insertions[place] for _, insertions in found]
        columns += [(NOTHING, *row) for row in zip_longest(*inserted, fillvalue=NOTHING)]
        if place < len(words):
            columns.append((Word(words[place]), *(aligned[place] for aligned, _ in found)))
    return columns


def _aligned(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[list[Word], list[list[Word]]]:
    """Returns the word aligned with each reference word, and the words inserted before each of them and at the end."""
    alignment = align(reference, hypothesis)
    aligned: list[Word] = []
    inserted: list[list[Word]] = [[] for _ in range(len(reference) + 1)]
    of_hypothesis = iter(zip(hypothesis, alignment.inserted, strict=True))
    for word, kind in zip(reference, alignment.words, strict=True):
        if kind == "deleted":
            aligned.append(Word("–" * len(word), "deleted"))
            continue
        for found, is_inserted in of_hypothesis:
            if not is_inserted:
                aligned.append(Word(found, "equal" if kind == "matched" else kind))
                break
            inserted[len(aligned)].append(Word(f"+{found}", "inserted"))
    inserted[-1] += [Word(f"+{found}", "inserted") for found, _ in of_hypothesis]
    return aligned, inserted


def wrap(columns: Sequence[Column], room: float) -> Iterator[list[Column]]:
    """Yields blocks of columns that are at most `room` characters wide, including the gap after each column."""
    block: list[Column] = []
    for column in columns:
        if block and sum(map(_width, [*block, column])) > room:
            yield block
            block = []
        block.append(column)
    yield block


def _width(column: Column) -> float:
    return max(len(word.shown()) for word in column) + GAP_OF_WORDS


def _title(rank: str, about: Mapping[str, Any], method: str) -> str:
    dense, other = (sum(about[name].values()) for name in ("dense", "other"))
    utterance = shown_name(about["utterance"], UTTERANCE_POINTS, TITLE_SIZE)
    method = shown_name(method, METHOD_POINTS, TITLE_SIZE)
    words = f"{utterance} ({about['test_set']}), {about['words']} words"
    return f"{rank}: {words}; errors: dense {dense}, {method} {other}"


def _write_block(axis: Axes, block: Sequence[Column], names: Sequence[str], margin: int, line: float) -> None:
    for row, name in enumerate(names):
        _write(axis, name, 0, line + row, color="0.5")
    character: float = margin
    for column in block:
        for row, word in enumerate(column):
            if word.text:
                _write(axis, word.shown(), character, line + row, **STYLES[word.kind])
        character += _width(column)


def _write_legend(axis: Axes, about: str, line: float) -> None:
    _write(axis, about, 0, line, color="0.5")
    character = len(about) + GAP_OF_LEGEND
    for kind, sample in SAMPLES.items():
        _write(axis, sample, character, line, **STYLES[kind])
        _write(axis, kind, character + len(sample) + 1, line, color="0.5")
        character += len(f"{sample} {kind}") + GAP_OF_LEGEND


def _write(axis: Axes, text: str, character: float, line: float, **style: Any) -> None:
    """Writes text at a position in characters and lines from the upper left corner of the axes."""
    place = (character * CHARACTER_POINTS, -(line + 0.7) * LINE_POINTS)
    corner = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": place, "textcoords": "offset points"}
    axis.annotate(text, **corner, **{"family": FONT, "fontsize": FONT_SIZE, "va": "center_baseline"} | style)
