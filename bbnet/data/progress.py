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


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yields `items` and reports progress. `total` is the number of items, needed only if `items` has no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, leave=False, total=total)
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if done == total or time.monotonic() - last > SECONDS_BETWEEN_LINES:
            logger.info("%s: %d%s", what, done, "" if total is None else f" of {total}")
            last = time.monotonic()


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
