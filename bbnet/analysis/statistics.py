"""Computes the mean, sd and 95 % interval of every cell. Items are crossed with seeds: all seeds share one test set."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd
from scipy import stats

CELL_KEYS = ["task", "model", "method", "side", "budget"]
DENSE = ("dense", "none", "1.00")  # method, side and budget
CONFIDENCE = 0.95
REPLICATES = 1000
REPLICATES_AT_ONCE = 100

Metrics = Callable[..., Mapping[str, np.ndarray]]


def half_width(seed_values: np.ndarray, item_variance: float) -> float:
    """Returns the half-width of the 95 % interval of a mean over seeds: t(S-1) * sqrt(s2_seed / S + v_item).

    With one seed the variance over seeds is unknown; the interval is then normal and covers the items only.

    Args:
        seed_values: [seeds], the value of each seed.
        item_variance: variance of the mean due to the choice of the test items.
    """
    seeds = len(seed_values)
    upper = (1 + CONFIDENCE) / 2
    if seeds == 1:
        return float(stats.norm.ppf(upper) * np.sqrt(item_variance))
    return float(stats.t.ppf(upper, seeds - 1) * np.sqrt(np.var(seed_values, ddof=1) / seeds + item_variance))


def bootstrap(
    items: Mapping[str, np.ndarray], metrics: Metrics, dense: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Returns each metric, [seeds, replicates], on bootstrap samples of the test items shared by all seeds.

    The random seed is fixed: calls with the same number of items draw the same samples, so the replicates of two cells
    with the same items are paired.

    Args:
        items: sufficient statistics, [seeds, items], with the same items in the same order for every seed.
        metrics: the task's metrics, called with items and weights, or with items, `dense` and weights.
        dense: items of the dense runs, in the same format.
    """
    count = next(iter(items.values())).shape[-1]
    generator = np.random.default_rng(0)
    drawn: dict[str, list[np.ndarray]] = {}
    by_seed = [
        {name: values[:, None, :] for name, values in of_run.items()} for of_run in (items, dense) if of_run is not None
    ]
    for _ in range(REPLICATES // REPLICATES_AT_ONCE):
        weights = generator.multinomial(count, np.full(count, 1 / count), size=REPLICATES_AT_ONCE)
        for name, values in metrics(*by_seed, weights[None]).items():
            drawn.setdefault(name, []).append(values)
    return {name: np.concatenate(values, axis=1) for name, values in drawn.items()}


def item_variance(draws: np.ndarray) -> float:
    """Returns the variance of the mean over seeds due to the choice of test items, from `draws` [seeds, replicates].

    Replicates whose mean is NaN (e.g. the error rate of words that were not drawn) are ignored.
    """
    means = draws.mean(axis=0)
    defined = means[~np.isnan(means)]
    return float(np.var(defined, ddof=1)) if len(defined) > 1 else np.nan


@dataclass(frozen=True)
class Resampled:
    """A cell evaluated on bootstrap samples of the test items.

    Args:
        seeds: the cell's seeds, sorted.
        items: names of the cell's items, in the order used for the bootstrap.
        variances: by metric, the item variance of the mean over seeds.
        draws: by metric to compare, the bootstrap values, [seeds, replicates].
    """

    seeds: list[int]
    items: np.ndarray
    variances: dict[str, float]
    draws: dict[str, np.ndarray]


def resample_cells(
    items: pd.DataFrame,
    metrics: Mapping[str, Metrics],
    relative_metrics: Mapping[str, Metrics] = MappingProxyType({}),
    contrasted: Mapping[str, Sequence[str]] = MappingProxyType({}),
    apply: Callable[..., Iterable] = map,
) -> dict[tuple, Resampled]:
    """Returns the bootstrap results of every cell, keyed by the values of `CELL_KEYS`.

    Args:
        items: `collect.items_table`.
        metrics: by task, the function that computes its metrics.
        relative_metrics: by task that has them, the function for metrics relative to the dense runs of the same seeds.
        contrasted: by task, the metrics whose bootstrap values are kept in `draws`.
        apply: `map`, or the `map` of a process pool.
    """
    items_of = dict(iter(items.groupby(CELL_KEYS, sort=False)))
    tasks = [keys[0] for keys in items_of]
    found = apply(
        _resampled,
        items_of.values(),
        [items_of.get((*keys[:2], *DENSE)) if keys[0] in relative_metrics else None for keys in items_of],
        [metrics[task] for task in tasks],
        [relative_metrics.get(task) for task in tasks],
        [contrasted.get(task, ()) for task in tasks],
    )
    return dict(zip(items_of, found, strict=True))


def _resampled(
    items: pd.DataFrame,
    dense: pd.DataFrame | None,
    metrics: Metrics,
    relative_metrics: Metrics | None,
    contrasted: Sequence[str],
) -> Resampled:
    paired, names = _paired_items(items)
    draws = bootstrap(paired, metrics)
    variances = {name: item_variance(values) for name, values in draws.items()}
    if dense is not None:
        own = items[items["seed"].isin(dense["seed"])]
        common_dense = dense[dense["seed"].isin(items["seed"])]
        if len(own):
            relative = bootstrap(_paired_items(own)[0], relative_metrics, _paired_items(common_dense)[0])
            variances |= {name: item_variance(values) for name, values in relative.items()}
    return Resampled(sorted(items["seed"].unique()), names, variances, {name: draws[name] for name in contrasted})


def cells_table(
    runs: pd.DataFrame, resampled: Mapping[tuple, Resampled], units: Mapping[str, Mapping[str, str]]
) -> pd.DataFrame:
    """Returns one row per cell and metric: mean, sd, n_seeds, and the 95 % interval of the mean, `low` to `high`.

    Args:
        runs: `collect.runs_table`. Costs are not computed from items, so their item variance is 0.
        units: by task, the unit of each metric.
    """
    rows = []
    for keys, cell in runs.groupby(CELL_KEYS, sort=False):
        for metric, values in cell.dropna(subset="value").groupby("metric", sort=False)["value"]:
            mean = values.mean()
            half = half_width(values.to_numpy(), resampled[keys].variances.get(metric, 0.0))
            rows.append(
                dict(zip(CELL_KEYS, keys, strict=True))
                | {
                    "metric": metric,
                    "unit": units[keys[0]][metric],
                    "mean": mean,
                    "sd": values.std(ddof=1),
                    "n_seeds": len(values),
                    "low": mean - half,
                    "high": mean + half,
                }
            )
    return pd.DataFrame(rows, columns=[*CELL_KEYS, "metric", "unit", "mean", "sd", "n_seeds", "low", "high"])


def curves_table(items: pd.DataFrame, curve: Metrics) -> pd.DataFrame:
    """Returns one row per cell and point of a curve: mean, interval (`low`, `high`), n_seeds, and values of `seeds`.

    Args:
        items: `collect.items_table` of one task and model.
        curve: function of items and weights that returns a dict from point to values, like a task's metrics.
    """
    rows = []
    for keys, cell in items.groupby(CELL_KEYS, sort=False):
        paired, _ = _paired_items(cell)
        draws = bootstrap(paired, curve)
        each_once = np.ones((1, len(cell) // cell["seed"].nunique()))
        for point, of_seeds in curve(paired, each_once).items():
            half = half_width(of_seeds, item_variance(draws[point]))
            mean = float(of_seeds.mean())
            rows.append(
                dict(zip(CELL_KEYS, keys, strict=True))
                | {"point": point, "mean": mean, "low": mean - half, "high": mean + half}
                | {"n_seeds": len(of_seeds), "seeds": of_seeds.tolist()}
            )
    return pd.DataFrame(rows)


def _paired_items(items: pd.DataFrame) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns a cell's numeric columns as [seeds, items] arrays, and its text columns, which name the items.

    Raises: ValueError if the seeds were scored on different items.
    """
    columns = [name for name in items.columns if name not in [*CELL_KEYS, "seed"] and items[name].notna().all()]
    names = [name for name in columns if pd.api.types.is_string_dtype(items[name])]
    by_seed = [frame.sort_values(names) for _, frame in items.groupby("seed")]
    for frame in by_seed[1:]:
        if not np.array_equal(frame[names].to_numpy(), by_seed[0][names].to_numpy()):
            cell = "/".join(items[CELL_KEYS].iloc[0])
            raise ValueError(f"{cell}: seeds were scored on different items")
    paired = {name: np.stack([frame[name].to_numpy() for frame in by_seed]) for name in columns if name not in names}
    return paired, by_seed[0][names].to_numpy()
