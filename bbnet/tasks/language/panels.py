"""Selects the test documents on which a method gains most, the median, and least against dense. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bbnet.tasks.cases import ranked_cases
from bbnet.tasks.language.data.tokens import load_tokeniser

TOKENS_BEFORE, TOKENS_AFTER = 90, 30  # of the token that a passage is shown for


def choose(dense: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns the best, median and worst test document by gain, the nll per token of `dense` minus that of `other`.

    Of two documents, there is no median; a single one is the `only` case.

    Args:
        dense, other: `nll` and `tokens` [documents] of each run, in the same order.
    """
    gain = (np.asarray(dense["nll"]) - np.asarray(other["nll"])) / np.asarray(dense["tokens"])
    return ranked_cases(gain, np.ones(len(gain), dtype=bool))


def describe(dense: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the caption data of a document from its items of both runs: `tokens`, and of each run the mean nll."""
    means = {name: float(items["nll"] / items["tokens"]) for name, items in (("dense", dense), ("other", other))}
    return {"document": str(dense["document"]), "tokens": int(dense["tokens"])} | means


def case(
    prepared: Path, index: Mapping[str, Any], document: int, predictions: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns the passage of a document around the token whose nll is most above that of dense.

    `tokens` are the texts of its tokens, [tokens], and by name the `nll` of each run, float32 [tokens].

    Args:
        prepared: folder of the prepared arrays, with their `index`.
        predictions: predictions of each run, `dense` and `other`, as returned by `evaluate`.
    """
    first, end = np.load(prepared / "test_starts.npy")[document : document + 2] - 1
    nll = {name: packed["nll"][first:end].astype(np.float32) for name, packed in predictions.items()}
    peak = int(np.argmax(nll["other"] - nll["dense"]))
    shown = slice(max(0, peak - TOKENS_BEFORE), peak + TOKENS_AFTER + 1)
    tokens = np.load(prepared / "test.npy", mmap_mode="r")[first + 1 : end + 1][shown]
    tokeniser = load_tokeniser(prepared, index)
    texts = np.array([tokeniser.decode(tokens[place : place + 1]) for place in range(len(tokens))])
    return {"tokens": texts} | {name: values[shown] for name, values in nll.items()}
