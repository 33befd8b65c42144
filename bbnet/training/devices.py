"""Choice of the device that a job computes on; on a machine with several GPUs, one with a free slot."""

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
POLL_SECONDS = 0.1
# Parameters of glibc's mallopt(3), with the values that turn trimming and memory-mapped blocks off.
M_TRIM_THRESHOLD, NEVER_TRIM = -1, -1
M_MMAP_MAX, NO_MMAP = -4, 0


def choose_device(wanted: str, gpu_slots: int = 1) -> torch.device:
    """Returns the device to compute on, and claims a slot of the GPU with the most free slots.

    The slot is held until this process ends. On a CPU, freed memory is kept by the process (see `keep_freed_memory`).
    CUDA_VISIBLE_DEVICES names the GPUs to choose from. If it names a single one, that GPU is used and no slot is
    claimed, because a scheduler or the user has assigned it.

    Args:
        wanted: `cpu`, `cuda`, or `auto`, which is BBNET_DEVICE if set, else `cuda` if torch sees a GPU. The recipe of a
            run says `auto` also if `cpu` is asked for where `auto` was a CPU before.
        gpu_slots: number of processes that may share a GPU.
    Raises: ValueError for `cuda` if torch sees no GPU.
    """
    if wanted == "auto":
        wanted = os.environ.get("BBNET_DEVICE", "auto")
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
        logger.info("using GPU %s of %s", names[number], ", ".join(names))
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Makes malloc keep freed memory, so that the activations of the next step reuse it.

    By default glibc returns blocks of several MiB to the system, which zeroes their pages at the next allocation. That
    takes up to a tenth of a step at the paper's sizes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries lack it
        mallopt(M_MMAP_MAX, NO_MMAP)
        mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)


def slots_folder() -> Path:
    """Returns the folder of the lock files, per user, and per SLURM allocation since each numbers its GPUs from 0."""
    allocation = os.environ.get("SLURM_JOB_ID", "")
    return Path(tempfile.gettempdir(), f"bbnet-gpus-{os.getuid()}{allocation and '-' + allocation}")


_claimed: list[IO] = []


def claim_slot(gpus: Sequence[str], slots: int, folder: Path) -> str:
    """Claims a slot of the GPU with the most free slots and returns that GPU; waits until a slot is free.

    A slot is a lock on a file, which the system releases when the process ends, even if it is killed.

    Args:
        slots: number of slots per GPU.
        folder: folder of the lock files, on this machine.
    """
    waits = False
    while True:
        with alone(folder / "claim.lock"):
            gpu = _claim_if_free(gpus, slots, folder)
        if gpu is not None:
            return gpu
        if not waits:
            logger.info("all %d slots of %d GPUs are in use; waiting for a free one", slots * len(gpus), len(gpus))
        waits = True
        time.sleep(POLL_SECONDS)


def _claim_if_free(gpus: Sequence[str], slots: int, folder: Path) -> str | None:
    """Claims one free slot. All other locks are released on return, or the next process would take them for claimed."""
    free = {gpu: _free_slots(folder, gpu, slots) for gpu in gpus}
    gpu = max(gpus, key=lambda gpu: len(free[gpu]))
    if not free[gpu]:
        return None
    _claimed.append(free[gpu][0])
    return gpu


def _free_slots(folder: Path, gpu: str, slots: int) -> list[IO]:
    """Locks and returns the files of the free slots; the locks are released when the list is garbage-collected."""
    free = []
    for slot in range(slots):
        file = (folder / f"{gpu.replace('/', '_')}-{slot}.lock").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(file)
        except BlockingIOError:
            file.close()
    return free
