"""Metrics of the classification task from rows per image. Imports no torch, because `compare` resamples with it."""

import numpy as np

from bbnet.analysis.metric import Metric
from bbnet.tasks.buckets import BUCKETS
from bbnet.tasks.ratios import ratio
from bbnet.tasks.task import Items

SELECTION = "top1"
PRIMARY = ("top1", "nll")
METRICS = {
    "top1": Metric("top-1", "share", "higher", 0, 1),
    "top5": Metric("top-5", "share", "higher", 0, 1, shown=False),
    "nll": Metric("negative log-likelihood", "nats", "lower", 0),
    "calibration_error": Metric("calibration error", "share", "lower", 0, 1),
    "top1_large": Metric("top-1, larger images", "share", "higher", 0, 1, optional=True),
}
METRICS |= {f"dtop1_{bucket}": Metric(f"Δtop-1 {bucket}", "share", "higher", -1, 1) for bucket in BUCKETS}
METRICS |= {f"top1_{bucket}": Metric(f"top-1 {bucket}", "share", "higher", 0, 1, shown=False) for bucket in BUCKETS}
BY_BUCKET = {"test": {bucket: f"dtop1_{bucket}" for bucket in BUCKETS}}
COUNTED = "images"
BINS = 15


def metrics(items: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns the metrics, or NaN where there is nothing to count.

    `top1` and `top5` are shares of the images, `top1_{bucket}` those of the images of Head, Mid and Tail classes. `nll`
    is the mean negative log-likelihood of the true class, in nats. `calibration_error` is the expected calibration
    error of Guo et al. (2017): images are binned by the probability of their predicted class into 15 bins of equal
    width; it is the mean over the images of the distance, in an image's bin, between mean probability and accuracy.
    `top1_large` is `top1` of the images at `large_size`, if they were scored there too.

    Args:
        items: as returned by `task.evaluate`, [..., images].
        weights: [..., images], how often each image counts; broadcast against the items.
    Returns: arrays of the broadcast shape without its last axis.
    """
    rank = np.asarray(items["rank"])
    weights = np.ones(rank.shape[-1]) if weights is None else weights
    found = {
        "top1": _mean(rank == 0, weights),
        "top5": _mean(rank < 5, weights),
        "nll": _mean(np.asarray(items["nll"], dtype=float), weights),
        "calibration_error": _calibration_error(rank == 0, np.asarray(items["confidence"], dtype=float), weights),
    }
    if "rank_large" in items:
        found["top1_large"] = _mean(np.asarray(items["rank_large"]) == 0, weights)
    return found | (_by_bucket(items, weights) if "bucket" in items else {})


def relative_metrics(items: Items, dense: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns `dtop1_{bucket}`: top-1 of the bucket's images minus that of the dense run of the same seed."""
    weights = np.ones(np.shape(items["rank"])[-1]) if weights is None else weights
    own, theirs = _by_bucket(items, weights), _by_bucket(dense, weights)
    return {f"d{name}": own[name] - theirs[name] for name in own}


def bucket_sizes(items: Items) -> dict[str, dict[str, int]]:
    """Returns the number of test images of each bucket, from one run's items."""
    return {"test": {bucket: int((items["bucket"] == number).sum()) for number, bucket in enumerate(BUCKETS)}}


def _by_bucket(items: Items, weights: np.ndarray) -> dict[str, np.ndarray]:
    right, of_image = np.asarray(items["rank"]) == 0, np.asarray(items["bucket"])
    return {f"top1_{bucket}": _mean(right, weights * (of_image == number)) for number, bucket in enumerate(BUCKETS)}


def _calibration_error(right: np.ndarray, confidence: np.ndarray, weights: np.ndarray) -> np.ndarray:
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1)  # a bin contains its upper bound
    excess = (confidence - right)[..., None] * (bins[..., None] == np.arange(BINS))
    of_bins = np.einsum("...i,...ib->...b", weights, excess)
    return ratio(np.abs(of_bins).sum(-1), _counted(confidence, weights))


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the weighted mean over the last axis, NaN where all weights are 0."""
    return ratio((values * weights).sum(-1), _counted(values, weights))


def _counted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.broadcast_to(weights, np.broadcast_shapes(values.shape, weights.shape)).sum(-1)
