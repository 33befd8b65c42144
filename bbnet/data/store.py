"""Atomic writing of files and folders, locks between processes, and memory-mapped arrays."""

import errno
import fcntl
import glob
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is renamed to `path` if the block succeeds, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path)
    partial = path.with_name(f".{path.stem}.partial-{socket.gethostname()}-{os.getpid()}{path.suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file)  # otherwise a power failure may leave the name without the content
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)  # the error of a full disk has no file name
        raise
    finally:
        partial.unlink(missing_ok=True)


def _remove_left_behind(path: Path) -> None:
    """Removes temporary files of `path` left by processes of this machine that no longer exist."""
    stem, host, suffix = map(glob.escape, (path.stem, socket.gethostname(), path.suffix))
    for partial in path.parent.glob(f".{stem}.partial-{host}-[0-9]*{suffix}"):
        process = partial.name.removesuffix(path.suffix).rpartition("-")[2]
        if not Path("/proc", process).exists():
            partial.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds an exclusive lock on a file, waiting for other processes and threads; it is released if its holder dies.

    Args:
        check: called repeatedly while waiting; an exception that it raises ends the wait.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        waiting = False
        while True:
            check()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    logger.info("%s: another process is working on this; waiting for it", lock)
                waiting = True
                time.sleep(0.2)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                logger.warning("%s: this file system has no locks; simultaneous calls may interfere", lock)
                break
        yield


@contextmanager
def whole_folder(path: Path, partial_root: Path, resume: bool = False) -> Iterator[Path]:
    """Yields an empty folder below `partial_root`, which replaces `path` if the block succeeds, else is removed.

    With `resume`, the folder is kept if the block fails, and the next call continues with its content.
    """
    partial = partial_root / path.name
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)


def create_array(path: Path, shape: tuple[int, ...], dtype: np.dtype | type) -> np.memmap:
    """Creates a memory-mapped .npy file to be filled in place."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


@contextmanager
def appended_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype | type
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends rows to a new .npy file of this shape, without keeping them in memory.

    Raises: ValueError if the number of rows differs from `shape`.
    """
    written = 0
    with path.open("wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

        def append(rows: np.ndarray) -> None:
            nonlocal written
            written += len(rows)
            file.write(np.ascontiguousarray(rows, dtype=dtype))

        yield append
    if written != shape[0]:
        raise ValueError(f"{path}: {written} rows were written, {shape[0]} were expected")


def open_array(path: Path) -> np.memmap:
    """Opens a .npy file memory-mapped copy-on-write: torch uses it without a copy, and the file never changes."""
    return np.load(path, mmap_mode="c")
