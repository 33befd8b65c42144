"""When two summaries can come from the same code, against numbers worked by hand and simulated studies."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bbnet.analysis.differences import (
    COLUMNS,
    COUNTS,
    NOT_COMPARABLE,
    OK,
    OUT,
    PRIOR_FREEDOM,
    Summary,
    by_metric,
    compare,
    moderate,
    not_ok,
    test_scores,
)
from bbnet.analysis.statistics import CELL_KEYS, holm

METHODS = {"dense": ("none", "1.00"), "sp_in": ("in", "0.20"), "rigl": ("in", "0.20")}
COSTS = {"density": 0.2, "net_density": 0.25, "flops": 1e6, "parameters": 1e3, "bytes": 4e3}
SCORES = {"dense": [0.79, 0.81], "sp_in": [0.57, 0.63], "rigl": [0.48, 0.52]}
STUDY = {"name": "any", "cpu_threads": 1, "methods": {"sp_in": {"gain": 0.1}}, "tasks": {"change": {"tile": 32}}}
PRIMARY = {"change": ("f1",)}
LEVEL = 0.05


def summary(name: str, scores=SCORES, metric: str = "f1", costs=COSTS, items=0.0004, interaction=0.0002) -> Summary:
    """Of task change, model tiny, with one score whose values are given by method and seed."""
    grid, runs, cells, counts, names = [], [], [], [], {}
    for method, values in scores.items():
        keys = ("change", "tiny", method, *METHODS[method])
        cell = dict(zip(CELL_KEYS, keys, strict=True))
        names[keys] = frozenset({("a",), ("b",)})
        for seed, value in enumerate(values):
            grid.append(cell | {"seed": seed, "status": "done"})
            counts.append(cell | {"seed": seed, "epochs": 3, "steps": 24, "refreshes": 5})
            both = costs | {metric: value}
            runs += [cell | {"seed": seed, "metric": each, "value": number} for each, number in both.items()]
        row = {"metric": metric, "unit": "share", "mean": np.mean(values), "n_seeds": len(values), "n_items": 60}
        cells.append(cell | row | {"item_variance": items, "interaction_variance": interaction})
    grid, runs, cells, counts = (pd.DataFrame(rows) for rows in (grid, runs, cells, counts))
    of_items = runs[runs["metric"] == metric]
    return Summary(name, STUDY, grid, runs, cells, counts, names, of_items, dict.fromkeys(names, 100))


@pytest.fixture
def reference() -> Summary:
    return summary("reference")


def moved(by: float, method: str = "sp_in", **others) -> Summary:
    return summary("new", SCORES | {method: [value + by for value in SCORES[method]]}, **others)


def compared(new: Summary, reference: Summary) -> pd.DataFrame:
    return compare(new, reference, PRIMARY, LEVEL)


def score_rows(new: Summary, reference: Summary) -> pd.DataFrame:
    rows = compared(new, reference)
    return rows[rows["metric"] == "f1"].set_index("cell")


def test_a_summary_agrees_with_itself(reference):
    rows = compared(summary("new"), reference)
    assert list(rows.columns) == COLUMNS
    assert set(rows["verdict"]) == {OK}
    assert set(rows["why"]) == {""}
    assert not len(not_ok(rows))
    # Runs, 5 costs and 3 counts of 6 runs; f1 of 3 cells and of their mean.
    assert len(rows) == 9 * 6 + 3 + 1


# The tests of scores.


def test_the_mean_difference_of_all_cells_is_tested_against_the_seeds():
    """A t test of two samples of seeds, on the means over cells."""
    generator = np.random.default_rng(0)
    new, reference = generator.normal(0, 1, (2, 4, 3))
    found = test_scores(new + 0.7, reference, np.zeros(4), np.zeros(4), 60).iloc[-1]
    expected = stats.ttest_ind(new.mean(0) + 0.7, reference.mean(0))
    assert found["difference"] == pytest.approx((new.mean(0) + 0.7 - reference.mean(0)).mean())
    assert found["p"] == pytest.approx(expected.pvalue, rel=1e-9)


def test_seeds_that_move_all_cells_alike_do_not_hide_a_cell_that_moved():
    """By hand. Residuals of two cells are opposite, so their variances are equal, and moderation changes none."""
    seeds = np.array([[0.0, 10.0]])
    own = np.array([[0.1, -0.1], [-0.1, 0.1]])
    new, reference = seeds + own + [[1.0], [0.0]], seeds - own
    found = test_scores(new, reference, np.zeros(2), np.zeros(2), 60)
    assert found["difference"].tolist() == pytest.approx([0.5, -0.5, 0.5])
    # Each cell: 4 squares of .01 with (1 + 1) / 2 degrees of freedom; of the difference to the mean of two, a half.
    error = np.sqrt(0.04 * (1 / 2 + 1 / 2) / 2)
    assert found["error"].tolist()[:2] == pytest.approx([error] * 2)
    assert found["p"].tolist()[:2] == pytest.approx([2 * stats.t.sf(0.5 / error, 1 + PRIOR_FREEDOM)] * 2)


def test_moderation_worked_by_hand():
    variances, freedom = moderate(np.array([1.0, 3.0, 8.0]), 2.0)
    assert freedom == PRIOR_FREEDOM + 2
    assert variances == pytest.approx([(PRIOR_FREEDOM * 4 + 2 * own) / freedom for own in (1, 3, 8)])


def test_scores_that_never_vary_over_seeds_have_the_variance_of_the_items(reference):
    constant = {method: [values[0]] * 2 for method, values in SCORES.items()}
    theirs = summary("reference", constant)
    near = {method: [values[0] + 0.01 * (method == "rigl")] * 2 for method, values in constant.items()}
    rows = score_rows(summary("new", near), theirs)
    assert set(rows["verdict"]) == {OK}
    assert (rows["error"] > 0).all()
    far = {method: [values[0] + 0.4 * (method == "rigl")] * 2 for method, values in constant.items()}
    assert score_rows(summary("new", far), theirs).loc["tiny/rigl/in/0.20", "verdict"] == OUT


@pytest.mark.parametrize(("by", "verdict"), [(0.02, OK), (-0.02, OK), (3.0, OUT), (-3.0, OUT)])
def test_a_cell_may_move_as_seeds_do(reference, by, verdict):
    row = score_rows(moved(by), reference).loc["tiny/sp_in/in/0.20"]
    assert row["verdict"] == verdict
    assert row["difference"] == pytest.approx(by * 2 / 3)
    if verdict == OUT:
        assert row["why"].startswith(f"{0.6 + by:.6g} in new, 0.6 in reference: off by {by * 2 / 3:+.3g} share")


def test_other_test_items_allow_more(reference):
    new = moved(3.0, items=4.0)
    assert score_rows(new, reference).loc["tiny/sp_in/in/0.20", "verdict"] == OUT
    others = replace(new, items={keys: frozenset({("c",)}) for keys in new.items})
    assert set(score_rows(others, reference)["verdict"]) == {OK}


def test_holm_covers_all_that_decides(reference):
    """The p of rows that decide are adjusted together; other rows keep theirs and are never out."""
    rows = compare(moved(0.03), reference, {"change": ()}, LEVEL).query("metric == 'f1'")
    assert not rows["decides"].any()
    adjusted = compare(moved(0.03), reference, PRIMARY, LEVEL).query("metric == 'f1'")
    assert adjusted["p"].tolist() == pytest.approx(holm(rows["p"].astype(float)).tolist())
    listed = compare(moved(3.0), reference, {"change": ()}, LEVEL)
    assert listed["p"].min() < LEVEL / 100
    assert set(listed["verdict"]) == {OK}


def test_studies_of_one_seed_are_equal_or_not_comparable():
    reference = summary("reference", {"dense": [0.3], "sp_in": [0.5]})
    assert set(score_rows(summary("new", {"dense": [0.3], "sp_in": [0.5]}), reference)["verdict"]) == {OK}
    rows = score_rows(summary("new", {"dense": [0.3], "sp_in": [0.6]}), reference)
    assert rows.loc["tiny/sp_in/in/0.20", "verdict"] == NOT_COMPARABLE
    assert "a variance over seeds needs two" in rows.loc["tiny/sp_in/in/0.20", "why"]


def study(generator: np.random.Generator, own: np.ndarray) -> np.ndarray:
    """Scores of 11 cells and 2 seeds, that share a seed's warm start."""
    cells = np.linspace(0, 3, 11)[:, None] + 2.5 * generator.normal(size=(1, 2))
    return cells + own[:, None] * generator.normal(size=(11, 2))


def share_out(pairs: int, own_of_groups: list[np.ndarray], shift: float = 0.0) -> float:
    """The share of simulated pairs of studies of the same code, with a group of tests per metric, that are out."""
    generator, out = np.random.default_rng(0), 0
    for _ in range(pairs):
        p = []
        for group, own in enumerate(own_of_groups):
            new, reference = study(generator, own), study(generator, own)
            new[0] += shift * (group == 0)
            p.append(test_scores(new, reference, np.zeros(11), np.zeros(11), 60)["p"])
        out += (holm(pd.concat(p, ignore_index=True)) < LEVEL).any()
    return out / pairs


EQUAL = np.ones(11)
ONE_VARIES_MORE = np.where(np.arange(11) == 3, 7**0.5, 1.0)


def test_few_equal_studies_are_out_and_most_of_those_that_moved():
    assert share_out(100, [EQUAL] * 4) <= 0.06
    assert share_out(100, [EQUAL] * 4, shift=10.0) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "most"), [([EQUAL] * 4, 0.02), ([ONE_VARIES_MORE, *[EQUAL] * 3], 0.07)])
def test_of_1000_pairs_of_equal_studies_few_are_out(groups, most):
    share = share_out(1000, groups)
    print(f"share of equal studies that are out: {share:.4f}")
    assert share <= most


# What must be equal.


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"methods": {"sp_in": {"gain": 0.2}}}, "methods.sp_in.gain: 0.2 in new, 0.1 in reference"),
        ({"methods": {}}, "methods.sp_in.gain: absent in new, 0.1 in reference"),
        ({"tasks": {"change": {"tile": 64}}}, "tasks.change.tile: 64 in new, 32 in reference"),
    ],
)
def test_another_setting_is_out(reference, setting, why):
    (row,) = not_ok(compared(replace(reference, name="new", study=STUDY | setting), reference)).itertuples()
    assert (row.metrics, row.verdict, row.why) == ("settings", OUT, why)
    assert row.task == ("change" if "tasks" in setting else "")


def test_the_name_and_the_number_of_threads_are_free(reference):
    other = replace(reference, name="new", study=STUDY | {"name": "other", "cpu_threads": 2, "description": "?"})
    assert not len(not_ok(compared(other, reference)))


def test_a_lost_cell_is_named_whole(reference):
    new = summary("new", {method: values for method, values in SCORES.items() if method != "rigl"})
    found = not_ok(compared(new, reference))
    assert set(found["cell"]) == {"tiny/rigl/in/0.20"}
    assert set(found["verdict"]) == {OUT}
    assert "only in reference" in set(found["why"])
    assert "done in reference" in " ".join(found["why"])
    assert set(not_ok(compared(reference, new))["verdict"]) == {OUT}


def test_a_lost_seed_is_out(reference):
    found = not_ok(compared(summary("new", SCORES | {"sp_in": [0.6]}), reference)).set_index("why")
    assert set(found["cell"]) == {"tiny/sp_in/in/0.20"}
    assert found.loc["missing in new, done in reference", ["metrics", "seeds"]].tolist() == ["runs", "1"]
    assert found.loc["n_seeds 1 in new, 2 in reference", "metrics"] == "f1"


def test_a_failed_run_is_out(reference):
    grid = reference.grid.copy()
    grid.loc[3, "status"] = "failed"
    (found,) = not_ok(compared(replace(reference, name="new", grid=grid), reference)).itertuples()
    assert (found.metrics, found.seeds, found.why) == ("runs", "1", "failed in new, done in reference")
    assert not len(not_ok(compared(replace(reference, grid=grid), replace(reference, grid=grid))))


@pytest.mark.parametrize("metric", COSTS)
def test_costs_are_exact(reference, metric):
    value = np.nextafter(COSTS[metric], 2 * COSTS[metric])
    rows = compared(summary("new", costs=COSTS | {metric: value}), reference)
    assert (rows.loc[rows["metric"] == metric, "difference"] == value - COSTS[metric]).all()
    found = not_ok(rows)
    assert [(row.metrics, row.seeds) for row in found.itertuples()] == [(metric, "0 1")] * 3
    assert str(value) in found["why"].iloc[0]


@pytest.mark.parametrize("count", COUNTS)
def test_counts_are_exact(reference, count):
    counts = reference.counts.assign(**{count: reference.counts[count] // 2})
    found = not_ok(compared(replace(reference, name="new", counts=counts), reference))
    assert [(row.metrics, row.seeds) for row in found.itertuples()] == [(count, "0 1")] * 3


@pytest.mark.parametrize(("mine", "theirs", "verdict"), [(np.nan, 0.6, OUT), (np.nan, np.nan, NOT_COMPARABLE)])
def test_a_cost_that_is_no_number_does_not_pass(mine, theirs, verdict):
    new, reference = (summary(name, costs=COSTS | {"flops": value}) for name, value in (("new", mine), ("ref", theirs)))
    assert set(not_ok(compared(new, reference))["verdict"]) == {verdict}


def test_a_score_that_is_no_number_in_one_is_out(reference):
    found = not_ok(compared(summary("new", SCORES | {"sp_in": [np.nan, np.nan]}), reference))
    assert set(found["verdict"]) == {OUT}


def test_another_unit_is_out(reference):
    new = summary("new")
    new = replace(new, cells=new.cells.replace({"unit": {"share": "%"}}))
    assert set(score_rows(new, reference)["why"]) == {"unit % in new, share in reference"}


def test_tables_that_contradict_each_other_are_out(reference):
    new = summary("new")
    edited = replace(new, cells=new.cells.assign(mean=new.cells["mean"] + 0.001))
    assert score_rows(edited, reference)["why"].str.contains("but that of its runs is").all()
    runs = new.runs.assign(value=new.runs["value"] + 0.001 * (new.runs["metric"] == "f1"))
    both = replace(edited, runs=runs)
    assert score_rows(both, reference)["why"].str.contains("but its items give").all()


def test_the_order_of_rows_does_not_matter(reference):
    tables = {name: getattr(reference, name).sample(frac=1, random_state=0) for name in ("grid", "runs", "cells")}
    assert not len(not_ok(compared(replace(reference, name="new", **tables), reference)))


# By metric.


def test_a_metric_shows_its_least_probable_deviation(reference):
    table = by_metric(compared(moved(3.0), reference)).set_index("metric")
    row = table.loc["f1"]
    assert (row["cells"], row["where"], row["unit"], row["decides"]) == (3, "tiny/sp_in/in/0.20", "share", True)
    assert row["difference"] == pytest.approx(2.0)
    assert row["p"] < LEVEL
    assert "out" in row["verdict"]
    assert table.loc["flops", ["cells", "where", "verdict"]].tolist() == [3, "", OK]
    assert set(table.index) == {"runs", *COSTS, *COUNTS, "f1"}
