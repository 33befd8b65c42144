"""Metrics of the face task from rows per image. Imports no torch, because `compare` uses it for resampling."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bbnet.analysis.metric import Metric
from bbnet.tasks.buckets import BUCKETS
from bbnet.tasks.face import verification
from bbnet.tasks.ratios import ratio
from bbnet.tasks.task import Items

SELECTION = "top1"
PRIMARY = ("top1", "auroc")
FAR_LEVELS = {"tar_at_far_1e-2": 1e-2, "tar_at_far_1e-3": 1e-3}
METRICS = {
    "top1": Metric("top-1", "share", "higher", 0, 1),
    "top5": Metric("top-5", "share", "higher", 0, 1, shown=False),
    "auroc": Metric("AUROC", "share", "higher", 0, 1),
    "tar_at_far_1e-2": Metric("TAR at FAR .01", "share", "higher", 0, 1),
    "tar_at_far_1e-3": Metric("TAR at FAR .001", "share", "higher", 0, 1, shown=False),
    "verification_accuracy": Metric("verification accuracy", "share", "higher", 0, 1),
    "eer": Metric("EER", "share", "lower", 0, 1),
    "identification": Metric("identification", "share", "higher", 0, 1),
    "identification_floor": Metric("identification of nobody", "share", "higher", 0, 1, shown=False),
}
METRICS |= {f"dtop1_{bucket}": Metric(f"Δtop-1 {bucket}", "share", "higher", -1, 1) for bucket in BUCKETS}
METRICS |= {f"top1_{bucket}": Metric(f"top-1 {bucket}", "share", "higher", 0, 1, shown=False) for bucket in BUCKETS}
BY_BUCKET = {"test": {bucket: f"dtop1_{bucket}" for bucket in BUCKETS}}
COUNTED = "images"
PAIR_COLUMNS = ("scores", "own_first", "own_count", "pair_threshold")
ROC_LEVELS = tuple(np.geomspace(1e-3, 1, 61).tolist())


def metrics(items: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns the metrics as shares of 1, or NaN where there is nothing to count.

    Of the images to classify: `top1` and `top5`, and `top1_{bucket}` over the images of Head, Mid and Tail identities.
    Of the probes: `identification`, the share whose predicted identity is right, where the prediction is the identity
    of the nearest image of the gallery or, below a threshold chosen on dev, nobody; `identification_floor`, the same
    for the constant prediction nobody. Of all pairs of a probe and an image of the gallery: `auroc`, `eer`,
    `tar_at_far_*` and, with a threshold chosen on dev, `verification_accuracy`, in which genuine and impostor pairs
    have equal weight.

    Args:
        items: as returned by `task.evaluate`, [..., images]; all runs have the probes in the same rows.
        weights: [..., images], how often each image counts; broadcast against the items.
    Returns: arrays of the broadcast shape without its last axis.
    """
    rank = np.asarray(items["rank"])
    weights = np.ones(rank.shape[-1]) if weights is None else weights
    probe = np.asarray(items["probe"]).reshape(-1, rank.shape[-1])[0] == 1
    found = {"top1": _mean(rank == 0, weights * ~probe), "top5": _mean(rank < 5, weights * ~probe)}
    if "bucket" in items:
        found |= _by_bucket(items, weights)
    if probe.any():
        found["identification"] = _mean(np.asarray(items["identified"]), weights * probe)
        found["identification_floor"] = _mean(np.asarray(items["own_count"]) == 0, weights * probe)
        found |= _of_pairs(items, weights, _pair_metrics)
    return found


def relative_metrics(items: Items, dense: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns `dtop1_{bucket}`: top-1 of the bucket's images minus that of the dense run of the same seed."""
    weights = np.ones(np.shape(items["rank"])[-1]) if weights is None else weights
    own, theirs = _by_bucket(items, weights), _by_bucket(dense, weights)
    return {f"d{name}": own[name] - theirs[name] for name in own}


def item_counts(items: Items) -> dict[str, int]:
    """Returns the number of images that each metric counts: those to classify, or the probes."""
    probes = int((np.asarray(items["probe"]) == 1).sum())
    images = len(items["probe"]) - probes
    return {name: images if "top" in name else probes for name in METRICS}


def bucket_sizes(items: Items) -> dict[str, dict[str, int]]:
    """Returns the number of test images of each bucket, from one run's items."""
    return {"test": {bucket: int((items["bucket"] == number).sum()) for number, bucket in enumerate(BUCKETS)}}


def pairs(items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of one run's probes with the gallery, float64 [probes, gallery], and which are genuine."""
    scores = np.stack(list(items["scores"])).astype(float)
    first, count = (np.asarray(items[name])[:, None] for name in ("own_first", "own_count"))
    image = np.arange(scores.shape[1])
    return scores, (image >= first) & (image < first + count)


def _by_bucket(items: Items, weights: np.ndarray) -> dict[str, np.ndarray]:
    right, of_image = np.asarray(items["rank"]) == 0, np.asarray(items["bucket"])
    return {f"top1_{bucket}": _mean(right, weights * (of_image == number)) for number, bucket in enumerate(BUCKETS)}


def roc_points(items: Items, weights: np.ndarray) -> dict[float, np.ndarray]:
    """Returns the TAR at each FAR of `ROC_LEVELS`; items and weights are broadcast as in `metrics`."""
    return _of_pairs(items, weights, _roc_points)


def _of_pairs(items: Items, weights: np.ndarray, measure: Callable[..., dict]) -> dict[Any, np.ndarray]:
    """Applies `measure` to the pairs of each run; items and weights are broadcast against each other."""
    scores = np.asarray(items["scores"])
    weights = weights[(None,) * (scores.ndim - weights.ndim)]
    if scores.ndim > 1:
        of_runs = [{name: np.asarray(items[name])[run] for name in PAIR_COLUMNS} for run in range(len(scores))]
        if len(of_runs) == 1:
            return _of_pairs(of_runs[0], weights, measure)
        axis = weights.ndim - scores.ndim
        found = [
            _of_pairs(of_run, weights.take(run % weights.shape[axis], axis), measure)
            for run, of_run in enumerate(of_runs)
        ]
        return {name: np.stack([one[name] for one in found], axis) for name in found[0]}
    with_scores = np.array([len(of_item) > 0 for of_item in scores])
    if not with_scores.any():
        return measure(np.zeros(0), np.zeros(0, dtype=bool), weights[..., :0], np.inf)
    of_probes = {name: np.asarray(items[name])[with_scores] for name in PAIR_COLUMNS}
    values, genuine = pairs(of_probes)
    per_pair = np.repeat(weights[..., with_scores], values.shape[1], axis=-1)
    return measure(values.ravel(), genuine.ravel(), per_pair, of_probes["pair_threshold"][0])


def _pair_metrics(scores: np.ndarray, genuine: np.ndarray, weights: np.ndarray, threshold: float) -> dict:
    far, tar = verification.roc(scores, genuine, weights)
    found = {"auroc": verification.auroc(far, tar), "eer": verification.equal_error_rate(far, tar)}
    found |= {name: verification.tar_at_far(far, tar, level) for name, level in FAR_LEVELS.items()}
    return found | {"verification_accuracy": verification.balanced_accuracy(scores, genuine, threshold, weights)}


def _roc_points(scores: np.ndarray, genuine: np.ndarray, weights: np.ndarray, threshold: float) -> dict:
    far, tar = verification.roc(scores, genuine, weights)
    found = verification.tar_at_far(far, tar, np.array(ROC_LEVELS))
    return {level: found[..., place] for place, level in enumerate(ROC_LEVELS)}


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the weighted mean over the last axis, NaN where all weights are 0."""
    counted = np.broadcast_to(weights, np.broadcast_shapes(values.shape, weights.shape))
    return ratio((values * weights).sum(-1), counted.sum(-1))
