"""`snakemake diagnostics`: what it makes of a finished study, which stays as it is."""

import hashlib
import json
import shutil

import pandas as pd
import pytest
import yaml

from bbnet.study.workflow import DIAGNOSED, DIAGNOSTIC_FIGURES, DIAGNOSTICS

# One worker runs the micro study for all tests.
pytestmark = pytest.mark.xdist_group("workflow")

RUNS = ("dense/b1.00", "sp_in/b0.50", "magnitude/b0.50")
DRAWN = {"figures_change_tiny_diagnostics": 1, "tables_change_tiny_diagnostics": 1}
WHOLE = {"diagnose": 3, "collect_diagnostics": 1, "diagnostics": 1} | DRAWN


@pytest.fixture(scope="session")
def diagnosed(finished, tmp_path_factory):
    """A project whose diagnostics were made; tests must not change it."""
    project = finished.copy(tmp_path_factory.mktemp("diagnosed"))
    assert project.planned("diagnostics") == WHOLE
    result = project.snakemake("diagnostics", "--config", "live=tensorboard")
    assert result.returncode == 0, result.stdout[-5000:]
    assert "change/tiny/sp_in/b0.50/s0: tensors without findings: " in result.stdout
    return project


@pytest.fixture
def project(diagnosed, tmp_path):
    return diagnosed.copy(tmp_path / "project")


def hashes(project, *folders: str) -> dict[str, str]:
    results = project.root / "results/micro"
    return {
        path.relative_to(results).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((results / folder).rglob("*"))
        if path.is_file() and "diagnostics" not in path.parts
    }


def test_runs_and_summary_stay_as_they_are_byte_for_byte(diagnosed, finished):
    folders = ("runs", "warm_up", "summary", "tables")
    made = {file: each for file, each in hashes(diagnosed, *folders).items() if "verdicts" not in file}
    assert made == hashes(finished, *folders)


def test_everything_promised_is_there(diagnosed):
    results = diagnosed.root / "results/micro"
    for run in RUNS:
        for file in DIAGNOSED:
            assert (results / "runs/change/tiny" / run / "s0/diagnostics" / file).stat().st_size
    assert {path.name for path in (results / "summary/diagnostics").iterdir()} == {*DIAGNOSTICS}
    for figure in DIAGNOSTIC_FIGURES:
        for suffix in ("pdf", "png", "csv"):
            assert (results / "figures" / f"change-tiny-{figure}.{suffix}").stat().st_size > 100
    page = (results / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 9 + len(DIAGNOSTIC_FIGURES)
    assert "What goes on inside change, tiny" in page
    assert (results / "logs/diagnose/change-tiny-sp_in-b0.50-s0.log").is_file()
    assert not list(results.rglob("error.json"))


def test_the_summary_says_what_the_runs_say(diagnosed):
    results = diagnosed.root / "results/micro"
    found = json.loads((results / "runs/change/tiny/sp_in/b0.50/s0/diagnostics/gradient_flow.json").read_text())
    flow = pd.read_parquet(results / "summary/diagnostics/gradient_flow.parquet")
    mine = flow[flow["method"] == "sp_in"]
    assert mine["gradient_norm"].tolist() == [row["gradient_norm"] for row in found["parameters"]]
    # The sparse phase has 16 steps.
    assert {point: counts["steps"] for point, counts in found["points"].items()} == {"warm_start": 16, "end": 60}
    dense = flow[flow["method"] == "dense"]
    assert list(dense["point"].unique()) == ["initialisation", "warm_start", "end"]
    alignment = pd.read_csv(results / "summary/diagnostics/alignment.csv")
    end = alignment[alignment["point"] == "end"].set_index("method")["cka"]
    assert end["dense"].min() > 1 - 1e-9 and end["sp_in"].min() < 1


def test_tensorboard_has_the_numbers_of_the_csv(diagnosed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name = "change/tiny/sp_in/b0.50/s0/diagnostics"
    results = diagnosed.root / "results/micro"
    shown = EventAccumulator(str(results / "live/tensorboard" / name), {"scalars": 0}).Reload()
    rows = pd.read_csv(results / "runs" / name / "gradient_flow.csv")
    row = rows[rows["point"] == "end"].iloc[0]
    (event,) = shown.Scalars(f"gradient_norm/end/{row['parameter']}")
    assert event.value == pytest.approx(row["gradient_norm"], rel=1e-6)
    series = pd.read_csv(results / "runs" / name / "gradient_flow_series.csv")
    series = series[(series["point"] == "end") & (series["parameter"] == row["parameter"])]
    events = shown.Scalars(f"series_gradient_norm/end/{row['parameter']}")
    assert [event.step for event in events] == series["last_step"].tolist()


@pytest.mark.thorough
def test_all_needs_and_removes_nothing_of_it(project, study):
    assert project.planned() == {}
    assert project.planned("diagnostics") == {"diagnostics": 1}
    result = project.snakemake("--config", "cells=done")
    assert result.returncode == 0, result.stdout[-5000:]
    assert (project.root / "results/micro/figures/change-tiny-gradient_norms.png").is_file()
    # A run that is trained again is diagnosed again only if asked for.
    study["methods"]["magnitude"]["side"] = "out"
    project.write_study(study)
    planned = project.planned()
    assert planned["train"] == 1 and not {*WHOLE} & {*planned}
    planned = project.planned("diagnostics")
    assert planned.items() >= {"train": 1, "diagnose": 1, "collect_diagnostics": 1}.items()


def test_other_settings_train_nothing_and_select_runs(project, study):
    study["diagnostics"] = {"methods": ["sp_in"], "steps": 20}
    project.write_study(study)
    assert project.planned() == {}
    assert project.planned("diagnostics") == WHOLE | {"diagnose": 1}


@pytest.mark.thorough
def test_strict_fails_in_one_line_once_a_tensor_never_moves(project, study):
    study["diagnostics"] = {"strict": True}
    project.write_study(study)
    path = project.root / "results/micro/summary/diagnostics/gradient_flow.parquet"
    result = project.snakemake("diagnostics")
    assert result.returncode == 0, result.stdout[-5000:]
    flow = pd.read_parquet(path)
    flow.loc[flow["parameter"] == "head.weight", "moves"] = 0
    flow.to_parquet(path, index=False)
    result = project.snakemake("diagnostics")
    assert result.returncode != 0
    line = "error: run change/tiny/dense/b1.00/s0: tensor head.weight never moves, in none of 4 observed steps from the"
    assert line in result.stdout
    assert "Traceback" not in result.stdout
    assert path.is_file()


@pytest.mark.thorough
def test_a_job_that_fails_leaves_a_note_beside_the_run(project, study):
    study["diagnostics"] = {"layers": ["nowhere"], "methods": ["sp_in"]}
    project.write_study(study)
    result = project.snakemake("diagnostics")
    assert result.returncode != 0
    assert "error: diagnostics.layers: no pattern matches a layer of this model" in result.stdout
    run = project.root / "results/micro/runs/change/tiny/sp_in/b0.50/s0"
    note = json.loads((run / "diagnostics/error.json").read_text())
    assert note["error"].startswith("diagnostics.layers: no pattern matches")
    assert not (run / "error.json").exists()
    assert project.planned() == {}


@pytest.mark.thorough
def test_the_shipped_summary_is_drawn_without_torch(project, tmp_path):
    shipped = project.root / "results/reference/micro"
    shipped.mkdir(parents=True)
    shutil.move(project.root / "results/micro/summary", shipped / "summary")
    for gone in ("results/micro", "data", ".snakemake"):
        shutil.rmtree(project.root / gone)
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "torch.py").write_text("raise ImportError('torch was imported')")
    arguments = ("diagnostics", "--config", "results_from=reference")
    result = project.snakemake(*arguments, PYTHONPATH=f"{tmp_path / 'poison'}:{project.root}")
    assert result.returncode == 0, result.stdout[-5000:]
    assert (shipped / "figures/change-tiny-weight_histograms.png").is_file()
    assert "What goes on inside" in (shipped / "report.html").read_text(encoding="utf-8")

    shutil.rmtree(shipped / "summary/diagnostics")
    result = project.snakemake(*arguments)
    assert result.returncode != 0
    assert "error: results/reference/micro/summary: this summary has no diagnostics" in result.stdout


def test_the_cluster_profile_has_resources_for_the_job(finished):
    profile = yaml.safe_load((finished.root / "profiles/slurm/profile.yaml").read_text(encoding="utf-8"))
    assert profile["set-resources"]["diagnose"]["gpu"] == 1
