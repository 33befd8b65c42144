"""Which utterances are shown, and what is shown of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bbnet.tasks.asr.metrics import BY_BUCKET, METRICS, bucket_sizes
from bbnet.tasks.asr.panels import case, choose, describe


def items(substitutions, deletions=None, insertions=None) -> pd.DataFrame:
    count = len(substitutions)
    return pd.DataFrame(
        {
            "utterance": [f"u{number}" for number in range(count)],
            "other": [number % 2 for number in range(count)],
            "words": [20 + number for number in range(count)],
            "substitutions": substitutions,
            "deletions": deletions or [0] * count,
            "insertions": insertions or [0] * count,
        }
    )


@pytest.mark.parametrize(
    ("dense", "other", "expected"),
    [
        # gains 5, -3, 1, 0, 2
        (items([6, 1, 3, 1, 3]), items([1, 4, 2, 1, 1]), (0, 2, 1)),
        # every kind counts: gains 1, 2, 3
        (items([1, 0, 0], [0, 2, 0], [0, 0, 3]), items([0, 0, 0]), (2, 1, 0)),
        # and against: gains -1, -2, -3
        (items([0, 0, 0]), items([1, 0, 0], [0, 2, 0], [0, 0, 3]), (0, 1, 2)),
        # one kind for another is no gain: 0, 1, 0
        (items([1, 2, 2]), items([0, 1, 2], [1, 0, 0]), (1, 0, 2)),
        # even number: the upper of the two in the middle; gains 4, 3, 2, 1
        (items([4, 3, 2, 1]), items([0] * 4), (0, 1, 3)),
        # ties: in the order of the utterances
        (items([1] * 5), items([0] * 5), (0, 2, 4)),
    ],
)
def test_best_median_and_worst(dense, other, expected):
    assert tuple(choose(dense, other)[rank] for rank in ("best", "median", "worst")) == expected


def test_utterances_without_an_error_of_either_are_left_out():
    dense, other = items([0, 4, 0, 0, 0]), items([0, 1, 2, 0, 1])
    # utterances 0 and 3 have nothing to show; gains of 1, 2 and 4: 3, -2, -1
    assert choose(dense, other) == {"best": 1, "median": 4, "worst": 2}


def test_an_utterance_with_as_many_errors_of_both_is_shown():
    assert choose(items([0, 2]), items([0, 2])) == {"only": 1}


def test_of_two_utterances_there_is_no_median():
    assert choose(items([0, 2, 3]), items([0, 1, 5])) == {"best": 1, "worst": 2}


def test_if_no_utterance_has_an_error_they_are_shown():
    assert choose(items([0] * 3), items([0] * 3)) == {"best": 0, "median": 1, "worst": 2}


def test_a_case_is_described_by_its_key_and_the_errors_of_both():
    dense, other = items([6, 1], [2, 3], [0, 4]), items([5, 0], [1, 0], [0, 7])
    described = [json.loads(json.dumps(describe(dense.loc[number], other.loc[number]))) for number in (0, 1)]
    assert described[0] == {
        "utterance": "u0",
        "test_set": "test-clean",
        "words": 20,
        "dense": {"substitutions": 6, "deletions": 2, "insertions": 0},
        "other": {"substitutions": 5, "deletions": 1, "insertions": 0},
    }
    assert (described[1]["test_set"], described[1]["other"]["insertions"]) == ("test-other", 7)


def test_a_case_has_the_reference_and_every_hypothesis(tmp_path):
    index = {"splits": {"test": {"utterances": ["u0", "u1"], "texts": ["A LAMP", "THE YELLOW LAMP"]}}}
    np.savez(tmp_path / "dense.npz", hypothesis=np.array(["", "THE YELLOW"]))
    np.savez(tmp_path / "other.npz", hypothesis=np.array(["A LAMP'S LIGHT", ""]))
    predictions = {name: dict(np.load(tmp_path / f"{name}.npz")) for name in ("dense", "other")}
    shown = [case(Path("no-such-folder"), index, number, predictions) for number in (0, 1)]
    np.savez_compressed(tmp_path / "panels.npz", **shown[0])
    saved = np.load(tmp_path / "panels.npz")
    assert {name: str(saved[name]) for name in saved} == {"reference": "A LAMP", "dense": "", "other": "A LAMP'S LIGHT"}
    assert {array.shape for array in shown[1].values()} == {()}
    assert {name: str(text) for name, text in shown[1].items()} == {
        "reference": "THE YELLOW LAMP",
        "dense": "THE YELLOW",
        "other": "",
    }


def test_the_metrics_by_bucket_are_metrics_and_have_sizes():
    of_one_run = pd.DataFrame(
        {"other": [0, 1, 0], "head_words": [5, 3, 4], "mid_words": [2.0, 0.0, 1.0], "tail_words": [0, 1, 0]},
        index=[7, 8, 9],
    )
    sizes = bucket_sizes(of_one_run)
    assert sizes == {"test-clean": {"head": 9, "mid": 3, "tail": 0}, "test-other": {"head": 3, "mid": 0, "tail": 1}}
    assert bucket_sizes({name: of_one_run[name].to_numpy() for name in of_one_run}) == sizes
    assert {row: list(of_row) for row, of_row in BY_BUCKET.items()} == {
        row: list(of_row) for row, of_row in sizes.items()
    }
    assert {METRICS[metric].unit for row in BY_BUCKET.values() for metric in row.values()} == {"points"}
