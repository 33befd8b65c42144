"""`bbnet score`: scores a finished run on another pack, or on data of your own."""

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tabulate import tabulate

from bbnet.analysis.diagnosed import folder_of
from bbnet.cli.knobs import STUDIES, add_knobs, chosen_knobs
from bbnet.cli.runs import record_of
from bbnet.data.store import whole_file
from bbnet.study.config import ConfigError, Knobs, packs_with_path, read_data, read_study
from bbnet.study.discover import has_panels
from bbnet.study.recipe import SCRIPTS, Recipes
from bbnet.study.record import Record, canonical_json, fingerprint, sha256_of
from bbnet.tasks.task import load_metrics

PLACE = "RESULTS_DIR/STUDY/runs/TASK/MODEL/METHOD/BUDGET/SEED"


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score a finished run on another pack or on your own data",
        description="Scores the selected weights of a run on the test data of another pack, and writes metrics.json, "
        "items.parquet, predictions.npz and, beside another run, panels to RESULTS_DIR/STUDY/scores. The data are "
        "prepared as those of the run were, with its labels, its statistics and its vocabulary, and Head, Mid and Tail "
        "are those of its training data. The run is only read.",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help=f"the folder of a run, {PLACE}")
    parser.add_argument(
        "pack",
        nargs="?",
        metavar="PACK",
        help="name of a pack of the task, or its settings, as in a study: '{pack: rendered_objects, seed: 1, ...}'",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="folder or archive in the layout of PACK, of which it may be a part; what only training needs may be "
        "missing. PACK may be left out if the task has one pack with a path, or the run was trained on one.",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="RUN",
        help="a run trained on the same data, to show test cases of both (default: the dense one of the seed, if there "
        "is one)",
    )
    add_knobs(parser, "data_dir", "device")
    parser.set_defaults(run=score_run)


def score_run(options: argparse.Namespace) -> None:
    """Scores a run and prints its metrics. Raises ValueError if it cannot be scored on these data."""
    knobs, record = chosen_knobs(options), record_of(options.run_folder)
    scorer = Scorer(knobs, options.run_folder, record)
    data = chosen_data(scorer.task, scorer.settings["data"], options.pack, options.data)
    beside = options.beside or scorer.dense_run()
    other = None if beside is None else record_of(beside)
    if other is not None and other.config["data"] != record.config["data"]:
        raise ValueError(
            f"{beside}: was trained on other data than {options.run_folder}, so it cannot be shown beside it"
        )
    name, prepared = scorer.prepared(data)
    target = scorer.score(options.run_folder, record, data, name, prepared)
    _print_metrics(scorer.task, target, options.run_folder)
    if other is not None and has_panels(scorer.task):
        scorer.score(beside, other, data, name, prepared)
        scorer.show(target, other, record, name, prepared)
    print(f"\nIn {target}: {', '.join(sorted(path.name for path in target.iterdir() if path.name[0] != '.'))}")


def chosen_data(task: str, own: dict[str, Any], pack: str | None, path: str | None) -> Any:
    """Returns the validated settings of the pack that is scored on; `own` are those that the run was trained on."""
    if pack is None and path is None:
        raise ValueError("what the run is scored on is missing: name a PACK, or a folder by --data PATH")
    local = packs_with_path(task)
    if pack is None and own["pack"] not in local and len(local) != 1:
        raise ValueError(f"--data {path}: PACK is missing, which says how it is laid out; allowed: {', '.join(local)}")
    try:
        given = (own["pack"] if own["pack"] in local else next(iter(local))) if pack is None else yaml.safe_load(pack)
    except yaml.YAMLError as error:
        raise ValueError(f"PACK {pack}: is not valid YAML: {' '.join(str(error).split())}") from None
    given = dict(given) if isinstance(given, dict) else {"pack": given}
    if path is not None:
        if not Path(path).expanduser().exists():
            raise ValueError(f"--data {path}: there is no such folder or archive")
        given |= {"path": path} | ({"complete": False} if "complete" in local.get(str(given.get("pack")), ()) else {})
    return read_data(task, given, "PACK" if path is None else f"PACK or --data {path}")


@dataclass
class Scorer:
    """What the scores of all runs of a study share that were trained on the same data as `run`."""

    knobs: Knobs
    run: Path
    record: Record

    def __post_init__(self) -> None:
        place = Path(os.path.abspath(self.run)).parts
        if len(place) < 8 or place[-6] != "runs":
            raise ValueError(f"{self.run}: must be where a study has put it, at {PLACE}")
        self.results, self.task = Path(*place[:-6]), self.record.config["task"]
        study = read_study(self.results.name, STUDIES)
        if self.task not in study.task_settings():
            raise ConfigError(f"study {self.results.name} has no task {self.task} any more, which says how to score")
        self.scoring = study.task_settings()[self.task].scoring()
        self.recipes = Recipes(study, self.knobs)
        self.trained = Path(self.knobs.data_dir, "prepared", f"{self.record.config['data']}.json")
        if not self.trained.is_file() or sha256_of(self.trained) != self.record.inputs["prepared"]:
            raise ValueError(
                f"{self.trained}: the data that {self.run} was trained on are not there; snakemake data prepares those "
                "of a study"
            )
        self.settings = json.loads(self.trained.read_text(encoding="utf-8")).get("settings")
        if self.settings is None:
            raise ValueError(f"{self.trained}: was made by a version of bbnet that could not score on other data")

    def dense_run(self) -> Path | None:
        """Returns the folder of the dense run of the same seed, unless there is none or it is the run itself."""
        run = self.record.run
        dense = self.results / "runs" / self.task / run["model"] / "dense" / "b1.00" / f"s{run['seed']}"
        return dense if run["method"] != "dense" and (dense / "record.json").is_file() else None

    def prepared(self, data: Any) -> tuple[str, Path]:
        """Fetches and prepares a pack for runs that were trained on the same data; returns its name and its index."""
        home = Path(self.knobs.data_dir)
        fetch = self.recipes.fetch_to_score(self.task, data)
        raw = home / "raw" / f"{data.pack}-{fingerprint(fetch)}.json"
        settings = self.settings | {"data": data.model_dump()}
        prepare = self.recipes.prepare_to_score(self.task, settings, raw.stem, self.record.config["data"])
        key = fingerprint(prepare)
        index = home / "prepared" / f"{self.task}-{key}.json"
        name, partial = f"{data.pack}-{key}", str(home / "partial")
        if not raw.is_file():
            self._job(
                f"fetch-{raw.stem}",
                "fetch",
                config=canonical_json(fetch),
                manifest=raw,
                partial=partial,
                downloads=home / "downloads",
            )
        if not index.is_file():
            self._job(
                f"prepare-{index.stem}",
                "prepare",
                config=canonical_json(prepare),
                raw=raw,
                index=index,
                partial=partial,
                trained=self.trained,
            )
        return name, index

    def score(self, run: Path, record: Record, data: Any, name: str, prepared: Path) -> Path:
        """Scores a run unless that is done already; returns the folder of its scores."""
        target = self.results / "scores" / name / "runs" / folder_of(record.run)
        method = record.config["method"]
        described = {
            "run": record.run,
            "fingerprint": record.fingerprint,
            "data": data.model_dump(),
            "prepared": sha256_of(prepared),
            "scoring": self.scoring,
            "code": self.recipes.score_code(self.task, method["algorithm"], method["weights"]),
        }
        done = target / "score.json"
        if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != described:
            self._job(
                f"score-{name}-{folder_of(record.run).replace('/', '-')}",
                "score",
                run_folder=run,
                device=self.knobs.device,
                described=canonical_json(described),
                trained=self.trained,
                prepared=prepared,
                folder=target,
            )
        return target

    def show(self, target: Path, beside: Record, record: Record, name: str, prepared: Path) -> None:
        """Writes test cases of a run beside another as `panels.npz`, and draws them as `panels.png`."""
        run = record.run
        file = target / "panels.npz"
        self._job(
            f"panels-{name}",
            "panels",
            task=self.task,
            shown=canonical_json({run["model"]: [[folder_of(beside.run), folder_of(record.run)]]}),
            results=self.results / "scores" / name,
            prepared=prepared,
            panels=file,
        )
        # Imported here, since matplotlib takes longer than everything else that this process does.
        from bbnet.plots.style import use_style

        use_style()
        plots = importlib.import_module(f"bbnet.plots.panels_{self.task}")
        figure = plots.plot_panels(np.load(file), run["model"], run["method"], run["budget"])
        with whole_file(target / "panels.png") as partial:
            figure.savefig(partial)

    def _job(self, log: str, script: str, **options: Any) -> None:
        """Runs a script of the workflow, which reports an error itself, in one line."""
        named = {"log": self.results / "logs" / "score" / f"{log}.log", **options}
        arguments = [text for key, value in named.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        command = [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]
        if subprocess.run(command, env=os.environ | {"PYTHONUTF8": "1"}).returncode:
            sys.exit(1)


def _print_metrics(task: str, target: Path, run: Path) -> None:
    """Prints the metrics beside those on the run's own test data."""
    found, own = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for path in (target / "metrics.json", run / "metrics.json")
    )
    rows = [
        (metric.title, *(metric.shown_value(each.get(name, math.nan)) for each in (found, own)))
        for name, metric in load_metrics(task).METRICS.items()
        if name in found
    ]
    print(tabulate(rows, headers=("metric", "on these data", "on the run's own"), disable_numparse=True))
