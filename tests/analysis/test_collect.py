"""From folders of runs to the tables of the summary."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

from bbnet.analysis import collect
from bbnet.analysis.weights import COLUMNS
from bbnet.study import grid
from bbnet.study.config import Knobs, read_study
from bbnet.study.recipe import Recipes
from bbnet.tasks.change.metrics import metrics

REPOSITORY = Path(__file__).parents[2]
FIGURES = ["on_rate", "degree", "traffic", "at_smallest", "silent"]
KEYS = ["task", "model", "method", "side", "budget", "seed"]
STUDY = {
    "seeds": [0, 1],
    "budgets": [0.5],
    "methods": {"dense": {"algorithm": "dense"}, "sp_in": {"algorithm": "budgeted_broadcast"}},
    "tasks": {
        "change": {
            "data": {"pack": "aerial_scenes", "size": 32, "train": 8, "val": 4, "test": 4},
            "tile": 32,
            "models": {"small": {"widths": [8, 8]}},
            "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 4, "learning_rate": 0.01},
        }
    },
}
UNITS = (
    "slab,side,unit,fan,on_rate,degree,traffic,at_smallest,silent\n"
    "encoder.1.conv1,in,0,8,0.5,7,3.5,False,False\n"
    "encoder.1.conv1,in,1,8,0.0,1,0.0,True,True\n"
    "encoder.1.conv2,in,0,8,0.25,4,1.0,False,False\n"
    "encoder.1.conv2,in,1,8,0.0,1,0.0,True,False\n"
)
# Budget 0.5 from step 4 on: the refreshes at 6 and 8 count, 4 still comes down the ramp.
REFRESHES = (
    "step,slab,budget,connections,pruned,regrown\n"
    "2,encoder.1.conv1,0.7,11,5,0\n"
    "4,encoder.1.conv1,0.5,8,4,1\n"
    "6,encoder.1.conv1,0.5,8,2,2\n"
    "8,encoder.1.conv1,0.5,8,1,1\n"
)


CODES = (
    "slab,side,units,binary_entropy,code_entropy,correlation,effective_rank\n"
    "encoder.1.conv1,in,2,0.5,0.25,0.125,0.75\n"
    "encoder.1.conv2,in,2,0.5,0.5,0.25,0.5\n"
)


def write_run(folder: Path, keys: dict, fingerprint: str, *, f1: float = 0.5, evaluated: bool = True) -> None:
    """A run's folder as train and evaluate leave it."""
    folder.mkdir(parents=True)
    record = {
        "run": keys,
        "fingerprint": fingerprint,
        "selected_epoch": 3,
        "began": "2026-01-01T00:00:00+00:00",
        "seconds": 1.5,
        "peak_memory_mib": 300,
        "device": "cpu",
        "environment": {"host": "laptop"},
        "slabs": {
            "encoder.1.conv1": {"fan": 8, "connections": 8, "flops": {"dense": 6, "sparse": 3}},
            "encoder.1.conv2": {"fan": 8, "connections": 5, "flops": {"dense": 4, "sparse": 1}},
        },
    }
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "history.csv").write_text(
        "epoch,phase,train_loss\n1,warm_up,0.9\n2,sparse,0.8\n3,frozen,0.7\n4,frozen,0.75\n"
    )
    if evaluated:
        (folder / "metrics.json").write_text(json.dumps({"f1": f1, "iou": f1 / 2}))
        cost = {"density": 0.5, "net_density": 0.75, "flops": {"dense": 10, "sparse": 6}, "slabs": {}, "weights": 8}
        cost["bytes"] = {"memory": 36, "stored": 29}
        (folder / "cost.json").write_text(json.dumps(cost))
        (folder / "units.csv").write_text(UNITS)
        (folder / "codes.csv").write_text(CODES)
        (folder / "refreshes.csv").write_text(REFRESHES)
        pd.DataFrame({"image": ["a", "b"], "tp": [1, 2], "fp": [0, 1], "fn": [1, 1]}).to_parquet(
            folder / "items.parquet", index=False
        )


def keys_of(seed: int, **changed) -> dict:
    keys = {"task": "change", "model": "small", "method": "sp_in", "side": "in", "budget": "0.50", "seed": seed}
    return keys | changed


@pytest.fixture
def cells(tmp_path) -> list[collect.Cell]:
    """Two runs done, a stale one that counts and one that does not, a failed and a missing one."""
    made = []
    rows = [("done", True), ("done", True), ("stale", True), ("stale", False), ("failed", False), ("missing", False)]
    for seed, (status, taken) in enumerate(rows):
        folder = tmp_path / f"s{seed}"
        if status in ("done", "stale"):
            write_run(folder, keys_of(seed), "x", f1=seed / 10)
        made.append(collect.Cell(keys_of(seed), folder, status, f"why {seed}", taken))
    return made


def read(cells: list[collect.Cell]) -> tuple[list[collect.Cell], list[collect.Run]]:
    return collect.read_runs(cells, {"change": metrics}, {"change": "f1"})


@pytest.fixture
def runs(cells) -> list[collect.Run]:
    found, runs = read(cells)
    assert found == cells
    return runs


def test_the_grid_lists_every_cell_with_what_became_of_it(cells):
    found = collect.grid_table(cells)
    assert list(found.columns) == [*KEYS, "status", "why"]
    assert found["status"].tolist() == ["done", "done", "stale", "stale", "failed", "missing"]
    assert found["why"].tolist() == [f"why {seed}" for seed in range(6)]


def test_runs_are_tidy_and_of_the_taken_cells_alone(runs):
    found = collect.runs_table(runs)
    assert list(found.columns) == [*KEYS, "metric", "value"]
    assert found["seed"].unique().tolist() == [0, 1, 2]
    assert found[found["seed"] == 1].set_index("metric")["value"].to_dict() == {
        "f1": 0.1,
        "iou": 0.05,
        "density": 0.5,
        "net_density": 0.75,
        "flops": 6,
        "parameters": 6,
        "bytes": 29,
        "churn": 6 / 32,
        "units_at_smallest": 0.5,
        "silent_units": 0.25,
    }
    assert not found.duplicated([*KEYS, "metric"]).any()


@pytest.mark.parametrize(
    "rows, churn",
    [
        ([], 0.0),
        ([(0, "0.5", 8, 8, 0)], 0.0),
        ([(0, "0.5", 8, 8, 0), (5, "0.5", 8, 3, 3)], 3 / 8),
        ([(1, "0.9", 12, 2, 0), (2, "0.25", 4, 8, 0), (3, "0.25", 4, 0, 0)], 0.0),
    ],
    ids=["no masks", "one mask for good", "sparse from the start", "gradual"],
)
def test_churn_is_that_of_refreshes_after_the_budget_is_reached(rows, churn):
    columns = ["step", "budget", "connections", "pruned", "regrown"]
    assert collect.steady_churn(pd.DataFrame(rows, columns=columns)) == churn


def test_items_carry_the_keys_of_their_run(runs):
    found = collect.items_table(runs)
    assert list(found.columns) == [*KEYS, "image", "tp", "fp", "fn"]
    assert found[["seed", "image", "tp"]].to_numpy().tolist() == [
        [s, *row] for s in range(3) for row in (["a", 1], ["b", 2])
    ]


def test_the_history_marks_the_selected_epoch(runs):
    found = collect.history_table(runs)
    assert list(found.columns) == [*KEYS, "epoch", "phase", "train_loss", "selected"]
    assert len(found) == 3 * 4
    assert found[found["selected"]][["seed", "epoch"]].to_numpy().tolist() == [[0, 3], [1, 3], [2, 3]]


def test_units_are_of_runs_and_of_warm_starts_that_exist(runs, tmp_path):
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "units.csv").write_text(UNITS)
    dense = keys_of(0, method="dense", side="none", budget="1.00")
    found = collect.units_table(runs, [(dense, tmp_path / "warm"), (dense | {"seed": 1}, tmp_path / "nowhere")])
    assert list(found.columns) == ["phase", *KEYS, "slab", "slab_side", "unit", "fan", *FIGURES]
    assert found["phase"].tolist() == ["run"] * 12 + ["warm_up"] * 4
    assert found[found["phase"] == "warm_up"]["method"].tolist() == ["dense"] * 4
    assert found["unit"].tolist() == [0, 1] * 8


def test_only_the_timing_knows_the_clock_and_the_machine(runs):
    found = collect.timing_table(runs)
    assert list(found.columns) == [*KEYS, "began", "seconds", "peak_memory_mib", "device", "host"]
    assert found["host"].tolist() == ["laptop"] * 3
    others = [collect.runs_table, collect.items_table, collect.history_table]
    assert all({"began", "seconds", "host", "peak_memory_mib"}.isdisjoint(table(runs).columns) for table in others)


@pytest.mark.parametrize(
    "table", [collect.runs_table, collect.items_table, collect.history_table, collect.timing_table]
)
def test_if_nothing_is_done_tables_are_empty_with_their_keys(table):
    found = table([])
    assert len(found) == 0
    assert list(found.columns)[: len(KEYS)] == KEYS


def test_units_of_nothing_are_empty_with_their_keys():
    found = collect.units_table([], [])
    assert len(found) == 0
    assert {"phase", *KEYS} <= set(found.columns)


def test_text_that_looks_like_a_number_stays_text(runs, tmp_path):
    collect.runs_table(runs).to_csv(tmp_path / "runs.csv", index=False)
    assert ",0.50," in (tmp_path / "runs.csv").read_text()


def damage(cells: list[collect.Cell], file: str, content: str | bytes) -> tuple[collect.Cell, list[collect.Run]]:
    """What becomes of the first cell, and the runs that are left."""
    path = cells[0].folder / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found, runs = read(cells)
    assert [cell.status for cell in found[1:]] == [cell.status for cell in cells[1:]]
    assert [run.keys["seed"] for run in runs] == [1, 2]
    assert not found[0].taken
    assert found[0].status == "failed"
    assert "\n" not in found[0].why
    return found[0], runs


@pytest.mark.parametrize(
    "file", ["metrics.json", "cost.json", "record.json", "units.csv", "codes.csv", "history.csv", "items.parquet"]
)
def test_a_file_cut_in_half_fails_its_run_by_name_and_no_other(cells, file):
    whole = (cells[0].folder / file).read_bytes()
    cell, _ = damage(cells, file, whole[: len(whole) // 2] if not file.endswith(".csv") else b"")
    assert cell.why.startswith(f"{file}: cannot be read")


@pytest.mark.parametrize("file", ["metrics.json", "units.csv", "refreshes.csv", "history.csv", "items.parquet"])
def test_a_file_that_is_gone_fails_its_run(cells, file):
    (cells[0].folder / file).unlink()
    found, runs = read(cells)
    assert (found[0].status, len(runs)) == ("failed", 2)
    assert found[0].why.startswith(f"{file}: cannot be read")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"f1": NaN, "iou": 0.5}', "f1 is nan"),
        ('{"f1": 0.5, "iou": NaN}', "iou is nan, but items.parquet gives 0.5"),
        ('{"iou": 0.5}', "f1 is missing"),
        ('{"f1": Infinity}', "f1 is inf"),
        ('{"f1": "good"}', "f1 is 'good'"),
        ("[1, 2]", "must be a map, found list"),
    ],
)
def test_a_metric_that_is_no_number_fails_its_run_by_name(cells, content, why):
    cell, _ = damage(cells, "metrics.json", content)
    assert cell.why.startswith("metrics.json: ")
    assert why in cell.why


def test_a_metric_that_its_items_leave_undefined_is_kept(cells):
    undefined = {"change": lambda items: metrics(items) | {"iou": float("nan")}}
    (cells[0].folder / "metrics.json").write_text('{"f1": 0.5, "iou": NaN}')
    found, runs = collect.read_runs(cells, undefined, {"change": "f1"})
    assert (found[0].status, len(runs)) == ("done", 3)


def test_two_runs_with_the_same_key_are_told_by_their_records(cells):
    record = json.loads((cells[1].folder / "record.json").read_text())
    cell, _ = damage(cells, "record.json", json.dumps(record))
    assert cell.why.startswith("record.json: belongs to another run, ")
    assert "'seed': 1" in cell.why


def test_refreshes_and_codes_carry_the_keys_of_their_run(runs):
    refreshes, codes = collect.refreshes_table(runs), collect.codes_table(runs)
    assert list(refreshes.columns) == [*KEYS, *("step", "slab", "budget_then", "connections", "pruned", "regrown")]
    assert (len(refreshes), len(codes)) == (12, 6)
    assert codes["slab_side"].tolist() == ["in"] * 6
    costs = codes.loc[:1, ["slab", "fan", "connections", "flops_dense", "flops"]]
    assert costs.to_numpy().tolist() == [["encoder.1.conv1", 8, 8, 6, 3], ["encoder.1.conv2", 8, 5, 4, 1]]
    assert refreshes["seed"].dtype == np.int64


def test_slabs_of_a_sequential_model_keep_their_names(cells):
    """Its layers are called 0, 1 and so on."""
    for file in cells[0].folder.iterdir():
        if file.suffix in (".csv", ".json"):
            text = file.read_text().replace("encoder.1.conv1", "0").replace("encoder.1.conv2", "10")
            file.write_text(text)
    runs = read(cells[:1])[1]
    for table in (collect.units_table(runs, []), collect.codes_table(runs), collect.refreshes_table(runs)):
        assert set(table["slab"]) <= {"0", "10"}
    assert collect.codes_table(runs)["flops"].tolist() == [3, 1]


# The script, from folders on disk to files.


@pytest.fixture(scope="module")
def study_on_disk(tmp_path_factory) -> Path:
    """dense s0 done, dense s1 failed, sp_in s0 stale, sp_in s1 trained but not evaluated."""
    root = tmp_path_factory.mktemp("collected")
    (root / "studies").mkdir()
    (root / "studies" / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    study = read_study("tiny", root / "studies")
    recipes = Recipes(study, Knobs(study="tiny"))
    for run in grid.runs(study):
        folder = root / "results" / "runs" / run.folder
        match (run.method, run.seed):
            case ("dense", 0):
                write_run(folder, asdict(run), recipes.run_fingerprint(run))
            case ("dense", 1):
                folder.mkdir(parents=True)
                (folder / "error.json").write_text(json.dumps({"fingerprint": "x", "error": "the loss became nan"}))
            case ("sp_in", 0):
                write_run(folder, asdict(run), "0123456789abcdef")
            case ("sp_in", 1):
                write_run(folder, asdict(run), recipes.run_fingerprint(run), evaluated=False)
    return root


@pytest.fixture(scope="module")
def summary_of(study_on_disk):
    """The summary that collect.py makes with `cells=...`."""

    def run(wanted: str) -> Path:
        summary = study_on_disk / f"summary_{wanted}"
        knobs = json.dumps({"study": "tiny", "cells": wanted})
        command = [sys.executable, REPOSITORY / "workflow_scripts" / "collect.py", "--knobs", knobs]
        command += ["--results", "results", "--summary", summary, "--log", "collect.log"]
        done = subprocess.run(command, cwd=study_on_disk, capture_output=True, text=True, env=os.environ, check=False)
        assert done.returncode == 0, done.stderr
        return summary

    return run


@pytest.mark.parametrize(("wanted", "taken"), [("done", ["dense"]), ("all", ["dense", "sp_in"])])
def test_a_summary_takes_what_is_done_and_a_stale_run_only_if_all_are_wanted(summary_of, wanted, taken):
    """Under cells=all a stale run is one that `snakemake --touch` accepted."""
    summary = summary_of(wanted)
    found = pd.read_csv(summary / "grid.csv", dtype={"budget": str})
    status = {(row.method, row.seed): row.status for row in found.itertuples()}
    assert status == {("dense", 0): "done", ("dense", 1): "failed", ("sp_in", 0): "stale", ("sp_in", 1): "missing"}
    assert found.set_index(["method", "seed"]).loc[("dense", 1), "why"] == "the loss became nan"
    runs = pd.read_csv(summary / "runs.csv", dtype={"budget": str})
    assert runs["method"].unique().tolist() == taken
    assert set(runs["seed"]) == {0}
    assert pd.read_parquet(summary / "items.parquet")["method"].unique().tolist() == taken
    assert np.isin(pd.read_parquet(summary / "history.parquet")["method"], taken).all()
    assert sorted(path.name for path in summary.iterdir()) == [
        "data.json",
        "grid.csv",
        "history.parquet",
        "items.parquet",
        "refreshes.parquet",
        "runs.csv",
        "slabs.csv",
        "study.json",
        "timing.csv",
        "units.parquet",
    ]


def test_converted_images_are_counted_where_there_are_any():
    found = {"skipped": {}, "converted": {"cmyk": ["a.jpg", "b.jpg"]}}
    assert collect.data_summary(found, {}) == {"skipped": {}, "converted": {"cmyk": 2}}
    assert collect.data_summary(found | {"converted": {}}, {}) == {"skipped": {}}


# Weights.


def make_binary(folder: Path) -> None:
    """Adds weights to a run's folder, and says in its record that they are binary."""
    record = json.loads((folder / "record.json").read_text())
    record["config"] = {"method": {"algorithm": "dense", "weights": "binary"}}
    record["half_ranges"] = {"conv": 0.5}
    (folder / "record.json").write_text(json.dumps(record))
    weight = np.array([[0.5, -0.5], [0.0, 0.5]], np.float32)
    save_file({"conv.weight": weight, "norm.weight": weight[0]}, folder / "model.safetensors")
    save_file({"conv.weight": weight / 2}, folder / "latent.safetensors", {"conv": "0.5"})
    (folder / "latent.csv").write_text("weights,statistics,metric,value\nlatent,trained,f1,0.25\n", encoding="utf-8")


def test_only_runs_with_binary_weights_are_in_the_table_of_weights(cells):
    assert list(collect.weights_table(read(cells)[1])) == [*KEYS, *COLUMNS]
    for cell in cells[:2]:
        make_binary(cell.folder)
    table = collect.weights_table(read(cells)[1])
    assert table[["seed", "layer", "kind", "between"]].to_numpy().tolist() == [
        [0, "conv", "latent", 0.75],
        [0, "conv", "binary", 0],
        [1, "conv", "latent", 0.75],
        [1, "conv", "binary", 0],
    ]
    assert list(table) == [*KEYS, *COLUMNS]


def test_scores_of_latent_weights_stand_beside_those_of_binary_ones(cells):
    assert list(collect.latent_table(read(cells)[1])) == [*KEYS, "weights", "statistics", "metric", "value"]
    make_binary(cells[1].folder)
    runs = read(cells)[1]
    table = collect.latent_table(runs)
    own = [["binary", "trained", name, value] for name, value in runs[1].metrics.items()]
    assert table.drop(columns=KEYS).to_numpy().tolist() == [*own, ["latent", "trained", "f1", 0.25]]
    assert set(table["seed"]) == {cells[1].keys["seed"]}


def test_a_run_whose_latent_weights_are_missing_has_failed(cells):
    make_binary(cells[1].folder)
    (cells[1].folder / "latent.safetensors").unlink()
    found, runs = read(cells)
    assert found[1].status == "failed"
    assert found[1].why.startswith("latent.safetensors: is missing")
    assert len(runs) == 2
