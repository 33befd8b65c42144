"""Builds the tables of the results from the summary and formats them as Markdown and LaTeX."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from bbnet.analysis.metric import Metric
from bbnet.analysis.summary import Summary

SHARES = {
    "density": "density",
    "net_density": "net density",
    "flops_of_dense": "FLOPs of dense",
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
    """Returns the metrics of every method and budget. The best is bold if its contrasts are all significant."""
    metrics = {name: metric for name, metric in task.METRICS.items() if metric.shown}
    data = results_table(summary.read("cells"), metrics)
    shown = shown_table(data, metrics, task.PRIMARY)
    caption = (
        f"{summary.task}, {summary.model}: mean over seeds on test; in brackets the 95 % interval, which the CSV file "
        "of this table has for all metrics."
    )
    fewest = data["seeds"].min()
    if fewest == 1:
        caption += " With one seed the intervals account only for the choice of test items."
    elif fewest < FEW_SEEDS:
        caption += " With so few seeds the intervals are wide (t is 12.7 for two seeds)."
    bold = supported_best(data, summary.read("contrasts"), {name: task.METRICS[name].better for name in task.PRIMARY})
    entries = frozenset((row, metrics[name].heading) for row, name in bold)
    caption += " Bold: best of its budget, with significant contrasts to all other methods of its side"
    return Table(data, shown, f"{caption} ({len(entries)} entries).", entries)


def contrasts_table(summary: Summary, task: ModuleType) -> Table:
    """Returns every contrast with its interval and adjusted p-value."""
    data = summary.read("contrasts").drop(columns=["task", "model"])
    shown = data[["budget", "method", "reference", "n_seeds", "variation"]].astype(str)
    metrics = [task.METRICS[name] for name in data["metric"]]
    shown.insert(3, "metric", [metric.heading for metric in metrics])
    shown["difference"] = [
        f"{metric.signed(effect)} [{metric.signed(low)}, {metric.signed(high)}]"
        for metric, effect, low, high in zip(metrics, data["effect"], data["low"], data["high"], strict=True)
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
    """Returns densities, FLOPs, masks, training time and memory of every method and budget."""
    cells = summary.read("cells").pivot_table(index=CELL, columns="metric", values="mean", sort=False)
    timing = summary.read("timing").groupby(CELL, sort=False)[["seconds", "peak_memory_mib"]].mean()
    data = cells[["density", "net_density", "flops", "churn", "units_at_smallest", "silent_units"]].join(timing)
    dense = data.loc["dense", "flops"].iloc[0] if "dense" in data.index.get_level_values("method") else np.nan
    data.insert(3, "flops_of_dense", data["flops"] / dense)
    data = data.reset_index()
    shown = data[CELL].astype(str)
    for name, heading in SHARES.items():
        shown[heading] = [f"{value:.3f}" for value in data[name]]
    shown.insert(5, "MFLOPs", [f"{value / 1e6:.4g}" for value in data["flops"]])
    shown["training (s)"] = [f"{value:.1f}" for value in data["seconds"]]
    shown["peak memory (MiB)"] = [f"{value:.0f}" for value in data["peak_memory_mib"]]
    devices = ", ".join(sorted(set(summary.read("timing")["device"])))
    caption = (
        f"{summary.task}, {summary.model}: means over seeds. Density: kept share of the slabs' weights; net density: "
        "kept share of all weights; FLOPs: per sample; churn: share of the connections that a refresh at the budget "
        "changes; units at k_min or below, and units silent on dev: share of all. Time and memory of the sparse phase, "
        f"on {devices}."
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


def results_table(cells: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Returns one row per method and budget: seeds, and `mean`, `sd`, `low` and `high` of each metric, unrounded.

    Args:
        cells: `statistics.cells_table` of one task and model.
        metrics: names, in the order of the columns. A cell without a value is NaN, such as dense for metrics that are
            relative to dense.
    """
    rows = []
    for (method, side, budget), cell in cells.groupby(["method", "side", "budget"], sort=False):
        by_metric = cell.set_index("metric")
        row = {"method": method, "side": side, "budget": budget, "seeds": int(by_metric["n_seeds"].iloc[0])}
        for name in metrics:
            bounds = by_metric.loc[name] if name in by_metric.index else {}
            row |= {f"{name}_{bound}": bounds.get(bound, np.nan) for bound in ("mean", "sd", "low", "high")}
        rows.append(row)
    return pd.DataFrame(rows)


def shown_table(table: pd.DataFrame, metrics: Mapping[str, Metric], primary: Sequence[str]) -> pd.DataFrame:
    """Formats `results_table` as text: `mean [low, high]` for `primary` metrics, and the mean for the others."""
    shown = table[[*CELL, "seeds"]].astype(str)
    for name, metric in metrics.items():
        columns = (table[f"{name}_{bound}"] for bound in ("mean", "low", "high"))
        shown[metric.heading] = [
            DASH
            if np.isnan(mean)
            else _with_interval(metric, mean, low, high)
            if name in primary
            else metric.shown_value(mean)
            for mean, low, high in zip(*columns, strict=True)
        ]
    return shown


def _with_interval(metric: Metric, mean: float, low: float, high: float) -> str:
    return f"{metric.shown_value(mean)} [{metric.shown_value(low)}, {metric.shown_value(high)}]"


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
