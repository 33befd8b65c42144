"""Head, Mid and Tail of the training text by counts worked by hand."""

import json
import random
from collections import Counter

import pytest

from bbnet.tasks.asr.buckets import make_buckets


def bucket_words(texts: list[str]) -> dict:
    return make_buckets({"splits": {"train": {"texts": texts}}})


def percentile(values: list[int], share: float) -> float:
    """Interpolated linearly between the order statistics."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def texts_of(counts: dict[str, int]) -> list[str]:
    words = [word for word, count in counts.items() for _ in range(count)]
    random.Random(0).shuffle(words)
    return [" ".join(words[first : first + 5]) for first in range(0, len(words), 5)]


def test_a_case_worked_by_hand():
    # Counts 1 to 11: the median is 6, the 90th percentile 10.
    counts = {letter: number for number, letter in enumerate("ABCDEFGHIJK", 1)}
    found = bucket_words(texts_of(counts))
    assert (found["head_from"], found["median"]) == (10, 6)
    expected = dict.fromkeys("ABCDE", "tail") | dict.fromkeys("FGHI", "mid") | dict.fromkeys("JK", "head")
    assert found["types"] == expected
    assert found["sizes"] == {
        "head": {"types": 2, "occurrences": 21},
        "mid": {"types": 4, "occurrences": 6 + 7 + 8 + 9},
        "tail": {"types": 5, "occurrences": 15},
    }


def test_thresholds_between_counts_are_interpolated():
    # Counts 1, 2, 4, 10: the median is 3; the 90th percentile lies 0.7 of the way from 4 to 10.
    found = bucket_words(texts_of({"A": 1, "B": 2, "C": 4, "D": 10}))
    assert (found["median"], found["head_from"]) == (3, pytest.approx(8.2))
    assert found["types"] == {"A": "tail", "B": "tail", "C": "mid", "D": "head"}


def test_equal_counts_share_a_bucket():
    # Counts 1, 3 and 5: the median is 3, the 90th percentile 5.
    counts = {f"W{number}": (1, 3, 5)[number // 5] for number in range(15)}
    words = bucket_words(texts_of(counts))["types"]
    assert [{words[f"W{number}"] for number in range(first, first + 5)} for first in (0, 5, 10)] == [
        {"tail"},
        {"mid"},
        {"head"},
    ]


def test_types_that_all_occur_alike_are_head():
    found = bucket_words(["A B C", "C B A"])
    assert set(found["types"].values()) == {"head"}
    assert found["sizes"]["tail"] == {"types": 0, "occurrences": 0}


def test_one_type_is_head():
    found = bucket_words(["A A A"])
    assert found["types"] == {"A": "head"}
    assert found["sizes"]["head"] == {"types": 1, "occurrences": 3}


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_an_empty_text_has_no_types(texts):
    found = bucket_words(texts)
    assert found["types"] == {}
    assert all(size == {"types": 0, "occurrences": 0} for size in found["sizes"].values())


def test_random_texts_against_a_percentile_of_ones_own():
    draw = random.Random(2)
    for _ in range(30):
        words = [f"W{int(draw.paretovariate(0.8))}" for _ in range(draw.randint(1, 300))]
        counts = Counter(words)
        median, ninetieth = percentile(list(counts.values()), 0.5), percentile(list(counts.values()), 0.9)
        found = bucket_words([" ".join(words)])
        assert found["types"].keys() == counts.keys()
        published = min(counts.values()) < median or len(set(counts.values())) == 1
        assert found["rule"] == ("published" if published else "up to the median")
        for word, count in counts.items():
            if published:
                expected = "head" if count >= ninetieth - 1e-9 else "tail" if count < median else "mid"
            else:
                expected = "tail" if count == median else "head" if count >= ninetieth - 1e-9 else "mid"
            assert found["types"][word] == expected
        assert sum(size["types"] for size in found["sizes"].values()) == len(counts)
        assert sum(size["occurrences"] for size in found["sizes"].values()) == len(words)


COUNTS = [
    *([1], [3, 3, 3], [1, 2], [1, 1, 2], [1, 2, 2], [1] * 9 + [2], [1] * 20 + [5], [1, *[5] * 20], [1] * 10 + [2] * 10),
    *([1] * 11 + [2] * 9, [1] * 9 + [2] * 11, [1, 1, 1, 7, 8, 9], [1, 1, 2, 3], [2, 2, 2, 2, 3], list(range(1, 30))),
    *([1] * 50 + list(range(2, 51)), [1] * 51 + list(range(2, 51)), [4, 4, 4, 4, 9, 9], [1] * 99 + [100], [5, 9]),
]


@pytest.mark.parametrize("counts", COUNTS, ids=range(len(COUNTS)))
def test_the_tail_is_empty_only_if_all_counts_are_equal(counts):
    found = bucket_words(texts_of({f"W{number}": count for number, count in enumerate(counts)}))
    tail = [counts[int(word[1:])] for word, bucket in found["types"].items() if bucket == "tail"]
    others = [counts[int(word[1:])] for word, bucket in found["types"].items() if bucket != "tail"]
    assert sum(size["types"] for size in found["sizes"].values()) == len(counts)
    assert sum(size["occurrences"] for size in found["sizes"].values()) == sum(counts)
    assert bool(tail) == (len(set(counts)) > 1)
    assert not tail or max(tail) < min(others)


def test_the_training_texts_of_the_index_alone_count():
    index = {"splits": {"train": {"texts": ["A A", "B"]}, "val": {"texts": ["B B B C"]}, "test": {"texts": ["D"]}}}
    found = make_buckets(index)
    assert found == bucket_words(["A A", "B"])
    assert set(found["types"]) == {"A", "B"}
    assert json.loads(json.dumps(found)) == found
