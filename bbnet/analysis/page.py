"""Renders the results of a study as one HTML page that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment
from markdown_it import MarkdownIt
from markupsafe import Markup

from bbnet.analysis.summary import Summary
from bbnet.analysis.tables import incomplete_note

TEMPLATE = Path(__file__).with_name("page.html.j2")
TABLES = ("results", "contrasts_table", "costs")
FIGURES = ("pareto", "contrasts", "by_bucket", "roc", "claims", "balance", "churn", "learning_curves", "panels")


def render(results: Path, captions: Path, deviations: Path) -> str:
    """Returns the page as HTML.

    Args:
        results: the study's folder with `summary`, `figures` and `tables`.
        captions: folder with `{figure}.rst`.
        deviations: a page in Markdown.
    """
    summary = Summary(results / "summary")
    study, grid = summary.study, summary.read("grid")
    models = list(dict.fromkeys(zip(grid["task"], grid["model"], strict=True)))
    missing = grid[grid["status"] != "done"]
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text())
    return template.render(
        study=study,
        done=int((grid["status"] == "done").sum()),
        asked=len(grid),
        devices=", ".join(sorted(set(summary.read("timing")["device"]))),
        incomplete=incomplete_note(grid),
        methods=_table(results, "methods"),
        overview=_figures(results / "figures", "", ("coverage",), captions),
        sections=[_section(results, study, task, model, captions) for task, model in models],
        missing=Markup(missing.to_html(index=False, border=0)) if len(missing) else "",
        deviations=_markdown(deviations),
    )


def _section(results: Path, study: Mapping[str, Any], task: str, model: str, captions: Path) -> dict[str, Any]:
    contrasts = Summary(results / "summary", task, model).read("contrasts")
    data = study["tasks"][task]["data"]
    return {
        "id": f"{task}-{model}",
        "title": f"{task}, {model}",
        "data": ", ".join(f"{key} {value}" for key, value in data.items() if value is not None),
        "findings": findings(contrasts),
        "tables": [table for name in TABLES if (table := _table(results, f"{task}-{model}-{name}"))],
        "figures": _figures(results / "figures", f"{task}-{model}-", FIGURES, captions),
    }


def findings(contrasts: pd.DataFrame) -> str:
    """Returns a sentence on how many contrasts are significant, and which."""
    if not len(contrasts):
        return "There is nothing to compare with."
    told = contrasts[contrasts["verdict"] != "none"]
    sentence = f"Of {len(contrasts)} contrasts {len(told)} are significant (p < .05, Holm within the task)"
    listed = [
        f"{row.method} is {row.verdict} than {row.reference} at budget {row.budget} in {row.metric} "
        f"({row.effect:+.3f} {row.unit}, 95 % interval {row.low:+.3f} to {row.high:+.3f})"
        for row in told.itertuples()
    ]
    if (contrasts["variation"] == "items").any():
        sentence += ", some of them from a single seed, so that they account only for the choice of test items"
    return f"{sentence}: {'; '.join(listed)}." if listed else f"{sentence}."


def _figures(folder: Path, start: str, kinds: Sequence[str], captions: Path) -> list[dict[str, str]]:
    """Returns the figures whose names begin with `start` and a kind, ordered by kind."""
    return [
        {
            "caption": f"{path.stem}: {(captions / f'{kind}.rst').read_text().strip()}",
            "png": base64.b64encode(path.read_bytes()).decode(),
        }
        for kind in kinds
        for path in sorted(folder.glob(f"{start}{kind}*.png"))
    ]


def _table(results: Path, name: str) -> Markup:
    path = results / "tables" / f"{name}.md"
    return _markdown(path) if path.exists() else Markup("")


def _markdown(path: Path) -> Markup:
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text()))
