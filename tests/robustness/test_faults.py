"""What goes wrong gives one clear error or a clean recovery, and nothing that was finished is lost."""

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from bbnet.training.checkpoint import load_state, save_state
from tests.robustness.conftest import ROOT, STEPS_PER_EPOCH, STUDY, interruptions, outcome
from tests.workflow.conftest import Project, build_project

pytestmark = pytest.mark.xdist_group("faults")

METHODS = ("dense", "sp_in", "magnitude", "rigl", "topk")
MAKES_MISCHIEF = """
import os, signal
import torch
import bbnet.tasks.change.task as task
calls, original = 0, task.loss
def loss(model, batch):
    global calls
    calls += 1
    if calls == {step}:
        {mischief}
    return original(model, batch)
task.loss = loss
"""


def in_step(step: int, mischief: str) -> str:
    """A prelude that does something while a step of this process, counted from 1, is under way."""
    return MAKES_MISCHIEF.format(step=step, mischief=mischief)


def stopped_in(step: int, number: signal.Signals = signal.SIGTERM) -> str:
    return in_step(step, f"os.kill(os.getpid(), {int(number)})")


def one_error(lines: list[str]) -> str:
    """The only line of a script that is an error; it prints no traceback."""
    errors = [line for line in lines if "error:" in line]
    assert len(errors) == 1, lines
    assert not any("Traceback" in line for line in lines), lines
    return errors[0]


def error_note(folder: Path) -> str:
    return json.loads((folder / "error.json").read_text())["error"]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


# Stopped, and called again.


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_is_not(bench, tmp_path, method):
    # In the first epoch of the sparse phase, at its end, in the second, after the freeze, and at the very end.
    for already, step, number in (
        (0, 3, signal.SIGTERM),
        (3, 8, signal.SIGUSR1),
        (8, 11, signal.SIGINT),
        (11, 15, signal.SIGTERM),
        (15, 16, signal.SIGUSR1),
    ):
        stopped = bench.train(method, tmp_path, prelude=stopped_in(step - already, number))
        assert stopped.status() == 128 + number
        assert f"stopped by {number.name}" in stopped.said()[-1]
        assert not (tmp_path / "record.json").exists()
        trained = load_state(tmp_path / "state.pt", torch.device("cpu"))["trainer"]
        within = trained.get("within_epoch", {"position": 0})["position"]
        assert (trained["epoch"] - 1) * STEPS_PER_EPOCH + within == step
    assert bench.train(method, tmp_path).status() == 0
    assert interruptions(tmp_path) == 5
    assert outcome(tmp_path) == bench.undisturbed(method)


def test_a_warm_up_that_is_stopped_goes_on(bench, tmp_path):
    for step in (2, 6):
        assert bench.warm_up(tmp_path, prelude=stopped_in(step - (2 if step == 6 else 0))).status() == 143
    resumed = bench.warm_up(tmp_path)
    assert resumed.status() == 0
    assert "step 6 of the next" in "".join(resumed.said())
    for name in ("checkpoint.pt", "history.csv", "units.csv"):
        assert (tmp_path / name).read_bytes() == (bench.warm_start.parent / name).read_bytes(), name
    assert not (tmp_path / "state.pt").exists()


def test_a_second_interrupt_ends_a_training_at_once_and_the_state_before_counts(bench, tmp_path):
    twice = "os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGINT)"
    assert bench.train("sp_in", tmp_path, prelude=in_step(STEPS_PER_EPOCH + 2, twice)).status() == 130
    assert "within_epoch" not in load_state(tmp_path / "state.pt", torch.device("cpu"))["trainer"]
    assert bench.train("sp_in", tmp_path).status() == 0
    assert outcome(tmp_path) == bench.undisturbed("sp_in")


@pytest.mark.parametrize("second", ["SIGTERM", "SIGUSR1"])
def test_a_signal_that_follows_another_changes_nothing(bench, tmp_path, second):
    """As when Snakemake tells a job to end that had Ctrl-C from the terminal."""
    both = f"os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.{second})"
    stopped = bench.train("sp_in", tmp_path, prelude=in_step(STEPS_PER_EPOCH + 2, both))
    assert stopped.status() == 130
    assert "stopped by SIGINT" in stopped.said()[-1]
    assert load_state(tmp_path / "state.pt", torch.device("cpu"))["trainer"]["within_epoch"]["position"] == 2
    assert bench.train("sp_in", tmp_path).status() == 0
    assert outcome(tmp_path) == bench.undisturbed("sp_in")


def test_what_is_killed_while_it_saves_a_state_goes_on_from_the_one_before(bench, tmp_path):
    dies = """
import os, signal
from bbnet.training import checkpoint
saves, original = 0, checkpoint.torch.save
replace = os.replace
def killed(source, target):
    global saves
    saves += str(target).endswith("state.pt")
    if saves == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed
"""
    assert bench.train("rigl", tmp_path, prelude=dies).status() == -signal.SIGKILL
    assert [path for path in tmp_path.iterdir() if ".partial-" in path.name]
    assert bench.train("rigl", tmp_path).status() == 0
    assert interruptions(tmp_path) == 1
    assert outcome(tmp_path) == bench.undisturbed("rigl")


# States from which nothing goes on.


@pytest.fixture
def interrupted(bench, tmp_path) -> Path:
    """The folder of a run that was stopped in its second epoch."""
    assert bench.train("sp_in", tmp_path / "run", prelude=stopped_in(STEPS_PER_EPOCH + 3)).status() == 143
    return tmp_path / "run"


def test_what_was_interrupted_goes_on(bench, interrupted):
    """The counterpart of all below: here the state is taken."""
    resumed = bench.train("sp_in", interrupted)
    assert resumed.status() == 0
    assert "resumed after epoch 2 of 3, step 3 of the next" in resumed.said()[0]
    assert interruptions(interrupted) == 1
    assert outcome(interrupted) == bench.undisturbed("sp_in")


def zeros_in_the_middle(whole: bytes) -> bytes:
    """A page that never reached the disk."""
    middle = len(whole) // 2
    return whole[:middle] + bytes(4096) + whole[middle + 4096 :]


def a_flipped_bit(whole: bytes) -> bytes:
    """A bit in the middle of the largest tensor, as a disk may return it unnoticed."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        middle = whole.index(archive.read(largest)) + largest.file_size // 2
    return whole[:middle] + bytes([whole[middle] ^ 64]) + whole[middle + 1 :]


DAMAGES = {
    "emptied": lambda whole: b"",
    "cut to a tenth": lambda whole: whole[: len(whole) // 10],
    "cut in half": lambda whole: whole[: len(whole) // 2],
    "last byte cut": lambda whole: whole[:-1],
    "a page of zeros": zeros_in_the_middle,
    "a flipped bit": a_flipped_bit,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named_and_not_taken(bench, interrupted, damage):
    state = interrupted / "state.pt"
    state.write_bytes(DAMAGES[damage](state.read_bytes()))
    anew = bench.train("sp_in", interrupted)
    assert anew.status() == 0
    assert any(f"{state}: not a whole training state" in line and "restarts" in line for line in anew.said())
    assert interruptions(interrupted) == 0
    assert outcome(interrupted) == bench.undisturbed("sp_in")


def test_a_state_of_another_fingerprint_is_not_taken(bench, interrupted):
    assert bench.train("sp_in", interrupted, fingerprint="0123456789abcdef").status() == 0
    assert interruptions(interrupted) == 0
    anew, undisturbed = outcome(interrupted), bench.undisturbed("sp_in")
    assert anew.pop("record")["fingerprint"] == "0123456789abcdef"
    undisturbed.pop("record")
    assert anew == undisturbed


def test_a_state_of_another_warm_start_is_not_taken(bench, interrupted, tmp_path):
    other = tmp_path / "other.pt"
    start = load_state(bench.warm_start, torch.device("cpu"))
    for weight in start["model"].values():
        weight.mul_(2)
    save_state(other, start)
    assert bench.train("sp_in", interrupted, warm_start=other).status() == 0
    assert interruptions(interrupted) == 0
    assert bench.train("sp_in", tmp_path / "fresh", warm_start=other).status() == 0
    assert outcome(interrupted) == outcome(tmp_path / "fresh")
    assert outcome(interrupted)["model.safetensors"] != bench.undisturbed("sp_in")["model.safetensors"]


# Files that are not what they should be.


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self):
        return os.mkdir, (str(self.evidence),)


def raw_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("write", [torch.save, raw_pickle], ids=["torch", "pickle"])
def test_a_hostile_state_executes_nothing_and_is_not_taken(bench, interrupted, tmp_path, write: Callable):
    evidence, state = tmp_path / "evidence", interrupted / "state.pt"
    write({"fingerprint": Hostile(evidence), "trainer": Hostile(evidence)}, state)
    anew = bench.train("sp_in", interrupted)
    assert anew.status() == 0
    assert not evidence.exists()
    assert any(f"{state}: not a whole training state" in line for line in anew.said())
    assert outcome(interrupted) == bench.undisturbed("sp_in")


@pytest.mark.parametrize("write", [torch.save, raw_pickle], ids=["torch", "pickle"])
def test_a_hostile_warm_start_executes_nothing_and_is_refused_by_name(bench, tmp_path, write: Callable):
    evidence, start = tmp_path / "evidence", tmp_path / "checkpoint.pt"
    write({"fingerprint": "0" * 16, "model": Hostile(evidence)}, start)
    refused = bench.train("sp_in", tmp_path / "run", warm_start=start)
    assert refused.status() == 1
    assert f"{start}: not a whole training state" in one_error(refused.said())
    assert not evidence.exists()
    # It would have, were it trusted.
    if write is torch.save:
        torch.load(start, weights_only=False)
        assert evidence.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_warm_start_is_refused_by_name(bench, tmp_path, damage):
    start = tmp_path / "checkpoint.pt"
    start.write_bytes(DAMAGES[damage](bench.warm_start.read_bytes()))
    refused = bench.train("sp_in", tmp_path / "run", warm_start=start)
    assert refused.status() == 1
    assert f"{start}: not a whole training state" in one_error(refused.said())
    assert str(start) in error_note(tmp_path / "run")


@pytest.mark.parametrize("name", ["masks.safetensors", "model.safetensors"])
def test_a_file_of_another_run_is_named_and_the_run_trained_again(bench, tmp_path, name):
    for method in ("sp_in", "magnitude"):
        bench.undisturbed(method)
        shutil.copytree(bench.finished[method], tmp_path / method)
    assert (tmp_path / "sp_in" / name).read_bytes() != (tmp_path / "magnitude" / name).read_bytes()
    shutil.copy(tmp_path / "magnitude" / name, tmp_path / "sp_in" / name)
    again = bench.train("sp_in", tmp_path / "sp_in")
    assert again.status() == 0
    assert any(f"{name}: is not the file that the run wrote" in line for line in again.said())
    assert outcome(tmp_path / "sp_in") == bench.undisturbed("sp_in")


def test_a_finished_run_is_scored_again_without_training(bench, tmp_path):
    finished = bench.undisturbed("sp_in")
    run = tmp_path / "sp_in"
    shutil.copytree(bench.finished["sp_in"], run)
    record = (run / "record.json").read_bytes()
    (run / "metrics.json").unlink()
    (run / "items.parquet").write_bytes(b"")
    again = bench.train("sp_in", run)
    assert again.status() == 0
    assert not any("epoch" in line for line in again.said())
    assert (run / "record.json").read_bytes() == record
    assert outcome(run) == finished


def test_a_run_whose_scoring_failed_does_not_repeat_its_training(bench, tmp_path):
    fails = """
import bbnet.training.runs as runs
def refuse(*_):
    raise ValueError("no scores today")
runs.evaluate = refuse
"""
    failed = bench.train("sp_in", tmp_path, prelude=fails)
    assert failed.status() == 1
    assert "no scores today" in one_error(failed.said())
    # Snakemake removes the files of a failed job.
    for path in tmp_path.iterdir():
        if path.name not in ("state.pt", ".lock"):
            path.unlink()
    again = bench.train("sp_in", tmp_path)
    assert again.status() == 0
    assert not any("loss" in line for line in again.said())
    assert outcome(tmp_path) == bench.undisturbed("sp_in")


# What the machine refuses.


@pytest.mark.parametrize(("value", "said"), [("nan", "nan"), ("inf", "inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_step(bench, tmp_path, value, said):
    in_third_of_last = in_step(STEPS_PER_EPOCH + 3, f"return original(model, batch) * float({value!r})")
    failed = bench.train("magnitude", tmp_path, prelude=in_third_of_last)
    assert failed.status() == 1
    message = one_error(failed.said())
    assert f"step 3 of {STEPS_PER_EPOCH} of epoch 3 (seed 0)" in message
    assert error_note(tmp_path) in message
    assert not (tmp_path / "record.json").exists()
    assert bench.train("magnitude", tmp_path).status() == 0
    assert outcome(tmp_path) == bench.undisturbed("magnitude")


OUT_OF_MEMORY = {
    # What torch's allocator says of a tebibyte in an address space of 64 GiB.
    "cpu": "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**36,) * 2); torch.empty(2**38)",
    "gpu": "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
    "python": "raise MemoryError",
}


@pytest.mark.parametrize("where", OUT_OF_MEMORY)
def test_no_memory_is_one_line(bench, tmp_path, where):
    failed = bench.train("dense", tmp_path, prelude=in_step(2, OUT_OF_MEMORY[where]))
    assert failed.status() == 1
    message = one_error(failed.said())
    note = error_note(tmp_path)
    assert note in message and "\n" not in note
    assert "memory" in note.lower()
    assert bench.train("dense", tmp_path).status() == 0
    assert outcome(tmp_path) == bench.undisturbed("dense")


def test_a_full_disk_while_a_state_is_saved_is_a_warning(bench, tmp_path):
    bench.undisturbed("sp_in")
    disk = tmp_path / "disk"
    results = sum(path.stat().st_size for path in bench.finished["sp_in"].iterdir())
    with small_disk(disk, f"{results // 1024 + 40}k"):
        trained = bench.train("sp_in", disk)
        assert trained.status() == 0, trained.said()
        warnings = [line for line in trained.said() if "could not be saved" in line]
        assert warnings
        assert all("state.pt" in line and "No space left on device" in line for line in warnings)
        assert interruptions(disk) == 0
        assert outcome(disk) == bench.undisturbed("sp_in")


def one_error_without_a_log(bench, folder: Path, log: Path) -> str:
    """Of a training whose log cannot be written either."""
    failed = bench.train("sp_in", folder, log=log)
    assert failed.status() == 1
    return one_error(failed.said())


def size_of(folder: Path) -> int:
    """Of all its files, in bytes of whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_while_weights_are_written_is_one_error_and_nothing_is_lost(bench, tmp_path, interrupted):
    finished = bench.undisturbed("dense")
    weights = (bench.finished["dense"] / "model.safetensors").stat().st_size
    disk = tmp_path / "disk"
    room = size_of(bench.finished["dense"]) + size_of(interrupted) + weights // 2
    with small_disk(disk, f"{room // 1024}k"):
        shutil.copytree(bench.finished["dense"], disk / "dense")
        shutil.copytree(interrupted, disk / "sp_in")
        failed = bench.train("sp_in", disk / "sp_in")
        assert failed.status() == 1
        message = one_error(failed.said())
        assert str(disk / "sp_in" / "model.safetensors") in message
        assert "No space left on device" in message
        assert {path.name for path in (disk / "sp_in").iterdir()} - {"error.json"} == {"state.pt", ".lock"}
        assert outcome(disk / "dense") == finished
        (disk / "log").touch()
        with (disk / "filler").open("wb") as filler, suppress(OSError):
            filler.write(bytes(2**20))
        assert one_error_without_a_log(bench, disk / "sp_in", disk / "log")
        remount(disk, "size=8m")
        assert bench.train("sp_in", disk / "sp_in").status() == 0
        assert interruptions(disk / "sp_in") == 1  # the one that could be noted
        assert outcome(disk / "sp_in") == bench.undisturbed("sp_in")


def test_a_results_folder_that_became_read_only_is_one_error_and_nothing_is_lost(bench, tmp_path, interrupted):
    finished = bench.undisturbed("dense")
    disk = tmp_path / "disk"
    with small_disk(disk, "8m"):
        shutil.copytree(bench.finished["dense"], disk / "dense")
        shutil.copytree(interrupted, disk / "sp_in")
        remount(disk, "ro")
        for failed in (bench.train("sp_in", disk / "sp_in"), bench.train("dense", disk / "dense")):
            assert failed.status() == 1
            message = one_error(failed.said())
            assert "Read-only file system" in message
            assert str(disk) in message
        assert one_error_without_a_log(bench, disk / "sp_in", disk / "logs" / "train.log")
        remount(disk, "rw")
        assert outcome(disk / "dense") == finished
        assert bench.train("sp_in", disk / "sp_in").status() == 0
        assert interruptions(disk / "sp_in") == 1
        assert outcome(disk / "sp_in") == bench.undisturbed("sp_in")


def test_a_clock_that_jumps_changes_nothing(bench, tmp_path):
    backwards = """
import time
real, jumps = time.time, 0
def jumping():
    global jumps
    jumps += 1
    return real() - 86400 * jumps
time.time = jumping
"""
    assert bench.train("rigl", tmp_path, prelude=backwards).status() == 0
    assert outcome(tmp_path) == bench.undisturbed("rigl")
    assert 0 <= json.loads((tmp_path / "record.json").read_text())["seconds"] < 120


# A job and its parent.


def gone(pid: int, seconds: float = 60) -> bool:
    """Waits for a process that is no child of this one to end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def read_when_there(path: Path, seconds: float = 60) -> str:
    until = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"{path.name} never came"
        time.sleep(0.05)
    return path.read_text()


def test_a_job_whose_parent_is_killed_saves_its_state_and_ends(bench, tmp_path):
    forks = """
import os, signal
parent = os.getpid()
if os.fork():
    while True:
        signal.pause()
os.environ["BBNET_PARENT"] = str(parent)
"""
    waits = f"""
        with open({str(tmp_path / "job")!r}, "w") as file:
            file.write(str(os.getpid()))
        import time
        while os.getppid() == int(os.environ["BBNET_PARENT"]):
            time.sleep(0.05)
"""
    run = tmp_path / "run"
    parent = bench.train("sp_in", run, prelude=forks + in_step(STEPS_PER_EPOCH + 2, waits.strip()))
    job = int(read_when_there(tmp_path / "job"))
    os.kill(parent.pid, signal.SIGKILL)
    assert gone(job)
    assert "stopped by SIGTERM" in parent.said()[-1]
    assert load_state(run / "state.pt", torch.device("cpu"))["trainer"]["within_epoch"]["position"] == 2
    assert bench.train("sp_in", run).status() == 0
    assert interruptions(run) == 1
    assert outcome(run) == bench.undisturbed("sp_in")


def test_a_job_whose_parent_is_killed_while_it_imports_ends_before_it_trains(bench, tmp_path):
    arguments = bench.arguments_of_training("sp_in", tmp_path / "run")
    begins = "import os, subprocess, sys; job = subprocess.Popen(sys.argv[1:], env=os.environ | {'BBNET_PARENT': "
    begins += "str(os.getpid())}); print(job.pid, flush=True); job.wait()"
    script = ROOT / "workflow_scripts" / "train.py"
    command = [sys.executable, "-c", begins, sys.executable, script, *arguments, "--log", tmp_path / "log"]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as parent:
        job = int(parent.stdout.readline())
        parent.kill()
    assert gone(job)
    assert not (tmp_path / "run").exists()


# Snakemake.


@pytest.fixture
def project(bench, tmp_path) -> Project:
    """The project with the study of the bench, its data there and its warm-up done, but for Snakemake's own notes."""
    project = new_project(tmp_path / "project")
    warm_up = project.root / "results/study/warm_up/change/tiny/s0"
    shutil.copytree(bench.warm_start.parent, warm_up)
    shutil.copytree(bench.data, project.root / "data")
    for name in ("checkpoint.pt", "history.csv", "units.csv"):
        os.utime(warm_up / name)
    return project


def new_project(root: Path) -> Project:
    project = build_project(root)
    project.write_study(STUDY, "study")
    knobs = root / "config.yaml"
    knobs.write_text(knobs.read_text().replace("study: demo", "study: study").replace("device: auto", "device: cpu"))
    return project


def run_folder(method: str) -> str:
    return f"results/study/runs/change/tiny/{method}/b{'1.00' if method == 'dense' else '0.50'}/s0"


@pytest.mark.parametrize(
    ("arguments", "goes_on"),
    [
        ([], True),
        (["--forcerun", "train"], False),
        pytest.param(["--force"], False, marks=pytest.mark.thorough),
        pytest.param(["--forceall", "--allowed-rules", "train"], False, marks=pytest.mark.thorough),
    ],
)
def test_snakemake_goes_on_unless_it_is_forced(bench, project, arguments, goes_on):
    folder, finished = project.root / run_folder("sp_in"), project.root / run_folder("dense")
    assert bench.train("sp_in", folder, prelude=stopped_in(11)).status() == 143
    bench.undisturbed("dense")
    shutil.copytree(bench.finished["dense"], finished)
    result = project.snakemake(f"{run_folder('sp_in')}/record.json", *arguments)
    assert result.returncode == 0, result.stdout
    assert "1 of 1 steps (100%) done" in result.stdout
    assert ("resumed after epoch 2 of 3, step 3" in result.stdout) == goes_on
    assert interruptions(folder) == int(goes_on)
    assert outcome(folder) == bench.undisturbed("sp_in")
    assert outcome(finished) == bench.undisturbed("dense")  # which the call did not ask for


@pytest.mark.thorough
def test_after_a_clock_was_set_back_one_command_repairs_the_time_stamps_and_nothing_is_trained_again(bench, project):
    target = f"{run_folder('sp_in')}/metrics.json"
    tomorrow = time.time() + 86400
    inputs = [*project.root.glob("data/*/*.json"), *project.root.glob("results/study/warm_up/*/*/*/*")]
    assert len(inputs) > 4
    for path in inputs:
        os.utime(path, (tomorrow, tomorrow))
    refused = project.snakemake(target)
    assert refused.returncode != 0
    assert "its time stamp is in the future" in one_error(refused.stdout.splitlines())
    assert not (project.root / run_folder("sp_in") / "record.json").exists()
    subprocess.run("find data results -newermt now -exec touch {} +", shell=True, check=True, cwd=project.root)
    result = project.snakemake(target)
    assert result.returncode == 0, result.stdout
    assert outcome(project.root / run_folder("sp_in")) == bench.undisturbed("sp_in")
    assert project.planned(target) == {}


@pytest.mark.thorough
def test_a_second_snakemake_in_a_folder_is_refused_and_the_first_goes_through(bench, project):
    target = f"{run_folder('dense')}/record.json"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", target]
    environment = os.environ | {"PYTHONPATH": str(project.root)}
    with subprocess.Popen(command, cwd=project.root, env=environment, stderr=subprocess.PIPE, text=True) as first:
        until = time.monotonic() + 60
        while not list((project.root / ".snakemake").glob("locks/*")) and time.monotonic() < until:
            time.sleep(0.05)
        # Halted, the first cannot be done before the second begins.
        first.send_signal(signal.SIGSTOP)
        try:
            assert first.poll() is None, "the first was done before it was halted"
            second = project.snakemake(target)
        finally:
            first.send_signal(signal.SIGCONT)
        output = first.communicate()[1]
    assert second.returncode != 0
    assert "cannot be locked" in second.stdout
    assert "Traceback" not in second.stdout
    assert first.returncode == 0, output
    assert outcome(project.root / run_folder("dense")) == bench.undisturbed("dense")


@pytest.mark.thorough
def test_two_copies_that_share_their_data_and_results_leave_them_whole(bench, tmp_path):
    projects = [new_project(tmp_path / name) for name in ("first", "second")]
    shared = [f"data_dir={tmp_path / 'data'}", f"results_dir={tmp_path / 'results'}"]
    target = str(tmp_path / run_folder("dense") / "record.json")
    calls = [
        subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "1", target, "--config", *shared],
            cwd=project.root,
            env=os.environ | {"PYTHONPATH": str(project.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for project in projects
    ]
    outputs = [call.communicate()[0] for call in calls]
    assert 0 in [call.returncode for call in calls], "\n".join(outputs)
    assert not any("Traceback" in output for output in outputs), "\n".join(outputs)
    again = projects[0].snakemake(target, "--config", *shared)
    assert again.returncode == 0, again.stdout
    assert outcome(tmp_path / run_folder("dense")) == bench.undisturbed("dense")
    assert not [path for path in (tmp_path / "data").rglob("*") if ".partial-" in path.name]
    assert {path.suffix for path in (tmp_path / "data" / "partial").iterdir()} == {".lock"}


EXPLODES = """
import torch
from torch import Tensor

from bbnet.sparsity.algorithms import ActivationGating


class Explodes(ActivationGating):
    def kept(self, outputs: Tensor, count: int) -> Tensor:
        outputs.data.fill_(float("nan"))
        return torch.ones_like(outputs, dtype=torch.bool)
"""


@pytest.mark.thorough
def test_a_run_that_explodes_stops_no_other(bench, project):
    (project.root / "bbnet/sparsity/algorithms/explodes.py").write_text(EXPLODES)
    parameters = project.root / "bbnet/sparsity/parameters"
    shutil.copy(parameters / "topk.py", parameters / "explodes.py")
    project.write_study(STUDY | {"methods": STUDY["methods"] | {"explodes": {"algorithm": "explodes"}}}, "study")
    result = project.snakemake(*(f"{run_folder(method)}/record.json" for method in ("explodes", "dense")))
    assert result.returncode != 0
    assert "1 of 6 cells failed, for example change/tiny/explodes/b0.50/s0" in result.stdout
    assert "step 2 of 8 of epoch 2 (seed 0)" in error_note(project.root / run_folder("explodes"))
    assert outcome(project.root / run_folder("dense")) == bench.undisturbed("dense")


def test_snakemake_refuses_results_that_cannot_be_written(tmp_path):
    project = new_project(tmp_path / "project")
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        remount(disk, "ro")
        result = project.snakemake("--config", f"results_dir={disk}")
        assert result.returncode == 1
        assert str(disk) in result.stdout
        assert "results_dir" in result.stdout
        assert "Traceback" not in result.stdout
    assert not (project.root / "data").exists()
