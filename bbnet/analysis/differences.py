"""Compares two summaries: could both come from the same code and settings?

Settings, runs, costs and counts must be equal. Scores of equal code differ when seeds, bits or test items differ.
Therefore the differences of the primary metrics are tested, and Holm's method covers all of these tests together.

The score of a cell and a seed is modelled as cell + seed + own. All cells of a task and model begin with the same warm
start of a seed, which therefore moves them together. So there are two kinds of tests per metric: the mean difference
of all cells, against the variance of the seeds' means, and the difference of each cell from that mean, against the
variance of its own part. This variance is estimated from few seeds per cell, and therefore moderated over the cells.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bbnet.analysis.collect import COST_METRICS, KEYS
from bbnet.analysis.statistics import CELL_KEYS, holm, p_of

EXACT_METRICS = ("density", "net_density", "flops", "parameters", "bytes")
COUNTS = ("epochs", "steps", "refreshes")
MASK_METRICS = ("units_at_smallest",)  # a share of units, tested too: it shows what scores hardly show, as another gain
# No difference is expected of these, other than other bits; the last ones decide what is compared.
FREE_SETTINGS = ("name", "description", "cpu_threads", "reference")
FREE_SETTINGS_OF_TASKS = ("baseline", "beside")
SETTINGS, RUNS = "settings", "runs"  # values of the column `metric` in rows about the study and the grid
ALL_CELLS = "all cells"
OK, OUT, NOT_COMPARABLE = "ok", "out", "not comparable"
COLUMNS = ["task", "cell", "seed", "metric", "unit", "decides", "difference", "error", "p", "verdict", "why"]
MAX_LISTED = 3  # up to this many metrics are always listed by name
PRIOR_FREEDOM = 10
ROUNDING = 1e-18  # squares of differences up to this, relative to the square of a score, are rounding errors


@dataclass(frozen=True)
class Summary:
    """The parts of a summary that are compared.

    Args:
        name: the name used in the verdicts.
        study: the settings of the study.
        grid: `KEYS` and `status`, one row per run.
        runs: `KEYS`, `metric` and `value`.
        cells: `statistics.cells_table`.
        counts: `KEYS` and `COUNTS`, one row per run. NaN if unknown, as refreshes of seeds that a thin summary lacks.
        items: by cell, as a tuple of `CELL_KEYS`, an object that is equal if the test items are.
        of_items: `KEYS`, `metric` and `value`: the metrics that the items of each run give, relative ones included. A
            thin summary has those of one seed.
        units: by cell, the number of units of its slabs.
    """

    name: str
    study: Mapping[str, Any]
    grid: pd.DataFrame
    runs: pd.DataFrame
    cells: pd.DataFrame
    counts: pd.DataFrame
    items: Mapping[tuple, Any]
    of_items: pd.DataFrame
    units: Mapping[tuple, int]


def compare(new: Summary, reference: Summary, primary: Mapping[str, tuple[str, ...]], level: float) -> pd.DataFrame:
    """Returns all comparisons as rows with `COLUMNS`, ordered by task.

    `difference` is new - reference in the metric's unit, `error` its standard error, and `p` the probability of such a
    difference or a larger one if the code is the same; for a metric that decides, after Holm's method. All are NaN if
    undefined. `cell` is model/method/side/budget, or `ALL_CELLS` of a model for the mean difference. `verdict` is `ok`,
    `out` or `not comparable`; `why` gives the reason for the last two.

    Args:
        primary: by task, the metrics that decide. The other metrics are tested alike, but are never `out` by a test.
        level: the probability with which two studies of the same code are `out`.
    """
    scores = list(_scores(new, reference, primary))
    tested = [row for row in scores if row["decides"] and not np.isnan(row["p"])]
    for row, p in zip(tested, holm(pd.Series([row["p"] for row in tested], dtype=float)), strict=True):
        row["p"] = p
        if p < level:
            row |= {"verdict": OUT, "why": f"{row['why']}, p = {p:.1g}"}
    rows = [*_settings(new, reference), *_exact(new, reference), *scores]
    rows = [row | {"why": "" if row["verdict"] == OK else row["why"]} for row in rows]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("task", kind="stable", ignore_index=True)


def _row(task: str, cell: str, metric: str, verdict: str, why: str, **others: Any) -> dict[str, Any]:
    undefined = {"seed": "", "unit": "", "decides": True, "difference": np.nan, "error": np.nan, "p": np.nan}
    return undefined | {"task": task, "cell": cell, "metric": metric, "verdict": verdict, "why": why} | others


def _settings(new: Summary, reference: Summary) -> Iterator[dict[str, Any]]:
    """Yields a row for each setting that differs, except the free ones."""
    ours, theirs = _flat(new.study), _flat(reference.study)
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name, "absent"), theirs.get(name, "absent")
        section, _, of_task = name.partition(".")
        task, _, setting = of_task.partition(".") if section == "tasks" else ("", "", "")
        if mine != other and name not in FREE_SETTINGS and setting not in FREE_SETTINGS_OF_TASKS:
            yield _row(task, "", SETTINGS, OUT, f"{name}: {mine} in {new.name}, {other} in {reference.name}")


def _flat(settings: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    found = {}
    for name, value in settings.items():
        found |= _flat(value, f"{start}{name}.") if isinstance(value, Mapping) else {f"{start}{name}": value}
    return found


def _exact(new: Summary, reference: Summary) -> Iterator[dict[str, Any]]:
    """Yields a row for each value that must be equal: the status of each run, its costs and its counts."""
    for metric, unit, *tables in _exact_tables(new, reference):
        both = pd.concat(tables, axis=1, keys=["new", "reference"], sort=False)
        for keys, row in both.iterrows():
            mine, other = row["new"], row["reference"]
            if pd.isna(mine) and pd.isna(other):
                verdict, why = NOT_COMPARABLE, "not a number in both"
            else:
                shown = ["missing" if pd.isna(value) else f"{value}".removesuffix(".0") for value in (mine, other)]
                why = f"{shown[0]} in {new.name}, {shown[1]} in {reference.name}"
                verdict = OK if mine == other else OUT
            difference = mine - other if metric != RUNS else np.nan
            yield _row(
                *(keys[0], _name_of(keys), metric, verdict, why),
                **{"seed": str(keys[5]), "unit": unit, "difference": difference},
            )


def _exact_tables(new: Summary, reference: Summary) -> Iterator[tuple[str, str, pd.Series, pd.Series]]:
    summaries = (new, reference)
    yield RUNS, "", *(summary.grid.set_index(KEYS)["status"] for summary in summaries)
    for metric in EXACT_METRICS:
        of_metric = (summary.runs[summary.runs["metric"] == metric] for summary in summaries)
        yield metric, COST_METRICS[metric].unit, *(rows.set_index(KEYS)["value"] for rows in of_metric)
    for name in COUNTS:
        tables = [summary.counts.set_index(KEYS)[name] for summary in summaries]
        unknown = [keys for table in tables for keys in table.index[table.isna()]]
        yield name, "", *(table.drop(unknown, errors="ignore") for table in tables)


def _scores(new: Summary, reference: Summary, primary: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """Yields rows for the scores: one per cell and metric, and one per model and metric for the mean difference."""
    index, both = [*CELL_KEYS, "metric"], (new, reference)
    cells = [summary.cells.set_index(index) for summary in both]
    runs, of_items = (
        [table.pivot(index=index, columns="seed", values="value") for table in tables]
        for tables in ([summary.runs for summary in both], [summary.of_items for summary in both])
    )
    every = cells[1].index.union(cells[0].index, sort=False).to_frame(index=False)
    for (task, _, metric), group in every.groupby(["task", "model", "metric"], sort=False):
        if metric in EXACT_METRICS:
            continue
        comparable = []
        decides = metric in (*primary.get(task, ()), *MASK_METRICS)
        for key in group.itertuples(index=False, name=None):
            problem = _problem(key, [summary.name for summary in both], cells, runs, of_items)
            if problem is None:
                comparable.append(key)
            else:
                yield _row(task, _name_of(key), metric, *problem)
        if comparable:
            yield from _tested(comparable, both, cells, runs, decides)


def _name_of(key: tuple) -> str:
    return "/".join(key[1:5])


def _problem(
    key: tuple,
    names: Sequence[str],
    cells: Sequence[pd.DataFrame],
    runs: Sequence[pd.DataFrame],
    of_items: Sequence[pd.DataFrame],
) -> tuple[str, str] | None:
    """Returns verdict and reason if the scores of a cell cannot be compared by a test, else None."""
    there = [key in table.index for table in cells]
    if not all(there):
        return OUT, f"only in {names[there.index(True)]}"
    for column in ("unit", "n_seeds"):
        mine, other = (table.loc[key, column] for table in cells)
        if mine != other:
            return OUT, f"{column} {mine} in {names[0]}, {other} in {names[1]}"
    mine, other = (table.loc[key, "mean"] for table in cells)
    if np.isnan(mine) or np.isnan(other):
        both = np.isnan(mine) and np.isnan(other)
        return NOT_COMPARABLE if both else OUT, f"{mine:.6g} in {names[0]}, {other:.6g} in {names[1]}"
    for name, table, values, recomputed in zip(names, cells, runs, of_items, strict=True):
        stated, found = table.loc[key, "mean"], values.loc[key].mean() if key in values.index else np.nan
        if not np.isclose(stated, found, rtol=1e-9, atol=1e-12, equal_nan=True):
            return OUT, f"mean {stated:.6g} in {name}, but that of its runs is {found:.6g}"
        if key[-1] in COST_METRICS:
            continue
        again = np.nan
        if key in recomputed.index:
            of_seeds = recomputed.loc[key].dropna()
            found, again = values.loc[key, of_seeds.index].mean() if len(of_seeds) == 1 else found, of_seeds.mean()
        if not np.isclose(found, again, rtol=1e-9, atol=1e-12, equal_nan=True):
            return OUT, f"mean {found:.6g} in {name}, but its items give {again:.6g}"
    return None


def _tested(
    keys: Sequence[tuple],
    both: Sequence[Summary],
    cells: Sequence[pd.DataFrame],
    runs: Sequence[pd.DataFrame],
    decides: bool,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of cells with scores in both summaries; the last one is about their mean difference."""
    # Cells that are the same constant in both, such as the units at k_min of dense, have no variance to test against.
    vary = [key for key in keys if not all(table.loc[key].dropna().eq(runs[0].loc[key].max()).all() for table in runs)]
    keys = vary or keys
    mine, others = (table.loc[keys] for table in cells)
    scores = [table.loc[keys].dropna(axis=1).to_numpy() for table in runs]  # of the seeds that all of the cells have
    if not all(table.size for table in scores):
        for key in keys:
            yield _row(key[0], _name_of(key), key[-1], NOT_COMPARABLE, "no seed has a value in all cells")
        return
    same = np.array([both[0].items.get(key[:5]) == both[1].items.get(key[:5]) for key in keys])
    shared = np.where(same, 0.0, (mine["item_variance"] + others["item_variance"]).to_numpy())
    interaction = others["interaction_variance"].fillna(0)
    of_items = interaction.where(interaction > 0, others["item_variance"]).to_numpy()
    shares = np.maximum(mine["mean"], others["mean"]).clip(0, 1).to_numpy()
    counts = np.array([min(summary.units.get(key[:5], 1) for summary in both) for key in keys])
    floors = shares * (1 - shares) / counts if keys[0][-1] in MASK_METRICS else np.zeros(len(keys))
    tests = test_scores(*scores, of_items, shared, int(mine["n_items"].min()), floors)
    means = [
        f"{one:.6g} in {both[0].name}, {two:.6g} in {both[1].name}"
        for one, two in zip(mine["mean"], others["mean"], strict=True)
    ]
    task, model, *_, metric = keys[0]
    labels = [_name_of(key) for key in keys]
    if len(keys) > 1:
        labels, means = [*labels, f"{model}, {ALL_CELLS}"], [*means, "mean difference"]
    unit = mine["unit"].iloc[0]
    for label, values, test in zip(labels, means, tests.itertuples(), strict=True):
        known = not np.isnan(test.p)
        off = f"off by {test.difference:+.3g} {unit}, standard error {test.error:.2g}"
        verdict, why = (
            (OK, f"{values}: {off}") if known else (NOT_COMPARABLE, f"{values}; a variance over seeds needs two")
        )
        yield _row(
            *(task, label, metric, verdict if decides else OK, why),
            **{"unit": unit, "decides": decides, "difference": test.difference, "error": test.error, "p": test.p},
        )


def test_scores(
    new: np.ndarray,
    reference: np.ndarray,
    of_items: np.ndarray,
    shared: np.ndarray,
    items: int,
    floors: np.ndarray | float = 0.0,
) -> pd.DataFrame:
    """Tests whether scores of the same cells in two studies, [cells, seeds] each, have the same expectation.

    Returns one row per cell, for its difference from the mean difference, and a last row for the mean difference, with
    `difference`, `error` and `p`. A single cell has only the last row. p is 1 if the difference is zero up to rounding,
    otherwise NaN if the variance is unknown because both studies have one seed.

    Args:
        of_items: [cells], the variance of a single score that is due to the items. It is used where scores never vary
            over seeds.
        shared: [cells], variance of the difference due to test items that the studies do not share.
        items: number of test items.
        floors: [cells], the smallest possible variance of a single score, such as that of a share of few units.
    """
    studies, cells = (new, reference), len(new)
    differences = new.mean(1) - reference.mean(1)
    effects = np.append(differences - differences.mean(), differences.mean())
    shared = np.append(shared, shared.mean())
    per_seed = sum(1 / study.shape[1] for study in studies)
    freedom = sum(study.shape[1] - 1 for study in studies)
    if freedom:
        residuals = [study - study.mean(1, keepdims=True) - study.mean(0) + study.mean() for study in studies]
        own, own_freedom = of_items, freedom * (cells - 1) / cells
        if cells > 1:
            squares = sum((residual**2).sum(1) for residual in residuals) / own_freedom
            squares = np.where(squares > ROUNDING * new.max() ** 2, squares, of_items)
            own, own_freedom = moderate(np.maximum(squares, floors), own_freedom)
        of_seeds = sum(((study.mean(0) - study.mean()) ** 2).sum() for study in studies) / freedom
        of_mean = of_seeds if of_seeds > ROUNDING * new.max() ** 2 else of_items.sum() / cells**2
        of_mean = max(of_mean, np.sum(floors) / cells**2)
        variances = per_seed * np.append(own * (1 - 2 / cells) + own.sum() / cells**2, of_mean)
        degrees = np.append(np.full(cells, own_freedom), freedom)
    else:
        variances, degrees = np.full((2, cells + 1), np.nan)
    tests = pd.DataFrame({"difference": effects, "error": np.sqrt(variances + shared)})
    rounding = 1e-12 + 1e-9 * max(np.abs(study).max() for study in studies)
    tests["p"] = [
        1.0 if abs(effect) <= rounding else p_of(effect, [(variance, degree), (extra, items - 1)])
        for effect, variance, degree, extra in zip(effects, variances, degrees, shared, strict=True)
    ]
    return tests if cells > 1 else tests[1:]


test_scores.__test__ = False  # not a test of pytest


def moderate(variances: np.ndarray, freedom: float) -> tuple[np.ndarray, float]:
    """Shrinks variances, each with `freedom` degrees of freedom, towards their mean; returns them and their freedom.

    This is the posterior variance of Smyth (2004, section 3) with the mean as prior variance and `PRIOR_FREEDOM` prior
    degrees of freedom. They are not estimated: a few estimates from a few seeds do not tell how much the variances of
    the cells differ. The number is a compromise, simulated for two seeds, four metrics and eleven cells at level .05:
    1.5 % of equal studies are out, and 5 % if one cell has seven times the variance of the others; a cell that is off
    by six standard errors is found in 89 % of the studies, one that is off by ten always.
    """
    return (PRIOR_FREEDOM * variances.mean() + freedom * variances) / (PRIOR_FREEDOM + freedom), PRIOR_FREEDOM + freedom


def by_metric(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per task and metric of `compare`, with the comparison of the smallest p or largest difference.

    Columns: the number of `cells` compared, the `difference` in `unit`, its `error` and `p`, the cell `where` it occurs
    (empty if all are equal), whether the metric `decides`, and `verdict`, which counts the cells that are not ok.
    """
    rows = []
    for (task, metric), group in comparisons.groupby(["task", "metric"], sort=False):
        order = group.assign(size=-group["difference"].abs()).sort_values(["p", "size"], kind="stable")
        worst = order[order["difference"].fillna(0) != 0].head(1)
        rows.append(
            {"task": task, "metric": metric, "cells": group.loc[group["cell"].str.count("/") > 0, "cell"].nunique()}
            | {key: next(iter(worst[key]), np.nan) for key in ("difference", "error", "p")}
            | {"unit": next(iter(group["unit"]), ""), "where": next(iter(worst["cell"]), "")}
            | {"decides": bool(group["decides"].any()), "verdict": _counts(group)}
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
