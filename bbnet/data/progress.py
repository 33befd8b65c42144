"""Reports the progress of long loops: as a progress bar on a terminal, as log lines otherwise."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Advance = Callable[[int], None]
logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30


def track(
    items: Iterable[Item], what: str, total: int | None = None, size: Callable[[Item], int] = lambda _: 1
) -> Iterator[Item]:
    """Yields `items` and reports progress.

    Args:
        total: the sum of all sizes, needed only if `items` has no length.
        size: how many an item counts as, if it is a group of those that are to be counted.
    """
    if total is None and isinstance(items, Sized):
        total = sum(map(size, items))
    bar = tqdm(desc=what, total=total, leave=False) if sys.stderr.isatty() else None
    done, last = 0, time.monotonic()
    try:
        for item in items:
            yield item
            done += size(item)
            if bar is not None:
                bar.update(size(item))
            elif done == total or time.monotonic() - last > SECONDS_BETWEEN_LINES:
                logger.info("%s: %d%s", what, done, "" if total is None else f" of {total}")
                last = time.monotonic()
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def count_bytes(what: str, total: int | None) -> Iterator[Advance]:
    """Yields a thread-safe function that adds a number of bytes, possibly negative, to the reported progress."""
    lock = threading.Lock()
    done, began = 0, time.monotonic()
    last = began
    bar = tqdm(desc=what, total=total, unit="B", unit_scale=True, leave=False) if sys.stderr.isatty() else None

    def advance(size: int) -> None:
        nonlocal done, last
        with lock:
            done += size
            if bar is not None:
                bar.update(size)
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                of_total = "" if total is None else f" of {total / 1e6:.0f}"
                figures = (what, done / 1e6, of_total, done / 1e6 / (last - began))
                logger.info("%s: %.0f%s MB, %.1f MB/s", *figures, extra={"only_in_log": bar is not None})

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()
