"""Fabricates the folders of a study's runs, as train and evaluate leave them, of random numbers.

    python tests/analysis/synthetic_runs.py FOLDER RUNS

makes a project of RUNS runs (one of `SIZES`) in FOLDER, takes them through the scripts of summary, figures and tables,
and prints seconds and peak memory of each process.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from bbnet.study.config import Knobs, Study, read_study
from bbnet.study.grid import Run, runs
from bbnet.study.recipe import Recipes

REPOSITORY = Path(__file__).parents[2]
STUDY = "synthetic"
IMAGES = 128
SLABS = {"encoder.1.conv1": 100, "encoder.1.conv2": 100, "decoder.0.conv1": 60, "decoder.1.conv1": 40}
FAN = 40
EPOCHS, REFRESHES = 10, 20
FIGURES = ("pareto", "contrasts", "claims", "balance", "churn", "learning_curves")
TABLES = ("results", "contrasts_table", "costs")
METHODS = {
    "dense": {"algorithm": "dense"},
    "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
    "magnitude": {"algorithm": "magnitude", "side": "in"},
    "rigl": {"algorithm": "rigl", "side": "in"},
    "sp_out": {"algorithm": "budgeted_broadcast", "side": "out"},
    "set": {"algorithm": "set", "side": "in"},
    "topk": {"algorithm": "topk"},
    "wanda": {"algorithm": "wanda", "side": "in"},
    "random": {"algorithm": "random", "side": "in"},
    "steep": {"algorithm": "budgeted_broadcast", "side": "in", "gain": 0.2},
    "shuffled": {"algorithm": "budgeted_broadcast", "side": "in", "law": "shuffled"},
    "inverted": {"algorithm": "budgeted_broadcast", "side": "in", "law": "inverted"},
}


class Size(NamedTuple):
    """How many there are of each; dense is not among the methods."""

    models: int
    methods: int
    budgets: int
    seeds: int


SIZES = {
    60: Size(1, 7, 2, 4),
    100: Size(1, 6, 4, 4),
    400: Size(1, 7, 7, 8),
    1000: Size(1, 11, 9, 10),
    10000: Size(10, 11, 9, 10),
}


class Used(NamedTuple):
    """What a process took: wall time, time of the processor, peak resident memory."""

    seconds: float
    processor: float
    peak_mib: float


def make_project(root: Path, size: Size) -> list[Run]:
    """The study `synthetic` in `root`, and all its runs, done."""
    names = list(METHODS)[: size.methods + 1]
    study = {
        "seeds": list(range(size.seeds)),
        "budgets": [round(0.1 * (1 + number), 2) for number in range(size.budgets)],
        "methods": {name: METHODS[name] for name in names},
        "tasks": {
            "change": {
                "data": {"pack": "aerial_scenes", "size": 32, "train": 16, "val": 4, "test": IMAGES},
                "tile": 32,
                "models": {f"m{number}": {"widths": [8, 8 + number]} for number in range(size.models)},
                "training": {"epochs": EPOCHS, "warm_up_epochs": 2, "batch_size": 2, "learning_rate": 0.01},
            }
        },
    }
    (root / "studies").mkdir(parents=True)
    (root / "studies" / f"{STUDY}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return write_runs(root, read_study(STUDY, root / "studies"))


def write_runs(root: Path, study: Study) -> list[Run]:
    recipes = Recipes(study, Knobs(study=STUDY))
    asked = runs(study)
    for number, run in enumerate(asked):
        folder = root / "results" / "runs" / run.folder
        write_run(folder, run, recipes.run_fingerprint(run), np.random.default_rng(number))
        if run.method == "dense":
            warm = root / "results" / "warm_up" / run.task / run.model / f"s{run.seed}"
            warm.mkdir(parents=True)
            units_of(run, np.random.default_rng(number)).to_csv(warm / "units.csv", index=False)
    return asked


def write_run(folder: Path, run: Run, fingerprint: str, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    budget = float(run.budget)
    items = items_of(0.5 + 0.3 * budget, generator)
    tp, fp, fn = (items[name].sum() for name in ("tp", "fp", "fn"))
    metrics = {"f1": 2 * tp / (2 * tp + fp + fn), "iou": tp / (tp + fp + fn)}
    metrics |= {"precision": tp / (tp + fp), "recall": tp / (tp + fn), "image_f1": 0.5, "image_iou": 0.4}
    cost = {"density": budget, "net_density": 0.1 + 0.9 * budget, "weights": 12000}
    cost |= {"flops": {"dense": 1_000_000, "sparse": int(1e6 * budget)}, "slabs": dict.fromkeys(SLABS, budget)}
    cost["bytes"] = {"memory": 4_000, "stored": int(4_000 * budget)}
    record = {"run": asdict(run), "fingerprint": fingerprint, "selected_epoch": EPOCHS, "seconds": 12.5}
    record |= {"began": "2026-01-01T00:00:00+00:00", "peak_memory_mib": 700, "device": "cpu"}
    flops = {"dense": 100_000, "sparse": int(1e5 * budget)}
    record["slabs"] = {name: {"fan": FAN, "connections": int(FAN * budget), "flops": flops} for name in SLABS}
    record |= {"environment": {"host": "laptop"}, "config": {"padding": list(range(100))}}
    for name, content in (("metrics", metrics), ("cost", cost), ("record", record)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    items.to_parquet(folder / "items.parquet", index=False)
    units_of(run, generator).to_csv(folder / "units.csv", index=False)
    codes_of(run, generator).to_csv(folder / "codes.csv", index=False)
    history_of(budget, generator).to_csv(folder / "history.csv", index=False)
    refreshes_of(run, generator).to_csv(folder / "refreshes.csv", index=False)


def items_of(recall: float, generator: np.random.Generator) -> pd.DataFrame:
    changed = np.random.default_rng(0).integers(20, 400, IMAGES)
    found = generator.binomial(changed, recall)
    names = [f"test/{image:04d}.png" for image in range(IMAGES)]
    return pd.DataFrame({"image": names, "tp": found, "fp": generator.poisson(60, IMAGES), "fn": changed - found})


def units_of(run: Run, generator: np.random.Generator) -> pd.DataFrame:
    count = sum(SLABS.values())
    degrees = np.full(count, FAN)
    if run.method != "dense":
        degrees = generator.integers(2, max(3, int(2 * FAN * float(run.budget)) - 2), count).clip(max=FAN)
    rates = generator.uniform(0, 0.9, count)
    return pd.DataFrame(
        {
            "slab": np.repeat(list(SLABS), list(SLABS.values())),
            "side": "out" if run.side == "out" else "in",
            "unit": np.concatenate([np.arange(units) for units in SLABS.values()]),
            "fan": FAN,
            "on_rate": rates,
            "degree": degrees,
            "at_smallest": degrees <= 2,
            "traffic": rates * degrees,
            "silent": rates < 0.01,
        }
    )


def codes_of(run: Run, generator: np.random.Generator) -> pd.DataFrame:
    measures = ("binary_entropy", "code_entropy", "correlation", "effective_rank")
    rows = {"slab": list(SLABS), "side": "out" if run.side == "out" else "in", "units": list(SLABS.values())}
    return pd.DataFrame(rows | {name: generator.uniform(0.2, 0.8, len(SLABS)) for name in measures})


def history_of(budget: float, generator: np.random.Generator) -> pd.DataFrame:
    phases = ["warm_up"] * 2 + ["sparse"] * 5 + ["frozen"] * 3
    epochs = np.arange(1, EPOCHS + 1)
    columns = {"epoch": epochs, "phase": phases, "step": 8 * epochs, "learning_rate": 0.01}
    columns |= {"train_loss": generator.random(EPOCHS), "density": np.linspace(1, budget, EPOCHS)}
    names = ("f1", "iou", "precision", "recall", "image_f1", "image_iou")
    return pd.DataFrame(columns | {f"dev_{name}": generator.random(EPOCHS) for name in names})


def refreshes_of(run: Run, generator: np.random.Generator) -> pd.DataFrame:
    columns = ["step", "slab", "budget", "connections", "pruned", "regrown"]
    if run.method in ("dense", "topk"):
        return pd.DataFrame(columns=columns)
    steps = np.repeat(np.arange(1, REFRESHES + 1) * 2, len(SLABS))
    kept = np.tile([int(units * FAN * float(run.budget)) for units in SLABS.values()], REFRESHES)
    moved = generator.integers(0, 40, len(steps))
    return pd.DataFrame(
        dict(
            zip(columns, (steps, np.tile(list(SLABS), REFRESHES), run.budget, kept, moved, moved), strict=True),
            density=float(run.budget),
            churn=moved / kept,
        )
    )


def stages(model: str = "m0") -> dict[str, list[str]]:
    """The scripts that make the summary, and the figures and tables of one model, with their arguments."""
    of_model = ["--results", "results", "--task", "change", "--model", model]
    return {
        "collect": ["--knobs", json.dumps({"study": STUDY}), "--results", "results", "--summary", "results/summary"],
        "compare": ["--summary", "results/summary"],
        "figures": [*of_model, "--figures", *FIGURES],
        "tables": [*of_model, "--tables", *TABLES],
    }


def run_stage(root: Path, script: str, arguments: list[str]) -> Used:
    """Raises RuntimeError with what the script wrote if it fails."""
    log = root / f"{script}.log"
    (root / "results" / "figures").mkdir(exist_ok=True)
    began = time.perf_counter()
    command = [sys.executable, REPOSITORY / "workflow_scripts" / f"{script}.py", *arguments, "--log", str(log)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(command, cwd=root, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(log.read_text())
    return Used(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(root: Path) -> dict[str, Used]:
    return {script: run_stage(root, script, arguments) for script, arguments in stages().items()}


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    started = time.perf_counter()
    made = make_project(folder, SIZES[count])
    print(f"{len(made)} runs fabricated in {time.perf_counter() - started:.1f} s")
    for name, arguments in stages().items():
        used = run_stage(folder, name, arguments)
        print(
            f"{name:8} {used.seconds:7.1f} s  {used.processor:7.1f} s of processor  {used.peak_mib:7.0f} MiB",
            flush=True,
        )
