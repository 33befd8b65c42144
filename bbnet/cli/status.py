"""`bbnet status`: counts a study's runs by state, with reasons of failures and an estimate of the remaining time."""

import argparse
import base64
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from bbnet.cli.knobs import STUDIES, add_knobs, chosen_knobs
from bbnet.study import grid
from bbnet.study.config import read_chosen_study
from bbnet.study.grid import Run
from bbnet.study.recipe import Recipes
from bbnet.study.record import run_status

SNAKEMAKE = Path(".snakemake")
STATES = ("done", "running", "failed", "stale", "missing")


def add_to(commands: Any) -> None:
    parser = commands.add_parser("status", help="states of a study's runs, and the remaining time", description=__doc__)
    add_knobs(parser, "study", "tasks", "results_dir", "device")
    parser.set_defaults(run=print_status)


def print_status(options: argparse.Namespace) -> None:
    """Prints the tables. Raises ConfigError if the study is invalid."""
    knobs = chosen_knobs(options)
    study = read_chosen_study(knobs, STUDIES)
    recipes = Recipes(study, knobs)
    results = Path(knobs.results_dir, knobs.study, "runs")
    snakemakes = _snakemake_starts()
    busy = _folders_being_written(snakemakes)
    states = [_state_of(run, results / run.folder, recipes.run_fingerprint(run), busy) for run in grid.runs(study)]
    print(f"Study {knobs.study}, in {results}\n")
    print(_counts_table(states))
    print(_remaining_table(states))
    for remark in _remarks(states, snakemakes):
        print(remark)


@dataclass(frozen=True)
class State:
    """State of a run, one of `STATES`, and the reason."""

    run: Run
    folder: Path
    name: str
    why: str


def _state_of(run: Run, folder: Path, wanted: str, busy: set[Path]) -> State:
    status, why = run_status(folder, wanted)
    running = status != "done" and Path(os.path.abspath(folder)) in busy
    return State(run, folder, "running" if running else status, why)


def _folders_being_written(snakemakes: Iterable[float]) -> set[Path]:
    """Returns the absolute folders of the outputs of jobs that a Snakemake process of this directory is running.

    When Snakemake starts or submits a job, it creates a file in .snakemake/incomplete/ for each output, named by the
    output's path in base64, and deletes it when the job ends. A killed Snakemake leaves these files and its lock
    behind. A file therefore counts only if it is newer than the start of a Snakemake process that is still running.

    Args:
        snakemakes: start times of the running Snakemake processes, from `_snakemake_starts`.
    """
    incomplete = SNAKEMAKE / "incomplete"
    oldest = min(snakemakes, default=float("inf"))
    folders = set()
    for marker in incomplete.rglob("*"):
        try:
            if marker.is_file() and marker.stat().st_mtime >= oldest:
                # A long name is split into folders whose names begin with @.
                name = "".join(part.removeprefix("@") for part in marker.relative_to(incomplete).parts)
                folders.add(Path(os.path.abspath(base64.urlsafe_b64decode(name).decode())).parent)
        except (OSError, ValueError):  # the job has just ended, or the file is not a marker
            continue
    return folders


def _snakemake_starts() -> list[float]:
    """Returns the start times, in seconds since 1970, of the Snakemake processes that run in this directory."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    began = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if any(word.rpartition(b"/")[2] == b"snakemake" for word in words) and (process / "cwd").samefile("."):
                ticks = int((process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
                began.append(booted + ticks / os.sysconf("SC_CLK_TCK"))
        except OSError:  # the process has just ended, or belongs to another user
            continue
    return began


def _counts_table(states: Sequence[State]) -> str:
    cells: dict[tuple, Counter] = {}
    for state in states:
        run = state.run
        cells.setdefault((run.task, run.model, run.method, run.budget), Counter())[state.name] += 1
    rows = [(*cell, *(counts[name] for name in STATES)) for cell, counts in cells.items()]
    totals = Counter(state.name for state in states)
    rows.append((f"all {len(states)}", "", "", "", *(totals[name] for name in STATES)))
    return tabulate(rows, headers=("task", "model", "method", "budget", *STATES), disable_numparse=True) + "\n"


def _remaining_table(states: Sequence[State]) -> str:
    """Returns a table of the estimated time to train the remaining runs, on one device or core.

    The estimate is the median training time of the done runs of the same task and model, else of the same task.
    """
    rows, seconds = [], []
    for task, model in dict.fromkeys((state.run.task, state.run.model) for state in states):
        of_task = [state for state in states if state.run.task == task]
        of_model = [state for state in of_task if state.run.model == model]
        left = sum(state.name != "done" for state in of_model)
        per_run = _median_seconds(of_model) or _median_seconds(of_task)
        rest = None if per_run is None else left * per_run
        rows.append((task, model, left, _shown(per_run), _shown(rest)))
        seconds.append(rest)
    total = None if None in seconds else sum(seconds)
    rows.append(("all", "", sum(row[2] for row in rows), "", _shown(total)))
    table = tabulate(rows, headers=("task", "model", "runs left", "time per run", "time left"), disable_numparse=True)
    note = (
        "Training time of all runs that are not done, on one device or core, from the median of the done runs.\n"
        "Running runs count in full; warm-ups, scoring and data preparation are not included. Unknown: no run is done."
    )
    return f"{table}\n\n{note}\n"


def _median_seconds(states: Sequence[State]) -> float | None:
    records = [
        json.loads((state.folder / "record.json").read_text(encoding="utf-8"))
        for state in states
        if state.name == "done"
    ]
    return median(record["seconds"] for record in records) if records else None


def _shown(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _remarks(states: Sequence[State], snakemakes: Sequence[float]) -> list[str]:
    """Returns the reason of each failure, and notes on stale runs and on a locked directory."""
    remarks = [f"failed: {state.folder}: {_first_line(state.why)}" for state in states if state.name == "failed"]
    if any(state.name == "stale" for state in states):
        remarks.append("stale: trained with another configuration, device (--device) or code than the current one")
    if any((SNAKEMAKE / "locks").glob("*.lock")) and not snakemakes:
        remarks.append(
            f"{SNAKEMAKE / 'locks'} is locked, but no Snakemake process runs here on this machine: if it was killed, "
            "run `snakemake --unlock`; if it is on another machine, its jobs are not counted as running"
        )
    return remarks


def _first_line(text: str) -> str:
    return next(iter(str(text).strip().splitlines()), "")
