"""`bbnet ship`: puts the summary of a study into results/reference/, from which figures and tables can be drawn."""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from bbnet.cli.check import REFERENCE, read_part
from bbnet.cli.knobs import add_knobs, chosen_knobs

OF_FIRST_SEED = ("items.parquet", "units.parquet", "refreshes.parquet", "slabs.csv")
OF_STUDY = ("tasks", "only", "first_seeds")  # the keys of a study that are maps by task
BY_TASK = {"study.json": OF_STUDY, "data.json": ()}


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "ship",
        help="put the summary of a study into results/reference/",
        description="Puts the summary of a study into results/reference/, so that `results_from=reference` draws its "
        "figures and tables. Tasks that only the summary there has are kept, so a study may be run task by task.",
    )
    add_knobs(parser, "study", "results_dir")
    parser.add_argument(
        "--thin",
        action="store_true",
        help=f"of {', '.join(OF_FIRST_SEED)} keep the first seed alone, which figures of units, items and refreshes "
        "then show; all numbers of cells, contrasts and claims stay",
    )
    parser.set_defaults(run=ship)


def ship(options: argparse.Namespace) -> None:
    """Ships the summary. Raises ValueError if it is not whole, or if the one there is of other settings."""
    knobs = chosen_knobs(options)
    summary, reference = Path(knobs.results_dir, knobs.study, "summary"), REFERENCE / knobs.study / "summary"
    grid = read_part(summary / "grid.csv", _read_text)
    missing = grid[grid["status"] != "done"]
    if len(missing):
        raise ValueError(f"{summary}: {len(missing)} of {len(grid)} runs are not done; only a whole summary is shipped")
    reference.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=reference.parent) as partial:
        new = Path(partial, "summary")
        shutil.copytree(summary, new, ignore=shutil.ignore_patterns("diagnostics"))
        if options.thin:
            _keep_first_seed(new)
        kept = _keep_other_tasks(reference, new) if reference.is_dir() else []
        if reference.is_dir():
            reference.rename(Path(partial, "old"))
        new.rename(reference)
    tasks = ", ".join(sorted(set(grid["task"])))
    print(f"{reference}: {len(grid)} runs of {tasks}" + (f"; kept of before: {', '.join(kept)}" if kept else ""))


def _keep_first_seed(summary: Path) -> None:
    for name in OF_FIRST_SEED:
        rows = _read(summary / name)
        _write(summary / name, rows[rows["seed"].astype(int) == rows["seed"].astype(int).min()])


def _keep_other_tasks(reference: Path, new: Path) -> list[str]:
    """Adds what only the reference has to the new summary; returns the names of the tasks."""
    before, after = (json.loads((folder / "study.json").read_text(encoding="utf-8")) for folder in (reference, new))
    kept = sorted(before["tasks"].keys() - after["tasks"].keys())
    if not kept:
        return []
    differ = sorted(key for key in {*before, *after}.difference(OF_STUDY) if before.get(key) != after.get(key))
    if differ:
        raise ValueError(
            f"{reference} has the tasks {', '.join(kept)} with other settings ({', '.join(differ)}); delete it to ship "
            "the new tasks alone"
        )
    for file, parts in BY_TASK.items():
        both = [json.loads((folder / file).read_text(encoding="utf-8")) for folder in (reference, new)]
        for part in parts or (None,):
            old, own = (content if part is None else content.setdefault(part, {}) for content in both)
            own |= {task: old[task] for task in kept if task in old}
        (new / file).write_text(json.dumps(both[1], indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for path in sorted(reference.rglob("*")):
        name = path.relative_to(reference)
        if path.suffix in (".csv", ".parquet"):
            old = _read(path)
            parts = [old[old["task"].isin(kept)], *([_read(new / name)] if (new / name).exists() else [])]
            _write(new / name, pd.concat(parts).sort_values("task", kind="stable"))
        elif path.suffix == ".npz" and path.stem in kept:
            (new / name).parent.mkdir(exist_ok=True)
            shutil.copy(path, new / name)
    return kept


def _read_text(path: Path) -> pd.DataFrame:
    """Reads a table with all values as text, so that none of them is rounded."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _read(path: Path) -> pd.DataFrame:
    return _read_text(path) if path.suffix == ".csv" else pd.read_parquet(path)


def _write(path: Path, rows: pd.DataFrame) -> None:
    if path.suffix == ".csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_parquet(path, index=False)
