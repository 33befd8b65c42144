"""Writes the page of a study again, with the figures of diagnostics, and says how many tensors have findings.

With `--strict true` it fails if a tensor that is trained never moves.
"""

import logging
from pathlib import Path

from common import JSON, arguments, run, write_text

from bbnet.analysis.diagnosed import counted, unmoved
from bbnet.analysis.page import render
from bbnet.analysis.summary import Summary
from bbnet.tasks.task import load_metrics

logger = logging.getLogger("bbnet")


def main(options) -> None:
    summary = Summary(options.results / "summary")
    if not (summary.folder / "diagnostics" / "runs.csv").is_file():
        raise ValueError(f"{summary.folder}: this summary has no diagnostics")
    tasks = {task: load_metrics(task) for task in summary.study["tasks"]}
    write_text(options.page, render(options.results, Path("report"), Path("docs", "deviations.md"), tasks))
    for line in counted(summary):
        logger.info(line)
    found = unmoved(summary)
    if options.strict and found:
        raise ValueError(found)
    if found:
        logger.warning(found)


run(main, arguments(__doc__, results={}, page={}, strict=JSON))
