"""A SLURM on this machine, of one node with two GPUs that are none, and projects that send their jobs to it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow.conftest import Project, empty_project  # noqa: F401

SYSTEM = f"{os.environ['PATH']}:/usr/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
CONFIGURATION = """\
ClusterName=bbnet
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MpiDefault=none
MinJobAge=86400
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=200000 Gres=gpu:2
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
GPUS = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"


@dataclass
class Slurm:
    """A SLURM whose files are in a folder, and the environment in which its commands reach it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{self.folder / 'bin'}:{SYSTEM}"}

    def ask(self, *command: str) -> str:
        return subprocess.run(
            command, env=os.environ | self.environment, text=True, stdout=subprocess.PIPE, check=True
        ).stdout

    def jobs(self) -> list[dict[str, str]]:
        """What `scontrol show job` knows of each, also of those that ended in the last minutes."""
        lines = self.ask("scontrol", "--oneliner", "show", "job").splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]

    @contextmanager
    def runs(self, project: Project, *arguments: str) -> Iterator[subprocess.Popen]:
        """Snakemake with profiles/slurm, its output in `snakemake.log`; at the end it and its jobs are killed."""
        profile = ["--workflow-profile", "profiles/slurm"]
        speed = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5"]
        with (project.root / "snakemake.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *profile, *speed, *arguments],
                cwd=project.root,
                env=os.environ | {"PYTHONPATH": str(project.root)} | self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            self.ask("scancel", "--user=root")


def wait_for(what: Callable[[], object], seconds: float) -> object:
    """What `what` says once that is true."""
    end = time.monotonic() + seconds
    while not (said := what()):
        assert time.monotonic() < end, f"waited {seconds} s"
        time.sleep(0.05)
    return said


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [program for program in NEEDED if not shutil.which(program, path=SYSTEM)]
    if missing:
        pytest.skip(f"SLURM is not installed (apt-get install slurm-wlm munge): no {', '.join(missing)}")
    if os.getuid() != 0:
        pytest.skip("only root can start a SLURM whose jobs run as root")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munged insists
    cluster = Slurm(folder)
    write_configuration(cluster)
    munge_files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge_options = [f"--{option}={folder}/munge.{suffix}" for option, suffix in munge_files.items()]
    daemons = []
    try:
        daemons.append(start(cluster, "munged", "--foreground", "--force", *munge_options))
        wait_for((folder / "munge.socket").exists, 20)
        daemons.append(start(cluster, "slurmctld", "-D"))
        daemons.append(start(cluster, "slurmd", "-D"))
        wait_for(lambda: "State=IDLE" in run_quietly(cluster, "scontrol", "--oneliner", "show", "node"), 30)
        yield cluster
        cluster.ask("scancel", "--user=root")
        wait_for(lambda: not cluster.ask("squeue", "--noheader"), 60)
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def write_configuration(cluster: Slurm) -> None:
    folder = cluster.folder
    host = socket.gethostname().split(".")[0]
    settings = CONFIGURATION.format(folder=folder, host=host, controller_port=free_port(), node_port=free_port())
    (folder / "slurm.conf").write_text(settings)
    (folder / "gres.conf").write_text(GPUS)
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    # Snakemake takes all variables of SLURM from its call of srun, which elsewhere finds its configuration in /etc.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=SYSTEM)} "$@"\n')
    srun.chmod(0o755)


def start(cluster: Slurm, *command: str) -> subprocess.Popen:
    with (cluster.folder / f"{command[0]}.out").open("w") as log:
        return subprocess.Popen(
            command, env=os.environ | cluster.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def run_quietly(cluster: Slurm, *command: str) -> str:
    """What a command says, nothing if it fails."""
    try:
        return cluster.ask(*command)
    except subprocess.CalledProcessError:
        return ""
