"""Watching a run shows its history, changes no number of it, and cannot end it."""

import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from bbnet.study.config import ConfigError, Knobs, read_knobs
from bbnet.training.live import WRITERS, Live, live_as_configured
from bbnet.training.runs import train, warm_up

NAME = "change/tiny/sp_in/b0.37/s0"
ROW = {"epoch": 1, "phase": "warm_up", "step": 4, "learning_rate": 0.1, "train_loss": 0.5, "density": 1.0}
KINDS = sorted(WRITERS)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """A user without an account, and a W&B server that does not answer."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    if hasattr(wandb := sys.modules.get("wandb"), "teardown"):
        wandb.teardown()


@pytest.fixture
def warnings(caplog):
    """The warnings logged so far."""
    caplog.set_level(logging.INFO, logger="bbnet")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def watched_run(job, warm_start, tmp_path):
    """A run of sp_in that is watched, in `tmp_path / "live"`."""

    def run(kind: str):
        its_job = job("sp_in")
        with Live(kind, tmp_path / "live", NAME, its_job.config) as watch:
            return train(its_job, warm_start(), on_epoch=watch)

    return run


@pytest.fixture
def in_a_process(tmp_path):
    """Runs a program in the place of a job that W&B watches; returns the lines of its log."""

    preamble = f"""
import logging, pathlib
from bbnet.training import live
logging.basicConfig(format="%(message)s")
row, folder = {ROW!r}, pathlib.Path({str(tmp_path)!r})
"""

    def run(program: str, **environment: str | None) -> list[str]:
        told = {name: value for name, value in (os.environ | environment).items() if value is not None}
        done = subprocess.run([sys.executable, "-c", preamble + program], env=told, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()

    return run


def numbers(row: dict) -> dict[str, float]:
    return {column: value for column, value in row.items() if column not in ("phase", "step")}


def events(folder: Path) -> dict[int, dict[str, float]]:
    """Scalars by step, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder)).Reload()
    rows = {}
    for column in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(column):
            rows.setdefault(event.step, {})[column] = event.value
    return rows


def wandb_records(folder: Path) -> list:
    """What lies in the one offline run of a folder, once W&B, which writes behind our backs, has written its end."""
    deadline = time.monotonic() + 20
    while True:
        records = written_records(folder)
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < deadline, f"no end of the run among {len(records)} records"
        time.sleep(0.2)


def written_records(folder: Path) -> list:
    """Pieces in blocks of 32 KiB, each behind its crc, size and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, start, whole, records = path.read_bytes(), 7, b"", []
    while start < len(content):
        if 32768 - start % 32768 < 7:
            start += 32768 - start % 32768
            continue
        size, kind = int.from_bytes(content[start + 4 : start + 6], "little"), content[start + 6]
        whole += content[start + 7 : start + 7 + size]
        start += 7 + size
        if kind in (1, 4) and start <= len(content):  # whole, or a last piece
            records.append(Record.FromString(whole))
            whole = b""
    return records


def wandb_history(folder: Path) -> dict[int, dict[str, float]]:
    rows = {}
    for record in wandb_records(folder):
        if record.HasField("history"):
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            rows[record.history.step.num] = {
                column: float(value) for column, value in items.items() if column[0] != "_"
            }
    return rows


def same_bits(one, other) -> bool:
    return (
        all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights | other.weights)
        and all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks | other.masks)
        and (one.history, one.refreshes, one.selected_epoch) == (other.history, other.refreshes, other.selected_epoch)
    )


# What is shown.


def test_tensorboard_shows_the_history_and_that_of_the_warm_start(watched_run, warnings, tmp_path):
    run = watched_run("tensorboard")
    shown = events(tmp_path / "live" / "tensorboard" / NAME)
    assert [row["phase"] for row in run.history][:2] == ["warm_up", "sparse"]
    assert shown == {
        row["step"]: {column: float(np.float32(value)) for column, value in numbers(row).items()} for row in run.history
    }
    assert warnings() == []


def test_a_run_trained_again_replaces_its_curves(tmp_path):
    for loss, epochs in ((0.5, 3), (0.25, 2)):
        with Live("tensorboard", tmp_path, NAME, {}) as watch:
            for epoch in range(1, epochs + 1):
                watch(ROW | {"step": 4 * epoch, "train_loss": loss})
        time.sleep(1)  # event files are ordered by the second of their making
    shown = events(tmp_path / "tensorboard" / NAME)
    assert {step: row["train_loss"] for step, row in shown.items()} == {4: 0.25, 8: 0.25}


def test_wandb_writes_offline_what_the_history_has(watched_run, warnings, tmp_path, job):
    run = watched_run("wandb")
    assert wandb_history(tmp_path / "live") == {row["step"]: numbers(row) for row in run.history}
    records = wandb_records(tmp_path / "live")
    (made,) = [record.run for record in records if record.HasField("run")]
    assert (made.project, made.display_name) == ("bbnet", NAME)
    config = {item.key: item.value_json for item in made.config.update}
    assert config["budget"] == f'"{job("sp_in").config["budget"]}"'
    assert config.keys() >= job("sp_in").config.keys()
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    assert warnings() == []


@pytest.mark.thorough
@pytest.mark.parametrize("mode", [None, "online", "offline"])
def test_without_a_key_wandb_is_offline_and_asks_for_none(in_a_process, tmp_path, mode):
    log = in_a_process("with live.Live('wandb', folder, 'name', {}) as watch: watch(row)", WANDB_MODE=mode)
    assert log == []
    assert wandb_history(tmp_path) == {4: numbers(ROW)}


def test_a_run_that_fails_is_a_failed_run_of_wandb(tmp_path):
    with pytest.raises(ValueError, match="nan"), Live("wandb", tmp_path, NAME, {}):
        raise ValueError("the training loss became nan")
    assert [record.exit.exit_code for record in wandb_records(tmp_path) if record.HasField("exit")] == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_that_is_not_a_number_is_shown_too(warnings, tmp_path, kind):
    with Live(kind, tmp_path, NAME, {}) as watch:
        watch(ROW | {"train_loss": math.nan})
    if kind == "tensorboard":
        assert math.isnan(events(tmp_path / "tensorboard" / NAME)[4]["train_loss"])
    assert warnings() == []


# What it costs.


@pytest.mark.parametrize("kind", KINDS)
def test_a_watched_run_has_the_same_bits(watched_run, kind):
    assert same_bits(watched_run(kind), watched_run("none"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_watched_warm_up_has_the_same_bits(job, tmp_path, kind):
    alone = warm_up(job())[0]
    with Live(kind, tmp_path, "warm_up/change/tiny/s0", {}) as watch:
        beside = warm_up(job(), on_epoch=watch)[0]
    assert beside["history"] == alone["history"]
    assert all(torch.equal(beside["model"][name], tensor) for name, tensor in alone["model"].items())


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_neither_import_nor_call_touches_a_global_generator(in_a_process, kind):
    in_a_process(f"""
import random, sys, numpy, torch
def state():
    return torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate(), torch.get_num_threads()
before = state()
assert not {{"tensorboard", "wandb"}} & set(sys.modules)
with live.Live({kind!r}, folder, "name", {{}}) as watch:
    watch(row)
assert {kind!r} in sys.modules
assert state() == before
""")


# What may go wrong.


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_that_is_missing_is_one_warning_and_the_same_bits(watched_run, warnings, monkeypatch, kind):
    expected = watched_run("none")
    monkeypatch.setitem(sys.modules, kind, None)
    for module in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    assert same_bits(watched_run(kind), expected)
    hint = f"live: {kind} is not installed (pip install 'bbnet[{kind}]'); the run continues without live logging"
    assert warnings() == [hint]


class Failing:
    """A writer that fails in one of its methods, and counts what it was asked."""

    def __init__(self, where: str) -> None:
        self.where, self.calls = where, []

    def __call__(self, folder, name, config):
        return self._called("open") or self

    def write(self, step, scalars):
        self._called("write")

    def close(self, failed):
        self._called("close")

    def _called(self, method):
        self.calls.append(method)
        if method == self.where:
            raise OSError(28, "No space left\non device")


@pytest.mark.parametrize(
    ("where", "calls"), [("open", ["open"]), ("write", ["open", "write"]), ("close", ["open", *["write"] * 5, "close"])]
)
def test_a_writer_that_raises_is_one_warning_and_the_same_bits(watched_run, warnings, monkeypatch, where, calls):
    writer = Failing(where)
    monkeypatch.setitem(WRITERS, "failing", writer)
    assert same_bits(watched_run("failing"), watched_run("none"))
    assert writer.calls == calls
    assert warnings() == ["live: OSError: [Errno 28] No space left on device; the run continues without live logging"]


def test_a_wandb_service_that_is_killed_is_one_warning(in_a_process):
    log = in_a_process("""
import os, signal, time
with live.Live("wandb", folder, "name", {}) as watch:
    watch(row)
    for task in pathlib.Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    time.sleep(1)
    for epoch in (2, 3):
        watch(row | {"step": 4 * epoch})
""")
    assert len([line for line in log if line.startswith("live: ") and line.endswith("without live logging")]) == 1


@pytest.mark.thorough
def test_a_wandb_server_that_does_not_answer_is_one_warning(in_a_process):
    log = in_a_process(
        "live.WANDB_SECONDS = 2\nwith live.Live('wandb', folder, 'name', {}) as watch: watch(row)",
        WANDB_API_KEY="a" * 40,
        WANDB_MODE=None,
    )
    assert len(log) == 1 and log[0].endswith("the run continues without live logging")


def test_an_error_of_the_run_is_not_swallowed(tmp_path):
    with pytest.raises(ValueError, match="of the run"), Live("tensorboard", tmp_path, NAME, {}):
        raise ValueError("of the run")


# The knob.


def test_the_knob_has_the_writers_and_is_part_of_no_recipe():
    assert set(get_args(Knobs.model_fields["live"].annotation)) == {"none", *WRITERS}
    assert Knobs(live="wandb").model_dump() == Knobs().model_dump()


def test_another_value_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="live: input should be 'none', 'tensorboard' or 'wandb', found 'mlflow'"):
        read_knobs({"live": "mlflow"})


def test_a_job_reads_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("BBNET_LIVE", raising=False)
    with live_as_configured(NAME, {}) as watch:
        watch(ROW)
    monkeypatch.setenv("BBNET_LIVE", "tensorboard")
    monkeypatch.setenv("BBNET_LIVE_DIR", str(tmp_path / "there"))
    with live_as_configured(NAME, {}) as watch:
        watch(ROW)
    assert list(events(tmp_path / "there" / "tensorboard" / NAME)) == [4]
