"""The shipped ablation of the detector: its baseline detects, and every run is there."""

from pathlib import Path

import pandas as pd
import pytest

from bbnet.cli.check import REFERENCE
from bbnet.tasks.detection.metrics import metrics

SUMMARY = Path(__file__).parents[3] / REFERENCE / "detector/summary"


def test_the_baseline_detects_and_its_scores_follow_from_its_items():
    grid = pd.read_csv(SUMMARY / "grid.csv")
    assert set(grid["status"]) == {"done"}
    runs = pd.read_csv(SUMMARY / "runs.csv", dtype={"budget": str})
    baseline = runs[(runs["model"] == "hybrid") & (runs["method"] == "dense") & (runs["metric"] == "map50")]
    assert len(baseline) == 3 and baseline["value"].mean() >= 0.55
    items = pd.read_parquet(SUMMARY / "items.parquet")
    of_run = items[(items["model"] == "hybrid") & (items["method"] == "dense")]
    assert len(of_run) >= 600
    again = metrics({name: of_run[name].to_numpy() for name in of_run})["map50"]
    assert again == pytest.approx(baseline.set_index("seed")["value"][0], abs=1e-12)
