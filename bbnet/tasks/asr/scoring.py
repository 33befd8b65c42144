"""Counts word and character errors per utterance, by the bucket of the reference word. Imports no torch."""

from collections.abc import Mapping, Sequence

import jiwer
import numpy as np

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
        substituted, deleted, insertions = align(reference, hypothesis)
        count("words", utterance, reference)
        count("substitutions", utterance, substituted)
        count("deletions", utterance, deleted)
        counts["insertions"][utterance] = insertions
    characters = jiwer.process_characters(list(references), list(hypotheses))
    for utterance, (reference, chunks) in enumerate(zip(characters.references, characters.alignments, strict=True)):
        counts["characters"][utterance] = len(reference)
        counts["character_errors"][utterance] = sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
    return counts


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[list[str], list[str], int]:
    """Aligns words; returns the substituted and the deleted reference words, and the number of insertions.

    Of the alignments with the fewest edits, the one with the most matches is taken, as by NIST's sclite, so that a word
    that was recognised is not charged. Of these, the one that matches the leftmost reference words is taken, and of
    these the one that substitutes the leftmost of the others.
    """
    # The best alignment of each pair of prefixes: (edits, substitutions, and a binary digit per reference word, the
    # first word most significant, for not matched and for deleted). With the fewest edits, fewest substitutions are
    # most matches.
    row = [(edits, 0, 0, 0) for edits in range(len(hypothesis) + 1)]
    for word in reference:
        above, row = row, []
        for place, (edits, substitutions, missed, deleted) in enumerate(above):
            options = [(edits + 1, substitutions, 2 * missed + 1, 2 * deleted + 1)]
            if place:
                edits, substitutions, missed, deleted = row[-1]
                options.append((edits + 1, substitutions, missed, deleted))
                wrong = int(hypothesis[place - 1] != word)
                edits, substitutions, missed, deleted = above[place - 1]
                options.append((edits + wrong, substitutions + wrong, 2 * missed + wrong, 2 * deleted))
            row.append(min(options))
    edits, substitutions, missed, deleted = row[-1]
    words = [(word, 1 << place) for place, word in enumerate(reversed(reference))][::-1]
    return (
        [word for word, digit in words if missed & digit and not deleted & digit],
        [word for word, digit in words if deleted & digit],
        edits - missed.bit_count(),
    )
