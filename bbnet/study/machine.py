"""What the machine is called, found without torch."""

import os
import platform
import subprocess
from pathlib import Path


def name_of(device: str) -> str:
    """The GPU's name for `cuda`, the CPU's and its cores for `cpu`; `auto` takes the first GPU where there is one."""
    gpu = None if device == "cpu" else _gpu()
    return gpu or ("a GPU that is not here" if device == "cuda" else _cpu())


def _gpu() -> str | None:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return names[0].strip() if names else None


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"
