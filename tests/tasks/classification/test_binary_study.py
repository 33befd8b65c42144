"""The shipped study of binary weights keeps its promises: what float, binary and ternary weights reach."""

from pathlib import Path

import pandas as pd

from bbnet.cli.check import REFERENCE

ROOT = Path(__file__).parents[3]


def test_binary_and_ternary_weights_are_within_reach_of_float_ones():
    runs = pd.read_csv(ROOT / REFERENCE / "binary/summary/runs.csv", dtype={"budget": str})
    cells = runs[runs["metric"] == "top1"].groupby(["method", "budget"])["value"]
    mean, sd = cells.mean(), cells.std()
    assert set(cells.size()) == {3}
    assert 0.85 <= mean["dense", "1.00"] < 0.97
    assert mean["binary", "1.00"] >= 0.80 and sd["binary", "1.00"] <= 0.03
    assert mean["binary", "1.00"] - mean["ternary", "0.50"] <= 0.06
