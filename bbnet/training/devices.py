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
    """Returns the device to compute on; see `choose_devices`."""
    return choose_devices(wanted, gpu_slots)[0]


def choose_devices(wanted: str, gpu_slots: int = 1, count: int = 1, number: int | None = None) -> list[torch.device]:
    """Returns the devices to compute on, and claims a slot of each of the GPUs with the most free slots.

    The slots are held until this process ends. On a CPU, freed memory is kept by the process (see `keep_freed_memory`).
    CUDA_VISIBLE_DEVICES names the GPUs to choose from. If it names as many as are needed, these are used and no slot is
    claimed, because a scheduler or the user has assigned them.

    Args:
        wanted: `cpu`, `cuda`, or `auto`, which is BBNET_DEVICE if set, else `cuda` if torch sees a GPU. The recipe of a
            run says `auto` also if `cpu` is asked for where `auto` was a CPU before.
        gpu_slots: number of processes that may share a GPU.
        count: number of devices; GPUs are different ones.
        number: the GPU to use, as torch counts them, which another process has claimed.
    Raises: ValueError for `cuda` if torch sees no GPU, or if it sees fewer than are needed.
    """
    if wanted == "auto":
        wanted = os.environ.get("BBNET_DEVICE", "auto")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no GPU; allowed here: auto, cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
        return [torch.device("cpu")] * count
    names = gpu_names()
    needed = count if number is None else number + 1
    if len(names) < needed:
        raise ValueError(f"training.devices needs {needed} GPUs, but torch sees {len(names)}")
    if number is not None:
        numbers = [number]
    elif os.environ.get("CUDA_VISIBLE_DEVICES") and len(names) == count:
        numbers = list(range(count))
    else:
        claimed = claim_slots(names, gpu_slots, slots_folder(), count)
        numbers = [names.index(name) for name in claimed]
        logger.info("using GPU %s of %s", ", ".join(claimed), ", ".join(names))
    devices = [torch.device("cuda", number) for number in numbers]
    torch.cuda.set_device(devices[0])
    return devices


def gpu_names() -> list[str]:
    """Returns the names of the GPUs that torch sees, by its numbers: those in CUDA_VISIBLE_DEVICES, or the numbers."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in given.split(",")][: len(gpus)] if given else gpus


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


def claim_slots(gpus: Sequence[str], slots: int, folder: Path, count: int = 1) -> list[str]:
    """Claims a slot of each of the `count` GPUs with the most free slots and returns these; waits until all are free.

    A slot is a lock on a file, which the system releases when the process ends, even if it is killed.

    Args:
        slots: number of slots per GPU.
        folder: folder of the lock files, on this machine.
    """
    waits = False
    while True:
        with alone(folder / "claim.lock"):
            claimed = _claim_if_free(gpus, slots, folder, count)
        if claimed:
            return claimed
        if not waits:
            logger.info("waiting for free slots of %d of %d GPUs, which have %d each", count, len(gpus), slots)
        waits = True
        time.sleep(POLL_SECONDS)


def _claim_if_free(gpus: Sequence[str], slots: int, folder: Path, count: int) -> list[str]:
    """Claims a free slot of each of `count` GPUs, or none, and returns these GPUs.

    All other locks are released on return, or the next process would take them for claimed.
    """
    free = {gpu: _free_slots(folder, gpu, slots) for gpu in gpus}
    chosen = sorted(gpus, key=lambda gpu: -len(free[gpu]))[:count]
    if not all(free[gpu] for gpu in chosen):
        return []
    _claimed.extend(free[gpu][0] for gpu in chosen)
    return chosen


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
