"""Renders the results of a study as one HTML page that needs no network."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment
from markdown_it import MarkdownIt
from markupsafe import Markup

from bbnet.analysis.diagnosed import outdated_note
from bbnet.analysis.findings import findings, model_findings
from bbnet.analysis.summary import Summary, baselines_of
from bbnet.analysis.tables import incomplete_note

TEMPLATE = Path(__file__).with_name("page.html.j2")
TABLES = ("results", "contrasts_table", "costs", "branches", "weights_table", "latent_table")
MODELS = "models"  # figure and table of a task that compares its models
SCALING = ("steps", "scaling_table")  # figure and table of a task that compares its models by width
SENSITIVITY = ("sensitivity", "sensitivity")  # figure and table of a task whose factors are varied
NOTHING = "There is nothing to compare with."
FIGURES = (
    "pareto",
    "contrasts",
    "by_bucket",
    "roc",
    "claims",
    "balance",
    "line_training",
    "churn",
    "learning_curves",
    "weights",
    "panels",
)
DIAGNOSTIC_TABLES = ("verdicts",)
DIAGNOSTIC_FIGURES = ("gradient_norms", "update_ratios", "weight_histograms", "alignment", "on_rates")


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
            *(_models_section(results, tasks[task], task, captions) for task in baselines_of(study)),
            *_sections_of_tasks(results, study["tasks"], SENSITIVITY, "one factor at a time", captions),
            *_sections_of_tasks(results, study["tasks"], SCALING, "by width", captions),
            *(
                _section(results, study["tasks"][task]["data"], data.get(task, {}), tasks[task], task, model, captions)
                for task, model in models
            ),
        ],
        missing=Markup(missing.to_html(index=False, border=0)) if len(missing) else "",
        deviations=_markdown(deviations),
    )


def _models_section(results: Path, metrics: ModuleType, task: str, captions: Path) -> dict[str, Any]:
    """Returns the section that compares the models of a task with its baseline."""
    summary = Summary(results / "summary", task)
    primary = {name: metrics.METRICS[name] for name in metrics.PRIMARY}
    name, contrasts = f"{task}-{MODELS}", summary.read("model_contrasts")
    figure = results / "figures" / f"{name}.png"
    return {
        "id": f"{MODELS}-{task}",
        "title": f"{task}, all models",
        "findings": model_findings(contrasts, primary, summary.baseline, _family(summary)) or [NOTHING],
        "headline": [_figure(figure, MODELS, captions)] if figure.exists() else [],
        "tables": [table] if (table := _table(results, name)) else [],
        "figures": [],
    }


def _sections_of_tasks(
    results: Path, tasks: Iterable[str], names: tuple[str, str], title: str, captions: Path
) -> Iterator[dict[str, Any]]:
    """Yields a section with a figure and a table of all models of a task, for each task that has the figure.

    Args:
        names: of the figure and the table.
        title: what the section shows of the task.
    """
    figure, table = names
    for task in tasks:
        path = results / "figures" / f"{task}-{figure}.png"
        if path.exists():
            yield {
                "id": f"{figure}-{task}",
                "title": f"{task}, {title}",
                "findings": [],
                "headline": [_figure(path, figure, captions)],
                "tables": [shown] if (shown := _table(results, f"{task}-{table}")) else [],
                "figures": [],
            }


def _family(summary: Summary) -> int:
    """Returns the number of contrasts of a task that Holm's method covers."""
    of_models = 0 if summary.baseline is None else len(summary.read("model_contrasts"))
    return len(summary.read("contrasts")) + of_models


def _section(
    results: Path,
    pack: Mapping[str, Any],
    prepared: Mapping[str, Any],
    metrics: ModuleType,
    task: str,
    model: str,
    captions: Path,
) -> dict[str, Any]:
    of_task = Summary(results / "summary", task)
    contrasts = of_task.read("contrasts")
    cells = Summary(results / "summary", task, model).read("cells")
    primary = {name: metrics.METRICS[name] for name in metrics.PRIMARY}
    start = f"{task}-{model}-"
    return {
        "id": f"{task}-{model}",
        "title": f"{task}, {model}",
        "findings": findings(cells, contrasts[contrasts["model"] == model], primary, _family(of_task)) or [NOTHING],
        "note": getattr(metrics, "NOTE", ""),
        "data": ", ".join(f"{key} {value}" for key, value in pack.items() if value is not None),
        "prepared": prepared_remarks(prepared),
        "headline": _figures(results / "figures", start, ("headline",), captions),
        "tables": [table for name in TABLES if (table := _table(results, f"{start}{name}"))],
        "figures": _figures(results / "figures", start, FIGURES, captions),
        "inside": [table for name in DIAGNOSTIC_TABLES if (table := _table(results, f"{start}{name}"))],
        "inside_figures": (inside := _figures(results / "figures", start, DIAGNOSTIC_FIGURES, captions)),
        "inside_note": _outdated(Summary(results / "summary", task, model)) if inside else "",
    }


def _outdated(summary: Summary) -> str:
    return outdated_note(summary) if (summary.folder / "diagnostics" / "runs.csv").is_file() else ""


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
    if buckets and buckets["rule"] == "balanced":
        remarks.append("The training data are balanced, so no type is in a bucket.")
    elif buckets:
        sizes = ", ".join(f"{name} {size['types']:,}" for name, size in buckets["sizes"].items())
        rule = "the published rule" if buckets["rule"] == "published" else f"the rule '{buckets['rule']}'"
        remarks.append(f"Types in the buckets of the training data, by {rule}: {sizes}.")
    return remarks or ["Nothing was left out or converted."]


def _figures(folder: Path, start: str, kinds: Sequence[str], captions: Path) -> list[dict[str, str]]:
    """Returns the figures whose names begin with `start` and a kind, ordered by kind."""
    return [_figure(path, kind, captions) for kind in kinds for path in sorted(folder.glob(f"{start}{kind}*.png"))]


def _figure(path: Path, kind: str, captions: Path) -> dict[str, str]:
    return {
        "caption": f"{path.stem}: {(captions / f'{kind}.rst').read_text(encoding='utf-8').strip()}",
        "png": base64.b64encode(path.read_bytes()).decode(),
    }


def _table(results: Path, name: str) -> Markup:
    path = results / "tables" / f"{name}.md"
    return _markdown(path) if path.exists() else Markup("")


def _markdown(path: Path) -> Markup:
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text(encoding="utf-8")))
