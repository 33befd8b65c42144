"""Utterances to look at: where a method gains and loses most beside dense, and its median. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEST_SETS = ("test-clean", "test-other")  # by `other` of the items
ERRORS = ("substitutions", "deletions", "insertions")


def choose(dense: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Best, median and worst test utterance by gain = errors of `dense` minus errors of `other`, in words.

    Utterances without an error of either have nothing to show and are left out, unless all are such.

    Args:
        dense, other: items, `substitutions`, `deletions`, `insertions` [utterances], the same utterances in the same
            order.
    """
    of_dense, of_other = (sum(np.asarray(items[name]) for name in ERRORS) for items in (dense, other))
    gain, something = of_dense - of_other, of_dense + of_other > 0
    candidates = np.flatnonzero(something) if something.any() else np.arange(len(gain))
    ranked = candidates[np.argsort(-gain[candidates], kind="stable")]
    return {"best": int(ranked[0]), "median": int(ranked[(len(ranked) - 1) // 2]), "worst": int(ranked[-1])}


def describe(dense: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What is written beside a case; its items of both runs."""
    return {
        "utterance": str(dense["utterance"]),
        "test_set": TEST_SETS[int(dense["other"])],
        "words": int(dense["words"]),
        "dense": {name: int(dense[name]) for name in ERRORS},
        "other": {name: int(other[name]) for name in ERRORS},
    }


def case(
    prepared: Path, index: Mapping[str, Any], utterance: int, predictions: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Texts of one test utterance, 0-d string arrays: `reference`, and what each of `predictions` wrote.

    Args:
        prepared: folder of the prepared arrays; `index` is theirs.
        predictions: by name, as `evaluate` packed them.
    """
    texts = {"reference": index["splits"]["test"]["texts"][utterance]}
    texts |= {name: packed["hypothesis"][utterance] for name, packed in predictions.items()}
    return {name: np.array(str(text)) for name, text in texts.items()}
