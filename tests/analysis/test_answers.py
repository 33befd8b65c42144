"""The numbers of docs/findings.md: rows of contrasts as they are, other measures by the paired t-test of scipy."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from bbnet.analysis import answers
from bbnet.analysis.power import components_of, detectable_difference
from bbnet.analysis.summary import Summary
from tests.analysis.test_sensitivity import CONTRASTS, OF_MODELS, STUDY

CELL = {"task": "change", "model": "net", "side": "in", "metric": "f1", "unit": "share"}


def contrast(method, reference, effect, verdict, budget="0.10", **changed) -> dict:
    row = CELL | {"method": method, "reference": reference, "reference_side": "in", "budget": budget, "effect": effect}
    row |= {"low": effect - 0.1, "high": effect + 0.2, "n_seeds": 3, "p": 0.01, "p_holm": 0.03, "verdict": verdict}
    row |= {"differences": f"{effect - 0.1} {effect} {effect + 0.1}", "n_items": 50, "item_variance": 1e-4}
    return row | {"interaction_variance": 1e-5} | changed


@pytest.fixture
def summary(tmp_path):
    rows = [
        contrast("ours", "dense", -0.3, "worse", item_variance=4e-4),
        contrast("ours", "rival", 0.25, "better"),
        contrast("variant", "ours", 0.5, "better"),
        contrast("variant", "ours", 0.5, "better", budget="0.25"),
        contrast("ours", "other", -0.125, "none", task="face"),
    ]
    of_models = [
        contrast("dense", "dense", -0.5, "worse", model="small", reference_model="net"),
        contrast("ours", "dense", 0.375, "better", reference_model="small"),
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "contrasts.csv", index=False)
    pd.DataFrame(of_models).to_csv(tmp_path / "model_contrasts.csv", index=False)
    return Summary(tmp_path)


def test_contrasts_are_shown_as_they_are_and_turned_round_where_the_pair_is(summary):
    found = answers.between_methods(summary, [("ours", "variant"), ("ours", "rival"), ("ours", "absent")])
    assert found[["method", "reference", "budget"]].to_numpy().tolist() == [
        ["ours", "variant", "0.10"],
        ["ours", "variant", "0.25"],
        ["ours", "rival", "0.10"],
    ]
    assert found["effect"].tolist() == [-0.5, -0.5, 0.25]
    assert found["low"].tolist() == pytest.approx([-0.7, -0.7, 0.15])
    assert found["high"].tolist() == pytest.approx([-0.4, -0.4, 0.45])
    assert found["verdict"].tolist() == ["worse", "worse", "better"]
    assert set(found["source"]) == {"contrasts.csv"}


def test_what_could_have_been_seen_counts_all_contrasts_of_the_task_and_takes_the_variances_of_the_table(summary):
    found = answers.between_methods(summary, [("ours", "dense"), ("ours", "other")])
    contrasts = summary.read("contrasts")
    for row, family in zip(found.itertuples(), (4 + 2, 1), strict=True):
        shown = contrasts[(contrasts["task"] == row.task) & contrasts["reference"].isin(["dense", "other"])]
        assert row.detectable == detectable_difference(components_of(shown), 3, family)


def test_a_pruned_network_beside_a_small_dense_one_is_shown_by_the_name_of_the_model(summary):
    (row,) = answers.at_equal_cost(summary).itertuples()
    assert (row.method, row.reference, row.effect, row.source) == ("ours", "small", 0.375, "model_contrasts.csv")


def test_networks_are_named_with_their_model_where_models_are_compared(summary):
    between, within = answers.between_models(summary), answers.within_models(summary)
    assert between[["method", "reference", "effect"]].to_numpy().tolist() == [["small", "net", -0.5]]
    assert within["method"].tolist() == ["net, ours", "net, ours", "net, variant", "net, variant", "net, ours"]
    assert within["reference"].tolist() == ["net", "net, rival", "net, ours", "net, ours", "net, other"]
    assert within["effect"].tolist() == summary.read("contrasts")["effect"].tolist()


@pytest.mark.parametrize("models", [("net",), ("net", "small")])
def test_scores_are_those_of_the_cells_and_name_the_model_if_there_are_several(tmp_path, models):
    cells = [
        {"task": "change", "model": model, "method": method, "budget": "0.10", "metric": metric, "mean": mean}
        | {"low": mean - 1, "high": mean + 1, "n_seeds": 3}
        for model in models
        for method in ("dense", "ours")
        for metric, mean in (("f1", 0.5), ("iou", 0.25), ("recall", 0.75), ("auc", np.nan))
    ]
    pd.DataFrame(cells).to_csv(tmp_path / "cells.csv", index=False)
    found = answers.scores(Summary(tmp_path), ["f1", "iou", "auc"])
    several = ["net", "net, ours", "small", "small, ours"]
    assert found["method"].drop_duplicates().tolist() == (several if len(models) > 1 else ["dense", "ours"])
    assert found[["effect", "low", "high"]].drop_duplicates().to_numpy().tolist() == [
        [0.5, -0.5, 1.5],
        [0.25, -0.75, 1.25],
    ]


def test_each_value_of_a_factor_is_compared_with_the_default_and_with_rivals_of_the_same_value(tmp_path):
    variances = {"n_items": 50, "item_variance": 1e-4, "interaction_variance": 1e-5}
    for name, rows in (("contrasts", CONTRASTS), ("model_contrasts", OF_MODELS)):
        rows.assign(**variances).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    default, rivals = answers.of_factors(Summary(tmp_path))
    assert default[["method", "reference", "effect"]].to_numpy().tolist() == [
        ["every 3", "default", 10],
        ["gain 0.03", "default", 3],
        ["gain 0.3", "default", 5],
        ["rescale sqrt", "default", 6],
        ["warm_up_epochs 1", "default", 11],
    ]
    assert default["source"].tolist() == 4 * ["contrasts.csv"] + ["model_contrasts.csv"]
    assert set(rivals["source"]) == {"contrasts.csv"}
    against = {(row.method, row.reference): row.effect for row in rivals.itertuples()}
    assert against["gain 0.03", "magnitude"] == 4
    assert against["rescale sqrt", "magnitude"] == 7
    assert against["default", "magnitude"] == 2 and ("gain 0.1", "magnitude") not in against
    assert len(against) == len(rivals)
    assert against["warm_up_epochs 1", "magnitude"] == 9


@pytest.fixture
def values():
    """Scores of two methods at two budgets in two tasks, and of dense, at four seeds of which one method lacks one."""
    generator = np.random.default_rng(0)
    cells = [
        ("dense", "1.00", (0, 1, 2, 3)),
        *(("ours", budget, (0, 1, 2, 3)) for budget in ("0.10", "0.25")),
        *(("rival", budget, (3, 1, 0)) for budget in ("0.10", "0.25")),
    ]
    return pd.DataFrame(
        {"task": task, "metric": "rank", "method": method, "budget": budget, "seed": seed, "value": generator.normal()}
        for task in ("asr", "face")
        for method, budget, seeds in cells
        for seed in seeds
    )


def test_other_measures_are_paired_by_seed_and_adjusted_within_the_task(values):
    found = answers.paired(values, [("ours", "dense"), ("ours", "rival")], "runs.csv")
    assert len(found) == 2 * 2 * 2
    p = {task: [] for task in ("asr", "face")}
    for row in found.itertuples():
        own, other = (
            values[(values["task"] == row.task) & (values["method"] == name) & (values["budget"] == budget)]
            .set_index("seed")["value"]
            .sort_index()
            for name, budget in (
                (row.method, row.budget),
                (row.reference, "1.00" if row.reference == "dense" else row.budget),
            )
        )
        seeds = own.index.intersection(other.index)
        expected = stats.ttest_rel(own[seeds], other[seeds])
        assert row.n_seeds == len(seeds) == (4 if row.reference == "dense" else 3)
        assert row.effect == pytest.approx((own[seeds] - other[seeds]).mean())
        assert (row.low, row.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
        p[row.task].append(expected.pvalue)
    for task, of_task in p.items():
        adjusted = multipletests(of_task, method="holm")[1]
        assert found[found["task"] == task]["p_holm"].tolist() == pytest.approx(adjusted.tolist())


def test_a_difference_that_all_seeds_agree_on_has_a_sign(values):
    shifted = values.assign(value=values["value"].where(values["method"] != "rival", 0.0))
    shifted["value"] = shifted["value"].where(shifted["method"] != "ours", 5 + 0.01 * shifted["seed"])
    found = answers.paired(shifted, [("ours", "rival"), ("rival", "ours")], "runs.csv")
    assert found["verdict"].tolist() == ["higher", "lower"] * 4
    assert (found["detectable"] < found["effect"].abs()).all()


def test_means_are_those_of_the_methods_with_their_intervals(values):
    found = answers.means(values, ["ours"], "runs.csv")
    for row in found.itertuples():
        cell = values[(values["task"] == row.task) & (values["method"] == "ours") & (values["budget"] == row.budget)]
        assert (row.low, row.high) == pytest.approx(
            stats.t.interval(0.95, 3, cell["value"].mean(), stats.sem(cell["value"]))
        )


def test_nothing_to_compare_is_an_empty_table(values, summary):
    assert list(answers.paired(values[:0], [("ours", "rival")], "runs.csv").columns) == answers.COLUMNS
    assert answers.means(values, ["absent"], "runs.csv").empty
    assert answers.between_methods(summary, [("absent", "ours")]).empty
