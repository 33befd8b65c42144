"""Average precision from a table of matched detections, with a weight for each image. Imports no torch.

Which detections are hits does not depend on how often an image counts. So they are matched and sorted once, and the
weights of bootstrap samples only change the sums of hits and of false alarms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

RECALLS = np.linspace(0, 1, 101)  # as in pycocotools, and compared in float64 as there


@dataclass(frozen=True)
class Detections:
    """The detections of one class in all images, in order of falling score; of equal scores, the earlier image first.

    Attributes:
        images: int64 [detections], the image of each.
        hits, ignored: int64 [detections], bit r of each is set for a hit by rule r, or if rule r ignores it.
    """

    images: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray

    @cached_property
    def last_hit(self) -> int:
        """The number of detections up to the last that is a hit by any rule; later ones change no average precision."""
        return int(np.flatnonzero(self.hits).max(initial=-1)) + 1


def average_precision(
    detections: Detections, rule: int, counted: np.ndarray, weights: np.ndarray, totals: np.ndarray
) -> np.ndarray:
    """Returns the mean over `RECALLS` of the largest precision at that recall or a larger one; NaN without objects.

    This is the average precision of COCO: 0 at a recall that is not reached. Images with an integer weight count as if
    they were repeated, with their detections of equal score one after another.

    Args:
        rule: the bit of the rule among `hits` and `ignored`.
        counted: [..., detections], for each detection the sum of the weights of all detections up to this one.
        weights: float64 [..., images], how often each image counts.
        totals: [...], the weighted number of objects.
    Returns: [...].
    """
    hits = np.flatnonzero(detections.hits >> rule & 1)
    ignored = np.flatnonzero(detections.ignored >> rule & 1)
    found = weights[..., detections.images[hits]].cumsum(-1)
    of_ignored = np.zeros((*weights.shape[:-1], len(ignored) + 1))
    np.cumsum(weights[..., detections.images[ignored]], axis=-1, out=of_ignored[..., 1:])
    alarms = counted[..., hits] - of_ignored[..., np.searchsorted(ignored, hits)]
    precision = np.divide(found, alarms, out=np.zeros_like(found), where=alarms > 0)
    largest = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    there = totals > 0
    recall = found / np.where(there, totals, 1)[..., None]
    reached = np.searchsorted(RECALLS, recall, side="right")
    newly = np.diff(reached, axis=-1, prepend=0)
    return np.where(there, (largest * newly).sum(-1) / len(RECALLS), np.nan)


class MatchTable:
    """The matched detections and the objects of one run, from its items.

    Args:
        items: as returned by `task.evaluate`, [images] each.

    Attributes:
        classes: numbers of the classes that have objects.
    """

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._object_image, self._object_class, self._object_sizes = _joined(items, "object_class", "object_sizes")
        image, of_class, scores, hits, ignored = _joined(
            items, "detection_class", "detection_score", "detection_hits", "detection_ignored"
        )
        order = np.argsort(-scores, kind="stable")
        self.classes = np.unique(self._object_class).tolist()
        self._detections = {}
        for number in self.classes:
            own = order[of_class[order] == number]
            self._detections[number] = Detections(image[own], hits[own].astype(int), ignored[own].astype(int))

    def of_class(self, number: int, rules: Mapping[int, int | None], weights: np.ndarray) -> dict[int, np.ndarray]:
        """Returns the average precision [...] of a class by each rule.

        Args:
            rules: by rule, the bit in `object_sizes` of the objects that it counts, or None for all objects.
            weights: float64 [..., images].
        """
        detections = self._detections[number]
        own = self._object_class == number
        counted = weights[..., detections.images[: detections.last_hit]].cumsum(-1)
        found = {}
        for rule, size in rules.items():
            objects = own if size is None else own & (self._object_sizes >> size & 1).astype(bool)
            totals = weights[..., self._object_image[objects]].sum(-1)
            found[rule] = average_precision(detections, rule, counted, weights, totals)
        return found


def _joined(items: Mapping[str, Any], *columns: str) -> list[np.ndarray]:
    """Returns the image of each element of the columns of lists, and the elements of each column."""
    lists = [list(items[name]) for name in columns]
    lengths = [len(one) for one in lists[0]]
    return [np.repeat(np.arange(len(lengths)), lengths), *map(np.concatenate, lists)]
