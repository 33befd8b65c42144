"""Head, Mid and Tail of the words of the training text, by their frequency. Imports no torch."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bbnet.tasks.buckets import bucket_types


def make_buckets(index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the buckets of the words of a prepared index; see `bucket_types`."""
    return bucket_types(Counter(word for text in index["splits"]["train"]["texts"] for word in text.split()))
