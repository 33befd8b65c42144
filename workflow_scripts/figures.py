"""Figures of the study, or of one of its tasks and models, each as pdf, png and the csv of what it shows."""

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
from bbnet.tasks.task import load_metrics

SUFFIXES = (".pdf", ".png", ".csv")


def main(options) -> None:
    """Figures are independent: one process per core that this job may use draws them."""
    use_style()
    with worker_pool(min(len(options.figures), cores())) as pool:
        list(pool.map(partial(make, options.results, options.task, options.model), options.figures))


def make(results: Path, task: str | None, model: str | None, name: str) -> None:
    """Draws and writes one figure; raises ValueError naming it."""
    summary = Summary(results / "summary", task, model)
    start = f"{task}-{model}-" if task else ""
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
