"""What stands where in the figure of ROC curves."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from bbnet.plots.roc import plot_roc
from bbnet.plots.style import DENSE_COLOUR, LINES, method_colours

POINTS = [0.001, 0.01, 0.1, 1.0]
SIDES = {"dense": "none", "sp_in": "in", "sp_out": "out", "topk": "none"}
CELLS = [
    ("dense", "1.00"),
    *((method, budget) for budget in ("0.50", "0.20") for method in ("sp_in", "sp_out", "topk")),
]


def curves(seeds: int, cells=CELLS, half: float = 0.05) -> pd.DataFrame:
    """A curve per cell, each a little above the one before; seeds lie 0.02 apart around it; points in reverse."""
    rows = []
    for number, (method, budget) in enumerate(cells):
        for place, point in reversed(list(enumerate(POINTS))):
            mean = 0.2 + 0.25 * place + 0.01 * number
            singles = [mean + 0.02 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
            keys = {"method": method, "side": SIDES[method], "budget": budget, "point": point}
            bounds = {"mean": mean, "low": mean - half, "high": mean + half}
            rows.append(keys | bounds | {"n_seeds": seeds, "seeds": singles})
    return pd.DataFrame(rows)


@pytest.fixture
def plot():
    def make(*given, **options):
        table = curves(*given, **options)
        return table, plot_roc(table)

    yield make
    plt.close("all")


def line(axis, label: str):
    (found,) = [line for line in axis.get_lines() if line.get_label() == label]
    return found


def means(table: pd.DataFrame, method: str, budget: str) -> list[float]:
    rows = table[(table["method"] == method) & (table["budget"] == budget)]
    return rows.sort_values("point")["mean"].tolist()


def test_an_axis_per_budget(plot):
    _, figure = plot(3)
    assert [axis.get_title() for axis in figure.axes] == ["budget 0.20", "budget 0.50"]
    assert [axis.get_xscale() for axis in figure.axes] == ["log", "log"]
    assert [axis.get_xlim() for axis in figure.axes] == [(0.001, 1)] * 2
    assert [axis.get_ylim() for axis in figure.axes] == [(0, 1)] * 2
    assert [axis.get_ylabel() for axis in figure.axes] == ["true accept rate", ""]


def test_every_axis_has_its_methods_beside_dense_and_chance(plot):
    table, figure = plot(3)
    colours = method_colours(list(SIDES))
    for axis, budget in zip(figure.axes, ("0.20", "0.50"), strict=True):
        for method, label in (("sp_in", "sp_in (in)"), ("sp_out", "sp_out (out)"), ("topk", "topk")):
            drawn = line(axis, label)
            assert drawn.get_xdata().tolist() == POINTS
            assert drawn.get_ydata().tolist() == means(table, method, budget)
            assert (drawn.get_color(), drawn.get_linestyle()) == (colours[method], LINES[SIDES[method]])
        assert line(axis, "dense").get_ydata().tolist() == means(table, "dense", "1.00")
        assert line(axis, "dense").get_color() == DENSE_COLOUR
        assert line(axis, "chance").get_xdata().tolist() == line(axis, "chance").get_ydata().tolist() == POINTS


def test_the_legend_names_every_curve_once(plot):
    (legend,) = plot(3)[1].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == ["chance", "dense", "sp_in (in)", "sp_out (out)", "topk"]


def test_three_seeds_have_a_band_of_the_interval_within_0_and_1(plot):
    table, figure = plot(3, half=0.15)
    for axis, budget in zip(figure.axes, ("0.20", "0.50"), strict=True):
        assert len(axis.get_lines()) == 5
        bands = {tuple(band.get_facecolor()[0][:3]): band for band in axis.collections}
        assert len(axis.collections) == 4
        colours = method_colours(list(SIDES))
        for method, own in (("dense", "1.00"), ("sp_in", budget), ("topk", budget)):
            if method == "sp_in":
                shared = [
                    band for band in axis.collections if tuple(band.get_facecolor()[0][:3]) == to_rgb(colours[method])
                ]
                assert len(shared) == 2
                continue
            corners = bands[to_rgb(colours[method])].get_paths()[0].vertices
            for point, mean in zip(POINTS, means(table, method, own), strict=True):
                heights = corners[corners[:, 0] == point, 1]
                assert (heights.min(), heights.max()) == pytest.approx((max(mean - 0.15, 0), min(mean + 0.15, 1)))
    assert figure.legends[0].get_title().get_text() == "mean, 95 % interval\n(3 seeds)"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_seeds_are_shown_one_by_one(plot, seeds):
    table, figure = plot(seeds)
    for axis in figure.axes:
        assert len(axis.collections) == 0
        thin = [line for line in axis.get_lines() if line.get_linewidth() == 0.5]
        assert len(thin) == 4 * seeds
        dense = [line.get_ydata().tolist() for line in thin if line.get_color() == DENSE_COLOUR]
        rows = table[table["method"] == "dense"].sort_values("point")["seeds"].tolist()
        assert sorted(dense) == sorted([row[seed] for row in rows] for seed in range(seeds))
        assert all(line.get_xdata().tolist() == POINTS for line in thin)
    many = "s" if seeds > 1 else ""
    assert figure.legends[0].get_title().get_text() == f"mean and single seeds\n({seeds} seed{many})"


def test_dense_alone_has_one_axis(plot):
    table, figure = plot(3, cells=[("dense", "1.00")])
    (axis,) = figure.axes
    assert axis.get_title() == "budget 1.00"
    assert line(axis, "dense").get_ydata().tolist() == means(table, "dense", "1.00")


def test_without_dense_methods_stand_alone(plot):
    _, figure = plot(3, cells=CELLS[1:])
    assert [axis.get_title() for axis in figure.axes] == ["budget 0.20", "budget 0.50"]
    assert "dense" not in [line.get_label() for axis in figure.axes for line in axis.get_lines()]


def test_methods_of_a_few_budgets_are_all_in_the_legend(plot):
    """The first axis need not have them all."""
    _, figure = plot(3, cells=[("dense", "1.00"), ("sp_in", "0.20"), ("sp_in", "0.50"), ("topk", "0.50")])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"sp_in (in)", "topk"} <= set(names)


def test_curves_that_are_no_numbers_do_not_stop_the_figure(plot, tmp_path):
    table = curves(2).assign(mean=float("nan"), low=float("nan"), high=float("nan"))
    figure = plot_roc(table)
    figure.savefig(tmp_path / "roc.png")
    assert len(figure.axes) == 2


def test_without_pairs_of_both_kinds_the_figure_says_so():
    table = curves(2)
    table["mean"] = table["low"] = table["high"] = float("nan")
    figure = plot_roc(table)
    assert {axis.get_title() for axis in figure.axes} == {"no genuine or no impostor pairs"}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["chance"]
    plt.close("all")
