"""Figures of the study, or of one of its tasks and models, each as pdf, png and the csv of what it shows."""

import importlib
import json
from types import ModuleType

import numpy as np
import pandas as pd
from common import TEXT, arguments, run
from matplotlib.figure import Figure

from bbnet.analysis.summary import Summary
from bbnet.analysis.tables import incomplete_note
from bbnet.plots.style import note, save, use_style
from bbnet.tasks.task import load_metrics

SUFFIXES = (".pdf", ".png", ".csv")


def main(options) -> None:
    use_style()
    summary = Summary(options.results / "summary", options.task, options.model)
    task = None if options.task is None else load_metrics(options.task)
    start = f"{options.task}-{options.model}-" if options.task else ""
    for name in options.figures:
        try:
            figure, data = draw_panels(summary, name) if name.startswith("panels-") else draw(summary, task, name)
            note(figure, incomplete_note(summary.read("grid")))
            save(figure, data, [options.results / "figures" / f"{start}{name}{suffix}" for suffix in SUFFIXES])
        except Exception as error:
            error.add_note(f"figure {start}{name}")
            raise


def draw(summary: Summary, task: ModuleType | None, name: str) -> tuple[Figure, pd.DataFrame]:
    return importlib.import_module(f"bbnet.plots.{name}").draw(summary, task)


def draw_panels(summary: Summary, name: str) -> tuple[Figure, pd.DataFrame]:
    """Of a name `panels-{method}-b{budget}`."""
    _, method, budget = name.split("-")
    panels = np.load(summary.folder / "panels" / f"{summary.task}.npz")
    plots = importlib.import_module(f"bbnet.plots.panels_{summary.task}")
    cases, start = json.loads(str(panels["cases"])), f"{summary.model}/{method}/{budget}/"
    data = pd.DataFrame(
        [{"case": key.removeprefix(start)} | case for key, case in cases.items() if key.startswith(start)]
    )
    return plots.plot_panels(panels, summary.model, method, budget.removeprefix("b")), data


OPTIONAL = TEXT | {"required": False}
run(main, arguments(__doc__, results={}, task=OPTIONAL, model=OPTIONAL, figures=TEXT | {"nargs": "+"}))
