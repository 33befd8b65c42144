"""ROC curves of a task that scores pairs, of one model."""

from common import PATHS, TEXT, arguments, run

from bbnet.analysis.statistics import curves_table
from bbnet.analysis.tables import incomplete_note
from bbnet.plots.roc import plot_roc
from bbnet.plots.style import note, read_table, save, use_style
from bbnet.tasks.task import load_metrics


def main(options) -> None:
    use_style()
    items, grid = (read_table(path, options.task, options.model) for path in (options.items, options.grid))
    figure = plot_roc(curves_table(items, load_metrics(options.task).roc_points))
    note(figure, incomplete_note(grid))
    save(figure, options.figures)


run(main, arguments(__doc__, task=TEXT, model=TEXT, items={}, grid={}, figures=PATHS))
