"""Files and folders that are whole or absent, and arrays that are mapped instead of read."""

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
    """A temporary path beside `path`, of the same suffix, renamed to it if the block succeeds, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path)
    partial = path.with_name(f".{path.stem}.partial-{socket.gethostname()}-{os.getpid()}{path.suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file)  # else a power cut may leave the name without the content
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)  # which a full disk does not say
        raise
    finally:
        partial.unlink(missing_ok=True)


def _remove_left_behind(path: Path) -> None:
    """What processes of this machine that were killed have left of this file."""
    stem, host, suffix = map(glob.escape, (path.stem, socket.gethostname(), path.suffix))
    for partial in path.parent.glob(f".{stem}.partial-{host}-[0-9]*{suffix}"):
        process = partial.name.removesuffix(path.suffix).rpartition("-")[2]
        if not Path("/proc", process).exists():
            partial.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Waits until no other process or thread holds the lock file, which goes free when its holder dies.

    Args:
        check: is called while waiting; what it raises ends the wait.
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
                    logger.info("%s: another process works on this; waiting for it", lock)
                waiting = True
                time.sleep(0.2)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                logger.warning("%s: this file system has no locks; two calls at once are not kept apart", lock)
                break
        yield


@contextmanager
def whole_folder(path: Path, partial_root: Path, resume: bool = False) -> Iterator[Path]:
    """An empty folder below `partial_root`, renamed to `path` (which it replaces) if the block succeeds.

    With `resume` it stays if the block fails, and the next call finds in it what the last one left.
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
    """A new .npy file of that shape, to be filled in place."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


@contextmanager
def appended_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype | type
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that takes the rows of a new .npy file of that shape, part by part, and keeps none in memory.

    Raises: ValueError if they are not as many as `shape` says.
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
        raise ValueError(f"{path}: {written} rows were written, {shape[0]} were announced")


def open_array(path: Path) -> np.memmap:
    """A .npy file mapped copy-on-write: torch takes it without a copy, and nothing reaches the disk."""
    return np.load(path, mmap_mode="c")
