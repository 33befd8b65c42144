"""Collects all runs of the study into the tables of the summary."""

import logging
import os
from dataclasses import asdict
from pathlib import Path

from common import JSON, arguments, read_json, run, to_json, write_frame, write_text

from bbnet.analysis import claims, collect
from bbnet.study.config import Knobs, read_chosen_study
from bbnet.study.grid import has_binary_weights, runs
from bbnet.study.recipe import Recipes
from bbnet.study.record import run_status
from bbnet.tasks.task import load_metrics, relative_metrics


def main(options) -> None:
    knobs = Knobs(**{"device": os.environ.get("BBNET_DEVICE", "auto")} | options.knobs)
    study = read_chosen_study(knobs, Path("studies"))
    recipes = Recipes(study, knobs)
    asked = [cell(one, options.results / "runs", recipes.run_fingerprint(one), knobs.cells) for one in runs(study)]
    tasks = {name: load_metrics(name) for name in study.task_settings()}
    cells, found = collect.read_runs(
        asked,
        {name: task.metrics for name, task in tasks.items()},
        {name: task.SELECTION for name, task in tasks.items()},
    )
    for before, after in zip(asked, cells, strict=True):
        if before.taken and not after.taken:
            logging.getLogger("bbnet").warning("%s: %s", after.folder, after.why)
    if not found:
        raise ValueError(f"{options.results / 'runs'}: no run could be read; the first: {cells[0].why}")
    seeds = {(one.task, one.model, one.seed) for one in runs(study)}
    warm_ups = [
        (
            {"task": task, "model": model, "method": "dense", "side": "none", "budget": "1.00", "seed": seed},
            options.results / "warm_up" / task / model / f"s{seed}",
        )
        for task, model, seed in sorted(seeds)
    ]
    units = collect.units_table(found, warm_ups)
    tables = {
        "grid.csv": collect.grid_table(cells),
        "runs.csv": collect.runs_table(found, relative_metrics(tasks)),
        "timing.csv": collect.timing_table(found),
        "items.parquet": collect.items_table(found),
        "units.parquet": units,
        "slabs.csv": claims.slabs_table(collect.codes_table(found), units),
        "history.parquet": collect.history_table(found),
        "refreshes.parquet": collect.refreshes_table(found),
    }
    if has_binary_weights(study):
        tables |= {"weights.csv": collect.weights_table(found), "latent.csv": collect.latent_table(found)}
    for name, table in tables.items():
        write_frame(options.summary / name, table)
    described = study.model_dump(mode="json") | {
        "name": knobs.study,
        "tasks": {name: settings.model_dump(mode="json") for name, settings in study.task_settings().items()},
    }
    write_text(options.summary / "study.json", to_json(described))
    prepared = Path(knobs.data_dir, "prepared")
    data = {
        task: collect.data_summary(
            *(
                read_json(path) if path.is_file() else {}
                for path in (
                    prepared / f"{recipes.prepared_key(task)}.json",
                    options.results / "buckets" / f"{task}.json",
                )
            )
        )
        for task in tasks
    }
    write_text(options.summary / "data.json", to_json(data))


def cell(one, folder: Path, fingerprint: str, wanted: str) -> collect.Cell:
    """Stale runs are taken if all cells are wanted: Snakemake reruns them unless `snakemake --touch` accepted them."""
    status, why = run_status(folder / one.folder, fingerprint)
    return collect.Cell(
        asdict(one), folder / one.folder, status, why, status == "done" or (wanted, status) == ("all", "stale")
    )


run(main, arguments(__doc__, knobs=JSON, results={}, summary={}))
