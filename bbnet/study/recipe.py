"""The recipe of each job of the workflow: the configuration that it uses and a fingerprint of the code it depends on.

A recipe is a plain dictionary that becomes a parameter of the Snakemake job, as JSON. `code` is a hash of the files
that the result depends on. Editing one of them runs the job again; a clone or a new algorithm does not.
"""

import importlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from bbnet.data.files import state_of
from bbnet.study.config import ConfigError, Knobs, Study
from bbnet.study.discover import PACKAGE
from bbnet.study.grid import Run, pruned_run, runs, source_run
from bbnet.study.record import code_fingerprint, fingerprint

ROOT = PACKAGE.parent
SCRIPTS = ROOT / "workflow_scripts"
SPARSITY = PACKAGE / "sparsity"
PACKS = PACKAGE / "data" / "packs.yaml"
DEVICES = ("auto", "cpu", "cuda")
# Files of training/; latent.py matters to runs with binary weights alone, and one_shot.py to those of one-shot methods.
NO_RESULT_DEPENDS_ON = {
    "devices.py",
    "diagnose.py",
    "graph.py",
    "latent.py",
    "live.py",
    "one_shot.py",
    "resume.py",
    "step_time.py",
}


class Recipes:
    """The recipes of a study's jobs. Raises ConfigError if the table of packs does not describe the study's data.

    `device` of a recipe is the word by which the device was asked for. A run whose record names a device that is asked
    for now keeps the word of its record, so `cpu` trains nothing again where `auto` was a CPU, nor `auto` anywhere.
    """

    def __init__(self, study: Study, knobs: Knobs) -> None:
        self.study = study
        self.device = knobs.device
        self.compile = knobs.compile
        self.tasks = study.task_settings()
        self.trained = Path(knobs.results_dir, knobs.study, "runs")
        # Cached because every job of the DAG needs these values.
        self.prepared_key = cache(self.prepared_key)
        self.run_fingerprint = cache(self.run_fingerprint)
        self._warm_start = cache(self._warm_start)
        self._state_of = cache(state_of)
        self._as_recorded = cache(self._as_recorded)
        self._warm_up_device = cache(self._warm_up_device)
        self._training_code = cache(_training_code)
        for task in self.tasks:
            for pack in self.packs(task):
                self._published(pack)

    def packs(self, task: str) -> list[BaseModel]:
        """Returns the packs of the task's data and of the weights that its models start from."""
        weights = (getattr(model, "weights", None) for model in self.tasks[task].models.values())
        return [self.tasks[task].data, *(each for each in weights if hasattr(each, "pack"))]

    def fetch(self, task: str, data: BaseModel) -> dict[str, Any]:
        generator = PACKAGE / "data" / "synthetic" / f"{data.pack}.py"
        files = [SCRIPTS / "fetch.py", *_data_code(task), *([generator] if generator.exists() else [])]
        return {"task": task, "data": data.model_dump(), "code": _code(files)} | self._published(data)

    def _published(self, data: BaseModel) -> dict[str, Any]:
        """Returns the state of the file or folder at `path`, if any, and checksums and counts of a published pack."""
        if not hasattr(data, "path"):
            return {}
        try:
            state = None if data.path is None else self._state_of(Path(data.path))
        except OSError as error:
            raise ConfigError(f"{error.filename or data.path}: cannot be read ({error.strerror})") from None
        if not getattr(data, "published", True):
            return {"state": state}
        pack = _packs().get(data.pack)
        if not isinstance(pack, dict) or not isinstance(pack.get("files"), dict):
            raise ConfigError(f"{PACKS}: {data.pack}: must be a map with a map of files")
        return {
            "files": {name: _identity(file) for name, file in pack["files"].items()},
            "counts": pack.get("counts"),
            "state": state,
        }

    def prepare(self, task: str) -> dict[str, Any]:
        later = {"models", "baseline", "training", "slabs", *self.tasks[task].scoring()}
        settings = self.tasks[task].model_dump(exclude=later)
        raw = self.raw_key(task, self.tasks[task].data)
        return {"task": task, "settings": settings, "raw": raw, "code": _prepare_code(task)}

    def fetch_to_score(self, task: str, data: BaseModel) -> dict[str, Any]:
        """Returns the recipe of a pack of which only test is needed."""
        return self.fetch(task, data) | {"asked": {"test_only": True}}

    def prepare_to_score(self, task: str, settings: dict[str, Any], raw: str, trained: str) -> dict[str, Any]:
        """Returns the recipe of test of the raw pack `raw`, for runs on the prepared data with the key `trained`."""
        return {"task": task, "settings": settings, "raw": raw, "trained": trained, "code": _prepare_code(task)}

    def score_code(self, task: str, algorithm: str, weights: str) -> str:
        """Returns the fingerprint of the code that the scores of a run depend on."""
        return self._training_code("score", task, algorithm, weights)

    def raw_key(self, task: str, data: BaseModel) -> str:
        """Returns the name of the raw pack's folder, `{pack}-{key}`."""
        return f"{data.pack}-{fingerprint(self.fetch(task, data))}"

    def prepared_key(self, task: str) -> str:
        """Returns the name of the folder of prepared data, `{task}-{key}`."""
        return f"{task}-{fingerprint(self.prepare(task))}"

    def warm_up(self, task: str, model: str, seed: int) -> dict[str, Any]:
        return self._warm_up(task, model, seed, self._warm_up_device(task, model, seed))

    def train(self, run: Run) -> dict[str, Any]:
        device, warm_up_device = self._as_recorded(run) or (self.device, self._warm_up_device(*_warm_up_of(run)))
        return self._train(run, device, warm_up_device)

    def _warm_up(self, task: str, model: str, seed: int, device: str) -> dict[str, Any]:
        settings = self.tasks[task]
        source = source_run(self.study, task, model, seed)
        recipe = {
            "task": task,
            "model": self._network(task, model),
            "training": settings.training_of(model).model_dump(),
            "slabs": settings.slabs,
            "method": {"algorithm": "dense"},
            "seed": seed,
            "cpu_threads": self.study.cpu_threads,
            "device": device,
            "deterministic": self.study.deterministic,
            "precision": self.study.precision,
            "compile": self.compile,
            "data": self.prepared_key(task),
            "code": self._training_code("warm_up", task, "dense"),
        }
        if source is None:
            return recipe
        return recipe | {"source": {"run": source.folder, "fingerprint": self.run_fingerprint(source)}}

    def _network(self, task: str, model: str, *without: str) -> dict[str, Any]:
        """Returns the settings of a model that are not of its training."""
        settings = self.tasks[task].models[model]
        return settings.model_dump(exclude={*settings.of_training, *without})

    def _train(self, run: Run, device: str, warm_up_device: str) -> dict[str, Any]:
        warm_up = self._warm_up(*_warm_up_of(run), device)
        chosen = self.study.methods[run.method]
        method = chosen.model_dump(exclude={"sparsity"})
        recipe = warm_up | {
            "method": method,
            "budget": run.budget,
            "smallest_budget": min(self.study.budgets),
            "sparsity": self.study.sparsity_of(chosen).model_dump(),
            "latest_freeze": self.study.latest_freeze(run.task),
            "warm_start": self._warm_start(*_warm_up_of(run), warm_up_device),
            "code": self._training_code("train", run.task, method["algorithm"], method["weights"]),
        }
        dense = pruned_run(self.study, run)
        if dense is None:
            return recipe
        return recipe | {
            "dense": self.run_fingerprint(dense),
            "calibration_seeds": self.study.calibration_seeds,
            "one_shot_code": _code([PACKAGE / "training" / "one_shot.py", *(SPARSITY / "one_shot").glob("*.py")]),
        }

    def _warm_start(self, task: str, model: str, seed: int, device: str) -> str:
        return fingerprint(self._warm_up(task, model, seed, device))

    def _as_recorded(self, run: Run) -> tuple[str, str] | None:
        """Returns the words for the device of a finished run and of its warm-up, if nothing else of it would change."""
        try:
            record = json.loads((self.trained / run.folder / "record.json").read_bytes())
            device, warm_start = record["config"]["device"], record["config"]["warm_start"]
            used = "cpu" if record["device"] == "cpu" else "cuda"
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if self.device in ("auto", used):
            for warm_up_device in DEVICES:
                if self._warm_start(*_warm_up_of(run), warm_up_device) == warm_start:
                    same = fingerprint(self._train(run, device, warm_up_device)) == record.get("fingerprint")
                    return (device, warm_up_device) if same else None
        return None

    def _warm_up_device(self, task: str, model: str, seed: int) -> str:
        """Returns the word for the device of a warm-up, which is that of the finished runs that started from it."""
        started = (run for run in runs(self.study) if _warm_up_of(run) == (task, model, seed))
        recorded = next(filter(None, map(self._as_recorded, started)), None)
        return self.device if recorded is None else recorded[1]

    def diagnose(self, run: Run, dense: Run | None) -> dict[str, Any]:
        """Returns what the diagnostics of a run depend on; `dense` is the run that it is compared with, if any."""
        asked = self.study.diagnostics
        files = [SCRIPTS / "diagnose.py", PACKAGE / "training" / "diagnose.py", *(PACKAGE / "diagnostics").glob("*.py")]
        return {
            "run": self.run_fingerprint(run),
            "dense": None if dense is None else self.run_fingerprint(dense),
            "settings": {"steps": asked.steps, "every": asked.every, "layers": asked.layers},
            "code": _code(files),
        }

    def step_key(self, task: str, model: str) -> str:
        """Returns a key of everything but the machine that the time of a training step depends on."""
        settings = self.tasks[task]
        of_no_matter = {"epochs", "warm_up_epochs", "learning_rate", "rise", "large_batch", "nesterov", "devices"}
        not_inputs = {"models", "baseline", "training", "slabs", "faults", *settings.scoring()}
        step = {
            "model": self._network(task, model, "weights"),
            "training": settings.training.on_one_device().model_dump(exclude=of_no_matter),
            "inputs": settings.model_dump(exclude=not_inputs),
            "cpu_threads": self.study.cpu_threads,
            "precision": self.study.precision,
        }
        return f"{task}-{fingerprint(step)}"

    def run_fingerprint(self, run: Run) -> str:
        """Returns the fingerprint that the `record.json` of the finished run contains."""
        return fingerprint(self.train(run))


def _warm_up_of(run: Run) -> tuple[str, str, int]:
    return run.task, run.model, run.seed


def _identity(file: Any) -> Any:
    """Returns the entries that identify a file, which its size and addresses do not."""
    return {key: file[key] for key in sorted(file) if key not in ("urls", "size")} if isinstance(file, dict) else None


@cache
def _packs() -> dict[str, Any]:
    """Reads the table of published packs; raises ConfigError if it is not valid."""
    try:
        table = yaml.safe_load(PACKS.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{PACKS}: cannot be read: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{PACKS}: must be a map of packs, found {type(table).__name__}")
    return table


def summary_code(script: str) -> str:
    """Returns the fingerprint of a script for the summary, figures or tables, and of the code that these share."""
    folders = [PACKAGE / "analysis", PACKAGE / "plots"]
    elsewhere = ("binary/half_range.py", "diagnostics/thresholds.py", "models/settings/big_little.py")
    others = [PACKAGE / file for file in elsewhere]
    return _code([SCRIPTS / f"{script}.py", *others, *(file for folder in folders for file in folder.rglob("*.py"))])


def page_code() -> str:
    """Returns the fingerprint of the code, template and texts of the page of all figures and tables."""
    texts = [PACKAGE / "analysis" / "page.html.j2", ROOT / "docs" / "deviations.md", *(ROOT / "report").glob("*.rst")]
    return fingerprint({"summary": summary_code("page"), "texts": _code(texts)})


def buckets_code(task: str) -> str:
    """Returns the fingerprint of the code that computes Head, Mid and Tail of a task."""
    return _code([SCRIPTS / "buckets.py", PACKAGE / "tasks" / "buckets.py", PACKAGE / "tasks" / task / "buckets.py"])


def task_code(script: str, task: str) -> str:
    """Returns the fingerprint of `summary_code`, the task's folder and the code that metrics of several tasks share."""
    metrics = [PACKAGE / "tasks" / f"{name}.py" for name in ("buckets", "ratios")]
    own = _code([*metrics, *(PACKAGE / "tasks" / task).rglob("*.py")])
    return fingerprint({"summary": summary_code(script), "task": own})


def _prepare_code(task: str) -> str:
    return _code([SCRIPTS / "prepare.py", *_data_code(task)])


def _data_code(task: str) -> list[Path]:
    """Returns the files of the task's module or package `data` and of the code that all tasks' data share."""
    folder = PACKAGE / "tasks" / task
    shared = [PACKAGE / "data" / f"{name}.py" for name in ("files", "image_folders", "images", "pieces", "store")]
    return [*folder.glob("data.py"), *folder.glob("data/*.py"), *shared]


def _training_code(script: str, task: str, algorithm: str, weights: str = "float") -> str:
    """Returns the fingerprint of a training script and of all code that its result depends on."""
    binarizer = [PACKAGE / "binary" / f"{name}.py" for name in ("binarizer", "half_range")]
    binary = [] if weights == "float" else [*binarizer, PACKAGE / "training" / "latent.py"]
    core = [*SPARSITY.glob("*.py"), *(SPARSITY / folder / "__init__.py" for folder in ("algorithms", "parameters"))]
    analysis = [PACKAGE / "analysis" / f"{name}.py" for name in ("alignment", "balance")]
    data = [PACKAGE / "data" / f"{name}.py" for name in ("pieces", "store")]
    shared = [*(PACKAGE / "tasks").glob("*.py"), *data, *analysis]
    folders = [PACKAGE / "training", PACKAGE / "tasks" / task]
    files = [file for folder in folders for file in folder.rglob("*.py") if file.name not in NO_RESULT_DEPENDS_ON]
    own = [path for folder in ("algorithms", "parameters") for path in SPARSITY.glob(f"{folder}/{algorithm}.py")]
    return _code([SCRIPTS / f"{script}.py", *core, *shared, *files, *own, *binary, *_networks(task)])


def _networks(task: str) -> list[Path]:
    """Returns the files of `bbnet.models` that a task uses: the modules and packages of `NETWORKS` in its settings."""
    names = getattr(importlib.import_module(f"bbnet.tasks.{task}.settings"), "NETWORKS", ())
    home = PACKAGE / "models"
    of_names = [[*home.rglob(f"{name}.py"), *home.glob(f"{name}/*.py")] for name in names]
    return [file for files in of_names for file in sorted(files)]


def _code(files: Iterable[Path]) -> str:
    return code_fingerprint(ROOT, files)
