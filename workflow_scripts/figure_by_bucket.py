"""A metric relative to dense by Head, Mid and Tail, of a task and model."""

from common import PATHS, TEXT, arguments, run

from bbnet.analysis.collect import KEYS
from bbnet.analysis.tables import incomplete_note
from bbnet.plots.by_bucket import plot_by_bucket
from bbnet.plots.style import note, read_table, save, use_style
from bbnet.tasks.task import load_metrics


def main(options) -> None:
    use_style()
    cells, runs, items, grid = (
        read_table(path, options.task, options.model)
        for path in (options.cells, options.runs, options.items, options.grid)
    )
    task = load_metrics(options.task)
    _, of_one_run = next(iter(items.groupby(KEYS, sort=False)))
    of_buckets = next(iter(task.BY_BUCKET.values()))
    better = task.METRICS[next(iter(of_buckets.values()))].better
    name = f"Δ{task.SELECTION.upper()}"
    sizes = task.bucket_sizes(of_one_run)
    figure = plot_by_bucket(cells, runs, task.BY_BUCKET, sizes, name, better, task.COUNTED)
    note(figure, incomplete_note(grid))
    save(figure, options.figures)


run(
    main,
    arguments(__doc__, task=TEXT, model=TEXT, cells={}, runs={}, items={}, grid={}, figures=PATHS),
)
