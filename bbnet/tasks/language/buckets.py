"""Head, Mid and Tail of the tokens, by how often they occur in training. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from bbnet.tasks.buckets import bucket_types


def make_buckets(index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the buckets of the tokens of a prepared index that occur in training; see `bucket_types`."""
    return bucket_types({name: count for name, count in zip(index["names"], index["counts"], strict=True) if count})
