"""What is out of tolerance between two summaries, against numbers worked by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bbnet.analysis import statistics
from bbnet.analysis.collect import KEYS
from bbnet.analysis.differences import (
    CELL_KEYS,
    COLUMNS,
    NOT_COMPARABLE,
    OK,
    OUT,
    Summary,
    by_metric,
    compare,
    not_ok,
    pooled_sigmas,
)

METHODS = {"dense": ("none", "1.00"), "sp_in": ("in", "0.20"), "rigl": ("in", "0.20")}
COSTS = {"density": 0.2, "net_density": 0.25, "flops": 1e6}
# By cell, the values of the seeds of one score: sd 0.01 * sqrt(2), 0.03 * sqrt(2) and 0.02 * sqrt(2).
SCORES = {"dense": [0.79, 0.81], "sp_in": [0.57, 0.63], "rigl": [0.48, 0.52]}
SIGMA = np.sqrt(2 * (0.01**2 + 0.03**2 + 0.02**2) / 3)


def summary(name: str, scores=SCORES, metric: str = "f1", costs=COSTS) -> Summary:
    """Of task change, model tiny, with one score whose values are given by method and seed."""
    grid, runs, cells = [], [], []
    for method, values in scores.items():
        side, budget = METHODS[method]
        cell = dict(zip(CELL_KEYS, ("change", "tiny", method, side, budget), strict=True))
        for seed in range(len(values)):
            grid.append(cell | {"seed": seed, "status": "done"})
            runs += [cell | {"seed": seed, "metric": cost, "value": value} for cost, value in costs.items()]
        for kind, unit, of_seeds in [(metric, "share", values), *((cost, "", 0 * np.array(values)) for cost in costs)]:
            sd = np.std(of_seeds, ddof=1) if len(of_seeds) > 1 else np.nan
            row = {"metric": kind, "unit": unit, "mean": np.mean(of_seeds), "sd": sd, "n_seeds": len(of_seeds)}
            cells.append(cell | row)
    return Summary(name, pd.DataFrame(grid), pd.DataFrame(runs), pd.DataFrame(cells))


@pytest.fixture
def reference() -> Summary:
    return summary("reference")


def score_row(new: Summary, reference: Summary, method: str = "sp_in", limit: float = 3.0) -> pd.Series:
    rows = compare(new, reference, limit)
    scores = rows[(rows["metric"] == "f1") & ~rows["why"].str.startswith("n_seeds")]
    (row,) = scores[scores["cell"].str.contains(f"/{method}/")].itertuples()
    return row


def moved(by: float, method: str = "sp_in") -> Summary:
    return summary("new", SCORES | {method: [value + by for value in SCORES[method]]})


def test_cells_are_those_of_the_statistics():
    assert CELL_KEYS == statistics.CELL_KEYS == [key for key in KEYS if key != "seed"]


def test_a_summary_is_within_tolerance_of_itself(reference):
    rows = compare(summary("new"), reference, 3)
    assert list(rows.columns) == COLUMNS
    assert set(rows["verdict"]) == {OK}
    assert not len(not_ok(rows))
    # runs and f1 of 3 cells, 3 costs of 6 runs
    assert len(rows) == 3 + 3 + 3 * 6


# Sigma.


def test_sigma_is_the_root_of_the_mean_square_over_cells(reference):
    assert pooled_sigmas(reference.cells)["change", "f1"] == pytest.approx(SIGMA)


def test_a_cell_weighs_by_its_degrees_of_freedom():
    # sd of (1, 2, 3, 4, 5) is sqrt(2.5), of 4 degrees; sd of (0, 2) is sqrt(2), of 1; one seed has none.
    cells = summary("any", {"dense": [1, 2, 3, 4, 5], "sp_in": [0, 2], "rigl": [9]}).cells
    assert pooled_sigmas(cells)["change", "f1"] == pytest.approx(np.sqrt((4 * 2.5 + 1 * 2) / 5))


def test_sigma_is_unknown_where_every_cell_has_one_seed():
    assert np.isnan(pooled_sigmas(summary("any", {"dense": [1.0], "sp_in": [2.0]}).cells)["change", "f1"])


# Scores.


@pytest.mark.parametrize(("sigmas", "verdict"), [(2.9, OK), (3.1, OUT), (-2.9, OK), (-3.1, OUT)])
def test_a_cell_may_move_by_three_sigmas(reference, sigmas, verdict):
    # Two seeds each: the sd of a difference is sigma * sqrt(1 / 2 + 1 / 2), sigma itself.
    row = score_row(moved(sigmas * SIGMA), reference)
    assert row.verdict == verdict
    assert row.sigmas == pytest.approx(abs(sigmas))
    assert row.difference == pytest.approx(sigmas * SIGMA)
    assert row.why == ("" if verdict == OK else f"{0.6 + row.difference:.6g} in new, 0.6 in reference: 3.10 sigmas")


@pytest.mark.parametrize(("limit", "verdict"), [(1.9, OUT), (2.1, OK)])
def test_the_limit_is_ones_own(reference, limit, verdict):
    assert score_row(moved(2 * SIGMA), reference, limit=limit).verdict == verdict


def test_more_seeds_allow_less(reference):
    # Eight seeds beside two: sigma * sqrt(1 / 8 + 1 / 2).
    row = score_row(summary("new", SCORES | {"sp_in": [0.7] * 8}), reference)
    assert row.sigmas == pytest.approx(0.1 / (SIGMA * np.sqrt(1 / 8 + 1 / 2)))


def test_sigma_is_that_of_the_reference():
    wide, narrow = (summary(name, {"dense": [0.5 - by, 0.5 + by]}) for name, by in (("wide", 0.1), ("narrow", 0.001)))
    shifted = replace(narrow, cells=narrow.cells.assign(mean=narrow.cells["mean"] + 0.05))
    assert score_row(shifted, wide, "dense").verdict == OK
    assert score_row(wide, shifted, "dense").verdict == OUT


def test_a_cell_of_one_seed_takes_the_sigma_of_the_others():
    scores = SCORES | {"sp_in": [0.6]}
    sigma = np.sqrt(2 * (0.01**2 + 0.02**2) / 2)
    row = score_row(summary("new", scores | {"sp_in": [0.61]}), summary("reference", scores))
    assert row.sigmas == pytest.approx(0.01 / (sigma * np.sqrt(2)))
    assert row.verdict == OK


def test_where_seeds_agree_means_must_be_equal_up_to_rounding():
    reference = summary("reference", {"dense": [0.3, 0.3], "sp_in": [0.5, 0.5]})
    rounded = summary("new", {"dense": [0.1 + 0.2, 0.1 + 0.2], "sp_in": [0.5, 0.5]})
    assert score_row(rounded, reference, "dense").verdict == OK
    row = score_row(summary("new", {"dense": [0.3001, 0.3001], "sp_in": [0.5, 0.5]}), reference, "dense")
    assert (row.verdict, row.tolerance) == (OUT, "equal, sigma is 0")
    assert row.why == "0.3001 in new, 0.3 in reference; sigma is 0"


def test_studies_of_one_seed_are_equal_or_not_comparable():
    reference = summary("reference", {"dense": [0.3], "sp_in": [0.5]})
    assert score_row(summary("new", {"dense": [0.3], "sp_in": [0.5]}), reference).verdict == OK
    row = score_row(summary("new", {"dense": [0.3], "sp_in": [0.6]}), reference)
    assert (row.verdict, row.tolerance) == (NOT_COMPARABLE, "equal, sigma unknown")
    assert "sigma is unknown" in row.why


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"), [(np.nan, 0.6, OUT), (0.6, np.nan, OUT), (np.nan, np.nan, NOT_COMPARABLE)]
)
def test_a_score_that_is_no_number_does_not_pass(mine, theirs, verdict):
    new, reference = (
        summary(name, SCORES | {"sp_in": [value, value]}) for name, value in (("new", mine), ("reference", theirs))
    )
    row = score_row(new, reference)
    assert row.verdict == verdict
    assert row.why == f"{mine:.6g} in new, {theirs:.6g} in reference"


def test_another_unit_is_out(reference):
    new = summary("new")
    row = score_row(replace(new, cells=new.cells.replace({"unit": {"share": "%"}})), reference)
    assert (row.verdict, row.why) == (OUT, "unit % in new, share in reference")


def test_sigmas_are_of_a_task_and_a_metric(reference):
    other = summary("reference", {"dense": [0.0, 100.0]}, metric="wer")
    both = replace(reference, cells=pd.concat([reference.cells, other.cells[other.cells["metric"] == "wer"]]))
    assert pooled_sigmas(both.cells)["change", "f1"] == pytest.approx(SIGMA)


# What must be equal.


def test_a_lost_cell_is_named_whole(reference):
    new = summary("new", {method: values for method, values in SCORES.items() if method != "rigl"})
    (found,) = not_ok(compare(new, reference, 3)).itertuples()
    assert (found.cell, found.verdict, found.why) == ("tiny/rigl/in/0.20", OUT, "only in reference")
    assert (found.metrics, found.seeds) == ("all 4 metrics", "0 1")
    assert not_ok(compare(reference, new, 3))["why"].unique() == ["only in reference"]


def test_an_extra_metric_is_named(reference):
    extra = summary("new", metric="iou").cells
    new = summary("new")
    new = replace(new, cells=pd.concat([new.cells, extra[extra["metric"] == "iou"]]))
    found = not_ok(compare(new, reference, 3))
    assert set(found["metrics"]) == {"iou"}
    assert set(found["why"]) == {"only in new"}
    assert len(found) == 3


def test_a_lost_seed_is_out_in_the_runs_and_in_every_metric(reference):
    found = not_ok(compare(summary("new", SCORES | {"sp_in": [0.6]}), reference, 3)).set_index("why")
    assert set(found["cell"]) == {"tiny/sp_in/in/0.20"}
    assert found["metrics"].to_dict() == {
        "0 done in new, 0 1 done in reference": "runs",
        "only in reference": "density, net_density, flops",
        "n_seeds 1 in new, 2 in reference": "all 4 metrics",
    }
    assert found.loc["only in reference", "seeds"] == "1"


def test_a_failed_run_is_out(reference):
    grid = reference.grid.copy()
    grid.loc[3, "status"] = "failed"
    (found,) = not_ok(compare(replace(reference, name="new", grid=grid), reference, 3)).itertuples()
    assert (found.metrics, found.why) == ("runs", "0 done, 1 failed in new, 0 1 done in reference")
    assert not len(not_ok(compare(replace(reference, grid=grid), replace(reference, grid=grid), 3)))


@pytest.mark.parametrize("metric", COSTS)
def test_costs_are_exact(reference, metric):
    value = np.nextafter(COSTS[metric], 2 * COSTS[metric])
    (*found,) = not_ok(compare(summary("new", costs=COSTS | {metric: value}), reference, 3)).itertuples()
    assert [(row.metrics, row.seeds) for row in found] == [(metric, "0 1")] * 3
    assert str(value) in found[0].why


def test_a_cost_that_is_no_number_does_not_pass(reference):
    nothing = summary("new", costs=COSTS | {"flops": np.nan})
    assert set(not_ok(compare(nothing, reference, 3))["verdict"]) == {OUT}
    assert set(not_ok(compare(nothing, nothing, 3))["verdict"]) == {NOT_COMPARABLE}


def test_lost_costs_are_named(reference):
    new = summary("new")
    runs = new.runs[:0]
    found = not_ok(compare(replace(new, runs=runs), reference, 3))
    assert [(row.metrics, row.seeds, row.why) for row in found.itertuples()] == [
        ("density, net_density, flops", "0 1", "only in reference")
    ] * 3
    assert not len(not_ok(compare(replace(new, runs=runs), replace(reference, runs=runs), 3)))


def test_the_order_of_rows_does_not_matter(reference):
    tables = {name: getattr(reference, name).sample(frac=1, random_state=0) for name in ("grid", "runs", "cells")}
    assert not len(not_ok(compare(Summary("new", **tables), reference, 3)))


# By metric.


def test_a_metric_shows_its_largest_deviation(reference):
    new = summary("new", SCORES | {"sp_in": [0.58, 0.64], "rigl": [0.36, 0.40]})
    table = by_metric(compare(new, reference, 3)).set_index("metric")
    row = table.loc["f1"]
    assert (row["cells"], row["where"], row["verdict"], row["unit"]) == (3, "tiny/rigl/in/0.20", "1 out", "share")
    assert row["sigmas"] == pytest.approx(0.12 / SIGMA)
    assert row["difference"] == pytest.approx(-0.12)
    assert row["tolerance"] == f"3 x {SIGMA:.3g}"
    assert table.loc["flops", ["cells", "tolerance", "where", "verdict"]].tolist() == [3, "exact", "", OK]
    assert table.loc["runs", ["cells", "verdict"]].tolist() == [3, OK]


def test_a_metric_counts_cells_compared_and_cells_out(reference):
    new = summary("new", {"dense": SCORES["dense"], "sp_in": [0.6]}, costs=COSTS | {"flops": 3.0})
    table = by_metric(compare(new, reference, 3)).set_index("metric")
    assert table.loc["f1", ["cells", "verdict"]].tolist() == [2, "2 out"]
    assert table.loc["flops", ["cells", "verdict", "difference"]].tolist() == [2, "3 out", 3.0 - 1e6]
