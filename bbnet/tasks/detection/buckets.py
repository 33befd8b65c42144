"""Head, Mid and Tail of the classes, by their number of training objects. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from bbnet.tasks.buckets import bucket_types


def make_buckets(index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the buckets of the classes of a prepared index; see `bucket_types`. Difficult objects do not count."""
    return bucket_types(index["objects"])
