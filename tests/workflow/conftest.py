"""A copy of the project with a study of seconds, run once; tests look at it, or at copies of it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bbnet.cli import main

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "config.yaml", "bbnet", "rules", "workflow_scripts", "profiles", "studies", "report", "docs")

MICRO = {
    "seeds": [0],
    "budgets": [0.5],
    "methods": {
        "dense": {"algorithm": "dense"},
        "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
        "magnitude": {"algorithm": "magnitude", "side": "in"},
    },
    "tasks": {
        "change": {
            "data": {"pack": "aerial_scenes", "size": 32, "train": 16, "val": 4, "test": 6},
            "tile": 32,
            "models": {"tiny": {"widths": [8, 8]}},
            "training": {"epochs": 3, "warm_up_epochs": 1, "batch_size": 2, "learning_rate": 0.003},
        }
    },
}


@dataclass
class Project:
    """A folder with the project in it, in which snakemake runs."""

    root: Path

    def snakemake(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs `snakemake --cores 2`, study micro unless told otherwise; stdout and stderr together in `stdout`."""
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root)} | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs per rule that a dry run plans, without the targets `all`, `figures` and `tables`."""
        result = self.snakemake("--dry-run", *arguments)
        assert result.returncode == 0, result.stdout
        _, _, stats = result.stdout.partition("Job stats:")
        jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", stats, re.MULTILINE)}
        return {rule: count for rule, count in jobs.items() if rule not in ("all", "figures", "tables", "total")}

    def write_study(self, study: dict, name: str = "micro") -> None:
        (self.root / "studies" / f"{name}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

    def copy(self, target: Path) -> "Project":
        shutil.copytree(self.root, target, dirs_exist_ok=True)
        return Project(target)


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def vouch_again(run: Path) -> None:
    """The hashes of the files as they are now: what a forger would do."""
    hashes = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in recorded(run)["files"]}
    edit_json(run / "record.json", lambda record: record.update(files=hashes))


def recorded(run: Path) -> dict:
    return json.loads((run / "record.json").read_text())


def verify(capsys, *runs: Path) -> str:
    """What it says of runs that it refuses."""
    with pytest.raises(SystemExit) as refused:
        main(["verify", *map(str, runs)])
    assert f"of {len(runs)} runs do not match their records" in str(refused.value)
    return capsys.readouterr().out


@pytest.fixture
def study() -> dict:
    """A copy of the micro study, to change."""
    return deepcopy(MICRO)


def build_project(root: Path) -> Project:
    """The project in a folder of its own."""
    root.mkdir(exist_ok=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / part)
    return Project(root)


@pytest.fixture(scope="session")
def empty_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project and the micro study, nothing run."""
    project = build_project(tmp_path_factory.mktemp("project"))
    project.write_study(MICRO)
    knobs = project.root / "config.yaml"
    knobs.write_text(knobs.read_text().replace("study: demo", "study: micro"))
    return project


@pytest.fixture(scope="session")
def finished(empty_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the micro study has run to its end; tests must not change it."""
    project = empty_project.copy(tmp_path_factory.mktemp("finished"))
    result = project.snakemake()
    assert result.returncode == 0, result.stdout[-5000:]
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A private copy of the project in which the micro study has run."""
    return finished.copy(tmp_path / "project")
