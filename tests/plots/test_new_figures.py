"""What the figures of contrasts, balance, claims, churn and coverage show, and that all of it can be read."""

import warnings
from itertools import combinations, pairwise, product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from bbnet.analysis.claims import MEASURES, claims_table, selectivity, slabs_table, with_warm_start
from bbnet.analysis.metric import Metric
from bbnet.analysis.weights import BINS
from bbnet.plots import balance, churn, claims, contrasts, coverage, weights
from bbnet.plots.style import DENSE_COLOUR, LINES, MARKERS, method_colours, note, side_by_side

pytestmark = pytest.mark.filterwarnings("error")

METHODS = ["sp_in", "sp_out", "magnitude", "rigl", "topk", "wanda", "shuffled", "random"]
BUDGETS = ["0.10", "0.20", "0.50", "1.00"]
SIDES = {"dense": "none", "topk": "none", "sp_out": "out"}
QUICK = [(2, 2), (2, 4), (5, 3), (8, 2), (8, 4)]
COUNTS = [
    pytest.param(*counts, marks=[] if counts in QUICK else pytest.mark.slow)
    for counts in product(range(2, 9), range(2, 5))
]
TASK = SimpleNamespace(
    PRIMARY=("f1",), METRICS={"f1": Metric("F1", "share", "higher"), "eer": Metric("EER", "%", "lower")}
)


def side(method: str) -> str:
    return SIDES.get(method, "in")


def label(method: str) -> str:
    return method if side(method) == "none" else f"{method} ({side(method)})"


def summary_of(**tables):
    return SimpleNamespace(read=tables.__getitem__, task="change", model="small")


def keys(method: str, budget: str) -> dict:
    budget = "1.00" if method == "dense" else budget
    return {"task": "change", "model": "small", "method": method, "side": side(method), "budget": budget}


def cells_of(methods: list[str]) -> pd.DataFrame:
    return pd.DataFrame([keys(method, "0.20") for method in ["dense", *methods]])


# Legibility.


def tick_labels(axis) -> list:
    """Those of the ticks in view; axes that share theirs show them once."""
    low, high = sorted(axis.get_view_interval())
    ticks = axis.get_major_ticks(len(axis.get_majorticklocs()))
    in_view = [tick.label1 for tick in ticks if low - 1e-9 <= tick.get_loc() <= high + 1e-9]
    return [text for text in in_view if text.get_visible() and text.get_text()]


def shown_texts(figure) -> list:
    """Tick and axis labels, titles, annotations, legends' texts and the figure's title."""
    texts = [] if figure._suptitle is None else [figure._suptitle]
    for legend in figure.legends:
        texts += [*legend.get_texts(), legend.get_title()]
    for axis in figure.axes:
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
        texts += tick_labels(axis.xaxis) + tick_labels(axis.yaxis)
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def illegible(figure) -> list[str]:
    """Texts that leave the figure, and pairs that overlap by more than a pixel each way."""
    figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown_texts(figure)]
    found = [
        f"{text!r} leaves the figure"
        for text, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1
    ]
    for (text, one), (other_text, other) in combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        up = min(one.y1, other.y1) - max(one.y0, other.y0)
        if across > 1 and up > 1:
            found.append(f"{text!r} and {other_text!r} overlap")
    return found


def points(axis, *markers) -> list:
    return [line for line in axis.get_lines() if line.get_marker() in markers]


# Contrasts.


def contrast_rows(methods, budgets, seeds=3, metrics=(("f1", "share"),)) -> pd.DataFrame:
    """Each method with dense, then sp_in with each other on its side; every third is significant."""
    rows = []
    for budget in budgets[::-1]:
        compared = [(method, "dense") for method in methods]
        compared += [("sp_in", method) for method in methods if method != "sp_in" and side(method) == "in"]
        for method, reference in compared:
            for metric, unit in metrics:
                effect = 0.01 * (len(rows) - 4)
                verdict = ("better" if effect > 0 else "worse") if len(rows) % 3 == 0 else "none"
                row = keys(method, budget) | {"reference": reference, "reference_side": side(reference)}
                row |= {"metric": metric, "unit": unit, "effect": effect, "low": effect - 0.02, "high": effect + 0.03}
                rows.append(row | {"n_seeds": seeds, "verdict": verdict})
    return pd.DataFrame(rows)


def draw_contrasts(table, methods=METHODS, task=TASK):
    return contrasts.draw(summary_of(contrasts=table, cells=cells_of(methods)), task)


@pytest.mark.parametrize(("methods", "budgets"), COUNTS)
def test_contrasts_can_be_read(methods, budgets):
    figure, _ = draw_contrasts(contrast_rows(METHODS[:methods], BUDGETS[:budgets]), METHODS[:methods])
    note(figure, "incomplete: 3 failed, 2 missing of 120 runs")
    assert illegible(figure) == []


def test_each_contrast_stands_at_its_effect_filled_only_if_significant():
    table = contrast_rows(METHODS[:4], BUDGETS[:2])
    figure, shown = draw_contrasts(table, METHODS[:4])
    (axis,) = figure.axes
    expected = table.sort_values("budget", kind="stable")
    colours = method_colours(["dense", *METHODS[:4]])
    markers = points(axis, *MARKERS.values())
    assert len(markers) == len(expected)
    for place, (line, row) in enumerate(zip(markers, expected.itertuples(), strict=True)):
        assert line.get_xydata().tolist() == [[row.effect, place]]
        assert line.get_marker() == MARKERS[row.side]
        assert same_color(line.get_color(), colours[row.method])
        filled = colours[row.method] if row.verdict != "none" else "white"
        assert same_color(line.get_markerfacecolor(), filled)
    names = [text.get_text() for text in tick_labels(axis.yaxis)]
    assert names == [
        f"{label(row.method)} − {label(row.reference)}   {row.budget.lstrip('0')}" for row in expected.itertuples()
    ]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]
    assert axis.get_xlabel() == "difference in test F1; higher is better"
    pd.testing.assert_frame_equal(shown, table)


def intervals(axis) -> list:
    return [
        line.get_xydata().tolist()
        for line in axis.get_lines()
        if line.get_marker() == "None"
        and len(set(line.get_ydata())) == 1
        and line.get_linestyle() == "-"
        # Lines between budgets span the axis.
        and line.get_transform() == axis.transData
    ]


def test_an_interval_is_drawn_from_low_to_high():
    table = contrast_rows(METHODS[:3], ["0.20"])
    figure, _ = draw_contrasts(table)
    expected = [[[row.low, place], [row.high, place]] for place, row in enumerate(table.itertuples())]
    assert intervals(figure.axes[0]) == expected


@pytest.mark.parametrize("seeds", [1, 2])
def test_contrasts_of_fewer_than_three_seeds_have_no_intervals(seeds):
    figure, _ = draw_contrasts(contrast_rows(METHODS[:3], ["0.20"], seeds))
    assert intervals(figure.axes[0]) == []


def test_each_metric_has_axes_of_its_own_with_unit_and_direction():
    table = contrast_rows(METHODS[:3], ["0.20"], metrics=(("eer", "%"), ("f1", "share")))
    task = SimpleNamespace(PRIMARY=("f1", "eer"), METRICS=TASK.METRICS)
    figure, _ = draw_contrasts(table, task=task)
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "difference in test F1; higher is better",
        "difference in test EER (%); lower is better",
    ]
    for axis, metric in zip(figure.axes, ("f1", "eer"), strict=True):
        effects = [line.get_xdata()[0] for line in points(axis, *MARKERS.values())]
        assert effects == table[table["metric"] == metric]["effect"].tolist()
    assert illegible(figure) == []


def test_a_contrast_that_a_metric_lacks_leaves_its_row_empty():
    table = contrast_rows(METHODS[:3], ["0.20"], metrics=(("eer", "%"), ("f1", "share")))
    table = table[(table["metric"] == "f1") | (table["method"] != "sp_out")]
    task = SimpleNamespace(PRIMARY=("f1", "eer"), METRICS=TASK.METRICS)
    figure, _ = draw_contrasts(table, task=task)
    rows = [[line.get_ydata()[0] for line in points(axis, *MARKERS.values())] for axis in figure.axes]
    assert rows == [[0, 1, 2, 3], [0, 2, 3]]


def test_no_contrasts_are_said_to_be_none():
    figure, shown = draw_contrasts(contrast_rows(METHODS[:2], ["0.20"]).iloc[:0])
    assert figure.axes[0].get_title() == "nothing to compare"
    assert len(shown) == 0
    assert illegible(figure) == []


# Balance.


def units_table(methods, budgets, seeds=1, units=24) -> pd.DataFrame:
    """Units of two slabs, every tenth silent; dense and topk give no unit a degree of its own."""
    generator = np.random.default_rng(0)
    parts = []
    for seed in range(seeds):
        for slab in ("conv1", "conv2"):
            place = {"seed": seed, "slab": slab, "slab_side": "in", "unit": range(units), "fan": 32}
            rates = generator.uniform(0.02, 0.9, units)
            warm = {"phase": "warm_up", "on_rate": rates, "degree": 32, "silent": False}
            parts.append(pd.DataFrame(keys("dense", "1.00") | place | warm))
            for method in ["dense", *methods]:
                for budget in ["1.00"] if method == "dense" else budgets:
                    degrees = 32 if method in ("dense", "topk") else generator.integers(2, 30, units)
                    own = {"phase": "run", "on_rate": generator.uniform(0.02, 0.9, units), "degree": degrees}
                    own |= {"silent": np.arange(units) % 10 == 9}
                    parts.append(pd.DataFrame(keys(method, budget) | place | own))
    return pd.concat(parts, ignore_index=True)


def slabs_of(units: pd.DataFrame) -> pd.DataFrame:
    names = ["task", "model", "method", "side", "budget", "seed", "slab", "slab_side"]
    of_runs = units[units["phase"] == "run"]
    codes = of_runs.groupby(names, sort=False).size().rename("units").reset_index()
    generator = np.random.default_rng(1)
    return slabs_table(codes.assign(**{name: generator.uniform(0.2, 0.8, len(codes)) for name in MEASURES}), units)


def draw_balance(units):
    return balance.draw(summary_of(slabs=slabs_of(units), units=units), TASK)


@pytest.mark.parametrize("methods", range(2, 9))
def test_balance_can_be_read(methods):
    figure, _ = draw_balance(units_table(METHODS[:methods], BUDGETS[:2]))
    note(figure, "incomplete: 3 failed, 2 missing of 120 runs")
    assert illegible(figure) == []


def test_balance_shows_the_units_of_the_smallest_budget_and_first_seed():
    units = units_table(METHODS[:5], ["0.50", "0.20"], seeds=2)
    figure, _ = draw_balance(units)
    slabs, joined = slabs_of(units), with_warm_start(units)
    shown = [method for method in METHODS[:5] if method != "topk"]
    columns = np.array(figure.axes).reshape(2, -1).T
    colours = method_colours(["dense", *METHODS[:5]])
    assert len(columns) == len(shown)
    for (above, below), method in zip(columns, shown, strict=True):
        of_method = joined["method"].eq(method) & joined["budget"].eq("0.20") & joined["seed"].eq(0)
        mine = joined[of_method & ~joined["silent"]]
        fits = slabs[slabs["method"].eq(method) & slabs["budget"].eq("0.20") & slabs["seed"].eq(0)]
        assert above.get_title() == f"{label(method)}, budget .20"
        assert below.get_xlabel() == "degree (share of fan)"
        for axis, rates, r2, slope in (
            (above, "on_rate_before", "r2_before", "slope_before"),
            (below, "on_rate", "r2", "slope"),
        ):
            (dots,) = points(axis, ".")
            assert dots.get_xdata().tolist() == pytest.approx((mine["degree"] / 32).tolist())
            assert dots.get_ydata().tolist() == pytest.approx(selectivity(mine[rates]).tolist())
            assert same_color(dots.get_color(), colours[method])
            (text,) = axis.texts
            assert text.get_text() == f"median $R^2$ = {fits[r2].median():.2f}"
            lines = points(axis, "None")
            slopes = [np.diff(line.get_ydata())[0] / np.diff(line.get_xdata())[0] for line in lines]
            assert slopes == pytest.approx((32 * fits[slope]).tolist())
    assert [axis.get_ylabel() for axis in columns[0]] == [
        "warm start:\nselectivity log((1 − a) / a)",
        "after training:\nselectivity log((1 − a) / a)",
    ]


def test_balance_without_degrees_of_their_own_says_so():
    for units in (units_table(["topk"], ["0.20"]), units_table([], [])):
        figure, _ = draw_balance(units)
        assert figure.axes[0].get_title() == "all degrees are equal"


def test_balance_without_degrees_of_their_own_can_be_read():
    figure, _ = draw_balance(units_table(["topk"], ["0.20"]))
    assert illegible(figure) == []


def test_balance_without_a_warm_start_shows_the_run_alone():
    units = units_table(METHODS[:2], ["0.20"])
    figure, _ = draw_balance(units[units["phase"] == "run"])
    above, below = figure.axes[0], figure.axes[2]
    assert points(above, "None") == []
    assert len(points(below, "None")) == 2


def test_balance_shows_a_method_where_it_has_a_line():
    """At the smallest budget all degrees of rigl are equal; its lines are at the next."""
    units = units_table(["sp_in", "rigl"], ["0.20", "0.50"])
    equal = (units["method"] == "rigl") & (units["budget"] == "0.20")
    units.loc[equal, "degree"] = 6
    figure, _ = draw_balance(units)
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert not [text for text in texts if "nan" in text]


def test_balance_returns_what_is_shown():
    units = units_table(["sp_in", "topk"], ["0.20", "0.50"], seeds=2)
    _, shown = draw_balance(units)
    assert set(shown["method"]) == {"sp_in"}
    assert set(shown["budget"]) == {"0.20"}
    assert set(shown["seed"]) == {0}


# Claims.


def claim_rows(methods, budgets, seeds=3) -> pd.DataFrame:
    rows = []
    for method in methods:
        for budget in budgets:
            for seed in range(seeds):
                for place, measure in enumerate(MEASURES):
                    value = 0.1 * place + 0.03 * len(rows) ** 0.5 + 0.01 * seed**2
                    row = keys(method, budget) | {"seed": seed, "measure": measure, "value": value}
                    rows.append(row | {"dense": 0.3 + 0.1 * place + 0.02 * seed})
    return pd.DataFrame(rows, columns=[*keys("sp_in", ""), "seed", "measure", "value", "dense"])


def draw_claims(table, methods=METHODS):
    return claims.draw(summary_of(claims=table, cells=cells_of(methods)), TASK)


@pytest.mark.parametrize(("methods", "budgets"), COUNTS)
def test_claims_can_be_read(methods, budgets):
    figure, _ = draw_claims(claim_rows(METHODS[:methods], BUDGETS[:budgets]), METHODS[:methods])
    note(figure, "incomplete: 3 failed, 2 missing of 120 runs")
    assert illegible(figure) == []


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_claims_show_means_beside_dense_and_intervals_from_three_seeds(seeds):
    table = claim_rows(METHODS[:3], ["0.50", "0.20"], seeds)
    figure, _ = draw_claims(table, METHODS[:3])
    colours, places = method_colours(["dense", *METHODS[:3]]), side_by_side(3)
    assert [axis.get_ylabel() for axis in figure.axes] == list(MEASURES.values())
    for axis, measure in zip(figure.axes, MEASURES, strict=True):
        means = points(axis, *MARKERS.values())
        of_measure = table[table["measure"] == measure].groupby(["method", "budget"], sort=False)
        assert len(means) == of_measure.ngroups
        bars = [line.get_xydata() for line in points(axis, "None")]
        for line, ((method, budget), cell) in zip(means, of_measure, strict=True):
            x = ["0.20", "0.50"].index(budget) + places[METHODS.index(method)]
            assert line.get_xydata().tolist() == [[pytest.approx(x), pytest.approx(cell["value"].mean())]]
            assert same_color(line.get_color(), colours[method])
            assert line.get_marker() == MARKERS[side(method)]
            own = [bar[:, 1].tolist() for bar in bars if np.allclose(bar[:, 0], x)]
            singles = [dot.get_ydata().tolist() for dot in points(axis, ".") if np.allclose(dot.get_xdata(), x)]
            if seeds < 3:
                assert (own, singles) == ([], [cell["value"].tolist()])
            else:
                t = {3: 4.302653, 5: 2.776445}[seeds]
                half = t * cell["value"].std() / seeds**0.5
                mean = cell["value"].mean()
                assert (own, singles) == ([pytest.approx([mean - half, mean + half], abs=1e-6)], [])
            dense = [dash for dash in points(axis, "_") if np.allclose(dash.get_xdata(), x)]
            assert [dash.get_ydata().tolist() for dash in dense] == [[pytest.approx(cell["dense"].mean())]]
            assert same_color(dense[0].get_color(), DENSE_COLOUR)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense, same slabs", *map(label, METHODS[:3])]
    assert f"({seeds} seed" in legend.get_title().get_text()
    assert ("interval" in legend.get_title().get_text()) == (seeds >= 3)
    assert [text.get_text() for text in tick_labels(figure.axes[2].xaxis)] == ["0.20", "0.50"]
    assert [axis.get_xlabel() for axis in figure.axes[2:]] == ["budget", "budget"]


def test_claims_without_dense_have_no_dash():
    figure, _ = draw_claims(claim_rows(METHODS[:2], ["0.20"]).assign(dense=np.nan))
    assert all(np.isnan(dash.get_ydata()).all() for axis in figure.axes for dash in points(axis, "_"))


def test_no_claims_do_not_raise():
    with warnings.catch_warnings(action="ignore"):
        figure, shown = draw_claims(claim_rows([], []))
    figure.canvas.draw()
    assert len(shown) == 0


def test_no_claims_do_not_warn():
    draw_claims(claim_rows([], []))


def test_no_claims_are_not_said_to_be_of_nan_seeds():
    with warnings.catch_warnings(action="ignore"):
        figure, _ = draw_claims(claim_rows([], []))
    assert "nan" not in figure.legends[0].get_title().get_text()


def test_claims_return_what_is_shown():
    units = units_table(METHODS[:2], ["0.20"])
    _, shown = draw_claims(claims_table(slabs_of(units)))
    assert set(shown["measure"]) == set(MEASURES)


def test_a_line_rises_if_its_slope_is_positive_and_dense_slabs_have_none():
    """Degrees of sp_in grow with the selectivity after training in one slab of two, and before it in none."""
    units = units_table(["sp_in"], ["0.20"])
    runs = units["phase"] == "run"
    rates = 1 - units["degree"] / 40
    units.loc[runs, "on_rate"] = rates.where(units["slab"] == "conv1", 1 - rates)[runs]
    units.loc[~runs, "on_rate"] = 1 - rates[runs & (units["method"] == "sp_in")].to_numpy()
    found = claims_table(slabs_of(units)).set_index(["method", "measure"])["value"]
    assert (found["sp_in", "rises"], found["sp_in", "rises_before"]) == (0.5, 0)
    assert (found["sp_in", "r2"], found["sp_in", "r2_before"]) == (pytest.approx(1, abs=0.1), pytest.approx(1, abs=0.1))
    assert "dense" not in found.index


def test_the_seeds_of_a_measure_that_is_not_shown_do_not_count():
    table = claim_rows(METHODS[:2], ["0.20"], 3)
    line = table.iloc[:1].assign(measure="r2", dense=np.nan)
    figure, _ = draw_claims(pd.concat([table, line]))
    assert "(3 seeds" in figure.legends[0].get_title().get_text()


# Churn.


def refresh_rows(methods, budgets, seeds=2, refreshes=6) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for method in methods:
        for budget in budgets:
            for seed in range(seeds):
                for step in range(10, 10 * refreshes + 1, 10):
                    for slab, kept in (("conv1", 60), ("conv2", 90)):
                        pruned, regrown = generator.integers(0, 20, 2)
                        row = keys(method, budget) | {"seed": seed, "step": step, "slab": slab}
                        rows.append(row | {"connections": kept, "pruned": pruned, "regrown": regrown})
    return pd.DataFrame(rows, columns=[*keys("sp_in", ""), "seed", "step", "slab", "connections", "pruned", "regrown"])


def draw_churn(table, methods=METHODS):
    return churn.draw(summary_of(refreshes=table, cells=cells_of(methods)), TASK)


@pytest.mark.parametrize(("methods", "budgets"), COUNTS)
def test_churn_can_be_read(methods, budgets):
    figure, _ = draw_churn(refresh_rows(METHODS[:methods], BUDGETS[:budgets]), METHODS[:methods])
    note(figure, "incomplete: 3 failed, 2 missing of 120 runs")
    assert illegible(figure) == []


def test_churn_of_as_many_methods_as_the_study_controls_can_be_read():
    many = [f"law{number}" for number in range(18)]
    figure, _ = draw_churn(refresh_rows(many, BUDGETS[:2]), many)
    assert illegible(figure) == []


@pytest.mark.parametrize("draw", ["claims", "contrasts", "coverage"])
def test_other_figures_of_as_many_methods_can_be_read(draw):
    many = ["sp_in", *(f"law{number}" for number in range(17))]
    figure, _ = {
        "claims": lambda: draw_claims(claim_rows(many, BUDGETS[:2]), many),
        "contrasts": lambda: draw_contrasts(contrast_rows(many, BUDGETS[:2]), many),
        "coverage": lambda: draw_coverage(grid_rows(many, BUDGETS[:2])),
    }[draw]()
    assert illegible(figure) == []


def test_churn_is_what_a_refresh_changes_of_the_connections_before_and_after():
    row = keys("sp_in", "0.20") | {"seed": 0, "step": 10}
    slabs = [{"connections": 80, "pruned": 30, "regrown": 10}, {"connections": 20, "pruned": 0, "regrown": 0}]
    found = churn.churn_table(pd.DataFrame([row | slab for slab in slabs]))
    # Before: 80 + 30 - 10 and 20; after: 80 and 20; changed: 40.
    assert found["churn"].tolist() == [pytest.approx(40 / (120 + 100))]


def test_each_seed_is_a_line_at_its_budget():
    table = refresh_rows(METHODS[:3], ["0.50", "0.20"])
    figure, shown = draw_churn(table, METHODS[:3])
    colours = method_colours(["dense", *METHODS[:3]])
    assert [axis.get_title() for axis in figure.axes] == ["budget 0.20", "budget 0.50"]
    drawn = 0
    for axis in figure.axes:
        of_budget = shown[shown["budget"] == axis.get_title().removeprefix("budget ")]
        runs = of_budget.groupby(["method", "seed"], sort=False)
        assert len(axis.get_lines()) == runs.ngroups == 6
        for line, ((method, _), run) in zip(axis.get_lines(), runs, strict=True):
            assert line.get_xydata().tolist() == run[["step", "churn"]].to_numpy().tolist()
            assert same_color(line.get_color(), colours[method])
            assert line.get_linestyle() == LINES[side(method)]
            drawn += len(run)
        assert axis.get_xlabel() == "step of the sparse phase"
        assert axis.get_ylim()[0] == 0
    assert drawn == len(shown) == 3 * 2 * 2 * 6
    assert figure.axes[0].get_ylabel() == "connections changed by a refresh\n(share of those before and after)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [label(method) for method in METHODS[:3]]


def test_without_refreshes_churn_says_so():
    figure, shown = draw_churn(refresh_rows([], []))
    assert figure.axes[0].get_title() == "no method refreshes masks"
    assert len(shown) == 0
    assert illegible(figure) == []


# Weights.


def weight_rows(methods, budgets, layers=18, seeds=2) -> pd.DataFrame:
    """Latent weights of which a half is at 0 and the rest at -h in seed 0, at h in seed 1; binary ones elsewhere."""
    rows = []
    for method, budget, seed, layer in product(methods, budgets, range(seeds), range(layers)):
        row = keys(method, budget) | {"seed": seed, "layer": f"backbone.layer{layer}.conv1", "weights": 10}
        counts = dict.fromkeys(BINS, 0) | {"bin_+0.0": 5, "bin_+1.0" if seed else "bin_-1.0": 5}
        rows.append(row | {"kind": "latent"} | counts)
        rows.append(row | {"kind": "binary"} | dict.fromkeys(BINS, 0) | {"bin_+1.0": 10})
    return pd.DataFrame(rows, columns=[*keys("sp_in", ""), "seed", "layer", "weights", "kind", *BINS])


@pytest.mark.parametrize(
    ("methods", "budgets", "layers"), [(["m" * 64], 1, 1), (METHODS[:3], 2, 18), (["m" * 64, "n" * 64], 2, 54)]
)
def test_weights_can_be_read(methods, budgets, layers):
    figure, _ = weights.draw(summary_of(weights=weight_rows(methods, BUDGETS[:budgets], layers)), TASK)
    note(figure, "incomplete: 3 failed, 2 missing of 120 runs")
    assert illegible(figure) == []


def test_each_layer_shows_the_shares_of_its_latent_weights_over_all_seeds():
    figure, shown = weights.draw(summary_of(weights=weight_rows(["magnitude"], ["0.20", "0.50"], 2)), TASK)
    axes = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in axes] == ["magnitude (in), budget 0.20", "magnitude (in), budget 0.50"]
    for axis in axes:
        names = [text.get_text() for text in tick_labels(axis.yaxis)]
        assert names == ["backbone.layer0.conv1", "backbone.layer1.conv1"]
        (mesh,) = axis.collections
        shares = mesh.get_array().reshape(2, len(BINS))
        found = {name: share for name, share in zip(BINS, shares[0], strict=True) if share}
        assert found == {"bin_-1.0": 0.25, "bin_+0.0": 0.5, "bin_+1.0": 0.25}
    assert len(shown) == 4


def test_without_weights_the_figure_says_so():
    figure, shown = weights.draw(summary_of(weights=weight_rows([], [])), TASK)
    assert figure.axes[0].get_title() == "no run has binary weights"
    assert len(shown) == 0


# Coverage.


def grid_rows(methods, budgets, seeds=3, tasks=("change",), status=lambda row: "done") -> pd.DataFrame:
    rows = []
    for task in tasks:
        for method in ["dense", *methods]:
            for budget in ["1.00"] if method == "dense" else budgets:
                for seed in range(seeds):
                    row = keys(method, budget) | {"task": task, "seed": seed}
                    rows.append(row | {"status": status(row), "why": ""})
    return pd.DataFrame(rows)


def spoilt(row) -> str:
    return ("done", "failed", "stale")[row["seed"]] if row["method"] != "dense" else "done"


def draw_coverage(grid):
    return coverage.draw(summary_of(grid=grid), None)


@pytest.mark.parametrize("tasks", [("change",), ("asr", "change", "face")])
@pytest.mark.parametrize(("methods", "budgets"), COUNTS)
def test_coverage_can_be_read(methods, budgets, tasks):
    figure, _ = draw_coverage(grid_rows(METHODS[:methods], BUDGETS[:budgets], tasks=tasks))
    note(figure, "incomplete: 3 failed, 2 missing of 120 runs")
    assert illegible(figure) == []


@pytest.mark.parametrize("budgets", [2, 3, 4])
def test_coverage_can_be_read_where_runs_failed(budgets):
    figure, _ = draw_coverage(grid_rows(METHODS[:4], BUDGETS[:budgets], status=spoilt))
    note(figure, "incomplete: 8 failed, 8 stale of 30 runs")
    assert illegible(figure) == []


def test_each_cell_says_how_many_runs_are_done():
    def status(row):
        if (row["method"], row["budget"]) == ("sp_in", "0.20"):
            return spoilt(row)
        return "missing" if row["method"] == "rigl" else "done"

    figure, shown = draw_coverage(grid_rows(["sp_in", "rigl"], ["0.50", "0.20"], status=status))
    (axis,) = figure.axes
    rows = [text.get_text() for text in tick_labels(axis.yaxis)]
    budgets = [text.get_text() for text in tick_labels(axis.xaxis)]
    assert rows == ["change small: dense", "change small: sp_in", "change small: rigl"]
    assert budgets == ["0.20", "0.50", "1.00"]
    texts = {text.xy: text.get_text() for text in axis.texts}
    assert texts == {(2, 0): "3/3", (0, 1): "1/3, 1 failed, 1 stale", (1, 1): "3/3", (0, 2): "0/3", (1, 2): "0/3"}
    shades = axis.get_images()[0].get_array().filled(np.nan)
    nan = np.nan
    assert np.array_equal(shades, [[nan, nan, 2], [1, 2, nan], [0, 0, nan]], equal_nan=True)
    assert shown[["method", "budget", "asked", "done", "failed", "stale", "missing"]].to_numpy().tolist() == [
        ["dense", "1.00", 3, 3, 0, 0, 0],
        ["sp_in", "0.50", 3, 3, 0, 0, 0],
        ["sp_in", "0.20", 3, 1, 1, 1, 0],
        ["rigl", "0.50", 3, 0, 0, 0, 3],
        ["rigl", "0.20", 3, 0, 0, 0, 3],
    ]


def test_coverage_of_a_single_run_does_not_raise():
    figure, _ = draw_coverage(grid_rows([], [], seeds=1))
    assert [text.get_text() for text in figure.axes[0].texts] == ["1/1"]
    assert illegible(figure) == []


# Shared.


def test_methods_stand_beside_each_other_in_equal_steps_around_the_middle():
    for count in range(1, 9):
        places = side_by_side(count)
        assert places.mean() == pytest.approx(0)
        steps = {round(after - before, 9) for before, after in pairwise(places)}
        assert len(steps) <= 1
        assert abs(places).max() < 0.5


def test_colours_are_the_same_in_every_figure():
    """Whatever a figure shows, colours are those of all methods of the cells."""
    shown = METHODS[3:5]
    colours = method_colours(["dense", *METHODS])
    of_contrasts, _ = draw_contrasts(contrast_rows(shown, ["0.20"])[lambda table: table["method"] != "sp_in"])
    of_claims, _ = draw_claims(claim_rows(shown, ["0.20"]))
    of_churn, _ = draw_churn(refresh_rows(shown, ["0.20"], seeds=1))
    for figure in (of_contrasts, of_claims):
        lines = points(figure.axes[0], *MARKERS.values())
        assert [line.get_color() for line in lines] == [colours[method] for method in shown]
    assert [line.get_color() for line in of_churn.axes[0].get_lines()] == [colours[method] for method in shown]
