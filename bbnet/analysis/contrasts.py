"""Compares methods with dense and with each other, and models with a baseline, paired by seed and test item."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from bbnet.analysis.metric import Metric
from bbnet.analysis.statistics import CELL_KEYS, DENSE, ItemVariance, Resampled, half_width, holm, p_value

PUBLISHED = {"algorithm": "budgeted_broadcast", "law": "log_odds", "silent": "smallest"}
LEVEL = 0.05
MEASURED = [
    *("metric", "unit", "effect", "low", "high"),
    *("n_seeds", "differences", "variation", "p", "p_holm", "verdict"),
    *("n_items", "item_variance", "interaction_variance"),
]
COLUMNS = [*CELL_KEYS, "reference", "reference_side", *MEASURED]
MODEL_COLUMNS = [*CELL_KEYS, "reference_model", "reference", "reference_side", *MEASURED]
EQUAL_COST = 0.02  # largest relative difference between the FLOPs of networks that are said to cost the same


def pairs(
    cells: list[tuple],
    methods: Mapping[str, Mapping[str, Any]],
    slabs: Mapping[tuple, Any],
    reference: str | None = None,
) -> Iterator[tuple]:
    """Yields the pairs of cells to compare.

    Each method is compared with dense. Budgeted Broadcast is compared with every other method on the same slabs at the
    same budget, each pair of its variants once. If the study names a reference, only pairs that differ in one thing are
    compared instead: see `pairs_of_variants`.

    Args:
        cells: values of `CELL_KEYS`.
        methods: parameters of each method of the study. Methods with the parameters `PUBLISHED` are Budgeted Broadcast.
        slabs: by cell, a description of its slabs, as from `slabs_of`.
        reference: the `reference` of the study.
    """
    if reference is not None:
        yield from pairs_of_variants(cells, methods, slabs, reference)
        return
    published = _published(methods)
    for cell in cells:
        task, model, method, _, _ = cell
        dense = (task, model, *DENSE)
        if method != "dense" and dense in cells:
            yield cell, dense
    ours = [cell for cell in cells if cell[2] in published]
    for cell, other in product(ours, cells):
        (task, model, method, _, budget), (of_task, of_model, reference, _, of_budget) = cell, other
        if (task, model, budget) != (of_task, of_model, of_budget) or reference in ("dense", method):
            continue
        first_of_pair = reference not in published or published.index(method) < published.index(reference)
        if first_of_pair and slabs[cell] == slabs[other]:
            yield cell, other


def _published(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the labels of the methods that are Budgeted Broadcast as published."""
    return [label for label, method in methods.items() if PUBLISHED.items() <= method.items()]


def pairs_of_variants(
    cells: list[tuple], methods: Mapping[str, Mapping[str, Any]], slabs: Mapping[tuple, Any], reference: str
) -> Iterator[tuple]:
    """Yields the pairs of cells to compare in a study of variants of its reference, which are those of its algorithm.

    The reference is compared with dense, each other variant with the reference, and every variant with the methods of
    other algorithms that have the same settings of the sparse phase. All but dense are on the same slabs at the same
    budget. The arguments are those of `pairs`.
    """
    variants = [label for label, method in methods.items() if method["algorithm"] == methods[reference]["algorithm"]]
    for cell, other in product(cells, cells):
        (*place, method, _, budget), (*of_place, rival, _, of_budget) = cell, other
        if method not in variants or place != of_place or method == rival:
            continue
        if rival == "dense":
            compared = method == reference
        elif (budget, slabs[cell]) != (of_budget, slabs[other]):
            compared = False
        elif rival in variants:
            compared = rival == reference
        else:
            compared = methods[method].get("sparsity") == methods[rival].get("sparsity")
        if compared:
            yield cell, other


def model_pairs(
    cells: list[tuple], baselines: Mapping[str, str], beside: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple]:
    """Yields the pairs of cells that compare models: each with the baseline's of the same method, side and budget.

    Args:
        cells: values of `CELL_KEYS`.
        baselines: by task, the model with which the others are compared.
        beside: by task and model, one more with which it is compared.
    """
    for cell in cells:
        task, model, *others = cell
        for other in (baselines.get(task), beside.get(task, {}).get(model)):
            reference = (task, other, *others)
            if reference != cell and reference in cells:
                yield cell, reference


def equal_cost_pairs(
    cells: list[tuple],
    methods: Mapping[str, Mapping[str, Any]],
    baselines: Mapping[str, str],
    flops: Mapping[tuple, float],
) -> Iterator[tuple]:
    """Yields the pairs of cells that compare Budgeted Broadcast on a baseline with dense networks of the same cost.

    These are the dense cells of other models of the task whose FLOPs differ by at most `EQUAL_COST`. They answer
    whether pruning a network is better than training a smaller one.

    Args:
        cells: values of `CELL_KEYS`.
        methods: as in `pairs`.
        baselines: as in `model_pairs`.
        flops: FLOPs of each cell, as sparsified.
    """
    published = _published(methods)
    for cell, reference in product(cells, cells):
        (task, model, method, *_), (of_task, of_model, *of_cell) = cell, reference
        ours = baselines.get(task) == model and method in published
        other_dense = task == of_task and model != of_model and tuple(of_cell) == DENSE
        if ours and other_dense and abs(flops[reference] - flops[cell]) <= EQUAL_COST * flops[cell]:
            yield cell, reference


def contrasts_tables(
    runs: pd.DataFrame,
    resampled: Mapping[tuple, Resampled],
    compared: Iterable[tuple],
    metrics: Mapping[str, Mapping[str, Metric]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the contrasts of cells of one model, with `COLUMNS`, and those between models, with `MODEL_COLUMNS`.

    They have one row per pair and metric; `effect` is the mean of the cell minus its reference over their common seeds.
    `low` and `high` are the 95 % interval from `half_width`, limited to the differences that the metric can have, `p`
    is the corresponding p-value, and `p_holm` is adjusted over all contrasts of the task, those of both tables together
    (Holm 1979). `variation` names what they account for: seeds and items, or only items if there is one seed.
    `differences` lists the difference of each seed. `verdict` is better or worse if p_holm is below 5 %, else none. The
    last columns are the fields of `ItemVariance`, for the difference.

    Args:
        compared: pairs of cells, as from `pairs`, `model_pairs` and `equal_cost_pairs`.
        metrics: by task, the metrics to compare.
    Raises: ValueError if two cells were scored on different items.
    """
    values = {keys: cell.set_index("seed")["value"] for keys, cell in runs.groupby([*CELL_KEYS, "metric"])}
    rows = []
    for cell, reference in compared:
        for name, metric in metrics[cell[0]].items():
            row = _contrast(cell, reference, name, values, resampled)
            if row is not None:
                span = metric.high - metric.low
                bounds = {"low": max(row["low"], -span), "high": min(row["high"], span)}
                rows.append(row | bounds | {"unit": metric.unit, "better": metric.better})
    if not rows:
        return pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=MODEL_COLUMNS)
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("task", sort=False)["p"].transform(holm)
    gains = np.where(table["better"] == "higher", table["effect"], -table["effect"])
    verdicts = np.where(gains > 0, "better", "worse")
    table["verdict"] = np.where(table["p_holm"] < LEVEL, verdicts, "none")
    of_one_model = table["model"] == table["reference_model"]
    return table.loc[of_one_model, COLUMNS], table.loc[~of_one_model, MODEL_COLUMNS].reset_index(drop=True)


def _contrast(
    cell: tuple, reference: tuple, metric: str, values: Mapping[tuple, pd.Series], resampled: Mapping[tuple, Resampled]
) -> dict[str, Any] | None:
    """Returns one row of `contrasts_tables`, or None if no common seed of the two cells has a value."""
    own, other = resampled[cell], resampled[reference]
    if not np.array_equal(own.items, other.items):
        raise ValueError(f"{'/'.join(cell)} and {'/'.join(reference)} were scored on different items")
    none = pd.Series(dtype=float)
    differences = (values.get((*cell, metric), none) - values.get((*reference, metric), none)).dropna().sort_index()
    if not len(differences):
        return None
    indices = [[one.seeds.index(seed) for seed in differences.index] for one in (own, other)]
    draws = own.draws[metric][indices[0]] - other.draws[metric][indices[1]]
    items, effect = ItemVariance.of_draws(draws, own.variances[metric].items), float(differences.mean())
    half = half_width(differences.to_numpy(), items)
    return dict(zip(CELL_KEYS, cell, strict=True)) | {
        "reference_model": reference[1],
        "reference": reference[2],
        "reference_side": reference[3],
        "metric": metric,
        "effect": effect,
        "low": effect - half,
        "high": effect + half,
        "n_seeds": len(differences),
        "differences": " ".join(map(repr, differences.tolist())),
        "variation": "items" if len(differences) == 1 else "seeds and items",
        "p": p_value(differences.to_numpy(), items),
        "n_items": items.items,
        "item_variance": items.shared,
        "interaction_variance": items.interaction,
    }


def slabs_of(units: pd.DataFrame) -> dict[tuple, frozenset]:
    """Returns the slabs of each cell as a set of (name, number of connections).

    Args:
        units: `collect.units_table`.
    """
    of_runs = units[units["phase"] == "run"]
    counts = of_runs.groupby([*CELL_KEYS, "seed", "slab"], sort=False)["fan"].sum().reset_index()
    found = {}
    for keys, cell in counts.groupby(CELL_KEYS, sort=False):
        found[keys] = frozenset(zip(cell["slab"], cell["fan"], strict=True))
    return found
