"""Word errors by hand, against an edit distance of its own and against all alignments."""

import random
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from bbnet.analysis.alignment import align
from bbnet.tasks.asr.scoring import count_errors

BUCKETS = {"THE": "head", "OF": "head", "HORSE": "mid", "RIVER": "mid", "VIOLIN": "tail", "ORCHARD": "tail"}


def edit_distance(one, other) -> int:
    """Levenshtein, over words or characters."""
    row = list(range(len(other) + 1))
    for first, left in enumerate(one, 1):
        corner, row[0] = row[0], first
        for second, right in enumerate(other, 1):
            corner, row[second] = row[second], min(row[second] + 1, row[second - 1] + 1, corner + (left != right))
    return row[-1]


def one(reference: str, hypothesis: str) -> dict[str, int]:
    """The counts of one utterance that are not 0."""
    found = count_errors([reference], [hypothesis], BUCKETS)
    assert all(counts.shape == (1,) and counts.dtype == np.int64 for counts in found.values())
    return {name: int(counts[0]) for name, counts in found.items() if counts[0]}


CASES = {
    "identical": (("THE HORSE", "THE HORSE"), {"words": 2, "characters": 9, "head_words": 1, "mid_words": 1}),
    "substitution": (
        ("THE HORSE", "THE HOUSE"),
        {"words": 2, "characters": 9, "head_words": 1, "mid_words": 1}
        | {"substitutions": 1, "mid_substitutions": 1, "character_errors": 1},
    ),
    "deletion": (
        ("THE VIOLIN", "THE"),
        {"words": 2, "characters": 10, "head_words": 1, "tail_words": 1}
        | {"deletions": 1, "tail_deletions": 1, "character_errors": 7},
    ),
    "deletion of the first word": (
        ("THE VIOLIN", "VIOLIN"),
        {"words": 2, "characters": 10, "head_words": 1, "tail_words": 1}
        | {"deletions": 1, "head_deletions": 1, "character_errors": 4},
    ),
    "insertion before the first word": (
        ("RIVER", "OF RIVER"),
        {"words": 1, "characters": 5, "mid_words": 1, "insertions": 1, "character_errors": 3},
    ),
    "insertion behind the last word": (
        ("RIVER", "RIVER OF THE"),
        {"words": 1, "characters": 5, "mid_words": 1, "insertions": 2, "character_errors": 7},
    ),
    "insertion within": (
        ("THE RIVER", "THE THE RIVER"),
        {"words": 2, "characters": 9, "head_words": 1, "mid_words": 1, "insertions": 1, "character_errors": 4},
    ),
    "empty hypothesis": (
        ("THE RIVER ORCHARD", ""),
        {"words": 3, "characters": 17, "head_words": 1, "mid_words": 1, "tail_words": 1}
        | {"deletions": 3, "head_deletions": 1, "mid_deletions": 1, "tail_deletions": 1, "character_errors": 17},
    ),
    "empty reference": (("", "THE RIVER"), {"insertions": 2, "character_errors": 9}),
    "both empty": (("", ""), {}),
    "unseen word, right": (("QUIZ THE", "QUIZ THE"), {"words": 2, "characters": 8, "oov_words": 1, "head_words": 1}),
    "unseen word, wrong": (
        ("QUIZ THE", "QUIT THE"),
        {"words": 2, "characters": 8, "oov_words": 1, "head_words": 1}
        | {"substitutions": 1, "oov_substitutions": 1, "character_errors": 1},
    ),
    "unseen word, missing": (
        ("THE QUIZ", "THE"),
        {"words": 2, "characters": 8, "oov_words": 1, "head_words": 1}
        | {"deletions": 1, "oov_deletions": 1, "character_errors": 5},
    ),
    "unseen word, written for a known one": (
        ("THE RIVER", "THE QUIZ"),
        {"words": 2, "characters": 9, "head_words": 1, "mid_words": 1}
        | {"substitutions": 1, "mid_substitutions": 1, "character_errors": 5},
    ),
    "all at once": (
        ("THE HORSE OF RIVER", "OF THE HOUSE OF"),
        {"words": 4, "characters": 18, "head_words": 2, "mid_words": 2, "insertions": 1}
        | {"substitutions": 1, "mid_substitutions": 1, "deletions": 1, "mid_deletions": 1, "character_errors": 10},
    ),
    "the same word in a word": (
        ("IT'S", "IT'S'S"),
        {"words": 1, "characters": 4, "oov_words": 1}
        | {"substitutions": 1, "oov_substitutions": 1, "character_errors": 2},
    ),
}


@pytest.mark.parametrize(("texts", "expected"), CASES.values(), ids=CASES.keys())
def test_a_case_worked_by_hand(texts, expected):
    assert one(*texts) == expected


def test_rows_are_the_utterances_one_by_one():
    texts = [texts for texts, _ in CASES.values()]
    found = count_errors(*zip(*texts, strict=True), BUCKETS)
    for row, (_, expected) in enumerate(CASES.values()):
        assert {name: int(counts[row]) for name, counts in found.items() if counts[row]} == expected


def random_pairs(count: int, words: list[str]) -> tuple[list[str], list[str]]:
    """Texts and what became of them: some words changed, gone or new, some texts unrelated, some empty."""
    draw = random.Random(1)
    references, hypotheses = [], []
    for number in range(count):
        reference = draw.choices(words, k=draw.randint(0, 9))
        hypothesis = draw.choices(words, k=draw.randint(0, 9)) if number % 3 == 0 else []
        for word in reference if number % 3 else []:
            change = draw.random()
            hypothesis += [] if change < 0.2 else [draw.choice(words)] if change < 0.4 else [word]
            hypothesis += [draw.choice(words)] if draw.random() < 0.15 else []
        references.append(" ".join(reference))
        hypotheses.append(" ".join(hypothesis))
    return references, hypotheses


@pytest.fixture
def pairs():
    return random_pairs(300, [*BUCKETS, "QUIZ", "A", "IT'S"])


def test_errors_are_those_of_an_independent_edit_distance(pairs):
    found = count_errors(*pairs, BUCKETS)
    for row, (reference, hypothesis) in enumerate(zip(*pairs, strict=True)):
        errors = found["substitutions"][row] + found["deletions"][row] + found["insertions"][row]
        assert errors == edit_distance(reference.split(), hypothesis.split())
        assert found["character_errors"][row] == edit_distance(reference, hypothesis)
        assert found["words"][row] == len(reference.split())
        assert found["characters"][row] == len(reference)
        length = len(hypothesis.split())
        assert found["words"][row] - found["deletions"][row] + found["insertions"][row] == length


def alignments(reference: tuple, hypothesis: tuple) -> Iterator[tuple[str, ...]]:
    """All alignments, as what happens to each reference word (match, sub, del), and insertions."""
    if not reference and not hypothesis:
        yield ()
    if reference:
        yield from (("del", *rest) for rest in alignments(reference[1:], hypothesis))
    if hypothesis:
        yield from (("ins", *rest) for rest in alignments(reference, hypothesis[1:]))
    if reference and hypothesis:
        first = "match" if reference[0] == hypothesis[0] else "sub"
        yield from ((first, *rest) for rest in alignments(reference[1:], hypothesis[1:]))


def first_seen_in_order(symbols: str) -> bool:
    """Whether a text is the first of those that differ by names of symbols alone."""
    return list(dict.fromkeys(symbols)) == list("abc")[: len(set(symbols))]


@pytest.mark.parametrize("longest", [3, pytest.param(4, marks=pytest.mark.thorough)])
def test_the_alignment_is_the_best_of_all_for_all_short_texts(longest):
    """Fewest edits, then most matches, then the leftmost matches, then the leftmost substitutions."""
    texts = [word for length in range(longest + 1) for word in product("abc", repeat=length)]
    pairs = [pair for pair in product(texts, texts) if first_seen_in_order("".join(pair[0] + pair[1]))]
    assert len(pairs) > 3 ** (longest + 2)

    def quality(alignment: tuple[str, ...]) -> tuple:
        of_words = [kind for kind in alignment if kind != "ins"]
        edits = sum(kind != "match" for kind in alignment)
        return edits, -of_words.count("match"), [kind != "match" for kind in of_words], [k == "del" for k in of_words]

    for reference, hypothesis in pairs:
        best = min(alignments(reference, hypothesis), key=quality)
        names = {"match": "matched", "sub": "substituted", "del": "deleted"}
        found = align(reference, hypothesis)
        assert found.words == [names[kind] for kind in best if kind != "ins"], (reference, hypothesis)
        assert sum(found.inserted) == best.count("ins"), (reference, hypothesis)
        read = [word for word, inserted in zip(hypothesis, found.inserted, strict=True) if not inserted]
        aligned = [(word, kind) for word, kind in zip(reference, found.words, strict=True) if kind != "deleted"]
        for word, (own, kind) in zip(read, aligned, strict=True):
            assert (word == own) == (kind == "matched"), (reference, hypothesis)


def sclite_cost(reference: list[str], hypothesis: list[str]) -> int:
    """The least cost of an alignment by sclite's weights: substitution 4, deletion and insertion 3."""
    row = [3 * place for place in range(len(hypothesis) + 1)]
    for word in reference:
        above, row = row, [row[0] + 3]
        for place, other in enumerate(hypothesis, 1):
            row.append(min(above[place] + 3, row[-1] + 3, above[place - 1] + 4 * (word != other)))
    return row[-1]


def test_texts_with_some_errors_are_aligned_at_the_least_cost_of_sclite():
    """Only texts that have little in common have cheaper alignments, with more edits."""
    pairs = list(zip(*random_pairs(1500, [*BUCKETS, "QUIZ", "A"]), strict=True))
    alike, count = 0, 0
    for number, texts in enumerate(pairs):
        reference, hypothesis = (text.split() for text in texts)
        found = align(reference, hypothesis)
        cost = 4 * found.words.count("substituted") + 3 * (found.words.count("deleted") + sum(found.inserted))
        assert cost >= sclite_cost(reference, hypothesis)
        if number % 3:
            count += 1
            alike += cost == sclite_cost(reference, hypothesis)
    assert alike > 0.99 * count


def test_buckets_and_insertions_sum_to_all_errors(pairs):
    found = count_errors(*pairs, BUCKETS)
    for name in ("words", "substitutions", "deletions"):
        np.testing.assert_array_equal(
            sum(found[f"{bucket}_{name}"] for bucket in ("head", "mid", "tail", "oov")), found[name]
        )
    for bucket in ("head", "mid", "tail", "oov"):
        words = [[BUCKETS.get(word, "oov") for word in reference.split()].count(bucket) for reference in pairs[0]]
        assert found[f"{bucket}_words"].tolist() == words
        assert (found[f"{bucket}_substitutions"] + found[f"{bucket}_deletions"] <= words).all()


def test_without_buckets_there_are_none_and_the_rest_is_alike(pairs):
    with_, without = count_errors(*pairs, BUCKETS), count_errors(*pairs)
    assert set(without) == {
        "words", "substitutions", "deletions", "insertions", "characters", "character_errors"
    }  # fmt: skip
    assert all((with_[name] == counts).all() for name, counts in without.items())


def test_an_order_of_utterances_of_its_own_changes_nothing(pairs):
    found = count_errors(*pairs, BUCKETS)
    order = np.random.default_rng(0).permutation(len(pairs[0]))
    again = count_errors(*([texts[place] for place in order] for texts in pairs), BUCKETS)
    assert all((again[name] == counts[order]).all() for name, counts in found.items())


def test_more_word_types_than_a_byte_holds_are_told_apart():
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    words = [f"{first}{second}" for first in letters for second in letters]
    found = count_errors([" ".join(words)], [" ".join([*words[:-1], "AA"])])
    assert (found["substitutions"][0], found["deletions"][0], found["insertions"][0]) == (1, 0, 0)
