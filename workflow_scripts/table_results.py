"""The results of a task and model: every method and budget, as csv, Markdown and LaTeX."""

import pandas as pd
from common import TEXT, arguments, run, write_frame, write_text

from bbnet.analysis.tables import incomplete_note, latex, markdown, results_table, shown_table
from bbnet.tasks.task import load_metrics

FEW_SEEDS = 3


def main(options) -> None:
    cells = pd.read_csv(options.cells, dtype={"budget": str})
    cells = cells[(cells["task"] == options.task) & (cells["model"] == options.model)]
    metrics = {name: metric.unit for name, metric in load_metrics(options.task).METRICS.items() if metric.shown}
    table = results_table(cells, metrics)
    shown = shown_table(table, metrics)
    grid = pd.read_csv(options.grid, dtype={"budget": str})
    caption = (
        f"{options.task}, {options.model}: mean over seeds on test, 95 % interval in brackets. Churn: share of the "
        "connections changed by a refresh at the budget; units at k_min or below, and silent on dev: shares of all."
    )
    if table["seeds"].min() < FEW_SEEDS:
        caption += " With so few seeds the intervals are wide (t is 12.7 for two), and they are not clipped."
    if note := incomplete_note(grid[(grid["task"] == options.task) & (grid["model"] == options.model)]):
        caption += f" {note.capitalize()}."
    write_frame(options.csv, table)
    write_text(options.md, markdown(shown, caption))
    write_text(options.tex, latex(shown, caption))


run(main, arguments(__doc__, task=TEXT, model=TEXT, cells={}, grid={}, csv={}, md={}, tex={}))
