"""Alignment of recognised words with those of a reference, for counting errors and for showing them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Alignment:
    """What happened to each word of a reference, and which words of the hypothesis were inserted.

    The words of the hypothesis that were not inserted correspond, in order, to those of the reference that were not
    deleted.
    """

    words: list[Literal["matched", "substituted", "deleted"]]
    inserted: list[bool]


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Aligns words.

    Of the alignments with the fewest edits, the one with the most matches is taken, as by NIST's sclite, so that a word
    that was recognised is not charged. Of these, the one that matches the leftmost reference words is taken, of these
    the one that substitutes the leftmost of the others, and of these the one that inserts the last words.
    """
    # The best alignment of each pair of prefixes: (edits, substitutions, and binary digits, the first word most
    # significant: not matched and deleted per reference word, inserted per word of the hypothesis). With the fewest
    # edits, fewest substitutions are most matches.
    row = [(edits, 0, 0, 0, (1 << edits) - 1) for edits in range(len(hypothesis) + 1)]
    for word in reference:
        above, row = row, []
        for place, (edits, substitutions, missed, deleted, inserted) in enumerate(above):
            options = [(edits + 1, substitutions, 2 * missed + 1, 2 * deleted + 1, inserted)]
            if place:
                edits, substitutions, missed, deleted, inserted = row[-1]
                options.append((edits + 1, substitutions, missed, deleted, 2 * inserted + 1))
                wrong = int(hypothesis[place - 1] != word)
                edits, substitutions, missed, deleted, inserted = above[place - 1]
                options.append((edits + wrong, substitutions + wrong, 2 * missed + wrong, 2 * deleted, 2 * inserted))
            row.append(min(options))
    *_, missed, deleted, inserted = row[-1]
    of_words = zip(_digits(missed, len(reference)), _digits(deleted, len(reference)), strict=True)
    return Alignment(
        ["deleted" if gone else "substituted" if wrong else "matched" for wrong, gone in of_words],
        _digits(inserted, len(hypothesis)),
    )


def _digits(number: int, count: int) -> list[bool]:
    return [bool(number >> place & 1) for place in reversed(range(count))]
