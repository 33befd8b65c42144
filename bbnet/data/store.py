"""Files and folders that are whole or absent, and arrays that are mapped instead of read."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, renamed to it if the block succeeds, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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


def open_array(path: Path) -> np.memmap:
    """A .npy file mapped copy-on-write: torch takes it without a copy, and nothing reaches the disk."""
    return np.load(path, mmap_mode="c")
