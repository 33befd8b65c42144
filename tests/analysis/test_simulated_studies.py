"""What intervals and contrasts promise, over simulated studies: seeds and test items are drawn, and items are crossed
with seeds, score[i, j] = mu + seed[i] + item[j] + noise[i, j].

Every study is a cell, or a task, of one table, so that the real path is taken once for many. The bootstrap draws 200
replicates instead of 1,000.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bbnet.analysis import statistics
from bbnet.analysis.contrasts import contrasts_table, pairs
from bbnet.analysis.statistics import CELL_KEYS, cells_table, resample_cells

ITEMS = 60
MU = 0.6
MANY, FEW = 2000, 100
CHUNK = 100
REPLICATES = 200
CHANCE_OF_FALSE_ALARM = 1e-3

# Standard deviations of seeds, of items and of noise; those of means over items are seed, item / 7.7, noise / 7.7.
RATIOS = {
    "alike in the mean": (0.02, 0.15, 0.15),
    "mostly items": (0.005, 0.3, 0.1),
    "mostly seeds": (0.1, 0.1, 0.1),
    "noise alone": (0.0, 0.0, 0.3),
    "items alone": (0.0, 0.3, 0.0),
    "seeds alone": (0.1, 0.0, 0.0),
}

# Of arms of one distribution: sd of what an arm's seed has, of how an arm takes an item, and of noise. What arms
# share, seeds and items, falls out.
ARMS = {
    "noise": (0.0, 0.0, 0.2),
    "seeds": (0.05, 0.0, 0.0),
    "seeds, items and noise": (0.02, 0.1, 0.1),
    "items": (0.0, 0.2, 0.0),
}
METHODS = {
    "dense": {"algorithm": "dense"},
    "sp_in": {"algorithm": "budgeted_broadcast", "law": "log_odds", "silent": "smallest"},
    "magnitude": {"algorithm": "magnitude"},
    "rigl": {"algorithm": "rigl"},
    "wanda": {"algorithm": "wanda"},
}
CONTRASTS = 2 * (len(METHODS) - 1) - 1


@pytest.fixture(autouse=True)
def fewer_replicates(monkeypatch):
    monkeypatch.setattr(statistics, "REPLICATES", REPLICATES)


def mean_score(items, weights):
    return {"score": (items["value"] * weights).sum(-1) / weights.sum(-1)}


def tables(scores: np.ndarray, keys: list[tuple]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`runs` and `items` of cells from scores [cells, seeds, items]."""
    cells, seeds, items = scores.shape
    of_runs = pd.DataFrame(keys, columns=CELL_KEYS).loc[np.repeat(np.arange(cells), seeds)].reset_index(drop=True)
    of_runs["seed"] = np.tile(np.arange(seeds), cells)
    runs = of_runs.assign(metric="score", value=scores.mean(2).ravel())
    names = np.array([f"i{item:02d}" for item in range(items)], dtype=object)
    rows = of_runs.loc[np.repeat(np.arange(len(of_runs)), items)].reset_index(drop=True)
    return runs, rows.assign(image=np.tile(names, len(of_runs)), value=scores.ravel())


def share_covered(ratio: tuple[float, float, float], seeds: int, studies: int) -> float:
    """Of the studies, those whose interval holds `MU`."""
    of_seed, of_item, of_noise = ratio
    generator = np.random.default_rng(seeds)
    covered = 0
    for _ in range(studies // CHUNK):
        scores = MU + of_seed * generator.normal(size=(CHUNK, seeds, 1)) + np.zeros((1, 1, ITEMS))
        scores = scores + of_item * generator.normal(size=(CHUNK, 1, ITEMS))
        scores = scores + of_noise * generator.normal(size=(CHUNK, seeds, ITEMS))
        runs, items = tables(scores, [("change", "small", f"m{study}", "in", "0.20") for study in range(CHUNK)])
        found = cells_table(runs, resample_cells(items, {"change": mean_score}), {"change": {"score": "share"}})
        assert len(found) == CHUNK
        covered += int(found["low"].le(MU).mul(found["high"].ge(MU)).sum())
    return covered / studies


def share_of_tasks_without_a_significant_contrast(arms: tuple[float, float, float], seeds: int, studies: int) -> float:
    of_seed, of_item, of_noise = arms
    generator = np.random.default_rng(seeds)
    shape = (CHUNK, len(METHODS), seeds, ITEMS)
    quiet = 0
    for _ in range(studies // CHUNK):
        shared = 0.1 * generator.normal(size=(CHUNK, 1, seeds, 1)) + 0.3 * generator.normal(size=(CHUNK, 1, 1, ITEMS))
        own = of_seed * generator.normal(size=(*shape[:3], 1)) + of_item * generator.normal(size=(*shape[:2], 1, ITEMS))
        scores = MU + shared + own + of_noise * generator.normal(size=shape)
        tasks = [f"t{study}" for study in range(CHUNK)]
        keys = [
            (task, "small", method, *(("none", "1.00") if method == "dense" else ("in", "0.20")))
            for task in tasks
            for method in METHODS
        ]
        runs, items = tables(scores.reshape(-1, seeds, ITEMS), keys)
        contrasted = dict.fromkeys(tasks, ["score"])
        resampled = resample_cells(items, dict.fromkeys(tasks, mean_score), contrasted=contrasted)
        compared = pairs(list(resampled), METHODS, dict.fromkeys(keys, frozenset()))
        found = contrasts_table(runs, resampled, compared, dict.fromkeys(tasks, {"score": ("share", "higher")}))
        assert len(found) == CHUNK * CONTRASTS
        quiet += int(found["verdict"].eq("none").groupby(found["task"]).all().sum())
    return quiet / studies


def least(share: float, studies: int) -> float:
    """What the share found in so many studies falls below once in 1,000 times, where the true one is `share`."""
    return stats.binom.ppf(CHANCE_OF_FALSE_ALARM, studies, share) / studies


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("ratio", ["alike in the mean", "seeds alone"])
def test_intervals_hold_the_mean_in_93_of_100_studies(ratio, seeds):
    assert share_covered(RATIOS[ratio], seeds, FEW) >= least(0.93, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("ratio", RATIOS)
def test_intervals_hold_the_mean_in_93_percent_of_2000_studies(ratio, seeds):
    covered = share_covered(RATIOS[ratio], seeds, MANY)
    print(f"coverage of {ratio}, {seeds} seeds: {covered:.4f}")
    assert covered >= 0.93


@pytest.mark.slow
def test_a_seed_variance_alone_is_covered_as_often_as_said():
    """Where the t interval is exact, coverage is 95 %, not more."""
    assert share_covered(RATIOS["seeds alone"], 4, MANY) == pytest.approx(0.95, abs=0.017)


@pytest.mark.thorough
@pytest.mark.parametrize("arms", ["noise", "seeds"])
def test_identical_arms_show_no_difference_in_95_of_100_tasks(arms):
    assert share_of_tasks_without_a_significant_contrast(ARMS[arms], 3, FEW) >= least(0.95, FEW)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arms", "seeds"),
    [
        *(("noise", seeds) for seeds in (3, 10)),
        *(("seeds", seeds) for seeds in (3, 5, 10)),
        *(("seeds, items and noise", seeds) for seeds in (3, 5)),
        *(("items", seeds) for seeds in (1, 3)),
    ],
)
def test_identical_arms_show_no_difference_in_95_percent_of_1000_tasks(arms, seeds):
    quiet = share_of_tasks_without_a_significant_contrast(ARMS[arms], seeds, 1000)
    print(f"no significant contrast, {arms}, {seeds} seeds: {quiet:.4f}")
    assert quiet >= least(0.95, 1000)


def test_arms_that_differ_are_found():
    """The counterpart: an arm that is better by three standard errors of a difference is significant more often than
    not."""
    generator = np.random.default_rng(0)
    scores = MU + 0.3 * generator.normal(size=(1, 1, ITEMS)) + 0.1 * generator.normal(size=(2 * CHUNK, 5, ITEMS))
    scores[1::2] += 0.1
    keys = [
        (f"t{study}", "small", *names)
        for study in range(CHUNK)
        for names in (("dense", "none", "1.00"), ("sp_in", "in", "0.20"))
    ]
    tasks = [f"t{study}" for study in range(CHUNK)]
    runs, items = tables(scores, keys)
    resampled = resample_cells(items, dict.fromkeys(tasks, mean_score), contrasted=dict.fromkeys(tasks, ["score"]))
    compared = pairs(list(resampled), METHODS, dict.fromkeys(keys, frozenset()))
    found = contrasts_table(runs, resampled, compared, dict.fromkeys(tasks, {"score": ("share", "higher")}))
    assert (found["verdict"] == "better").mean() > 0.9
