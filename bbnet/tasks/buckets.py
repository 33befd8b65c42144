"""Groups types of the training data, such as words, into Head, Mid and Tail by frequency. Imports no torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

BUCKETS = ("head", "mid", "tail")
HEAD_PERCENTILE, TAIL_PERCENTILE = 90, 50


def bucket_types(counts: Mapping[str, int]) -> dict[str, Any]:
    """Assigns every type to a bucket by its count c.

    head: c >= the 90th percentile of the counts; tail: c < their median; mid: between. Percentiles are interpolated
    linearly, so types of equal count share a bucket.

    Returns: `types` (type -> bucket), the thresholds, and per bucket the number of types and of their occurrences.
    """
    values = np.array(list(counts.values()) or [0])
    head_from, mid_from = (float(np.percentile(values, p)) for p in (HEAD_PERCENTILE, TAIL_PERCENTILE))
    types = {
        name: "head" if count >= head_from else "mid" if count >= mid_from else "tail"
        for name, count in sorted(counts.items())
    }
    sizes = {
        bucket: {
            "types": sum(1 for own in types.values() if own == bucket),
            "occurrences": sum(counts[name] for name, own in types.items() if own == bucket),
        }
        for bucket in BUCKETS
    }
    return {"head_from": head_from, "mid_from": mid_from, "sizes": sizes, "types": types}
