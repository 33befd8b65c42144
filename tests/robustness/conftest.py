"""Scripts of the workflow as processes of their own, which tests stop, starve and disturb."""

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bbnet.study.config import Knobs, read_study
from bbnet.study.grid import Run, runs
from bbnet.study.recipe import Recipes
from bbnet.study.record import TRAINED, canonical_json, fingerprint
from tests.workflow.conftest import MICRO

ROOT = Path(__file__).parents[2]
STUDY = MICRO | {
    "methods": MICRO["methods"] | {"rigl": {"algorithm": "rigl", "side": "in"}, "topk": {"algorithm": "topk"}}
}
STEPS_PER_EPOCH = 8
SCORED = ("items.parquet", "predictions.npz", "units.csv", "codes.csv", "metrics.json", "cost.json")
PRELOADED = ["torch", "bbnet.training.runs", "bbnet.tasks.change.task"]
# Runs a script as `python SCRIPT ARGUMENTS` does, after a prelude.
CODE = """
import os, runpy, sys
output = os.open({output!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(output, 1)
os.dup2(output, 2)
sys.path.insert(0, os.path.dirname({script!r}))
sys.argv = [{script!r}, *{arguments!r}]
exec({prelude!r}, {{"__name__": "prelude"}})
runpy.run_path({script!r}, run_name="__main__")
"""


@dataclass
class Script:
    """A script that runs, or ran, in a process of its own, forked from one that has imported torch."""

    process: ForkServerProcess
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def status(self) -> int:
        """Its exit status, waited for; minus the signal that ended it."""
        self.process.join(120)
        assert self.process.exitcode is not None, "it still runs"
        return self.process.exitcode

    def said(self) -> list[str]:
        """The lines that it printed."""
        self.process.join(120)
        return self.output.read_text().splitlines()


@dataclass
class Workbench:
    """The data and the warm start of `STUDY`, and the scripts that work on its runs.

    A prelude is code that a script's process executes first.
    """

    root: Path
    context: Any
    started: int = 0
    finished: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.root / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
        self.study = read_study("study", self.root)
        self.recipes = Recipes(self.study, Knobs(study="study", device="cpu"))
        self.runs = {run.method: run for run in runs(self.study)}

    def start(self, script: str, *arguments: object, prelude: str = "", log: Path | None = None) -> Script:
        self.started += 1
        output = self.root / f"{self.started}-{script}.txt"
        code = CODE.format(
            output=str(output),
            script=str(ROOT / "workflow_scripts" / f"{script}.py"),
            arguments=[*map(str, arguments), "--log", str(log or output.with_suffix(".log"))],
            prelude=prelude,
        )
        process = self.context.Process(target=exec, args=(code, {}))
        process.start()
        return Script(process, output)

    def made(self, script: str, *arguments: object) -> None:
        done = self.start(script, *arguments)
        assert done.status() == 0, done.said()

    @property
    def data(self) -> Path:
        return self.root / "data"

    @cached_property
    def prepared(self) -> Path:
        """Index of the prepared data."""
        settings = self.recipes.tasks["change"]
        manifest = self.data / "raw" / f"{self.recipes.raw_key('change', settings.data)}.json"
        index = self.data / "prepared" / f"{self.recipes.prepared_key('change')}.json"
        partial = ["--partial", self.data / "partial"]
        fetch = canonical_json(self.recipes.fetch("change", settings.data))
        self.made("fetch", "--config", fetch, "--manifest", manifest, "--downloads", self.data / "downloads", *partial)
        prepare = canonical_json(self.recipes.prepare("change"))
        self.made("prepare", "--config", prepare, "--raw", manifest, "--index", index, *partial)
        return index

    def warm_up(self, folder: Path, prelude: str = "") -> Script:
        config = self.recipes.warm_up("change", "tiny", 0)
        arguments = ["--config", canonical_json(config), "--fingerprint", fingerprint(config), "--folder", folder]
        return self.start("warm_up", *arguments, "--prepared", self.prepared, "--weights", prelude=prelude)

    @cached_property
    def warm_start(self) -> Path:
        folder = self.root / "results" / "warm_up" / "change" / "tiny" / "s0"
        done = self.warm_up(folder)
        assert done.status() == 0, done.said()
        return folder / "checkpoint.pt"

    def arguments_of_training(
        self, method: str, folder: Path, warm_start: Path | None = None, fingerprint: str | None = None
    ) -> list[object]:
        run: Run = self.runs[method]
        return [
            *("--run", canonical_json(asdict(run))),
            *("--config", canonical_json(self.recipes.train(run))),
            *("--fingerprint", fingerprint or self.recipes.run_fingerprint(run)),
            *("--scoring", canonical_json(self.recipes.tasks[run.task].scoring())),
            *("--prepared", self.prepared),
            *("--warm-start", warm_start or self.warm_start),
            *("--folder", folder),
            "--buckets",
        ]

    def train(self, method: str, folder: Path, prelude: str = "", log: Path | None = None, **other: Any) -> Script:
        return self.start("train", *self.arguments_of_training(method, folder, **other), prelude=prelude, log=log)

    def undisturbed(self, method: str) -> dict[str, Any]:
        """`outcome` of a training that went through."""
        if method not in self.finished:
            self.finished[method] = self.root / "undisturbed" / method
            done = self.train(method, self.finished[method])
            assert done.status() == 0, done.said()
        return outcome(self.finished[method])


def outcome(folder: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on interruptions: the bytes of its files, and its record."""
    record = json.loads((folder / "record.json").read_text())
    for name in ("began", "seconds", "interruptions", "peak_memory_mib"):
        del record[name]
    left = {path.name for path in folder.iterdir()} - {*TRAINED, *SCORED, "record.json", ".lock"}
    files = {name: (folder / name).read_bytes() for name in (*TRAINED, *SCORED)}
    return files | {"record": record, "left behind": left}


def interruptions(folder: Path) -> int:
    return json.loads((folder / "record.json").read_text())["interruptions"]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    yield Workbench(tmp_path_factory.mktemp("bench"), context)
