"""The shipped summary of the study of texts: dense against the n-gram model, by perplexities recomputed from items."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SUMMARY = Path(__file__).parents[3] / "results" / "reference" / "language" / "summary"
PARTS = ("head", "mid", "tail")
ALLOWED = {"head": 0.8, "mid": 0.9, "tail": 1.0}  # of the perplexity of the n-grams


@pytest.fixture(scope="module")
def dense() -> dict[int, pd.DataFrame]:
    items = pd.read_parquet(SUMMARY / "items.parquet")
    return dict(list(items[items["method"] == "dense"].groupby("seed")))


def test_dense_beats_the_n_grams_on_all_tokens_with_every_seed_and_on_each_part_in_the_mean(dense):
    ratios = {part: [] for part in ALLOWED}
    for seed, rows in dense.items():
        sums = rows.select_dtypes("number").sum()
        assert np.exp((sums["nll"] - sums["floor_nll"]) / sums["tokens"]) < 0.9, seed
        for part in ALLOWED:
            ratios[part].append(np.exp((sums[f"{part}_nll"] - sums[f"floor_{part}_nll"]) / sums[f"{part}_tokens"]))
    assert all(np.mean(ratios[part]) < allowed for part, allowed in ALLOWED.items()), ratios


def test_perplexities_in_the_summary_are_those_of_the_items(dense):
    runs = pd.read_csv(SUMMARY / "runs.csv", dtype={"budget": str})
    values = runs[runs["method"] == "dense"].set_index(["seed", "metric"])["value"]
    for seed, rows in dense.items():
        sums = rows.select_dtypes("number").sum()
        for run in ("", "floor_"):
            assert values[seed, f"{run}perplexity"] == pytest.approx(np.exp(sums[f"{run}nll"] / sums["tokens"]))
            bits = sums[f"{run}nll"] / np.log(2) / sums["bytes"]
            assert values[seed, f"{run}bits_per_byte"] == pytest.approx(bits)
            for part in PARTS:
                expected = np.exp(sums[f"{run}{part}_nll"] / sums[f"{part}_tokens"])
                assert values[seed, f"{run}perplexity_{part}"] == pytest.approx(expected)
