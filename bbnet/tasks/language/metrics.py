"""Metrics of the language task from rows per document. Imports no torch, because `compare` resamples with it."""

import numpy as np

from bbnet.analysis.metric import Metric
from bbnet.tasks.buckets import BUCKETS
from bbnet.tasks.ratios import ratio
from bbnet.tasks.task import Items

SELECTION = "bits_per_byte"
PRIMARY = ("bits_per_byte", "nll_tail")
COUNTED = "tokens"
PARTS = (*BUCKETS, "unseen")  # by the number of the bucket of a token; unseen: not in training
LARGEST_EXPONENT = 700.0  # exp of more is infinite in float64

METRICS = {
    "bits_per_byte": Metric("code length", "bits per byte", "lower", 0),
    "perplexity": Metric("perplexity", "number", "lower", 1),
    "nll_tail": Metric("NLL tail", "nats", "lower", 0),
    "accuracy": Metric("accuracy", "share", "higher", 0, 1),
}
METRICS |= {f"perplexity_{part}": Metric(f"perplexity {part}", "number", "lower", 1) for part in BUCKETS}
METRICS |= {f"dnll_{bucket}": Metric(f"ΔNLL {bucket}", "nats", "lower", shown=False) for bucket in BUCKETS}
METRICS |= {
    "perplexity_unseen": Metric("perplexity unseen", "number", "lower", 1, shown=False),
    "floor_bits_per_byte": Metric("code length of n-grams", "bits per byte", "lower", 0, shown=False),
    "floor_perplexity": Metric("perplexity of n-grams", "number", "lower", 1, shown=False),
}
METRICS |= {
    f"floor_perplexity_{part}": Metric(f"perplexity of n-grams {part}", "number", "lower", 1, shown=False)
    for part in PARTS
}
BY_BUCKET = {"test": {bucket: f"dnll_{bucket}" for bucket in BUCKETS}}


def metrics(items: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns the metrics, or NaN where there is nothing to count.

    Sums run over all documents: `perplexity` = exp(sum of nll / number of tokens), `bits_per_byte` = sum of nll / (ln 2
    * bytes of the texts), which is comparable between tokens of different kinds, and `accuracy` the share of tokens
    that the network ranks first. `perplexity_{part}` is that of the tokens of Head, Mid, Tail and of those that
    training lacks, and `nll_tail` the mean nll of Tail, the logarithm of its perplexity. `floor_...` are those of the
    n-gram model. A perplexity is at most exp(700).

    Args:
        items: as returned by `task.evaluate`, [..., documents].
        weights: [..., documents], how often each document counts; broadcast against the items.
    Returns: arrays of the broadcast shape without its last axis.
    """

    def total(name: str) -> np.ndarray:
        values = np.asarray(items[name], dtype=float)
        return (values if weights is None else values * weights).sum(-1)

    found = {"accuracy": ratio(total("right"), total("tokens"))}
    for model in ("", "floor_"):
        if f"{model}nll" in items:
            found[f"{model}bits_per_byte"] = ratio(total(f"{model}nll"), np.log(2) * total("bytes"))
            found[f"{model}perplexity"] = _perplexity(total(f"{model}nll"), total("tokens"))
        for part in PARTS if f"{model}tail_nll" in items else ():
            of_part = total(f"{model}{part}_nll"), total(f"{part}_tokens")
            found[f"{model}perplexity_{part}"] = _perplexity(*of_part)
    if "tail_nll" in items:
        found["nll_tail"] = ratio(total("tail_nll"), total("tail_tokens"))
    return found


def relative_metrics(items: Items, dense: Items, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns `dnll_{bucket}`: nll per token of the bucket minus that of the dense run of the same seed, in nats.

    It is the logarithm of the ratio of their perplexities.
    """
    counted = 1.0 if weights is None else weights
    return {
        f"dnll_{bucket}": ratio(
            ((np.asarray(items[f"{bucket}_nll"]) - np.asarray(dense[f"{bucket}_nll"])) * counted).sum(-1),
            (np.asarray(items[f"{bucket}_tokens"]) * counted).sum(-1),
        )
        for bucket in BUCKETS
    }


def bucket_sizes(items: Items) -> dict[str, dict[str, int]]:
    """Returns the number of test tokens of each bucket, from one run's items."""
    return {"test": {bucket: int(np.asarray(items[f"{bucket}_tokens"]).sum()) for bucket in BUCKETS}}


def _perplexity(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(ratio(nll, tokens), LARGEST_EXPONENT))
