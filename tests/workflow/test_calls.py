"""Calls as people write them: other spellings, another locale, cleaned folders, another word for the same device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.workflow.test_study import AGAIN, RUN

# One worker runs the micro study for all tests.
pytestmark = pytest.mark.xdist_group("workflow")

SP_OUT = {"algorithm": "budgeted_broadcast", "side": "out"}
WARM_UP = "results/micro/warm_up"


@pytest.fixture
def with_another_method(project, study):
    """A project in which the micro study has run, to which a method was added since."""
    study["methods"]["sp_out"] = SP_OUT
    project.write_study(study)
    return project


def test_an_edit_is_seen_however_the_folders_are_written(with_another_method, monkeypatch):
    """And nothing else is made again."""
    root = with_another_method.root
    monkeypatch.setenv("PROJECT", str(root))
    for folders in (
        ("results_dir=results/", f"data_dir={root}/data"),
        ("results_dir=$PROJECT//results", "data_dir=./data/"),
    ):
        assert with_another_method.planned("--config", *folders) == {"train": 1, "panels": 1} | AGAIN, folders


def test_the_device_that_auto_was_runs_nothing_again(finished):
    word = "cuda" if torch.cuda.is_available() else "cpu"
    assert finished.planned("--config", f"device={word}") == {}


def test_touching_a_study_that_was_never_run_says_so(empty_project, tmp_path):
    project = empty_project.copy(tmp_path / "project")
    result = project.snakemake("--touch")
    assert result.returncode == 0, result.stdout
    assert "study micro was never run" in result.stdout
    assert "Data are in" not in result.stdout
    assert project.planned() == {"fetch": 1, "prepare": 1, "warm_up": 1, "train": 3, "panels": 1} | AGAIN


@pytest.mark.parametrize(
    "cleaned",
    [
        ("data", WARM_UP),
        pytest.param(("data",), marks=pytest.mark.thorough),
        pytest.param((WARM_UP,), marks=pytest.mark.thorough),
    ],
    ids="+".join,
)
def test_after_a_cleaning_only_the_method_that_was_added_trains(with_another_method, cleaned):
    """As scratch folders are. Data are then made again; finished runs are known by their records."""
    project = with_another_method
    records = sorted(project.root.glob(f"{RUN}/*/*/*/record.json"))
    # On a GPU a warm start that is made again has other bytes.
    record = json.loads(records[0].read_text())
    record["inputs"]["warm_start"] = "0" * 64
    records[0].write_text(json.dumps(record))
    before = [path.read_bytes() for path in records]
    for folder in cleaned:
        shutil.rmtree(project.root / folder)
    result = project.snakemake("--until", "train")
    assert result.returncode == 0, result.stdout[-5000:]
    assert [path.read_bytes() for path in records] == before
    assert result.stdout.count("is trained, by its record") == len(records) == 3
    assert result.stdout.count("is trained, by its checkpoint") == (cleaned == ("data",))
    assert (project.root / RUN / "sp_out/b0.50/s0/record.json").is_file()
    assert project.planned() == {"panels": 1} | AGAIN


def test_touching_does_not_hide_a_method_that_was_added(with_another_method):
    """Also after the code was edited, and the data made again, which would score finished runs again."""
    project = with_another_method
    with (project.root / "bbnet/sparsity/masks.py").open("a") as file:
        file.write("# edited\n")
    index = next(project.root.glob("data/prepared/*.json"))
    index.write_bytes(index.read_bytes() + b"\n")
    assert project.planned()["train"] == 4
    result = project.snakemake("--touch")
    assert result.returncode == 0, result.stdout
    assert "3 of 4 runs exist in results/micro/runs" in result.stdout
    assert project.planned() == {"train": 1, "panels": 1} | AGAIN


@pytest.mark.thorough
def test_what_starts_from_a_warm_up_that_is_forced_trains_again(project):
    result = project.snakemake("--until", "train", "--forcerun", "warm_up")
    assert result.returncode == 0, result.stdout[-5000:]
    assert "is trained, by" not in result.stdout


@pytest.fixture(scope="session")
def latin1(tmp_path_factory) -> dict[str, str]:
    """The environment of a locale whose texts are in Latin-1."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "--no-archive", "-i", "en_US", "-f", "ISO-8859-1", folder / "en_US.ISO-8859-1"]
    if shutil.which("localedef") is None or subprocess.run(command, capture_output=True).returncode > 1:
        pytest.skip("this system cannot make a locale in Latin-1")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}


def test_a_study_in_a_latin1_locale_gives_the_same_bytes(project, finished, latin1, study):
    """From the runs to the tables; the study's description is in Greek, which the locale lacks."""
    results = project.root / "results/micro"
    for made in ("summary", "tables"):
        shutil.rmtree(results / made)
    study["description"] = "Μία μελέτη"
    project.write_study(study)
    result = project.snakemake("tables", **latin1)
    assert result.returncode == 0, result.stdout[-5000:]
    assert json.loads((results / "summary/study.json").read_text(encoding="utf-8"))["description"] == "Μία μελέτη"
    twins = [*results.glob("tables/*"), *results.glob("summary/c*.csv")]
    assert len(twins) == 4 * 3 + 3
    for path in twins:
        assert path.read_bytes() == (finished.root / path.relative_to(project.root)).read_bytes(), path
    assert not (results / "tables/methods.md").read_text(encoding="utf-8").isascii()


@pytest.mark.thorough
def test_a_whole_study_in_a_latin1_locale(empty_project, finished, latin1, tmp_path):
    project = empty_project.copy(tmp_path / "project")
    result = project.snakemake(**latin1)
    assert result.returncode == 0, result.stdout[-5000:]
    for made in ("report.html", "summary/study.json", "summary/data.json", "summary/runs.csv"):
        path = Path("results/micro", made)
        assert (project.root / path).is_file()
        if made != "report.html":  # which says how long the study took
            assert (project.root / path).read_bytes() == (finished.root / path).read_bytes(), path


def test_the_command_prints_what_a_latin1_terminal_can_show(finished, latin1):
    code = "from bbnet import cli; cli._run = lambda arguments: print('\\u0394WER \\xb1 1'); cli.main([])"
    environment = os.environ | {"PYTHONPATH": str(finished.root)} | latin1
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout == "?WER ± 1\n".encode("latin-1"), done.stderr
