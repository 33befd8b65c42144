"""What the workflow makes of a study: which runs, figures, tables and panels, and what it tells the user."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.resources import Resource

from bbnet.study.config import ConfigError
from bbnet.study.workflow import WHOLE_STUDY, Workflow, forget_trainings, open_workflow

ROOT = Path(__file__).parents[2]
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
    assert found.shown_in_panels("change") == {"small": [(DENSE, SP_IN), (DENSE, SP_OUT)]}
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


def test_the_balance_line_over_training_is_drawn_where_it_is_watched(workflow, with_key):
    assert "line_training" not in workflow().figures[CHANGE]
    watched = with_key("tasks.change.training.watch_balance", True)
    Path("studies/case.yaml").write_text(yaml.safe_dump(watched | {"seeds": [0], "budgets": [0.5]}))
    assert workflow().figures[CHANGE].count("line_training") == 1


def test_models_of_a_task_are_compared_by_width_where_the_task_says_how(workflow, base):
    logic = {
        "data": {"pack": "formulas", "train": 64, "val": 8, "test": 8},
        "models": {f"w{width}": {"formula": "dnf", "widths": [width, 8]} for width in (8, 16)},
        "training": {"epochs": 9, "warm_up_epochs": 1, "epoch_steps": 2, "batch_size": 8, "learning_rate": 0.01},
    }
    study = base | {"seeds": [0], "budgets": [0.5], "tasks": base["tasks"] | {"logic": logic}}
    study["only"] = {"logic": {"w8": ["dense", "sp_in"]}}
    Path("studies/case.yaml").write_text(yaml.safe_dump(study))
    found = workflow()
    parts = [WHOLE_STUDY, ("logic", None), CHANGE, ("logic", "w16"), ("logic", "w8")]
    assert list(found.figures) == list(found.tables) == parts
    assert (found.figures["logic", None], found.tables["logic", None]) == (["steps"], ["scaling_table"])
    assert "figures/logic-steps.png" in found.figure_files
    assert "tables/logic-scaling_table.md" in found.table_files
    assert [run.method for run in found.runs.values() if run.model == "w8"] == ["dense", "sp_in"]


def test_studies_with_binary_weights_have_their_statistics(workflow, with_done):
    assert workflow().collected_weights == []
    path = Path("studies/case.yaml")
    study = yaml.safe_load(path.read_text())
    study["methods"]["magnitude"]["weights"] = "binary"
    path.write_text(yaml.safe_dump(study))
    found = workflow()
    assert found.collected_weights == ["weights.csv", "latent.csv"]
    assert found.figures[CHANGE][4:8] == [*ALWAYS, "weights"]
    assert found.tables[CHANGE] == ["results", "contrasts_table", "costs", "weights_table", "latent_table"]
    done = with_done(DENSE)
    assert done.collected_weights == ["weights.csv", "latent.csv"]
    assert "weights" not in done.figures[CHANGE]
    assert "weights_table" not in done.tables[CHANGE]


def test_a_training_on_several_devices_asks_for_their_resources_also_through_the_profile_of_a_cluster(
    workflow, monkeypatch
):
    study = yaml.safe_load(Path("studies/case.yaml").read_text())
    before = workflow()
    study["tasks"]["change"]["training"] |= {"devices": 2, "batch_size": 8}
    Path("studies/case.yaml").write_text(yaml.safe_dump(study))
    found = workflow()
    assert (before.devices, found.devices) == ({"change": 1}, {"change": 2})
    # A device computes what it does alone with half of the batch.
    assert found.recipes.step_key(*CHANGE) == before.recipes.step_key(*CHANGE)

    profile = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text(encoding="utf-8"))["set-resources"]
    wildcards, given = SimpleNamespace(task="change"), {"input": [], "threads": 1, "rulename": "", "attempt": 2}
    for opened, memory, cpus, gpus in ((before, 32_000, 2, 1), (found, 64_000, 4, 2)):
        for name, value in opened.environment_of_profiles().items():
            monkeypatch.setenv(name, value)
        for rule in ("warm_up", "train"):
            asked = {
                name: Resource.from_cli_expression(name, str(value)).evaluate(wildcards, async_run=None, **given).value
                for name, value in profile[rule].items()
            }
            assert asked == {"gpu": gpus, "cpus_per_task": cpus, "mem_mb": memory, "nodes": 1, "runtime": 1440}


def test_a_baseline_adds_a_figure_and_a_table_of_the_task_and_no_other_file(workflow, with_done):
    path = Path("studies/case.yaml")
    study = yaml.safe_load(path.read_text())
    task = study["tasks"]["change"]
    task["models"]["wide"] = {"widths": [8, 24]}
    path.write_text(yaml.safe_dump(study))
    before = workflow()
    task["baseline"] = "wide"
    path.write_text(yaml.safe_dump(study))
    found = workflow()
    assert (before.contrasted_models, found.contrasted_models) == ([], ["model_contrasts.csv"])
    assert [*found.runs] == [*before.runs]
    assert found.recipes.step_key(*CHANGE) == before.recipes.step_key(*CHANGE)
    assert all(found.recipes.run_fingerprint(run) == before.recipes.run_fingerprint(run) for run in found.runs.values())
    assert {*found.figure_files} - {*before.figure_files} == {
        f"figures/change-models.{kind}" for kind in ("pdf", "png", "csv")
    }
    assert {*found.table_files} - {*before.table_files} == {
        f"tables/change-models.{kind}" for kind in ("csv", "md", "tex")
    }
    assert {*before.figure_files, *before.table_files} <= {*found.figure_files, *found.table_files}
    # Without the runs of a second model there is nothing to show, but the file of the summary is made.
    done = with_done(DENSE, SP_IN)
    assert (done.compared, done.contrasted_models) == ([], ["model_contrasts.csv"])
    assert with_done("change/wide/magnitude/b0.50/s0").compared == ["change"]
    del task["models"]["small"]
    path.write_text(yaml.safe_dump(study))
    alone = workflow()
    assert (alone.compared, alone.contrasted_models) == ([], [])


def test_a_reference_of_contrasts_adds_a_figure_and_a_table_of_the_task(workflow):
    before = workflow()
    path = Path("studies/case.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"reference": "sp_in"}))
    found = workflow()
    assert found.figures == before.figures | {("change", None): ["sensitivity"]}
    assert found.tables == before.tables | {("change", None): ["sensitivity"]}
    assert all(found.recipes.run_fingerprint(run) == before.recipes.run_fingerprint(run) for run in found.runs.values())


def test_panels_of_detection_show_models_beside_the_baseline(workflow):
    path = Path("studies/case.yaml")
    study = yaml.safe_load(path.read_text())
    study["tasks"] = {
        "detection": {
            "data": {"pack": "rendered_scenes", "train": 640, "val": 8, "test": 8},
            "baseline": "plain",
            "models": {"plain": {}, "rated": {"iou_scoring": True}},
            "training": {"epochs": 5, "warm_up_epochs": 1, "batch_size": 8, "learning_rate": 0.002},
        }
    }
    study["only"] = {"detection": {"rated": ["dense"]}}
    path.write_text(yaml.safe_dump(study))
    found, home = workflow(), "detection/{}/{}/s0"
    plain, rated = (home.format(model, "dense/b1.00") for model in ("plain", "rated"))
    sparse = [home.format("plain", f"{method}/b0.50") for method in ("sp_in", "sp_out")]
    assert found.shown_in_panels("detection") == {"plain": [(plain, run) for run in sparse], "rated": [(plain, rated)]}
    assert "panels-dense-b1.00" in found.figures["detection", "rated"]
    assert "panels-dense-b1.00" not in found.figures["detection", "plain"]


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


def test_outdated_figures_and_tables_are_removed_and_those_of_diagnostics_are_not(with_done):
    found = with_done(DENSE)
    figures = Path(found.results, "figures")
    figures.mkdir(parents=True)
    for name in ("coverage", "change-small-claims", "change-small-gradient_norms", "change-other-gradient_norms"):
        (figures / f"{name}.png").touch()
    found.remove_outdated()
    assert {path.stem for path in figures.iterdir()} == {"coverage", "change-small-gradient_norms"}


def test_diagnosed_are_runs_taken_beside_their_dense_run(workflow, with_done):
    found = workflow()
    assert {run.folder for run in found.diagnosed} == {DENSE, SP_IN, SP_OUT, MAGNITUDE}
    assert found.compared_with(found.runs[SP_IN]) == found.runs[DENSE]
    assert not {*found.diagnostic_files} & {*found.figure_files, *found.table_files}
    partly = with_done(SP_IN)
    assert [run.folder for run in partly.diagnosed] == [SP_IN]
    assert partly.compared_with(partly.runs[SP_IN]) is None


def test_a_reference_says_itself_whether_it_has_diagnostics(workflow):
    ship(workflow().study)
    assert workflow(results_from="reference").diagnostic_files == []
    folder = Path("results/reference/case/summary/diagnostics")
    folder.mkdir()
    (folder / "runs.csv").write_text("task,model\nchange,small\nchange,small\n", encoding="utf-8")
    found = workflow(results_from="reference")
    assert found.diagnosed_parts == [CHANGE]
    assert "figures/change-small-gradient_norms.png" in found.diagnostic_files


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
