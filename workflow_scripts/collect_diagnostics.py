"""Collects the diagnostics of all selected runs into tables of the summary."""

from common import JSON, arguments, run, write_frame

from bbnet.analysis.diagnosed import collected
from bbnet.study.grid import Run


def main(options) -> None:
    folders = [options.results / "runs" / Run(**keys).folder / "diagnostics" for keys in options.runs]
    for name, table in collected(options.runs, folders).items():
        write_frame(options.results / "summary" / "diagnostics" / name, table)


run(main, arguments(__doc__, runs=JSON, results={}))
