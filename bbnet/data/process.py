"""Processes that end with the one that began them."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """This process gets signal `number` when the process that began it ends, however it ends; Linux only.

    Args:
        parent: the process that began it; if that is gone by now, the signal comes at once.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def cores() -> int:
    """How many this process may use; Snakemake says so in OMP_NUM_THREADS."""
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Forks of this process, which end with it, and at once if the block fails."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, end_with_parent, (signal.SIGKILL, os.getpid())) as pool:
        try:
            yield pool
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()
            raise
