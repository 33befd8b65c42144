"""Which cells are compared, and what a contrast says of them: against scipy, closed forms and examples by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from bbnet.analysis.contrasts import MODEL_COLUMNS, contrasts_tables, equal_cost_pairs, model_pairs, pairs, slabs_of
from bbnet.analysis.metric import Metric
from bbnet.analysis.statistics import CELL_KEYS, ItemVariance, holm, p_value, resample_cells

COLUMNS = [*CELL_KEYS, "reference", "reference_side", "metric", "unit", "effect", "low", "high", "n_seeds"]
COLUMNS += ["differences", "variation", "p", "p_holm", "verdict", "n_items", "item_variance", "interaction_variance"]
BB = {"algorithm": "budgeted_broadcast", "law": "log_odds", "silent": "smallest", "gain": 0.1, "side": "in"}
METHODS = {
    "dense": {"algorithm": "dense"},
    "sp_in": BB,
    "sp_out": BB | {"side": "out"},
    "steep": BB | {"gain": 0.4},
    "shuffled": BB | {"law": "shuffled"},
    "literal": BB | {"silent": "literal"},
    "magnitude": {"algorithm": "magnitude", "side": "in"},
    "rigl": {"algorithm": "rigl", "side": "in"},
    "topk": {"algorithm": "topk"},
}
IN, OUT = frozenset({("conv1", 64), ("conv2", 128)}), frozenset({("conv2", 128)})
DENSE = ("change", "small", "dense", "none", "1.00")


def cell(method: str, budget: str = "0.20", task: str = "change", model: str = "small") -> tuple:
    sides = {"dense": "none", "topk": "none", "sp_out": "out"}
    return task, model, method, sides.get(method, "in"), "1.00" if method == "dense" else budget


def pairs_of(cells: list[tuple], slabs: dict | None = None) -> list[tuple]:
    default = {one: OUT if one[2] == "sp_out" else IN for one in cells}
    return list(pairs(cells, METHODS, default | (slabs or {})))


def labels(found: list[tuple]) -> list[tuple[str, str]]:
    return [(one[2], other[2]) for one, other in found]


# Pairs.


def test_each_method_is_compared_with_dense_once():
    cells = [cell(method) for method in METHODS]
    with_dense = [one for one, other in pairs_of(cells) if other[2] == "dense"]
    assert with_dense == [one for one in cells if one[2] != "dense"]


def test_the_published_method_is_compared_with_every_other_on_its_slabs():
    found = [pair for pair in pairs_of([cell(method) for method in METHODS]) if pair[1][2] != "dense"]
    rivals = ("shuffled", "literal", "magnitude", "rigl", "topk")
    expected = {("sp_in", "steep")} | {(ours, rival) for ours in ("sp_in", "steep") for rival in rivals}
    assert set(labels(found)) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("change", [{"law": "linear"}, {"silent": "literal"}, {"algorithm": "magnitude"}])
def test_a_control_is_not_taken_for_the_published_method(change):
    methods = {"dense": METHODS["dense"], "control": BB | change, "magnitude": METHODS["magnitude"]}
    cells = [cell(method) for method in methods]
    assert labels(pairs(cells, methods, dict.fromkeys(cells, IN))) == [("control", "dense"), ("magnitude", "dense")]


@pytest.mark.parametrize("order", list(itertools.permutations(["sp_in", "steep", "sp_out"])))
def test_two_variants_are_compared_once_whatever_their_order(order):
    cells = [cell(method) for method in order]
    found = labels(pairs_of(cells, dict.fromkeys(cells, IN)))
    assert {frozenset(pair) for pair in found} == {frozenset(pair) for pair in itertools.combinations(order, 2)}
    assert len(found) == 3


def test_other_slabs_are_never_compared():
    assert labels(pairs_of([cell("sp_out"), cell("magnitude"), cell("rigl")])) == []
    of_other_size = frozenset({("conv1", 64), ("conv2", 127)})
    assert pairs_of([cell("sp_in"), cell("rigl")], {cell("rigl"): of_other_size}) == []


def test_the_side_alone_does_not_part_methods_on_the_same_slabs():
    cells = [cell("sp_out"), cell("magnitude")]
    assert labels(pairs_of(cells, dict.fromkeys(cells, IN))) == [("sp_out", "magnitude")]


def test_other_budgets_models_and_tasks_are_never_compared():
    home = cell("sp_in")
    away = [cell("rigl", budget="0.50"), cell("rigl", model="large"), cell("rigl", task="face")]
    assert pairs_of([home, *away]) == []
    assert pairs_of([home, cell("rigl"), *away]) == [(home, cell("rigl"))]


def test_dense_is_that_of_the_same_task_and_model():
    cells = [cell(method, task=task, model=model) for task in "ab" for model in "xy" for method in ("dense", "rigl")]
    for one, other in pairs_of(cells):
        assert (one[:2], one[2], other[2]) == (other[:2], "rigl", "dense")
    assert len(pairs_of(cells)) == 4


def test_without_dense_the_published_method_still_meets_its_rivals():
    assert labels(pairs_of([cell("sp_in"), cell("rigl")])) == [("sp_in", "rigl")]
    assert pairs_of([cell("rigl"), cell("magnitude")]) == []
    assert pairs_of([cell("dense")]) == []


def test_every_budget_is_compared_with_the_one_dense():
    cells = [cell("dense"), cell("rigl"), cell("rigl", budget="0.50"), cell("rigl", budget="1.00")]
    assert pairs_of(cells) == [(one, DENSE) for one in cells[1:]]


def test_with_a_reference_only_pairs_that_differ_in_one_thing_are_compared():
    sqrt = {"sparsity": {"rescale": "sqrt"}}
    methods = METHODS | {"sqrt": BB | sqrt, "magnitude_sqrt": METHODS["magnitude"] | sqrt}
    cells = [cell(method) for method in methods]
    slabs = {one: OUT if one[2] == "sp_out" else IN for one in cells}
    found = labels(list(pairs(cells, methods, slabs, "sp_in")))
    variants, rivals = ("steep", "shuffled", "literal"), ("magnitude", "rigl", "topk")
    expected = {("sp_in", "dense"), *((variant, "sp_in") for variant in (*variants, "sqrt"))}
    expected |= {(variant, rival) for variant in ("sp_in", *variants) for rival in rivals}
    expected |= {("sqrt", "magnitude_sqrt")}
    assert set(found) == expected
    assert len(found) == len(expected)


def test_with_a_reference_other_budgets_models_and_tasks_are_never_compared():
    cells = [
        cell(method, budget=budget, task=task, model=model)
        for method in ("sp_in", "steep", "magnitude", "dense")
        for budget in (("1.00",) if method == "dense" else ("0.20", "0.50"))
        for task in "ab"
        for model in "xy"
    ]
    found = list(pairs(cells, METHODS, dict.fromkeys(cells, IN), "sp_in"))
    assert all(one[:2] == other[:2] for one, other in found)
    assert all(one[4] == other[4] for one, other in found if other[2] != "dense")
    # For each task and model: with dense; at both budgets the variant, and both with magnitude.
    assert len(found) == 4 * (2 + 2 * 3)


def test_slabs_are_names_and_numbers_of_connections_of_runs_alone():
    rows = [
        {"phase": phase, "task": "t", "model": "m", "method": method, "side": side, "budget": "0.20", "seed": seed}
        | {"slab": slab, "slab_side": side, "unit": unit, "fan": fan}
        for phase, method, side, fans in (
            ("run", "sp_in", "in", {"a": [8, 8, 8], "b": [4]}),
            ("run", "sp_out", "out", {"a": [3] * 8, "b": [2, 2]}),
            ("run", "other", "in", {"a": [8, 8]}),
            ("warm_up", "dense", "none", {"a": [8, 8, 8]}),
        )
        for seed in (0, 1)
        for slab, of_units in fans.items()
        for unit, fan in enumerate(of_units)
    ]
    found = slabs_of(pd.DataFrame(rows))
    assert {keys[2]: slabs for keys, slabs in found.items()} == {
        "sp_in": {("a", 24), ("b", 4)},
        "sp_out": {("a", 24), ("b", 4)},
        "other": {("a", 16)},
    }


# Contrasts.


def mean_score(items, weights):
    return {"score": (items["value"] * weights).sum(-1) / weights.sum(-1)}


def tables(cells: dict[tuple, np.ndarray], seeds: dict[tuple, list[int]] | None = None):
    """`runs` and `items` of cells from values [seeds, items]; the metric is their mean, NaN where they are NaN."""
    runs, items = [], []
    for keys, values in cells.items():
        of_cell = dict(zip(CELL_KEYS, keys, strict=True))
        for seed, row in zip((seeds or {}).get(keys, range(len(values))), values, strict=True):
            runs.append(of_cell | {"seed": seed, "metric": "score", "value": row.mean()})
            items += [of_cell | {"seed": seed, "image": f"i{item}", "value": value} for item, value in enumerate(row)]
    return pd.DataFrame(runs), pd.DataFrame(items)


SCORE = {"score": Metric("score", "share", "higher")}


def contrast(cells, seeds=None, better="higher", compared=None, items_of=lambda items: items):
    """`contrasts_tables` of one model through the bootstrap; by default the first cell with the second."""
    runs, items = tables(cells, seeds)
    tasks = {keys[0] for keys in cells}
    resampled = resample_cells(
        items_of(items), dict.fromkeys(tasks, mean_score), contrasted=dict.fromkeys(tasks, ["score"])
    )
    compared = [tuple(cells)[:2]] if compared is None else compared
    metrics = {"score": Metric("score", "share", better)}
    return contrasts_tables(runs, resampled, iter(compared), dict.fromkeys(tasks, metrics))[0]


def constant_items(by_seed, items: int = 7) -> np.ndarray:
    return np.repeat(np.asarray(by_seed, dtype=float)[:, None], items, axis=1)


SP, MAGNITUDE = cell("sp_in"), cell("magnitude")


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_without_item_variance_it_is_the_paired_t_test(seeds):
    own, other = np.random.default_rng(seeds).normal(size=(2, seeds))
    (row,) = contrast({SP: constant_items(own), MAGNITUDE: constant_items(other)}).itertuples()
    expected = stats.ttest_rel(own, other)
    interval = expected.confidence_interval(0.95)
    assert row.effect == pytest.approx((own - other).mean())
    assert (row.low, row.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert row.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (row.n_seeds, row.variation, row.unit, row.metric) == (seeds, "seeds and items", "share", "score")
    assert (row.method, row.reference, row.reference_side) == ("sp_in", "magnitude", "in")


def test_items_that_do_not_differ_between_the_two_add_nothing():
    """However hard single items are: what is paired falls out."""
    easy = np.random.default_rng(0).normal(0, 5, 40)
    own, other = np.random.default_rng(1).normal(size=(2, 4))
    (row,) = contrast({SP: constant_items(own, 40) + easy, MAGNITUDE: constant_items(other, 40) + easy}).itertuples()
    assert row.p == pytest.approx(stats.ttest_rel(own, other).pvalue, rel=1e-6)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_variance_of_items_is_that_of_their_mean_difference(seeds):
    generator = np.random.default_rng(seeds)
    own, other = generator.normal(0, 1, (2, seeds, 300)) + generator.normal(0, 3, (2, 1, 300))
    (row,) = contrast({SP: own, MAGNITUDE: other}).itertuples()
    differences = own - other
    by_seed = differences.mean(1)
    shared = (differences.mean(0).var() - differences.var(0, ddof=1).mean() / seeds) / 300
    of_seeds = by_seed.var(ddof=1) / seeds
    half = np.sqrt(stats.t.ppf(0.975, seeds - 1) ** 2 * of_seeds + stats.t.ppf(0.975, 299) ** 2 * shared)
    assert row.effect == pytest.approx(by_seed.mean())
    assert (row.high - row.effect, row.effect - row.low) == pytest.approx((half, half), rel=0.08)
    assert (row.n_items, row.item_variance) == (300, pytest.approx(shared, rel=0.15))
    assert row.p == pytest.approx(p_value(by_seed, ItemVariance(300, row.item_variance, 0.0)), rel=1e-9)


def test_the_interval_holds_0_just_where_p_is_at_least_5_percent():
    generator = np.random.default_rng(5)
    for effect in np.linspace(-1.5, 1.5, 31):
        own, other = generator.normal(0, 0.5, (2, 3, 30))
        (row,) = contrast({SP: own + effect, MAGNITUDE: other}).itertuples()
        assert (row.low <= 0 <= row.high) == (row.p >= 0.05)


def test_one_seed_speaks_of_items_alone_and_says_so():
    generator = np.random.default_rng(0)
    own, other = generator.normal(size=(2, 1, 300))
    (row,) = contrast({SP: own + 0.1, MAGNITUDE: other}).itertuples()
    differences = (own + 0.1 - other)[0]
    error = differences.std() / np.sqrt(300)
    assert (row.n_seeds, row.variation) == (1, "items")
    assert row.high - row.low == pytest.approx(2 * 1.968 * error, rel=0.08)
    assert row.p == pytest.approx(2 * stats.t.sf(abs(differences.mean()) / error, 299), rel=0.2)


def test_swapping_the_two_changes_signs_alone():
    own, other = np.random.default_rng(2).normal(size=(2, 3, 20))
    cells = {SP: own, MAGNITUDE: other}
    (there,) = contrast(cells).itertuples()
    (back,) = contrast(cells, compared=[(MAGNITUDE, SP)]).itertuples()
    assert (there.effect, there.low, there.high) == pytest.approx((-back.effect, -back.high, -back.low))
    assert there.p == pytest.approx(back.p)


def test_only_common_seeds_count():
    own, other = np.random.default_rng(3).normal(size=(2, 4, 25))
    seeds = {SP: [0, 1, 2, 3], MAGNITUDE: [7, 2, 3, 1]}
    (row,) = contrast({SP: own, MAGNITUDE: other}, seeds).itertuples()
    (alone,) = contrast({SP: own[1:], MAGNITUDE: other[[3, 1, 2]]}).itertuples()
    assert row.n_seeds == 3
    assert (row.effect, row.low, row.high, row.p) == pytest.approx((alone.effect, alone.low, alone.high, alone.p))
    assert row.effect == pytest.approx((own[1:] - other[[3, 1, 2]]).mean())


def test_a_single_common_seed_is_one_seed():
    own, other = np.random.default_rng(3).normal(size=(2, 3, 25))
    (row,) = contrast({SP: own, MAGNITUDE: other}, {SP: [0, 1, 2], MAGNITUDE: [2, 3, 4]}).itertuples()
    assert (row.n_seeds, row.variation) == (1, "items")
    assert row.effect == pytest.approx((own[2] - other[0]).mean())


def test_no_common_seed_gives_no_row():
    own, other = np.ones((2, 2, 4))
    found = contrast({SP: own, MAGNITUDE: other}, {SP: [0, 1], MAGNITUDE: [2, 3]})
    assert len(found) == 0
    assert list(found.columns) == COLUMNS


def test_a_seed_without_a_number_is_left_out():
    own, other = np.random.default_rng(4).normal(size=(2, 4, 25))
    runs, items = tables({SP: own, MAGNITUDE: other})
    runs.loc[(runs["method"] == "magnitude") & (runs["seed"] == 1), "value"] = np.nan
    resampled = resample_cells(items, {"change": mean_score}, contrasted={"change": ["score"]})
    metrics = {"change": SCORE}
    (row,) = contrasts_tables(runs, resampled, iter([(SP, MAGNITUDE)]), metrics)[0].itertuples()
    kept = [0, 2, 3]
    (alone,) = contrast({SP: own[kept], MAGNITUDE: other[kept]}).itertuples()
    assert row.n_seeds == 3
    assert (row.effect, row.low, row.high) == pytest.approx((alone.effect, alone.low, alone.high))


def test_a_metric_without_any_number_gives_no_row():
    runs, items = tables({SP: np.ones((2, 4)), MAGNITUDE: np.ones((2, 4))})
    resampled = resample_cells(items, {"change": mean_score}, contrasted={"change": ["score"]})
    metrics = {"change": SCORE}
    found, _ = contrasts_tables(runs.assign(value=np.nan), resampled, iter([(SP, MAGNITUDE)]), metrics)
    assert len(found) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda items: items.where(items["method"] != "sp_in", items.replace({"image": {"i3": "another"}})),
        lambda items: items[(items["method"] != "sp_in") | (items["image"] != "i3")],
    ],
    ids=["another item", "an item less"],
)
def test_cells_scored_on_different_items_are_refused_by_name(damage):
    own = np.random.default_rng(0).normal(size=(2, 10))
    message = r"change/small/sp_in/in/0\.20 and change/small/magnitude/in/0\.20 were scored on different items"
    with pytest.raises(ValueError, match=message):
        contrast({SP: own, MAGNITUDE: own}, items_of=damage)


def test_the_order_of_items_does_not_matter():
    own, other = np.random.default_rng(4).normal(size=(2, 3, 25))
    cells = {SP: own, MAGNITUDE: other}
    shuffled = contrast(cells, items_of=lambda items: items.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(contrast(cells), shuffled)


# Verdicts.


@pytest.mark.parametrize(
    ("better", "gain", "verdict"),
    [("higher", 1, "better"), ("higher", -1, "worse"), ("lower", 1, "worse"), ("lower", -1, "better")],
)
def test_a_verdict_follows_the_better_direction(better, gain, verdict):
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 4, 20))
    (row,) = contrast({SP: noise[0] + gain, MAGNITUDE: noise[1]}, better=better).itertuples()
    assert (row.verdict, np.sign(row.effect)) == (verdict, gain)
    assert row.p_holm < 0.05


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_equal_cells_have_no_verdict(better):
    values = np.random.default_rng(0).normal(size=(3, 20))
    (row,) = contrast({SP: values, MAGNITUDE: values}, better=better).itertuples()
    assert (row.effect, row.low, row.high, row.p, row.p_holm, row.verdict) == (0, 0, 0, 1, 1, "none")


def test_a_constant_difference_is_certain():
    """Neither seeds nor items vary: the interval is a point and p is 0."""
    values = np.arange(12.0).reshape(3, 4)
    (row,) = contrast({SP: values + 0.5, MAGNITUDE: values}).itertuples()
    assert (row.effect, row.low, row.high, row.p, row.verdict) == (0.5, 0.5, 0.5, 0, "better")


def test_p_alone_is_not_enough_for_a_verdict():
    """Each of five has p = .02: after Holm .10, and no verdict."""
    t = stats.t.isf(0.01, 2)
    by_seed = np.array([-1.0, 0.0, 1.0]) + t / np.sqrt(3)
    rivals = [cell(name) for name in ("magnitude", "rigl", "shuffled", "literal", "topk")]
    cells = {SP: constant_items(by_seed)} | {rival: constant_items([0.0, 0.0, 0.0]) for rival in rivals}
    found = contrast(cells, compared=[(SP, rival) for rival in rivals])
    assert found["p"].tolist() == pytest.approx([0.02] * 5)
    assert found["p_holm"].tolist() == pytest.approx([0.1] * 5)
    assert set(found["verdict"]) == {"none"}
    (alone,) = contrast(cells, compared=[(SP, rivals[0])]).itertuples()
    assert (alone.p_holm, alone.verdict) == (pytest.approx(0.02), "better")


# Holm.


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.04, 0.01, 0.03, 0.02], [0.06, 0.04, 0.06, 0.06]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.0, 1.0, 0.0], [0.0, 1.0, 0.0]),
        ([0.01, 0.01, 0.5, 0.02], [0.04, 0.04, 0.5, 0.04]),
    ],
)
def test_holm_by_hand(p, adjusted):
    series = pd.Series(p, index=range(10, 10 + len(p)))
    found = holm(series)
    assert found.tolist() == pytest.approx(adjusted)
    assert found.index.tolist() == series.index.tolist()


def test_holm_is_that_of_statsmodels():
    generator = np.random.default_rng(1)
    for count in range(1, 40):
        p = pd.Series(generator.random(count) ** 4)
        assert holm(p).tolist() == pytest.approx(multipletests(p, method="holm")[1], rel=1e-12)


def test_holm_keeps_the_order_of_p_never_lowers_one_and_never_exceeds_1():
    generator = np.random.default_rng(0)
    for count in range(1, 30):
        p = pd.Series(generator.random(count).round(2))
        adjusted = holm(p)
        assert (adjusted >= p - 1e-12).all()
        assert adjusted.max() <= 1
        assert (np.diff(adjusted[p.sort_values(kind="stable").index]) >= 0).all()


def test_an_interval_stays_within_the_differences_that_the_metric_allows():
    """Two seeds that differ by 0.6 have a half-width of 12.7 * 0.3; shares differ by 1 at most."""
    runs, items = tables({SP: constant_items([0.2, 0.8]), MAGNITUDE: constant_items([0.4, 0.4])})
    resampled = resample_cells(items, {"change": mean_score}, contrasted={"change": ["score"]})
    for metric, bounds in ((Metric("share", "share", "higher", 0, 1), (-1, 1)), (SCORE["score"], (-3.712, 3.912))):
        found, _ = contrasts_tables(runs, resampled, iter([(SP, MAGNITUDE)]), {"change": {"score": metric}})
        assert found[["low", "high"]].iloc[0].tolist() == pytest.approx(bounds, abs=1e-3)


def test_holm_is_within_a_task_over_all_its_models_budgets_and_metrics():
    t = stats.t.isf(0.01, 2)
    values = {"own": np.array([-1.0, 0.0, 1.0]) + t / np.sqrt(3), "none": np.zeros(3)}
    places = [
        ("change", "small", "0.20"),
        ("change", "small", "0.50"),
        ("change", "large", "0.20"),
        ("face", "x", "0.20"),
    ]
    cells, compared = {}, []
    for task, model, budget in places:
        own, dense = cell("sp_in", budget, task, model), cell("dense", budget, task, model)
        cells |= {own: constant_items(values["own"]), dense: constant_items(values["none"])}
        compared.append((own, dense))
    runs, items = tables(cells)

    def two_scores(items, weights):
        score = mean_score(items, weights)["score"]
        return {"score": score, "twice": 2 * score}

    runs = pd.concat([runs, runs.assign(metric="twice", value=2 * runs["value"])])
    names = {"change": ["score", "twice"], "face": ["score"]}
    resampled = resample_cells(items, dict.fromkeys(names, two_scores), contrasted=names)
    metrics = {task: dict.fromkeys(of_task, SCORE["score"]) for task, of_task in names.items()}
    found, _ = contrasts_tables(runs, resampled, iter(compared), metrics)
    assert found.groupby("task").size().to_dict() == {"change": 6, "face": 1}
    assert found["p"].tolist() == pytest.approx([0.02] * 7)
    assert found["p_holm"].tolist() == pytest.approx([0.12] * 6 + [0.02])
    assert set(found["verdict"]) == {"none", "better"}


# Tables.


def test_nothing_to_compare_gives_a_table_with_its_columns():
    found = contrast({SP: np.ones((2, 4))}, compared=[])
    assert len(found) == 0
    assert list(found.columns) == COLUMNS


def test_a_table_with_rows_has_the_same_columns():
    assert list(contrast({SP: np.ones((2, 4)), MAGNITUDE: np.zeros((2, 4))}).columns) == COLUMNS


def test_without_dense_rivals_are_contrasted_alone():
    cells = {SP: np.ones((2, 4)), MAGNITUDE: np.zeros((2, 4))}
    found = contrast(cells, compared=pairs(list(cells), METHODS, dict.fromkeys(cells, IN)))
    assert found[["method", "reference"]].to_numpy().tolist() == [["sp_in", "magnitude"]]


# Models.

MODELS = ("plain", "wide", "deep")


def of_models(cells: dict, seeds=None, baselines=None, methods=(), metrics=("score",)) -> tuple:
    """Both tables of contrasts: of models with the baseline, plain unless told otherwise, and of pairs of methods."""
    runs, items = tables(cells, seeds)
    runs = pd.concat([runs.assign(metric=name) for name in metrics])
    tasks = {keys[0] for keys in cells}
    contrasted = dict.fromkeys(tasks, list(metrics))
    resampled = resample_cells(
        items,
        dict.fromkeys(tasks, lambda *given: dict.fromkeys(metrics, mean_score(*given)["score"])),
        contrasted=contrasted,
    )
    baselines = dict.fromkeys(tasks, "plain") if baselines is None else baselines
    compared = [*methods, *model_pairs(list(resampled), baselines, {})]
    return contrasts_tables(runs, resampled, compared, dict.fromkeys(tasks, dict.fromkeys(metrics, SCORE["score"])))


def test_each_other_model_is_compared_with_the_baseline_of_its_task_in_the_same_cell():
    cells = [
        cell(method, budget, task, model)
        for task, models in (("change", MODELS), ("face", ("small", "large")), ("asr", MODELS))
        for model in models
        for method in ("dense", "sp_in", "sp_out")
        for budget in (["1.00"] if method == "dense" else ["0.20", "0.50"])
    ]
    found = list(model_pairs(cells, {"change": "wide", "face": "large"}, {}))
    assert found == [
        ((task, model, *others), (task, baseline, *others))
        for task, model, *others in cells
        for baseline in ({"change": "wide", "face": "large"}.get(task),)
        if baseline not in (None, model)
    ]
    assert len(found) == 5 * (2 + 1)


def test_a_cell_that_the_baseline_lacks_is_compared_with_nothing():
    cells = [
        cell("sp_in", "0.20", model="wide"),
        cell("sp_in", "0.50", model="wide"),
        cell("sp_in", "0.50", model="plain"),
    ]
    assert list(model_pairs(cells, {"change": "plain"}, {})) == [(cells[1], cells[2])]
    assert list(model_pairs(cells, {"change": "deep"}, {})) == list(model_pairs(cells, {}, {})) == []


def test_a_model_is_also_compared_with_the_one_beside_it():
    cells = [cell("dense", "1.00", model=model) for model in MODELS]
    plain, wide, deep = cells
    found = list(model_pairs(cells, {"change": "plain"}, {"change": {"deep": "wide"}, "face": {"wide": "deep"}}))
    assert found == [(wide, plain), (deep, plain), (deep, wide)]


def test_budgeted_broadcast_on_the_baseline_is_compared_with_dense_networks_of_the_same_cost():
    pruned = [cell("sp_in", "0.20", model="plain"), cell("sp_in", "0.50", model="plain")]
    not_compared = [cell("magnitude", "0.20", model="plain"), cell("sp_in", "0.20", model="wide")]
    small = [cell("dense", "1.00", model=name) for name in ("deep", "tiny", "large", "wide")]
    plain, elsewhere = cell("dense", "1.00", model="plain"), cell("dense", "1.00", task="face", model="deep")
    cells = [*pruned, *not_compared, *small, plain, elsewhere]
    flops = dict.fromkeys(cells, 100.0) | {pruned[1]: 200.0, small[1]: 102.0, small[2]: 102.1, small[3]: 196.5}
    found = list(equal_cost_pairs(cells, METHODS, {"change": "plain"}, flops))
    assert found == [(pruned[0], small[0]), (pruned[0], small[1]), (pruned[1], small[3])]
    assert list(equal_cost_pairs(cells, METHODS, {}, flops)) == []


def test_a_contrast_at_equal_cost_is_one_between_models_and_counts_for_holm():
    scores = np.random.default_rng(4).normal(size=(3, 5))
    ours, small, plain = cell("sp_in", "0.20", model="plain"), cell("dense", model="wide"), cell("dense", model="plain")
    cells = {of: constant_items(values) for of, values in zip((ours, small, plain), scores, strict=True)}
    of_methods, found = of_models(cells, methods=[(ours, small), (ours, plain)])
    first, second = found.itertuples()
    assert (first.model, first.method, first.budget) == ("plain", "sp_in", "0.20")
    assert (first.reference_model, first.reference, first.reference_side) == ("wide", "dense", "none")
    expected = stats.ttest_rel(scores[0], scores[1])
    assert (first.effect, first.p) == pytest.approx(((scores[0] - scores[1]).mean(), expected.pvalue))
    assert (second.model, second.reference_model, second.reference) == ("wide", "plain", "dense")
    together = pd.concat([of_methods, found])
    assert len(of_methods) == 1
    assert together["p_holm"].tolist() == pytest.approx(multipletests(together["p"], method="holm")[1])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_models_without_item_variance_are_compared_by_the_paired_t_test(seeds):
    scores = np.random.default_rng(seeds).normal(size=(3, seeds))
    cells = {cell("rigl", model=model): constant_items(of) for model, of in zip(MODELS, scores, strict=True)}
    of_methods, found = of_models(cells)
    assert (len(of_methods), list(found.columns)) == (0, MODEL_COLUMNS)
    for row, own in zip(found.itertuples(), scores[1:], strict=True):
        expected = stats.ttest_rel(own, scores[0])
        assert (row.reference_model, row.method, row.side, row.budget) == ("plain", "rigl", "in", "0.20")
        assert (row.effect, row.p) == pytest.approx(
            (expected.statistic * (own - scores[0]).std(ddof=1) / seeds**0.5, expected.pvalue)
        )
        assert (row.low, row.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
    assert found["model"].tolist() == ["wide", "deep"]
    assert found["p_holm"].tolist() == pytest.approx(multipletests(found["p"], method="holm")[1])


def crossed(generator, seeds: int, items: int, of_seeds: float, of_items: float, interaction: float) -> np.ndarray:
    """Differences, [seeds, items], whose parts have exactly these variances (ddof 1) and do not overlap."""

    def scaled(values: np.ndarray, variance: float, freedom: int) -> np.ndarray:
        return values * np.sqrt(variance * freedom / (values**2).sum())

    def centred(values: np.ndarray, axis: int) -> np.ndarray:
        return values - values.mean(axis, keepdims=True)

    parts = generator.normal(size=(seeds, 1)), generator.normal(size=(1, items)), generator.normal(size=(seeds, items))
    return (
        scaled(centred(parts[0], 0), of_seeds, seeds - 1)
        + scaled(centred(parts[1], 1), of_items, items - 1)
        + scaled(centred(centred(parts[2], 0), 1), interaction, (seeds - 1) * (items - 1))
    )


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("components", [(0.01, 4.0, 0.0), (0.05, 1.0, 1.0), (0.0, 0.2, 4.0)])
def test_the_interval_of_two_models_is_that_of_the_known_variances_of_their_difference(seeds, components):
    """Whatever seeds and items have in common in both models falls out; the interaction counts once."""
    generator, items = np.random.default_rng(7), 400
    baseline = generator.normal(0, 3, (seeds, items)) + generator.normal(0, 9, (1, items))
    own = baseline + 0.3 + crossed(generator, seeds, items, *components)
    _, found = of_models({cell("dense", model="plain"): baseline, cell("dense", model="wide"): own})
    (row,) = found.itertuples()
    of_seeds, of_items, interaction = components
    t_seeds, t_items = (stats.t.ppf(0.975, freedom) for freedom in (seeds - 1, items - 1))
    # The mean over seeds has the items' variance alone; a single seed adds (seeds - 1) / seeds of the interaction.
    shared = max(0.0, of_items - interaction / seeds) / items
    with_seeds = np.sqrt(t_seeds**2 * of_seeds / seeds + t_items**2 * shared)
    without = t_items * np.sqrt(shared + interaction / seeds / items)
    assert row.effect == pytest.approx(0.3)
    assert row.high - row.effect == pytest.approx(max(with_seeds, without), rel=0.08)


def test_models_are_paired_by_their_common_seeds_and_refused_on_other_items():
    own, other = np.random.default_rng(3).normal(size=(2, 3, 25))
    plain, wide = cell("rigl", model="plain"), cell("rigl", model="wide")
    _, found = of_models({plain: other, wide: own}, {plain: [0, 1, 2], wide: [2, 3, 1]})
    _, alone = of_models({plain: other[1:], wide: own[[2, 0]]})
    assert found["n_seeds"].tolist() == [2]
    columns = ["effect", "low", "high", "p"]
    assert found[columns].iloc[0].tolist() == pytest.approx(alone[columns].iloc[0].tolist())
    _, none = of_models({plain: other, wide: own}, {plain: [0, 1, 2], wide: [3, 4, 5]})
    assert (len(none), list(none.columns)) == (0, MODEL_COLUMNS)
    with pytest.raises(ValueError, match=r"change/wide/rigl/in/0\.20 and change/plain/rigl/in/0\.20 were scored on"):
        of_models({plain: other, wide: own[:, :24]})


def test_holm_covers_the_contrasts_of_methods_and_of_models_together():
    """Of p = .02 each: two methods with dense in each of three models, and three cells of each of two models."""
    t = stats.t.isf(0.01, 2)
    apart = np.array([-1.0, 0.0, 1.0]) + t / np.sqrt(3)
    cells, methods = {}, []
    for place, model in enumerate(MODELS):
        dense = cell("dense", model=model)
        cells[dense] = constant_items(place * apart)
        for method in ("rigl", "magnitude"):
            cells[cell(method, model=model)] = constant_items((place + 1) * apart)
            methods.append((cell(method, model=model), dense))
    alone, nothing = of_models(cells, baselines={}, methods=methods)
    of_methods, found = of_models(cells, methods=methods)
    assert (len(alone), len(nothing), len(of_methods), len(found)) == (6, 0, 6, 6)
    assert [*of_methods["p"], *found["p"]] == pytest.approx([0.02] * 12)
    assert alone["p_holm"].tolist() == pytest.approx([0.12] * 6)
    assert [*of_methods["p_holm"], *found["p_holm"]] == pytest.approx([0.24] * 12)
    pd.testing.assert_frame_equal(alone.drop(columns="p_holm"), of_methods.drop(columns="p_holm"))
    _, twice = of_models(cells, methods=methods, metrics=("score", "again"))
    assert twice["p_holm"].tolist() == pytest.approx([0.48] * 12)
