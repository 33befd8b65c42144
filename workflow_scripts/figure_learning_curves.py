"""Learning curves of a task and model."""

from common import PATHS, TEXT, arguments, run

from bbnet.analysis.tables import incomplete_note
from bbnet.plots.learning_curves import plot_learning_curves
from bbnet.plots.style import note, read_table, save, use_style
from bbnet.tasks.task import load_metrics


def main(options) -> None:
    use_style()
    history, grid = (read_table(path, options.task, options.model) for path in (options.history, options.grid))
    figure = plot_learning_curves(history, load_metrics(options.task).SELECTION)
    note(figure, incomplete_note(grid))
    save(figure, options.figures)


run(main, arguments(__doc__, task=TEXT, model=TEXT, history={}, grid={}, figures=PATHS))
