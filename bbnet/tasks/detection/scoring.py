"""Matches detections with the objects of an image, by the rules of COCO's evaluation. Imports no torch.

Each detection, in order of falling score, takes the object of its class with which it overlaps most, among those that
are still free and overlap by at least the threshold (intersection over union; of equal overlaps the last object). It is
then a hit, otherwise a false alarm. The exceptions are those of COCO:

- A detection without a free object that hits a difficult object is ignored: it counts neither as hit nor as false
  alarm. A difficult object ignores any number of detections, as in VOC and as crowds do in COCO. The overlap with it is
  the ordinary one, as in VOC; COCO divides that with a crowd by the area of the detection.
- Scored by size, objects of other sizes are ignored, and each of them ignores one detection. Detections of other sizes
  without an object are ignored too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # as in pycocotools
SIZES = ("small", "medium", "large")
EVERY_SIZE = (0.0, np.inf)
GROUPS_AT_ONCE = 512


@dataclass(frozen=True)
class Rule:
    """What makes a detection a hit: an overlap of `threshold` with an object whose area is in `areas`, ends included.

    Areas are in pixels of the original image.
    """

    threshold: float
    areas: tuple[float, float] = EVERY_SIZE


def rules(sides: Sequence[float]) -> list[Rule]:
    """Returns the rules of all metrics: all sizes at each of `THRESHOLDS`, then small, medium and large objects at .5.

    Args:
        sides: the sides of the squares whose areas are the limits between small and medium, and medium and large.
    """
    small, large = (float(side) ** 2 for side in sides)
    by_size = [(0.0, small), (small, large), (large, np.inf)]
    return [*map(Rule, THRESHOLDS), *(Rule(THRESHOLDS[0], areas) for areas in by_size)]


@dataclass(frozen=True)
class Objects:
    """The objects of an image.

    Attributes:
        boxes: float64 [objects, 4], left, top, right and bottom in pixels of the original image.
        classes: int64 [objects].
        difficult: bool [objects].
    """

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray

    def chosen(self, which: np.ndarray) -> "Objects":
        return Objects(self.boxes[which], self.classes[which], self.difficult[which])


@dataclass(frozen=True)
class Detections:
    """The detections in an image, in order of falling score: boxes and classes as of `Objects`, scores [detections]."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def match_table(
    detections: Sequence[Detections], objects: Sequence[Objects], sides: Sequence[float]
) -> dict[str, np.ndarray]:
    """Returns the rows of images from which average precisions are computed: object arrays [images] of arrays.

    `detection_class`, `detection_score`, `detection_hits` and `detection_ignored` have one element per detection; bit r
    of the last two belongs to rule r of `rules(sides)`. `object_class` and `object_sizes` have one element per object
    that is not difficult; bits 0, 1 and 2 of its sizes say that it is small, medium or large, as areas equal to a limit
    are of both sizes.
    """
    every = rules(sides)
    hits = [np.zeros(len(found.classes), np.int16) for found in detections]
    ignored = [np.zeros(len(found.classes), np.int16) for found in detections]
    groups = []  # image, detections and objects of each class that an image has
    for image, (found, there) in enumerate(zip(detections, objects, strict=True)):
        for number in np.unique(found.classes):
            own = np.flatnonzero(found.classes == number)
            groups.append((image, own, found.boxes[own], there.chosen(there.classes == number)))
    matched = match([boxes for _, _, boxes, _ in groups], [there for *_, there in groups], every)
    for (image, own, _, _), of_hits, of_ignored in zip(groups, *matched, strict=True):
        hits[image][own], ignored[image][own] = of_hits, of_ignored
    counted = [there.chosen(~there.difficult) for there in objects]
    limits = [rule.areas for rule in every[len(THRESHOLDS) :]]
    return {
        "detection_class": as_column(found.classes.astype(np.int16) for found in detections),
        "detection_score": as_column(found.scores.astype(np.float32) for found in detections),
        "detection_hits": as_column(hits),
        "detection_ignored": as_column(ignored),
        "object_class": as_column(there.classes.astype(np.int16) for there in counted),
        "object_sizes": as_column(_sizes(there, limits) for there in counted),
    }


def as_column(rows: Iterable[np.ndarray]) -> np.ndarray:
    """Returns arrays of different lengths as one array of objects."""
    rows = list(rows)
    column = np.empty(len(rows), dtype=object)
    column[:] = rows
    return column


def _sizes(objects: Objects, limits: Sequence[tuple[float, float]]) -> np.ndarray:
    area = areas_of(objects.boxes)[:, None]
    low, high = np.array(limits).T
    return (((area >= low) & (area <= high)) << np.arange(len(limits))).sum(1).astype(np.int16)


def areas_of(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas [...] of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of boxes [..., n, 4] with others [..., m, 4], [..., n, m]; 0 for no area."""
    first, last = (
        chosen(boxes[..., :, None, corner], others[..., None, :, corner])
        for chosen, corner in ((np.maximum, slice(0, 2)), (np.minimum, slice(2, 4)))
    )
    shared = np.prod(np.clip(last - first, 0, None), axis=-1)
    union = areas_of(boxes)[..., :, None] + areas_of(others)[..., None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(
    detections: Sequence[np.ndarray], objects: Sequence[Objects], rules: Sequence[Rule]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns which detections of each group are hits, and which are ignored: int64 [detections], bit r for rule r.

    A group is a class in an image, so all its objects are of one class.

    Args:
        detections: of each group, boxes float64 [detections, 4] in order of falling score.
        objects: the objects of each group.
    """
    hits, ignored = [], []
    for first in range(0, len(detections), GROUPS_AT_ONCE):
        chunk = slice(first, first + GROUPS_AT_ONCE)
        of_chunk = _match_padded(detections[chunk], objects[chunk], rules)
        for found, bits in zip((hits, ignored), of_chunk, strict=True):
            found += [row[: len(boxes)] for row, boxes in zip(bits, detections[chunk], strict=True)]
    return hits, ignored


def _match_padded(
    detections: Sequence[np.ndarray], objects: Sequence[Objects], rules: Sequence[Rule]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bits of hits and of ignored detections, int64 [groups, most detections]."""
    boxes, there = _padded(detections, (4,))
    of_objects, exist = _padded([one.boxes for one in objects], (4,))
    difficult, _ = _padded([one.difficult for one in objects], ())
    difficult = difficult.astype(bool)[:, None]
    low, high = (np.array([rule.areas[end] for rule in rules]) for end in (0, 1))
    thresholds = np.array([rule.threshold for rule in rules])[:, None]

    def of_other_size(some: np.ndarray) -> np.ndarray:
        area = areas_of(some)[:, None, :]
        return (area < low[:, None]) | (area > high[:, None])

    overlap = overlaps(boxes, of_objects)
    passed_over = difficult | of_other_size(of_objects)  # [groups, rules, objects]
    too_small_or_large = of_other_size(boxes)
    free = np.broadcast_to(exist[:, None], passed_over.shape).copy()
    hits, ignored = np.zeros(there.shape, np.int64), np.zeros(there.shape, np.int64)
    bits = 1 << np.arange(len(rules))
    for place in range(there.shape[1]):
        near = overlap[:, place, None, :] >= thresholds
        candidates = near & free & there[:, place, None, None]
        hit, taken = _nearest(overlap[:, place], candidates & ~passed_over)
        absorbed, absorber = _nearest(overlap[:, place], candidates & passed_over)
        free &= ~(taken & hit[..., None])
        free &= ~(absorber & (absorbed & ~hit)[..., None] & ~difficult)
        outside = too_small_or_large[..., place] & there[:, place, None]
        hits[:, place] = (hit * bits).sum(1)
        ignored[:, place] = ((~hit & (absorbed | outside)) * bits).sum(1)
    return hits, ignored


def _nearest(overlap: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether there is a candidate, bool [groups, rules], and which overlaps most, [groups, rules, objects].

    Args:
        overlap: [groups, objects]; of equal ones, the last is taken, as in pycocotools.
    """
    if not candidates.shape[-1]:
        return candidates.any(-1), candidates
    weighed = np.where(candidates, overlap[:, None], -1.0)
    last = weighed.shape[-1] - 1 - np.argmax(weighed[..., ::-1], axis=-1)
    return candidates.any(-1), np.arange(weighed.shape[-1]) == last[..., None]


def _padded(rows: Sequence[np.ndarray], lead: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Stacks arrays of different lengths, [groups, longest, ...], and returns which of the rows are not padding."""
    lengths = np.array([len(row) for row in rows])
    there = np.arange(lengths.max(initial=0)) < lengths[:, None]
    stacked = np.zeros((*there.shape, *lead))
    stacked[there] = np.concatenate([np.reshape(row, (-1, *lead)) for row in rows])
    return stacked, there
