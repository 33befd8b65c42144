"""Selects the test utterances on which a method gains most, the median, and least against dense. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bbnet.tasks.cases import ranked_cases

TEST_SETS = ("test-clean", "test-other")  # indexed by `other` of the items
ERRORS = ("substitutions", "deletions", "insertions")


def choose(dense: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns the best, median and worst test utterance by gain, the word errors of `dense` minus those of `other`.

    Utterances that both recognise without error are excluded, unless there are no others. Of two utterances, there is
    no median; a single one is the `only` case.

    Args:
        dense, other: `substitutions`, `deletions` and `insertions` [utterances] of each run, in the same order.
    """
    of_dense, of_other = (sum(np.asarray(items[name]) for name in ERRORS) for items in (dense, other))
    gain, relevant = of_dense - of_other, of_dense + of_other > 0
    return ranked_cases(gain, relevant)


def describe(dense: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the caption data of an utterance, from its items of both runs."""
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
    """Returns the texts of a test utterance as 0-d string arrays: `reference`, and the hypothesis of each run by name.

    Args:
        prepared: folder of the prepared arrays, with their `index`.
        predictions: predictions of each run, by name, as returned by `evaluate`.
    """
    texts = {"reference": index["splits"]["test"]["texts"][utterance]}
    texts |= {name: packed["hypothesis"][utterance] for name, packed in predictions.items()}
    return {name: np.array(str(text)) for name, text in texts.items()}
