"""What stands where in the Pareto plot."""

import pandas as pd
import pytest

from bbnet.analysis.metric import Metric
from bbnet.plots.pareto import plot_pareto
from bbnet.plots.style import method_colours

METRICS = {"top1": Metric("top-1", "share", "higher"), "auroc": Metric("AUROC", "%", "higher")}
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
    return plot_pareto(pd.DataFrame(rows), runs, {"f1": Metric("F1", "share", "higher")})


def points(axis, label):
    return [line.get_xdata().tolist() for line in axis.get_lines() if line.get_label() == label]


def test_a_method_that_keeps_all_weights_has_no_place_on_the_axis_of_net_density(figure):
    budget, net_density, flops = figure.axes
    assert points(budget, "topk") == [[0.2]]
    assert points(net_density, "topk") == []
    assert points(flops, "topk") == [[0.6]]


def test_a_budget_of_one_keeps_its_place_on_all_axes(figure):
    budget, net_density, flops = figure.axes
    assert points(budget, "sp_in (in)") == [[0.2, 1.0]]
    assert points(net_density, "sp_in (in)") == [[0.3, 1.0]]
    assert points(flops, "sp_in (in)") == [[0.4, 1.0]]


def test_the_legend_names_every_method(figure):
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "sp_in (in)", "topk"]


def tables(seeds: int, metrics: dict[str, float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cells and runs of metrics, each that much above the method's place in `COSTS`; seeds lie 0.1 apart."""
    cells, runs = [], []
    for place, (keys, costs) in enumerate(COSTS.items()):
        means = dict(zip(("net_density", "flops"), costs, strict=True))
        means |= {metric: above + place for metric, above in metrics.items()}
        for metric, mean in means.items():
            row = dict(zip(("method", "side", "budget"), keys, strict=True)) | {"metric": metric}
            unit = f"unit of {metric}"
            cells.append(row | {"mean": mean, "low": mean - 0.3, "high": mean + 0.3, "n_seeds": seeds, "unit": unit})
            runs += [row | {"seed": seed, "value": mean + 0.1 * seed} for seed in range(seeds)]
    return pd.DataFrame(cells), pd.DataFrame(runs)


def test_each_metric_has_a_row_of_its_own_values():
    figure = plot_pareto(*tables(3, {"top1": 0.5, "auroc": 20.5}), METRICS)
    assert [axis.get_ylabel() for axis in figure.axes] == ["test top-1", *("", ""), "test AUROC (%)", *("", "")]
    for axes, above in ((figure.axes[:3], 0.5), (figure.axes[3:], 20.5)):
        for axis, x in zip(axes, ([0.2, 1.0], [0.3, 1.0], [0.4, 1.0]), strict=True):
            (line,) = [line for line in axis.get_lines() if line.get_label() == "sp_in (in)"]
            assert line.get_xdata().tolist() == x
            assert line.get_ydata().tolist() == [above + 1, above + 2]
            (dense,) = [line for line in axis.get_lines() if line.get_label() == "dense"]
            assert set(dense.get_ydata()) == {above}
        bars = [line.get_ydata().tolist() for line in axes[2].get_lines() if len(set(line.get_xdata())) == 1]
        assert [above + 2.7, above + 3.3] in [pytest.approx(bar) for bar in bars]


def test_rows_share_their_costs_and_columns_their_axis_of_costs():
    figure = plot_pareto(*tables(3, {"top1": 0.5, "auroc": 20.5}), METRICS)
    assert [axis.get_xlabel() for axis in figure.axes[:3]] == ["", "", ""]
    assert all(axis.get_xlabel() for axis in figure.axes[3:])
    for above, below in zip(figure.axes[:3], figure.axes[3:], strict=True):
        assert above.get_xlim() == below.get_xlim()
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim() != figure.axes[3].get_ylim()
    assert len(figure.legends) == 1


def test_each_row_has_labels_of_budgets_at_its_own_points():
    figure = plot_pareto(*tables(3, {"top1": 0.5, "auroc": 20.5}), METRICS)
    for axis, above in ((figure.axes[2], 0.5), (figure.axes[5], 20.5)):
        labels = {(text.get_text(), text.xy[1]) for text in axis.texts}
        assert labels == {(".20", above + 1), ("1.00", above + 2), (".20", above + 3)}


@pytest.mark.parametrize("seeds", [1, 2])
def test_single_seeds_are_those_of_the_rows_metric(seeds):
    figure = plot_pareto(*tables(seeds, {"top1": 0.5, "auroc": 20.5}), METRICS)
    for axis, above in ((figure.axes[2], 0.5), (figure.axes[5], 20.5)):
        singles = [line.get_ydata().tolist() for line in axis.get_lines() if line.get_marker() == "."]
        expected = [[above + place + 0.1 * seed for seed in range(seeds)] for place in (1, 2, 3)]
        assert sorted(singles) == [pytest.approx(values) for values in expected]


def test_a_metric_that_no_run_has_does_not_stop_the_figure():
    """A face pack without a gallery has no pairs: nothing is known of their AUROC."""
    figure = plot_pareto(*tables(3, {"top1": 0.5}), METRICS)
    assert figure.axes[0].get_ylabel() == "test top-1"
    assert points(figure.axes[2], "topk") == [[0.6]]


def test_labels_that_differ_in_their_side_alone_share_a_colour():
    colours = method_colours(["dense", "sp_in", "rigl", "sp_out", "sp_both", "log_odds_in", "log_odds_out"])
    assert colours["sp_in"] == colours["sp_out"] == colours["sp_both"]
    assert colours["log_odds_in"] == colours["log_odds_out"]
    assert len(set(colours.values())) == 4


def test_many_methods_have_as_many_colours():
    names = [f"law{chr(97 + index)}" for index in range(14)]
    assert len(set(method_colours(names).values())) == 15
