"""Benchmarks of training: `make bench`, or `make bench DEVICE=cuda` on a GPU.

Writes benchmarks/results/{machine}.json, replacing the results of an earlier run on the same machine, and renders
docs/benchmarks.md from all such files. With `--transformers`, `--binary` or `--operators` only that part is measured
and replaced.
"""

import argparse
import gc
import json
import platform
import sys
import tempfile
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from binary import measure_binary
from cases import ROOT, Case, default_case, paper_case, small_model_case
from growth import growth
from large import MODELS, measure_large
from loops import (
    ALGORITHMS,
    IN_DEFAULT_STUDY,
    Arm,
    against_decoding,
    fastest_quartile,
    ours_and_limit,
    overheads,
    seconds,
    shares,
    time_refreshes,
    watching,
)
from operators import measure_operators
from page import write_page

from bbnet.cli.plan import benchmark_file
from bbnet.data.store import whole_file
from bbnet.sparsity.degrees import allocate_degrees
from bbnet.sparsity.masks import keep_largest
from bbnet.sparsity.sparsifier import METHODS, sparsify
from bbnet.study.config import Knobs, read_study
from bbnet.study.machine import name_of
from bbnet.study.recipe import Recipes
from bbnet.training.devices import choose_device
from bbnet.training.step_time import measure

TASKS = ("asr", "change", "face")
WITH_IMAGES = ("change", "face")


def measure_case(case: Case, names: Iterable[str], trace: Path | None) -> dict[str, Any]:
    """Returns all results of one case; `names` are the methods whose overhead is measured."""
    _report(case.title)
    if trace is not None:
        _trace(case, trace / f"{case.title.replace(', ', '-')}.json")
    figures = {"loop": ours_and_limit(case), "shares": shares(case, min(case.steps, 20))}
    figures["overheads"] = overheads(case, ["dense", *names, "torch.prune"])
    gc.collect()  # hooks and weights form reference cycles
    return figures | {"watch": watching(case), "decoding": against_decoding(case)}


def _trace(case: Case, path: Path) -> None:
    """Writes a profile of three steps of sp_in, for chrome://tracing."""
    arm = Arm(case, "sp_in")
    arm.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile() as profile:
        for _ in range(3):
            arm.step()
    profile.export_chrome_trace(str(path))


def mask_ratio(device: torch.device) -> dict[str, float]:
    """Returns the time to compute degrees and mask of a 1536 x 6144 slab, relative to a torch.sort of the slab."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1536, 6144, generator=generator).abs().to(device)
    rates = torch.rand(1536, generator=generator).to(device)
    sort, mask = [], []
    for _ in range(9):
        sort.append(seconds(lambda: torch.sort(scores), device))
        mask.append(seconds(lambda: keep_largest(scores, allocate_degrees(rates, 6144, 0.3)), device))
    return {"ms_sort": 1e3 * fastest_quartile(sort), "ratio": fastest_quartile(mask) / fastest_quartile(sort)}


def refresh_share(case: Case) -> dict[str, float]:
    """Returns the share of the sparse phase spent in refreshes, per method, at the default study's smallest budget."""
    study = read_study("demo", ROOT / "studies")
    budget = min(study.budgets, key=Decimal)
    shares_of = {}
    for method in IN_DEFAULT_STUDY:
        trainer = case.trainer()
        trainer.epoch = trainer.training.warm_up_epochs
        sparsifier = sparsify(
            trainer.model,
            trainer.optimizer,
            case.slabs(trainer.model, METHODS[method]["side"], budget),
            method,
            budget,
            total_steps=trainer.sparse_steps,
            **study.sparsity.model_dump(),
        )
        refreshing = time_refreshes(sparsifier, case.device)
        epochs = range(trainer.epoch, trainer.training.epochs)

        def train(trainer=trainer, sparsifier=sparsifier, epochs=epochs) -> None:
            for _ in epochs:
                trainer.run_epoch("sparse", sparsifier)

        training = seconds(train, case.device)
        shares_of[method] = sum(refreshing) / training
    return shares_of


def throughput(device: torch.device) -> dict[str, dict[str, Any]]:
    """Times a dense step of each model of two studies, keyed by the settings it depends on; `bbnet plan` reads it."""
    figures = {}
    for name in ("demo", "paper"):
        study = read_study(name, ROOT / "studies")
        recipes = Recipes(study, Knobs(study=name, device=device.type))
        for task, settings in study.task_settings().items():
            for model in settings.models:
                title = f"{name}: {task} {model}"
                _report(title)
                figures[recipes.step_key(task, model)] = {"title": title, **measure(study, task, model, device)}
    return figures


def _report(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def measure_tasks(device: torch.device, trace: Path | None) -> dict[str, Any]:
    """Runs the benchmarks of the study's tasks."""
    cases: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in TASKS:
            case = default_case(name, device, Path(folder, name))
            cases[case.title] = measure_case(case, ALGORITHMS, trace)
            if name == "change":
                refreshes = refresh_share(case)
        for name in TASKS:
            case = paper_case(name, device, Path(folder, f"{name}-paper"))
            cases[case.title] = measure_case(case, IN_DEFAULT_STUDY, trace)
        for name in WITH_IMAGES:
            case = small_model_case(name, device, Path(folder, f"{name}-small"))
            _report(case.title)
            cases[case.title] = {"decoding": against_decoding(case)}
    _report("growth")
    return {
        "cases": cases,
        "growth": growth(device),
        "mask": mask_ratio(device),
        "refresh_share": refreshes,
        "throughput": throughput(device),
    }


def _write(results: dict[str, Any], path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--trace", type=Path, help="folder for profiles of each case, for chrome://tracing")
    parser.add_argument("--transformers", action="store_true", help="measure the two Transformers alone")
    parser.add_argument("--binary", action="store_true", help="measure binary weights alone")
    parser.add_argument("--operators", action="store_true", help="measure the operators of the detector alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device(options.device)
    results: dict[str, Any] = {
        "machine": name_of(device.type),
        "device": device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    path = ROOT / benchmark_file(results["machine"])
    parts = {"transformers", "binary", "operators"}
    chosen = {part for part in parts if getattr(options, part)}
    if chosen:
        results |= json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    else:
        results |= measure_tasks(device, options.trace)
    if "binary" in (chosen or parts):
        with tempfile.TemporaryDirectory() as folder:
            results["binary"] = measure_binary(device, Path(folder), _report)
        _write(results, path)
    if "operators" in (chosen or parts):
        _report("operators")
        results["operators"] = measure_operators(device)
        _write(results, path)
    if "transformers" in (chosen or parts):
        for model in MODELS:
            _report(model)
            results.setdefault("transformers", {})[model] = measure_large(model, device)
            _write(results, path)
    write_page()


if __name__ == "__main__":
    main()
