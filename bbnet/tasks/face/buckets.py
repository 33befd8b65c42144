"""Head, Mid and Tail of the identities, by their number of training images. Imports no torch."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bbnet.tasks.buckets import bucket_types


def make_buckets(index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the buckets of the identities of a prepared index; see `bucket_types`."""
    return bucket_types(Counter(index["identities"][label] for label in index["splits"]["train"]["labels"]))
