"""`bbnet check` and `bbnet diff`: could a study and its reference, or two studies, come from the same code?"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bbnet.analysis import differences
from bbnet.analysis.collect import KEYS
from bbnet.analysis.differences import COUNTS, Summary
from bbnet.analysis.draws import mean_metrics, split_draws
from bbnet.analysis.statistics import CELL_KEYS, DENSE
from bbnet.cli.knobs import add_knobs, chosen_knobs
from bbnet.tasks.task import load_metrics, relative_metrics

REFERENCE = Path("results", "reference")
CELL: dict[str, type] = dict.fromkeys(CELL_KEYS, str)
SCORE = {"metric": str, "unit": str, "mean": float, "n_seeds": int, "n_items": int}
TABLES = {
    "grid": CELL | {"seed": int, "status": str},
    "runs": CELL | {"seed": int, "metric": str, "value": float},
    "cells": CELL | SCORE | {"item_variance": float, "interaction_variance": float},
}
LEVEL = 0.05
COLUMN_WIDTH = 60


def add_to(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="compare a study with its shipped reference",
        description="Compares the summary of a study with the one shipped in results/reference/. Settings, runs, "
        "their status, epochs, steps, refreshes, density, net density and FLOPs must be equal. The primary metrics may "
        "differ as they do between seeds and, where the test items differ, between items. Exit status 1 if anything is "
        "out of range or cannot be compared.",
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
        parser.add_argument(
            "--level",
            type=_probability,
            default=LEVEL,
            help=f"level of the tests, after Holm's method (default: {LEVEL})",
        )


def _probability(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, found {text!r}")
    return number


def check_study(options: argparse.Namespace) -> None:
    """Compares a study with its reference, as `compare_folders` does. Raises also ConfigError."""
    knobs = chosen_knobs(options)
    reference = REFERENCE / knobs.study / "summary"
    if not reference.is_dir():
        shipped = ", ".join(sorted(folder.name for folder in REFERENCE.glob("*"))) or "none"
        raise ValueError(f"study {knobs.study}: no reference in {reference}; shipped: {shipped}")
    _report("new", Path(knobs.results_dir, knobs.study, "summary"), "reference", reference, options.level)


def compare_folders(options: argparse.Namespace) -> None:
    """Compares A with B; exits with status 1 if out of tolerance. Raises ValueError if there is nothing to compare."""
    _report("A", summary_folder(options.a), "B", summary_folder(options.b), options.level)


def _report(name: str, folder: Path, other: str, other_folder: Path, level: float) -> None:
    summary, reference = _read_summary(name, folder), _read_summary(other, other_folder)
    primary = {task: load_metrics(task).PRIMARY for task in {*summary.grid["task"], *reference.grid["task"]}}
    comparisons = differences.compare(summary, reference, primary, level)
    print(f"{name}: {folder}\n{other}: {other_folder}\n")
    print(_metrics_table(differences.by_metric(comparisons)))
    print(
        f"\nDeviations are {name} - {other}; each row shows the one with the smallest p, the probability of such a\n"
        "deviation if the code is the same; in rows that decide, after Holm's method over all of their comparisons.\n"
        f"A comparison that decides is out below p = {level:g}. The deviation of a cell is its difference from the\n"
        "mean deviation of all cells.\n"
    )
    found = differences.not_ok(comparisons)
    if not len(found):
        print("Nothing contradicts that both come from the same code.")
        return
    print(tabulate(found, headers="keys", showindex=False, disable_numparse=True, maxcolwidths=COLUMN_WIDTH))
    sys.exit(1)


def _metrics_table(metrics: pd.DataFrame) -> str:
    rows = [
        (
            *(row.task, row.metric, row.cells, "yes" if row.decides else ""),
            "" if math.isnan(row.difference) else f"{row.difference:+.3g} {row.unit}",
            *("" if math.isnan(value) else f"{value:.2g}" for value in (row.error, row.p)),
            *(row.where, row.verdict),
        )
        for row in metrics.itertuples()
    ]
    headers = ("task", "metric", "cells", "decides", "largest deviation", "standard error", "p", "where", "verdict")
    return tabulate(rows, headers=headers, disable_numparse=True)


def summary_folder(folder: Path) -> Path:
    """Returns the subfolder `summary` if there is one, else `folder` itself."""
    return folder / "summary" if (folder / "summary").is_dir() else folder


def _read_summary(name: str, folder: Path) -> Summary:
    """Reads the parts of a summary. Raises ValueError naming the file if one is missing or malformed."""
    grid, runs, cells = (_read_table(folder / f"{table}.csv", kinds) for table, kinds in TABLES.items())
    study = read_part(folder / "study.json", _read_map)
    history, refreshes = (read_part(folder / f"{table}.parquet", _read_steps) for table in ("history", "refreshes"))
    steps = {"epochs": history.size(), "steps": history.max(), "refreshes": refreshes.nunique()}
    counts = pd.DataFrame(steps).fillna(0).astype(int).reset_index()
    names, of_items = read_part(folder / "items.parquet", _read_items)
    # A thin summary has neither items nor refreshes of the other seeds.
    counts["refreshes"] = counts["refreshes"].where(counts["seed"].isin(of_items["seed"]))
    return Summary(name, study, grid, runs, cells, counts[[*KEYS, *COUNTS]], names, of_items, _read_units(folder))


def _read_map(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"must be a map, found {type(content).__name__}")
    return content


def _read_steps(path: Path) -> Any:
    return pd.read_parquet(path, columns=[*KEYS, "step"]).groupby(KEYS, sort=False)["step"]


def _read_items(path: Path) -> tuple[dict[tuple, frozenset], pd.DataFrame]:
    """Returns the names of the test items of each cell, and the metrics that the items of each run give."""
    names, of_run, metrics = {}, {}, []
    for keys, rows in pd.read_parquet(path).groupby(KEYS, sort=False):
        items = rows.drop(columns=KEYS).dropna(axis=1)
        text = [name for name in items if pd.api.types.is_string_dtype(items[name])]
        names[keys[:5]] = frozenset(items[text].itertuples(index=False, name=None))
        of_draws = (each.sort_values(text) for each in split_draws(items))
        of_run[keys] = [{name: each[name].to_numpy() for name in each if name not in text} for each in of_draws]
    relative = relative_metrics({keys[0] for keys in of_run})
    for keys, of_draws in of_run.items():
        task, model, method, *_, seed = keys
        found = mean_metrics(load_metrics(task).metrics, of_draws)
        dense = of_run.get((task, model, *DENSE, seed))
        if method != "dense" and dense is not None and task in relative:
            found |= mean_metrics(relative[task], of_draws, dense[0])
        metrics += [(*keys, metric, float(value)) for metric, value in found.items()]
    return names, pd.DataFrame(metrics, columns=[*KEYS, "metric", "value"])


def _read_units(folder: Path) -> dict[tuple, int]:
    """Returns the number of units of the slabs of each cell."""
    units = read_part(folder / "units.parquet", lambda path: pd.read_parquet(path, columns=["phase", *KEYS]))
    runs = units[units["phase"] == "run"]
    return dict(runs.groupby(CELL_KEYS).size() // runs.groupby(CELL_KEYS)["seed"].nunique())


def read_part(path: Path, reader: Any) -> Any:
    """Returns what `reader` reads from a file of a summary. Raises ValueError naming the file if it cannot."""
    try:
        return reader(path)
    except (OSError, ValueError, KeyError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path}: cannot be read: {' '.join(str(what).split())}") from None


def _read_table(path: Path, kinds: dict[str, type]) -> pd.DataFrame:
    numbers = {column: ["", "nan"] for column, kind in kinds.items() if kind is float}
    table = read_part(
        path, lambda path: pd.read_csv(path, usecols=list(kinds), dtype=kinds, keep_default_na=False, na_values=numbers)
    )
    keys = [column for column in kinds if column in [*KEYS, "metric"]]
    if table.empty or table.duplicated(keys).any():
        raise ValueError(f"{path}: {'has no rows' if table.empty else 'has duplicate rows'}")
    return table
