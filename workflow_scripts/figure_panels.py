"""Chosen cases of one method and budget beside dense."""

import importlib

import numpy as np
from common import PATHS, TEXT, arguments, run

from bbnet.analysis.tables import incomplete_note
from bbnet.plots.style import note, read_table, save, use_style


def main(options) -> None:
    use_style()
    plots = importlib.import_module(f"bbnet.plots.panels_{options.task}")
    figure = plots.plot_panels(np.load(options.panels), options.model, options.method, options.budget)
    note(figure, incomplete_note(read_table(options.grid, options.task, options.model)))
    save(figure, options.figures)


run(
    main,
    arguments(__doc__, task=TEXT, model=TEXT, method=TEXT, budget=TEXT, panels={}, grid={}, figures=PATHS),
)
