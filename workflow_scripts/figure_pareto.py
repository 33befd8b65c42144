"""Pareto plot of a task and model."""

from common import PATHS, TEXT, arguments, run

from bbnet.analysis.tables import incomplete_note
from bbnet.plots.pareto import plot_pareto
from bbnet.plots.style import note, read_table, save, use_style
from bbnet.tasks.task import load_metrics


def main(options) -> None:
    use_style()
    cells, runs, grid = (
        read_table(path, options.task, options.model) for path in (options.cells, options.runs, options.grid)
    )
    task = load_metrics(options.task)
    figure = plot_pareto(cells, runs, getattr(task, "PARETO", (task.SELECTION,)))
    note(figure, incomplete_note(grid))
    save(figure, options.figures)


run(main, arguments(__doc__, task=TEXT, model=TEXT, cells={}, runs={}, grid={}, figures=PATHS))
