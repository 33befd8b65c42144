"""Writes the page of all figures and tables of a study."""

from pathlib import Path

from common import arguments, run, write_text

from bbnet.analysis.page import render
from bbnet.analysis.summary import Summary
from bbnet.tasks.task import load_metrics


def main(options) -> None:
    tasks = {task: load_metrics(task) for task in Summary(options.results / "summary").study["tasks"]}
    write_text(options.page, render(options.results, Path("report"), Path("docs", "deviations.md"), tasks))


run(main, arguments(__doc__, results={}, page={}))
