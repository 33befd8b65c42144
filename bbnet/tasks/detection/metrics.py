"""Metrics of object detection from a match table per image. Imports no torch, because `compare` resamples with it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bbnet.analysis.metric import Metric
from bbnet.tasks.buckets import BUCKETS
from bbnet.tasks.detection.average_precision import MatchTable
from bbnet.tasks.detection.data.classes import NUMBERED
from bbnet.tasks.detection.scoring import SIZES, THRESHOLDS
from bbnet.tasks.task import Items

SELECTION = "map50"
PRIMARY = ("map50", "map")


def _share(title: str, shown: bool = True, optional: bool = False) -> Metric:
    return Metric(title, "share", "higher", 0, 1, shown=shown, optional=optional)


METRICS = {"map50": _share("mAP@.5"), "map": _share("mAP@.5:.95")}
METRICS |= {f"dmap50_{bucket}": Metric(f"ΔmAP@.5 {bucket}", "share", "higher", -1, 1) for bucket in BUCKETS}
METRICS |= {f"map50_{bucket}": _share(f"mAP@.5 {bucket}", shown=False) for bucket in BUCKETS}
METRICS |= {f"map50_{size}": _share(f"mAP@.5 {size}", optional=True) for size in SIZES}
METRICS |= {f"ap50_{name}": _share(f"AP@.5 {name}", shown=False, optional=True) for name in NUMBERED}
BY_BUCKET = {"test": {bucket: f"dmap50_{bucket}" for bucket in BUCKETS}}
COUNTED = "objects"
AT_HALF = 0  # the rule of overlaps of .5 with objects of all sizes, the first of `scoring.rules`
ALL_SIZES: dict[int, int | None] = dict.fromkeys(range(len(THRESHOLDS)))
BY_SIZE: dict[int, int | None] = {len(THRESHOLDS) + size: size for size in range(len(SIZES))}
COLUMNS = ("object_class", "object_sizes", "detection_class", "detection_score", "detection_hits", "detection_ignored")


def metrics(items: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns mean average precisions as shares of 1, or NaN where there is nothing to detect.

    The average precision (AP) of a class is that of COCO, over 101 recalls; `ap50_{class}` is at overlaps of .5.
    `map50` is the mean at .5 over the classes that have objects, `map` that over the overlaps .5, .55, ..., .95 too.
    `map50_{bucket}` is the mean at .5 over Head, Mid and Tail classes, `map50_{size}` that for objects of a size.

    Args:
        items: as returned by `task.evaluate`, [..., images].
        weights: [..., images], how often each image counts; broadcast against the items.
    Returns: arrays of the broadcast shape without its last axis.
    """
    return _of_runs(items, weights, _metrics)


def relative_metrics(items: Items, dense: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns `dmap50_{bucket}`: the mean AP of the bucket's classes minus that of the dense run of the same seed."""
    own, theirs = (_of_runs(each, weights, _by_bucket) for each in (items, dense))
    return {f"d{name}": own[name] - theirs[name] for name in own}


def bucket_sizes(items: Items) -> dict[str, dict[str, int]]:
    """Returns the number of test objects of each bucket, from one run's items."""
    buckets = np.concatenate(list(items["object_bucket"]))
    return {"test": {bucket: int((buckets == number).sum()) for number, bucket in enumerate(BUCKETS)}}


def _metrics(items: Items, weights: np.ndarray) -> dict[str, np.ndarray]:
    table = MatchTable(items)
    found = {number: table.of_class(number, ALL_SIZES | BY_SIZE, weights) for number in table.classes}
    at_half = {number: by_rule[AT_HALF] for number, by_rule in found.items()}
    values = {
        "map50": _mean(at_half.values(), weights),
        "map": _mean((by_rule[rule] for by_rule in found.values() for rule in ALL_SIZES), weights),
    }
    for rule, size in BY_SIZE.items():
        values[f"map50_{SIZES[size]}"] = _mean((by_rule[rule] for by_rule in found.values()), weights)
    values |= {f"ap50_{NUMBERED[number]}": precision for number, precision in at_half.items()}
    return values | (_means_of_buckets(items, at_half, weights) if "object_bucket" in items else {})


def _by_bucket(items: Items, weights: np.ndarray) -> dict[str, np.ndarray]:
    table = MatchTable(items)
    rule: Mapping[int, int | None] = {AT_HALF: None}
    at_half = {number: table.of_class(number, rule, weights)[AT_HALF] for number in table.classes}
    return _means_of_buckets(items, at_half, weights)


def _means_of_buckets(items: Items, at_half: Mapping[int, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    classes, buckets = (np.concatenate(list(items[name])) for name in ("object_class", "object_bucket"))
    bucket_of = dict(zip(classes.tolist(), buckets.tolist(), strict=True))
    return {
        f"map50_{bucket}": _mean((each for number, each in at_half.items() if bucket_of[number] == place), weights)
        for place, bucket in enumerate(BUCKETS)
    }


def _mean(values: Any, weights: np.ndarray) -> np.ndarray:
    """Returns the mean over the values that are not NaN, each of which has the shape of `weights` but its last axis."""
    stacked = np.array(list(values)).reshape(-1, *weights.shape[:-1])
    there = ~np.isnan(stacked)
    counted = there.sum(0)
    return np.where(counted == 0, np.nan, np.where(there, stacked, 0).sum(0) / np.maximum(counted, 1))


def _of_runs(items: Items, weights: np.ndarray | None, measure: Any) -> dict[str, np.ndarray]:
    """Applies `measure` to the items of each run with its weights; items and weights are broadcast."""
    columns = {name: np.asarray(values) for name, values in items.items() if name in (*COLUMNS, "object_bucket")}
    of_runs = columns["object_class"].shape
    weights = np.ones(of_runs[-1]) if weights is None else np.asarray(weights, dtype=float)
    shape = np.broadcast_shapes(of_runs[:-1], weights.shape[:-1])
    weights = np.broadcast_to(weights, (*shape, of_runs[-1]))
    lead = (*(1 for _ in range(len(shape) - len(of_runs) + 1)), *of_runs[:-1])
    found: dict[str, np.ndarray] = {}
    for run in np.ndindex(lead):
        of_run = {name: values[run[len(run) - values.ndim + 1 :]] for name, values in columns.items()}
        place = tuple(slice(None) if length == 1 else number for number, length in zip(run, lead, strict=True))
        for name, values in measure(of_run, weights[place]).items():
            found.setdefault(name, np.full(shape, np.nan))[place] = values
    return found
