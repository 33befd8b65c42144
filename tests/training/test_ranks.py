"""Trainings on two devices, CPUs here: by ranks that are forked, and by those that a job of the workflow starts."""

import copy
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn

from bbnet.tasks.change.data import Tiles
from bbnet.tasks.classification.data.batches import Images
from bbnet.tasks.logic import task
from bbnet.tasks.logic.settings import Settings
from bbnet.training import ranks
from bbnet.training.resume import WITHOUT_RESUME, Resume, StateFile
from bbnet.training.runs import Job, train, warm_up

# Forked, not spawned, since an interpreter takes seconds to import torch.
processes = multiprocessing.get_context("fork")
DATA = {"pack": "formulas", "bits": 12, "train": 600, "val": 201, "test": 50, "dnf_literals": 2}
TRAINING = {"epochs": 5, "warm_up_epochs": 1, "batch_size": 24, "epoch_steps": 6, "learning_rate": 0.01}
MODEL = {"formula": "dnf", "widths": [16, 24]}
METHODS = {
    "dense": {"algorithm": "dense"},
    "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
    "rigl": {"algorithm": "rigl", "side": "in"},
    "wanda": {"algorithm": "wanda", "side": "out"},
    "stochastic": {"algorithm": "magnitude", "side": "in", "weights": "stochastic_binary"},
}
PATIENCE = 120


@pytest.fixture(scope="module")
def formulas(tmp_path_factory) -> tuple[Path, dict]:
    settings = Settings.model_validate({"data": DATA, "models": {"it": MODEL}, "training": TRAINING})
    folder, target = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared") / "logic"
    target.mkdir()
    manifest = {"root": str(folder)} | task.fetch(settings.data.model_dump(), folder)
    index = json.loads(json.dumps(task.prepare(manifest, settings.model_dump(), target)))
    target.with_suffix(".json").write_text(json.dumps(index))
    return target, index


def config_of(method: str, **training) -> dict:
    config = {"task": "logic", "model": MODEL, "training": TRAINING | training, "slabs": "hidden", "seed": 0}
    config |= {"device": "cpu", "cpu_threads": 1, "deterministic": False, "precision": "float32", "compile": "off"}
    budget = "1.00" if method == "dense" else "0.50"
    sparsity = {"ramp_end": 0.4, "freeze": 0.75, "every": 4}
    return config | {"method": METHODS[method], "budget": budget, "smallest_budget": "0.50", "sparsity": sparsity}


def in_ranks(count: int, folder: Path, function) -> list:
    """What `function` returns in each of so many processes that are ranks of one group."""

    def be_rank(rank):
        store = distributed.FileStore(str(folder / "meeting"), count)
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=PATIENCE)
        )
        torch.save(function(), folder / f"{rank}.pt")
        distributed.destroy_process_group()

    folder.mkdir(exist_ok=True)
    started = [processes.Process(target=be_rank, args=(rank,)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(PATIENCE)
        process.kill()
    assert [process.exitcode for process in started] == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def distance(one: dict, other: dict) -> float:
    """The largest difference of a tensor of two models, relative to the norm of the tensor."""
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)


def states(formulas, method: str, **training) -> dict:
    """A training from its first to its last step: its run, and its state in the middle."""
    found = {}

    class Middle(Resume):
        def after_step(self, state):
            if state()["trainer"]["epoch"] == 2 and not found:
                found["middle"] = copy.deepcopy(state())
                for stream in ("augmentation", "dropout"):  # of each rank its own, which every step seeds anew
                    del found["middle"]["trainer"]["within_epoch"][stream]

    warm_start, _, _ = warm_up(Job(config_of("dense", **training), *formulas))
    run = train(Job(config_of(method, **training), *formulas), warm_start, resume=Middle())
    return found | {"run": vars(run)}


def comparable(value):
    """The same with texts for numbers, since NaN, as of a line through one point, is not equal to itself."""
    if isinstance(value, dict):
        return {key: comparable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [comparable(each) for each in value]
    return repr(value) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("method", "training"),
    [
        ("dense", {"optimizer": "sgd"}),
        ("sp_in", {"optimizer": "sgd", "watch_balance": True}),
        ("sp_in", {"optimizer": "sgd", "batch_size": 23, "clip_norm": 0.05}),
        ("rigl", {"optimizer": "sgd", "batch_size": 23}),
        ("wanda", {"optimizer": "adam"}),
        ("stochastic", {"optimizer": "sgd"}),
    ],
)
def test_two_ranks_train_like_one_process(formulas, tmp_path, same, method, training):
    """Also where the batch does not divide: 23 samples are 12 and 11."""
    first, second = in_ranks(2, tmp_path / "ranks", lambda: states(formulas, method, **training))
    assert same(comparable(first), comparable(second))
    alone = states(formulas, method, **training)
    assert same(first["run"]["masks"], alone["run"]["masks"])
    assert first["run"]["refreshes"] == alone["run"]["refreshes"]
    assert first["run"]["cost"] == alone["run"]["cost"]
    assert distance(alone["run"]["weights"], first["run"]["weights"]) < 1e-6
    for row, expected in zip(first["run"]["history"], alone["run"]["history"], strict=True):
        assert row.pop("dev_accuracy") == pytest.approx(expected.pop("dev_accuracy"), abs=1 / DATA["val"])
        assert row == pytest.approx(expected, rel=1e-4, nan_ok=True)
    share = 1 if method == "dense" else 0.5
    assert all(int(mask.sum()) == share * mask.numel() for mask in first["run"]["masks"].values())


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


def gradients_of(net: nn.Module) -> dict:
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def test_gradients_are_means_over_samples_and_running_statistics_over_ranks(tmp_path, same):
    """Of seven samples in three ranks, whose batch norms each use the statistics of their own three or two."""
    inputs, labels = torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))

    def one_step():
        net = small_net().train()
        own = ranks.share_of(torch.arange(7))
        loss = nn.functional.cross_entropy(net(inputs[own]), labels[own])
        return ranks.backward(net, loss, len(own) / 7), gradients_of(net), dict(net.named_buffers()), own.tolist()

    found = in_ranks(3, tmp_path / "ranks", one_step)
    assert [own for *_, own in found] == [[0, 1, 2], [3, 4], [5, 6]]
    assert same(found[0][:3], found[1][:3])
    assert same(found[0][:3], found[2][:3])
    loss, gradients, buffers, _ = found[0]
    nets = [small_net().train() for _ in range(3)]
    losses = [
        nn.functional.cross_entropy(net(inputs[own]), labels[own]) * len(own) / 7
        for net, (*_, own) in zip(nets, found, strict=True)
    ]
    sum(losses).backward()
    torch.testing.assert_close(loss, sum(losses).detach())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, sum(gradients_of(net)[name] for net in nets))
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(buffers[name], sum(dict(net.named_buffers())[name] for net in nets) / 3)
    assert int(buffers["1.num_batches_tracked"]) == 1


class CutOffError(Exception):
    """Ends all ranks after the same step."""


class CutOff(Resume):
    def __init__(self, file: StateFile | None, steps: int) -> None:
        self.file, self.left = file, steps

    def after_step(self, state):
        if self.file is not None:
            self.file.after_step(state)
        self.left -= 1
        if not self.left:
            raise CutOffError


@pytest.mark.parametrize("method", ["sp_in", "stochastic"])
def test_batch_norms_and_augmentation_are_resumed_from_the_state_of_the_first_rank(
    job, tmp_path, same, exact_count, method
):
    """Of a net of change, in the middle of an epoch, with shares of two tiles and one."""

    def whole_and_resumed():
        start, first = warm_up(job())[0], ranks.own_rank() == 0
        whole = train(job(method), copy.deepcopy(start))
        with pytest.raises(CutOffError):
            file = StateFile(tmp_path / "state.pt", "f", minutes=0) if first else None
            train(job(method), start if first else None, resume=CutOff(file, steps=6))
        torch.manual_seed(1)  # another process draws other numbers
        resume = StateFile(tmp_path / "state.pt", "f", minutes=60) if first else WITHOUT_RESUME
        return vars(whole), vars(train(job(method), start if first else None, resume=resume))

    (whole, resumed), of_second = in_ranks(2, tmp_path / "ranks", whole_and_resumed)
    assert same(whole, resumed)
    assert same(list(of_second), [whole, whole])
    masks = whole["masks"].values()
    assert all(int(mask.sum()) == exact_count("0.37", *mask.shape) for mask in masks)


@pytest.fixture
def tiles(tmp_path) -> Tiles:
    """Four images of change, the last of which has two tiles."""
    for name, shape in {"images": (5, 2, 3, 8, 8), "labels": (5, 8, 8)}.items():
        np.save(tmp_path / f"test_{name}.npy", np.random.default_rng(0).integers(0, 2, shape, dtype=np.uint8))
    return Tiles(tmp_path, {"splits": {"test": {"images": ["a", "b", "c", "d"], "starts": [0, 1, 2, 3, 5]}}}, "test")


@pytest.fixture
def images(tmp_path) -> Images:
    """Five images of classification in the whole of which 4 x 4 pixels are seen."""
    np.save(tmp_path / "val.npy", np.random.default_rng(1).integers(0, 255, (5, 3, 6, 6), dtype=np.uint8))
    part = {"files": list("abcde"), "labels": [0, 2, 1, 0, 2]}
    return Images(tmp_path, {"input_size": 4, "splits": {"val": part}}, "val")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_parts_of_a_split_are_the_split(tiles, images, formulas, count):
    """Also where some parts have nothing."""
    parts = [tiles.part(number, count) for number in range(count)]
    assert sum((part.names for part in parts), []) == tiles.names
    assert torch.equal(torch.cat([part.images for part in parts]), tiles.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), tiles.labels)
    sizes = [end - start for part in parts for start, end in pairwise(part.starts)]
    assert sizes == [end - start for start, end in pairwise(tiles.starts)]
    assert all(part.starts[-1] == len(part) for part in parts)
    parts = [images.part(number, count) for number in range(count)]
    assert sum((part.files for part in parts), []) == images.files
    assert torch.equal(torch.cat([part.images for part in parts]), images.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), images.labels)
    assert torch.equal(parts[-1].batch(torch.tensor([-1]), torch.device("cpu")).images[0], images.images[-1])
    inputs = task.open_split(*formulas, "val")
    parts = [inputs.part(number, count) for number in range(count)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert torch.equal(torch.cat([part.inputs for part in parts]), inputs.inputs)
    assert torch.equal(torch.cat([part.labels for part in parts]), inputs.labels)


def test_scores_are_those_of_all_ranks_also_if_one_has_nothing_to_score(tmp_path):
    rows = {"image": np.array(["long name", "b"]), "rank": np.arange(2)}
    found = in_ranks(3, tmp_path / "ranks", lambda: ranks.joined_items(rows if ranks.own_rank() != 1 else {}))
    for items in found:
        assert items["image"].tolist() == ["long name", "b"] * 2
        assert items["rank"].tolist() == [0, 1] * 2
    assert ranks.joined_items(rows) is rows


# Ranks that a job starts. All of it is that of the workflow but the loss, which may be slow or fail.

SCRIPTS = Path(__file__).parents[2] / "workflow_scripts"
JOB = f"""
import os, runpy, sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
from bbnet.tasks.logic import task
original, steps = task.loss, []

def loss(model, batch):
    steps.append(model.training)
    if os.environ.get("FAILS") == os.environ.get("RANK", "0") and sum(steps) == 8:
        raise ValueError("the batch is cursed")
    time.sleep(float(os.environ.get("SECONDS_OF_STEP", "0")))
    return original(model, batch)

task.loss = loss
runpy.run_path(os.path.join({str(SCRIPTS)!r}, sys.argv.pop(1) + ".py"), run_name="__main__")
"""
FILES = ("model.safetensors", "masks.safetensors", "history.csv", "refreshes.csv", "items.parquet", "metrics.json")


class Jobs:
    """Starts jobs on two devices in folders below `home`, with one warm start."""

    def __init__(self, home: Path, index: Path) -> None:
        self.home, self.index = home, index
        (home / "job.py").write_text(JOB)
        options = ["--config", json.dumps(config_of("dense", devices=2)), "--fingerprint", "0" * 16, "--weights"]
        output, status = self.end(self._start("warm_up", "warm", {}, *options))
        assert status == 0, output

    def train(self, folder: str, **environment: str) -> subprocess.Popen:
        config = config_of("sp_in", devices=2) | {"warm_start": "0" * 16}
        options = ["--run", json.dumps({"task": "logic", "seed": 0}), "--config", json.dumps(config)]
        options += ["--scoring", "{}", "--fingerprint", "1" * 16, "--warm-start", str(self.home / "warm/checkpoint.pt")]
        options += ["--buckets"]
        return self._start("train", folder, environment, *options)

    def _start(self, script: str, folder: str, environment: dict[str, str], *options: str) -> subprocess.Popen:
        places = {"prepared": self.index, "folder": self.home / folder, "log": self.home / folder / "job.log"}
        options = [*options, *(text for name, path in places.items() for text in (f"--{name}", str(path)))]
        return subprocess.Popen(
            [sys.executable, self.home / "job.py", script, *options],
            env=os.environ | {"BBNET_CHECKPOINT_MINUTES": "0.00001"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, process: subprocess.Popen) -> tuple[str, int]:
        try:
            output, _ = process.communicate(timeout=2 * PATIENCE)
        finally:
            process.kill()
        return output, process.returncode

    def results(self, folder: str) -> dict[str, bytes]:
        return {name: (self.home / folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def jobs(formulas, tmp_path_factory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"), formulas[0].with_suffix(".json"))


@pytest.fixture(scope="module")
def uninterrupted(jobs) -> dict[str, bytes]:
    output, status = jobs.end(jobs.train("whole"))
    assert status == 0, output
    assert output.count("epoch 5 of 5") == 1
    return jobs.results("whole")


def follower_of(process: subprocess.Popen) -> int:
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def wait_for(condition) -> None:
    last = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.02)


def has_ended(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.thorough
def test_a_training_that_was_stopped_and_killed_ends_in_the_same_bits(jobs, uninterrupted):
    state = jobs.home / "resumed" / "state.pt"
    for stop, status in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        before = state.read_bytes() if state.exists() else None
        process = jobs.train("resumed", SECONDS_OF_STEP="0.1")
        wait_for(lambda before=before: state.exists() and state.read_bytes() != before)
        follower = follower_of(process)
        for each in (follower, process.pid) if stop == signal.SIGTERM else (process.pid,):
            os.kill(each, stop)  # a scheduler tells all processes of a job
        output, ended = jobs.end(process)
        assert (ended, "error" in output) == (status, False), output
        wait_for(lambda follower=follower: has_ended(follower))
    output, status = jobs.end(jobs.train("resumed"))
    assert status == 0, output
    assert jobs.results("resumed") == uninterrupted
    assert json.loads((jobs.home / "resumed" / "record.json").read_text())["interruptions"] == 2


@pytest.mark.thorough
@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error_of_a_rank_ends_all_in_one_line(jobs, rank):
    output, status = jobs.end(jobs.train(f"failed{rank}", FAILS=rank))
    message = f"{'rank 1 of 2 failed: ' if rank == '1' else ''}the batch is cursed in step 2 of 6 of epoch 3 (seed 0)"
    assert status == 1
    assert [line for line in output.splitlines() if "error" in line.lower()] == [f"[job] error: {message}"], output
    assert json.loads((jobs.home / f"failed{rank}" / "error.json").read_text())["error"] == message


@pytest.mark.thorough
def test_a_rank_that_is_killed_is_named(jobs):
    process = jobs.train("killed", SECONDS_OF_STEP="0.1")
    wait_for((jobs.home / "killed" / "state.pt").exists)
    os.kill(follower_of(process), signal.SIGKILL)
    output, status = jobs.end(process)
    assert (status, output.splitlines()[-1]) == (1, "[job] error: rank 1 of 2 was ended by SIGKILL")


@pytest.mark.thorough
def test_ranks_that_a_launcher_started_train_alike(jobs, uninterrupted):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    started = [jobs.train("launched", RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    ended = [jobs.end(process) for process in started]
    assert [status for _, status in ended] == [0, 0], ended
    assert jobs.results("launched") == uninterrupted


def test_a_launcher_of_another_number_of_ranks_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"training.devices is 2, but WORLD_SIZE, .*, is 4"):
        ranks.is_follower(2)
    assert not ranks.is_follower(1)


def test_a_rank_that_waits_for_its_gpu_while_another_has_failed_is_ended(monkeypatch):
    """As under NCCL, where rank 0 notices nothing. A process that fails stands for the other rank."""
    monkeypatch.setattr(ranks, "NOTICE_SECONDS", 0.1)

    def be_first():
        followers = ranks._Followers([torch.device("cpu")] * 2)
        followers.processes[1] = subprocess.Popen(["false"])
        followers._watch()

    process = processes.Process(target=be_first)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 1
