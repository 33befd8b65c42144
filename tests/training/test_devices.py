"""Slots of GPUs, claimed by real processes; and the GPU that torch is told to use."""

import fcntl
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from bbnet.training import devices
from bbnet.training.devices import POLL_SECONDS, choose_device, choose_devices, claim_slots
from bbnet.training.ranks import devices_of_job

# Forked, not spawned: forty interpreters that import torch would take minutes.
processes = multiprocessing.get_context("fork")
GPUS = ("0", "1", "2")
PATIENCE = 60


class Event(NamedTuple):
    """A line of the common journal: monotonic time, which processes share, `asks`, `starts` or `ends`, and where."""

    seconds: float
    kind: str
    gpu: str
    process: int


class Journal:
    """A file to which processes append whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def note(self, kind: str, gpu: str = "none") -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(f"{time.monotonic()} {kind} {gpu} {os.getpid()}\n".encode())

    def events(self) -> list[Event]:
        rows = (line.split() for line in self.path.read_text().splitlines())
        return sorted(Event(float(seconds), kind, gpu, int(process)) for seconds, kind, gpu, process in rows)

    def wait_for(self, kind: str, count: int) -> list[Event]:
        """The events of that kind once there are `count` of them."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            found = [event for event in self.events() if event.kind == kind]
            if len(found) >= count:
                return found
            time.sleep(0.01)
        raise AssertionError(f"{len(found)} of {count} processes noted {kind} in {PATIENCE} s")


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


@pytest.fixture
def start(tmp_path, journal):
    """Starts a process that claims a slot, holds it for some seconds and ends; killed with the test."""
    started = []

    def job(gpus, slots, seconds):
        journal.note("asks")
        (gpu,) = claim_slots(gpus, slots, tmp_path / "slots")
        journal.note("starts", gpu)
        time.sleep(seconds)
        journal.note("ends", gpu)

    def make(gpus=GPUS, slots=2, seconds=PATIENCE):
        process = processes.Process(target=job, args=(gpus, slots, seconds), daemon=True)
        process.start()
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.join()


def most_at_once(events: list[Event]) -> Counter:
    """Per GPU, the most processes that held it at any time."""
    held, most = Counter(), Counter()
    for event in events:
        held[event.gpu] += {"asks": 0, "starts": 1, "ends": -1}[event.kind]
        most[event.gpu] = max(most[event.gpu], held[event.gpu])
    del most["none"]
    return most


def longest_idle(events: list[Event], gpu: str, slots: int) -> float:
    """The longest stretch for which a slot of `gpu` was free and a process waited for one."""
    held, waiting, since, longest = 0, 0, None, 0.0
    for event in events:
        if since is not None:
            longest = max(longest, event.seconds - since)
        held += {"asks": 0, "starts": 1, "ends": -1}[event.kind] if event.gpu == gpu else 0
        waiting += {"asks": 1, "starts": -1, "ends": 0}[event.kind]
        if held == slots or not waiting:
            since = None
        elif since is None:
            since = event.seconds
    return longest


@pytest.mark.thorough
def test_forty_jobs_fill_three_gpus_of_two_slots_and_never_overfill_one(start, journal):
    random.seed(0)
    jobs = [start(seconds=random.uniform(0.3, 0.9)) for _ in range(40)]
    for job in jobs:
        job.join(PATIENCE)
    assert [job.exitcode for job in jobs] == [0] * 40
    events = journal.events()
    assert Counter(event.kind for event in events) == {"asks": 40, "starts": 40, "ends": 40}
    assert most_at_once(events) == dict.fromkeys(GPUS, 2)
    # A look at the slots takes its turn with those of the others (0.2 s), on a machine that does other work too.
    allowed = POLL_SECONDS + 0.2 + 0.7
    assert {gpu: idle for gpu in GPUS if (idle := longest_idle(events, gpu, 2)) > allowed} == {}


@pytest.mark.parametrize("slots", [1, 3])
def test_a_gpu_takes_as_many_as_it_has_slots(start, journal, slots):
    jobs = [start(["0"], slots, seconds=0.5) for _ in range(2 * slots + 1)]
    for job in jobs:
        job.join(PATIENCE)
    assert [job.exitcode for job in jobs] == [0] * len(jobs)
    assert most_at_once(journal.events()) == {"0": slots}


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_slot_of_a_killed_job_is_free_again(start, journal, end):
    first = start(["0"], 1)
    journal.wait_for("starts", 1)
    second = start(["0"], 1)
    journal.wait_for("asks", 2)
    time.sleep(3 * POLL_SECONDS)
    assert [event.process for event in journal.wait_for("starts", 1)] == [first.pid]
    os.kill(first.pid, end)
    killed = time.monotonic()
    successor = journal.wait_for("starts", 2)[-1]
    assert (successor.process, successor.gpu) == (second.pid, "0")
    assert successor.seconds > killed - 0.01


def test_jobs_spread_over_the_least_busy_gpus(start, journal):
    for count in range(1, 7):
        start()
        journal.wait_for("starts", count)
    gpus = [event.gpu for event in journal.wait_for("starts", 6)]
    assert sorted(gpus[:3]) == sorted(gpus[3:]) == sorted(GPUS)


def test_whoever_looks_next_sees_only_the_slot_claimed_as_taken(monkeypatch, tmp_path):
    """Else jobs that start at once would pass over GPUs that are idle."""
    left_locked = []
    original = devices.alone

    @contextmanager
    def watched(lock):
        with original(lock):
            yield
            left_locked.append({path.name for path in tmp_path.glob("?-?.lock") if is_locked(path)})

    monkeypatch.setattr(devices, "alone", watched)
    monkeypatch.setattr(devices, "_claimed", [])
    (gpu,) = claim_slots(GPUS, 2, tmp_path)
    assert left_locked == [{f"{gpu}-0.lock"}]


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_the_freed_gpu_of_several_is_the_one_taken(start, journal):
    jobs = {}
    for count in range(1, 7):
        job = start()
        jobs[journal.wait_for("starts", count)[-1].gpu] = job
    jobs["1"].kill()
    start()
    assert journal.wait_for("starts", 7)[-1].gpu == "1"


# Which device torch is told to use.


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes torch see so many GPUs, CUDA_VISIBLE_DEVICES being as told; returns the list of devices set as current."""

    def make(count, visible=None):
        current = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(devices, "_claimed", [])
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return current

    return make


def claims(tmp_path) -> set[str]:
    """Names of the lock files that have been made."""
    return {path.name for path in tmp_path.rglob("*.lock")} - {"claim.lock"}


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_without_a_gpu_the_cpu_is_taken(machine, tmp_path, wanted):
    machine(0)
    assert choose_device(wanted) == torch.device("cpu")
    assert claims(tmp_path) == set()


def test_a_gpu_that_is_not_there_is_refused_with_what_is_allowed(machine):
    machine(0)
    with pytest.raises(ValueError, match="device cuda: torch sees no GPU; allowed here: auto, cpu"):
        choose_device("cuda")


def test_the_cpu_may_be_wanted_beside_gpus(machine, tmp_path):
    current = machine(2)
    assert choose_device("cpu") == torch.device("cpu")
    assert (current, claims(tmp_path)) == ([], set())


@pytest.mark.parametrize("visible", ["0", "3", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"])
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_the_one_gpu_given_by_a_scheduler_is_taken_without_a_claim(machine, tmp_path, wanted, visible):
    current = machine(1, visible)
    for _ in range(3):
        assert choose_device(wanted, gpu_slots=1) == torch.device("cuda", 0)
    assert current == [torch.device("cuda", 0)] * 3
    assert claims(tmp_path) == set()


@pytest.mark.parametrize("visible", ["5,2,7", "GPU-5,GPU-2,GPU-7", "5,2,7,-1,4"])
def test_the_choice_is_among_the_gpus_given_and_torch_counts_them_from_0(machine, tmp_path, visible):
    current = machine(3, visible)
    chosen = [choose_device("auto", gpu_slots=2) for _ in range(6)]
    assert sorted(device.index for device in chosen[:3]) == sorted(device.index for device in chosen[3:]) == [0, 1, 2]
    assert current == chosen
    assert claims(tmp_path) == {f"{name}-{slot}.lock" for name in visible.split(",")[:3] for slot in (0, 1)}


def test_names_stand_for_the_same_gpu_whatever_their_place_in_the_list(machine):
    machine(3, "5,2,7")
    first = ["5", "2", "7"][choose_device("auto").index]
    others = [name for name in ("7", "2", "5") if name != first]
    os.environ["CUDA_VISIBLE_DEVICES"] = "7,2,5"
    assert {("7", "2", "5")[choose_device("auto").index] for _ in others} == set(others)


def test_a_training_on_several_gpus_has_different_ones_at_once_or_none(machine, tmp_path):
    current = machine(3)
    pair = choose_devices("auto", count=2)
    assert (len({device.index for device in pair}), current) == (2, pair[:1])
    assert devices._claim_if_free(GPUS, 1, devices.slots_folder(), 2) == []
    assert {choose_device("auto").index} | {device.index for device in pair} == {0, 1, 2}
    assert claims(tmp_path) == {"0-0.lock", "1-0.lock", "2-0.lock"}
    with pytest.raises(ValueError, match=r"training\.devices needs 4 GPUs, but torch sees 3"):
        choose_devices("auto", count=4)


def test_as_many_gpus_as_were_given_by_a_scheduler_are_taken_without_a_claim(machine, tmp_path):
    machine(2, "3,5")
    assert choose_devices("cuda", count=2) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert claims(tmp_path) == set()


def test_a_rank_takes_the_gpu_of_its_number_that_the_first_has_claimed(machine, monkeypatch, tmp_path):
    current = machine(3, "7,2,5")
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert devices_of_job("auto", 1, 3) == current == [torch.device("cuda", 1)]
    assert claims(tmp_path) == set()
    assert devices_of_job("cpu", 1, 3) == [torch.device("cpu")]


def test_all_gpus_are_chosen_from_where_none_is_given(machine, tmp_path):
    current = machine(3)
    assert {choose_device("auto").index for _ in range(3)} == {0, 1, 2}
    assert len(current) == 3
    assert claims(tmp_path) == {"0-0.lock", "1-0.lock", "2-0.lock"}


def test_a_single_gpu_that_nobody_gave_is_claimed(machine, tmp_path):
    """Else `--cores 8` without a limit on `gpu` would pile all runs onto it."""
    machine(1)
    assert choose_device("auto") == torch.device("cuda", 0)
    assert claims(tmp_path) == {"0-0.lock"}


def test_each_allocation_of_a_scheduler_has_slots_of_its_own(machine, monkeypatch):
    machine(2)
    local = devices.slots_folder()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    one = devices.slots_folder()
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert len({local, one, devices.slots_folder()}) == 3


FRESH_PAGES = """
import resource, sys, torch
from bbnet.training.devices import choose_device
if sys.argv[1] == "chosen":
    choose_device("cpu")
torch.set_num_threads(1)
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(40 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(20)
print(faults(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_on_a_cpu_large_blocks_are_used_again():
    def faults(how):
        command = [sys.executable, "-c", FRESH_PAGES, how]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    assert faults("chosen") < 100 < faults("as it is") / 10
