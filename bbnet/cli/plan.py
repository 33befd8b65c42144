"""`bbnet plan`: estimates the number of runs, disk space and hours of a study, and which differences it detects."""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bbnet.analysis.contrasts import COLUMNS as CONTRAST_COLUMNS
from bbnet.analysis.contrasts import MODEL_COLUMNS, model_pairs, pairs
from bbnet.analysis.power import components_of, detectable_difference
from bbnet.analysis.summary import read_csv
from bbnet.cli import own_process
from bbnet.cli.check import REFERENCE, read_part, summary_folder
from bbnet.cli.knobs import STUDIES, add_knobs, chosen_knobs
from bbnet.data.packs import pack_of
from bbnet.data.unpack import SUFFIXES
from bbnet.study import grid, machine
from bbnet.study.config import ConfigError, Knobs, Study, check_sources, read_chosen_study, sources
from bbnet.study.recipe import Recipes
from bbnet.tasks.settings import Estimate, Training
from bbnet.tasks.task import load_metrics

BENCHMARKS = Path("benchmarks", "results")
BYTES_PER_WEIGHT = 4
WEIGHTS_PER_WARM_START = 3  # the model, and two moments of the optimiser
EARLIER_STUDY = REFERENCE / "demo"
SHOWN_SEEDS, MORE_ITEMS = (2, 3, 5, 10), (1, 2, 4)


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "plan", help="estimate runs, disk space, hours and detectable differences of a study", description=__doc__
    )
    add_knobs(parser, "study", "tasks", "device")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FOLDER",
        help="results of an earlier study, from whose variances detectable differences are computed (default: "
        f"{EARLIER_STUDY}, if it exists)",
    )
    parser.set_defaults(run=print_plan)


def print_plan(options: argparse.Namespace) -> None:
    """Prints the estimates. Raises ConfigError if the study is invalid."""
    knobs = chosen_knobs(options)
    study = read_chosen_study(knobs, STUDIES)
    check_sources(study, STUDIES / f"{knobs.study}.yaml")
    recipes, tasks = Recipes(study, knobs), study.task_settings()
    packs = [pack for task in tasks for data in recipes.packs(task) if (pack := pack_of(data)) and data.path is None]
    device = machine.name_of(knobs.device)
    print(f"Study {knobs.study}, on {device}\n")
    prepared = {task: Path(knobs.data_dir, "prepared", recipes.prepared_key(task)) for task in tasks}
    estimates = {task: _estimate(tasks[task], prepared[task]) for task in tasks}
    costs = [
        _cost(study, knobs, recipes, device, task, label, estimates[task])
        for task in tasks
        for label in tasks[task].models
    ]
    print(_hours_table(costs))
    for place, source in sources(study).items():
        print(f"{'/'.join(place)} starts from the dense run of {'/'.join(source)} of the same seed, trained first.\n")
    print(_disk_table(recipes, estimates, costs))
    like = options.like or (EARLIER_STUDY if EARLIER_STUDY.is_dir() else None)
    if like is not None:
        print(f"\n{_detectable_table(study, summary_folder(like))}")
    for pack in packs:
        if pack.notice:
            print(f"\n{pack.title}: {pack.notice}")


@dataclass(frozen=True)
class Cost:
    """Runs of one model of a task, the devices of each, their training steps in total, and the time of a step.

    None stands where it is unknown.
    """

    task: str
    model: str
    runs: int
    devices: int
    steps: int | None
    step_seconds: float | None
    source: str
    run_bytes: int | None

    @property
    def hours(self) -> float | None:
        return None if None in (self.step_seconds, self.steps) else self.steps * self.step_seconds / 3600


def _cost(
    study: Study, knobs: Knobs, recipes: Recipes, device: str, task: str, label: str, estimate: Estimate | None
) -> Cost:
    runs = [run for run in grid.runs(study) if (run.task, run.model) == (task, label)]
    training = recipes.tasks[task].training_of(label)
    epochs = len(study.seeds_of(task)) * training.warm_up_epochs + sum(
        _epochs_of(study, study.methods[run.method], training) for run in runs
    )
    measured, source = _recorded(device, recipes.step_key(task, label))
    if measured is None:
        measured, source = _measured_here(study, knobs, task, label)
    binary = sum(study.methods[run.method].weights != "float" for run in runs)  # these store latent weights too
    stored = len(runs) + binary + WEIGHTS_PER_WARM_START * len(study.seeds_of(task))
    return Cost(
        task,
        label,
        len(runs),
        training.device_count,
        estimate and epochs * estimate.steps_per_epoch,
        measured and measured["step_seconds"],
        source,
        measured and BYTES_PER_WEIGHT * measured["weights"] * stored,
    )


def _epochs_of(study: Study, method: Any, training: Training) -> int:
    """Returns the number of epochs that a run trains after its warm start."""
    if grid.is_one_shot(method):
        return method.one_shot.recovery_epochs * len(study.calibration_seeds)
    return training.sparse_epochs


def _estimate(settings: Any, prepared: Path) -> Estimate | None:
    """Returns the size of the data in the folder `prepared` or, if they are not there yet, an estimate.

    It is None for the user's own data, whose size is unknown before they are prepared.
    """
    index = prepared.with_name(f"{prepared.name}.json")
    if index.is_file():
        try:
            steps = settings.prepared_steps(prepared, json.loads(index.read_text(encoding="utf-8")))
            return Estimate(steps, sum(path.stat().st_size for path in prepared.iterdir()))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{index}: cannot be read: {error!r}") from None
    own = not (getattr(settings.data, "complete", True) and getattr(settings.data, "published", True))
    return None if own else settings.estimate(pack_of(settings.data))


def _recorded(device: str, key: str) -> tuple[Mapping[str, Any] | None, str]:
    """Returns the time of a training step as measured by `make bench` on this device, if it has been."""
    path = benchmark_file(device)
    try:
        entry = json.loads(path.read_text(encoding="utf-8")).get("throughput", {}).get(key) if path.is_file() else None
        return (None, "") if entry is None else (entry, f"{path}, {entry['steps']} steps")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}") from None


def benchmark_file(device: str) -> Path:
    """Returns the file of the results of `make bench` on a device, such as benchmarks/results/amd-epyc-2-cores.json."""
    return BENCHMARKS / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def _measured_here(study: Study, knobs: Knobs, task: str, label: str) -> tuple[Mapping[str, Any] | None, str]:
    """Times training steps on this machine."""
    print(f"timing {task} {label}: {BENCHMARKS} has no time of such a step on this device ...", file=sys.stderr)
    try:
        measured = own_process.call("bbnet.training.step_time", study, task, label, "--device", knobs.device)
    except ValueError as error:
        return None, f"unknown: timing failed ({error})"
    return measured, f"{measured['steps']} timed steps here"


def _hours_table(costs: list[Cost]) -> str:
    rows = [
        (
            cost.task,
            cost.model,
            cost.runs,
            _shown_steps(cost.steps),
            "unknown" if cost.step_seconds is None else _shown_step(cost.step_seconds),
            cost.devices,
            "unknown" if cost.hours is None else _shown_hours(cost.hours),
            cost.source,
        )
        for cost in costs
    ]
    known = [cost.hours for cost in costs if cost.hours is not None]
    total = _shown_hours(sum(known)) if len(known) == len(costs) else "unknown"
    steps = None if any(cost.steps is None for cost in costs) else sum(cost.steps for cost in costs)
    rows.append(("all", "", sum(cost.runs for cost in costs), _shown_steps(steps), "", "", total, ""))
    headers = ("task", "model", "runs", "steps", "time per step", "devices", "hours", "source")
    table = tabulate(rows, headers=headers, disable_numparse=True)
    note = (
        "Hours of all runs one after another, each on its number of devices, at the speed of dense. Scoring, the\n"
        "preparation of data, and the exchange of gradients between several devices are not included."
    )
    return f"{table}\n\n{note}\n"


def _shown_steps(steps: int | None) -> str:
    return "unknown" if steps is None else f"{steps:,}"


def _shown_step(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _shown_hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"


def _detectable_table(study: Study, like: Path) -> str:
    """Returns a table of the differences that are detected, by numbers of seeds and test items."""
    of_models = like / "model_contrasts.csv"
    tables = {"methods": _read_contrasts(like / "contrasts.csv", CONTRAST_COLUMNS)}
    tables["models"] = _read_contrasts(of_models, MODEL_COLUMNS) if of_models.is_file() else tables["methods"][:0]
    rows = []
    for task, between, metric, count in _contrast_counts(study):
        contrasts = tables[between]
        of_metric = contrasts[(contrasts["task"] == task) & (contrasts["metric"] == metric)]
        found = components_of(of_metric)
        if found is None or not count:
            rows.append((task, between, metric, count, *["unknown"] * (2 + len(MORE_ITEMS))))
            continue
        kind = load_metrics(task).METRICS[metric]
        unit, largest = kind.difference_unit, kind.largest_difference
        own = len(study.seeds_of(task))
        for seeds in sorted({*SHOWN_SEEDS, own} - {1}):
            differences = [detectable_difference(found, seeds, count, more) for more in MORE_ITEMS]
            mark = " (this study)" if seeds == own else ""
            shown = ["none" if value > largest else f"{value:.2g}{unit}" for value in differences]
            rows.append((task, between, metric, count, found.items, f"{seeds}{mark}", *shown))
    of_items = (f"items x {more}" for more in MORE_ITEMS)
    headers = ("task", "between", "metric", "about contrasts", "items", "seeds", *of_items)
    note = (
        "Smallest difference, between two methods or between a model and the task's baseline, that is significant\n"
        "with a probability of 80 %, after Holm's method over all contrasts of the task. Variances and the number of\n"
        f"test items are those of {like}. None: not even the largest. Unknown: that study has no\n"
        "contrast of the metric with at least two seeds, or this one has none."
    )
    return f"{tabulate(rows, headers=headers, disable_numparse=True)}\n\n{note}"


def _read_contrasts(path: Path, columns: list[str]) -> pd.DataFrame:
    contrasts = read_part(path, read_csv)
    lacks = [name for name in columns if name not in contrasts]
    if lacks:
        raise ConfigError(f"{path}: has no column {', '.join(lacks)}; summaries of older versions lack some of them")
    return contrasts


def _contrast_counts(study: Study) -> list[tuple[str, str, str, int]]:
    """Returns the number of contrasts of each task, with `methods` or `models`, and each of its primary metrics."""
    runs = pd.DataFrame([vars(run) for run in grid.runs(study)]).drop(columns="seed").drop_duplicates()
    cells = [tuple(cell) for cell in runs.itertuples(index=False, name=None)]
    slabs = {cell: "in" if cell[3] == "none" else cell[3] for cell in cells}
    methods = {label: method.model_dump() for label, method in study.methods.items()}
    baselines = grid.baselines(study)
    compared = chain(pairs(cells, methods, slabs, study.reference), model_pairs(cells, baselines, grid.beside(study)))
    tasks = [cell[0] for cell, _ in compared]
    primary = {task: load_metrics(task).PRIMARY for task in study.task_settings()}
    return [
        (task, between, metric, tasks.count(task) * len(primary[task]))
        for task in primary
        for between in ("methods", "models")[: 1 + (task in baselines)]
        for metric in primary[task]
    ]


def _disk_table(recipes: Recipes, estimates: Mapping[str, Estimate | None], costs: list[Cost]) -> str:
    rows = []
    for task, estimate in estimates.items():
        for data in recipes.packs(task):
            rows += _download_rows(task, data)
        prepared = "unknown" if estimate is None else f"about {_shown(estimate.prepared_bytes)}"
        rows.append((task, "prepared arrays", prepared))
    for cost in costs:
        size = "unknown" if cost.run_bytes is None else f"about {_shown(cost.run_bytes)}"
        rows.append((cost.task, f"weights of {cost.runs} runs and their warm starts", size))
    return tabulate(rows, headers=("task", "on disk", "size"))


def _download_rows(task: str, data: Any) -> list[tuple[str, str, str]]:
    pack = pack_of(data)
    if pack is None or data.path is not None:
        return []
    needed = data.files() if hasattr(data, "files") else list(pack.files)
    sizes = [pack.files[name].size for name in needed]
    size = "size not published" if None in sizes else _shown(sum(sizes))
    files = "1 file" if len(needed) == 1 else f"{len(needed)} files"
    unpacked = ", and as much again unpacked" if any(name.endswith(SUFFIXES) for name in needed) else ""
    return [(task, f"{data.pack}: {files} to download ({pack.licence}){unpacked}", size)]


def _shown(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
