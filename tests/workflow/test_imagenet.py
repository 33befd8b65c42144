"""studies/imagenet.yaml, cut down to a folder of a few images as ImageNet has them, from the files to the tables."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

# One worker runs all that takes minutes.
pytestmark = [pytest.mark.xdist_group("workflow"), pytest.mark.thorough]
CLASSES = ("n01440764", "n01443537", "n02084071", "n04067472")
SIZES = ((91, 67), (53, 120), (75, 75), (64, 200), (33, 41), (101, 80))
MODEL, KEPT = "bl_resnet50_2_4", "0.50"


def write_folder(root) -> None:
    """Six images for training and two of val for each class, of odd sizes; one is CMYK, and one is grey."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 6), ("val", 2)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                width, height = SIZES[number]
                pixels = rng.integers(0, 120, (height, width, 3)) + np.array([40, 10, 80]) * (label == np.arange(3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                mode = {(0, "train", 1): "CMYK", (1, "val", 0): "L"}.get((label, split, number), "RGB")
                image.convert(mode).save(root / split / name / f"{name}_{number}.JPEG")


def test_the_study_of_imagenet_runs_on_a_folder_like_imagenet(empty_project, tmp_path):
    project, images = empty_project.copy(tmp_path / "project"), tmp_path / "imagenet"
    write_folder(images)
    study = yaml.safe_load((project.root / "studies/imagenet.yaml").read_text(encoding="utf-8"))
    task = study["tasks"]["classification"]
    task["data"]["path"] = str(images)
    del task["baseline"]  # which is left out with the other models
    task |= {"size": 72, "input_size": 64, "large_size": 72, "models": {MODEL: task["models"][MODEL]}}
    shorter = {"epochs": 2, "warm_up_epochs": 1, "batch_size": 4, "large_batch": {"of": 256, "epochs": 0.5}}
    task["training"] |= shorter
    project.write_study(study | {"cpu_threads": 1}, "paper_shaped")

    result = project.snakemake("--config", "study=paper_shaped")
    assert result.returncode == 0, result.stdout[-5000:]
    assert "converted from CMYK: 1: train/n01440764/n01440764_1.JPEG" in "".join(
        path.read_text(encoding="utf-8") for path in (project.root / "results/paper_shaped/logs").rglob("*.log")
    )
    (index,) = (project.root / "data/prepared").glob("*.json")
    index = json.loads(index.read_text(encoding="utf-8"))
    assert {split: len(part["labels"]) for split, part in index["splits"].items()} == {"train": 20, "val": 4, "test": 8}
    assert np.load(next((project.root / "data/prepared").glob("*/test.npy"))).shape == (8, 3, 72, 72)

    run = project.root / f"results/paper_shaped/runs/classification/{MODEL}/sp_in/b{KEPT}/s0"
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    cost = json.loads((run / "cost.json").read_text(encoding="utf-8"))
    for slab in record["slabs"].values():
        assert slab["connections"] == (slab["units"] * slab["fan"] + 1) // 2
        assert slab["flops"]["sparse"] == pytest.approx(slab["flops"]["dense"] / 2, rel=0.05)
    assert cost["macs"]["dense"] == cost["flops"]["dense"] / 2 > 2 * cost["weights"]
    saved = sum(slab["flops"]["dense"] - slab["flops"]["sparse"] for slab in record["slabs"].values())
    assert cost["flops"]["dense"] - cost["flops"]["sparse"] == pytest.approx(saved, abs=len(record["slabs"]))
    pruned = sum(slab["units"] * slab["fan"] - slab["connections"] for slab in record["slabs"].values())
    assert cost["parameters"] == cost["weights"] - pruned
    rates = pd.read_csv(run / "history.csv")["learning_rate"]
    assert rates.between(0, 0.1 * 4 / 256).all()

    tables = project.root / "results/paper_shaped/tables"
    results = pd.read_csv(tables / f"classification-{MODEL}-results.csv")
    assert results["top1_large_mean"].between(0, 1).all()
    branches = pd.read_csv(tables / f"classification-{MODEL}-branches.csv")
    sparse = branches[branches["method"] == "sp_in"].set_index("branch")
    assert set(sparse.index) == {"big", "little", "fusion", "last"}
    assert sparse["density"].between(0.5, 0.51).all()
    assert sparse["slabs"].to_dict() == {"big": 2 + 3 + 5, "little": 3, "fusion": 3, "last": 3}
    costs = pd.read_csv(tables / f"classification-{MODEL}-costs.csv").set_index("method")
    assert costs.loc["sp_in", "parameters"] == cost["parameters"]
    shutil.rmtree(project.root / "results")  # half a gigabyte of weights
