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


def track(items: Iterable[Item], what: str) -> Iterator[Item]:
    """Yields `items`, telling how far it is."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, leave=False)
        return
    total = len(items) if isinstance(items, Sized) else None
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if done == total or time.monotonic() - last > SECONDS_BETWEEN_LINES:
            logger.info("%s: %d%s", what, done, "" if total is None else f" of {total}")
            last = time.monotonic()
