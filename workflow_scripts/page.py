"""Writes the page of all figures and tables of a study."""

from pathlib import Path

from common import arguments, run, write_text

from bbnet.analysis.page import render


def main(options) -> None:
    write_text(options.page, render(options.results, Path("report"), Path("docs", "deviations.md")))


run(main, arguments(__doc__, results={}, page={}))
