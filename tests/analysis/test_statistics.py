"""Intervals of means over seeds and items, against closed forms."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bbnet.analysis import statistics
from bbnet.analysis.collect import COST_METRICS
from bbnet.analysis.metric import Metric
from bbnet.analysis.statistics import ItemVariance, bootstrap, curves_table, half_width, p_of, p_value, resample_cells
from bbnet.data.process import worker_pool

KEYS = {"task": "change", "model": "small", "method": "sp_in", "side": "in", "budget": "0.20"}
COLUMNS = ["task", "model", "method", "side", "budget", "metric", "unit", "mean", "sd", "n_seeds", "low", "high"]
COLUMNS += ["n_items", "item_variance", "interaction_variance"]
UNITS = {"change": COST_METRICS | {"score": Metric("score", "share", "higher")}}


def item_variances(items, metrics, dense=None):
    count = next(iter(items.values())).shape[-1]
    return {name: ItemVariance.of_draws(draws, count) for name, draws in bootstrap(items, metrics, dense).items()}


def of_mean(found: ItemVariance, seeds: int) -> float:
    """The variance over draws of the items of a mean over seeds."""
    return found.shared + (found.interaction / seeds if seeds > 1 else 0)


def cells_table(runs, items, metrics, units, relative_metrics=None):
    return statistics.cells_table(runs, resample_cells(items, metrics, relative_metrics or {}), units)


def mean_score(items, weights):
    """A linear metric: the weighted mean of one number per item."""
    return {"score": (items["value"] * weights).sum(-1) / weights.sum(-1)}


@pytest.fixture
def tables():
    """`runs` and `items` tables of one cell from values [seeds, items]; the metric is their mean."""

    def make(values: np.ndarray, **keys) -> tuple[pd.DataFrame, pd.DataFrame]:
        cell = KEYS | keys
        runs, items = [], []
        for seed, row in enumerate(values):
            runs.append(cell | {"seed": seed, "metric": "score", "value": row.mean()})
            runs.append(cell | {"seed": seed, "metric": "flops", "value": 1e6 + seed})
            items += [cell | {"seed": seed, "image": f"i{item}", "value": value} for item, value in enumerate(row)]
        return pd.DataFrame(runs), pd.DataFrame(items)

    return make


@pytest.fixture
def cells():
    """`cells_table` of such tables."""
    return lambda runs, items: cells_table(runs, items, {"change": mean_score}, UNITS)


@pytest.fixture
def values() -> np.ndarray:
    """Three seeds that agree on which of 80 items are easy."""
    generator = np.random.default_rng(0)
    return generator.normal(0.6, 0.2, 80) + generator.normal(0, 0.05, (3, 80))


# Half-widths.


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_without_item_variance_it_is_the_t_interval_of_the_mean(seeds):
    values = np.random.default_rng(seeds).normal(size=seeds)
    low, high = stats.t.interval(0.95, seeds - 1, values.mean(), stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-12)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize(("items", "quantile"), [(2, 12.7062), (3, 4.30265), (60, 2.000995)])
def test_equal_seeds_leave_the_t_interval_of_the_items(seeds, items, quantile):
    found = ItemVariance(items, 0.0004, 0.0)
    assert half_width(np.full(seeds, 0.7), found) == pytest.approx(quantile * 0.02, rel=1e-5)
    assert half_width(np.full(seeds, 0.7)) == pytest.approx(0, abs=1e-12)


def test_each_variance_counts_with_the_square_of_its_own_t():
    # s2 of (1, 2, 3) is 1; t is 4.30265 with 2 and 2.77645 with 4 degrees of freedom.
    half = half_width(np.array([1.0, 2.0, 3.0]), ItemVariance(5, 1 / 6, 0.1))
    assert half == pytest.approx(np.sqrt(4.30265**2 / 3 + 2.77645**2 / 6), rel=1e-5)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_seeds_that_agree_leave_the_t_interval_of_the_bootstrap(seeds, values):
    """By chance the scores of few seeds are equal. What the items say of a single seed still counts."""
    draws = bootstrap({"value": values}, mean_score)["score"]
    found = ItemVariance.of_draws(draws, 80)
    agreed = np.full(3, 0.6)
    half = stats.t.ppf(0.975, 79) * draws.mean(0).std(ddof=1)
    assert half_width(agreed, found) == pytest.approx(half, rel=1e-9)
    expected = 2 * stats.t.sf(0.6 / draws.mean(0).std(ddof=1), 79)
    assert p_value(agreed, found) == pytest.approx(expected, rel=1e-9)


# p-values.


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_without_item_variance_p_is_that_of_the_t_test(seeds):
    values = np.random.default_rng(seeds).normal(0.5, 1, size=seeds)
    assert p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-12)


@pytest.mark.parametrize(("variance", "items"), [(1.0, 60), (0.04, 500)])
def test_without_seed_variance_p_is_that_of_the_items(variance, items):
    found = ItemVariance(items, variance, 0.0)
    expected = 2 * stats.t.sf(0.5 / np.sqrt(variance), items - 1)
    for seeds in (1, 3):
        assert p_value(np.full(seeds, 0.5), found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("effect", [1e-3, 0.3, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_the_interval_at_level_p_touches_0(seeds, effect):
    values = effect + np.random.default_rng(seeds).normal(0, 0.5, seeds)
    parts = [(values.var(ddof=1) / seeds, seeds - 1), (0.05, 59)]
    p = p_of(values.mean(), parts)
    half = np.sqrt(sum(stats.t.isf(p / 2, freedom) ** 2 * variance for variance, freedom in parts))
    assert half == pytest.approx(abs(values.mean()), rel=1e-9)
    assert p == p_of(-values.mean(), parts) == p_value(values, ItemVariance(60, 0.05, 0.0))


def test_certain_and_absent_effects():
    assert (p_value(np.array([0.0])), p_value(np.array([0.3, 0.3])), p_value(np.array([1.0, -1.0]))) == (1, 0, 1)


# Variance over items.


def test_the_bootstrap_gives_the_variance_of_a_mean(values):
    found = item_variances({"value": values}, mean_score)["score"]
    assert of_mean(found, 3) == pytest.approx(values.mean(0).var() / 80, rel=0.15)
    assert (found.items, found.interaction) == (80, pytest.approx(0.05**2 / 80, rel=0.3))


@pytest.mark.parametrize(("shared", "interaction"), [(4.0, 0.0), (0.0, 4.0), (1.0, 2.0)])
def test_the_variance_of_items_is_split_into_what_seeds_share_and_the_rest(shared, interaction):
    generator = np.random.default_rng(4)
    values = generator.normal(0, np.sqrt(shared), (1, 2000)) + generator.normal(0, np.sqrt(interaction), (5, 2000))
    found = item_variances({"value": values}, mean_score)["score"]
    assert found.shared * 2000 == pytest.approx(shared, abs=0.4)
    assert found.interaction * 2000 == pytest.approx(interaction, abs=0.4)


def test_items_are_drawn_alike_for_all_seeds(values):
    """Seeds that err on opposite items have a mean without item variance; seeds that agree do not gain by number."""
    spread = values[0] - values[0].mean()
    opposite = item_variances({"value": np.stack([spread, -spread])}, mean_score)["score"]
    alone = item_variances({"value": spread[None]}, mean_score)["score"]
    assert (opposite.shared, opposite.interaction) == (0, pytest.approx(2 * alone.shared))
    agreed = item_variances({"value": np.stack([spread] * 5)}, mean_score)["score"]
    assert (agreed.shared, agreed.interaction) == pytest.approx((alone.shared, 0), rel=1e-9)
    assert np.isnan(alone.interaction)


def test_equal_items_have_no_variance():
    found = item_variances({"value": np.full((2, 30), 0.5)}, mean_score)["score"]
    assert of_mean(found, 2) == pytest.approx(0, abs=1e-25)


def test_the_bootstrap_is_the_same_at_every_call(values):
    assert item_variances({"value": values}, mean_score) == item_variances({"value": values}, mean_score)


def test_a_ratio_has_the_variance_of_the_delta_method():
    generator = np.random.default_rng(3)
    part, rest = generator.poisson(40, (1, 400)), generator.poisson(20, (1, 400))

    def share(items, weights):
        part, rest = ((items[name] * weights).sum(-1) for name in ("part", "rest"))
        return {"share": part / (part + rest)}

    ratio = part.sum() / (part + rest).sum()
    residual = part - ratio * (part + rest)
    expected = residual.var() / (part + rest).mean() ** 2 / 400
    assert item_variances({"part": part, "rest": rest}, share)["share"].shared == pytest.approx(expected, rel=0.2)


# The table.


def test_a_cell_has_mean_sd_number_of_seeds_and_interval(tables, cells, values):
    found = cells(*tables(values)).set_index("metric")
    score = found.loc["score"]
    by_seed = values.mean(1)
    with_seeds = 4.303**2 * by_seed.var(ddof=1) / 3 + 1.990**2 * score["item_variance"]
    of_items = 1.990**2 * (score["item_variance"] + score["interaction_variance"] / 3)
    half = np.sqrt(max(with_seeds, of_items))
    assert (score["n_items"], score["item_variance"]) == (80, pytest.approx(values.mean(0).var() / 80, rel=0.2))
    assert score["mean"] == pytest.approx(by_seed.mean())
    assert score["sd"] == pytest.approx(by_seed.std(ddof=1))
    assert score["n_seeds"] == 3
    assert score["mean"] - score["low"] == pytest.approx(half, rel=1e-3)
    assert score["high"] - score["mean"] == pytest.approx(score["mean"] - score["low"])
    assert (score["unit"], found.loc["flops", "unit"]) == ("share", "FLOPs")


def test_a_cost_has_the_interval_of_its_seeds_alone(tables, cells, values):
    flops = cells(*tables(values)).set_index("metric").loc["flops"]
    assert flops["mean"] == 1e6 + 1
    assert flops["high"] - flops["mean"] == pytest.approx(stats.t.ppf(0.975, 2) / np.sqrt(3))


def test_the_columns_are_those_that_others_rely_on(tables, cells, values):
    assert list(cells(*tables(values)).columns) == COLUMNS


def test_no_runs_give_a_table_without_rows_but_with_its_columns(tables, cells, values):
    runs, items = tables(values)
    assert list(cells(runs.iloc[:0], items.iloc[:0]).columns) == COLUMNS


def test_one_seed_has_no_sd_but_an_interval(tables, cells, values):
    score = cells(*tables(values[:1])).set_index("metric").loc["score"]
    assert np.isnan(score["sd"])
    assert score["n_seeds"] == 1
    assert score["high"] - score["mean"] == pytest.approx(1.96 * values[0].std() / np.sqrt(80), rel=0.1)


def test_equal_seeds_have_no_sd_and_the_interval_of_the_items(tables, cells, values):
    score = cells(*tables(np.stack([values[0]] * 3))).set_index("metric").loc["score"]
    assert score["sd"] == pytest.approx(0, abs=1e-12)
    assert score["high"] - score["mean"] == pytest.approx(1.990 * values[0].std() / np.sqrt(80), rel=0.1)


@pytest.mark.parametrize(("mean", "low", "high"), [(0.99, 0.5, 1.0), (0.01, 0.0, 0.5)])
def test_an_interval_stays_within_the_range_of_the_metric(tables, mean, low, high):
    values = mean + np.array([[-0.005], [0.005]]) + np.zeros((2, 20))
    metrics = {"change": COST_METRICS | {"score": Metric("score", "share", "higher", 0, 1)}}
    found = cells_table(*tables(values), {"change": mean_score}, metrics).set_index("metric").loc["score"]
    assert low <= found["low"] < found["mean"] < found["high"] <= high
    unlimited = cells_table(*tables(values), {"change": mean_score}, UNITS).set_index("metric").loc["score"]
    assert unlimited["low"] < 0 or unlimited["high"] > 1


def test_cells_are_apart_by_every_key(tables, cells, values):
    variants = [{}, {"method": "dense"}, {"side": "out"}, {"budget": "0.50"}, {"model": "large"}]
    pairs = [tables(values + number, **keys) for number, keys in enumerate(variants)]
    runs, items = (pd.concat(frames, ignore_index=True) for frames in zip(*pairs, strict=True))
    found = cells(runs, items)
    scores = found[found["metric"] == "score"]
    assert scores["mean"].tolist() == pytest.approx([values.mean() + number for number in range(5)])
    assert scores["n_seeds"].tolist() == [3] * 5


def test_the_order_of_items_within_a_seed_does_not_matter(tables, cells, values):
    runs, items = tables(values)
    shuffled = items.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(cells(runs, items), cells(runs, shuffled))


@pytest.mark.parametrize(
    "damage",
    [
        lambda items: items.replace({"image": {"i3": "other"}}).where(items["seed"] == 1, items),
        lambda items: items.drop(index=items.index[-1]),
        lambda items: pd.concat([items, items.iloc[-1:].assign(image="extra")]),
    ],
    ids=["another item", "an item less", "an item more"],
)
def test_seeds_scored_on_different_items_are_refused_by_cell(tables, cells, values, damage):
    runs, items = tables(values)
    with pytest.raises(ValueError, match=r"change/small/sp_in/in/0\.20: seeds were scored on different items"):
        cells(runs, damage(items))


def test_a_pool_of_processes_resamples_to_the_same_bits(tables, values):
    methods = ("dense", "none", "1.00"), ("sp_in", "in", "0.20"), ("rigl", "in", "0.50")
    of_cell = [dict(zip(("method", "side", "budget"), method, strict=True)) for method in methods]
    items = pd.concat([tables(values + number, **keys)[1] for number, keys in enumerate(of_cell)])
    arguments = items, {"change": mean_score}, {"change": gain}, {"change": ["score"]}
    alone = resample_cells(*arguments)
    with worker_pool(2) as pool:
        pooled = resample_cells(*arguments, apply=pool.map)
    assert list(pooled) == list(alone) and len(alone) == len(methods)
    for mine, theirs in zip(pooled.values(), alone.values(), strict=True):
        assert (mine.seeds, mine.variances) == (theirs.seeds, theirs.variances)
        assert np.array_equal(mine.items, theirs.items)
        assert np.array_equal(mine.draws["score"], theirs.draws["score"])


# Metrics relative to dense.


def gain(items, dense, weights=1.0):
    """A ratio of sums, relative to dense, NaN where dense has nothing."""
    own, theirs = ((part["value"] * weights).sum(-1) for part in (items, dense))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"gain": 1 - own / np.where(theirs == 0, np.nan, theirs)}


@pytest.fixture
def relative_cells(tables):
    """The row of `gain` of sp_in beside dense, from values [seeds, items] of both."""

    def make(own, dense, dense_seeds=None):
        parts = [tables(own), tables(dense, method="dense", side="none", budget="1.00")]
        if dense_seeds is not None:
            parts[1] = tuple(table[table["seed"].isin(dense_seeds)] for table in parts[1])
        runs, items = (pd.concat(tables_of) for tables_of in zip(*parts, strict=True))
        for seed, (one, other) in enumerate(zip(own, dense, strict=True)):
            if dense_seeds is None or seed in dense_seeds:
                value = gain({"value": one}, {"value": other})["gain"]
                runs.loc[len(runs) + 1000 + seed] = KEYS | {"seed": seed, "metric": "gain", "value": float(value)}
        units = {"change": UNITS["change"] | {"gain": Metric("gain", "%", "higher")}}
        table = cells_table(runs, items, {"change": mean_score}, units, {"change": gain})
        assert not ((table["method"] == "dense") & (table["metric"] == "gain")).any()
        return table[table["metric"] == "gain"].set_index("metric").loc["gain"]

    return make


def test_a_relative_metric_draws_the_same_items_of_both_runs(relative_cells, values):
    """Where a run is dense times a constant, no choice of items changes the gain, however the items vary."""
    row = relative_cells(0.75 * values, values)
    assert row["mean"] == pytest.approx(0.25)
    assert row["high"] - row["low"] < 1e-9


def test_a_relative_metric_has_the_variance_of_the_delta_method(relative_cells):
    generator = np.random.default_rng(1)
    dense = generator.uniform(1, 2, (1, 400))
    own = 0.8 * dense + generator.normal(0, 0.3, (1, 400))
    row = relative_cells(own, dense)
    ratio = own.sum() / dense.sum()
    sd = np.std(own[0] - ratio * dense[0], ddof=1) / np.sqrt(400) / dense.mean()
    assert (row["high"] - row["low"]) / 2 == pytest.approx(1.96 * sd, rel=0.08)


def test_seeds_without_a_dense_run_have_no_relative_metric(relative_cells, values):
    row = relative_cells(0.75 * values, values, dense_seeds=[0, 2])
    assert row["n_seeds"] == 2


def test_replicates_without_the_metric_are_left_out():
    """Three of 40 items carry what dense has: a replicate in which none is drawn says nothing."""
    dense = np.zeros((2, 40))
    dense[:, :3] = 1.0
    own = dense * np.array([1.0, 0.5, 0.25] + 37 * [0])
    found = item_variances({"value": own}, gain, {"value": dense})["gain"]
    assert 0 < of_mean(found, 2) < 1


def test_a_metric_that_a_seed_lacks_is_not_a_mean_of_fewer_in_silence(tables):
    runs, items = tables(np.ones((3, 5)))
    runs.loc[(runs["seed"] == 1) & (runs["metric"] == "score"), "value"] = np.nan
    table = cells_table(runs, items, {"change": mean_score}, UNITS).set_index("metric")
    assert (table.loc["score", "n_seeds"], table.loc["flops", "n_seeds"]) == (2, 3)


# Curves.

CURVE = ["point", "mean", "low", "high", "n_seeds", "seeds"]


def shares_above(items, weights):
    """Of values by threshold: the weighted share of items that reach it."""
    reached = {level: items["value"] >= level for level in (0.4, 0.6)}
    return {level: (own * weights).sum(-1) / weights.sum(-1) for level, own in reached.items()}


def test_a_curve_has_a_row_per_cell_and_point(tables, values):
    items = pd.concat([tables(values + number / 10, method=name)[1] for number, name in enumerate(("sp_in", "dense"))])
    found = curves_table(items, shares_above)
    assert list(found.columns) == [*KEYS, *CURVE]
    assert found[["method", "point"]].to_numpy().tolist() == [
        ["sp_in", 0.4],
        ["sp_in", 0.6],
        ["dense", 0.4],
        ["dense", 0.6],
    ]
    for row in found.itertuples():
        expected = (values + (row.method == "dense") / 10 >= row.point).mean(1)
        assert row.seeds == pytest.approx(expected.tolist())
        assert row.mean == pytest.approx(expected.mean())
        assert row.n_seeds == 3


def test_a_point_has_the_interval_of_seeds_and_items(tables, values):
    for row in curves_table(tables(values)[1], shares_above).itertuples():
        reached = values >= row.point
        items = reached.mean(0).var() - reached.var(0, ddof=1).mean() / 3
        half = np.sqrt(4.303**2 * reached.mean(1).var(ddof=1) / 3 + 1.990**2 * items / 80)
        assert row.high - row.mean == pytest.approx(half, rel=0.1)
        assert row.mean - row.low == pytest.approx(row.high - row.mean)


def test_a_point_of_one_seed_has_the_interval_of_the_items(tables, values):
    for row in curves_table(tables(values[:1])[1], shares_above).itertuples():
        share = (values[0] >= row.point).mean()
        assert (row.n_seeds, row.mean, row.seeds) == (1, pytest.approx(share), [pytest.approx(share)])
        assert row.high - row.mean == pytest.approx(1.96 * np.sqrt(share * (1 - share) / 80), rel=0.1)


def test_equal_items_leave_the_interval_of_the_seeds_worked_by_hand(tables):
    def mean_curve(items, weights):
        return {0.5: mean_score(items, weights)["score"]}

    # s2 of (1, 2, 3) is 1.
    (row,) = curves_table(tables(np.array([[1.0] * 9, [2.0] * 9, [3.0] * 9]))[1], mean_curve).itertuples()
    assert (row.point, row.mean, row.seeds, row.n_seeds) == (0.5, 2.0, [1.0, 2.0, 3.0], 3)
    assert (row.low, row.high) == pytest.approx((2 - 4.30265 / np.sqrt(3), 2 + 4.30265 / np.sqrt(3)), rel=1e-5)


def test_a_curve_of_seeds_on_different_items_is_refused_by_cell(tables, values):
    items = tables(values)[1]
    with pytest.raises(ValueError, match=r"change/small/sp_in/in/0\.20: seeds were scored on different items"):
        curves_table(items.drop(index=items.index[-1]), shares_above)


# Items that are arrays.


def sum_of_lists(items, weights):
    """The weighted mean over items of the sums of their arrays."""
    sums = np.vectorize(np.sum, otypes=[float])(items["list"])
    return {"score": (sums * weights).sum(-1) / weights.sum(-1)}


@pytest.mark.parametrize("length", [None, 0, 2], ids=["of many lengths", "empty", "of one length"])
def test_a_column_may_hold_arrays(tables, values, length):
    """Their figures are those of one number per item, in whatever order the rows of a seed stand."""
    runs, items = tables(values)
    generator = np.random.default_rng(0)
    lists = []
    for value in items["value"]:
        shares = generator.random(generator.integers(1, 5) if length is None else length)
        lists.append((shares * value / max(shares.sum(), 1e-9)).astype(np.float32))
    arrays = items.drop(columns="value").assign(list=pd.Series(lists, index=items.index))
    numbers = items.assign(value=[float(one.sum()) for one in lists])
    expected = cells_table(runs, numbers, {"change": mean_score}, UNITS)
    for rows in (arrays, arrays.sample(frac=1, random_state=1)):
        found = cells_table(runs, rows, {"change": sum_of_lists}, UNITS)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
        of_curve = curves_table(rows, sum_of_lists)
        assert of_curve["mean"].tolist() == pytest.approx([numbers["value"].mean()])


def test_arrays_survive_a_file(tables, values, tmp_path):
    _, items = tables(values)
    arrays = items.assign(list=[np.full(1 + row % 3, value) for row, value in enumerate(items["value"])])
    arrays.to_parquet(tmp_path / "items.parquet")
    expected = curves_table(arrays, sum_of_lists)
    pd.testing.assert_frame_equal(curves_table(pd.read_parquet(tmp_path / "items.parquet"), sum_of_lists), expected)


# Calibration draws, which are nested in seeds.


@pytest.fixture
def drawn(tables):
    """`runs` and `items` of three seeds with two draws each, of a cell that has them beside one that has none."""
    generator = np.random.default_rng(1)
    values = generator.normal(0.6, 0.2, 40) + generator.normal(0, 0.1, (3, 2, 40)) + generator.normal(0, 0.1, (3, 2, 1))
    parts = [tables(values[:, draw]) for draw in range(2)]
    items = pd.concat([items.assign(draw=draw) for draw, (_, items) in enumerate(parts)])
    runs = pd.concat([runs for runs, _ in parts]).groupby([*KEYS, "seed", "metric"], sort=False)["value"].mean()
    other_runs, other_items = tables(values[:, 0] + 0.01, method="dense", side="none", budget="1.00")
    return values, pd.concat([runs.reset_index(), other_runs]), pd.concat([items, other_items], ignore_index=True)


def test_seeds_are_the_units_and_their_scores_are_means_over_draws(drawn, tables, cells):
    values, runs, items = drawn
    found = cells(runs, items).set_index(["method", "metric"])
    # Of a linear metric, the same as one draw whose items are the means over draws.
    averaged = cells(*tables(values.mean(1))).set_index(["method", "metric"]).loc[("sp_in", "score")]
    row = found.loc[("sp_in", "score")]
    for column in ("mean", "sd", "n_seeds", "n_items", "low", "high", "item_variance", "interaction_variance"):
        assert row[column] == pytest.approx(averaged[column], rel=1e-9)
    assert row["n_draws"] == 2
    assert row["draw_variance"] == pytest.approx(values.mean(2).var(axis=1, ddof=1).mean())
    dense = found.loc[("dense", "score")]
    assert dense["n_draws"] == 1
    assert np.isnan(dense["draw_variance"])


def test_tables_without_draws_have_no_columns_for_them(values, tables, cells):
    assert list(cells(*tables(values)).columns) == COLUMNS


def test_the_variance_over_seeds_contains_that_of_their_draws():
    """Over many studies: intervals of means over draws cover, and draws of one seed alone would be too certain."""
    generator = np.random.default_rng(2)
    seeds, draws, covered = 4, 3, []
    for _ in range(2000):
        of_seed = generator.normal(0, 1, (seeds, 1))
        means = (of_seed + generator.normal(0, 2, (seeds, draws))).mean(1)
        covered.append(abs(means.mean()) <= half_width(means))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_metrics_relative_to_dense_compare_each_draw_with_the_dense_run_of_its_seed(drawn, cells):
    _, runs, items = drawn

    def relative(items, dense, weights):
        return {"gain": ((items["value"] - dense["value"]) * weights).sum(-1) / weights.sum(-1)}

    found = resample_cells(items, {"change": mean_score}, {"change": relative}, {"change": ["score"]})
    (own,) = (cell for keys, cell in found.items() if keys[2] == "sp_in")
    assert own.draws["score"].shape == (3, 1000)
    assert own.variances["gain"].items == 40
