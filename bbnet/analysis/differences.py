"""Compares two summaries and decides which differences are out of tolerance.

Runs and costs must be equal: the runs of the grid and their status, the number of seeds of each mean, density, net
density and FLOPs. Scores may differ by a given number of standard deviations of the difference of two means over seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bbnet.analysis.collect import COST_METRICS, KEYS

CELL_KEYS = KEYS[:-1]  # equal to `statistics.CELL_KEYS`, but importing `statistics` would import scipy
EXACT_METRICS = ("density", "net_density", "flops")
RUNS = "runs"  # value of the column `metric` in rows about the grid
OK, OUT, NOT_COMPARABLE = "ok", "out", "not comparable"
COLUMNS = ["task", "cell", "seed", "metric", "unit", "tolerance", "difference", "sigmas", "verdict", "why"]
MAX_LISTED = 3  # up to this many metrics are always listed by name


@dataclass(frozen=True)
class Summary:
    """The tables of a summary that are compared.

    Args:
        name: the name used in the verdicts.
        grid: `KEYS` and `status`, one row per run.
        runs: `KEYS`, `metric` and `value`.
        cells: `CELL_KEYS`, `metric`, `unit`, `mean`, `sd` and `n_seeds`.
    """

    name: str
    grid: pd.DataFrame
    runs: pd.DataFrame
    cells: pd.DataFrame


def compare(new: Summary, reference: Summary, limit: float) -> pd.DataFrame:
    """Returns all comparisons as rows with `COLUMNS`, ordered by task.

    `difference` is new - reference in the metric's unit, and `sigmas` its absolute value in standard deviations; both
    are NaN if undefined. `cell` is model/method/side/budget. `seed` is a string, empty for rows that are not about a
    single run. `verdict` is `ok`, `out` or `not comparable`; `why` gives the reason for the last two.

    Args:
        limit: tolerance of scores, in standard deviations.
    """
    parts = [
        compare_runs(new, reference),
        compare_costs(new, reference),
        compare_scores(new, reference, limit),
        compare_seed_counts(new, reference),
    ]
    rows = [row for part in parts for row in part.to_dict("records")]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("task", kind="stable", ignore_index=True)


def compare_runs(new: Summary, reference: Summary) -> pd.DataFrame:
    """Returns one row per cell of either grid; ok if both have the same seeds, each with the same status."""
    both = _Pairs(new, reference, CELL_KEYS, lambda summary: _seeds_by_status(summary.grid))
    equal = both["seeds_new"] == both["seeds_reference"]
    return both.rows([(equal, OK)], both.values("seeds", str), metric=RUNS, tolerance="exact")


def _seeds_by_status(grid: pd.DataFrame) -> pd.DataFrame:
    """Returns `CELL_KEYS` and `seeds`, a string such as `0 2 done, 1 failed`."""
    rows = []
    for keys, cell in grid.sort_values("seed", kind="stable").groupby(CELL_KEYS, sort=False):
        seeds = cell["seed"].astype(str).groupby(cell["status"]).agg(" ".join)
        text = ", ".join(f"{numbers} {status}" for status, numbers in seeds.items())
        rows.append(dict(zip(CELL_KEYS, keys, strict=True)) | {"seeds": text})
    return pd.DataFrame(rows, columns=[*CELL_KEYS, "seeds"])


def compare_costs(new: Summary, reference: Summary) -> pd.DataFrame:
    """Returns one row per run and metric of `EXACT_METRICS`, whose values must be equal."""
    both = _Pairs(
        new, reference, [*KEYS, "metric"], lambda summary: summary.runs[summary.runs["metric"].isin(EXACT_METRICS)]
    )
    equal = both["value_new"] == both["value_reference"]
    return both.rows(
        [(equal, OK), (both.both_missing("value"), NOT_COMPARABLE)],
        both.values("value", lambda value: repr(value).removesuffix(".0")),
        unit=both["metric"].map(COST_METRICS),
        tolerance="exact",
        difference=both.difference("value"),
    )


def pooled_sigmas(cells: pd.DataFrame) -> pd.Series:
    """Returns the standard deviation over seeds by task and metric, pooled over cells with weights n_seeds - 1.

    It is NaN if no cell has two seeds.
    """
    degrees_of_freedom = (cells["n_seeds"] - 1).where(cells["sd"].notna(), 0)
    keys = [cells["task"], cells["metric"]]
    squares = (degrees_of_freedom * cells["sd"].fillna(0) ** 2).groupby(keys).sum()
    return np.sqrt(squares / degrees_of_freedom.groupby(keys).sum().replace(0, np.nan)).rename("sigma")


def compare_scores(new: Summary, reference: Summary, limit: float) -> pd.DataFrame:
    """Returns one row per cell and metric of either summary, except `EXACT_METRICS`.

    Means may differ by limit * sigma * sqrt(1 / n_new + 1 / n_reference), with sigma from `pooled_sigmas` of the
    reference. If sigma is 0, means must be equal up to rounding; if it is NaN, unequal means are not comparable.
    """
    both = _Pairs(new, reference, [*CELL_KEYS, "metric"], lambda summary: _scores(summary.cells))
    sigma = both.table.join(pooled_sigmas(reference.cells), on=["task", "metric"])["sigma"]
    equal = np.isclose(both["mean_new"], both["mean_reference"], rtol=1e-9, atol=1e-12)
    difference = both.difference("mean")
    scale = sigma * np.sqrt(1 / both["n_seeds_new"] + 1 / both["n_seeds_reference"])
    sigmas = (difference.abs() / scale).mask(equal & sigma.notna(), 0.0)
    other_unit = both["unit_new"] != both["unit_reference"]
    one_missing = both["mean_new"].isna() != both["mean_reference"].isna()
    verdicts = [
        (other_unit | one_missing, OUT),
        (both.both_missing("mean"), NOT_COMPARABLE),
        (equal, OK),
        (sigma.isna(), NOT_COMPARABLE),
        (sigmas <= limit, OK),
    ]
    deviation = pd.Series([_deviation(*pair) for pair in zip(sigmas, sigma, strict=True)], sigma.index, dtype=object)
    why = both.values("mean", "{:.6g}".format) + deviation.mask(one_missing | both.both_missing("mean"), "")
    return both.rows(
        verdicts,
        why.mask(other_unit, "unit " + both.values("unit", str)),
        unit=both["unit_reference"].fillna(both["unit_new"]),
        tolerance=sigma.map(lambda value: _tolerance(value, limit)),
        difference=difference,
        sigmas=sigmas,
    )


def compare_seed_counts(new: Summary, reference: Summary) -> pd.DataFrame:
    """Returns one row per cell and metric that both summaries have but with different numbers of seeds."""
    both = _Pairs(new, reference, [*CELL_KEYS, "metric"], lambda summary: summary.cells)
    rows = both.rows([], "n_seeds " + both.values("n_seeds", "{:.0f}".format), tolerance="exact")
    return rows[(both["_merge"] == "both") & (both["n_seeds_new"] != both["n_seeds_reference"])]


def _scores(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[~cells["metric"].isin(EXACT_METRICS)]


def _deviation(sigmas: float, sigma: float) -> str:
    if np.isnan(sigma):
        return "; sigma is unknown, no cell has two seeds"
    return f": {sigmas:.2f} sigmas" if sigma else "; sigma is 0"


def _tolerance(sigma: float, limit: float) -> str:
    if np.isnan(sigma):
        return "equal, sigma unknown"
    return f"{limit:g} x {sigma:.3g}" if sigma else "equal, sigma is 0"


class _Pairs:
    """Outer join of the rows of two summaries on their keys, with columns `{name}_new` and `{name}_reference`.

    Rows are in the order of the reference, then of the new summary. `_merge` says which of them has the row.
    """

    def __init__(
        self, new: Summary, reference: Summary, keys: list[str], part: Callable[[Summary], pd.DataFrame]
    ) -> None:
        self.names = new.name, reference.name
        tables = part(reference), part(new)
        merged = tables[0].merge(tables[1], on=keys, how="outer", suffixes=("_reference", "_new"), indicator=True)
        order = pd.concat(tables)[keys].drop_duplicates()
        self.table = order.merge(merged, on=keys, how="left")

    def __getitem__(self, column: str) -> pd.Series:
        return self.table[column]

    def difference(self, column: str) -> pd.Series:
        return self[f"{column}_new"] - self[f"{column}_reference"]

    def both_missing(self, column: str) -> pd.Series:
        return self[f"{column}_new"].isna() & self[f"{column}_reference"].isna()

    def values(self, column: str, shown: Callable) -> pd.Series:
        """Returns a text with the values of both summaries, such as `0.5 in new, 0.6 in reference`."""
        name, other = self.names
        pairs = zip(self[f"{column}_new"], self[f"{column}_reference"], strict=True)
        texts = [f"{shown(mine)} in {name}, {shown(theirs)} in {other}" for mine, theirs in pairs]
        return pd.Series(texts, self.table.index, dtype=object)

    def rows(self, conditions: list[tuple[pd.Series, str]], why: pd.Series, **columns: pd.Series | str) -> pd.DataFrame:
        """Returns rows with `COLUMNS`. A row that is missing in one summary is out.

        The other rows get the verdict of the first of `conditions` that holds, and are out if none holds.
        """
        name, other = self.names
        texts = {"both": "", "right_only": f"only in {name}", "left_only": f"only in {other}"}
        only_in_one = self["_merge"].astype(str).map(texts)
        holds, verdicts = zip((only_in_one != "", OUT), *conditions, strict=True)
        verdict = pd.Series(np.select(holds, verdicts, OUT), self.table.index)
        cell = self["model"].str.cat([self[key] for key in CELL_KEYS[2:]], sep="/")
        seed = self["seed"].astype(str) if "seed" in self.table else ""
        why = why.mask(only_in_one != "", only_in_one).mask(verdict == OK, "")
        return self.table.assign(cell=cell, seed=seed, verdict=verdict, why=why, **columns).reindex(columns=COLUMNS)


def by_metric(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per task and metric of `compare`, with the largest deviation.

    Columns: the number of `cells` compared, their `tolerance`, the largest deviation as `sigmas` and as `difference` in
    `unit`, the cell `where` it occurs (empty if all are equal), and `verdict`, which counts the cells that are not ok.
    """
    rows = []
    for (task, metric), group in comparisons.groupby(["task", "metric"], sort=False):
        numbers = group[group["difference"].notna()]
        compared = group if metric == RUNS else numbers
        worst = numbers.loc[numbers["sigmas"].fillna(numbers["difference"].abs()).sort_values().index[-1:]]
        worst = worst[worst["difference"] != 0]
        rows.append(
            {"task": task, "metric": metric, "cells": compared["cell"].nunique()}
            | {key: next(iter(worst[key]), np.nan) for key in ("sigmas", "difference")}
            | {key: next(iter(group[key].dropna()), "") for key in ("unit", "tolerance")}
            | {"where": next(iter(worst["cell"]), ""), "verdict": _counts(group)}
        )
    return pd.DataFrame(rows)


def _counts(comparisons: pd.DataFrame) -> str:
    cells = comparisons.groupby("verdict")["cell"].nunique()
    return ", ".join(f"{cells[kind]} {kind}" for kind in (OUT, NOT_COMPARABLE) if kind in cells) or OK


def not_ok(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of `compare` that are out or not comparable, with one row per cell, verdict and reason.

    Columns: `task`, `cell`, the `seeds` and `metrics` concerned, `verdict` and `why`.
    """
    metrics_of = comparisons.groupby(["task", "cell"])["metric"].agg(set)
    keys = ["task", "cell", "verdict", "why"]
    rows = []
    for values, group in comparisons[comparisons["verdict"] != OK].groupby(keys, sort=False):
        seeds = " ".join(seed for seed in group["seed"].unique() if seed)
        metrics = _metric_names(list(group["metric"].unique()), metrics_of[values[:2]])
        rows.append(dict(zip(keys, values, strict=True)) | {"seeds": seeds, "metrics": metrics})
    return pd.DataFrame(rows, columns=["task", "cell", "seeds", "metrics", "verdict", "why"])


def _metric_names(metrics: list[str], every: set[str]) -> str:
    if len(metrics) > MAX_LISTED and every <= {*metrics, RUNS}:
        return f"all {len(every - {RUNS})} metrics"
    return ", ".join(metrics)
