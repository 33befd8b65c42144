"""Processes that end with the one that began them."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """This process gets signal `number` when the process that began it ends, however it ends; Linux only.

    Args:
        parent: the process that began it; if that is gone by now, the signal comes at once.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)
