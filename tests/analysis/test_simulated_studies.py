"""What intervals and contrasts promise, over simulated studies: seeds and test items are drawn, and items are crossed
with seeds, score[i, j] = mu + seed[i] + item[j] + noise[i, j].

Every study is a cell, or a task, of one table, so that the real path is taken once for many. The bootstrap draws 200
replicates instead of 1,000.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from bbnet.analysis import statistics
from bbnet.analysis.contrasts import contrasts_tables, pairs
from bbnet.analysis.metric import Metric
from bbnet.analysis.statistics import CELL_KEYS, ItemVariance, cells_table, half_width, resample_cells

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
SCORE = {"score": Metric("score", "share", "higher")}

# The grid of the exact simulation: seed over item variance of a mean, and interaction over item variance of an item.
SEED_RATIOS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, np.inf)
INTERACTIONS = (0.0, 1.0, 10.0)
CELLS, UNEQUAL = 11, 50.0
TAIL = 0.0005


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
        found = cells_table(runs, resample_cells(items, {"change": mean_score}), {"change": SCORE})
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
        found, _ = contrasts_tables(runs, resampled, compared, dict.fromkeys(tasks, SCORE))
        assert len(found) == CHUNK * CONTRASTS
        quiet += int(found["verdict"].eq("none").groupby(found["task"]).all().sum())
    return quiet / studies


class Drawn:
    """Cells of simulated studies with normal scores, by what their estimates are distributed like.

    The estimates are independent scaled chi-squared numbers, so that studies need not be drawn item by item: of the
    variance over seeds, with S - 1 degrees of freedom; of the variance over items of the mean over seeds, with n - 1;
    and of what items add to single seeds beyond that, with (n - 1)(S - 1).
    """

    def __init__(
        self, seeds: int, items: int, ratio: float, interaction: float, scale: np.ndarray, studies: int
    ) -> None:
        generator = np.random.default_rng(seeds * items)
        of_item, of_seed = (0.0, 1.0) if np.isinf(ratio) else (1.0, ratio / items)
        noise, of_seed = interaction * of_item, of_seed * scale
        shape = (studies, len(scale))
        self.seeds, self.items = seeds, items
        self.error = np.sqrt(of_seed / seeds + noise / seeds / items + of_item / items)
        self.off = self.error * generator.normal(size=shape)
        self.seed_variance = (of_seed + noise / items) * _chi_squared(generator, seeds - 1, shape)
        of_mean = (of_item + noise / seeds) / items * _chi_squared(generator, items - 1, shape)
        rest = noise / items * _chi_squared(generator, (items - 1) * (seeds - 1), shape) * (seeds - 1) / seeds
        # Mean variance of a seed minus that of the mean, times S / (S - 1): see `ItemVariance.of_draws`.
        self.interaction = rest * seeds / (seeds - 1)
        self.shared = np.maximum(0.0, of_mean - self.interaction / seeds)

    def half_widths(self, level: float, moderated: bool = False) -> np.ndarray:
        """`half_width` of all cells at once, at any level."""
        variance, freedom = self.seed_variance, np.array(self.seeds - 1.0)
        if moderated:
            variance, freedom = _moderated(variance, self.seeds - 1)
        of_items = stats.t.isf(level / 2, self.items - 1)
        seeds_and_items = stats.t.isf(level / 2, freedom) ** 2 * variance / self.seeds + of_items**2 * self.shared
        items_alone = of_items**2 * (self.shared + self.interaction / self.seeds)
        return np.sqrt(np.maximum(seeds_and_items, items_alone))

    def missed(self, level: float, moderated: bool = False) -> np.ndarray:
        """The share of intervals of each cell that do not hold the true mean."""
        return (np.abs(self.off) > self.half_widths(level, moderated)).mean(0)

    def width(self) -> float:
        """The mean width over 1.96 true standard errors."""
        return float((self.half_widths(0.05) / (1.96 * self.error)).mean())


def _chi_squared(generator: np.random.Generator, freedom: int, shape: tuple[int, ...]) -> np.ndarray:
    return generator.chisquare(freedom, size=shape) / freedom


def _moderated(variances: np.ndarray, freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances [studies, cells] shrunk over the cells of each study as by limma (Smyth 2004), and their freedom."""
    logs = np.log(variances) + np.log(freedom / 2) - special.digamma(freedom / 2)
    excess = np.maximum(logs.var(1, ddof=1) - special.polygamma(1, freedom / 2), 1e-6)
    half = 0.5 + 1 / excess
    for _ in range(60):  # Newton's method on 1 / trigamma, which is almost linear
        trigamma = special.polygamma(1, half)
        half += trigamma * (1 - trigamma / excess) / special.polygamma(2, half)
    common = np.exp(logs.mean(1) + special.digamma(half) - np.log(half))
    prior = 2 * half[:, None]
    freedoms = np.minimum(prior + freedom, freedom * variances.shape[1])
    return (prior * common[:, None] + freedom * variances) / (prior + freedom), freedoms


def test_widths_of_all_cells_at_once_are_those_of_half_width():
    drawn = Drawn(3, 60, 1.0, 1.0, np.ones(2), 20)
    seeds = np.array([-1.0, 0.0, 1.0])
    for cell in np.ndindex(20, 2):
        items = ItemVariance(60, drawn.shared[cell], drawn.interaction[cell])
        expected = half_width(seeds * np.sqrt(drawn.seed_variance[cell]), items)
        assert drawn.half_widths(0.05)[cell] == pytest.approx(expected, rel=1e-9)


def test_estimates_are_distributed_like_those_of_drawn_items():
    """Mean and spread of the estimates from scores [studies, seeds, items] and from `Drawn`."""
    seeds, items, studies = 3, 60, 4000
    generator = np.random.default_rng(0)
    scores = np.sqrt(1 / 60) * generator.normal(size=(studies, seeds, 1)) + generator.normal(size=(studies, 1, items))
    scores = scores + np.sqrt(2) * generator.normal(size=(studies, seeds, items))
    of_mean, of_seed = scores.mean(1).var(1, ddof=1) / items, scores.var(2, ddof=1).mean(1) / items
    interaction = seeds * (of_seed - of_mean) / (seeds - 1)
    drawn = Drawn(seeds, items, 1.0, 2.0, np.ones(1), studies)
    for found, exact in (
        (scores.mean(2).var(1, ddof=1), drawn.seed_variance),
        (interaction, drawn.interaction),
        (np.maximum(0, of_mean - interaction / seeds), drawn.shared),
        (scores.mean((1, 2)), drawn.off),
    ):
        assert found.mean() == pytest.approx(exact.mean(), abs=4 * found.std() / np.sqrt(studies / 2))
        assert found.std() == pytest.approx(exact.std(), rel=0.08)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "widest"), [(2, 5.0), (3, 1.8), (5, 1.3), (10, 1.15)])
def test_intervals_cover_and_are_narrow_over_the_grid(seeds, widest):
    """Coverage at least .94, far tails at most 1.5 times their level, and the mean width over the grid."""
    points = [
        Drawn(seeds, items, ratio, interaction, np.ones(1), 400_000)
        for items in (60, 500)
        for ratio in SEED_RATIOS
        for interaction in INTERACTIONS
    ]
    covered = min(1 - point.missed(0.05).max() for point in points)
    tail = max(point.missed(TAIL).max() for point in points) / TAIL
    width = np.mean([point.width() for point in points])
    print(f"{seeds} seeds: least coverage {covered:.3f}, tail {tail:.2f}, mean width {width:.2f}")
    assert covered >= 0.94
    assert tail <= 1.5
    assert width <= widest


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_moderation_does_not_cover_where_variances_over_seeds_differ(seeds):
    """Why intervals are not moderated: one cell of eleven with 50 times the variance, or half of them."""
    scales = {
        "one": np.where(np.arange(CELLS) == 0, UNEQUAL, 1.0),
        "half": np.where(np.arange(CELLS) < 6, UNEQUAL, 1.0),
    }
    for name, scale in scales.items():
        points = [Drawn(seeds, 60, ratio, 0.0, scale, 20_000) for ratio in (0.1, 1.0, 10.0, np.inf)]
        plain, moderated = (
            (min(1 - point.missed(0.05, on).max() for point in points), max(p.missed(TAIL, on).max() for p in points))
            for on in (False, True)
        )
        tail = moderated[1] / TAIL
        print(f"{seeds} seeds, {name}: coverage {plain[0]:.3f}, moderated {moderated[0]:.3f}, its tail {tail:.0f}")
        assert plain[0] >= 0.94
        assert moderated[0] < 0.94


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
    found, _ = contrasts_tables(runs, resampled, compared, dict.fromkeys(tasks, SCORE))
    assert (found["verdict"] == "better").mean() > 0.9
