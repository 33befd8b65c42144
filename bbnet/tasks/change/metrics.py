"""Metrics of change detection from pixel counts per image. Imports no torch, since `compare` resamples with it."""

import numpy as np

from bbnet.analysis.metric import Metric
from bbnet.tasks.task import Items

SELECTION = "f1"
PRIMARY = ("f1",)
NOTE = (
    "FC-Siam-conc is the variant of the released notebook. Unlike the network of Daudt et al. (2018), it has two "
    "convolutions instead of three at levels 3 and 4, no dropout, the maps of both dates at the bottleneck, and a 1x1 "
    "convolution as head."
)
_TITLES = {
    **{"f1": "F1", "iou": "IoU", "precision": "precision", "recall": "recall"},
    **{"image_f1": "F1 per image", "image_iou": "IoU per image"},
}
METRICS = {name: Metric(title, "share", "higher", 0, 1) for name, title in _TITLES.items()}


def metrics(items: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns metrics of the changed class, shares of 1.

    `f1`, `iou`, `precision` and `recall` are computed from the pixel counts of the whole data set. `image_f1` and
    `image_iou` are means over images, where an image without changed and without predicted pixels counts 1.

    Args:
        items: `tp`, `fp`, `fn`, [..., images].
        weights: [..., images], how often each image counts; broadcast against the counts.
    Returns: arrays of the broadcast shape without its last axis.
    """
    weights = np.ones(1) if weights is None else weights
    tp, fp, fn = (items[name] for name in ("tp", "fp", "fn"))
    all_tp, all_fp, all_fn = ((count * weights).sum(-1) for count in (tp, fp, fn))
    images = np.broadcast_to(weights, np.broadcast_shapes(np.shape(tp), np.shape(weights))).sum(-1)
    return {
        "f1": _share(2 * all_tp, 2 * all_tp + all_fp + all_fn),
        "iou": _share(all_tp, all_tp + all_fp + all_fn),
        "precision": _share(all_tp, all_tp + all_fp),
        "recall": _share(all_tp, all_tp + all_fn),
        "image_f1": (_share(2 * tp, 2 * tp + fp + fn) * weights).sum(-1) / images,
        "image_iou": (_share(tp, tp + fp + fn) * weights).sum(-1) / images,
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole, and 1 where the whole is 0, since there is nothing to find and nothing was found."""
    whole = np.asarray(whole)
    return np.where(whole == 0, 1.0, part / np.where(whole == 0, 1, whole))
