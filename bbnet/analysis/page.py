"""Renders the results of a study as one HTML page that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment
from markdown_it import MarkdownIt
from markupsafe import Markup

from bbnet.analysis.findings import findings
from bbnet.analysis.summary import Summary
from bbnet.analysis.tables import incomplete_note

TEMPLATE = Path(__file__).with_name("page.html.j2")
TABLES = ("results", "contrasts_table", "costs")
FIGURES = ("pareto", "contrasts", "by_bucket", "roc", "claims", "balance", "churn", "learning_curves", "panels")


def render(results: Path, captions: Path, deviations: Path, tasks: Mapping[str, ModuleType]) -> str:
    """Returns the page as HTML.

    Args:
        results: the study's folder with `summary`, `figures` and `tables`.
        captions: folder with `{figure}.rst`.
        deviations: a page in Markdown.
        tasks: by name, the modules of metrics: `METRICS`, `PRIMARY` and optionally `NOTE`, a remark on the models.
    """
    summary = Summary(results / "summary")
    study, grid, data = summary.study, summary.read("grid"), summary.data
    models = list(dict.fromkeys(zip(grid["task"], grid["model"], strict=True)))
    missing = grid[grid["status"] != "done"]
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        study=study,
        done=int((grid["status"] == "done").sum()),
        asked=len(grid),
        devices=", ".join(sorted(set(summary.read("timing")["device"]))),
        incomplete=incomplete_note(grid),
        methods=_table(results, "methods"),
        overview=_figures(results / "figures", "", ("coverage",), captions),
        sections=[
            _section(results, study["tasks"][task]["data"], data.get(task, {}), tasks[task], task, model, captions)
            for task, model in models
        ],
        missing=Markup(missing.to_html(index=False, border=0)) if len(missing) else "",
        deviations=_markdown(deviations),
    )


def _section(
    results: Path,
    pack: Mapping[str, Any],
    prepared: Mapping[str, Any],
    metrics: ModuleType,
    task: str,
    model: str,
    captions: Path,
) -> dict[str, Any]:
    contrasts = Summary(results / "summary", task).read("contrasts")
    cells = Summary(results / "summary", task, model).read("cells")
    primary = {name: metrics.METRICS[name] for name in metrics.PRIMARY}
    start = f"{task}-{model}-"
    return {
        "id": f"{task}-{model}",
        "title": f"{task}, {model}",
        "findings": findings(cells, contrasts[contrasts["model"] == model], primary, len(contrasts))
        or ["There is nothing to compare with."],
        "note": getattr(metrics, "NOTE", ""),
        "data": ", ".join(f"{key} {value}" for key, value in pack.items() if value is not None),
        "prepared": prepared_remarks(prepared),
        "headline": _figures(results / "figures", start, ("headline",), captions),
        "tables": [table for name in TABLES if (table := _table(results, f"{start}{name}"))],
        "figures": _figures(results / "figures", start, FIGURES, captions),
    }


def prepared_remarks(prepared: Mapping[str, Any]) -> list[str]:
    """Returns sentences on what was left out, converted or divided when the data were prepared, and on the buckets.

    Args:
        prepared: the entry of a task in `data.json`.
    """
    remarks = []
    for key, what in (("skipped", "Left out"), ("resampled", "Resampled"), ("converted", "Converted")):
        counts = [f"{count} ({kind.replace('_', ' ')})" for kind, count in prepared.get(key, {}).items()]
        remarks += [f"{what}: {', '.join(counts)}."] if counts else []
    if prepared.get("divided"):
        remarks.append(
            f"Divided into dev and test here, because the pack has no test: {', '.join(prepared['divided'])}."
        )
    buckets = prepared.get("buckets")
    if buckets:
        sizes = ", ".join(f"{name} {size['types']:,}" for name, size in buckets["sizes"].items())
        rule = "the published rule" if buckets["rule"] == "published" else f"the rule '{buckets['rule']}'"
        remarks.append(f"Types in the buckets of the training data, by {rule}: {sizes}.")
    return remarks or ["Nothing was left out or converted."]


def _figures(folder: Path, start: str, kinds: Sequence[str], captions: Path) -> list[dict[str, str]]:
    """Returns the figures whose names begin with `start` and a kind, ordered by kind."""
    return [
        {
            "caption": f"{path.stem}: {(captions / f'{kind}.rst').read_text(encoding='utf-8').strip()}",
            "png": base64.b64encode(path.read_bytes()).decode(),
        }
        for kind in kinds
        for path in sorted(folder.glob(f"{start}{kind}*.png"))
    ]


def _table(results: Path, name: str) -> Markup:
    path = results / "tables" / f"{name}.md"
    return _markdown(path) if path.exists() else Markup("")


def _markdown(path: Path) -> Markup:
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text(encoding="utf-8")))
