"""Builds the tables of the results from the summary and formats them as Markdown and LaTeX."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from bbnet.analysis.summary import Summary

COSTS = {
    "net_density": "net density",
    "flops": "MFLOPs",
    "churn": "churn",
    "units_at_smallest": "units at k_min",
    "silent_units": "silent units",
}
CELL = ["method", "side", "budget"]
FEW_SEEDS = 3
DASH = "–"


@dataclass(frozen=True)
class Table:
    """A table: unrounded `data`, formatted text `shown`, and `bold`, the (row, heading) pairs that are highlighted."""

    data: pd.DataFrame
    shown: pd.DataFrame
    caption: str
    bold: frozenset[tuple[int, str]] = field(default_factory=frozenset)


def results(summary: Summary, task: ModuleType) -> Table:
    """Returns costs and metrics of every method and budget. The best is bold if its contrasts are all significant."""
    metrics = {name: metric.unit for name, metric in task.METRICS.items() if metric.shown}
    data = results_table(summary.read("cells"), metrics)
    shown = shown_table(data, metrics)
    caption = (
        f"{summary.task}, {summary.model}: mean over seeds on test, 95 % interval in brackets. Churn: share of the "
        "connections that a refresh at the budget changes. Units at k_min or below, units silent on dev: share of all."
    )
    if data["seeds"].min() < FEW_SEEDS:
        caption += " With so few seeds the intervals are wide (t is 12.7 for two seeds); they are not clipped."
    bold = supported_best(data, summary.read("contrasts"), {name: task.METRICS[name].better for name in task.PRIMARY})
    entries = frozenset((row, f"{name} ({metrics[name]})") for row, name in bold)
    caption += " Bold: best of its budget, with significant contrasts to all other methods of its side"
    return Table(data, shown, f"{caption} ({len(entries)} entries).", entries)


def contrasts_table(summary: Summary, task: ModuleType) -> Table:
    """Returns every contrast with its interval and adjusted p-value."""
    data = summary.read("contrasts").drop(columns=["task", "model"])
    shown = data[["budget", "method", "reference", "metric", "n_seeds", "variation"]].astype(str)
    shown["difference"] = [
        f"{effect:+.3f} [{low:+.3f}, {high:+.3f}] {unit}"
        for effect, low, high, unit in data[["effect", "low", "high", "unit"]].itertuples(index=False)
    ]
    for name in ("p", "p_holm"):
        shown[name] = [f"{value:.2g}" for value in data[name]]
    shown["verdict"] = data["verdict"]
    shown = shown.rename(columns={"n_seeds": "seeds", "variation": "varied", "p_holm": "p (Holm)"})
    caption = (
        f"{summary.task}, {summary.model}: mean of method minus reference on test, paired by seed and item, 95 % "
        "interval in brackets. Varied: sources of variation in the interval. Holm: over all contrasts of the task."
    )
    return Table(data, shown, caption)


def costs(summary: Summary, task: ModuleType) -> Table:
    """Returns density, FLOPs, training time and memory of every method and budget."""
    cells = summary.read("cells").pivot_table(index=CELL, columns="metric", values="mean", sort=False)
    timing = summary.read("timing").groupby(CELL, sort=False)[["seconds", "peak_memory_mib"]].mean()
    data = cells[["density", "net_density", "flops"]].join(timing)
    dense = data.loc["dense", "flops"].iloc[0] if "dense" in data.index.get_level_values("method") else np.nan
    data.insert(3, "flops_of_dense", data["flops"] / dense)
    data = data.reset_index()
    shown = data[CELL].astype(str)
    for name, heading in (("density", "density"), ("net_density", "net density"), ("flops_of_dense", "FLOPs of dense")):
        shown[heading] = [f"{value:.3f}" for value in data[name]]
    shown.insert(5, "MFLOPs", [f"{value / 1e6:.4g}" for value in data["flops"]])
    shown["training (s)"] = [f"{value:.1f}" for value in data["seconds"]]
    shown["peak memory (MiB)"] = [f"{value:.0f}" for value in data["peak_memory_mib"]]
    devices = ", ".join(sorted(set(summary.read("timing")["device"])))
    caption = (
        f"{summary.task}, {summary.model}: means over seeds. Density: kept share of the slabs' connections; net "
        f"density: kept share of all weights; FLOPs: per sample. Time and memory of the sparse phase, on {devices}."
    )
    return Table(data, shown, caption)


def methods(summary: Summary, task: None) -> Table:
    """Returns all parameters of every method of the study."""
    study = summary.study
    rows = [
        (label, method["algorithm"], _listed({name: method[name] for name in method if name != "algorithm"}))
        for label, method in study["methods"].items()
    ]
    data = pd.DataFrame(rows, columns=["method", "algorithm", "parameters"])
    caption = f"Study {study['name']}: methods. Shared by all: {_listed(study['sparsity'])}."
    return Table(data, data.replace("", DASH), caption)


def _listed(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in parameters.items())


def supported_best(table: pd.DataFrame, contrasts: pd.DataFrame, better: Mapping[str, str]) -> set[tuple[int, str]]:
    """Returns (row, metric) of the best sparse method per budget if it wins all contrasts with the others of its side.

    Args:
        table: `results_table`.
        contrasts: `contrasts.csv` of the same task and model.
        better: by metric, which direction is better: "higher" or "lower".
    """
    found = set()
    sparse = table[table["method"] != "dense"]
    for (metric, direction), (budget, cell) in product(better.items(), sparse.groupby("budget", sort=False)):
        means = cell[f"{metric}_mean"].dropna()
        if not len(means):
            continue
        best = means.idxmax() if direction == "higher" else means.idxmin()
        method, side = cell.loc[best, ["method", "side"]]
        rivals = set(cell[cell["side"] == side]["method"]) - {method}
        of_pair = contrasts[(contrasts["metric"] == metric) & (contrasts["budget"] == budget)]
        won = set(of_pair[(of_pair["method"] == method) & (of_pair["verdict"] == "better")]["reference"])
        won |= set(of_pair[(of_pair["reference"] == method) & (of_pair["verdict"] == "worse")]["method"])
        if rivals and rivals <= won:
            found.add((table.index.get_loc(best), metric))
    return found


def results_table(cells: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Returns one row per method and budget: seeds, costs, and `mean`, `low` and `high` of each metric, unrounded.

    Args:
        cells: `statistics.cells_table` of one task and model.
        metrics: units by name, in the order of the columns. A cell without a value is NaN, such as dense for metrics
            that are relative to dense.
    """
    rows = []
    for (method, side, budget), cell in cells.groupby(["method", "side", "budget"], sort=False):
        by_metric = cell.set_index("metric")
        row = {"method": method, "side": side, "budget": budget, "seeds": int(by_metric["n_seeds"].iloc[0])}
        row |= {name: by_metric.loc[name, "mean"] for name in COSTS}
        for name in metrics:
            bounds = by_metric.loc[name] if name in by_metric.index else {}
            row |= {f"{name}_{bound}": bounds.get(bound, np.nan) for bound in ("mean", "sd", "low", "high")}
        rows.append(row)
    return pd.DataFrame(rows)


def shown_table(table: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Formats `results_table` as text: `mean [low, high]`, with the unit in the heading."""
    shown = table[["method", "side", "budget", "seeds"]].astype(str)
    for name, heading in COSTS.items():
        shown[heading] = [f"{value / 1e6:.4g}" if name == "flops" else f"{value:.3f}" for value in table[name]]
    for name, unit in metrics.items():
        columns = (table[f"{name}_{bound}"] for bound in ("mean", "low", "high"))
        shown[f"{name} ({unit})"] = [
            DASH if np.isnan(mean) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
            for mean, low, high in zip(*columns, strict=True)
        ]
    return shown


def incomplete_note(grid: pd.DataFrame) -> str:
    """Returns a note that counts the failed, missing and stale runs; empty if all runs are done."""
    counts = grid["status"].value_counts().drop("done", errors="ignore").sort_index()
    kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"incomplete: {kinds} of {len(grid)} runs" if kinds else ""


def markdown(table: Table) -> str:
    return f"{_mark_bold(table, '**', '**').to_markdown(index=False, disable_numparse=True)}\n\n{table.caption}\n"


def latex(table: Table) -> str:
    """Returns a LaTeX table environment with booktabs rules."""
    escaped = Table(table.data, table.shown.map(_escape), table.caption, table.bold)
    shown = _mark_bold(escaped, r"\textbf{", "}").rename(columns=_escape)
    text = shown.style.hide(axis="index").to_latex(
        hrules=True, column_format="l" * len(shown.columns), caption=_escape(table.caption), position_float="centering"
    )
    return f"% needs \\usepackage{{booktabs}}\n{text}"


def _mark_bold(table: Table, before: str, after: str) -> pd.DataFrame:
    shown = table.shown.copy()
    for row, heading in table.bold:
        place = shown.columns.get_loc(heading)
        shown.iloc[row, place] = f"{before}{shown.iloc[row, place]}{after}"
    return shown


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text
