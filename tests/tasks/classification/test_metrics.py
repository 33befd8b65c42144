"""Metrics against loops over images, with weights as repetitions; and what becomes of balanced classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbnet.tasks.buckets import BALANCED, PUBLISHED
from bbnet.tasks.classification.buckets import make_buckets
from bbnet.tasks.classification.metrics import METRICS, bucket_sizes, metrics, relative_metrics

BUCKETS = ("head", "mid", "tail")


def random_items(seed: int, images: int = 60, shape: tuple = ()) -> dict[str, np.ndarray]:
    """Confidences on bounds of bins among them."""
    draw = np.random.default_rng(seed)
    size = (*shape, images)
    confidence = np.where(draw.random(size) < 0.3, draw.integers(2, 16, size) / 15, draw.uniform(0.1, 1, size))
    return {
        "rank": draw.integers(0, 8, size) * (draw.random(size) < 0.6),
        "confidence": confidence,
        "nll": draw.exponential(size=size),
        "bucket": np.broadcast_to(draw.integers(-1, 3, images), size),
    }


def calibration_error(confidence, right) -> float:
    """Guo et al. (2017), equations 2, 3 and 5: bin m has the confidences in ((m - 1) / 15, m / 15]."""
    total = 0.0
    for m in range(1, 16):
        inside = [i for i, value in enumerate(confidence) if (m - 1) / 15 < value <= m / 15]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def expected(items, counts) -> dict[str, float]:
    """From a list in which each image occurs as often as it counts."""
    rows = [row for row in range(len(counts)) for _ in range(counts[row])]
    rank, confidence, nll, bucket = (
        [items[name][row] for row in rows] for name in ("rank", "confidence", "nll", "bucket")
    )

    def mean(values):
        return sum(values) / len(values) if values else np.nan

    found = {
        "top1": mean([each == 0 for each in rank]),
        "top5": mean([each < 5 for each in rank]),
        "nll": mean(nll),
        "calibration_error": calibration_error(confidence, [each == 0 for each in rank]) if rows else np.nan,
    }
    return found | {
        f"top1_{name}": mean([each == 0 for each, of in zip(rank, bucket, strict=True) if of == number])
        for number, name in enumerate(BUCKETS)
    }


@given(seed=st.integers(0, 10_000), data=st.data())
def test_weights_count_images_as_often_as_a_list_that_repeats_them(seed, data):
    items = random_items(seed, 12)
    counts = data.draw(st.lists(st.integers(0, 3), min_size=12, max_size=12))
    found = metrics(items, np.array(counts))
    for name, value in expected(items, counts).items():
        assert found[name] == pytest.approx(value, nan_ok=True, abs=1e-12), name


def test_without_weights_every_image_counts_once():
    items = random_items(1)
    found = metrics(items)
    assert found.keys() | {f"dtop1_{bucket}" for bucket in BUCKETS} | {"top1_large"} == METRICS.keys()
    for name, value in expected(items, [1] * 60).items():
        assert found[name] == pytest.approx(value, abs=1e-12)


def test_bootstrap_samples_of_several_seeds_are_computed_at_once():
    items, dense = random_items(2, shape=(3, 1)), random_items(3, shape=(3, 1))
    dense["bucket"] = items["bucket"]
    weights = np.random.default_rng(0).multinomial(60, [1 / 60] * 60, size=4)[None]
    found = metrics(items, weights) | relative_metrics(items, dense, weights)
    for seed in range(3):
        for sample in range(4):
            own, theirs = ({name: values[seed, 0] for name, values in each.items()} for each in (items, dense))
            of_sample = expected(own, weights[0, sample])
            of_dense = expected(theirs, weights[0, sample])
            of_sample |= {f"dtop1_{name}": of_sample[f"top1_{name}"] - of_dense[f"top1_{name}"] for name in BUCKETS}
            for name, value in of_sample.items():
                assert found[name].shape == (3, 4)
                assert found[name][seed, sample] == pytest.approx(value, abs=1e-12)


def test_calibration_worked_by_hand():
    items = {"rank": np.array([0, 0, 1, 0]), "confidence": np.array([0.95, 0.99, 0.97, 0.4]), "nll": np.zeros(4)}
    # Three in the last bin, of which two are right; one at a bound, which belongs to the bin below it (1/3, 2/5].
    assert metrics(items)["calibration_error"] == pytest.approx((3 * abs(0.97 - 2 / 3) + 0.6) / 4)
    assert metrics(items | {"confidence": np.array([1.0, 1.0, 0.0, 1.0])})["calibration_error"] == 0


# Buckets.


def index_of(counts: list[int]) -> dict:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return {"classes": [f"c{label}" for label in range(len(counts))], "splits": {"train": {"labels": labels}}}


@pytest.mark.parametrize("counts", [[4500] * 10, [401, 400, 400, 399], [732, 1300, 1299], [7]])
def test_classes_of_about_equal_size_are_in_no_bucket(counts):
    buckets = make_buckets(index_of(counts))
    assert (buckets["rule"], buckets["types"]) == (BALANCED, {})
    assert {size["types"] for size in buckets["sizes"].values()} == {0}


def test_a_long_tail_has_buckets_and_a_class_without_training_images_is_in_the_tail():
    counts = [100, 60, 40, 25, 15, 9, 6, 4, 2, 0]
    buckets = make_buckets(index_of(counts))
    assert buckets["rule"] == PUBLISHED
    assert [buckets["types"][f"c{label}"] for label in range(10)] == ["head"] + ["mid"] * 4 + ["tail"] * 5
    assert make_buckets(index_of([20, 10]))["rule"] == PUBLISHED


def test_without_buckets_their_metrics_are_unknown_and_the_others_are_not():
    items = random_items(4) | {"bucket": np.full(60, -1)}
    found = metrics(items) | relative_metrics(items, items)
    unknown = {name for name, value in found.items() if np.isnan(value)}
    assert unknown == {f"{kind}_{bucket}" for kind in ("top1", "dtop1") for bucket in BUCKETS}
    assert bucket_sizes(items) == {"test": dict.fromkeys(BUCKETS, 0)}
