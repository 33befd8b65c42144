"""The balance line of slabs against scipy, and what runs say beside dense, worked by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bbnet.analysis.claims import MEASURES, claims_table, selectivity, slabs_table, with_warm_start
from bbnet.analysis.collect import KEYS

RUN = {"task": "change", "model": "small", "method": "sp_in", "side": "in", "budget": "0.20", "seed": 0}
DENSE = {"task": "change", "model": "small", "method": "dense", "side": "none", "budget": "1.00", "seed": 0}
FITS = ["slope", "r2", "slope_before", "r2_before"]


def on_rate(y):
    """Whose selectivity is `y`."""
    return 1 / (1 + np.exp(np.asarray(y, dtype=float)))


def units_of(degrees, rates, slab="conv1", slab_side="in", silent=None, phase="run", **keys) -> pd.DataFrame:
    """Units of one slab of a run, or of its warm start, which is dense's."""
    of_run = (RUN if phase == "run" else DENSE) | keys
    frame = pd.DataFrame({"unit": range(len(rates)), "fan": 64, "on_rate": rates, "degree": degrees})
    frame["silent"] = np.zeros(len(rates), bool) if silent is None else silent
    return frame.assign(phase=phase, slab=slab, slab_side=slab_side, **of_run)


def codes_of(units: pd.DataFrame, **measures) -> pd.DataFrame:
    """`codes_table` of the runs and slabs of `units`."""
    of_runs = units[units["phase"] == "run"]
    counts = of_runs.groupby([*KEYS, "slab", "slab_side"], sort=False).size().rename("units").reset_index()
    return counts.assign(**dict.fromkeys(MEASURES, 0.5) | measures)


def fit(*parts: pd.DataFrame) -> pd.DataFrame:
    units = pd.concat(parts, ignore_index=True)
    return slabs_table(codes_of(units), units)


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Degrees of 40 units, their on-rates and those of the warm start."""
    generator = np.random.default_rng(0)
    degrees = generator.integers(4, 40, 40)
    return degrees, on_rate(0.1 * degrees + generator.normal(0, 1, 40) - 2), on_rate(generator.normal(0, 1.5, 40))


def expected(degrees, rates) -> tuple[float, float]:
    rates = np.clip(rates, 1e-3, 1 - 1e-3)
    found = stats.linregress(degrees, np.log((1 - rates) / rates))
    return found.slope, found.rvalue**2


# Fits.


def test_slope_and_r2_are_those_of_linregress(noisy):
    degrees, own, before = noisy
    (row,) = fit(units_of(degrees, own), units_of([64] * 40, before, phase="warm_up")).itertuples()
    assert (row.slope, row.r2) == pytest.approx(expected(degrees, own))
    assert (row.slope_before, row.r2_before) == pytest.approx(expected(degrees, before))


def test_the_line_before_has_the_degrees_of_the_run_not_those_of_the_warm_start(noisy):
    degrees, own, before = noisy
    warm_degrees = np.random.default_rng(1).integers(1, 64, 40)
    (row,) = fit(units_of(degrees, own), units_of(warm_degrees, before, phase="warm_up")).itertuples()
    assert (row.slope_before, row.r2_before) == pytest.approx(expected(degrees, before))


@pytest.mark.parametrize("beta", [0.05, 0.2, -0.2])
def test_units_on_the_balance_line_have_r2_1_and_slope_beta(beta):
    degrees = np.arange(4, 24)
    y = beta * (degrees - 10.0)
    before = units_of([64] * 20, on_rate(2 * y), phase="warm_up")
    (row,) = fit(units_of(degrees, on_rate(y)), before).itertuples()
    assert (row.slope, row.r2) == pytest.approx((beta, 1))
    assert (row.slope_before, row.r2_before) == pytest.approx((2 * beta, 1))


def test_silent_units_of_the_run_are_left_out_of_both_lines(noisy):
    degrees, own, before = noisy
    silent = np.arange(40) % 5 == 0
    units = units_of(degrees, np.where(silent, 0.0, own), silent=silent)
    (row,) = fit(units, units_of([64] * 40, before, silent=~silent, phase="warm_up")).itertuples()
    assert (row.slope, row.r2) == pytest.approx(expected(degrees[~silent], own[~silent]))
    assert (row.slope_before, row.r2_before) == pytest.approx(expected(degrees[~silent], before[~silent]))


def test_on_rates_are_clipped_to_a_thousandth():
    rates = pd.Series([0.0, 1e-9, 1e-3, 0.5, 0.999, 1.0])
    edge = np.log(999)
    assert selectivity(rates).tolist() == pytest.approx([edge, edge, edge, 0, -edge, -edge])


def test_clipped_units_count_in_the_fit():
    degrees, rates = np.array([3, 5, 9, 20, 40]), np.array([1.0, 0.7, 0.4, 1e-6, 0.0])
    (row,) = fit(units_of(degrees, rates)).itertuples()
    assert (row.slope, row.r2) == pytest.approx(expected(degrees, rates))


@pytest.mark.parametrize(
    ("degrees", "rates"),
    [
        ([12] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        ([1, 2, 3, 4, 5, 6], [0.1] * 6),
        ([1, 2, 3, 4, 5, 6], [0.0, 1e-4, 1e-5, 1e-3, 0.0, 1e-9]),
        ([7], [0.3]),
    ],
    ids=["equal degrees", "equal on-rates", "all clipped", "one unit"],
)
def test_without_spread_there_is_no_line(degrees, rates):
    found = fit(units_of(degrees, rates), units_of([64] * len(rates), rates, phase="warm_up"))
    assert found[FITS].isna().all(axis=None)
    assert len(found) == 1


def test_a_slab_of_silent_units_alone_stays_in_the_table_without_a_line(noisy):
    degrees, own, _ = noisy
    dead = units_of(degrees, np.zeros(40), slab="conv2", silent=np.ones(40, bool))
    found = fit(units_of(degrees, own), dead).set_index("slab")
    assert np.isnan(found.loc["conv2", "r2"])
    assert found.loc["conv1", "r2"] == pytest.approx(expected(degrees, own)[1])


def test_without_a_warm_start_only_the_line_before_is_missing(noisy):
    degrees, own, _ = noisy
    (row,) = fit(units_of(degrees, own)).itertuples()
    assert (row.slope, row.r2) == pytest.approx(expected(degrees, own))
    assert np.isnan([row.slope_before, row.r2_before]).all()


def test_many_runs_slabs_and_sides_are_fitted_apart():
    generator = np.random.default_rng(7)
    parts, wanted = [], {}
    for seed in (0, 1):
        for slab, slab_side, count in (("conv1", "in", 12), ("conv1", "out", 30), ("conv2", "in", 20)):
            before = generator.uniform(0.01, 0.99, count)
            parts.append(units_of([64] * count, before, slab, slab_side, phase="warm_up", seed=seed))
            for method, budget in (("sp_in", "0.20"), ("sp_in", "0.50"), ("rigl", "0.20")):
                degrees, rates = generator.integers(2, 60, count), generator.uniform(0.01, 0.99, count)
                keys = {"method": method, "budget": budget, "seed": seed}
                parts.append(units_of(degrees, rates, slab, slab_side, **keys))
                place = (method, budget, seed, slab, slab_side)
                wanted[place] = (*expected(degrees, rates), *expected(degrees, before))
    found = fit(*[parts[place] for place in generator.permutation(len(parts))])
    assert len(found) == len(wanted)
    for row in found.itertuples():
        place = (row.method, row.budget, row.seed, row.slab, row.slab_side)
        assert tuple(getattr(row, name) for name in FITS) == pytest.approx(wanted[place])


def test_the_warm_start_is_that_of_the_task_model_and_seed():
    units = pd.concat(
        [
            units_of([1, 2], [0.1, 0.2], seed=seed, task=task, model=model)
            for seed in (0, 1)
            for task in "ab"
            for model in "xy"
        ]
        + [
            units_of([64, 64], [0.3 + shift, 0.5 + shift], phase="warm_up", seed=seed, task=task, model=model)
            for seed, task, model, shift in ((0, "a", "x", 0.0), (1, "a", "x", 0.1), (0, "b", "x", 0.2))
        ]
    )
    found = with_warm_start(units)
    assert len(found) == 16
    shifts = {("a", "x", 0): 0.0, ("a", "x", 1): 0.1, ("b", "x", 0): 0.2}
    for row in found.itertuples():
        shift = shifts.get((row.task, row.model, row.seed), np.nan)
        assert row.on_rate_before == pytest.approx((0.3, 0.5)[row.unit] + shift, nan_ok=True)
        assert row.on_rate == pytest.approx((0.1, 0.2)[row.unit])


def test_codes_keep_their_rows_and_columns(noisy):
    degrees, own, _ = noisy
    units = pd.concat([units_of(degrees, own), units_of(degrees, own, seed=3)])
    codes = codes_of(units)
    found = slabs_table(codes, units)
    pd.testing.assert_frame_equal(found[codes.columns], codes)
    assert list(found.columns) == [*codes.columns, *FITS]


def test_one_unit_without_a_warm_start_does_not_bend_the_line_before(noisy):
    """The warm start has a unit less: the line is that of the others."""
    degrees, own, before = noisy
    part = units_of([64] * 40, before, phase="warm_up").iloc[:-1]
    (row,) = fit(units_of(degrees, own), part).itertuples()
    assert (row.slope_before, row.r2_before) == pytest.approx(expected(degrees[:-1], before[:-1]))


# Claims.


def slab_row(keys, slab, units, slab_side="in", **values) -> dict:
    blank = dict.fromkeys([*MEASURES, "r2", "r2_before", "slope", "slope_before"], np.nan)
    return keys | {"slab": slab, "slab_side": slab_side, "units": units} | blank | values


def claims_of(rows: list[dict]) -> pd.DataFrame:
    return claims_table(pd.DataFrame(rows)).set_index(["method", "seed", "measure"])


def test_a_run_is_the_mean_of_its_slabs_by_units_beside_dense():
    found = claims_of(
        [
            slab_row(DENSE, "a", 10, correlation=0.1),
            slab_row(DENSE, "b", 30, correlation=0.5),
            slab_row(RUN, "a", 10, correlation=0.2),
            slab_row(RUN, "b", 30, correlation=0.6),
        ]
    )
    row = found.loc[("sp_in", 0, "correlation")]
    assert (row["value"], row["dense"]) == pytest.approx((0.5, 0.4))  # (2 + 18) / 40 and (1 + 15) / 40


def test_dense_is_that_of_the_same_slabs_side_and_seed():
    def rows(keys, of_seed):
        return [
            slab_row(keys, slab, units, side, effective_rank=of_seed + value)
            for slab, side, units, value in (
                ("a", "in", 10, 0.1),
                ("a", "out", 20, 0.2),
                ("b", "in", 30, 0.3),
                ("b", "out", 40, 0.4),
            )
        ]

    dense = [row for seed in (0, 1) for row in rows(DENSE | {"seed": seed}, 1.0 + seed)]
    runs = [
        *rows(RUN, 0.0)[::2],
        *rows(RUN | {"seed": 1}, 0.0)[:1],
        *rows(RUN | {"method": "sp_out", "side": "out"}, 0.0)[1::2],
        *rows(RUN | {"method": "topk", "side": "none"}, 0.0),
    ]
    found = claims_of([*runs, *dense])
    assert found.loc[("sp_in", 0, "effective_rank"), "dense"] == pytest.approx(1 + (1 + 9) / 40)
    assert found.loc[("sp_in", 1, "effective_rank"), "dense"] == pytest.approx(2.1)
    assert found.loc[("sp_out", 0, "effective_rank"), "dense"] == pytest.approx(1 + (4 + 16) / 60)
    assert found.loc[("topk", 0, "effective_rank"), "dense"] == pytest.approx(1 + (1 + 4 + 9 + 16) / 100)
    assert (found["value"] + 1 + found.index.get_level_values("seed")).tolist() == pytest.approx(
        found["dense"].tolist()
    )
    assert "dense" not in found.index.get_level_values("method")


@pytest.mark.parametrize("other", [{"task": "face"}, {"model": "large"}, {"seed": 1}])
def test_dense_of_another_task_model_or_seed_is_none(other):
    found = claims_of([slab_row(RUN, "a", 10, correlation=0.2), slab_row(DENSE | other, "a", 10, correlation=0.4)])
    row = found.loc[("sp_in", 0, "correlation")]
    assert row["value"] == pytest.approx(0.2)
    assert np.isnan(row["dense"])


def test_without_any_dense_there_are_values_alone():
    found = claims_of([slab_row(RUN, "a", 10, correlation=0.2, r2=0.9)])
    assert found["value"].tolist() == pytest.approx([0.2, 0.9])
    assert found["dense"].isna().all()


def test_r2_of_the_line_has_no_dense():
    found = claims_of(
        [
            slab_row(DENSE, "a", 10, correlation=0.1),
            slab_row(RUN, "a", 10, correlation=0.1, r2=0.5, r2_before=0.25),
            slab_row(RUN, "b", 30, r2=0.9, r2_before=0.75),
        ]
    )
    assert found.loc[("sp_in", 0, "r2"), "value"] == pytest.approx((5 + 27) / 40)
    assert found.loc[("sp_in", 0, "r2_before"), "value"] == pytest.approx((2.5 + 22.5) / 40)
    assert found.loc["sp_in"].loc[0].loc[["r2", "r2_before"], "dense"].isna().all()


def test_slabs_without_a_value_do_not_count():
    """As where fewer than two units vary: there is no correlation. Dense is then that of the other slabs."""
    found = claims_of(
        [
            slab_row(DENSE, "a", 10, correlation=0.1),
            slab_row(DENSE, "b", 30, correlation=0.5),
            slab_row(RUN, "a", 10, correlation=0.2),
            slab_row(RUN, "b", 30),
        ]
    )
    row = found.loc[("sp_in", 0, "correlation")]
    assert (row["value"], row["dense"]) == pytest.approx((0.2, 0.1))


def test_a_slab_that_dense_has_no_value_of_does_not_pull_dense_to_0():
    """Dense is the mean over the slabs that it has, or NaN; it is never a sum over few divided by the units of all."""
    found = claims_of(
        [
            slab_row(DENSE, "a", 10, correlation=0.4),
            slab_row(DENSE, "b", 30),
            slab_row(RUN, "a", 10, correlation=0.4),
            slab_row(RUN, "b", 30, correlation=0.4),
        ]
    )
    dense = found.loc[("sp_in", 0, "correlation"), "dense"]
    assert np.isnan(dense) or dense == pytest.approx(0.4)


def test_a_measure_that_a_run_has_nowhere_gives_no_row():
    found = claims_of([slab_row(RUN, "a", 10, correlation=0.2)])
    assert found.index.get_level_values("measure").tolist() == ["correlation"]


def test_dense_alone_gives_an_empty_table_with_its_columns():
    found = claims_table(pd.DataFrame([slab_row(DENSE, "a", 10, correlation=0.2)]))
    assert len(found) == 0
    assert list(found.columns) == [*KEYS, "measure", "value", "dense"]
