"""Computes the mean, sd and 95 % interval of every cell. Items are crossed with seeds: all seeds share one test set."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pandas as pd
from scipy import optimize, special

from bbnet.analysis.draws import DRAW
from bbnet.analysis.metric import Metric

CELL_KEYS = ["task", "model", "method", "side", "budget"]
DENSE = ("dense", "none", "1.00")  # method, side and budget
CONFIDENCE = 0.95
REPLICATES = 1000
REPLICATES_AT_ONCE = 100
SMALLEST_P = 1e-300
CELL_COLUMNS = [
    *(*CELL_KEYS, "metric", "unit", "mean", "sd", "n_seeds", "low", "high"),
    *("n_items", "item_variance", "interaction_variance"),
]
DRAW_COLUMNS = ["n_draws", "draw_variance"]

Metrics = Callable[..., Mapping[str, np.ndarray]]
ItemCounts = Callable[[Mapping[str, np.ndarray]], Mapping[str, int]]


@dataclass(frozen=True)
class ItemVariance:
    """The variance of a mean over seeds that is due to the choice of the test items, in components.

    Args:
        items: number of test items.
        shared: variance of the part of the scores that all seeds share; with one seed, of the score.
        interaction: variance of what the items add to the score of a single seed beyond that. The variance over seeds
            contains it. NaN with one seed.
    """

    items: int
    shared: float
    interaction: float

    @classmethod
    def of_draws(cls, draws: np.ndarray, items: int) -> "ItemVariance":
        """Estimates the components from bootstrap values, [seeds, replicates], of a metric on `items` items.

        The variance over replicates of the mean over seeds is shared + interaction / seeds, that of a single seed is
        shared + interaction. Replicates in which a seed is NaN are ignored (for example, an error rate of words that
        were not drawn). Of a single item nothing is known: all components are NaN.
        """
        seeds, defined = len(draws), draws[:, ~np.isnan(draws).any(axis=0)]
        if defined.shape[1] < 2 or items < 2:
            return cls(items, np.nan, np.nan)
        of_mean = float(np.var(defined.mean(axis=0), ddof=1))
        if seeds == 1:
            return cls(items, of_mean, np.nan)
        of_seed = float(np.var(defined, axis=1, ddof=1).mean())
        shared, interaction = seeds * of_mean - of_seed, seeds * (of_seed - of_mean)
        return cls(items, max(0.0, shared) / (seeds - 1), max(0.0, interaction) / (seeds - 1))


WITHOUT_ITEMS = ItemVariance(0, 0.0, 0.0)


def half_width(seed_values: np.ndarray, items: ItemVariance = WITHOUT_ITEMS) -> float:
    """Returns the half-width of the 95 % interval of a mean over S seeds: sqrt(t(S-1)^2 s2_seed/S + t(n-1)^2 v_items).

    s2_seed is the variance over seeds, v_items the variance due to the n items that the seeds share. The interval is at
    least as wide as that of the items alone, which counts where the seeds happen to agree, and with one seed.

    Args:
        seed_values: [seeds], the value of each seed.
    """
    return float(np.max([_half_width(parts, 1 - CONFIDENCE) for parts in _sums(seed_values, items)]))


def p_value(seed_values: np.ndarray, items: ItemVariance = WITHOUT_ITEMS) -> float:
    """Returns the two-sided p-value of the hypothesis that the mean is 0, which corresponds to `half_width`."""
    return float(np.max([p_of(float(np.mean(seed_values)), parts) for parts in _sums(seed_values, items)]))


def _sums(seed_values: np.ndarray, items: ItemVariance) -> list[list[tuple[float, float]]]:
    """Returns the variance of the mean twice, as parts with their degrees of freedom: seeds and items; items only."""
    seeds = len(seed_values)
    of_seeds = float(np.var(seed_values, ddof=1)) / seeds if seeds > 1 else 0.0
    of_mean = items.shared + (items.interaction / seeds if seeds > 1 else 0.0)
    return [[(of_seeds, seeds - 1), (items.shared, items.items - 1)], [(of_mean, items.items - 1)]]


def p_of(effect: float, parts: Sequence[tuple[float, float]]) -> float:
    """Returns the level at which the interval of `effect` touches 0.

    Args:
        parts: the variances of which that of the effect is the sum, each with its degrees of freedom.
    """
    if any(np.isnan(variance) for variance, _ in parts):
        return np.nan
    parts = [(variance, freedom) for variance, freedom in parts if variance > 0]
    if effect == 0 or not parts:
        return 1.0 if effect == 0 else 0.0
    lowest = max(float(2 * special.stdtr(freedom, -abs(effect) / np.sqrt(variance))) for variance, freedom in parts)

    def excess(log_level: float) -> float:
        return _half_width(parts, np.exp(log_level)) - abs(effect)

    if len(parts) == 1 or lowest < SMALLEST_P or excess(np.log(lowest)) <= 0:  # one part is negligible
        return lowest
    return float(np.exp(optimize.brentq(excess, np.log(lowest), 0.0, xtol=1e-14)))


def _half_width(parts: Sequence[tuple[float, float]], level: float) -> float:
    return float(np.sqrt(sum(special.stdtrit(freedom, level / 2) ** 2 * part for part, freedom in parts if part)))


def holm(p: pd.Series) -> pd.Series:
    """Returns p-values adjusted by Holm's method: the running maximum of (m - i) p_(i) with i from 0, at most 1."""
    order = np.argsort(p.to_numpy(), kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.maximum.accumulate(p.to_numpy()[order] * factors).clip(max=1)
    return pd.Series(adjusted[np.argsort(order)], index=p.index)


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


@dataclass(frozen=True)
class Resampled:
    """A cell evaluated on bootstrap samples of the test items.

    Args:
        seeds: the cell's seeds, sorted.
        items: names of the cell's items, in the order used for the bootstrap.
        variances: by metric, the variance of the mean over seeds that is due to the items.
        draws: by metric to compare, the bootstrap values, [seeds, replicates].
        calibrations: the number of calibration draws of each seed, on average; 1 without such draws.
        calibration_variances: by metric, the variance over the draws of a seed, averaged over seeds; empty without.
    """

    seeds: list[int]
    items: np.ndarray
    variances: dict[str, ItemVariance]
    draws: dict[str, np.ndarray]
    calibrations: float = 1.0
    calibration_variances: Mapping[str, float] = field(default_factory=dict)


def resample_cells(
    items: pd.DataFrame,
    metrics: Mapping[str, Metrics],
    relative_metrics: Mapping[str, Metrics] = MappingProxyType({}),
    contrasted: Mapping[str, Sequence[str]] = MappingProxyType({}),
    item_counts: Mapping[str, ItemCounts] = MappingProxyType({}),
    apply: Callable[..., Iterable] = map,
) -> dict[tuple, Resampled]:
    """Returns the bootstrap results of every cell, keyed by the values of `CELL_KEYS`.

    Args:
        items: `collect.items_table`.
        metrics: by task, the function that computes its metrics.
        relative_metrics: by task that has them, the function for metrics relative to the dense runs of the same seeds.
        contrasted: by task, the metrics whose bootstrap values are kept in `draws`.
        item_counts: by task, a function of the items of one run that returns the number of items that each metric
            counts; by default it is the number of all items.
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
        [item_counts.get(task) for task in tasks],
    )
    return dict(zip(items_of, found, strict=True))


def _resampled(
    items: pd.DataFrame,
    dense: pd.DataFrame | None,
    metrics: Metrics,
    relative_metrics: Metrics | None,
    contrasted: Sequence[str],
    item_counts: ItemCounts | None,
) -> Resampled:
    paired, names, owners = _paired_items(items)
    draws = {name: _of_seeds(values, owners) for name, values in bootstrap(paired, metrics).items()}
    counts = {} if item_counts is None else item_counts({name: values[0] for name, values in paired.items()})
    of_items = dict(draws)
    if dense is not None:
        own = items[items["seed"].isin(dense["seed"])]
        common_dense = dense[dense["seed"].isin(items["seed"])]
        if len(own):
            paired_own, _, of_own = _paired_items(own)
            repeated = {name: values[of_own] for name, values in _paired_items(common_dense)[0].items()}
            relative = bootstrap(paired_own, relative_metrics, repeated)
            of_items |= {name: _of_seeds(values, of_own) for name, values in relative.items()}
    variances = {name: ItemVariance.of_draws(values, counts.get(name, len(names))) for name, values in of_items.items()}
    seeds = sorted(items["seed"].unique())
    compared = {name: draws[name] for name in contrasted}
    if len(owners) == len(seeds):
        return Resampled(seeds, names, variances, compared)
    of_draws = _draw_variances(metrics(paired, np.ones(len(names))), owners)
    return Resampled(seeds, names, variances, compared, len(owners) / len(seeds), of_draws)


def _of_seeds(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Returns the means [seeds, ...] of values [rows, ...] over the rows of each seed, whose index is in `owners`."""
    if len(owners) == owners[-1] + 1:
        return values
    return np.stack([values[owners == seed].mean(axis=0) for seed in range(owners[-1] + 1)])


def _draw_variances(values: Mapping[str, np.ndarray], owners: np.ndarray) -> dict[str, float]:
    """Returns the variance over the rows of a seed, averaged over the seeds that have several, of each metric."""
    of_seeds = [np.flatnonzero(owners == seed) for seed in range(owners[-1] + 1)]
    return {
        name: float(np.mean([np.var(found[rows], ddof=1) for rows in of_seeds if len(rows) > 1]))
        for name, found in values.items()
    }


def cells_table(
    runs: pd.DataFrame, resampled: Mapping[tuple, Resampled], metrics: Mapping[str, Mapping[str, Metric]]
) -> pd.DataFrame:
    """Returns one row per cell and metric: mean, sd, n_seeds, and the 95 % interval of the mean, `low` to `high`.

    The interval is that of `half_width`, limited to the values that the metric can take. `n_items`, `item_variance` and
    `interaction_variance` are the fields of `ItemVariance`. If a cell has several calibration draws for a seed, there
    are also `n_draws`, their number, and `draw_variance`, the variance of a single draw around the mean of its seed.

    Args:
        runs: `collect.runs_table`. Costs are not computed from items, so their item variance is 0.
        metrics: by task, its metrics and costs by name.
    """
    rows = []
    for keys, cell in runs.groupby(CELL_KEYS, sort=False):
        for name, values in cell.dropna(subset="value").groupby("metric", sort=False)["value"]:
            metric, mean = metrics[keys[0]][name], values.mean()
            items = resampled[keys].variances.get(name, WITHOUT_ITEMS)
            half = half_width(values.to_numpy(), items)
            rows.append(
                dict(zip(CELL_KEYS, keys, strict=True))
                | {"metric": name, "unit": metric.unit, "mean": mean, "sd": values.std(ddof=1), "n_seeds": len(values)}
                | {"low": max(mean - half, metric.low), "high": min(mean + half, metric.high)}
                | {"n_items": items.items, "item_variance": items.shared, "interaction_variance": items.interaction}
                | _draw_columns(resampled[keys], name)
            )
    with_draws = any(cell.calibration_variances for cell in resampled.values())
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, *(DRAW_COLUMNS if with_draws else ())])


def _draw_columns(cell: Resampled, metric: str) -> dict[str, float]:
    return dict(zip(DRAW_COLUMNS, (cell.calibrations, cell.calibration_variances.get(metric, np.nan)), strict=True))


def curves_table(items: pd.DataFrame, curve: Metrics) -> pd.DataFrame:
    """Returns one row per cell and point of a curve: mean, interval (`low`, `high`), n_seeds, and values of `seeds`.

    Args:
        items: `collect.items_table` of one task and model.
        curve: function of items and weights that returns a dict from point to values, like a task's metrics.
    """
    rows = []
    for keys, cell in items.groupby(CELL_KEYS, sort=False):
        paired, names, owners = _paired_items(cell)
        draws = bootstrap(paired, curve)
        each_once = np.ones((1, len(names)))
        for point, values in curve(paired, each_once).items():
            of_seeds = _of_seeds(values, owners)
            variance = ItemVariance.of_draws(_of_seeds(draws[point], owners), each_once.size)
            half = half_width(of_seeds, variance)
            mean = float(of_seeds.mean())
            rows.append(
                dict(zip(CELL_KEYS, keys, strict=True))
                | {"point": point, "mean": mean, "low": mean - half, "high": mean + half}
                | {"n_seeds": len(of_seeds), "seeds": of_seeds.tolist()}
            )
    return pd.DataFrame(rows)


def _paired_items(items: pd.DataFrame) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Returns a cell's numeric columns as [rows, items] arrays, its text columns, which name the items, and owners.

    There is a row for each seed, or for each draw of each seed; `owners` [rows] are the indices of their seeds.

    Raises: ValueError if the seeds were scored on different items.
    """
    keys = ["seed", DRAW] if DRAW in items and items[DRAW].notna().all() else ["seed"]
    not_scores = (*CELL_KEYS, "seed", DRAW)
    columns = [name for name in items.columns if name not in not_scores and items[name].notna().all()]
    names = [name for name in columns if pd.api.types.is_string_dtype(items[name])]
    groups = list(items.groupby(keys))
    by_seed = [frame.sort_values(names) for _, frame in groups]
    owners = np.unique([key[0] for key, _ in groups], return_inverse=True)[1]
    for frame in by_seed[1:]:
        if not np.array_equal(frame[names].to_numpy(), by_seed[0][names].to_numpy()):
            cell = "/".join(items[CELL_KEYS].iloc[0])
            raise ValueError(f"{cell}: seeds were scored on different items")
    paired = {name: np.stack([frame[name].to_numpy() for frame in by_seed]) for name in columns if name not in names}
    return paired, by_seed[0][names].to_numpy(), owners
