"""Metrics of speech recognition from error counts per utterance. Imports no torch, as `compare` resamples with it."""

from dataclasses import replace

import numpy as np

from bbnet.analysis.metric import Metric
from bbnet.tasks.buckets import BUCKETS
from bbnet.tasks.ratios import ratio
from bbnet.tasks.task import Items

SELECTION = "wer"
PRIMARY = ("wer",)
COUNTED = "words"
OTHER = "_other"  # suffix of metrics on test-other; metrics without it are on test-clean

_CLEAN = {name: Metric(name.upper(), "%", "lower", low=0) for name in ("wer", "cer")}
_CLEAN |= {"werr": Metric("WER reduction", "%", "higher", high=100)}
_CLEAN |= {f"dwer_{bucket}": Metric(f"ΔWER {bucket}", "points", "lower", -100, 100) for bucket in BUCKETS}
_CLEAN |= {f"wer_{bucket}": Metric(f"WER {bucket}", "%", "lower", 0, 100, shown=False) for bucket in (*BUCKETS, "oov")}
_CLEAN |= {"insertion_rate": Metric("insertions", "%", "lower", low=0, shown=False)}
METRICS = _CLEAN | {
    f"{name}{OTHER}": replace(metric, title=f"{metric.title}, test-other", shown=name in ("wer", "werr"))
    for name, metric in _CLEAN.items()
}
BY_BUCKET = {
    test_set: {bucket: f"dwer_{bucket}{suffix}" for bucket in BUCKETS}
    for test_set, suffix in (("test-clean", ""), ("test-other", OTHER))
}


def metrics(items: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns error rates in %, of test-clean (or dev) and, with the suffix `_other`, of test-other.

    `wer` = 100 (S + D + I) / N is computed over words and `cer` over characters, `wer_{bucket}` = 100 (S + D) / N over
    the bucket's reference words, `insertion_rate` = 100 I / N over words. Counts are summed over all utterances; a rate
    is NaN if N is 0.

    Args:
        items: counts of `scoring.count_errors`, and `other` (1 for test-other), [..., utterances].
        weights: [..., utterances], how often each utterance counts; broadcast against the counts.
    Returns: arrays of the broadcast shape without its last axis.
    """
    found = {}
    for suffix, other in (("", 0), (OTHER, 1)):
        of_set = np.asarray(items["other"]) == other
        if of_set.any():
            rates = _rates(items, of_set if weights is None else weights * of_set)
            found |= {f"{name}{suffix}": rate for name, rate in rates.items()}
    return found


def relative_metrics(items: Items, dense: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns the metrics relative to the dense run of the same seed, whose items are `dense`.

    `werr` = 100 (WER_dense - WER) / WER_dense in %, `dwer_{bucket}` = WER_bucket - WER_bucket of dense in points.
    """
    own, theirs = metrics(items, weights), metrics(dense, weights)
    found = {}
    for suffix in ("", OTHER):
        if f"wer{suffix}" in own:
            gain = theirs[f"wer{suffix}"] - own[f"wer{suffix}"]
            found[f"werr{suffix}"] = 100 * ratio(gain, theirs[f"wer{suffix}"])
            for bucket in BUCKETS:
                name = f"wer_{bucket}{suffix}"
                found[f"d{name}"] = own[name] - theirs[name]
    return found


def item_counts(items: Items) -> dict[str, int]:
    """Returns the number of utterances that each metric counts: those of its test set."""
    other = int((np.asarray(items["other"]) == 1).sum())
    clean = len(items["other"]) - other
    return {name: other if name.endswith(OTHER) else clean for name in METRICS}


def bucket_sizes(items: Items) -> dict[str, dict[str, int]]:
    """Returns the number of reference words per test set and bucket, from the items of one run."""
    return {
        test_set: {bucket: int(items[f"{bucket}_words"][items["other"] == other].sum()) for bucket in BUCKETS}
        for other, test_set in enumerate(BY_BUCKET)
    }


def _rates(items: Items, weights: np.ndarray) -> dict[str, np.ndarray]:
    def total(*names: str) -> np.ndarray:
        return sum((np.asarray(items[name]) * weights).sum(-1) for name in names)

    words = total("words")
    rates = {
        "wer": 100 * ratio(total("substitutions", "deletions", "insertions"), words),
        "cer": 100 * ratio(total("character_errors"), total("characters")),
    }
    if "head_words" in items:
        rates["insertion_rate"] = 100 * ratio(total("insertions"), words)
        for bucket in (*BUCKETS, "oov"):
            errors = total(f"{bucket}_substitutions", f"{bucket}_deletions")
            rates[f"wer_{bucket}"] = 100 * ratio(errors, total(f"{bucket}_words"))
    return rates
