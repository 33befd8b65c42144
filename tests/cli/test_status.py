"""What `bbnet status` says of a results folder in which runs are done, failed, stale, missing or running."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bbnet.cli import main
from bbnet.study import grid
from bbnet.study.config import Knobs, read_study
from bbnet.study.recipe import Recipes

ROOT = Path(__file__).parents[2]
CHANGE = {
    "data": {"pack": "aerial_scenes", "size": 64, "train": 10, "val": 4, "test": 6},
    "tile": 32,
    "models": {"tiny": {"widths": [8, 8]}, "wide": {"widths": [16, 16]}},
    "training": {"epochs": 7, "warm_up_epochs": 2, "batch_size": 8, "learning_rate": 0.003},
}
STUDY = {
    "seeds": [0, 1, 2],
    "budgets": [0.5],
    "methods": {"dense": {"algorithm": "dense"}, "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"}},
    "tasks": {"change": CHANGE},
}
SP_IN = "change/tiny/sp_in/b0.50"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with config.yaml and the study micro, in which commands run."""
    shutil.copy(ROOT / "config.yaml", tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "micro.yaml").write_text(yaml.safe_dump(STUDY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def leave(project):
    """Writes what a run leaves in its folder; a fingerprint that is not given is the one asked for."""
    study = read_study("micro", project / "studies")
    recipes = Recipes(study, Knobs(study="micro"))
    wanted = {run.folder: recipes.run_fingerprint(run) for run in grid.runs(study)}

    def write(run: str, **files: dict) -> Path:
        folder = project / "results" / "micro" / "runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps({"fingerprint": wanted[run]} | content))
        return folder

    return write


@pytest.fixture
def snakemake(project):
    """Starts a process called snakemake in the folder."""
    started = []

    def start(where: Path = project) -> None:
        script = "import sys; print(flush=True); sys.stdin.read()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-c", script, "bin/snakemake"], cwd=where, **pipes))
        started[-1].stdout.readline()

    yield start
    for process in started:
        process.communicate()


def mark(output: str, age: float = 0.0) -> None:
    """As Snakemake 9 does when a job that makes `output` begins; `age` in seconds."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    *folders, last = [name[start : start + 254] for start in range(0, len(name), 254)]
    path = Path(".snakemake", "incomplete", *(f"@{part}" for part in folders), last)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"external_jobid": None}))
    os.utime(path, (time.time() - age, time.time() - age))


def status(capsys, *arguments: str) -> str:
    main(["status", "--study", "micro", *arguments])
    return capsys.readouterr().out


def row(text: str, *start: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[: len(start)] == list(start))


def counts(text: str, model: str = "tiny", method: str = "sp_in") -> list[int]:
    """Of a cell: done, running, failed, stale, missing."""
    return [int(word) for word in row(text, "change", model, method)[4:]]


def test_every_state_is_counted_by_cell(leave, capsys):
    leave("change/tiny/dense/b1.00/s0", record={"seconds": 60}, metrics={})
    leave("change/tiny/dense/b1.00/s1", record={"seconds": 60})
    leave("change/tiny/dense/b1.00/s2", record={"fingerprint": "0" * 16}, metrics={})
    failed = leave(f"{SP_IN}/s1", error={"error": "the training loss became nan\nand more"})
    text = status(capsys)
    assert counts(text, method="dense") == [1, 0, 0, 1, 1]
    assert counts(text) == [0, 0, 1, 0, 2]
    assert counts(text, "wide") == [0, 0, 0, 0, 3]
    assert row(text, "all", "12")[2:] == ["1", "0", "1", "1", "9"]
    where = failed.relative_to(Path.cwd())
    assert f"failed: {where}: the training loss became nan\n" in text
    assert "and more" not in text
    assert "stale: trained with another configuration" in text


def test_a_record_that_cannot_be_read_is_a_failure(leave, capsys):
    (leave(f"{SP_IN}/s0") / "record.json").write_text("{")
    text = status(capsys)
    assert counts(text) == [0, 0, 1, 0, 2]
    assert f"failed: results/micro/runs/{SP_IN}/s0: " in text


def test_nothing_done_is_all_missing_and_unknown(project, capsys):
    text = status(capsys)
    assert row(text, "all", "12")[2:] == ["0", "0", "0", "0", "12"]
    assert row(text, "all", "12", "unknown") == ["all", "12", "unknown"]
    assert "failed:" not in text


def test_runs_on_another_device_are_asked_for_by_name(leave, capsys):
    leave("change/tiny/dense/b1.00/s0", record={"seconds": 60}, metrics={})
    assert counts(status(capsys, "--device", "cpu"), method="dense") == [0, 0, 0, 1, 2]


def test_another_results_folder(project, leave, capsys):
    leave("change/tiny/dense/b1.00/s0", record={"seconds": 60}, metrics={})
    (project / "results").rename(project / "elsewhere")
    assert counts(status(capsys, "--results-dir", "elsewhere"), method="dense") == [1, 0, 0, 0, 2]


# The rest.


def test_the_rest_takes_the_median_of_a_model_and_else_of_the_task(leave, capsys):
    for seed, seconds in enumerate((10, 40, 1000)):
        leave(f"change/tiny/dense/b1.00/s{seed}", record={"seconds": seconds}, metrics={})
    leave(f"{SP_IN}/s0", record={"seconds": 50}, metrics={})
    text = status(capsys)
    # tiny: two runs left at the median of 10, 40, 50 and 1000; wide: none is done, all six at that of the task.
    assert row(text, "change", "tiny", "2") == ["change", "tiny", "2", "45", "s", "1.5", "min"]
    assert row(text, "change", "wide", "6") == ["change", "wide", "6", "45", "s", "4.5", "min"]
    assert row(text, "all", "8") == ["all", "8", "6", "min"]
    leave("change/wide/dense/b1.00/s0", record={"seconds": 3600}, metrics={})
    assert row(status(capsys), "change", "wide", "5") == ["change", "wide", "5", "1.0", "h", "5.0", "h"]


def test_a_stale_run_says_nothing_of_time(leave, capsys):
    leave("change/tiny/dense/b1.00/s0", record={"fingerprint": "0" * 16, "seconds": 60}, metrics={})
    assert row(status(capsys), "change", "tiny", "6")[3:] == ["unknown", "unknown"]


# Running.


@pytest.mark.parametrize("output", ["model.safetensors", "metrics.json"], ids=["trained", "scored"])
def test_what_a_living_snakemake_has_begun_is_running(project, snakemake, capsys, output):
    snakemake()
    mark(f"results/micro/runs/{SP_IN}/s1/{output}")
    mark("results/micro/warm_up/change/tiny/s0/checkpoint.pt")
    mark("results/other/runs/change/tiny/dense/b1.00/s0/record.json")
    text = status(capsys)
    assert counts(text) == [0, 1, 0, 0, 2]
    assert counts(text, method="dense") == [0, 0, 0, 0, 3]


def test_a_failed_or_stale_run_that_is_made_again_is_running(leave, snakemake, capsys):
    snakemake()
    leave(f"{SP_IN}/s0", error={"error": "no"})
    leave(f"{SP_IN}/s1", record={"fingerprint": "0" * 16}, metrics={})
    for seed in (0, 1):
        mark(f"results/micro/runs/{SP_IN}/s{seed}/record.json")
    text = status(capsys)
    assert counts(text) == [0, 2, 0, 0, 1]
    assert "failed:" not in text


def test_a_run_that_is_done_is_done(leave, snakemake, capsys):
    snakemake()
    leave(f"{SP_IN}/s0", record={"seconds": 1}, metrics={})
    mark(f"results/micro/runs/{SP_IN}/s0/cost.json")
    assert counts(status(capsys)) == [1, 0, 0, 0, 2]


def test_what_a_killed_snakemake_left_is_not_running(project, capsys):
    mark(f"results/micro/runs/{SP_IN}/s1/record.json")
    Path(".snakemake", "locks").mkdir()
    Path(".snakemake", "locks", "0.output.lock").touch()
    text = status(capsys)
    assert counts(text) == [0, 0, 0, 0, 3]
    assert "`snakemake --unlock`" in text


def test_what_an_earlier_snakemake_left_is_not_running_beside_the_next(project, snakemake, capsys):
    mark(f"results/micro/runs/{SP_IN}/s1/record.json", age=3600)
    snakemake()
    mark(f"results/micro/runs/{SP_IN}/s2/record.json")
    text = status(capsys)
    assert counts(text) == [0, 1, 0, 0, 2]
    assert "--unlock" not in text


def test_a_snakemake_that_works_elsewhere_does_not_count(project, snakemake, capsys, tmp_path_factory):
    snakemake(tmp_path_factory.mktemp("elsewhere"))
    mark(f"results/micro/runs/{SP_IN}/s1/record.json")
    assert counts(status(capsys)) == [0, 0, 0, 0, 3]


def test_long_and_absolute_paths_and_files_of_another_kind(project, snakemake, capsys):
    results = project / ("long" * 60)
    snakemake()
    mark(f"{results}/micro/runs/{SP_IN}/s1/record.json")
    Path(".snakemake", "incomplete", "migration_underway").touch()
    assert counts(status(capsys, "--results-dir", str(results))) == [0, 1, 0, 0, 2]


def test_snakemake_marks_jobs_as_is_believed_here(project):
    """Its own code names the file; one version of Snakemake may not be the next."""
    from snakemake.persistence.file import FilePersistence

    persistence = FilePersistence(path=project / ".snakemake")
    for output in ("results/micro/record.json", "long/" * 100 + "record.json"):
        mark(output)
        assert Path(persistence._record_path(persistence._incomplete_path, output)).is_file()


# What cannot be said.


@pytest.mark.parametrize("content", [None, "study: [", b"\xff"], ids=["missing", "not YAML", "not text"])
def test_a_config_that_cannot_be_read_is_one_line(project, content):
    config = project / "config.yaml"
    config.unlink()
    if content is not None:
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match="error: config.yaml: cannot be read") as ended:
        main(["status"])
    assert "\n" not in str(ended.value)


def test_a_study_that_is_not_there_is_one_line(project):
    with pytest.raises(SystemExit, match="there is no file studies/nope.yaml"):
        main(["status", "--study", "nope"])


def test_outside_of_the_project_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="run in the folder of the Snakefile"):
        main(["status"])
