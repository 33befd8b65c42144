"""Head, Mid and Tail: the word types of the training text by how often they occur. Imports no torch."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

HEAD_PERCENTILE, TAIL_PERCENTILE = 90, 50


def make_buckets(index: Mapping[str, Any]) -> dict[str, Any]:
    """The buckets of a prepared index: see `bucket_words`."""
    return bucket_words(index["splits"]["train"]["texts"])


def bucket_words(texts: Iterable[str]) -> dict[str, Any]:
    """Puts every word type of normalised texts into a bucket by its count c.

    head: c >= the 90th percentile of the types' counts; tail: c < their median; mid: between. Percentiles are
    interpolated linearly, so types of equal count share a bucket.

    Returns: `words` (type -> bucket), the thresholds, and per bucket the number of types and of their occurrences.
    """
    counts = Counter(word for text in texts for word in text.split())
    values = np.array(list(counts.values()) or [0])
    head_from, mid_from = (float(np.percentile(values, p)) for p in (HEAD_PERCENTILE, TAIL_PERCENTILE))
    words = {
        word: "head" if count >= head_from else "mid" if count >= mid_from else "tail"
        for word, count in sorted(counts.items())
    }
    sizes = {
        bucket: {
            "types": sum(1 for own in words.values() if own == bucket),
            "occurrences": sum(counts[word] for word, own in words.items() if own == bucket),
        }
        for bucket in ("head", "mid", "tail")
    }
    return {"head_from": head_from, "mid_from": mid_from, "sizes": sizes, "words": words}
