"""Counts word and character errors per utterance, by the bucket of the reference word. Imports no torch."""

from collections.abc import Mapping, Sequence

import jiwer
import numpy as np

BUCKETS = ("head", "mid", "tail", "oov")


def count_errors(
    references: Sequence[str], hypotheses: Sequence[str], buckets: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Returns counts per utterance, int64 [utterances], from alignments of normalised texts with the fewest edits.

    The counts are `words` and `characters` of the reference, `substitutions`, `deletions` and `insertions` of words,
    and `character_errors`. With `buckets` (word -> head, mid or tail) there are also `{bucket}_words`,
    `{bucket}_substitutions` and `{bucket}_deletions`, by the bucket of the reference word, where `oov` are the words
    that do not occur in the training text. Insertions have no reference word and therefore no bucket.
    """
    words = jiwer.process_words(list(references), list(hypotheses))
    characters = jiwer.process_characters(list(references), list(hypotheses))
    counts = {
        name: np.zeros(len(references), dtype=np.int64)
        for name in ("words", "substitutions", "deletions", "insertions", "characters", "character_errors")
    }
    by_bucket = () if buckets is None else BUCKETS
    for bucket in by_bucket:
        counts |= {
            f"{bucket}_{name}": np.zeros(len(references), dtype=np.int64)
            for name in ("words", "substitutions", "deletions")
        }
    for utterance, (reference, chunks) in enumerate(zip(words.references, words.alignments, strict=True)):
        counts["words"][utterance] = len(reference)
        if buckets is not None:
            for word in reference:
                counts[f"{buckets.get(word, 'oov')}_words"][utterance] += 1
        for chunk in chunks:
            if chunk.type == "equal":
                continue
            if chunk.type == "insert":
                counts["insertions"][utterance] += chunk.hyp_end_idx - chunk.hyp_start_idx
                continue
            kind = "deletions" if chunk.type == "delete" else "substitutions"
            charged = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            counts[kind][utterance] += len(charged)
            if buckets is not None:
                for word in charged:
                    counts[f"{buckets.get(word, 'oov')}_{kind}"][utterance] += 1
    for utterance, (reference, chunks) in enumerate(zip(characters.references, characters.alignments, strict=True)):
        counts["characters"][utterance] = len(reference)
        counts["character_errors"][utterance] = sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
    return counts
