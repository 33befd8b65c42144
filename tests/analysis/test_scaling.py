"""Steps to a level and their exponent, by hand: powers of the width, runs that never learned, and the median."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bbnet.analysis.metric import Metric
from bbnet.analysis.scaling import exponents, placed, steps_by_width, steps_table
from bbnet.analysis.tables import scaling_table

MODELS = {f"w{width}": {"formula": "dnf", "widths": [width, width]} for width in (16, 32, 64, 128)}


def scaled(model):
    return model["formula"], model["widths"][0]


def keys(method: str, width: int, seed: int) -> dict:
    return {"task": "logic", "model": f"w{width}", "method": method, "side": "in", "budget": "0.15", "seed": seed}


def history(curves: dict[tuple[str, int, int], list[float]], steps: int = 20) -> pd.DataFrame:
    """By method, width and seed, the accuracy on dev after each epoch."""
    return pd.DataFrame(
        [
            keys(*run) | {"step": steps * epoch, "density": 1 / epoch, "dev_accuracy": value}
            for run, curve in curves.items()
            for epoch, value in enumerate(curve, 1)
        ]
    )


def steps_of(found: dict[tuple[str, int, int], float]) -> pd.DataFrame:
    rows = [keys(*run) | {"steps": steps, "density": 0.15, "last_step": 5000} for run, steps in found.items()]
    return placed(pd.DataFrame(rows), MODELS, scaled)


def test_the_first_time_counts_and_never_is_not_a_number():
    curves = {
        ("sp_in", 16, 0): [0.5, 0.99, 0.7, 1.0],
        ("sp_in", 16, 1): [0.5, 0.98, 0.989, 0.9899],
        ("dense", 32, 0): [1.0, 1.0, 1.0, 1.0],
    }
    shuffled = history(curves).sample(frac=1, random_state=0)
    found = steps_table(shuffled, "accuracy", 0.99).set_index(["method", "seed"])
    assert found["steps"].to_dict() == pytest.approx(
        {("dense", 0): 20, ("sp_in", 0): 40, ("sp_in", 1): np.nan}, nan_ok=True
    )
    assert set(found["last_step"]) == {80}
    assert found.loc[("sp_in", 0), "density"] == 0.5
    assert np.isnan(found.loc[("sp_in", 1), "density"])


def test_a_power_of_the_width_has_its_exponent_and_no_interval_width():
    steps = steps_of({("sp_in", width, seed): 9000 * width**-0.75 for width in (16, 32, 128) for seed in (0, 1, 2)})
    (row,) = exponents(steps).to_dict("records")
    assert (row["exponent"], row["low"], row["high"]) == pytest.approx((-0.75,) * 3)
    assert (row["widths"], row["left_out"], row["never"], row["n_runs"], row["n_seeds"]) == ("16 32 128", "", 0, 9, 3)


def test_the_exponent_of_three_seeds_by_hand():
    """Between two widths a factor of two apart, the exponent of a seed is log2 of the ratio of its steps."""
    found = {("sp_in", 16, seed): 800 for seed in range(3)}
    found |= {("sp_in", 32, 0): 400, ("sp_in", 32, 1): 200, ("sp_in", 32, 2): 100}
    (row,) = exponents(steps_of(found)).to_dict("records")
    half = stats.t.ppf(0.975, 2) * 1 / np.sqrt(3)  # the slopes are -1, -2 and -3, whose sd is 1
    assert (row["exponent"], row["low"], row["high"]) == pytest.approx((-2, -2 - half, -2 + half))


def test_a_width_at_which_one_run_never_got_there_is_left_out_for_all_seeds_and_stated():
    found = {("sp_in", width, seed): 6400 / width for width in (16, 32, 64, 128) for seed in (0, 1)}
    found[("sp_in", 16, 1)] = np.nan
    found[("sp_in", 16, 0)] = 4000  # what the other seed did there counts for nothing
    (row,) = exponents(steps_of(found)).to_dict("records")
    assert row["exponent"] == pytest.approx(-1)
    assert (row["widths"], row["left_out"], row["never"], row["n_runs"]) == ("32 64 128", "16", 1, 8)


def test_seeds_that_lack_a_run_are_left_out_and_do_not_count_as_never():
    found = {("sp_in", width, seed): 6400 / width for width in (16, 32) for seed in (0, 1)}
    found[("sp_in", 16, 2)] = 17
    (row,) = exponents(steps_of(found)).to_dict("records")
    assert row["exponent"] == pytest.approx(-1)
    assert (row["n_seeds"], row["left_out"], row["never"], row["n_runs"]) == (2, "", 0, 4)
    assert exponents(steps_of({("sp_in", 16, 0): 17, ("sp_in", 32, 1): 17})).empty


def test_without_two_whole_widths_there_is_no_exponent_and_one_seed_has_no_interval():
    found = {("sp_in", 16, 0): 100, ("sp_in", 16, 1): 100, ("sp_in", 32, 0): np.nan, ("sp_in", 32, 1): 50}
    assert exponents(steps_of(found)).empty
    (row,) = exponents(steps_of({("dense", 16, 0): 400, ("dense", 64, 0): 100})).to_dict("records")
    assert row["exponent"] == pytest.approx(-1)
    assert np.isnan([row["low"], row["high"]]).all()


def test_the_median_places_runs_that_never_got_there_last():
    found = {("sp_in", 16, seed): steps for seed, steps in enumerate([np.nan, 300, 100])}
    found |= {("sp_in", 32, seed): steps for seed, steps in enumerate([np.nan, np.nan, 100])}
    table = steps_by_width(steps_of(found)).set_index("width")
    assert (table.loc[16, "median"], table.loc[16, "never"], table.loc[16, "n_seeds"]) == (300, 1, 3)
    assert np.isnan(table.loc[32, "median"])
    assert table.loc[32, "never"] == 2


def test_the_table_counts_runs_that_never_learned_beside_the_median():
    learned = {16: [0.5, 0.99, 1.0, 1.0], 32: [0.99, 1.0, 1.0, 1.0], 64: [0.2, 0.2, 0.2, 0.2]}
    curves = {("sp_in", width, seed): curve for width, curve in learned.items() for seed in (0, 1, 2)}
    curves = {("the_last", 16, 0): learned[16]} | curves
    curves[("sp_in", 64, 2)] = learned[16]
    summary = SimpleNamespace(
        task="logic", study={"tasks": {"logic": {"models": MODELS}}}, read={"history": history(curves)}.__getitem__
    )
    metric = Metric("accuracy", "share", "higher", 0, 1)
    task = SimpleNamespace(SELECTION="accuracy", METRICS={"accuracy": metric}, LEVEL=0.99, scaled=scaled)
    table = scaling_table(summary, task)
    columns = ["formula", "method", "side", "budget", "width 16", "width 32", "width 64", "exponent", "widths left out"]
    assert table.shown.columns.tolist() == columns
    assert table.shown.to_numpy().tolist() == [
        ["dnf", "the_last", "in", "0.15", "40 (0/1)", "–", "–", "–", "–"],
        ["dnf", "sp_in", "in", "0.15", "40 (0/3)", "20 (0/3)", "– (2/3)", "-1.00 [-1.00, -1.00]", "64"],
    ]
    row = table.data.iloc[1]
    assert (row["median_16"], row["median_32"], row["never_64"], row["exponent"]) == pytest.approx((40, 20, 2, -1))
    assert np.isnan(row["median_64"])
