"""Mean, sd and interval of every cell."""

import pandas as pd
from common import arguments, run, write_frame

from bbnet.analysis.collect import COST_METRICS
from bbnet.analysis.statistics import cells_table
from bbnet.tasks.task import load_metrics, relative_metrics


def main(options) -> None:
    runs = pd.read_csv(options.runs, dtype={"budget": str})
    tasks = {task: load_metrics(task) for task in runs["task"].unique()}
    metrics = {name: task.metrics for name, task in tasks.items()}
    units = {
        name: {metric: kind.unit for metric, kind in task.METRICS.items()} | COST_METRICS
        for name, task in tasks.items()
    }
    items = pd.read_parquet(options.items)
    write_frame(options.cells, cells_table(runs, items, metrics, units, relative_metrics(tasks)))


run(main, arguments(__doc__, runs={}, items={}, cells={}))
