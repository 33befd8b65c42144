"""Which device a job computes on; on a machine with several GPUs, one with a free slot."""

import ctypes
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch

from bbnet.data.store import alone

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 0.1
# glibc's mallopt(3): its parameters, and values that mean never.
M_TRIM_THRESHOLD, NEVER_TRIM = -1, -1
M_MMAP_MAX, NO_MMAP = -4, 0


def choose_device(wanted: str, gpu_slots: int = 1) -> torch.device:
    """`auto` takes a GPU where there is one: the least busy, a slot of which is claimed while this process lives.

    On a CPU this process keeps from now on what it frees.

    CUDA_VISIBLE_DEVICES names the GPUs to choose from. Where it names one, that is the one, and nothing is claimed: it
    was given by a scheduler or by hand.

    Args:
        gpu_slots: processes that may share a GPU.
    Raises: ValueError for a GPU that is not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no GPU; allowed here: auto, cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(torch.cuda.device_count())]
    names = [name.strip() for name in given.split(",")][: len(gpus)] if given else gpus
    if given and len(gpus) == 1:
        number = 0
    else:
        number = names.index(claim_slot(names, gpu_slots, slots_folder()))
        logger.info("GPU %s of %s", names[number], ", ".join(names))
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """What activations leave is used again by the next step. By default glibc hands blocks of some MiB back to the
    system, which clears them page by page when they are asked for again: up to a tenth of a step at the paper's sizes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # not in other C libraries
        mallopt(M_MMAP_MAX, NO_MMAP)
        mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)


def slots_folder() -> Path:
    """Of this machine and user; and of the allocation, where a scheduler numbers each one's GPUs from 0."""
    allocation = os.environ.get("SLURM_JOB_ID", "")
    return Path(tempfile.gettempdir(), f"bbnet-gpus-{os.getuid()}{allocation and '-' + allocation}")


_claimed: list[IO] = []


def claim_slot(gpus: Sequence[str], slots: int, folder: Path) -> str:
    """The GPU with the most free slots, of which this process now holds one; waits until there is one.

    A slot is a lock on a file, so it is free again when its process ends, however it ends.

    Args:
        slots: of each GPU.
        folder: of the lock files, on this machine.
    """
    waits = False
    while True:
        with alone(folder / "claim.lock"):
            gpu = _claim_if_free(gpus, slots, folder)
        if gpu is not None:
            return gpu
        if not waits:
            logger.info("all %d slots of %d GPUs are taken; waiting for one", slots * len(gpus), len(gpus))
        waits = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _claim_if_free(gpus: Sequence[str], slots: int, folder: Path) -> str | None:
    """Returns with all slots let go but the one claimed: who looks next must not take them for claimed."""
    free = {gpu: _free_slots(folder, gpu, slots) for gpu in gpus}
    gpu = max(gpus, key=lambda gpu: len(free[gpu]))
    if not free[gpu]:
        return None
    _claimed.append(free[gpu][0])
    return gpu


def _free_slots(folder: Path, gpu: str, slots: int) -> list[IO]:
    """The locked files of its free slots; they are let go when the list is."""
    free = []
    for slot in range(slots):
        file = (folder / f"{gpu.replace('/', '_')}-{slot}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(file)
        except BlockingIOError:
            file.close()
    return free
