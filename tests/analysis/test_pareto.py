"""Which cells are on a Pareto front: by the definition, and by hand."""

import numpy as np
import pandas as pd
import pytest

from bbnet.analysis.metric import Metric
from bbnet.analysis.pareto import KEYS, on_front, points_table


def test_the_front_is_what_no_other_point_dominates():
    """With few different values, so that there are many ties."""
    generator = np.random.default_rng(0)
    for count in range(1, 40):
        costs, values = generator.integers(0, 6, (2, count)).astype(float)
        for better, sign in (("higher", 1), ("lower", -1)):
            expected = [
                not any(
                    costs[other] <= costs[one]
                    and sign * values[other] >= sign * values[one]
                    and (costs[other], values[other]) != (costs[one], values[one])
                    for other in range(count)
                )
                for one in range(count)
            ]
            assert on_front(costs, values, better).tolist() == expected


@pytest.mark.parametrize(
    ("better", "front"), [("higher", [True, False, True, True, True, False]), ("lower", [True] + [False] * 5)]
)
def test_the_front_by_hand(better, front):
    """The second costs as much as the first for less, the third and the fourth are equal; the last is dear and bad."""
    costs, values = np.array([1.0, 2.0, 2.0, 2.0, 5.0, 5.0]), np.array([0.5, 0.5, 0.6, 0.6, 0.7, 0.55])
    assert on_front(costs, values, better).tolist() == front


def test_a_point_without_a_number_is_not_on_the_front_and_keeps_none_off():
    nan = np.nan
    assert on_front(np.array([1.0, nan, 2.0]), np.array([nan, 0.9, 0.5]), "higher").tolist() == [False, False, True]


def test_the_points_are_the_cells_of_all_models_with_their_costs():
    rows = [
        {"task": "t", "model": model, "method": "dense", "side": "none", "budget": "1.00", "metric": metric}
        | {"mean": mean, "low": mean - 1, "high": mean + 1, "n_seeds": 3}
        for model, means in {
            "plain": {"wer": 20.0, "cer": 9.0, "flops": 100.0, "parameters": 7.0, "bytes": 28.0},
            "wide": {"wer": 25.0, "cer": 8.0, "flops": 200.0, "parameters": 5.0, "bytes": 20.0},
        }.items()
        for metric, mean in means.items()
    ]
    metrics = {"wer": Metric("WER", "%", "lower"), "cer": Metric("CER", "%", "lower")}
    points = points_table(pd.DataFrame(rows), metrics)
    shown = points[["model", "metric", "mean", "flops", "parameters", "front_flops", "front_parameters"]]
    assert shown.to_numpy().tolist() == [
        ["plain", "wer", 20.0, 100.0, 7.0, True, True],
        ["wide", "wer", 25.0, 200.0, 5.0, False, True],
        ["plain", "cer", 9.0, 100.0, 7.0, True, False],
        ["wide", "cer", 8.0, 200.0, 5.0, True, True],
    ]
    assert set(KEYS) < set(points.columns)
