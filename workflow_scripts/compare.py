"""Computes cells (means with intervals), contrasts (paired differences) and claims (statistics of the units).

The contrasts between models are a file of their own, if a task names a baseline.
"""

from itertools import chain

from common import arguments, run, write_frame

import pandas as pd

from bbnet.analysis.claims import claims_table
from bbnet.analysis.collect import COST_METRICS
from bbnet.analysis.contrasts import contrasts_tables, equal_cost_pairs, model_pairs, pairs, slabs_of
from bbnet.analysis.statistics import CELL_KEYS, cells_table, resample_cells
from bbnet.analysis.summary import Summary, baselines_of, beside_of, read_csv
from bbnet.data.process import cores, worker_pool
from bbnet.tasks.task import load_metrics, optional, relative_metrics


def main(options) -> None:
    summary = options.summary
    runs = read_csv(summary / "runs.csv")
    tasks = {name: load_metrics(name) for name in runs["task"].unique()}
    primary = {name: task.PRIMARY for name, task in tasks.items()}
    kinds = {name: task.METRICS | COST_METRICS for name, task in tasks.items()}
    items = pd.read_parquet(summary / "items.parquet")
    metrics = {name: task.metrics for name, task in tasks.items()}
    with worker_pool(cores()) as pool:
        resampled = resample_cells(
            items, metrics, relative_metrics(tasks), primary, optional(tasks, "item_counts"), apply=pool.map
        )
    write_frame(summary / "cells.csv", cells_table(runs, resampled, kinds))
    study = Summary(summary).study
    slabs, baselines = slabs_of(pd.read_parquet(summary / "units.parquet")), baselines_of(study)
    cells, flops = list(resampled), runs[runs["metric"] == "flops"].groupby(CELL_KEYS)["value"].mean()
    compared = chain(
        pairs(cells, study["methods"], slabs, study.get("reference")),
        model_pairs(cells, baselines, beside_of(study)),
        equal_cost_pairs(cells, study["methods"], baselines, flops),
    )
    contrasted = {name: {metric: task.METRICS[metric] for metric in task.PRIMARY} for name, task in tasks.items()}
    of_methods, of_models = contrasts_tables(runs, resampled, compared, contrasted)
    write_frame(summary / "contrasts.csv", of_methods)
    if baselines:
        write_frame(summary / "model_contrasts.csv", of_models)
    slabs = read_csv(summary / "slabs.csv")
    write_frame(summary / "claims.csv", claims_table(slabs))


run(main, arguments(__doc__, summary={}))
