"""Draws figures of the study, or of one task and model, each as .pdf and .png with its data as .csv."""

import importlib
import json
from functools import partial
from pathlib import Path
from types import ModuleType

from common import TEXT, arguments, one_line, run

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bbnet.analysis.summary import Summary
from bbnet.analysis.tables import incomplete_note
from bbnet.data.process import cores, worker_pool
from bbnet.plots.style import note, save, use_style
from bbnet.study.workflow import prefix
from bbnet.tasks.task import load_metrics

SUFFIXES = (".pdf", ".png", ".csv")


def main(options) -> None:
    """Draws the figures in parallel, one process per core of this job."""
    use_style()
    with worker_pool(min(len(options.figures), cores())) as pool:
        list(pool.map(partial(make, options.results, options.task, options.model), options.figures))


def make(results: Path, task: str | None, model: str | None, name: str) -> None:
    """Draws and writes one figure. Errors name the figure."""
    summary = Summary(results / "summary", task, model)
    start = prefix(task, model)
    try:
        panels = name.startswith("panels-")
        figure, data = draw_panels(summary, name) if panels else draw(summary, task and load_metrics(task), name)
        note(figure, incomplete_note(summary.read("grid")))
        save(figure, data, [results / "figures" / f"{start}{name}{suffix}" for suffix in SUFFIXES])
    except Exception as error:
        raise ValueError(f"figure {start}{name}: {one_line(error)}") from error


def draw(summary: Summary, task: ModuleType | None, name: str) -> tuple[Figure, pd.DataFrame]:
    return importlib.import_module(f"bbnet.plots.{name}").draw(summary, task)


def draw_panels(summary: Summary, name: str) -> tuple[Figure, pd.DataFrame]:
    """Draws the panels of the figure `panels-{method}-b{budget}`."""
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
