"""`bbnet graph`: the layers of a network of a study, and its graph for TensorBoard, without training it."""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bbnet.cli import own_process
from bbnet.cli.knobs import STUDIES, add_knobs, chosen_knobs
from bbnet.cli.runs import naming
from bbnet.data.store import whole_file
from bbnet.study.config import ConfigError, Study, read_study

HEADINGS = ("layer", "type", "output", "parameters", "MACs", "side in", "side out")


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "graph",
        help="show the layers of a network and write its graph for TensorBoard, without training it",
        description="Shows the layers of a network of a study: the shape of the output for one sample, parameters, "
        "multiply-adds (MACs; a MAC is two FLOPs), and which weights are slabs on either side, as units x fan. Writes "
        "the table as layers.csv, and the graph of the network for TensorBoard, to RESULTS_DIR/STUDY/graph/TASK/MODEL. "
        "The data need not be there: lengths and numbers of classes that only they tell are estimated.",
    )
    parser.add_argument("study", metavar="STUDY", help="name of a file in studies/, without .yaml")
    parser.add_argument("task", metavar="TASK", help="a task of the study")
    parser.add_argument("model", metavar="MODEL", help="label of a model of the task")
    parser.add_argument("--layers", action="store_true", help="only show the table and write no file")
    add_knobs(parser, "results_dir")
    parser.set_defaults(run=show_graph)


def show_graph(options: argparse.Namespace) -> None:
    """Shows and writes table and graph. Raises ValueError if there is no such model, or it cannot be traced."""
    knobs = chosen_knobs(options)
    study = read_study(knobs.study, STUDIES)
    _check_model(study, knobs.study, options.task, options.model)
    folder = None if options.layers else Path(knobs.results_dir, knobs.study, "graph", options.task, options.model)
    rows = pd.DataFrame(_layers(study, options.task, options.model, folder))
    shown = rows.set_axis(HEADINGS, axis="columns")
    for heading in ("parameters", "MACs"):
        shown[heading] = [f"{value:,}" for value in shown[heading]]
    alignment = ("left", "left", "left", "right", "right", "left", "left")
    print(tabulate(shown, headers="keys", showindex=False, disable_numparse=True, colalign=alignment))
    print("\nMACs: multiply-adds for one sample, dense; a MAC is two FLOPs. Sides: units x fan of each slab.")
    if folder is not None:
        with naming(folder / "layers.csv"), whole_file(folder / "layers.csv") as partial:
            rows.to_csv(partial, index=False)
        print(f"Table and graph are in {folder}: tensorboard --logdir {folder}")


def _check_model(study: Study, name: str, task: str, model: str) -> None:
    """Raises ConfigError if the study has no such task or model."""
    tasks = study.task_settings()
    if task not in tasks:
        raise ConfigError(f"study {name} has no task {task!r}; allowed: {', '.join(tasks)}")
    if model not in tasks[task].models:
        raise ConfigError(
            f"task {task} of study {name} has no model {model!r}; allowed: {', '.join(tasks[task].models)}"
        )


def _layers(study: Study, task: str, model: str, folder: Path | None) -> list[dict[str, Any]]:
    """Returns the rows of the layers; the process that computes them also writes the graph to `folder`."""
    target = [] if folder is None else ["--folder", str(folder)]
    try:
        return own_process.call("bbnet.training.graph", study, task, model, *target)
    except ValueError as error:
        raise ValueError(f"{task} {model}: {error}") from None
