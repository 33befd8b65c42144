"""Computes cells (means with intervals), contrasts (paired differences) and claims (statistics of the units)."""

from common import arguments, read_json, run, write_frame

import pandas as pd

from bbnet.analysis.claims import claims_table
from bbnet.analysis.collect import COST_METRICS
from bbnet.analysis.contrasts import contrasts_table, pairs, slabs_of
from bbnet.analysis.statistics import cells_table, resample_cells
from bbnet.analysis.summary import read_csv
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
    methods = read_json(summary / "study.json")["methods"]
    compared = pairs(list(resampled), methods, slabs_of(pd.read_parquet(summary / "units.parquet")))
    contrasted = {name: {metric: task.METRICS[metric] for metric in task.PRIMARY} for name, task in tasks.items()}
    write_frame(summary / "contrasts.csv", contrasts_table(runs, resampled, compared, contrasted))
    slabs = read_csv(summary / "slabs.csv")
    write_frame(summary / "claims.csv", claims_table(slabs))


run(main, arguments(__doc__, summary={}))
