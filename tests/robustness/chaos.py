"""Runs a study undisturbed, and again while random processes of it are killed; both must give the same results.

    python tests/robustness/chaos.py --kills 100 --seed 0

Victims are Snakemake itself and its jobs, those of kinds that were hit least most likely; whenever Snakemake has ended
it is called again as a user would, in a fresh copy of the repository if the study is complete. The seed draws who dies
and after how long; where in its work that is depends on the machine. Exit status 1 if a round does not complete, leaves
a process or something half-written behind, or differs in a byte.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
JOB_LIVES = (0.1, 8.0)  # seconds of computing, of one that is to die; importing torch takes 2 to 4 of them
SNAKEMAKE_LIVES = (0.5, 25.0)  # seconds; it computes next to nothing
DIES = 0.8  # probability, of a process of the kind that was hit least
TICKS = os.sysconf("SC_CLK_TCK")
SECONDS_TO_END = 30  # for jobs whose Snakemake is gone
MUST_BE_HIT = ("snakemake", "prepare", "warm_up", "train")
COMPARED = ("summary", "buckets", "warm_up", "runs", "figures", "tables")
NEVER_EQUAL = re.compile(r"timing\.csv|record\.json|.*-costs\..*|\..*")  # they hold times and the machine; hidden files
SCRIPT = re.compile(rb"workflow_scripts/(\w+)\.py")


class ChaosError(Exception):
    """Something did not survive, or time is up."""


@dataclass(frozen=True)
class Process:
    """A living process at one moment; its command changes when a shell becomes the job."""

    pid: int
    parent: int
    started: int
    computed: float
    command: bytes

    @property
    def identity(self) -> tuple[int, int]:
        """Numbers are given anew."""
        return self.pid, self.started

    @property
    def kind(self) -> str:
        script = SCRIPT.search(self.command)
        return script[1].decode() if script else "snakemake" if b"snakemake" in self.command else "other"

    @property
    def lived(self) -> float:
        """Seconds; of a job those that it computed, so that the machine's load does not matter."""
        if self.kind != "snakemake":
            return self.computed
        return float(Path("/proc/uptime").read_text().split()[0]) - self.started / TICKS


def living(pid: int) -> Process | None:
    """None if there is no such process, or a zombie."""
    try:
        state, parent, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if state in "ZX" or not command:
        return None
    computed = (int(fields[9]) + int(fields[10])) / TICKS
    return Process(pid, int(parent), int(fields[17]), computed, command)


def living_in(folder: Path) -> dict[Process, str]:
    """Processes that work in `folder`, so that no other is ever killed, and their kinds; workers have one of their own.

    `folder` must be resolved.
    """
    found = {}
    for entry in sorted(Path("/proc").iterdir()):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                found[int(entry.name)] = living(int(entry.name))
    return {
        it: f"{it.kind} worker" if (parent := found.get(it.parent)) and parent.command == it.command else it.kind
        for it in found.values()
        if it
    }


def kill(process: Process) -> bool:
    """False if it has ended before."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        now = living(process.pid)
        if now is None or now.identity != process.identity:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


class Reaper:
    """Decides when it first sees a process whether it dies, and after how long."""

    def __init__(self, kills: int, seed: int) -> None:
        self.left = kills
        self.hits: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lives: dict[tuple[int, int], float] = {}

    def due(self, processes: dict[Process, str]) -> dict[Process, str]:
        """Those whose time has come."""
        for process, kind in processes.items():
            if kind != "other" and process.identity not in self._lives:
                self._lives[process.identity] = self._draw(kind)
        return {it: kind for it, kind in processes.items() if it.lived > self._lives.get(it.identity, float("inf"))}

    def _draw(self, kind: str) -> float:
        """How long a process lives."""
        ahead = self.hits[kind] - min(self.hits[other] for other in {kind, *self.hits, *MUST_BE_HIT})
        dies = self._random.random() < DIES / (1 + ahead / 2)
        seconds = self._random.uniform(*(SNAKEMAKE_LIVES if kind == "snakemake" else JOB_LIVES))
        return seconds if dies else float("inf")


@dataclass
class Copy:
    """The files of the repository in a folder of their own, in which a study is run."""

    folder: Path
    arguments: list[str]
    calls: int = 0

    def __post_init__(self) -> None:
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.decode().split("\0"):
            if name and (ROOT / name).is_file():
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)

    def start(self, *arguments: str) -> subprocess.Popen:
        self.calls += 1
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "snakemake", *arguments, *self.arguments],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(self.folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        """What the last call printed."""
        return self.folder.parent / f"{self.folder.name}-call-{self.calls}.log"

    def call(self, *arguments: str) -> str:
        """Runs a call that nothing disturbs; returns what it printed."""
        if self.start(*arguments).wait():
            raise ChaosError(f"{' '.join(['snakemake', *arguments])} fails by itself:\n{self.log.read_text()[-4000:]}")
        return self.log.read_text()

    def check_nothing_runs(self) -> None:
        until = time.monotonic() + SECONDS_TO_END
        while orphans := living_in(self.folder):
            if time.monotonic() > until:
                named = ", ".join(f"{kind} {it.pid}" for it, kind in orphans.items())
                raise ChaosError(f"{SECONDS_TO_END} s after Snakemake has ended there still run: {named}")
            time.sleep(0.1)

    def end_all(self) -> None:
        for process in living_in(self.folder):
            kill(process)

    def results(self) -> dict[str, bytes]:
        """Every file that must not depend on interruptions, by name."""
        (study,) = (self.folder / "results").glob("*/runs")
        return {
            str(path.relative_to(study.parent)): path.read_bytes()
            for part in COMPARED
            for path in sorted((study.parent / part).rglob("*"))
            if path.is_file() and not NEVER_EQUAL.fullmatch(path.name)
        }

    def leftovers(self) -> Iterator[Path]:
        """What only unfinished work may leave; lock files stay."""
        for root in ("results", "data"):
            for path in sorted((self.folder / root).rglob("*")):
                half_written = ".partial-" in path.name or path.parent.name == "partial" and path.suffix != ".lock"
                if half_written or path.name in ("state.pt", "error.json"):
                    yield path.relative_to(self.folder)


class Chaos:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.began = time.monotonic()
        self.until = self.began + 60 * options.minutes
        self.folder = folder
        # A state is saved after every step or so, to go on from any of them.
        config = [f"study={options.study}", "device=cpu", "checkpoint_minutes=0.001"]
        self.arguments = ["--cores", str(options.cores), "--config", *config]
        self.reaper = Reaper(options.kills, options.seed)
        self.resumed, self.rounds = 0, 0

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    def run(self) -> None:
        self.say("the study undisturbed")
        undisturbed = self.round("undisturbed", disturb=False)
        while self.reaper.left:
            self.rounds += 1
            results = self.round(f"round-{self.rounds}", disturb=True)
            if differ := sorted(
                name for name in undisturbed.keys() | results.keys() if undisturbed.get(name) != results.get(name)
            ):
                raise ChaosError(f"round {self.rounds}: differ from the undisturbed run: {', '.join(differ)}")
            self.say(f"round {self.rounds} is complete; {len(results)} files are equal")

    def round(self, name: str, disturb: bool) -> dict[str, bytes]:
        copy = Copy(self.folder / name, self.arguments)
        try:
            while not self.call_until_it_ends(copy, disturb):
                pass
            if "Nothing to be done" not in copy.call("--dry-run"):
                raise ChaosError(f"{name}: complete, but the next call would do:\n{copy.log.read_text()[-4000:]}")
        finally:
            copy.end_all()
        if left := list(copy.leftovers()):
            raise ChaosError(f"{name}: left behind: {', '.join(map(str, left))}")
        return copy.results()

    def call_until_it_ends(self, copy: Copy, disturb: bool) -> bool:
        """Whether the study is complete."""
        snakemake = copy.start()
        killed: list[str] = []
        while snakemake.poll() is None:
            if time.monotonic() > self.until:
                raise ChaosError(f"time is up; {self.reaper.left} kills were left")
            for victim, kind in self.reaper.due(living_in(copy.folder)).items() if disturb else ():
                if self.reaper.left and kill(victim):
                    killed.append(kind)
                    self.note(victim, kind)
            time.sleep(0.1)
        copy.check_nothing_runs()
        printed = copy.log.read_text()
        self.resumed += printed.count("resumed after epoch")
        if snakemake.returncode == 0:
            return True
        if not killed:
            raise ChaosError(f"Snakemake fails by itself:\n{printed[-4000:]}")
        if "snakemake" in killed:
            copy.call("--unlock")
        return False

    def note(self, victim: Process, kind: str) -> None:
        self.reaper.left -= 1
        self.reaper.hits[kind] += 1
        self.say(f"round {self.rounds}: killed {kind} {victim.pid} after {victim.lived:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", default="smoke")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60, help="it fails if it takes longer (default: %(default)s)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bbnet-chaos-")).resolve()
    chaos = Chaos(options, folder)
    try:
        chaos.run()
        missed = [kind for kind in MUST_BE_HIT if not chaos.reaper.hits[kind]]
        if missed and options.kills >= 10 * len(MUST_BE_HIT):
            raise ChaosError(f"never hit: {', '.join(missed)}")
    except ChaosError as failure:
        print(f"FAILED: {failure}\nwhat is there stays in {folder}", flush=True)
        sys.exit(1)
    finally:
        for kind, count in chaos.reaper.hits.most_common():
            print(f"{kind:20} {count:4} killed")
        print(f"{'trainings':20} {chaos.resumed:4} went on from a saved state")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
