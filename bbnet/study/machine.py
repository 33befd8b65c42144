"""The name of this machine's processor or GPU and its number of GPUs, found without torch."""

import os
import platform
import subprocess
from functools import cache
from itertools import takewhile
from pathlib import Path

from bbnet.study.config import ConfigError


def name_of(device: str) -> str:
    """Returns the name of the GPU for `cuda`, of the CPU for `cpu`, and of the first GPU, if any, for `auto`."""
    gpus = [] if device == "cpu" else _gpus()
    if gpus:
        return gpus[0]
    return "a GPU that is not here" if device == "cuda" else _cpu()


def gpu_count() -> int:
    """Returns the number of GPUs that runs may use: BBNET_GPUS, else those in CUDA_VISIBLE_DEVICES, else all.

    Raises: ConfigError if BBNET_GPUS is not a number.
    """
    told = os.environ.get("BBNET_GPUS")
    if told is not None:
        if not told.isdecimal():
            raise ConfigError(f"environment variable BBNET_GPUS: must be a whole number, found {told!r}")
        return int(told)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(_gpus())
    return len(list(takewhile(lambda name: name.strip() not in ("", "-1"), visible.split(","))))


@cache
def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [name.strip() for name in found.stdout.splitlines()] if found.returncode == 0 else []


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"
