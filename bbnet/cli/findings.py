"""Writes docs/findings.md, the answers that the shipped studies give, and docs/findings.csv, the rows of its tables.

`python -m bbnet.cli.findings` computes both from `results/reference/` and trains nothing; a test compares them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

from bbnet.analysis import answers
from bbnet.analysis.claims import MEASURES
from bbnet.analysis.collect import COST_METRICS
from bbnet.analysis.metric import Metric
from bbnet.analysis.power import Components, components_of, detectable_difference
from bbnet.analysis.summary import Summary
from bbnet.cli import questions
from bbnet.cli.check import REFERENCE
from bbnet.data.store import whole_file
from bbnet.tasks.task import load_metrics

PAGE, ROWS, TEMPLATE = Path("docs/findings.md"), Path("docs/findings.csv"), "findings.md.j2"
OF_UNITS = {name: Metric(title, "share", "higher") for name, title in MEASURES.items()} | {
    "r2_before": Metric("R² with on-rates of the warm start", "share", "higher", 0, 1),
    "r2": Metric("R² after training", "share", "higher", 0, 1),
    "rises_before": Metric("positive slopes, warm start", "share", "higher", 0, 1),
    "rises": Metric("positive slopes, trained", "share", "higher", 0, 1),
    "effective_r2_before": Metric("R² of effective degrees, warm start", "share", "higher", 0, 1),
    "effective_r2": Metric("R² of effective degrees, trained", "share", "higher", 0, 1),
    "degree_r2": Metric("R² of degrees, trained", "share", "higher", 0, 1),
    "degree_slope": Metric("slope of degrees, trained", "number", "higher"),
    "exponent": Metric("exponent of the width", "number", "higher"),
    "tail_minus_head": Metric("gain of tail minus gain of head", "points", "higher"),
    **{name: COST_METRICS[name] for name in ("churn", "units_at_smallest")},
}
SIDE_SUFFIX = "_(in|out)$"
ORDER = ("better", "worse", "higher", "lower")  # verdicts of differences that are significant


def table(rows: pd.DataFrame) -> str:
    """Returns the rows as a Markdown table: a line for each pair and budget, a column for each task and metric.

    Differences that are significant are bold. The last line has what could have been seen, for each column.
    """
    if rows.empty:
        return "No shipped study has such rows."
    columns = list(dict.fromkeys(zip(rows["task"], rows["metric"], strict=True)))
    metrics = {(task, name): _metric(task, name) for task, name in columns}
    compared = (rows["reference"] != "").any()
    headings = [f"{task}, {metrics[task, name].heading}" for task, name in columns]
    lines = [["method", *(["against"] if compared else []), "budget", *headings]]
    lines.append(["---"] * len(lines[0]))
    for pair, of_pair in rows.groupby(["method", "reference", "budget"], sort=False):
        cells = of_pair.set_index(["task", "metric"])
        shown = [_cell(cells.loc[key], metrics[key], compared) if key in cells.index else "" for key in columns]
        method, reference, budget = pair
        lines.append([method, *([reference] if compared else []), budget.lstrip("0"), *shown])
    if compared:
        seen = rows.groupby(["task", "metric"])["detectable"].median()
        lines.append(["could be seen", "", "", *(_could_be_seen(seen[key], metrics[key]) for key in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _metric(task: str, name: str) -> Metric:
    return OF_UNITS[name] if name in OF_UNITS else load_metrics(task).METRICS[name]


def _cell(row: pd.Series, metric: Metric, signed: bool) -> str:
    shown = metric.signed if signed else metric.shown_value
    text = f"{shown(row['effect'])} [{shown(row['low'])}, {shown(row['high'])}]"
    return f"**{text}**" if row["verdict"] in ORDER else text


def _could_be_seen(difference: float, metric: Metric) -> str:
    if np.isnan(difference):
        return "unknown"
    return "nothing" if difference > metric.largest_difference else metric.shown_value(difference)


def in_words(rows: pd.DataFrame) -> str:
    """Returns sentences on how many differences are significant, and on the signs of all; none if there are no rows."""
    if rows.empty:
        return ""
    counts = rows["verdict"].value_counts()
    told = " and ".join(f"{_number(counts[name])} significantly {name}" for name in ORDER if name in counts)
    seeds = "–".join(map(str, sorted({int(rows["n_seeds"].min()), int(rows["n_seeds"].max())})))
    of = f"Of {len(rows)} differences ({seeds} seeds)"
    signs = pd.Series([_sign(row) for row in rows.itertuples()]).value_counts()
    means = " and ".join(f"{_number(signs[name])} {name}" for name in ORDER if name in signs)
    return f"{of}, {told or 'none is significant'} after Holm's method. In the mean, {means}."


def by_reference(rows: pd.DataFrame) -> str:
    """Returns the sentences of `in_words` as a list: an item for each method that others are compared with."""
    names = rows["reference"].str.replace(SIDE_SUFFIX, "", regex=True)
    return "\n".join(f"- `{name}`: {in_words(of_name)}" for name, of_name in rows.groupby(names, sort=False))


def _number(count: int) -> str:
    return f"{count} {'is' if count == 1 else 'are'}"


def _sign(row: Any) -> str:
    """Returns what the mean of a difference is, in the words of verdicts; an empty text if it is 0."""
    if not row.effect:
        return ""
    if row.metric in OF_UNITS:
        return "higher" if row.effect > 0 else "lower"
    return "better" if (row.effect > 0) == (_metric(row.task, row.metric).better == "higher") else "worse"


def render(reference: Path) -> tuple[str, str]:
    """Returns the page in Markdown and the rows of its tables as CSV; of studies that are not shipped it says nothing.

    Args:
        reference: folder with the shipped summaries, that of `demo` among them.
    """
    shipped = {
        study: Summary(reference / study / "summary") for study in questions.OF_STUDY if (reference / study).is_dir()
    }
    found = {study: dict(questions.OF_STUDY[study](summary)) for study, summary in shipped.items()}
    environment = Environment(keep_trailing_newline=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8"))
    earlier = Summary(reference / "demo" / "summary")
    page = template.render(
        tables={study: {key: table(rows) for key, rows in tables.items()} for study, tables in found.items()},
        words={study: {key: in_words(rows) for key, rows in tables.items()} for study, tables in found.items()},
        each={study: {key: by_reference(rows) for key, rows in tables.items()} for study, tables in found.items()},
        measures=MEASURES,
        studied={study: _studied(summary) for study, summary in shipped.items()},
        planned=list(_planned(shipped["controls"], earlier)) if "controls" in shipped else [],
        draws=len(shipped["language"].study["calibration_seeds"]) if "language" in shipped else 0,
    )
    rows = [rows.assign(study=study, question=key) for study, tables in found.items() for key, rows in tables.items()]
    return page, pd.concat(rows)[["study", "question", *answers.COLUMNS]].to_csv(index=False)


def _studied(summary: Summary) -> str:
    """Returns what was run, which runs are missing, and the processor time that the runs took."""
    grid, timing, study = summary.read("grid"), summary.read("timing"), summary.study
    hours = timing.groupby("task")["seconds"].sum() / 3600
    each = ", ".join(f"{task} {hours[task]:.1f}" for task in study["tasks"])
    by_task = f" ({each})" if len(study["tasks"]) > 1 else ""
    devices, budgets = ", ".join(sorted(set(timing["device"]))), " and ".join(study["budgets"])
    of_budgets = f"budget{'s' if len(study['budgets']) > 1 else ''} {budgets}"
    return (
        f"{len(grid)} runs on {devices} with {len(study['methods'])} methods and {of_budgets}. Without "
        f"the warm-ups they took {hours.sum():.1f} hours of one core{by_task}. {_missing(grid)}"
    )


def _planned(controls: Summary, earlier: Summary) -> Iterator[dict[str, object]]:
    """Yields of each primary metric the detectable difference, as planned and as reached."""
    study, families = controls.study, answers.families(controls)
    for task in study["tasks"]:
        seeds = study["first_seeds"].get(task, len(study["seeds"]))
        module, family = load_metrics(task), int(families[task])
        for name in module.PRIMARY:
            before, after = (_pruned(summary.read("contrasts"), task, name) for summary in (earlier, controls))
            metric, items = module.METRICS[name], after.items
            planned = detectable_difference(before, seeds, family, items / before.items)
            reached = detectable_difference(after, seeds, family)
            shown = {"planned": _could_be_seen(planned, metric), "reached": _could_be_seen(reached, metric)}
            yield {"task": task, "title": metric.heading, "seeds": seeds, "items": items, "family": family} | shown


def _pruned(contrasts: pd.DataFrame, task: str, metric: str) -> Components:
    """Returns the variances of the differences between pruned networks."""
    chosen = contrasts[(contrasts["task"] == task) & (contrasts["metric"] == metric)]
    return components_of(chosen[chosen["reference"] != "dense"])


def _missing(grid: pd.DataFrame) -> str:
    missing = grid[grid["status"] != "done"]
    if missing.empty:
        return "No run is missing."
    cells = "; ".join(
        f"{row.task}, {row.model}, {row.method}, {row.budget}, seed {row.seed}: {row.why}"
        for row in missing.itertuples()
    )
    return f"{len(missing)} runs are missing ({cells})."


def main() -> None:
    for path, text in zip((PAGE, ROWS), render(REFERENCE), strict=True):
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
