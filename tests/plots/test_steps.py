"""What the figures of steps by width and of the balance line over training show, and that they can be read."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from bbnet.analysis.balance import COLUMNS
from bbnet.analysis.scaling import exponents, placed
from bbnet.plots.line_training import lines_over_training, plot_lines
from bbnet.plots.steps import NEVER, plot_steps
from bbnet.plots.style import method_colours

pytestmark = pytest.mark.filterwarnings("error")

WIDTHS = (16, 32, 64, 256)
SIDES = {"dense": "none", "log_odds": "in", "magnitude": "in", "random": "in"}
MODELS = {f"{formula}_w{w}": {"formula": formula, "widths": [w, w]} for formula in ("dnf", "xor") for w in WIDTHS}
UPPER, LOWER = "steps to 0.99 dev accuracy", "test accuracy"


def scaled(model):
    return model["formula"], model["widths"][0]


def tables(seeds: int = 5, models=tuple(MODELS)):
    """Steps, cells and runs of all methods; random never learns where the width is 16."""
    generator, steps, runs = np.random.default_rng(0), [], []
    for model in models:
        width = MODELS[model]["widths"][0]
        for method, side in SIDES.items():
            keys = {"task": "logic", "model": model, "method": method, "side": side}
            keys |= {"budget": "1.00" if method == "dense" else "0.15"}
            for seed in range(seeds):
                never = method == "random" and width == 16
                found = np.nan if never else 9000 / width + generator.integers(0, 200)
                steps.append(keys | {"seed": seed, "steps": found, "density": 0.15, "last_step": 1200})
                value = generator.uniform(0.7, 0.8) if never else generator.uniform(0.98, 1)
                runs.append(keys | {"seed": seed, "metric": "accuracy", "value": value})
    steps, runs = (placed(pd.DataFrame(rows), MODELS, scaled) for rows in (steps, runs))
    groups = runs.groupby(["task", "model", "method", "side", "budget"], sort=False)["value"]
    cells = groups.agg(mean="mean", low="min", high="max", n_seeds="size").reset_index()
    return steps, placed(cells, MODELS, scaled), runs


def of_method(axis, colour: str, marker: str, filled: bool) -> np.ndarray:
    """The points of a method that are drawn filled, or hollow: [points, 2]."""
    style = "full" if filled else "none"
    found = [
        line.get_xydata()
        for line in axis.get_lines()
        if line.get_marker() == marker and same_color(line.get_color(), colour) and line.get_fillstyle() == style
    ]
    return np.concatenate(found)


def test_every_run_is_a_point_and_one_that_never_learned_is_hollow_on_its_own_line():
    steps, cells, runs = tables()
    figure = plot_steps(steps, cells, runs, UPPER, LOWER)
    colours = method_colours(list(cells["method"]))
    upper = figure.axes[:2]
    for axis, formula in zip(upper, ("dnf", "xor"), strict=True):
        assert axis.get_title() == f"{formula}, budget .15"
        for method, side in SIDES.items():
            own = steps[(steps["formula"] == formula) & (steps["method"] == method)]
            marker = {"none": "s", "in": "o"}[side]
            shown = of_method(axis, colours[method], marker, filled=True)
            assert sorted(shown[:, 1]) == sorted(own["steps"].dropna())
            hollow = of_method(axis, colours[method], marker, filled=False)
            assert hollow[:, 1].tolist() == [NEVER * 1200] * own["steps"].isna().sum()
            assert np.abs(np.log2(shown[:, 0] / own.dropna()["width"])).max() < 0.5
    assert upper[0].get_ylabel() == UPPER
    assert figure.axes[2].get_ylabel() == LOWER


def test_the_exponents_are_written_with_their_intervals():
    steps, cells, runs = tables()
    figure = plot_steps(steps, cells, runs, UPPER, LOWER)
    fits = exponents(steps)
    for axis, formula in zip(figure.axes[:2], ("dnf", "xor"), strict=True):
        expected = [
            f"{row.method}: {row.exponent:.2f} [{row.low:.2f}, {row.high:.2f}]"
            for row in fits[fits["formula"] == formula].itertuples()
        ]
        assert len(expected) == len(SIDES)
        assert [text.get_text() for text in axis.get_legend().get_texts()] == expected


@pytest.mark.parametrize(
    ("seeds", "models"), [(1, tuple(MODELS)), (2, ("dnf_w32",)), (5, ("dnf_w16", "dnf_w32", "dnf_w64", "xor_w32"))]
)
def test_any_number_of_seeds_and_widths_is_drawn(seeds, models):
    figure = plot_steps(*tables(seeds, models), UPPER, LOWER)
    figure.draw_without_rendering()
    shown = {text.get_text() for axis in figure.axes[-2:] for text in axis.get_xticklabels()}
    assert shown >= {str(MODELS[models[-1]]["widths"][0])}


# The balance line over training.


def history(methods: dict[str, str], seeds: int = 3) -> pd.DataFrame:
    """Six epochs: two of the warm-up, in which degrees are equal; the slope on effective degrees is the epoch."""
    rows = []
    for number, (method, side) in enumerate(methods.items()):
        for seed in range(seeds):
            for epoch in range(1, 7):
                phase = "warm_up" if epoch < 3 else "sparse" if epoch < 6 else "frozen"
                row = dict.fromkeys(COLUMNS, np.nan) | {"method": method, "side": side, "seed": seed}
                row |= {"budget": "1.00" if method == "dense" else "0.15", "phase": phase, "step": 20 * epoch}
                for own in ("in", "out") if side in ("none", "both") or epoch < 3 else (side,):
                    row |= {f"line_{own}_effective_slope": float(epoch), f"line_{own}_effective_r2": 0.1 * seed}
                    if method != "dense" and epoch > 2:
                        row |= {f"line_{own}_live_slope": 10.0 + number, f"line_{own}_live_r2": 0.5 + 0.1 * seed}
                rows.append(row)
    return pd.DataFrame(rows)


def test_lines_are_means_over_seeds_of_the_method_s_own_side():
    table = lines_over_training(history({"dense": "none", "log_odds": "in", "two": "both"}))
    sides = table.groupby("method")["slab_side"].unique().map(sorted).to_dict()
    assert sides == {"dense": ["in", "out"], "log_odds": ["in"], "two": ["in", "out"]}
    one = table[(table["method"] == "log_odds") & (table["degree"] == "live") & (table["value"] == "r2")]
    assert one["step"].tolist() == [60, 80, 100, 120]
    assert one["mean"].tolist() == pytest.approx([0.6] * 4)
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # t of two degrees of freedom; the sd of .5, .6, .7 is .1
    assert one["high"].tolist() == pytest.approx([0.6 + half] * 4)
    assert set(table[table["method"] == "dense"]["degree"]) == {"effective"}
    two_seeds = lines_over_training(history({"log_odds": "in"}, seeds=2))
    assert two_seeds["low"].isna().all()


def test_each_method_has_a_column_with_its_two_lines_and_the_ends_of_phases():
    methods = {"dense": "none", "log_odds": "in", "inverted": "in"}
    data = lines_over_training(history(methods))
    figure = plot_lines(data[data["slab_side"] == "in"])
    axes = np.array(figure.axes).reshape(2, -1)
    assert [axis.get_title() for axis in axes[0]] == ["dense (in)", "log_odds (in), .15", "inverted (in), .15"]
    for column, method in zip(axes.T, methods, strict=True):
        for axis, value in zip(column, ("r2", "slope"), strict=True):
            vertical = [line.get_xdata()[0] for line in axis.get_lines()[:2]]
            assert vertical == [40, 100]
            live, effective = axis.get_lines()[2:4]
            own = data[(data["method"] == method) & (data["value"] == value)]
            assert len(live.get_xdata()) == (0 if method == "dense" else 4)
            assert effective.get_ydata().tolist() == own[own["degree"] == "effective"]["mean"].tolist()
    figure.draw_without_rendering()


def test_many_methods_stand_in_several_rows_and_empty_places_are_not_drawn():
    data = lines_over_training(history({f"law_{number}": "in" for number in range(7)}))
    figure = plot_lines(data)
    axes = np.array(figure.axes).reshape(4, 5)
    titles = [axis.get_title() for row in (axes[0], axes[2]) for axis in row]
    assert titles == [*(f"law_{number} (in), .15" for number in range(7)), "", "", ""]
    assert [axis.axison for axis in axes[3]] == [True, True, False, False, False]
    figure.draw_without_rendering()


def test_without_any_line_the_figure_says_so():
    empty = history({"dense": "none"})
    empty[COLUMNS] = np.nan
    figure = plot_lines(lines_over_training(empty))
    assert figure.axes[0].get_title() == "no slab has a line"
