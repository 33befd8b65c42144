"""Computes Head, Mid and Tail of a task's training data."""

import importlib
import logging

from common import TEXT, arguments, read_json, run, to_json, write_text

from bbnet.tasks.buckets import BALANCED, UP_TO_THE_MEDIAN

logger = logging.getLogger("bbnet.buckets")


def main(options) -> None:
    task = importlib.import_module(f"bbnet.tasks.{options.task}.buckets")
    buckets = task.make_buckets(read_json(options.prepared))
    if buckets["rule"] == BALANCED:
        logger.info("the training data are balanced: no type is in a bucket")
    if buckets["rule"] == UP_TO_THE_MEDIAN:
        logger.warning(
            "by the published rule, tail: count below the median %g, no type is in the tail; the rule used is: %s",
            buckets["median"],
            buckets["rule"],
        )
    for name, size in buckets["sizes"].items() if buckets["rule"] != BALANCED else ():
        logger.info("%s: %d types, %d occurrences in training", name, size["types"], size["occurrences"])
    write_text(options.buckets, to_json(buckets))


run(main, arguments(__doc__, task=TEXT, prepared={}, buckets={}))
