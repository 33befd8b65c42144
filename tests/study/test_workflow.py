"""What the workflow makes of a study: which runs, figures, tables and panels, and what it tells the user."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bbnet.study.config import ConfigError
from bbnet.study.workflow import WHOLE_STUDY, Workflow, forget_trainings, open_workflow

CHANGE = ("change", "small")
DENSE, SP_IN = "change/small/dense/b1.00/s0", "change/small/sp_in/b0.50/s0"
SP_OUT, MAGNITUDE = "change/small/sp_out/b0.50/s0", "change/small/magnitude/b0.50/s0"
ALWAYS = ["balance", "churn", "learning_curves"]


@pytest.fixture
def workflow(base, tmp_path, monkeypatch):
    """Opens the base study with some knobs, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()
    Path("studies/case.yaml").write_text(yaml.safe_dump(base | {"seeds": [0], "budgets": [0.5]}))
    Path("config.yaml").write_text("study: case\ndevice: cpu\ndata_dir: data\n")
    return lambda **knobs: open_workflow({"study": "case", "device": "cpu"} | knobs)


@pytest.fixture
def with_done(workflow):
    """The same with `cells=done`, of which some runs are done."""

    def make(*done: str) -> Workflow:
        whole = workflow()
        for folder in done:
            run = Path(whole.results, "runs", folder)
            run.mkdir(parents=True)
            fingerprint = whole.recipes.run_fingerprint(whole.runs[folder])
            (run / "record.json").write_text(json.dumps({"fingerprint": fingerprint}))
            (run / "metrics.json").touch()
        return workflow(cells="done")

    return make


def test_a_whole_study_has_all_its_runs_figures_and_tables(workflow):
    found = workflow()
    assert sorted(found.taken) == sorted([DENSE, SP_IN, SP_OUT, MAGNITUDE])
    assert (found.models, found.tasks, found.results) == ([CHANGE], ["change"], "results/case")
    panels = ["panels-sp_in-b0.50", "panels-sp_out-b0.50"]
    assert found.figures == {
        WHOLE_STUDY: ["coverage"],
        CHANGE: ["headline", "pareto", "contrasts", "claims", *ALWAYS, *panels],
    }
    assert found.tables == {WHOLE_STUDY: ["methods"], CHANGE: ["results", "contrasts_table", "costs"]}
    assert found.shown_in_panels("change") == {"small": [DENSE, SP_IN, SP_OUT]}
    assert len(found.figure_files) == 3 * 10
    assert {"figures/coverage.pdf", "figures/change-small-pareto.png"} <= {*found.figure_files}
    assert "tables/change-small-results.tex" in found.table_files


@pytest.mark.parametrize(
    ("done", "figures"),
    [
        ([DENSE], ["headline", "pareto", *ALWAYS]),
        ([SP_IN, MAGNITUDE], ALWAYS),
        ([DENSE, MAGNITUDE], ["headline", "pareto", "contrasts", "claims", *ALWAYS]),
        ([DENSE, SP_IN], ["headline", "pareto", "contrasts", "claims", *ALWAYS, "panels-sp_in-b0.50"]),
    ],
)
def test_only_figures_that_the_runs_taken_allow_are_drawn(with_done, done, figures):
    found = with_done(*done)
    assert sorted(found.taken) == sorted(done)
    assert found.figures[CHANGE] == figures


def test_without_any_run_there_is_nothing_to_summarise(workflow):
    with pytest.raises(ConfigError, match="cells=done: no run of study case in results/case is done"):
        workflow(cells="done")


def test_the_reference_is_taken_whole_or_refused(workflow):
    with pytest.raises(ConfigError, match="no summary of study case in results/reference/case"):
        workflow(results_from="reference")
    ship(workflow().study)
    assert len(workflow(results_from="reference", cells="done").taken) == 4


def ship(study) -> Path:
    """The part of a summary that says what it was made of."""
    summary = Path("results/reference/case/summary")
    summary.mkdir(parents=True, exist_ok=True)
    (summary / "cells.csv").touch()
    tasks = {name: settings.model_dump(mode="json") for name, settings in study.task_settings().items()}
    (summary / "study.json").write_text(json.dumps(study.model_dump(mode="json") | {"name": "case", "tasks": tasks}))
    return summary / "study.json"


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("methods.set", {"algorithm": "set"}, "methods.set"),
        ("methods.magnitude", ..., "methods.magnitude"),
        ("methods.sp_in.law", "uniform", "methods.sp_in.law"),
        ("budgets", [0.5, 0.75], "budgets"),
        ("tasks.change.training.epochs", 5, "tasks.change.training.epochs"),
    ],
)
def test_a_reference_is_drawn_by_its_own_study_and_an_edit_since_is_named(workflow, with_key, key, value, named):
    before = workflow()
    ship(before.study)
    same = workflow(results_from="reference")
    assert (same.study, same.remark) == (before.study, "")
    edited = with_key(key, value)
    edited = edited | {"seeds": [0]} | ({} if key == "budgets" else {"budgets": [0.5]})
    Path("studies/case.yaml").write_text(yaml.safe_dump(edited))
    found = workflow(results_from="reference")
    assert (found.study, found.figures, found.tables) == (before.study, before.figures, before.tables)
    assert f"studies/case.yaml was edited since results/reference/case/summary was made, in {named}: " in found.remark
    assert found.remark.splitlines() == [found.remark]


@pytest.mark.parametrize("content", [None, "seeds: [0", "seeds: [-1]", b"caf\xe9: 1"])
def test_a_reference_needs_no_study_file_and_says_what_is_wrong_with_it(workflow, content):
    ship(workflow().study)
    file = Path("studies/case.yaml")
    file.unlink() if content is None else file.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = workflow(results_from="reference")
    assert len(found.taken) == 4
    assert "studies/case.yaml" in found.remark
    assert "results/reference/case/summary/study.json" in found.remark


@pytest.mark.parametrize(
    ("content", "said"), [("{", "cannot be read"), ("[]", "cannot be read"), ('{"seeds": [0]}', "methods: is missing")]
)
def test_a_reference_whose_own_study_is_not_valid_is_refused(workflow, content, said):
    path = ship(workflow().study)
    path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        workflow(results_from="reference")
    assert str(refused.value).startswith(f"{path}: ")
    assert said in str(refused.value)


def test_outdated_figures_and_tables_are_removed(with_done):
    found = with_done(DENSE)
    kept, outdated = Path(found.results, "figures/coverage.png"), Path(found.results, "figures/change-small-claims.png")
    kept.parent.mkdir(parents=True)
    for path in (kept, outdated):
        path.touch()
    found.remove_outdated()
    assert (kept.exists(), outdated.exists()) == (True, False)


def test_a_training_that_is_forgotten_has_nothing_to_resume_from_and_others_keep_theirs(workflow):
    found = workflow()
    forgotten, kept = (Path(found.results, "runs", folder) for folder in (SP_IN, SP_OUT))
    files = [Path(folder, file) for folder in (forgotten, kept) for file in ("state.pt", "record.json", "history.csv")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    forget_trainings([str(forgotten), str(Path(found.results, "runs", DENSE))])
    assert [file for file in files if not file.exists()] == [forgotten / "state.pt", forgotten / "record.json"]


def test_a_failure_says_how_many_cells_and_the_command_that_goes_on(workflow):
    found = workflow(data_dir="elsewhere")
    assert "the same command resumes it" in found.failure_message({})
    note = Path(found.results, "runs", SP_IN, "error.json")
    note.parent.mkdir(parents=True)
    note.touch()
    message = found.failure_message({"study": "case", "device": "cpu", "data_dir": "elsewhere", "cells": "all"})
    assert message.startswith(f"1 of 4 cells failed, for example {SP_IN} ({note} has the error).")
    assert message.endswith("snakemake figures tables --cores all --config study=case data_dir=elsewhere cells=done")


def test_success_says_where_the_results_are(workflow):
    found = workflow()
    assert found.success_message() == "Data are in data/."
    Path(found.results, "figures").mkdir(parents=True)
    assert "results/case/report.html" in found.success_message()


def test_touching_says_what_there_was_to_accept(with_done):
    found = with_done(DENSE, SP_IN)
    assert "2 of 4 runs exist in results/case/runs" in found.success_message(touched=True)
    grid = Path(found.results, "summary/grid.csv")
    for runs, kept in ((found.runs, False), ([DENSE, SP_IN], True)):
        grid.parent.mkdir(exist_ok=True)
        grid.touch()
        replace(found, runs=runs).accept_no_partial_summary()
        assert grid.exists() == kept
    shutil.rmtree("results")
    assert "study case was never run, there are no runs in results/case/runs" in found.success_message(touched=True)
