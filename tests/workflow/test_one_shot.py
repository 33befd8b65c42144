"""One-shot methods in a study: pruned from the dense run, one draw for each calibration seed, and their statistics."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

from bbnet.cli.verify import differences, read_masks
from bbnet.tasks.change.metrics import metrics

pytestmark = [pytest.mark.xdist_group("workflow"), pytest.mark.thorough]

METHODS = {
    "dense": {"algorithm": "dense"},
    "wanda": {"algorithm": "wanda", "one_shot": {"sequences": 5}},
    "sparsegpt": {"algorithm": "sparsegpt", "one_shot": {"sequences": 5, "allocation": "owl"}},
    "magnitude": {"algorithm": "magnitude", "one_shot": {"sequences": 16}},
}
SEEDS, DRAWS = (0, 1), (0, 1)


@pytest.fixture(scope="module")
def calibrated(empty_project, tmp_path_factory):
    """The micro study of `test_study` with one-shot methods, run once."""
    project = empty_project.copy(tmp_path_factory.mktemp("one_shot"))
    changed = {"seeds": [*SEEDS], "methods": METHODS, "calibration_seeds": [*DRAWS]}
    project.write_study(study_of(project) | changed)
    result = project.snakemake()
    assert result.returncode == 0, result.stdout[-5000:]
    return project


def study_of(project):
    return yaml.safe_load((project.root / "studies" / "micro.yaml").read_text())


def folder_of(project, method, seed, budget="0.50"):
    return project.root / f"results/micro/runs/change/tiny/{method}/b{budget}/s{seed}"


def test_each_draw_prunes_the_dense_weights_of_its_seed_with_samples_of_its_own(calibrated):
    samples = []
    for seed in SEEDS:
        dense = load_file(folder_of(calibrated, "dense", seed, "1.00") / "model.safetensors")
        folder = folder_of(calibrated, "wanda", seed)
        record = json.loads((folder / "record.json").read_text())
        assert [each["calibration_seed"] for each in record["calibration"]] == [*DRAWS]
        for draw, calibration in enumerate(record["calibration"]):
            suffix = f"-{draw}" if draw else ""
            weights = load_file(folder / f"model{suffix}.safetensors")
            masks = read_masks(folder / f"masks{suffix}.safetensors")
            for name, value in weights.items():
                mask = masks.get(name.removesuffix(".weight"))
                expected = dense[name] if mask is None else dense[name] * mask[..., None, None]
                np.testing.assert_array_equal(value, expected)
            assert len(set(calibration["samples"])) == calibration["sequences"] == 5
            samples.append(tuple(calibration["samples"]))
        for slab in record["slabs"].values():
            assert slab["connections"] == (slab["units"] * slab["fan"] + 1) // 2
    assert len(set(samples)) == 4


def test_scores_of_a_seed_are_means_over_its_draws(calibrated):
    summary = calibrated.root / "results/micro/summary"
    runs, cells = (pd.read_csv(summary / f"{name}.csv", dtype={"budget": str}) for name in ("runs", "cells"))
    for method in ("wanda", "sparsegpt", "magnitude"):
        of_seeds = []
        for seed in SEEDS:
            items = pd.read_parquet(folder_of(calibrated, method, seed) / "items.parquet")
            numbers = [
                {name: each[name].to_numpy() for name in each.select_dtypes("number")}
                for _, each in items.groupby("draw")
            ]
            of_draws = [float(metrics(each)["f1"]) for each in numbers]
            found = runs[(runs["method"] == method) & (runs["seed"] == seed) & (runs["metric"] == "f1")]["value"]
            assert found.item() == pytest.approx(np.mean(of_draws), rel=1e-12)
            of_seeds.append(of_draws)
        cell = cells[(cells["method"] == method) & (cells["metric"] == "f1")].iloc[0]
        assert cell["mean"] == pytest.approx(np.mean(of_seeds), rel=1e-12)
        assert cell["n_seeds"] == cell["n_draws"] == 2
        assert cell["draw_variance"] == pytest.approx(np.var(of_seeds, axis=1, ddof=1).mean(), abs=1e-15)
        if method == "magnitude":
            assert cell["draw_variance"] == 0


def test_owl_keeps_the_budget_over_all_slabs_and_verify_finds_nothing(calibrated):
    record = json.loads((folder_of(calibrated, "sparsegpt", 0) / "record.json").read_text())
    slabs = record["slabs"].values()
    assert len({slab["density"] for slab in slabs}) > 1
    total = sum(slab["units"] * slab["fan"] for slab in slabs)
    assert sum(slab["connections"] for slab in slabs) == (total + 1) // 2
    for method in METHODS:
        folder = folder_of(calibrated, method, 0, "1.00" if method == "dense" else "0.50")
        assert list(differences(folder)) == []


def test_another_calibration_seed_runs_the_one_shot_methods_alone(calibrated, tmp_path):
    project = calibrated.copy(tmp_path / "project")
    assert project.planned() == {}
    project.write_study(study_of(project) | {"calibration_seeds": [0]})
    planned = project.planned()
    assert planned["train"] == 6
    assert "warm_up" not in planned
