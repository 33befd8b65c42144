"""Progress of long loops: a bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yields `items`, telling how far it is; `total` is their number where they have no length."""
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
