"""Gathers every run of the study into the tidy tables of the summary."""

from dataclasses import asdict
from pathlib import Path

from common import JSON, arguments, run, write_frame

from bbnet.analysis import collect
from bbnet.study.config import Knobs, read_study
from bbnet.study.grid import runs
from bbnet.study.recipe import Recipes
from bbnet.study.record import run_status
from bbnet.tasks.task import relative_metrics


def main(options) -> None:
    knobs = Knobs(**options.knobs)
    study = read_study(knobs.study, Path("studies"))
    recipes = Recipes(study, knobs)
    cells = [cell(one, options.results / "runs", recipes.run_fingerprint(one), knobs.cells) for one in runs(study)]
    seeds = {(one.task, one.model, one.seed) for one in runs(study)}
    warm_ups = [
        (
            {"task": task, "model": model, "method": "dense", "side": "none", "budget": "1.00", "seed": seed},
            options.results / "warm_up" / task / model / f"s{seed}",
        )
        for task, model, seed in sorted(seeds)
    ]
    write_frame(options.summary / "grid.csv", collect.grid_table(cells))
    write_frame(options.summary / "runs.csv", collect.runs_table(cells, relative_metrics(study.task_settings())))
    write_frame(options.summary / "timing.csv", collect.timing_table(cells))
    write_frame(options.summary / "items.parquet", collect.items_table(cells))
    write_frame(options.summary / "units.parquet", collect.units_table(cells, warm_ups))
    write_frame(options.summary / "history.parquet", collect.history_table(cells))


def cell(one, folder: Path, fingerprint: str, wanted: str) -> collect.Cell:
    """With all cells wanted a stale run is one that `snakemake --touch` accepted; Snakemake reruns every other."""
    status, why = run_status(folder / one.folder, fingerprint)
    return collect.Cell(
        asdict(one), folder / one.folder, status, why, status == "done" or (wanted, status) == ("all", "stale")
    )


run(main, arguments(__doc__, knobs=JSON, results={}, summary={}))
