"""Metrics of the didactic task from rows per input. Imports no torch, because `compare` resamples with it."""

import numpy as np

from bbnet.analysis.metric import Metric
from bbnet.tasks.logic.scaling import LEVEL, scaled
from bbnet.tasks.ratios import ratio
from bbnet.tasks.task import Items

SELECTION = "accuracy"
PRIMARY = ("accuracy",)
METRICS = {"accuracy": Metric("accuracy", "share", "higher", 0, 1)}
__all__ = ["LEVEL", "METRICS", "PRIMARY", "SELECTION", "metrics", "scaled"]


def metrics(items: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns `accuracy`, the share of inputs with the right answer.

    Args:
        items: as returned by `task.evaluate`, [..., inputs].
        weights: [..., inputs], how often each input counts; broadcast against the items.
    Returns: arrays of the broadcast shape without its last axis.
    """
    right = np.asarray(items["right"])
    weights = np.ones(right.shape[-1]) if weights is None else weights
    counted = np.broadcast_to(weights, np.broadcast_shapes(right.shape, weights.shape)).sum(-1)
    return {"accuracy": ratio((right * weights).sum(-1), counted)}
