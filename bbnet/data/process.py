"""Starts child processes that end together with their parent, and counts the usable cores."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Makes Linux send signal `number` to this process when its parent ends, even if the parent is killed.

    Args:
        parent: process id of the parent; if it has ended already, the signal is sent at once.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def cores() -> int:
    """Returns the number of cores this process may use: OMP_NUM_THREADS, which Snakemake sets, or else all cores."""
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool of forked workers, which are killed if this process ends or the block fails."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, end_with_parent, (signal.SIGKILL, os.getpid())) as pool:
        try:
            yield pool
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()
            raise
