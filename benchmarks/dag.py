"""Overhead of Snakemake before any job of a study of 2,400 runs, compared with minimal rules of the same shape.

    python benchmarks/dag.py [SEEDS]

The minimal rules have the study's wildcards, inputs, outputs and logs, but constant parameters, and do not use bbnet.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PARTS = ("Snakefile", "bbnet", "rules", "workflow_scripts", "profiles", "report", "docs")
SEEDS = 96
REPEATS = 2
SIDES = {"sp_in": "in", "sp_out": "out"}
BUDGETS = ["0.10", "0.15", "0.20", "0.30", "0.40", "0.50"]
STUDY = {
    "budgets": [float(budget) for budget in BUDGETS],
    "methods": {
        "dense": {"algorithm": "dense"},
        **{label: {"algorithm": "budgeted_broadcast", "side": side} for label, side in SIDES.items()},
        "magnitude": {"algorithm": "magnitude"},
        "rigl": {"algorithm": "rigl"},
    },
    "tasks": {
        "change": {
            "data": {"pack": "aerial_scenes", "size": 64, "train": 16, "val": 4, "test": 8},
            "tile": 32,
            "models": {"tiny": {"widths": [16, 32]}},
            "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 8, "learning_rate": 0.003},
        }
    },
}
NOTHING_TO_DO = "nothing to do"
CALLS = {"snakemake -n": ("--dry-run", "--quiet", "all"), NOTHING_TO_DO: ()}

MINIMAL = """
SEEDS = range({seeds})
BUDGETS = {budgets}
RUNS = [f"dense/b1.00/s{{seed}}" for seed in SEEDS]
RUNS += [f"{{method}}/b{{budget}}/s{{seed}}" for method in {methods} for budget in BUDGETS for seed in SEEDS]
FIGURES = ["balance", "churn", "learning_curves", "pareto", "contrasts", "claims"]
FIGURES += [f"panels-{{method}}-b{{budget}}" for method in {shown} for budget in BUDGETS]
SHOWN = ["dense/b1.00/s0", *(f"{{method}}/b{{budget}}/s0" for method in {shown} for budget in BUDGETS)]
RUN = "results/runs/change/tiny/{{method}}/b{{budget}}/s{{seed}}"
WARM = "results/warm_up/change/tiny/s{{seed}}"
LOG = "change-tiny-{{method}}-b{{budget}}-s{{seed}}.log"
TRAINED = ["model.safetensors", "masks.safetensors", "history.csv", "refreshes.csv", "record.json"]
SCORED = ["items.parquet", "predictions.npz", "units.csv", "codes.csv", "metrics.json", "cost.json"]
COLLECTED = [*TRAINED[2:], "metrics.json", "cost.json", "units.csv", "codes.csv", "items.parquet"]
COLLECT = ["runs.csv", "items.parquet", "units.parquet", "slabs.csv", "history.parquet", "refreshes.parquet"]
COLLECT = [f"results/summary/{{name}}" for name in [*COLLECT, "study.json", "grid.csv", "timing.csv"]]
COMPARE = [f"results/summary/{{name}}.csv" for name in ("cells", "contrasts", "claims")]
SUMMARY = [*COLLECT, *COMPARE]
COVERAGE = [f"results/figures/coverage.{{extension}}" for extension in ("pdf", "csv", "png")]
DRAWN = [f"results/figures/change-tiny-{{name}}.{{kind}}" for kind in ("pdf", "csv", "png") for name in FIGURES]
METHODS = [f"results/tables/methods.{{extension}}" for extension in ("csv", "tex", "md")]
WRITTEN = [
    f"results/tables/change-tiny-{{name}}.{{extension}}"
    for extension in ("csv", "tex", "md")
    for name in ("results", "contrasts_table", "costs")
]


wildcard_constraints:
    method="[a-z][a-z0-9_]*",
    budget=r"\\d\\.\\d\\d",
    seed=r"\\d+",


rule all:
    input: SUMMARY, COVERAGE, DRAWN, METHODS, WRITTEN, "results/report.html"
"""
RULE = """
rule {name}:
    input: {inputs}
    output: {outputs}
    log: {log}
    resources: gpu=0
    params: config="c", fingerprint="f", folder="d"
    message: "{name}"
    shell: "true {{params.config:q}} {{params.fingerprint:q}} {{params.folder:q}} {{log:q}}"
"""
RUN_FILES = '[f"{{RUN}}/{{name}}" for name in {}]'
RULES = {
    "fetch": ("", '"data/raw.json"', '"logs/fetch.log"'),
    "prepare": ('"data/raw.json"', '"data/prepared.json"', '"logs/prepare.log"'),
    "warm_up": (
        '"data/prepared.json"',
        '[f"{WARM}/{name}" for name in ("checkpoint.pt", "history.csv", "units.csv")]',
        '"logs/warm_up/s{seed}.log"',
    ),
    "train": ('"data/prepared.json", f"{WARM}/checkpoint.pt"', RUN_FILES.format("TRAINED"), 'f"logs/train/{LOG}"'),
    "evaluate": (
        '"data/prepared.json", [f"{RUN}/{name}" for name in (*TRAINED[:2], "record.json")]',
        RUN_FILES.format("SCORED"),
        'f"logs/evaluate/{LOG}"',
    ),
    "collect": (
        'expand("results/runs/change/tiny/{folder}/{file}", folder=RUNS, file=COLLECTED)',
        "COLLECT",
        '"logs/collect.log"',
    ),
    "compare": ("COLLECT[:4], COLLECT[6]", "COMPARE", '"logs/compare.log"'),
    "panels": (
        'expand("results/runs/change/tiny/{folder}/{file}", folder=SHOWN, file=SCORED[:2]), "data/prepared.json"',
        '"results/summary/panels/change.npz"',
        '"logs/panels.log"',
    ),
    "figures_study": ("SUMMARY", "COVERAGE", '"logs/figures.log"'),
    "figures_task": ('SUMMARY, "results/summary/panels/change.npz"', "DRAWN", '"logs/figures-change.log"'),
    "tables_study": ("SUMMARY", "METHODS", '"logs/tables.log"'),
    "tables_task": ("SUMMARY", "WRITTEN", '"logs/tables-change.log"'),
    "page": ("SUMMARY, COVERAGE, DRAWN, METHODS, WRITTEN", '"results/report.html"', '"logs/page.log"'),
}


@dataclass(frozen=True)
class Cost:
    """Cost of one call of Snakemake: wall time and CPU time in seconds, and peak memory."""

    wall: float
    cpu: float
    mib: float


def write_study(folder: Path, seeds: int) -> None:
    """Creates a working directory linked to this repository, with one study of 25 runs per seed."""
    for part in PARTS:
        (folder / part).symlink_to(ROOT / part)
    knobs = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")) | {"study": "large", "device": "cpu"}
    (folder / "config.yaml").write_text(yaml.safe_dump(knobs), encoding="utf-8")
    (folder / "studies").mkdir()
    (folder / "studies" / "large.yaml").write_text(
        yaml.safe_dump({"seeds": list(range(seeds)), **STUDY}), encoding="utf-8"
    )


def write_minimal(folder: Path, seeds: int) -> None:
    """Writes a Snakefile with the minimal rules."""
    sparse = [label for label in STUDY["methods"] if label != "dense"]
    head = MINIMAL.format(seeds=seeds, budgets=BUDGETS, methods=sparse, shown=list(SIDES))
    rules = (
        RULE.format(name=name, inputs=inputs, outputs=outputs, log=log)
        for name, (inputs, outputs, log) in RULES.items()
    )
    (folder / "Snakefile").write_text(head + "".join(rules), encoding="utf-8")


def snakemake(folder: Path, *options: str) -> tuple[Cost, str]:
    """Calls Snakemake; returns its cost, child processes included, and its output. Raises RuntimeError on failure."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *options]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        began = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(folder)}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {printed[-3000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), printed


def finish(folder: Path) -> int:
    """Creates every file of the workflow, empty, and marks it as up to date; returns the number of files."""
    _, summary = snakemake(folder, "--summary")
    files = [line.split("\t")[0] for line in summary.splitlines()[1:] if "\t" in line]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    snakemake(folder, "--touch", "--quiet", "all")
    if "Nothing to be done" not in snakemake(folder, "--dry-run")[1]:
        raise RuntimeError(f"{folder.name}: there are jobs left to run")
    return len(files)


def measure(seeds: int = SEEDS, repeats: int = REPEATS) -> dict[str, dict[str, Cost]]:
    """Returns, per call, the lowest costs of `repeats` alternating calls of the `study` and of the minimal rules."""
    figures: dict[str, dict[str, Cost]] = {}
    with tempfile.TemporaryDirectory() as parent:
        folders = {"study": Path(parent, "study"), "minimal": Path(parent, "minimal")}
        for folder in folders.values():
            folder.mkdir()
        write_study(folders["study"], seeds)
        write_minimal(folders["minimal"], seeds)
        for call, options in CALLS.items():
            if call == NOTHING_TO_DO:
                files = {name: finish(folder) for name, folder in folders.items()}
                if len(set(files.values())) != 1:
                    raise RuntimeError(f"the minimal rules have another number of files: {files}")
            taken = [{name: snakemake(folder, *options)[0] for name, folder in folders.items()} for _ in range(repeats)]
            figures[call] = {name: _least([costs[name] for costs in taken]) for name in folders}
    return figures


def _least(costs: Sequence[Cost]) -> Cost:
    return Cost(*(min(getattr(cost, part) for cost in costs) for part in ("wall", "cpu", "mib")))


def rows(figures: Mapping[str, Mapping[str, Cost]]) -> list[str]:
    """Returns the costs as a Markdown table."""
    lines = [
        "| call | wall time ratio | CPU time ratio | minimal / study, s | minimal / study, MiB |",
        "|---|---|---|---|---|",
    ]
    for call, costs in figures.items():
        study, minimal = costs["study"], costs["minimal"]
        lines.append(
            f"| {call} | {study.wall / minimal.wall:.2f} | {study.cpu / minimal.cpu:.2f} "
            f"| {minimal.wall:.1f} / {study.wall:.1f} | {minimal.mib:.0f} / {study.mib:.0f} |"
        )
    return lines


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS
    print("\n".join(rows(measure(seeds))))


if __name__ == "__main__":
    main()
