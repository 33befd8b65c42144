"""Atomic writes of files and folders, locks between processes, and memory-mapped arrays."""

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
    """Yields a temporary path beside `path`, which is renamed to `path` if the block succeeds and removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_files(path)
    partial = path.with_name(f".{path.stem}.partial-{socket.gethostname()}-{os.getpid()}{path.suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file)  # otherwise a power failure may leave an empty file under the final name
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)  # the error raised on a full disk has no file name
        raise
    finally:
        partial.unlink(missing_ok=True)


def _remove_stale_files(path: Path) -> None:
    """Removes temporary files of `path` that processes of this machine left behind when they were killed."""
    stem, host, suffix = map(glob.escape, (path.stem, socket.gethostname(), path.suffix))
    for partial in path.parent.glob(f".{stem}.partial-{host}-[0-9]*{suffix}"):
        process = partial.name.removesuffix(path.suffix).rpartition("-")[2]
        if not Path("/proc", process).exists():
            partial.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Waits for an exclusive lock between processes and threads and holds it; it is released if its holder is killed.

    Args:
        check: called before each attempt to get the lock; an exception that it raises ends the wait.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("wb") as file:
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
                logger.warning("%s: this file system does not support locks; simultaneous calls may interfere", lock)
                break
        yield


@contextmanager
def whole_folder(path: Path, partial_root: Path, resume: bool = False) -> Iterator[Path]:
    """Yields an empty folder in `partial_root`, which replaces `path` if the block succeeds and is removed otherwise.

    If `resume`, the folder is kept when the block fails, and the next call resumes with its content.
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
    """Creates a memory-mapped .npy file, whose values are to be assigned in-place."""
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
    """Opens a .npy file as a copy-on-write memory map, which torch can use without a copy; the file never changes."""
    return np.load(path, mmap_mode="c")
