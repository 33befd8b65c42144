"""A study on a SLURM, through profiles/slurm, gives the bytes that it gives here, also where a training is stopped."""

import json
import os
import re
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import wait_for

pytestmark = pytest.mark.xdist_group("cluster")  # one SLURM per machine

STUDY = ("--config", "study=smoke", "device=cpu")
STOPPED = "results/smoke/runs/change/fc_siam_conc/sp_in/b0.50/s0"


def summary_of(results: Path) -> dict[str, bytes]:
    files = [path for path in (results / "summary").rglob("*") if path.is_file() and path.name != "timing.csv"]
    return {str(path.relative_to(results)): path.read_bytes() for path in files}


def rule_of(job: dict[str, str]) -> str:
    return re.match("rule_(.+?)(_wildcards_|$)", job["Comment"]).group(1)


def is_stopped_one(job: dict[str, str]) -> bool:
    return rule_of(job) == "train" and "_change_" in job["Comment"] and "_sp_in_" in job["Comment"]


def training_process(project) -> int | None:
    """Of the run that is to be stopped."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
            is_it = {"workflow_scripts/train.py", STOPPED} <= set(arguments)
            if is_it and (folder / "cwd").resolve() == project.root.resolve():
                return int(folder.name)
        except OSError:  # it ended
            continue
    return None


def is_told_to_end(process: int) -> bool:
    """Whether a process that was paused has SIGTERM before it, or was woken and ended by it."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    pending = [int(mask, 16) for mask in re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", status, re.MULTILINE)]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in pending)


@pytest.fixture(scope="module")
def projects(slurm, empty_project, tmp_path_factory):
    """The smoke study, one of its trainings long enough to be met: run here, and not yet run. With a SLURM only."""
    away = empty_project.copy(tmp_path_factory.mktemp("away"))
    study = yaml.safe_load((away.root / "studies/smoke.yaml").read_text())
    study["tasks"]["change"]["training"]["epochs"] = 30
    away.write_study(study, "smoke")
    here = away.copy(tmp_path_factory.mktemp("here"))
    result = here.snakemake(*STUDY)
    assert result.returncode == 0, result.stdout[-5000:]
    return here, away


@pytest.fixture(scope="module")
def interrupted(slurm, projects):
    """The study on SLURM, where a training came near its time limit; with what SLURM knows of its jobs."""
    _, away = projects
    with slurm.runs(away, *STUDY) as snakemake:

        def found(what):
            assert snakemake.poll() is None, (away.root / "snakemake.log").read_text()[-5000:]
            return what()

        wait_for(lambda: found((away.root / STOPPED / "state.pt").exists), 400)
        process = training_process(away)
        os.kill(process, signal.SIGSTOP)  # so that it is not done before its limit is near
        (job,) = [job for job in slurm.jobs() if is_stopped_one(job) and job["JobState"] == "RUNNING"]
        slurm.ask("scontrol", "update", f"JobId={job['JobId']}", "TimeLimit=2")
        wait_for(lambda: is_told_to_end(process), 90)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
        log = away.root / "results/smoke/logs/train/change-fc_siam_conc-sp_in-b0.50-s0.log"
        wait_for(lambda: "stopped by SIGTERM" in log.read_text(), 20)
        wait_for(lambda: snakemake.poll() is not None, 600)
        assert snakemake.returncode == 0, (away.root / "snakemake.log").read_text()[-5000:]
        return away, slurm.jobs()


def test_the_summary_is_that_of_a_run_here(projects, interrupted):
    here, (away, _) = projects[0], interrupted
    expected = summary_of(here.root / "results/smoke")
    assert len(expected) >= 12
    assert summary_of(away.root / "results/smoke") == expected


def test_a_training_near_its_time_limit_stops_and_goes_on_from_its_state(interrupted):
    away, jobs = interrupted
    assert json.loads((away.root / STOPPED / "record.json").read_text())["interruptions"] == 1
    assert not (away.root / STOPPED / "state.pt").exists()
    stopped, resumed = sorted(filter(is_stopped_one, jobs), key=lambda job: int(job["JobId"]))
    assert (stopped["JobState"], resumed["JobState"]) == ("FAILED", "COMPLETED")
    assert stopped["TimeLimit"] == "00:02:00"
    memory = [int(re.search(r"mem=(\d+)", job["TRES"]).group(1)) for job in (stopped, resumed)]
    assert memory[1] == 2 * memory[0]


def test_only_expensive_rules_are_slurm_jobs(interrupted):
    away, jobs = interrupted
    study = yaml.safe_load((away.root / "studies/smoke.yaml").read_text())
    tasks, resumed = len(study["tasks"]), 1
    trainings = tasks * len(study["methods"]) + resumed
    assert Counter(map(rule_of, jobs)) == {"prepare": tasks, "warm_up": tasks, "train": trainings}


def test_jobs_ask_for_what_the_profile_says(interrupted):
    _, jobs = interrupted
    gpus = {rule_of(job): job.get("TresPerJob") for job in jobs}
    assert gpus == {"prepare": None, "warm_up": "gres:gpu:1", "train": "gres:gpu:1"}
    (train, *_) = [job for job in jobs if rule_of(job) == "train"]
    assert (train["NumCPUs"], train["TimeLimit"]) == ("2", "1-00:00:00")
    assert "mem=16000M" in train["TRES"]
    assert all(job["Requeue"] == "1" for job in jobs)
