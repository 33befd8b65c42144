"""Metrics from rows of images and probes, against loops over rows and pairs, repetition and by hand."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from bbnet.tasks.face.metrics import (
    BUCKETS,
    BY_BUCKET,
    FAR_LEVELS,
    METRICS,
    PRIMARY,
    ROC_LEVELS,
    SELECTION,
    bucket_sizes,
    metrics,
    pairs,
    relative_metrics,
    roc_points,
)

PAIR_METRICS = {"auroc", "eer", *FAR_LEVELS, "verification_accuracy"}
IMAGES, PROBES = 9, 8


def random_items(seed: int, gallery: tuple[int, ...] = (2, 1, 3), shift: int = 0) -> dict[str, np.ndarray]:
    """Rows of images to classify, then of probes; which rows these are, and of whom, is the same for all seeds.

    Args:
        gallery: number of images of each identity known.
        shift: of the scores.
    """
    draw, fixed = np.random.default_rng(seed), np.random.default_rng(77)
    starts, counts = np.cumsum([0, *gallery]), np.array([*gallery, 0])
    known = len(gallery)
    of_whom = fixed.integers(0, known, PROBES) if known else np.zeros(PROBES, dtype=int)
    of_whom[::3] = known
    scores = np.empty(IMAGES + PROBES, dtype=object)
    for row in range(IMAGES + PROBES):
        width = starts[-1] if row >= IMAGES else 0
        scores[row] = ((draw.integers(-4, 5, width) + shift) / 8).astype(np.float32)
    images, probes = np.zeros(IMAGES, dtype=int), np.ones(PROBES, dtype=int)
    return {
        "image": np.array([f"{row}.jpg" for row in range(IMAGES + PROBES)]),
        "probe": np.concatenate([images, probes]),
        "rank": np.concatenate([draw.integers(0, 8, IMAGES), -probes]),
        "bucket": np.concatenate([fixed.integers(0, 3, IMAGES), -probes]),
        "identified": np.concatenate([images, draw.integers(0, 2, PROBES)]),
        "own_first": np.concatenate([images, starts[of_whom]]),
        "own_count": np.concatenate([images, counts[of_whom]]),
        "pair_threshold": np.concatenate([images, np.full(PROBES, draw.integers(-3, 4) / 8 + 1 / 16)]),
        "scores": scores,
    }


def mean(values: list) -> float:
    return sum(values) / len(values) if values else np.nan


def rates(scores: list[tuple[float, bool]], threshold: float) -> tuple[float, float]:
    """FAR and TAR."""
    return tuple(mean([score >= threshold for score, own in scores if own == kind]) for kind in (False, True))


def naive_curve(scores: list[tuple[float, bool]]) -> list[tuple[float, float]]:
    return [rates(scores, at) for at in [np.inf, *sorted({score for score, _ in scores}, reverse=True)]]


def naive_pairs(items) -> list[tuple[float, bool]]:
    found = []
    for row in np.flatnonzero(items["probe"]):
        own = range(items["own_first"][row], items["own_first"][row] + items["own_count"][row])
        found += [(float(score), place in own) for place, score in enumerate(items["scores"][row])]
    return found


def naive_metrics(items) -> dict[str, float]:
    """Row by row, of items of one run."""
    rows = [dict(zip(items, values, strict=True)) for values in zip(*items.values(), strict=True)]
    images, probes = ([row for row in rows if row["probe"] == kind] for kind in (0, 1))
    found = {
        "top1": mean([row["rank"] == 0 for row in images]),
        "top5": mean([row["rank"] in range(5) for row in images]),
    }
    for number, bucket in enumerate(BUCKETS):
        found[f"top1_{bucket}"] = mean([row["rank"] == 0 for row in images if row["bucket"] == number])
    found["identification"] = mean([row["identified"] for row in probes])
    found["identification_floor"] = mean([row["own_count"] == 0 for row in probes])
    scores = naive_pairs(items)
    genuine, impostors = ([score for score, own in scores if own == kind] for kind in (True, False))
    if not genuine or not impostors:
        return found | dict.fromkeys(PAIR_METRICS, np.nan)
    curve = naive_curve(scores)
    far, tar = np.array(curve).T
    along = np.arange(len(far))
    place = brentq(lambda at: np.interp(at, along, far) + np.interp(at, along, tar) - 1, 0, along[-1], xtol=1e-14)
    found["auroc"] = mean([(own > other) + (own == other) / 2 for own in genuine for other in impostors])
    found["eer"] = float(np.interp(place, along, far))
    for name, level in (("tar_at_far_1e-2", 0.01), ("tar_at_far_1e-3", 0.001)):
        found[name] = max(true for false, true in curve if false <= level)
    false, true = rates(scores, probes[0]["pair_threshold"])
    return found | {"verification_accuracy": (true + 1 - false) / 2}


def repeated(items, times) -> dict[str, np.ndarray]:
    return {name: np.repeat(values, times) for name, values in items.items()}


def stacked(runs: list[dict]) -> dict[str, np.ndarray]:
    """[seeds, 1, rows], without the names, as the bootstrap has them."""
    return {name: np.stack([items[name] for items in runs])[:, None] for name in runs[0] if name != "image"}


def assert_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-9, err_msg=name)


# One run.


def test_metrics_are_those_of_a_loop_over_rows():
    for seed in range(8):
        items = random_items(seed)
        assert_equal(metrics(items), naive_metrics(items))


def test_every_metric_is_declared_once():
    items = random_items(0)
    assert set(metrics(items)) | set(relative_metrics(items, items)) == set(METRICS)
    assert METRICS[SELECTION].better == "higher"
    assert set(PRIMARY) <= set(METRICS)
    assert set(BY_BUCKET["test"].values()) == set(relative_metrics(items, items))
    assert [name for name, metric in METRICS.items() if metric.better == "lower"] == ["eer"]


def test_a_case_worked_by_hand():
    scores = np.empty(5, dtype=object)
    scores[:] = [np.zeros(0), np.zeros(0), np.array([0.9, 0.2]), np.array([0.1, 0.6]), np.array([0.3, 0.6])]
    items = {
        "probe": np.array([0, 0, 1, 1, 1]),
        "rank": np.array([0, 4, -1, -1, -1]),
        "bucket": np.array([2, 0, -1, -1, -1]),
        "identified": np.array([0, 0, 1, 1, 0]),
        "own_first": np.array([0, 0, 0, 1, 0]),
        "own_count": np.array([0, 0, 1, 1, 0]),
        "pair_threshold": np.array([0, 0, 0.25, 0.25, 0.25]),
        "scores": scores,
    }
    # Genuine .9 and .6, impostors .6, .3, .2 and .1.
    expected = {"top1": 0.5, "top5": 1, "top1_head": 0, "top1_mid": np.nan, "top1_tail": 1}
    expected |= {"identification": 2 / 3, "identification_floor": 1 / 3, "auroc": 7.5 / 8, "eer": 1 / 6}
    expected |= {"tar_at_far_1e-2": 0.5, "tar_at_far_1e-3": 0.5, "verification_accuracy": (1 + 1 / 2) / 2}
    assert_equal(metrics(items), expected)


def test_pairs_are_in_the_order_of_probes_and_gallery():
    items = {name: values[IMAGES:] for name, values in random_items(3).items()}
    scores, genuine = pairs(items)
    assert scores.shape == genuine.shape == (PROBES, 6)
    expected = naive_pairs(items)
    assert list(zip(scores.ravel().tolist(), genuine.ravel().tolist(), strict=True)) == expected


def test_rows_of_a_data_frame_will_do():
    for seed in range(2):
        items = random_items(seed)
        assert_equal(metrics(pd.DataFrame(items)), naive_metrics(items))


def test_dev_has_top1_and_top5_alone():
    items = random_items(0)
    dev = {name: items[name][:IMAGES] for name in ("image", "probe", "rank")}
    expected = naive_metrics(items)
    assert_equal(metrics(dev), {name: expected[name] for name in ("top1", "top5")})
    assert_equal(metrics(dev, np.arange(IMAGES)), metrics(repeated(dev, np.arange(IMAGES))))


# Weights.


def test_weights_are_repetitions_of_rows():
    for seed in range(8):
        items = random_items(seed)
        times = np.random.default_rng(seed + 100).integers(0, 4, IMAGES + PROBES)
        times[-1] += 1
        assert_equal(metrics(items, times), naive_metrics(repeated(items, times)))


@pytest.mark.filterwarnings("error")
def test_a_draw_without_probes_or_without_images_is_not_a_number_there():
    items = random_items(0)
    found = metrics(items, np.stack([1 - items["probe"], items["probe"], np.zeros(IMAGES + PROBES)]))
    for name, values in found.items():
        of_images = name.startswith("top")
        assert np.isnan(values).tolist() == [not of_images, of_images, True], name


def test_weights_may_be_of_any_kind_of_number():
    for dtype in (bool, np.int8, np.int64, float):
        items, weights = random_items(1), np.arange(IMAGES + PROBES) % 4 != 1
        assert_equal(metrics(items, weights.astype(dtype)), naive_metrics(repeated(items, weights.astype(int))))


# Seeds.


def test_seeds_and_resamples_are_scored_one_by_one():
    for seeds in (1, 3):
        runs = [random_items(seed, shift=seed) for seed in range(seeds)]
        weights = np.random.default_rng(9).integers(0, 3, (1, 5, IMAGES + PROBES))
        found = metrics(stacked(runs), weights)
        for name, values in found.items():
            assert values.shape == (seeds, 5), name
        for seed, items in enumerate(runs):
            for resample in range(5):
                own = {name: values[seed, resample] for name, values in found.items()}
                assert_equal(own, naive_metrics(repeated(items, weights[0, resample])))


def test_seeds_without_resamples_are_scored_one_by_one():
    for seeds in (1, 3):
        runs = [random_items(seed, shift=seed) for seed in range(seeds)]
        both = {name: values[:, 0] for name, values in stacked(runs).items()}
        for weights in (None, np.ones((1, IMAGES + PROBES))):
            found = metrics(both, weights)
            for seed, items in enumerate(runs):
                assert_equal({name: values[seed] for name, values in found.items()}, naive_metrics(items))


def test_every_seed_may_have_weights_of_its_own():
    runs = [random_items(seed) for seed in range(3)]
    weights = np.random.default_rng(9).integers(0, 3, (3, 2, IMAGES + PROBES))
    found = metrics(stacked(runs), weights)
    for seed, items in enumerate(runs):
        for resample in range(2):
            own = {name: values[seed, resample] for name, values in found.items()}
            assert_equal(own, naive_metrics(repeated(items, weights[seed, resample])))


# Galleries.


@pytest.mark.filterwarnings("error")
def test_with_an_empty_gallery_nobody_is_the_floor_and_pairs_have_no_figures():
    for seeds in (1, 3):
        runs = [random_items(seed, gallery=()) for seed in range(seeds)]
        for items in runs:
            items["identified"] = items["probe"]
            assert all(len(scores) == 0 for scores in items["scores"])
            assert_equal(metrics(items), naive_metrics(items))
        found = metrics(stacked(runs), np.ones((1, 5, IMAGES + PROBES)))
        assert all(values.shape == (seeds, 5) for values in found.values())
        assert (found["identification"] == 1).all()
        assert (found["identification_floor"] == 1).all()
        assert all(np.isnan(found[name]).all() for name in PAIR_METRICS)


def test_a_gallery_of_one_identity():
    for seed, images in itertools.product(range(3), (1, 3)):
        items = random_items(seed, gallery=(images,))
        expected = naive_metrics(items)
        assert expected["identification_floor"] == 3 / 8
        assert not np.isnan(expected["auroc"])
        assert_equal(metrics(items), expected)


@pytest.mark.filterwarnings("error")
def test_without_strangers_one_identity_has_no_impostors():
    items = random_items(2, gallery=(2,))
    items["own_first"][IMAGES:], items["own_count"][IMAGES:] = 0, 2
    found = metrics(items)
    assert found["identification_floor"] == 0
    assert all(np.isnan(found[name]) for name in PAIR_METRICS)


# ROC.


def test_roc_points_are_the_largest_rate_of_thresholds_that_let_few_enough_pass():
    for seed in range(3):
        items = random_items(seed)
        times = np.random.default_rng(seed).integers(0, 3, IMAGES + PROBES)
        times[IMAGES:] += 1
        curve = naive_curve(naive_pairs(repeated(items, times)))
        found = roc_points(items, times)
        assert list(found) == list(ROC_LEVELS) == sorted(ROC_LEVELS)
        assert (ROC_LEVELS[0], ROC_LEVELS[-1]) == pytest.approx((1e-3, 1))
        for level, value in found.items():
            assert value == pytest.approx(max(true for false, true in curve if false <= level + 1e-12))


def test_roc_points_of_seeds_and_resamples_are_scored_one_by_one():
    runs = [random_items(seed) for seed in range(3)]
    weights = np.random.default_rng(9).integers(0, 3, (1, 4, IMAGES + PROBES))
    for level, values in roc_points(stacked(runs), weights).items():
        expected = [[roc_points(items, own)[level] for own in weights[0]] for items in runs]
        np.testing.assert_allclose(values, expected)


def test_the_points_agree_with_the_metric_at_the_same_rate():
    items = random_items(1)
    points, found = roc_points(items, np.ones(IMAGES + PROBES)), metrics(items)
    nearest = {name: min(points, key=lambda level, at=at: abs(level - at)) for name, at in FAR_LEVELS.items()}
    assert {name: points[level] for name, level in nearest.items()} == {name: found[name] for name in FAR_LEVELS}


# Head, Mid and Tail.


def test_relative_metrics_are_differences_of_top1_by_bucket():
    items, dense = random_items(0), random_items(5)
    own, theirs = naive_metrics(items), naive_metrics(dense)
    expected = {f"dtop1_{bucket}": own[f"top1_{bucket}"] - theirs[f"top1_{bucket}"] for bucket in BUCKETS}
    assert_equal(relative_metrics(items, dense), expected)
    assert len({float(value) for value in expected.values()}) > 1
    assert_equal(relative_metrics(pd.DataFrame(items), pd.DataFrame(dense)), expected)


def test_relative_metrics_of_seeds_and_resamples_are_scored_one_by_one():
    runs, dense = ([random_items(seed) for seed in seeds] for seeds in (range(3), range(3, 6)))
    weights = np.random.default_rng(9).integers(0, 3, (1, 4, IMAGES + PROBES))
    found = relative_metrics(stacked(runs), stacked(dense), weights)
    for seed in range(3):
        for resample in range(4):
            times = weights[0, resample]
            expected = relative_metrics(repeated(runs[seed], times), repeated(dense[seed], times))
            assert_equal({name: values[seed, resample] for name, values in found.items()}, expected)


@pytest.mark.filterwarnings("error")
def test_a_bucket_without_images_is_not_a_number():
    items = random_items(0)
    items["bucket"] = np.where(items["bucket"] == 1, 0, items["bucket"])
    assert np.isnan(metrics(items)["top1_mid"])
    assert np.isnan(relative_metrics(items, random_items(1))["dtop1_mid"])


def test_sizes_of_buckets_count_images_alone():
    items = random_items(0)
    expected = {bucket: items["bucket"].tolist().count(number) for number, bucket in enumerate(BUCKETS)}
    assert sum(expected.values()) == IMAGES
    assert bucket_sizes(items) == bucket_sizes(pd.DataFrame(items)) == {"test": expected}
    assert json.loads(json.dumps(bucket_sizes(items))) == {"test": expected}
