"""What stands where in the figure of Head, Mid and Tail."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.text import Text

from bbnet.plots.by_bucket import common_name, plot_by_bucket
from bbnet.plots.style import DENSE_COLOUR, MARKERS, method_colours
from bbnet.tasks.task import load_metrics

METRICS = {
    "test-clean": {"head": "dwer_head", "mid": "dwer_mid", "tail": "dwer_tail"},
    "test-other": {"head": "dwer_head_other", "mid": "dwer_mid_other", "tail": "dwer_tail_other"},
}
SIZES = {"test-clean": {"head": 1412, "mid": 80, "tail": 9}, "test-other": {"head": 1300, "mid": 70, "tail": 0}}
SIDES = {"dense": "none", "sp_in": "in", "sp_out": "out", "topk": "none"}


def tables(seeds: int, left_out: tuple = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cells and runs: dense has no relative metric; the mean of a cell is its count, seeds lie 0.1 apart around it."""
    cells = [{"method": "dense", "side": "none", "budget": "1.00", "metric": "wer", "mean": 9.0, "unit": "%"}]
    for method in ("sp_in", "sp_out", "topk"):
        for budget in ("0.50", "0.20"):
            for row in METRICS.values():
                for metric in row.values():
                    if (method, budget) not in left_out and (method, budget, metric) not in left_out:
                        keys = {"method": method, "side": SIDES[method], "budget": budget, "metric": metric}
                        cells.append(keys | {"mean": float(len(cells)), "unit": "points"})
    cells = [cell | {"low": cell["mean"] - 0.7, "high": cell["mean"] + 0.4, "n_seeds": seeds} for cell in cells]
    offsets = [0.1 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
    runs = [
        cell | {"seed": seed, "value": cell["mean"] + offset} for cell in cells for seed, offset in enumerate(offsets)
    ]
    return pd.DataFrame(cells), pd.DataFrame(runs)


@pytest.fixture
def plot():
    def make(seeds: int, left_out: tuple = (), metrics=METRICS, **options):
        cells, runs = tables(seeds, left_out)
        options = {"name": "ΔWER", "better": "lower"} | options
        return cells, plot_by_bucket(cells, runs, metrics, **{"counted": "words", "sizes": SIZES} | options)

    yield make
    plt.close("all")


def markers(axis) -> list:
    """(x, y, colour, marker) of every mean, from left to right."""
    means = [line for line in axis.get_lines() if line.get_marker() in MARKERS.values()]
    return sorted((*line.get_xydata()[0], line.get_color(), line.get_marker()) for line in means)


def of(cells: pd.DataFrame, budget: str, test_set: str) -> list[float]:
    """Means by bucket, then by method as they come."""
    means = cells[cells["budget"] == budget].set_index(["metric", "method"])["mean"]
    return [means[metric, method] for metric in METRICS[test_set].values() for method in ("sp_in", "sp_out", "topk")]


def test_a_row_per_test_set_and_a_column_per_budget(plot):
    _, figure = plot(3)
    assert [axis.get_title() for axis in figure.axes] == ["budget 0.20", "budget 0.50", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["test-clean", "", "test-other", ""]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim() != figure.axes[2].get_ylim()


WITH_BUCKETS = {"asr": "ΔWER", "classification": "Δtop-1", "detection": "ΔmAP@.5", "face": "Δtop-1", "language": "ΔNLL"}


@pytest.mark.parametrize("task", WITH_BUCKETS)
def test_the_label_is_that_of_the_metrics_and_within_the_figure(plot, task):
    name = common_name(load_metrics(task))
    assert name == WITH_BUCKETS[task]
    _, figure = plot(3, metrics={"test": METRICS["test-clean"]}, name=name, sizes={"test": SIZES["test-clean"]})
    figure.draw_without_rendering()
    (label,) = (text for text in figure.findobj(Text) if text.get_text().startswith(name))
    extent, whole = label.get_window_extent(), figure.bbox
    assert whole.x0 <= extent.x0 and whole.y0 <= extent.y0 and extent.y1 <= whole.y1


def test_without_any_bucket_the_figure_says_so():
    cells, runs = tables(3)
    sizes = dict.fromkeys(METRICS, dict.fromkeys(("head", "mid", "tail"), 0))
    dense = {"cells": cells[cells["metric"] == "wer"], "runs": runs[runs["metric"] == "wer"]}
    figure = plot_by_bucket(**dense, metrics=METRICS, sizes=sizes, name="ΔWER", better="lower", counted="words")
    assert figure.axes[0].get_title() == "nothing to show: no words are in a bucket"
    plt.close(figure)


def test_one_test_set_is_one_row(plot):
    _, figure = plot(3, metrics={"test-clean": METRICS["test-clean"]})
    assert len(figure.axes) == 2


def test_methods_stand_side_by_side_in_their_bucket(plot):
    cells, figure = plot(3)
    colours = method_colours(list(SIDES))
    for axis, (test_set, budget) in zip(
        figure.axes, [(test_set, budget) for test_set in METRICS for budget in ("0.20", "0.50")], strict=True
    ):
        shown = markers(axis)
        assert [round(x) for x, *_ in shown] == [0] * 3 + [1] * 3 + [2] * 3
        assert [y for _, y, *_ in shown] == of(cells, budget, test_set)
        expected = [(colours[method], MARKERS[SIDES[method]]) for method in ("sp_in", "sp_out", "topk")]
        assert [(colour, marker) for *_, colour, marker in shown] == expected * 3
        places = [x - round(x) for x, *_ in shown]
        assert places == pytest.approx(places[:3] * 3)
        assert places[1] == pytest.approx(0)


def test_many_methods_stay_in_their_bucket():
    names = [f"law{number}" for number in range(20)]
    keys = {"side": "in", "budget": "0.50", "unit": "points", "n_seeds": 3, "mean": 0.0, "low": 0.0, "high": 0.0}
    cells = pd.DataFrame([keys | {"method": name, "metric": metric} for name in names for metric in ("a", "b")])
    runs = cells.assign(value=0.0, seed=0)
    figure = plot_by_bucket(
        cells, runs, {"": {"head": "a", "tail": "b"}}, {"": {"head": 1, "tail": 1}}, "Δ", "lower", "words"
    )
    places = [x for x, *_ in markers(figure.axes[0])]
    assert len(places) == 40
    assert max(places[:20]) < 0.5 < min(places[20:])
    plt.close(figure)


def test_the_sizes_of_buckets_are_below_them(plot):
    _, figure = plot(3)
    labels = [[label.get_text() for label in axis.get_xticklabels()] for axis in figure.axes]
    assert labels[0] == labels[1] == ["head\n1,412 words", "mid\n80 words", "tail\n9 words"]
    assert labels[2] == labels[3] == ["head\n1,300 words", "mid\n70 words", "tail\n0 words"]


def test_what_is_counted_and_compared_is_named_by_the_task(plot):
    _, figure = plot(3, name="Δtop-1", better="higher", counted="images")
    assert figure.get_supylabel() == "Δtop-1 relative to dense\n(points; higher is better)"
    assert figure.axes[0].get_xticklabels()[0].get_text() == "head\n1,412 images"


def test_three_seeds_have_intervals(plot):
    cells, figure = plot(3)
    bars = [
        line for line in figure.axes[0].get_lines() if len(set(line.get_ydata())) == 2 and line.get_xdata()[0] < 0.5
    ]
    bars = sorted((line.get_xdata()[0], *line.get_ydata()) for line in bars if line.get_color() != "0.85")
    means = of(cells, "0.20", "test-clean")[:3]
    assert [bar[1:] for bar in bars] == [pytest.approx((mean - 0.7, mean + 0.4)) for mean in means]
    assert not [line for line in figure.axes[0].get_lines() if line.get_marker() == "."]
    assert figure.legends[0].get_title().get_text().startswith("mean, 95 % interval\n(3 seeds;")


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_seeds_are_shown_one_by_one(plot, seeds):
    cells, figure = plot(seeds)
    points = [line for line in figure.axes[3].get_lines() if line.get_marker() == "."]
    points = sorted((line.get_xdata()[0], line.get_ydata().tolist()) for line in points)
    assert len(points) == 9
    for (x, values), (mean_x, mean, *_) in zip(points, markers(figure.axes[3]), strict=True):
        assert x == mean_x
        assert values == pytest.approx([mean] if seeds == 1 else [mean - 0.05, mean + 0.05])
    assert figure.legends[0].get_title().get_text().startswith(f"mean and single seeds\n({seeds} seed")


def test_dense_is_a_dashed_line_at_zero(plot):
    _, figure = plot(3)
    for axis in figure.axes:
        (dense,) = (line for line in axis.get_lines() if line.get_label() == "dense")
        assert (set(dense.get_ydata()), dense.get_linestyle(), dense.get_color()) == ({0}, "--", DENSE_COLOUR)
        low, high = axis.get_ylim()
        assert low < 0 < high


def test_the_legend_names_methods_in_their_order(plot):
    _, figure = plot(3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "dense",
        "sp_in (in)",
        "sp_out (out)",
        "topk",
    ]


def test_a_method_that_is_missing_at_a_budget_leaves_no_gap_and_keeps_its_colour(plot):
    _, figure = plot(3, left_out=(("sp_in", "0.20"),))
    shown = markers(figure.axes[0])
    assert [marker for *_, marker in shown] == [MARKERS["out"], MARKERS["none"]] * 3
    assert shown[0][0] + shown[1][0] == pytest.approx(0)
    assert shown[1][2] == method_colours(list(SIDES))["topk"]
    assert len(markers(figure.axes[1])) == 9


def test_an_empty_bucket_has_no_points(plot):
    cells, figure = plot(2, left_out=tuple((name, "0.20", "dwer_tail_other") for name in ("sp_in", "sp_out", "topk")))
    assert [round(x) for x, *_ in markers(figure.axes[2])] == [0] * 3 + [1] * 3
    assert len(figure.axes[2].get_xticklabels()) == 3
