"""`bbnet check` and `bbnet diff`: compare a study's summary with the reference, or two summaries, within tolerances."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bbnet.analysis import differences
from bbnet.analysis.collect import KEYS
from bbnet.analysis.differences import Summary
from bbnet.cli.knobs import add_knobs, chosen_knobs

REFERENCE = Path("results", "reference")
RUN = dict.fromkeys(KEYS, str) | {"seed": int}
CELL = {key: kind for key, kind in RUN.items() if key != "seed"}
TABLES = {
    "grid": RUN | {"status": str},
    "runs": RUN | {"metric": str, "value": float},
    "cells": CELL | {"metric": str, "unit": str, "mean": float, "sd": float, "n_seeds": int},
}
COLUMN_WIDTH = 60


def add_to(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="compare a study with its shipped reference",
        description="Compares the summary of a study with the one shipped in results/reference/. Runs, their status, "
        "seeds, density, net density and FLOPs must be equal; scores may differ by --sigmas standard deviations. Exit "
        "status 1 if anything is out of tolerance or cannot be compared.",
    )
    add_knobs(check, "study", "results_dir")
    check.set_defaults(run=check_study)
    diff = commands.add_parser(
        "diff",
        help="compare two summaries",
        description="Compares summary A with summary B, the reference, in the same way as `bbnet check`.",
    )
    for name in ("a", "b"):
        diff.add_argument(name, type=Path, metavar=name.upper(), help="a summary folder, or its parent folder")
    diff.set_defaults(run=compare_folders)
    for parser in (check, diff):
        parser.add_argument("--sigmas", type=_positive, default=3.0, help="allowed deviation of a score (default: 3)")


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, found {text!r}")
    return number


def check_study(options: argparse.Namespace) -> None:
    """Compares a study with its reference, as `compare_folders` does. Raises also ConfigError."""
    knobs = chosen_knobs(options)
    reference = REFERENCE / knobs.study / "summary"
    if not reference.is_dir():
        shipped = ", ".join(sorted(folder.name for folder in REFERENCE.glob("*"))) or "none"
        raise ValueError(f"study {knobs.study}: no reference in {reference}; shipped: {shipped}")
    _report("new", Path(knobs.results_dir, knobs.study, "summary"), "reference", reference, options.sigmas)


def compare_folders(options: argparse.Namespace) -> None:
    """Compares A with B; exits with status 1 if out of tolerance. Raises ValueError if there is nothing to compare."""
    _report("A", _summary_folder(options.a), "B", _summary_folder(options.b), options.sigmas)


def _report(name: str, folder: Path, other: str, other_folder: Path, limit: float) -> None:
    summary, reference = _read_summary(name, folder), _read_summary(other, other_folder)
    comparisons = differences.compare(summary, reference, limit)
    print(f"{name}: {folder}\n{other}: {other_folder}\n")
    print(_metrics_table(differences.by_metric(comparisons)))
    print(
        f"\nA score may differ by {limit:g} sigma * sqrt(1 / seeds of {name} + 1 / seeds of {other}); sigma is the sd\n"
        f"over seeds in {other}, pooled over the cells of a task. Deviations are {name} - {other}.\n"
    )
    found = differences.not_ok(comparisons)
    if not len(found):
        print("Everything is within tolerance.")
        return
    print(tabulate(found, headers="keys", showindex=False, disable_numparse=True, maxcolwidths=COLUMN_WIDTH))
    sys.exit(1)


def _metrics_table(metrics: pd.DataFrame) -> str:
    rows = [
        (
            row.task,
            row.metric,
            row.cells,
            row.tolerance,
            "" if math.isnan(row.sigmas) else f"{row.sigmas:.2f}",
            "" if math.isnan(row.difference) else f"{row.difference:+.3g} {row.unit}",
            row.where,
            row.verdict,
        )
        for row in metrics.itertuples()
    ]
    headers = ("task", "metric", "cells", "tolerance", "sigmas", "largest deviation", "where", "verdict")
    return tabulate(rows, headers=headers, disable_numparse=True)


def _summary_folder(folder: Path) -> Path:
    return folder / "summary" if (folder / "summary").is_dir() else folder


def _read_summary(name: str, folder: Path) -> Summary:
    """Reads the tables of a summary. Raises ValueError naming the file if one is missing or malformed."""
    return Summary(name, **{table: _read_table(folder / f"{table}.csv", kinds) for table, kinds in TABLES.items()})


def _read_table(path: Path, kinds: dict[str, type]) -> pd.DataFrame:
    numbers = [column for column, kind in kinds.items() if kind is float]
    try:
        table = pd.read_csv(
            path, usecols=list(kinds), dtype=kinds, keep_default_na=False, na_values=dict.fromkeys(numbers, ["", "nan"])
        )
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path}: cannot be read: {' '.join(str(what).split())}") from None
    keys = [column for column in kinds if column in [*KEYS, "metric"]]
    if table.empty or table.duplicated(keys).any():
        raise ValueError(f"{path}: {'has no rows' if table.empty else 'has duplicate rows'}")
    return table
