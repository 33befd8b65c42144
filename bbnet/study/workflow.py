"""The study as the workflow sees it: checked configuration, runs, and the names of everything that the rules make."""

import csv
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bbnet.study import config as configuration
from bbnet.study.config import ConfigError, Knobs, Study
from bbnet.study.discover import has_buckets, has_pairs, has_panels, has_scaling
from bbnet.study.grid import Run, baselines, dense_run, diagnosed_runs, has_binary_weights, panel_runs, runs
from bbnet.study.machine import gpu_count
from bbnet.study.recipe import Recipes
from bbnet.study.record import run_status

# A task and a model of it. The model is None for figures and tables of all models of the task, and both are None for
# those of the whole study.
Part = tuple[str | None, str | None]
WHOLE_STUDY: Part = (None, None)
SUMMARY = (
    *(f"{name}.csv" for name in ("runs", "cells", "contrasts", "claims", "slabs", "grid", "timing")),
    *(f"{name}.parquet" for name in ("items", "units", "history", "refreshes")),
    *("study.json", "data.json"),
)
COLLECTED = (
    *(f"{name}.csv" for name in ("history", "refreshes", "units", "codes")),
    *(f"{name}.json" for name in ("record", "metrics", "cost")),
    "items.parquet",
)
DIAGNOSED = (
    *("gradient_flow.csv", "gradient_flow_series.csv", "gradient_flow.json"),
    *(f"probe/{name}.csv" for name in ("activations", "weights", "units", "histograms", "alignment")),
)
DIAGNOSTICS = (
    *(f"{name}.csv" for name in ("runs", "verdicts", "activations", "weights", "alignment")),
    *(f"{name}.parquet" for name in ("gradient_flow", "gradient_flow_series", "units", "histograms")),
)
DIAGNOSTIC_FIGURES = ["gradient_norms", "update_ratios", "weight_histograms", "alignment", "on_rates"]
DIAGNOSTIC_TABLES = ["verdicts"]


@dataclass(frozen=True)
class Workflow:
    """A study that was checked and is ready to run.

    Attributes:
        results: folder of the study's results.
        runs: every run of the study by its folder.
        taken: folders of the runs that summary, figures and tables are made from.
        gpus_per_device: GPUs that a job asks for each of its devices on this machine. On a cluster the profile says so.
        remark: what to tell the user before any job starts, if anything.
    """

    knobs: Knobs
    study: Study
    recipes: Recipes
    results: str
    runs: Mapping[str, Run]
    taken: list[str]
    gpus_per_device: int
    remark: str = ""

    @cached_property
    def models(self) -> list[tuple[str, str]]:
        """Task and model of the runs taken."""
        return sorted({(self.runs[folder].task, self.runs[folder].model) for folder in self.taken})

    @cached_property
    def tasks(self) -> list[str]:
        return sorted({task for task, _ in self.models})

    @cached_property
    def devices(self) -> dict[str, int]:
        """Number of devices that a training takes, by task."""
        return {task: settings.training.device_count for task, settings in self.recipes.tasks.items()}

    def environment_of_profiles(self) -> dict[str, str]:
        """Returns the environment variables that resources of a profile may name: `devices`, as a map in Python."""
        return {"BBNET_DEVICES": str(self.devices)}

    @cached_property
    def packs(self) -> dict[str, dict[str, Any]]:
        """Recipe of each pack to fetch, by the name of its raw folder."""
        recipes = self.recipes
        return {
            recipes.raw_key(task, pack): recipes.fetch(task, pack)
            for task in self.tasks
            for pack in recipes.packs(task)
        }

    @cached_property
    def collected_weights(self) -> list[str]:
        """The files of the summary that only studies with binary weights have."""
        return ["weights.csv", "latent.csv"] if has_binary_weights(self.study) else []

    @cached_property
    def contrasted_models(self) -> list[str]:
        """The file of the summary that only studies with a baseline have."""
        return ["model_contrasts.csv"] if baselines(self.study) else []

    @cached_property
    def compared(self) -> list[str]:
        """The tasks whose models are compared: those that name a baseline and have several models."""
        several = [task for task in self.tasks if sum(other == task for other, _ in self.models) > 1]
        return [task for task in several if task in baselines(self.study)]

    @cached_property
    def figures(self) -> dict[Part, list[str]]:
        """Names of the figures of the whole study, of tasks, and of each task and model."""
        return (
            {WHOLE_STUDY: ["coverage"]} | self._of_tasks("steps") | {part: self._figures(*part) for part in self.models}
        )

    @cached_property
    def tables(self) -> dict[Part, list[str]]:
        """Names of the tables of the whole study, of tasks, and of each task and model."""
        of_tasks = self._of_tasks("scaling_table")
        return {WHOLE_STUDY: ["methods"]} | of_tasks | {part: self._tables(*part) for part in self.models}

    def _of_tasks(self, scaling: str) -> dict[Part, list[str]]:
        """Names of what shows all models of a task: the factors that vary, its baseline, and `scaling` by width."""
        varied = self.tasks if self.study.reference is not None else []
        scaled = [task for task in self.tasks if has_scaling(task)]
        named = [(varied, "sensitivity"), (self.compared, "models"), (scaled, scaling)]
        names = {(task, None): [name for tasks, name in named if task in tasks] for task in self.tasks}
        return {part: found for part, found in names.items() if found}

    @cached_property
    def figure_files(self) -> list[str]:
        return _files("figures", self.figures, ("pdf", "png", "csv"))

    @cached_property
    def table_files(self) -> list[str]:
        return _files("tables", self.tables, ("csv", "md", "tex"))

    @cached_property
    def diagnosed(self) -> list[Run]:
        """The runs that diagnostics are made of."""
        return [run for run in diagnosed_runs(self.study) if run.folder in self.taken]

    def compared_with(self, run: Run) -> Run | None:
        """The dense run with whose features those of a run are aligned, if it is among the runs taken."""
        dense = dense_run(self.study, run.task, run.model, run.seed)
        return dense if dense.folder in self.taken else None

    @cached_property
    def diagnosed_parts(self) -> list[Part]:
        """Task and model of the diagnosed runs; of a shipped summary those that it has diagnostics of."""
        if self.knobs.results_from == "runs":
            return sorted({(run.task, run.model) for run in self.diagnosed})
        file = Path(self.results, "summary", "diagnostics", "runs.csv")
        if not file.is_file():
            return []
        with file.open(newline="", encoding="utf-8") as lines:
            return sorted({(row["task"], row["model"]) for row in csv.DictReader(lines)})

    @cached_property
    def diagnostic_files(self) -> list[str]:
        """The figures and tables of diagnostics."""
        return [
            *_files("figures", dict.fromkeys(self.diagnosed_parts, DIAGNOSTIC_FIGURES), ("pdf", "png", "csv")),
            *_files("tables", dict.fromkeys(self.diagnosed_parts, DIAGNOSTIC_TABLES), ("csv", "md", "tex")),
        ]

    def shown_in_panels(self, task: str) -> dict[str, list[tuple[str, str]]]:
        """By model, the folders of the pairs of runs whose test cases are shown side by side, the reference first.

        It is the dense run of the model; that of the baseline for the dense runs of other models, if the task shows
        those. Pairs that are not among the runs taken are left out, and so are models without pairs.
        """
        seed, baseline = self.study.seeds[0], baselines(self.study).get(task)
        shown = {}
        for model in (model for other, model in self.models if other == task and has_panels(task)):
            dense = dense_run(self.study, task, model, seed).folder
            pairs = [(dense, run.folder) for run in panel_runs(self.study, task, model)]
            if baseline not in (None, model) and self.recipes.tasks[task].models_in_panels:
                pairs.append((dense_run(self.study, task, baseline, seed).folder, dense))
            pairs = [pair for pair in pairs if set(pair) <= set(self.taken)]
            if pairs:
                shown[model] = pairs
        return shown

    def _figures(self, task: str, model: str) -> list[str]:
        """Figures that compare with the dense run are left out where there is none."""
        taken = self._taken(task, model)
        dense_seeds = {run.seed for run in taken if run.method == "dense"}
        compared = any(run.method != "dense" and run.seed in dense_seeds for run in taken)
        panels = [self.runs[folder] for _, folder in self.shown_in_panels(task).get(model, [])]
        return [
            *(["headline", "pareto"] if dense_seeds else []),
            *(["contrasts", "claims"] if compared else []),
            *(["by_bucket"] if compared and has_buckets(task) else []),
            *(["roc"] if has_pairs(task) else []),
            "balance",
            *(["line_training"] if self.recipes.tasks[task].training.watch_balance else []),
            "churn",
            "learning_curves",
            *(["weights"] if self._has_binary(taken) else []),
            *(f"panels-{run.method}-b{run.budget}" for run in panels),
        ]

    def _tables(self, task: str, model: str) -> list[str]:
        binary = ["weights_table", "latent_table"] if self._has_binary(self._taken(task, model)) else []
        branches = ["branches"] if self.study.task_settings()[task].models[model].branched else []
        return ["results", "contrasts_table", "costs", *branches, *binary]

    def _taken(self, task: str, model: str) -> list[Run]:
        return [self.runs[folder] for folder in self.taken if folder.startswith(f"{task}/{model}/")]

    def _has_binary(self, taken: Iterable[Run]) -> bool:
        return any(self.study.methods[run.method].weights != "float" for run in taken)

    def shell_prefix(self) -> str:
        """Returns what is put before the shell command of every job, with braces doubled as Snakemake expects.

        Jobs use the Python of this environment, unless they run in a container. Options that no result depends on are
        passed as environment variables, so that changing one does not rerun a job. BBNET_PARENT is the process id of
        Snakemake, with which a job ends. PYTHONUTF8 makes file names and texts UTF-8 in every locale.
        """
        environment = {
            "BBNET_DEVICE": self.knobs.device,
            "BBNET_LIVE": self.knobs.live,
            "BBNET_LIVE_DIR": f"{self.results}/live",
            "BBNET_RESIDENT": self.knobs.resident,
            "BBNET_GPU_SLOTS": self.knobs.gpu_slots,
            "BBNET_CHECKPOINT_MINUTES": self.knobs.checkpoint_minutes,
        }
        assignments = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in environment.items())
        return (
            '[ -n "${{APPTAINER_CONTAINER:-${{SINGULARITY_CONTAINER:-}}}}" ] || '
            f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; "
            f"export PYTHONUTF8=1 BBNET_PARENT=$PPID {assignments}; "
        )

    def remove_outdated(self) -> None:
        """Removes figures and tables of an earlier call that cannot be made from the runs taken now."""
        wanted = {*self.figure_files, *self.table_files, *self.diagnostic_files}
        for kind in ("figures", "tables"):
            for path in Path(self.results, kind).glob("*"):
                if f"{kind}/{path.name}" not in wanted:
                    path.unlink()

    def accept_no_partial_summary(self) -> None:
        """Removes a part of a summary that lacks runs, after `--touch` marked it as up to date.

        Otherwise Snakemake would see no reason to train the runs that are missing, such as those of a new method.
        """
        if self._trained() < len(self.runs):
            Path(self.results, "summary", "grid.csv").unlink(missing_ok=True)

    def _trained(self) -> int:
        return sum(Path(self.results, "runs", folder, "record.json").is_file() for folder in self.runs)

    def success_message(self, touched: bool = False) -> str:
        """Where the results are.

        Args:
            touched: with `--touch`, which makes nothing.
        """
        if touched:
            accepted = f"{self._trained()} of {len(self.runs)} runs exist in {self.results}/runs"
            if not self._trained():
                accepted = f"study {self.knobs.study} was never run, there are no runs in {self.results}/runs"
            return f"--touch only accepts what exists: {accepted}. The command without --touch makes what is missing."
        if not Path(self.results, "figures").is_dir():
            return f"Data are in {self.knobs.data_dir}/."
        return f"Look at {self.results}/report.html, {self.results}/figures/ and {self.results}/tables/."

    def failure_message(self, config: Mapping[str, Any], config_file: Path = Path("config.yaml")) -> str:
        """How many runs failed, and the command that goes on without them.

        Args:
            config: the configuration with what `--config` overrides, to repeat it in the command.
        """
        failed = [folder for folder in self.runs if Path(self.results, "runs", folder, "error.json").is_file()]
        if not failed:
            return (
                "The study is not complete. If it was stopped, the same command resumes it. Otherwise the first error "
                "above says what is wrong, and the log named beside it has the details."
            )
        written = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        overridden = {key: value for key, value in config.items() if str(value) != str(written.get(key))}
        options = {"study": self.knobs.study} | overridden | {"cells": "done"}
        return (
            f"{len(failed)} of {len(self.runs)} cells failed, for example {failed[0]} "
            f"({self.results}/runs/{failed[0]}/error.json has the error). The same command tries them again. To go on "
            "without them: snakemake figures tables --cores all --config "
            + " ".join(f"{key}={value}" for key, value in options.items())
        )


def open_workflow(config: Mapping[str, Any]) -> Workflow:
    """Reads and checks the study that `config` (config.yaml and `--config`) names; raises ConfigError."""
    knobs = configuration.read_knobs(config)
    file = Path("studies", f"{knobs.study}.yaml")
    from_reference = knobs.results_from == "reference"
    if from_reference:
        results = f"results/reference/{knobs.study}"
        study, remark = _reference_study(Path(results, "summary"), file)
        study = configuration.of_tasks(study, knobs.tasks)
    else:
        results = str(Path(knobs.results_dir, knobs.study))
        study, remark = configuration.read_chosen_study(knobs, file.parent), ""
        configuration.check_sources(study, file)
        configuration.check_schedules(study, file)
        configuration.check_writable("data_dir", Path(knobs.data_dir))
        configuration.check_writable("results_dir", Path(knobs.results_dir))
    recipes = Recipes(study, knobs)
    gpus = int(knobs.device == "cuda" or (knobs.device == "auto" and gpu_count() > 0))
    by_folder = {run.folder: run for run in runs(study)}
    taken = list(by_folder)
    if knobs.cells == "done" and not from_reference:
        taken = [
            folder
            for folder, run in by_folder.items()
            if run_status(Path(results, "runs", folder), recipes.run_fingerprint(run))[0] == "done"
        ]
    if not taken:
        raise ConfigError(f"cells=done: no run of study {knobs.study} in {results} is done")
    return Workflow(knobs, study, recipes, results, by_folder, taken, gpus, remark)


def _reference_study(summary: Path, file: Path) -> tuple[Study, str]:
    """Returns the study that a shipped summary was made of, and a remark if the study `file` now says otherwise."""
    if not (summary / "cells.csv").is_file():
        raise ConfigError(f"results_from=reference: no summary of study {file.stem} in {summary.parent}")
    study = configuration.read_summarised_study(summary / "study.json")
    made_of = f"figures and tables show {summary / 'study.json'}"
    try:
        differ = configuration.differing_keys(study, configuration.read_study(file.stem, file.parent))
    except ConfigError as error:
        return study, f"{error}; {made_of}"
    if not differ:
        return study, ""
    return study, (
        f"{file} was edited since {summary} was made, in {', '.join(differ)}: {made_of}, without the edit. "
        "results_from=runs runs the study as it is now."
    )


def forget_trainings(folders: Iterable[str]) -> None:
    """Removes states, records and warm starts from the folders of trainings, which else resume or count as finished."""
    for folder in folders:
        for file in ("state.pt", "record.json", "checkpoint.pt"):
            Path(folder, file).unlink(missing_ok=True)


def prefix(task: str | None, model: str | None) -> str:
    """What the file names of figures and tables begin with."""
    return "".join(f"{name}-" for name in (task, model) if name)


def _files(folder: str, names: Mapping[Part, list[str]], extensions: Iterable[str]) -> list[str]:
    """Returns the paths below the results folder."""
    return [
        f"{folder}/{prefix(*part)}{name}.{extension}"
        for part, of_part in names.items()
        for name in of_part
        for extension in extensions
    ]
