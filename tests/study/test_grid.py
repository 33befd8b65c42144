"""The grid: dense once per seed, every other method at every budget and seed, in canonical folders."""

from collections import Counter
from pathlib import Path

import pytest

from bbnet.study import grid
from bbnet.study.config import ConfigError, Study, of_tasks, read_study


@pytest.fixture
def wide_study(base) -> Study:
    """Two models, three seeds, two budgets."""
    base["tasks"]["change"]["models"]["large"] = {"widths": [16, 32]}
    return Study(**base | {"seeds": [5, 3, 11]})


def test_dense_has_one_run_per_model_and_seed_at_budget_one(wide_study):
    dense = [run for run in grid.runs(wide_study) if run.method == "dense"]
    assert sorted((run.model, run.seed) for run in dense) == [
        (model, seed) for model in ("large", "small") for seed in (3, 5, 11)
    ]
    assert {(run.budget, run.side) for run in dense} == {("1.00", "none")}


def test_every_other_method_has_every_budget_and_seed_once(wide_study):
    found = Counter(
        (run.model, run.method, run.budget, run.seed) for run in grid.runs(wide_study) if run.method != "dense"
    )
    expected = {
        (model, method, budget, seed)
        for model in ("small", "large")
        for method in ("sp_in", "sp_out", "magnitude")
        for budget in ("0.20", "0.50")
        for seed in (5, 3, 11)
    }
    assert found == Counter(expected)


def test_the_side_is_that_of_the_method(wide_study):
    assert {(run.method, run.side) for run in grid.runs(wide_study)} == {
        ("dense", "none"),
        ("sp_in", "in"),
        ("sp_out", "out"),
        ("magnitude", "in"),
    }


def test_a_dense_network_is_one_run_even_where_budget_one_is_asked_for(study):
    runs = grid.runs(study("budgets", [1, 0.5]))
    assert len([run for run in runs if run.method == "dense"]) == 2
    assert {run.budget for run in runs if run.method == "sp_in"} == {"1.00", "0.50"}


def test_a_pattern_runs_at_the_budget_that_it_implies_alone(study):
    runs = grid.runs(study("methods.magnitude", {"algorithm": "magnitude", "pattern": "2:4"}))
    assert {run.budget for run in runs if run.method == "magnitude"} == {"0.50"}
    assert {run.budget for run in runs if run.method == "sp_in"} == {"0.20", "0.50"}


def test_folders_are_canonical_and_distinct(wide_study):
    folders = [run.folder for run in grid.runs(wide_study)]
    assert len(set(folders)) == len(folders) == 2 * 3 * (1 + 3 * 2)
    assert "change/small/sp_in/b0.20/s5" in folders
    assert "change/large/dense/b1.00/s11" in folders


def test_however_a_budget_is_written_its_folder_is_the_same(study):
    written = [study("budgets", [budget]) for budget in (0.2, "0.2", "0.20", "2e-1")]
    assert len({tuple(run.folder for run in grid.runs(each)) for each in written}) == 1


def test_only_the_methods_that_a_model_names_run_on_it(base):
    base["tasks"]["change"]["models"]["large"] = {"widths": [16, 32]}
    base["only"] = {"change": {"large": ["magnitude", "dense"]}}
    found = {
        model: list(dict.fromkeys(run.method for run in grid.runs(Study(**base)) if run.model == model))
        for model in ("small", "large")
    }
    assert found == {"small": ["dense", "sp_in", "sp_out", "magnitude"], "large": ["dense", "magnitude"]}
    assert grid.panel_runs(Study(**base), "change", "large") == []


def test_a_task_may_run_the_first_seeds_alone(base):
    study = Study(**base | {"seeds": [4, 0, 2], "first_seeds": {"change": 2}})
    assert {run.seed for run in grid.runs(study)} == {4, 0}


def test_a_study_can_be_restricted_to_some_of_its_tasks():
    demo = read_study("demo", Path(__file__).parents[2] / "studies")
    whole = grid.runs(demo)
    assert {run.task for run in whole} == {"asr", "change", "face"}
    assert grid.runs(of_tasks(demo, "face,asr")) == [run for run in whole if run.task != "change"]
    assert grid.runs(of_tasks(demo, "all")) == whole
    with pytest.raises(ConfigError, match="tasks: logic is not in the study, allowed: all, asr, change, face"):
        of_tasks(demo, "asr,logic")


def test_panels_show_budgeted_broadcast_at_every_budget_of_the_first_seed(wide_study):
    shown = grid.panel_runs(wide_study, "change", "large")
    assert sorted(run.folder for run in shown) == [
        f"change/large/{method}/b{budget}/s5" for method in ("sp_in", "sp_out") for budget in ("0.20", "0.50")
    ]


@pytest.mark.parametrize("seed", [5, 3, 11])
def test_the_dense_run_is_that_of_model_and_seed(wide_study, seed):
    assert grid.dense_run(wide_study, "change", "small", seed).folder == f"change/small/dense/b1.00/s{seed}"


def folders(study: Study) -> list[str]:
    return [run.folder.removeprefix("change/") for run in grid.diagnosed_runs(study)]


def test_diagnosed_are_the_first_seed_and_the_smallest_budget_and_dense_at_its_own(base):
    methods = base["methods"] | {"fixed": {"algorithm": "magnitude", "pattern": "4:8"}}
    assert folders(Study(**base | {"seeds": [5, 3], "budgets": [0.5, 0.2], "methods": methods})) == [
        *("small/dense/b1.00/s5", "small/sp_in/b0.20/s5", "small/sp_out/b0.20/s5", "small/magnitude/b0.20/s5"),
        "small/fixed/b0.50/s5",
    ]


def test_diagnosed_are_the_runs_that_the_study_names(base):
    asked = {"seeds": [3, 11], "budgets": [0.5], "methods": ["sp_in", "dense"]}
    base["tasks"]["change"]["models"]["large"] = {"widths": [16, 32]}
    found = folders(Study(**base | {"seeds": [5, 3, 11], "diagnostics": asked}))
    cells = ("dense/b1.00", "sp_in/b0.50")
    assert found == [f"{model}/{cell}/s{seed}" for model in ("small", "large") for cell in cells for seed in (3, 11)]
