"""Head, Mid and Tail of the classes, by their number of training images. Imports no torch."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bbnet.tasks.buckets import BALANCED, BUCKETS, bucket_types

BALANCED_BELOW = 2  # most / least frequent class; ImageNet has 1.8


def make_buckets(index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the buckets of the classes of a prepared index; see `bucket_types`.

    Where the most frequent class has less than `BALANCED_BELOW` times as many images as the least frequent one, the
    rule is `BALANCED` and no class is in a bucket, because differences of a few images would decide.
    """
    counted = Counter(index["splits"]["train"]["labels"])
    counts = {name: counted[label] for label, name in enumerate(index["classes"])}
    found = bucket_types(counts)
    if max(counts.values()) >= BALANCED_BELOW * min(counts.values()):
        return found
    nothing = {bucket: {"types": 0, "occurrences": 0} for bucket in BUCKETS}
    return found | {"rule": BALANCED, "types": {}, "sizes": nothing}
