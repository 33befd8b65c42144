"""How many GPUs runs may use: by environment, by the driver's tool; and what Snakemake makes of it."""

import os
import stat
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest

from bbnet.study import machine
from bbnet.study.config import ConfigError
from bbnet.study.machine import gpu_count, name_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """Puts an `nvidia-smi` that prints these names, or fails, alone on the path."""

    def make(*names, status=0):
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir()
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{name}'\n" for name in names) + f"exit {status}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tool.parent))

    machine._gpus.cache_clear()
    monkeypatch.delenv("BBNET_GPUS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield make
    machine._gpus.cache_clear()


def test_without_any_word_the_drivers_gpus_are_counted(driver):
    driver("NVIDIA H100", "NVIDIA H100", "NVIDIA A100")
    assert gpu_count() == 3
    assert name_of("auto") == name_of("cuda") == "NVIDIA H100"
    assert "cores" in name_of("cpu")


def test_without_a_driver_there_is_no_gpu(driver, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_count() == 0
    assert "cores" in name_of("auto")


def test_a_driver_that_fails_has_no_gpu(driver):
    driver("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver", status=9)
    assert gpu_count() == 0


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0", 1), ("3,1", 2), ("0,1,2,3", 4), ("GPU-8932f937,GPU-2a", 2), ("", 0), ("-1", 0), ("1,", 1)],
)
def test_gpus_that_are_given_count_instead_of_the_drivers(driver, monkeypatch, visible, count):
    driver(*["NVIDIA H100"] * 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


@pytest.mark.parametrize("told", [0, 1, 12])
def test_bbnet_gpus_has_the_last_word(driver, monkeypatch, told):
    driver(*["NVIDIA H100"] * 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("BBNET_GPUS", str(told))
    assert gpu_count() == told


@pytest.mark.parametrize("told", ["", "two", "-1", "1.5", "0x2", " 2", "1e3", "nan", "²"])
def test_bbnet_gpus_must_be_a_whole_number(driver, monkeypatch, told):
    driver("NVIDIA H100")
    monkeypatch.setenv("BBNET_GPUS", told)
    with pytest.raises(ConfigError) as refused:
        gpu_count()
    assert str(refused.value) == f"environment variable BBNET_GPUS: must be a whole number, found {told!r}"


# What Snakemake makes of it. Scripts are stubs that take a while, so that only the limit keeps them apart.

STUDY = """
seeds: [0, 1]
budgets: [0.2, 0.5, 0.8]
methods:
  dense: {algorithm: dense}
  sp_in: {algorithm: budgeted_broadcast, side: in}
tasks:
  change:
    data: {pack: aerial_scenes, size: 32, train: 16, val: 4, test: 6}
    tile: 32
    models: {tiny: {widths: [8, 8]}}
    training: {epochs: 3, warm_up_epochs: 1, batch_size: 2, learning_rate: 0.003}
"""
RUNS = 2 * (1 + 3)
STUB = """
import os, sys, time
from pathlib import Path

TRAINED = ["model.safetensors", "masks.safetensors", "history.csv", "refreshes.csv", "record.json", "items.parquet"]
TRAINED += ["predictions.npz", "units.csv", "codes.csv", "metrics.json", "cost.json"]
MADE = {
    "fetch": ("--manifest", [""]),
    "prepare": ("--index", [""]),
    "warm_up": ("--folder", ["checkpoint.pt", "history.csv", "units.csv"]),
    "train": ("--folder", TRAINED),
}
option, names = MADE[script := Path(__file__).stem]
outputs = [Path(sys.argv[sys.argv.index(option) + 1], name) for name in names]


def note(change):
    with open("journal", "a") as file:
        file.write(f"{time.monotonic()} {change} {os.environ['BBNET_GPU_SLOTS']}\\n")


if script == "train":
    note(1)
    time.sleep(float(os.environ["STUB_SECONDS"]))
    note(-1)
for output in outputs:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.touch()
"""


@pytest.fixture
def train_all(tmp_path):
    """Runs the workflow up to `train`, with stubs; returns, per change, how many trained then."""
    for part in (
        "Snakefile",
        "config.yaml",
        "bbnet",
        "rules",
        "workflow_scripts",
        "profiles",
        "report",
        "docs",
        "envs",
    ):
        (tmp_path / part).symlink_to(REPOSITORY / part)
    (tmp_path / "workflow_scripts").unlink()
    (tmp_path / "workflow_scripts").mkdir()
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "stub.yaml").write_text(STUDY)
    for script in (REPOSITORY / "workflow_scripts").glob("*.py"):
        (tmp_path / "workflow_scripts" / script.name).write_text(STUB)

    def make(gpu_slots, **environment):
        command = [sys.executable, "-m", "snakemake", "--cores", "32", "--until", "train", "--config"]
        result = subprocess.run(
            [*command, "study=stub", f"gpu_slots={gpu_slots}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)} | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert result.returncode == 0, result.stdout[-3000:]
        rows = sorted(line.split() for line in (tmp_path / "journal").read_text().splitlines())
        assert {slots for _, _, slots in rows} == {str(gpu_slots)}
        return list(accumulate(int(change) for _, change, _ in rows))

    return make


@pytest.mark.thorough
def test_the_gpu_resource_counts_slots_and_limits_what_runs_at_once(train_all):
    training = train_all(2, BBNET_GPUS="3", STUB_SECONDS="3")
    assert len(training) == 2 * RUNS
    assert max(training) == 6


@pytest.mark.thorough
def test_a_single_gpu_trains_run_after_run(train_all):
    training = train_all(1, BBNET_GPUS="1", STUB_SECONDS="0.2")
    assert training == [1, 0] * RUNS


@pytest.mark.thorough
def test_without_a_gpu_cores_alone_limit(train_all):
    training = train_all(1, BBNET_GPUS="0", STUB_SECONDS="3")
    assert max(training) > 3
