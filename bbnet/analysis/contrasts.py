"""Compares methods with dense and with each other, paired by seed and test item."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from bbnet.analysis.metric import Metric
from bbnet.analysis.statistics import CELL_KEYS, DENSE, ItemVariance, Resampled, half_width, holm, p_value

PUBLISHED = {"algorithm": "budgeted_broadcast", "law": "log_odds", "silent": "smallest"}
LEVEL = 0.05
COLUMNS = [
    *CELL_KEYS,
    *("reference", "reference_side", "metric", "unit", "effect", "low", "high"),
    *("n_seeds", "differences", "variation", "p", "p_holm", "verdict"),
    *("n_items", "item_variance", "interaction_variance"),
]


def pairs(cells: list[tuple], methods: Mapping[str, Mapping[str, Any]], slabs: Mapping[tuple, Any]) -> Iterator[tuple]:
    """Yields the pairs of cells to compare.

    Each method is compared with dense. Budgeted Broadcast is compared with every other method on the same slabs at the
    same budget, each pair of its variants once.

    Args:
        cells: values of `CELL_KEYS`.
        methods: parameters of each method of the study. Methods with the parameters `PUBLISHED` are Budgeted Broadcast.
        slabs: by cell, a description of its slabs, as from `slabs_of`.
    """
    published = [label for label, method in methods.items() if PUBLISHED.items() <= method.items()]
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


def contrasts_table(
    runs: pd.DataFrame,
    resampled: Mapping[tuple, Resampled],
    compared: Iterator[tuple],
    metrics: Mapping[str, Mapping[str, Metric]],
) -> pd.DataFrame:
    """Returns one row per pair and metric; `effect` is the mean of method minus reference over their common seeds.

    `low` and `high` are the 95 % interval from `half_width`, limited to the differences that the metric can have, `p`
    is the corresponding p-value, and `p_holm` is adjusted over all contrasts of the task (Holm 1979). `variation` names
    what they account for: seeds and items, or only items if there is one seed. `differences` lists the difference of
    each seed. `verdict` is better or worse if p_holm is below 5 %, else none. The last columns are the fields of
    `ItemVariance`, for the difference.

    Args:
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
        return pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("task", sort=False)["p"].transform(holm)
    gains = np.where(table["better"] == "higher", table["effect"], -table["effect"])
    verdicts = np.where(gains > 0, "better", "worse")
    table["verdict"] = np.where(table["p_holm"] < LEVEL, verdicts, "none")
    return table[COLUMNS]


def _contrast(
    cell: tuple, reference: tuple, metric: str, values: Mapping[tuple, pd.Series], resampled: Mapping[tuple, Resampled]
) -> dict[str, Any] | None:
    """Returns one row of `contrasts_table`, or None if no common seed of the two cells has a value."""
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
