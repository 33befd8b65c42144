"""Computes Head, Mid and Tail of a task's training data."""

import importlib
import logging

from common import TEXT, arguments, read_json, run, to_json, write_text

logger = logging.getLogger("bbnet.buckets")


def main(options) -> None:
    task = importlib.import_module(f"bbnet.tasks.{options.task}.buckets")
    buckets = task.make_buckets(read_json(options.prepared))
    for name, size in buckets["sizes"].items():
        logger.info("%s: %d types, %d occurrences in training", name, size["types"], size["occurrences"])
    write_text(options.buckets, to_json(buckets))


run(main, arguments(__doc__, task=TEXT, prepared={}, buckets={}))
