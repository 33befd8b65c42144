"""Selects utterances on which a method gains and loses most against dense, and the median. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEST_SETS = ("test-clean", "test-other")  # indexed by `other` of the items
ERRORS = ("substitutions", "deletions", "insertions")


def choose(dense: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns best, median and worst test utterance by gain = errors of `dense` minus errors of `other`, in words.

    Utterances that both recognise without error are left out, unless there are no others.

    Args:
        dense, other: items, `substitutions`, `deletions`, `insertions` [utterances], of the same utterances in the same
            order.
    """
    of_dense, of_other = (sum(np.asarray(items[name]) for name in ERRORS) for items in (dense, other))
    gain, something = of_dense - of_other, of_dense + of_other > 0
    candidates = np.flatnonzero(something) if something.any() else np.arange(len(gain))
    ranked = candidates[np.argsort(-gain[candidates], kind="stable")]
    return {"best": int(ranked[0]), "median": int(ranked[(len(ranked) - 1) // 2]), "worst": int(ranked[-1])}


def describe(dense: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers that are printed beside a case, from its items of both runs."""
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
    """Returns the texts of one test utterance, 0-d string arrays: `reference`, and the hypothesis of each run.

    Args:
        prepared: folder of the prepared arrays, with their `index`.
        predictions: by name, as packed by `evaluate`.
    """
    texts = {"reference": index["splits"]["test"]["texts"][utterance]}
    texts |= {name: packed["hypothesis"][utterance] for name, packed in predictions.items()}
    return {name: np.array(str(text)) for name, text in texts.items()}
