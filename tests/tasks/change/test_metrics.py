"""Metrics from pixel counts, against counting pixels."""

import numpy as np
import pytest

from bbnet.tasks.change.metrics import METRICS, SELECTION, metrics


def counts(predicted: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """Pixel counts of images [..., images, pixels]."""
    return {"tp": (predicted & true).sum(-1), "fp": (predicted & ~true).sum(-1), "fn": (~predicted & true).sum(-1)}


def share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def scores_of_pixels(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The changed class of all given pixels, from sets of positions."""
    found, there = set(np.flatnonzero(predicted.ravel())), set(np.flatnonzero(true.ravel()))
    precision, recall = share(len(found & there), len(found)), share(len(found & there), len(there))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    iou = share(len(found & there), len(found | there))
    return {"f1": f1, "iou": iou, "precision": precision, "recall": recall}


@pytest.fixture
def masks():
    """Random predictions and labels [images, pixels] of very different shares, two images without any change."""
    generator = np.random.default_rng(0)
    shares = np.array([0, 0.01, 0.1, 0.5, 0.9, 0, 0.3])[:, None]
    true = generator.random((7, 64)) < shares
    predicted = true ^ (generator.random((7, 64)) < 0.2)
    predicted[0] = False
    return predicted, true


def test_a_case_worked_by_hand():
    items = {"tp": np.array([3, 0]), "fp": np.array([1, 2]), "fn": np.array([2, 4])}
    found = metrics(items)
    assert found["precision"] == 3 / 6
    assert found["recall"] == 3 / 9
    assert found["f1"] == 6 / 15
    assert found["iou"] == 3 / 12
    assert found["image_f1"] == (6 / 9 + 0) / 2
    assert found["image_iou"] == (3 / 6 + 0) / 2


def test_data_set_metrics_are_those_of_all_pixels(masks):
    found = metrics(counts(*masks))
    for name, expected in scores_of_pixels(*masks).items():
        assert found[name] == pytest.approx(expected, abs=1e-12), name


def test_image_metrics_are_means_over_images(masks):
    found = metrics(counts(*masks))
    single = [scores_of_pixels(predicted, true) for predicted, true in zip(*masks, strict=True)]
    assert found["image_iou"] == pytest.approx(np.mean([scores["iou"] for scores in single]), abs=1e-12)
    assert found["image_f1"] == pytest.approx(np.mean([scores["f1"] for scores in single]), abs=1e-12)


def test_an_empty_image_counts_one_if_nothing_is_found_and_nought_if_something_is():
    right = metrics({"tp": np.array([0, 4]), "fp": np.array([0, 0]), "fn": np.array([0, 4])})
    wrong = metrics({"tp": np.array([0, 4]), "fp": np.array([1, 0]), "fn": np.array([0, 4])})
    assert right["image_iou"] == (1 + 1 / 2) / 2
    assert wrong["image_iou"] == (0 + 1 / 2) / 2
    assert right["image_f1"] == (1 + 2 / 3) / 2
    assert right["iou"] == 1 / 2


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "expected"),
    [
        (0, 0, 0, {"f1": 1, "iou": 1, "precision": 1, "recall": 1, "image_f1": 1, "image_iou": 1}),
        (0, 0, 5, {"f1": 0, "iou": 0, "recall": 0, "image_f1": 0, "image_iou": 0}),
        (0, 5, 0, {"f1": 0, "iou": 0, "precision": 0, "image_f1": 0, "image_iou": 0}),
        (5, 0, 0, {"f1": 1, "iou": 1, "precision": 1, "recall": 1, "image_f1": 1, "image_iou": 1}),
    ],
)
def test_limits(tp, fp, fn, expected):
    found = metrics({"tp": np.array([tp]), "fp": np.array([fp]), "fn": np.array([fn])})
    assert {name: found[name] for name in expected} == expected


def test_weights_count_items_again(masks):
    items = counts(*masks)
    weights = np.array([2, 0, 1, 3, 1, 0, 4])
    repeated = metrics({name: np.repeat(values, weights) for name, values in items.items()})
    weighted = metrics(items, weights)
    for name in METRICS:
        assert weighted[name] == pytest.approx(repeated[name], abs=1e-12), name


def test_weights_of_one_change_nothing(masks):
    items = counts(*masks)
    assert metrics(items) == metrics(items, np.ones(7))


def test_seeds_and_replicates_are_broadcast():
    generator = np.random.default_rng(1)
    items = {name: generator.integers(0, 9, (3, 1, 6)) for name in ("tp", "fp", "fn")}
    weights = generator.multinomial(6, np.full(6, 1 / 6), size=(1, 4))
    found = metrics(items, weights)
    for name in METRICS:
        assert found[name].shape == (3, 4)
        for seed in range(3):
            for replicate in range(4):
                alone = metrics({part: values[seed, 0] for part, values in items.items()}, weights[0, replicate])
                assert found[name][seed, replicate] == pytest.approx(float(alone[name]), abs=1e-12)


def test_every_metric_is_described_and_selection_is_one(masks):
    assert set(metrics(counts(*masks))) == set(METRICS) == {"f1", "iou", "precision", "recall", "image_f1", "image_iou"}
    assert SELECTION in METRICS
