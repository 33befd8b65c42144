"""The micro study, end to end, and what reruns when something changes."""

import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

# One worker runs the micro study for all tests.
pytestmark = pytest.mark.xdist_group("workflow")

RUN = "results/micro/runs/change/tiny"
SPEECH = {
    "data": {"pack": "spoken_words", "train": 20, "val": 4, "test": 4},
    "models": {
        "tiny": {"width": 16, "hidden": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "stem_channels": 2}
    },
    "training": {"epochs": 4, "warm_up_epochs": 1, "batch_seconds": 4, "learning_rate": 0.01},
}
FACES = {
    "data": {
        "pack": "rendered_faces",
        "size": 24,
        "identities": 4,
        "train": 16,
        "val": 2,
        "test": 2,
        "gallery": 2,
        "probes": 1,
        "strangers": 1,
    },
    "size": 24,
    "models": {"tiny": {"architecture": "small", "widths": [8], "blocks": [1]}},
    "training": {"epochs": 8, "warm_up_epochs": 1, "batch_size": 4, "learning_rate": 0.01},
}
FORMULAS = {
    "data": {"pack": "formulas", "bits": 10, "train": 600, "val": 200, "test": 100, "dnf_literals": 2},
    "models": {f"w{width}": {"formula": "dnf", "widths": [width, 16]} for width in (8, 16)},
    "training": {"epochs": 9, "warm_up_epochs": 1, "batch_size": 20, "epoch_steps": 4, "learning_rate": 0.03}
    | {"watch_balance": True},
}
DRAWN = {f"{kind}_{of}": 1 for kind in ("figures", "tables") for of in ("change_tiny", "study")}
AGAIN = {"collect": 1, "compare": 1, "page": 1} | DRAWN


def again(task: str) -> dict[str, int]:
    """`AGAIN`, of a study of another task."""
    return {rule.replace("change_tiny", f"{task}_tiny"): count for rule, count in AGAIN.items()}


def test_everything_promised_is_there(finished):
    results = finished.root / "results" / "micro"
    summary = {path.name for path in (results / "summary").iterdir()}
    assert summary >= {"runs.csv", "items.parquet", "units.parquet", "history.parquet", "grid.csv", "timing.csv"}
    assert summary >= {
        "cells.csv",
        "contrasts.csv",
        "claims.csv",
        "slabs.csv",
        "refreshes.parquet",
        "study.json",
        "data.json",
    }
    figures = ("headline", "pareto", "contrasts", "claims", "balance", "churn", "learning_curves", "panels-sp_in-b0.50")
    for figure in (*(f"change-tiny-{name}" for name in figures), "coverage"):
        for suffix in ("pdf", "png"):
            assert (results / "figures" / f"{figure}.{suffix}").stat().st_size > 1000
        assert len(pd.read_csv(results / "figures" / f"{figure}.csv"))
    for table in ("change-tiny-results", "change-tiny-contrasts_table", "change-tiny-costs", "methods"):
        for suffix in ("csv", "md", "tex"):
            assert "magnitude" in (results / "tables" / f"{table}.{suffix}").read_text().replace("\\_", "_")
    assert (results / "report.html").read_text().count("<img") == 9


def test_the_summary_says_what_the_runs_say(finished):
    summary = finished.root / "results" / "micro" / "summary"
    runs = pd.read_csv(summary / "runs.csv", dtype={"budget": str})
    sp_in = runs[(runs["method"] == "sp_in") & (runs["metric"] == "f1")]["value"].item()
    assert sp_in == json.loads((finished.root / RUN / "sp_in/b0.50/s0/metrics.json").read_text())["f1"]
    cells = pd.read_csv(summary / "cells.csv")
    expected = ["task", "model", "method", "side", "budget", "metric", "unit", "mean", "sd", "n_seeds", "low", "high"]
    expected += ["n_items", "item_variance", "interaction_variance"]
    assert list(cells.columns) == expected
    grid = pd.read_csv(summary / "grid.csv")
    assert grid["status"].tolist() == ["done"] * 3
    units = pd.read_parquet(summary / "units.parquet")
    assert set(units["phase"]) == {"run", "warm_up"}


def test_a_run_keeps_its_budget_in_every_record(finished):
    folder = finished.root / RUN / "sp_in/b0.50/s0"
    record = json.loads((folder / "record.json").read_text())
    for slab in record["slabs"].values():
        units, fan = slab["units"], slab["fan"]
        assert slab["connections"] == (units * fan + 1) // 2
    refreshes = pd.read_csv(folder / "refreshes.csv")
    last = refreshes[refreshes["step"] == refreshes["step"].max()]
    assert last.set_index("slab")["connections"].to_dict() == {
        name: slab["connections"] for name, slab in record["slabs"].items()
    }
    assert "encoder.0.conv1" in record["left_dense"]


def test_a_second_call_finds_nothing_to_do(finished):
    assert finished.planned() == {}


def test_touching_files_and_losing_the_metadata_plans_nothing(project):
    later = time.time() + 60
    for path in [
        *project.root.glob("workflow_scripts/*"),
        *project.root.glob("bbnet/**/*"),
        *project.root.glob("rules/*"),
    ]:
        os.utime(path, (later, later))
    assert project.planned() == {}
    shutil.rmtree(project.root / ".snakemake")
    assert project.planned() == {}


def test_a_new_algorithm_plans_nothing_and_an_edit_of_the_core_retrains(project):
    algorithms = project.root / "bbnet" / "sparsity" / "algorithms"
    (algorithms / "other.py").write_text((algorithms / "magnitude.py").read_text())
    assert project.planned() == {}

    with (algorithms / "magnitude.py").open("a") as file:
        file.write("\n# edited\n")
    planned = project.planned()
    assert planned["train"] == 1
    assert "warm_up" not in planned

    with (project.root / "bbnet" / "sparsity" / "masks.py").open("a") as file:
        file.write("\n# edited\n")
    planned = project.planned()
    assert (planned["warm_up"], planned["train"]) == (1, 3)
    assert "prepare" not in planned


def test_touch_accepts_an_edit_that_changes_no_number(project):
    with (project.root / "bbnet" / "sparsity" / "masks.py").open("a") as file:
        file.write("\n# edited\n")
    result = project.snakemake("--touch")
    assert result.returncode == 0, result.stdout
    assert project.planned() == {}


def test_another_seed_runs_only_its_own_cells(project, study):
    study["seeds"] = [0, 1]
    project.write_study(study)
    assert project.planned() == {"warm_up": 1, "train": 3} | AGAIN


def test_another_budget_and_method_run_only_their_own_cells(project, study):
    study["budgets"] = [0.5, 0.75]
    study["methods"]["sp_out"] = {"algorithm": "budgeted_broadcast", "side": "out"}
    project.write_study(study)
    planned = project.planned()
    assert planned["train"] == 4
    assert "warm_up" not in planned


def test_a_method_taken_away_trains_nothing(project, study):
    del study["methods"]["magnitude"]
    project.write_study(study)
    assert project.planned() == AGAIN


@pytest.mark.thorough
def test_the_same_study_elsewhere_on_one_core_gives_the_same_bytes(project, finished):
    """Everything but what says when and how long."""
    shutil.rmtree(project.root / "results")
    shutil.rmtree(project.root / "data")
    result = project.snakemake("--cores", "1", "figures", "tables")
    assert result.returncode == 0, result.stdout[-5000:]
    compared = []
    for room in ("warm_up", "runs", "summary"):
        for path in sorted((finished.root / "results/micro" / room).rglob("*")):
            if path.is_file() and path.name not in ("timing.csv", "record.json"):
                twin = project.root / path.relative_to(finished.root)
                assert twin.read_bytes() == path.read_bytes(), path
                compared.append(path.name)
    assert {"checkpoint.pt", "model.safetensors", "masks.safetensors", "items.parquet", "cells.csv"} <= {*compared}
    ours, theirs = (
        json.loads((place.root / RUN / "sp_in/b0.50/s0/record.json").read_text()) for place in (project, finished)
    )
    moving = {"began", "seconds", "peak_memory_mib"}
    assert {key for key in ours if ours[key] != theirs[key]} <= moving


@pytest.mark.thorough
def test_a_failing_method_leaves_the_others_and_says_how_to_go_on(project, study):
    algorithms = project.root / "bbnet" / "sparsity" / "algorithms"
    source = (
        (algorithms / "magnitude.py")
        .read_text()
        .replace("return (keep", 'raise ValueError("no masks today")\n        return (keep')
        .replace("parameters.magnitude", "parameters.broken")
    )
    (algorithms / "broken.py").write_text(source)
    parameters = project.root / "bbnet" / "sparsity" / "parameters"
    shutil.copy(parameters / "magnitude.py", parameters / "broken.py")
    study["methods"]["broken"] = {"algorithm": "broken"}
    project.write_study(study)

    result = project.snakemake()
    assert result.returncode != 0
    assert "error: no masks today" in result.stdout
    assert "Traceback" not in result.stdout
    assert "1 of 4 cells failed" in result.stdout
    assert "cells=done" in result.stdout
    folder = project.root / RUN / "broken/b0.50/s0"
    reason = json.loads((folder / "error.json").read_text())["error"]
    assert reason == "no masks today in step 1 of 8 of epoch 2 (seed 0)"
    assert not (folder / "record.json").exists()

    result = project.snakemake("figures", "tables", "--config", "cells=done")
    assert result.returncode == 0, result.stdout[-5000:]
    grid = pd.read_csv(project.root / "results/micro/summary/grid.csv").set_index("method")
    assert grid.loc["broken", "status"] == "failed"
    assert grid.loc["broken", "why"] == reason
    assert (grid.drop("broken")["status"] == "done").all()
    assert "1 failed of 4 runs" in (project.root / "results/micro/tables/change-tiny-results.md").read_text()

    (algorithms / "broken.py").write_text(source.replace('raise ValueError("no masks today")', "pass"))
    result = project.snakemake()
    assert result.returncode == 0, result.stdout[-5000:]
    assert not (folder / "error.json").exists()
    assert "ncomplete" not in (project.root / "results/micro/tables/change-tiny-results.md").read_text()


def test_figures_from_the_shipped_summary_need_no_run_no_data_and_no_torch(project, study, tmp_path):
    shipped = project.root / "results/reference/micro"
    shipped.mkdir(parents=True)
    shutil.move(project.root / "results/micro/summary", shipped / "summary")
    for gone in ("results/micro", "data", ".snakemake"):
        shutil.rmtree(project.root / gone)
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "torch.py").write_text("raise ImportError('torch was imported')")

    # An edit since is named, and not drawn.
    study["methods"]["sp_out"] = {"algorithm": "budgeted_broadcast", "side": "out"}
    project.write_study(study)

    arguments = ("figures", "tables", "--config", "results_from=reference")
    assert project.planned(*arguments) == DRAWN
    result = project.snakemake(*arguments, PYTHONPATH=f"{tmp_path / 'poison'}:{project.root}")
    assert result.returncode == 0, result.stdout[-5000:]
    assert "studies/micro.yaml was edited" in result.stdout
    assert "in methods.sp_out: " in result.stdout
    assert (shipped / "figures" / "change-tiny-pareto.png").exists()
    assert not (project.root / "data").exists()


@pytest.mark.thorough
def test_a_second_model_is_compared_with_the_baseline(project, study):
    """And from the shipped summary alone, and without the baseline again, which trains nothing."""
    study["tasks"]["change"]["models"]["wide"] = {"widths": [8, 16]}
    study["tasks"]["change"]["baseline"] = "tiny"
    project.write_study(study)
    of_models = {f"{kind}_{of}": 1 for kind in ("figures", "tables") for of in ("change", "change_wide")}
    assert project.planned() == {"warm_up": 1, "train": 3, "panels": 1} | AGAIN | of_models
    result = project.snakemake()
    assert result.returncode == 0, result.stdout[-5000:]
    results = project.root / "results/micro"
    summary = results / "summary"
    of_methods, found = (pd.read_csv(summary / f"{name}.csv") for name in ("contrasts", "model_contrasts"))
    assert found[["model", "method", "reference_model"]].to_numpy().tolist() == [
        ["wide", method, "tiny"] for method in ("dense", "sp_in", "magnitude")
    ]
    runs = pd.read_csv(summary / "runs.csv").set_index(["metric", "model", "method"])["value"]
    for row in found.itertuples():
        assert row.effect == pytest.approx(runs["f1", "wide", row.method] - runs["f1", "tiny", row.method])
    assert pd.concat([of_methods, found])["p_holm"].max() == pytest.approx(
        min(
            1,
            max(
                (len(of_methods) + len(found) - place) * p
                for place, p in enumerate(sorted([*of_methods["p"], *found["p"]]))
            ),
        )
    )
    cost = json.loads((project.root / RUN / "sp_in/b0.50/s0/cost.json").read_text())
    assert runs["parameters", "tiny", "dense"] == cost["weights"] > runs["parameters", "tiny", "sp_in"]
    assert runs["parameters", "tiny", "sp_in"] / cost["weights"] == pytest.approx(cost["net_density"], abs=1e-12)
    names = ["figures/change-models.pdf", "figures/change-models.png", "tables/change-models.tex"]
    assert all((results / name).stat().st_size > 500 for name in names)
    assert len(pd.read_csv(results / "figures/change-models.csv")) == len(
        pd.read_csv(results / "tables/change-models.csv")
    )
    assert 'id="models-change"' in (results / "report.html").read_text()
    assert project.planned() == {}

    shipped = project.root / "results/reference/micro"
    shipped.mkdir(parents=True)
    shutil.copytree(summary, shipped / "summary")
    result = project.snakemake("figures", "tables", "--config", "results_from=reference")
    assert result.returncode == 0, result.stdout[-5000:]
    assert (shipped / "figures/change-models.png").read_bytes() == (results / "figures/change-models.png").read_bytes()

    del study["tasks"]["change"]["baseline"]
    project.write_study(study)
    del of_models["figures_change"], of_models["tables_change"]
    assert project.planned() == AGAIN | of_models


def test_panels_show_a_case_of_each_rank(finished):
    panels = np.load(finished.root / "results/micro/summary/panels/change.npz")
    described = json.loads(str(panels["cases"]))
    assert {key.rsplit("/", 1)[1] for key in described} == {"best", "median", "worst"}
    gains = {key.rsplit("/", 1)[1]: case["delta_tp"] - case["delta_fp"] for key, case in described.items()}
    assert gains["best"] >= gains["median"] >= gains["worst"]


@pytest.mark.thorough
def test_formulas_have_figures_by_width_and_over_training(empty_project, study, tmp_path):
    project = empty_project.copy(tmp_path / "project")
    study |= {"tasks": {"logic": FORMULAS}, "only": {"logic": {"w8": ["dense", "sp_in"]}}}
    project.write_study(study)
    drawn = {f"{kind}_{of}": 1 for kind in ("figures", "tables") for of in ("logic", "logic_w8", "logic_w16", "study")}
    again = {"collect": 1, "compare": 1, "page": 1} | drawn
    assert project.planned() == {"fetch": 1, "prepare": 1, "warm_up": 2, "train": 5} | again
    result = project.snakemake()
    assert result.returncode == 0, result.stdout[-5000:]
    results = project.root / "results/micro"
    names = ["logic-steps", "logic-w8-line_training", "logic-w16-line_training"]
    assert all((results / f"figures/{name}.{kind}").stat().st_size > 500 for name in names for kind in ("pdf", "png"))
    table = pd.read_csv(results / "tables/logic-scaling_table.csv")
    assert table["method"].tolist() == ["dense", "sp_in", "magnitude"]
    assert table["never_8"].notna().tolist() == [True, True, False]
    lines = pd.read_csv(results / "figures/logic-w16-line_training.csv")
    assert set(lines["method"]) == {"dense", "sp_in", "magnitude"}
    page = (results / "report.html").read_text()
    assert 'id="steps-logic"' in page and page.count("logic-w16-line_training: ") == 2
    assert project.planned() == {}
    del study["only"]
    project.write_study(study)
    assert project.planned() == {"train": 1} | again


def test_targets_of_the_data_alone(empty_project):
    assert empty_project.planned("data") == {"data": 1, "fetch": 1, "prepare": 1}


def test_speech_has_buckets_before_scores(empty_project, study):
    study["tasks"] = {"asr": SPEECH}
    project = empty_project
    project.write_study(study, "speech")
    planned = project.planned("--config", "study=speech")
    runs = {"fetch": 1, "prepare": 1, "buckets": 1, "warm_up": 1, "train": 3, "panels": 1}
    assert planned == runs | again("asr")


def test_faces_have_buckets_before_scores_and_a_roc_figure(empty_project, study):
    study["tasks"] = {"face": FACES}
    empty_project.write_study(study, "faces")
    planned = empty_project.planned("--config", "study=faces")
    runs = {"fetch": 1, "prepare": 1, "buckets": 1, "warm_up": 1, "train": 3}
    assert planned == runs | again("face")


@pytest.mark.thorough
def test_weights_to_start_from_are_a_pack_of_their_own(empty_project, study, tmp_path):
    project = empty_project.copy(tmp_path / "project")
    weights = project.root / "resnet101-63fe2227.pth"
    model = {"architecture": "resnet101", "weights": {"pack": "imagenet_resnet101", "path": weights.name}}
    study["tasks"] = {"face": FACES | {"models": {"large": model}}}
    project.write_study(study, "faces")
    refused = project.snakemake("--dry-run", "--config", "study=faces")
    assert refused.returncode != 0
    assert "tasks.face.models.large.weights.path: there is no file resnet101-63fe2227.pth" in refused.stdout
    weights.write_bytes(b"others")
    assert project.planned("--config", "study=faces")["fetch"] == 2
    result = project.snakemake("--until", "warm_up", "--config", "study=faces")
    assert result.returncode != 0
    assert f"{weights}: its SHA-256 begins with" in result.stdout


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("study=nope", "no file studies/nope.yaml"),
        ("stduy=micro", "did you mean 'study'"),
        ("device=gpu", "device: input should be 'auto', 'cpu' or 'cuda'"),
        ("results_dir=2024_01", "results_dir: was read as the number 202401"),
        ("data_dir=/proc/none", "data_dir /proc/none: cannot write"),
        ("results_from=reference", "no summary of study micro"),
    ],
)
def test_a_wrong_knob_is_one_line_before_any_job(empty_project, config, message):
    result = empty_project.snakemake("--dry-run", "--config", config)
    assert result.returncode != 0
    assert message in result.stdout
    assert "Traceback" not in result.stdout


def test_the_reference_that_is_shipped_is_whole():
    summary = Path(__file__).parents[2] / "results/reference/demo/summary"
    grid = pd.read_csv(summary / "grid.csv")
    assert (grid["status"] == "done").all()
    assert {path.name for path in summary.iterdir()} >= {"runs.csv", "cells.csv", "items.parquet", "history.parquet"}


@pytest.mark.thorough
def test_snakemakes_own_report_has_captions_and_labels_of_everything(finished, tmp_path):
    result = finished.snakemake("--report", str(tmp_path / "report.zip"))
    assert result.returncode == 0, result.stdout[-3000:]
    with zipfile.ZipFile(tmp_path / "report.zip") as report:
        text = "".join(
            report.read(name).decode(errors="ignore") for name in report.namelist() if name.endswith((".js", ".html"))
        )
    for figure in ("pareto", "contrasts", "claims", "balance", "churn", "learning_curves", "coverage", "costs"):
        assert figure in text
    assert "Primary metrics on test against budget" in text


@pytest.mark.thorough
def test_a_run_that_was_damaged_is_named_and_the_rest_goes_on(project):
    damaged = project.root / RUN / "magnitude/b0.50/s0/metrics.json"
    damaged.write_text(damaged.read_text()[:20])
    (project.root / "results/micro/summary/grid.csv").unlink()
    result = project.snakemake("figures", "tables")
    assert result.returncode == 0, result.stdout[-5000:]
    assert "metrics.json: cannot be read" in result.stdout
    grid = pd.read_csv(project.root / "results/micro/summary/grid.csv").set_index("method")
    assert grid["status"].to_dict() == {"dense": "done", "sp_in": "done", "magnitude": "failed"}
    assert "1 failed of 3 runs" in (project.root / "results/micro/tables/change-tiny-results.md").read_text()
