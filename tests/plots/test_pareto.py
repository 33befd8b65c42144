"""What stands where in the Pareto plot."""

import pandas as pd
import pytest

from bbnet.plots.pareto import plot_pareto
from bbnet.plots.style import method_colours

COSTS = {
    ("dense", "none", "1.00"): (1.0, 100.0),
    ("sp_in", "in", "0.20"): (0.3, 40.0),
    ("sp_in", "in", "1.00"): (1.0, 100.0),
    ("topk", "none", "0.20"): (1.0, 60.0),
}


@pytest.fixture
def figure():
    rows = [
        dict(zip(("method", "side", "budget"), keys, strict=True))
        | {"metric": metric, "mean": mean, "low": mean, "high": mean, "n_seeds": 3, "unit": "share"}
        for keys, costs in COSTS.items()
        for metric, mean in zip(("net_density", "flops", "f1"), (*costs, 0.5), strict=True)
    ]
    runs = pd.DataFrame([row | {"seed": 0, "value": row["mean"]} for row in rows])
    return plot_pareto(pd.DataFrame(rows), runs, ["f1"])


def points(axis, label):
    return [line.get_xdata().tolist() for line in axis.get_lines() if line.get_label() == label]


def test_a_method_that_keeps_all_weights_stands_on_the_axis_of_flops_alone(figure):
    net_density, flops = figure.axes
    assert points(net_density, "topk") == []
    assert points(flops, "topk") == [[0.6]]


def test_a_budget_of_one_keeps_its_place_on_both_axes(figure):
    net_density, flops = figure.axes
    assert points(net_density, "sp_in (in)") == [[0.3, 1.0]]
    assert points(flops, "sp_in (in)") == [[0.4, 1.0]]


def test_the_legend_names_every_method(figure):
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "sp_in (in)", "topk"]


def test_labels_that_differ_in_their_side_alone_share_a_colour():
    colours = method_colours(["dense", "sp_in", "rigl", "sp_out", "sp_both", "log_odds_in", "log_odds_out"])
    assert colours["sp_in"] == colours["sp_out"] == colours["sp_both"]
    assert colours["log_odds_in"] == colours["log_odds_out"]
    assert len(set(colours.values())) == 4


def test_many_methods_have_as_many_colours():
    names = [f"law{chr(97 + index)}" for index in range(14)]
    assert len(set(method_colours(names).values())) == 15
