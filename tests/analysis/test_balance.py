"""Lines and effective degrees against numpy and by hand, and their means over slabs."""

import numpy as np
import pandas as pd
import pytest

from bbnet.analysis.balance import COLUMNS, effective_degrees, fit_line, mean_lines, selectivity
from bbnet.analysis.claims import slabs_table


def test_a_line_is_that_of_numpy():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 30))
    slope, r2 = fit_line(x, y)
    assert slope == pytest.approx(np.polyfit(x, y, 1)[0])
    assert r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


@pytest.mark.parametrize(("x", "y"), [([2, 2, 2], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([], [])])
def test_without_spread_there_is_no_line(x, y):
    assert np.isnan(fit_line(np.array(x, float), np.array(y, float))).all()


def test_effective_degrees_count_equal_connections_and_do_not_depend_on_scale():
    magnitudes = np.array([[1.0, 1, 1, 1], [5, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0], [3, 1, 0, 0]])
    assert effective_degrees(magnitudes).tolist() == pytest.approx([4, 1, 2, 0, 16 / 10])
    assert effective_degrees(7 * magnitudes).tolist() == pytest.approx([4, 1, 2, 0, 16 / 10])


def slab(side: str, live: list[int], units: int = 4, fan: int = 20) -> dict:
    generator = np.random.default_rng(units)
    return {
        "side": side,
        "fan": fan,
        "on_rates": generator.uniform(0.1, 0.9, units),
        "silent": np.zeros(units, bool),
        "live": np.array(live),
        "effective": generator.uniform(1, fan, units),
    }


def test_a_rule_that_draws_the_line_has_slope_one_over_its_gain_and_r2_one():
    """k = d0 + gain fan s without rounding, so s rises by 1 / gain per share of the fan."""
    one = slab("in", [])
    one["live"] = 5 + 0.1 * 20 * selectivity(one["on_rates"])
    found = mean_lines([one])
    assert (found["line_in_live_slope"], found["line_in_live_r2"]) == pytest.approx((10, 1))
    assert np.isnan([found[name] for name in COLUMNS if "_out_" in name]).all()


def test_the_mean_over_slabs_is_weighted_by_units_among_those_that_have_a_line():
    one, other, flat = slab("out", [1, 2, 3, 9]), slab("out", [3, 1, 4, 1, 5, 9], 6, 40), slab("out", [7] * 5, 5)
    fits = [fit_line(each["live"].astype(float), selectivity(each["on_rates"])) for each in (one, other)]
    found = mean_lines([one, other, flat])
    assert found["line_out_live_r2"] == pytest.approx((4 * fits[0][1] + 6 * fits[1][1]) / 10)
    assert found["line_out_live_slope"] == pytest.approx((4 * 20 * fits[0][0] + 6 * 40 * fits[1][0]) / 10)
    assert found["line_out_effective_r2"] != pytest.approx(found["line_out_live_r2"])


def test_silent_units_are_left_out_and_the_table_of_slabs_has_the_same_line():
    one = slab("in", [2, 5, 7, 3, 11, 4], 6)
    one["silent"][2] = True
    keys = {"task": "logic", "model": "m", "method": "sp_in", "side": "in", "budget": "0.15", "seed": 0}
    place = keys | {"slab": "hidden.0", "slab_side": "in"}
    columns = {"on_rate": one["on_rates"], "degree": one["live"], "silent": one["silent"], "unit": range(6)}
    units = pd.DataFrame(place | {"phase": "run"} | columns)
    (row,) = slabs_table(pd.DataFrame([place]), units).to_dict("records")
    found = mean_lines([one])
    assert found["line_in_live_r2"] == pytest.approx(row["r2"])
    assert found["line_in_live_slope"] == pytest.approx(20 * row["slope"])
