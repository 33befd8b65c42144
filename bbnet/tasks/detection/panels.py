"""Selects the test images on which a run gains most, the median, and least against another. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bbnet.data.image_folders import letterboxed
from bbnet.tasks.cases import ranked_cases

LEAST_SCORE = 0.3  # of the detections that are shown and compared
LARGEST_SHOWN = 384
HIT, FALSE_ALARM, IGNORED = 1, 0, -1
COUNTED = ("detection_score", "detection_hits", "detection_ignored")  # columns of items


def choose(dense: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns the best, median and worst test image by gain, delta hits - delta false alarms, `other` minus `dense`.

    Only detections with a score of at least .3 count, at an overlap of .5. Images without objects on which neither run
    has a false alarm are excluded, unless there are no others.

    Args:
        dense, other: items of the same images in the same order.
    """
    counts = [
        np.array([_counts(*row) for row in zip(*map(items.get, COUNTED), strict=True)]) for items in (dense, other)
    ]
    hits, alarms = (counts[1] - counts[0]).T
    objects = np.array([len(classes) for classes in other["object_class"]])
    return ranked_cases(hits - alarms, objects + counts[0][:, 1] + counts[1][:, 1] > 0)


def describe(dense: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is printed beside an image, from its items of both runs."""
    before, after = (_counts(*map(items.get, COUNTED)) for items in (dense, other))
    return {"image": str(dense["image"]), "delta_hits": after[0] - before[0], "delta_alarms": after[1] - before[1]}


def _counts(scores: np.ndarray, hits: np.ndarray, ignored: np.ndarray) -> tuple[int, int]:
    """Returns the number of hits and of false alarms among the detections of an image."""
    shown, hit, off = np.asarray(scores) >= LEAST_SCORE, np.asarray(hits) & 1 > 0, np.asarray(ignored) & 1 > 0
    return int((shown & hit).sum()), int((shown & ~hit & ~off).sum())


def case(
    prepared: Path, index: Mapping[str, Any], image: int, predictions: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns a letterboxed test image, downsampled, with its objects and the detections of each run.

    These are `pixels` uint8 [height, width, 3]; `true_boxes` [objects, 4], left, top, right and bottom in shares of the
    image, `true_labels`, and `true_difficult`; of each run, by name, `{name}_boxes`, `{name}_scores`, `{name}_labels`
    and `{name}_outcomes` of the detections with a score of at least .3. Labels are numbers of `classes`, their names.

    Args:
        prepared: folder of the prepared arrays, with their `index`.
        predictions: predictions of each run, by name, as returned by `evaluate`.
    """

    def stored(name: str) -> np.ndarray:
        return np.load(prepared / f"{name}.npy", mmap_mode="r")[image]

    pixels, labels = stored("test").transpose(1, 2, 0), stored("test_labels")
    step = -(-max(pixels.shape[:2]) // LARGEST_SHOWN)
    (factors,), (shifts,) = letterboxed(stored("test_sizes")[None], index["size"])
    there = labels >= 0
    shown = {
        "pixels": np.ascontiguousarray(pixels[::step, ::step]),
        "classes": np.array(index["classes"]),
        "true_boxes": (stored("test_boxes")[there] * np.tile(factors, 2) + np.tile(shifts, 2)) / index["size"],
        "true_labels": labels[there],
        "true_difficult": stored("test_difficult")[there],
    }
    for name, packed in predictions.items():
        seen = packed["scores"][image] >= LEAST_SCORE
        shown |= {f"{name}_{part}": packed[part][image][seen] for part in ("boxes", "scores", "labels", "outcomes")}
    return shown
