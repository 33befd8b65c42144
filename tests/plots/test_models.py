"""What stands where in the figure of all models of a task, and that it can be read."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from bbnet.analysis.metric import Metric
from bbnet.plots import models
from bbnet.plots.style import method_markers, model_colours, note
from tests.plots.test_new_figures import illegible

pytestmark = pytest.mark.filterwarnings("error")

METHODS = {"dense": "none", "sp_in": "in", "sp_out": "out", "magnitude": "in", "rigl": "in", "topk": "none"}
SIZES = {"plain": 1.0, "big_little": 0.55, "wide": 1.9}
METRICS = {"f1": Metric("F1", "share", "higher", 0, 1), "wer": Metric("WER", "%", "lower", 0)}


def summary_of(seeds=3, sizes=SIZES, methods=METHODS, budgets=("0.20", "0.50"), metrics=("f1",)):
    """Of each model, method and budget: costs in proportion to the size, means that rise with them."""
    cells, runs, generator = [], [], np.random.default_rng(4)
    for model, size in sizes.items():
        for method, side in methods.items():
            for budget in ["1.00"] if method == "dense" else budgets:
                keys = {"task": "change", "model": model, "method": method, "side": side, "budget": budget}
                kept = 0.25 + 0.75 * float(budget)
                costs = {"flops": 8e7 * size * kept, "parameters": 24_000 * size * (1 if method == "topk" else kept)}
                rise = 0.1 * np.log(size * kept) + generator.normal(0, 0.01)
                scores = {"f1": 0.7 + rise, "wer": 20 - 30 * rise}
                for metric in (*metrics, *costs):
                    mean = (scores | costs)[metric]
                    row = keys | {"metric": metric, "mean": mean, "low": mean - 0.02, "high": mean + 0.03}
                    cells.append(row | {"n_seeds": seeds})
                    runs += [
                        keys | {"metric": metric, "seed": seed, "value": mean + 0.004 * seed} for seed in range(seeds)
                    ]
    tables = {"cells": pd.DataFrame(cells), "runs": pd.DataFrame(runs)}
    return SimpleNamespace(read=tables.__getitem__, task="change", baseline="plain")


def draw(summary, metrics=("f1",)):
    return models.draw(summary, SimpleNamespace(PRIMARY=metrics, METRICS=METRICS))


def lines(axis, *markers) -> list:
    return [line for line in axis.get_lines() if line.get_marker() in markers]


def means(axis) -> list:
    return [line for line in axis.get_lines() if line.get_marker() not in (".", "None")]


@pytest.mark.parametrize("seeds", [2, 3])
def test_each_cell_stands_at_its_cost_with_its_interval_or_single_seeds(seeds):
    summary = summary_of(seeds)
    figure, points = draw(summary)
    assert [axis.get_xlabel() for axis in figure.axes] == list(models.AXES.values())
    colours, markers = model_colours(list(SIZES)), method_markers(list(METHODS))
    for axis, cost in zip(figure.axes, ("flops", "parameters"), strict=True):
        drawn, dots = means(axis), lines(axis, ".")
        bars = [line for line in lines(axis, "None") if line.get_linestyle() == "-"]
        assert len(drawn) == len(points) == 3 * 11
        for line, row in zip(drawn, points.itertuples(), strict=True):
            assert line.get_xydata().tolist() == [[getattr(row, cost), row.mean]]
            assert same_color(line.get_color(), colours[row.model])
            assert (line.get_marker(), line.get_fillstyle()) == markers[row.method]
            assert same_color(line.get_markeredgecolor(), "black") == getattr(row, f"front_{cost}")
        if seeds < 3:
            assert (len(dots), len(bars)) == (len(points), 0)
            for line, row in zip(dots, points.itertuples(), strict=True):
                assert line.get_ydata().tolist() == pytest.approx([row.mean, row.mean + 0.004])
        else:
            assert (len(dots), len(bars)) == (0, len(points))
            for line, row in zip(bars, points.itertuples(), strict=True):
                assert line.get_ydata().tolist() == [row.low, row.high]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("plain (baseline)", "big_little", "wide"),
        *("dense", "sp_in (in)", "sp_out (out)", "magnitude (in)", "rigl (in)", "topk"),
        "Pareto front of the means",
    ]
    assert ("95 % interval" in legend.get_title().get_text()) == (seeds >= 3)


@pytest.mark.parametrize(("metric", "sign"), [("f1", 1), ("wer", -1)])
def test_the_front_is_stairs_of_the_means_that_get_better_with_the_cost(metric, sign):
    figure, points = draw(summary_of(metrics=(metric,)), (metric,))
    for axis, cost in zip(figure.axes, ("flops", "parameters"), strict=True):
        (front,) = [line for line in lines(axis, "None") if line.get_linestyle() == "--"]
        assert front.get_drawstyle() == "steps-post"
        x, y = front.get_xydata().T
        expected = points[points[f"front_{cost}"]].sort_values(cost)
        assert (x[:-1].tolist(), y[:-1].tolist()) == (expected[cost].tolist(), expected["mean"].tolist())
        assert all(before < after for before, after in pairwise(sign * y[:-1]))
        assert (x[-1], y[-1]) == (points[cost].max(), y[-2])
        # No point is beyond the stairs, and the budgets beside it are those of its points.
        for row in points.itertuples():
            reached = y[:-1][x[:-1] <= getattr(row, cost)]
            assert sign * row.mean <= sign * reached[-1]
        assert sorted(text.get_text() for text in axis.texts) == sorted(expected["budget"].str.lstrip("0"))
        ups = {np.sign(text.xyann[1]) for text in axis.texts}
        assert ups == {sign}


def test_points_of_equal_cost_are_side_by_side_with_the_best_in_its_place():
    offsets = models._offsets(
        pd.Series([100.0, 100.5, 300.0, 100.0, 100.2]), pd.Series([0.5, 0.8, 0.6, 0.7, 0.1]), "higher"
    )
    step = models.DODGE_POINTS
    assert offsets.tolist() == [-step, 0, 0, step, 2 * step]
    many = models._offsets(pd.Series([1.0] * 18), pd.Series(np.arange(18.0)), "lower")
    assert (many[0], len(set(many))) == (0, 18)
    assert abs(many).max() <= models.MAX_DODGE_POINTS


@pytest.mark.parametrize(("size", "scale"), [(0.55, "linear"), (0.01, "log")])
def test_costs_that_differ_much_have_a_logarithmic_axis(size, scale):
    figure, _ = draw(summary_of(sizes=SIZES | {"big_little": size}, methods={"dense": "none"}))
    assert [axis.get_xscale() for axis in figure.axes] == [scale] * 2
    assert illegible(figure) == []


@pytest.mark.parametrize(
    ("labels", "methods", "metrics", "budgets"),
    [
        (3, 5, ("f1",), ("0.20", "0.50")),
        (2, 2, ("f1", "wer"), ("0.20",)),
        (5, 18, ("f1", "wer"), ("0.10", "0.20", "0.50", "0.80")),
    ],
)
def test_it_can_be_read(labels, methods, metrics, budgets):
    """Also with models of the longest labels."""
    sizes = {"m" * 63 + str(number) if labels == 3 else f"model{number}": 1 + 0.4 * number for number in range(labels)}
    sides = {"dense": "none"} | {f"law{number}": "in" for number in range(methods)}
    figure, _ = draw(summary_of(sizes=sizes, methods=sides, budgets=budgets, metrics=metrics), metrics)
    note(figure, "incomplete: 3 failed, 2 missing of 120 runs")
    assert illegible(figure) == []


def test_a_cell_without_a_score_is_left_out_and_a_model_alone_is_drawn():
    summary = summary_of(1, {"plain": 1.0}, {"dense": "none", "rigl": "in"})
    cells = summary.read("cells")
    lacking = cells[(cells["budget"] != "0.20") | (cells["metric"] != "f1")]
    summary.read = {"cells": lacking, "runs": summary.read("runs")}.get
    figure, points = draw(summary)
    assert points["budget"].tolist() == ["1.00", "0.50"]
    assert [len(means(axis)) for axis in figure.axes] == [2, 2]
    assert "(1 seed;" in figure.legends[0].get_title().get_text()


def test_markers_are_different_for_as_many_methods_as_a_study_has():
    names = [f"method{number}" for number in range(52)]
    assert len(set(method_markers(names).values())) == 52
    assert list(method_markers([*names, *names])) == names
