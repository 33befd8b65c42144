"""`bbnet status`: what is done of a study, what failed and why, and how long the rest takes."""

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
from bbnet.study.config import read_study
from bbnet.study.grid import Run
from bbnet.study.recipe import Recipes
from bbnet.study.record import run_status

SNAKEMAKE = Path(".snakemake")
STATES = ("done", "running", "failed", "stale", "missing")


def add_to(commands: Any) -> None:
    parser = commands.add_parser("status", help="what is done of a study, and what is left", description=__doc__)
    add_knobs(parser, "study", "results_dir", "device")
    parser.set_defaults(run=print_status)


def print_status(options: argparse.Namespace) -> None:
    """Raises ConfigError for a study that cannot be used."""
    knobs = chosen_knobs(options)
    study = read_study(knobs.study, STUDIES)
    recipes = Recipes(study, knobs)
    results = Path(knobs.results_dir, knobs.study, "runs")
    snakemakes = _snakemakes_began()
    busy = _folders_made_now(snakemakes)
    states = [_state_of(run, results / run.folder, recipes.run_fingerprint(run), busy) for run in grid.runs(study)]
    print(f"Study {knobs.study}, in {results}\n")
    print(_counts_table(states))
    print(_rest_table(states))
    for remark in _remarks(states, snakemakes):
        print(remark)


@dataclass(frozen=True)
class State:
    """What became of a run: one of `STATES`, and why."""

    run: Run
    folder: Path
    name: str
    why: str


def _state_of(run: Run, folder: Path, wanted: str, busy: set[Path]) -> State:
    status, why = run_status(folder, wanted)
    running = status != "done" and Path(os.path.abspath(folder)) in busy
    return State(run, folder, "running" if running else status, why)


def _folders_made_now(snakemakes: Iterable[float]) -> set[Path]:
    """Folders, absolute, into which a job writes that a living snakemake of this working directory has begun.

    When Snakemake begins or submits a job, it leaves a file in .snakemake/incomplete/ for each output, named by the
    output's path in base64, and removes it when the job ends. If it is killed the file stays, and so does its lock. So
    a file counts only if a snakemake that runs now began before it was written: what a killed one left is older than
    the next one.

    Args:
        snakemakes: when each began, as `_snakemakes_began`.
    """
    incomplete = SNAKEMAKE / "incomplete"
    oldest = min(snakemakes, default=float("inf"))
    folders = set()
    for marker in incomplete.rglob("*"):
        try:
            if marker.is_file() and marker.stat().st_mtime >= oldest:
                # A long name is cut into folders, each marked by an @.
                name = "".join(part.removeprefix("@") for part in marker.relative_to(incomplete).parts)
                folders.add(Path(os.path.abspath(base64.urlsafe_b64decode(name).decode())).parent)
        except (OSError, ValueError):  # the job has just ended; or a file of Snakemake's own
            continue
    return folders


def _snakemakes_began() -> list[float]:
    """When each process `snakemake` of this machine that works in this directory began, in seconds since 1970."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    began = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if any(word.rpartition(b"/")[2] == b"snakemake" for word in words) and (process / "cwd").samefile("."):
                ticks = int((process / "stat").read_text().rpartition(")")[2].split()[19])
                began.append(booted + ticks / os.sysconf("SC_CLK_TCK"))
        except OSError:  # it has just ended, or is someone else's
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


def _rest_table(states: Sequence[State]) -> str:
    """The time that the training of what is not done takes, at the median of what is done of a task and model, else of
    the task; of one device or core.
    """
    rows, seconds = [], []
    for task, model in dict.fromkeys((state.run.task, state.run.model) for state in states):
        of_task = [state for state in states if state.run.task == task]
        of_model = [state for state in of_task if state.run.model == model]
        left = sum(state.name != "done" for state in of_model)
        a_run = _median_seconds(of_model) or _median_seconds(of_task)
        rest = None if a_run is None else left * a_run
        rows.append((task, model, left, _shown(a_run), _shown(rest)))
        seconds.append(rest)
    total = None if None in seconds else sum(seconds)
    rows.append(("all", "", sum(row[2] for row in rows), "", _shown(total)))
    table = tabulate(rows, headers=("task", "model", "left", "a run takes", "the rest"), disable_numparse=True)
    note = (
        "Time of one device or core, for the training of all that is not done, at the median of what is done;\n"
        "what is running counts whole; warm-ups, scoring and the data come on top. Unknown: no run is done."
    )
    return f"{table}\n\n{note}\n"


def _median_seconds(states: Sequence[State]) -> float | None:
    records = [json.loads((state.folder / "record.json").read_text()) for state in states if state.name == "done"]
    return median(record["seconds"] for record in records) if records else None


def _shown(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _remarks(states: Sequence[State], snakemakes: Sequence[float]) -> list[str]:
    """The reason of each failure, and what else one should know to read the counts."""
    remarks = [f"failed: {state.folder}: {_first_line(state.why)}" for state in states if state.name == "failed"]
    if any(state.name == "stale" for state in states):
        remarks.append("stale: trained with another configuration, device (--device) or code than asked for now")
    if any((SNAKEMAKE / "locks").glob("*.lock")) and not snakemakes:
        remarks.append(
            f"{SNAKEMAKE / 'locks'} is locked, but no snakemake works here on this machine: if it was killed, "
            "`snakemake --unlock`; if it is on another machine, its jobs are not counted as running"
        )
    return remarks


def _first_line(text: str) -> str:
    return next(iter(str(text).strip().splitlines()), "")
