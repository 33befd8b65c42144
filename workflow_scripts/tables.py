"""Writes tables of the study, or of one task and model, each as .csv, .md (Markdown) and .tex (LaTeX)."""

from dataclasses import replace

from common import TEXT, arguments, run, write_frame, write_text

from bbnet.analysis import tables
from bbnet.analysis.summary import Summary
from bbnet.study.workflow import prefix
from bbnet.tasks.task import load_metrics


def main(options) -> None:
    summary = Summary(options.results / "summary", options.task, options.model)
    task = None if options.task is None else load_metrics(options.task)
    start = prefix(options.task, options.model)
    for name in options.tables:
        table = getattr(tables, name)(summary, task)
        if note := tables.incomplete_note(summary.read("grid")):
            table = replace(table, caption=f"{table.caption} {note.capitalize()}.")
        path = options.results / "tables" / f"{start}{name}"
        write_frame(path.with_name(f"{path.name}.csv"), table.data)
        write_text(path.with_name(f"{path.name}.md"), tables.markdown(table))
        write_text(path.with_name(f"{path.name}.tex"), tables.latex(table))


OPTIONAL = TEXT | {"required": False}
run(main, arguments(__doc__, results={}, task=OPTIONAL, model=OPTIONAL, tables=TEXT | {"nargs": "+"}))
