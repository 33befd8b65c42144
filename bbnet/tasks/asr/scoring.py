"""Counts word and character errors per utterance, by the bucket of the reference word. Imports no torch."""

from collections.abc import Mapping, Sequence

import jiwer
import numpy as np

from bbnet.analysis.alignment import align

BUCKETS = ("head", "mid", "tail", "oov")


def count_errors(
    references: Sequence[str], hypotheses: Sequence[str], buckets: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Returns counts per utterance, int64 [utterances], from the alignments of normalised texts by `align`.

    The counts are `words` and `characters` of the reference, `substitutions`, `deletions` and `insertions` of words,
    and `character_errors`. With `buckets` (word -> head, mid or tail) there are also `{bucket}_words`,
    `{bucket}_substitutions` and `{bucket}_deletions`, by the bucket of the reference word, where `oov` are the words
    that do not occur in the training text. Insertions have no reference word and therefore no bucket.
    """
    names = ["words", "substitutions", "deletions", "insertions", "characters", "character_errors"]
    if buckets is not None:
        names += [f"{bucket}_{name}" for bucket in BUCKETS for name in ("words", "substitutions", "deletions")]
    counts = {name: np.zeros(len(references), dtype=np.int64) for name in names}

    def count(name: str, utterance: int, of_reference: Sequence[str]) -> None:
        counts[name][utterance] += len(of_reference)
        if buckets is not None:
            for word in of_reference:
                counts[f"{buckets.get(word, 'oov')}_{name}"][utterance] += 1

    for utterance, texts in enumerate(zip(references, hypotheses, strict=True)):
        reference, hypothesis = (text.split() for text in texts)
        alignment = align(reference, hypothesis)
        happened = list(zip(reference, alignment.words, strict=True))
        count("words", utterance, reference)
        count("substitutions", utterance, [word for word, kind in happened if kind == "substituted"])
        count("deletions", utterance, [word for word, kind in happened if kind == "deleted"])
        counts["insertions"][utterance] = sum(alignment.inserted)
    characters = jiwer.process_characters(list(references), list(hypotheses))
    for utterance, (reference, chunks) in enumerate(zip(characters.references, characters.alignments, strict=True)):
        counts["characters"][utterance] = len(reference)
        counts["character_errors"][utterance] = sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
    return counts
