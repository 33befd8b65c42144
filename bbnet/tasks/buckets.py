"""Groups types of the training data, such as words, into Head, Mid and Tail by frequency. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

BUCKETS = ("head", "mid", "tail")
NO_BUCKET = -1
HEAD_PERCENTILE, TAIL_PERCENTILE = 90, 50
PUBLISHED, UP_TO_THE_MEDIAN = "published", "up to the median"
BALANCED = "balanced"  # the rule of a task that puts no type into a bucket where types are about equally frequent


def bucket_types(counts: Mapping[str, int]) -> dict[str, Any]:
    """Assigns every type to a bucket by its count c.

    Rule `published`: head: c >= the 90th percentile of the counts; tail: c < their median; mid: between. Percentiles
    are interpolated linearly, so types of equal count share a bucket. If at least half of the types have the smallest
    count, no type is in the tail. Then, unless all counts are equal, the rule is `up to the median`: tail: c <= the
    median; head: c > the median and >= the 90th percentile; mid: between.

    Returns: `types` (type -> bucket), the rule, its thresholds, and per bucket the number of types and of occurrences.
    """
    values = np.array(list(counts.values()) or [0])
    head_from, median = (float(np.percentile(values, p)) for p in (HEAD_PERCENTILE, TAIL_PERCENTILE))
    rule = PUBLISHED if values.min() < median or values.min() == values.max() else UP_TO_THE_MEDIAN

    def bucket_of(count: int) -> str:
        if rule == UP_TO_THE_MEDIAN:
            return "tail" if count <= median else "head" if count >= head_from else "mid"
        return "head" if count >= head_from else "mid" if count >= median else "tail"

    types = {name: bucket_of(count) for name, count in sorted(counts.items())}
    sizes = {
        bucket: {
            "types": sum(1 for own in types.values() if own == bucket),
            "occurrences": sum(counts[name] for name, own in types.items() if own == bucket),
        }
        for bucket in BUCKETS
    }
    return {"rule": rule, "head_from": head_from, "median": median, "sizes": sizes, "types": types}


def bucket_numbers(buckets: Mapping[str, str], names: Iterable[str]) -> np.ndarray:
    """Returns for each name 0, 1 or 2 for Head, Mid or Tail, or `NO_BUCKET` if it is in none, int64 [names]."""
    places = {name: BUCKETS.index(bucket) for name, bucket in buckets.items()}
    return np.array([places.get(name, NO_BUCKET) for name in names], dtype=np.int64)
