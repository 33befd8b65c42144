"""Rates of the corpus from counts per utterance, against repeating utterances and by hand."""

import numpy as np
import pytest

from bbnet.tasks.asr.metrics import METRICS, SELECTION, metrics, relative_metrics

PLAIN = ("words", "substitutions", "deletions", "insertions", "characters", "character_errors")
BUCKETED = tuple(
    f"{bucket}_{name}" for bucket in ("head", "mid", "tail", "oov") for name in ("words", "substitutions", "deletions")
)


def random_items(seed: int, shape: tuple[int, ...], other: np.ndarray) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    items = {name: draw.integers(0, 9, shape) for name in (*PLAIN, *BUCKETED)}
    return items | {"other": np.broadcast_to(other, shape)}


OTHER = np.array([0, 1, 0, 0, 1, 1, 0], dtype=np.int8)


def by_hand() -> dict[str, np.ndarray]:
    """Three utterances, the last of test-other."""
    items = {name: np.zeros(3, dtype=np.int64) for name in (*PLAIN, *BUCKETED)}
    return items | {
        "other": np.array([0, 0, 1], dtype=np.int8),
        "words": np.array([4, 6, 5]),
        "substitutions": np.array([1, 1, 2]),
        "deletions": np.array([0, 2, 0]),
        "insertions": np.array([1, 0, 3]),
        "characters": np.array([20, 30, 10]),
        "character_errors": np.array([5, 5, 20]),
        "head_words": np.array([2, 3, 4]),
        "head_substitutions": np.array([1, 0, 2]),
        "head_deletions": np.array([0, 1, 0]),
        "mid_words": np.array([1, 1, 1]),
        "tail_words": np.array([1, 1, 0]),
        "tail_substitutions": np.array([0, 1, 0]),
        "oov_words": np.array([0, 1, 0]),
        "oov_deletions": np.array([0, 1, 0]),
    }


def test_a_case_worked_by_hand():
    found = metrics(by_hand())
    expected = {
        "wer": 100 * 5 / 10,
        "cer": 100 * 10 / 50,
        "insertion_rate": 100 * 1 / 10,
        "wer_head": 100 * 2 / 5,
        "wer_mid": 0.0,
        "wer_tail": 100 * 1 / 2,
        "wer_oov": 100.0,
        "wer_other": 100.0,
        "cer_other": 200.0,
        "insertion_rate_other": 60.0,
        "wer_head_other": 50.0,
        "wer_mid_other": 0.0,
        "wer_tail_other": np.nan,
        "wer_oov_other": np.nan,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name)


def test_rates_are_of_the_corpus_not_means_over_utterances():
    items = {name: np.array([0, 0]) for name in PLAIN}
    items |= {"other": np.zeros(2), "words": np.array([1, 9]), "substitutions": np.array([1, 0])}
    assert metrics(items)["wer"] == 10.0


def test_dev_has_no_other_and_no_buckets_where_the_items_have_none():
    items = random_items(0, (4,), np.zeros(4, dtype=np.int8))
    assert all(not name.endswith("_other") for name in metrics(items))
    plain = {name: value for name, value in items.items() if name not in BUCKETED}
    assert metrics(plain).keys() == {"wer", "cer"}


def test_every_metric_is_declared():
    items = random_items(0, (7,), OTHER)
    found = set(metrics(items)) | set(relative_metrics(items, items))
    assert found == set(METRICS)
    assert SELECTION in METRICS
    assert METRICS[SELECTION].better == "lower"
    assert (METRICS["werr"].better, METRICS["werr"].unit) == ("higher", "%")
    assert {METRICS[f"dwer_{bucket}"].unit for bucket in ("head", "mid", "tail")} == {"points"}


def test_weights_are_repetitions_of_utterances():
    items = random_items(1, (7,), OTHER)
    draw = np.random.default_rng(2)
    for _ in range(20):
        times = draw.integers(0, 4, 7)
        repeated = {name: np.repeat(values, times) for name, values in items.items()}
        expected, found = metrics(repeated), metrics(items, times)
        for name, value in found.items():
            np.testing.assert_allclose(value, expected.get(name, np.nan), err_msg=name)


def test_weights_of_one_change_nothing():
    items = random_items(1, (7,), OTHER)
    for name, value in metrics(items).items():
        np.testing.assert_allclose(metrics(items, np.ones(7))[name], value)


def test_seeds_and_resamples_are_broadcast():
    items = random_items(3, (4, 1, 7), OTHER)
    weights = np.random.default_rng(4).integers(0, 3, (1, 5, 7))
    found = metrics(items, weights)
    for name, values in found.items():
        assert values.shape == (4, 5)
        for seed in range(4):
            for resample in range(5):
                own = {key: counts[seed, 0] for key, counts in items.items()}
                np.testing.assert_allclose(values[seed, resample], metrics(own, weights[0, resample])[name])


def test_relative_metrics_are_broadcast_too():
    items, dense = random_items(3, (4, 1, 7), OTHER), random_items(5, (4, 1, 7), OTHER)
    weights = np.random.default_rng(4).integers(0, 3, (1, 5, 7))
    for name, values in relative_metrics(items, dense, weights).items():
        assert values.shape == (4, 5)
        for seed in range(4):
            own, theirs = ({key: counts[seed, 0] for key, counts in them.items()} for them in (items, dense))
            for resample in range(5):
                expected = relative_metrics(own, theirs, weights[0, resample])[name]
                np.testing.assert_allclose(values[seed, resample], expected)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, float])
def test_weights_may_be_of_any_kind_of_number(dtype):
    items = random_items(1, (7,), OTHER)
    weights = np.array([1, 0, 1, 1, 1, 0, 1])
    for name, value in metrics(items, weights.astype(dtype)).items():
        np.testing.assert_allclose(value, metrics(items, weights)[name], err_msg=name)


@pytest.mark.filterwarnings("error")
def test_without_words_a_rate_is_not_a_number():
    items = {name: np.zeros(2, dtype=np.int64) for name in (*PLAIN, *BUCKETED)} | {"other": np.array([0, 1])}
    items["insertions"] = np.array([3, 0])
    assert all(np.isnan(value) for value in metrics(items).values())
    assert all(np.isnan(value) for value in relative_metrics(items, items).values())
    found = metrics(by_hand(), np.array([[1, 1, 0], [0, 0, 1]]))
    assert np.isnan(found["wer"]).tolist() == [False, True]
    assert np.isnan(found["wer_other"]).tolist() == [True, False]


def test_a_relative_case_worked_by_hand():
    own, dense = by_hand(), by_hand()
    dense["substitutions"] = np.array([2, 3, 1])  # 8 of 10 errors and 4 of 5
    dense["head_substitutions"] = np.array([2, 1, 1])  # 4 of 5 and 1 of 4
    dense["mid_deletions"] = np.array([0, 1, 0])  # 1 of 2
    found = relative_metrics(own, dense)
    expected = {
        "werr": 100 * (80 - 50) / 80,
        "dwer_head": 40 - 80,
        "dwer_mid": 0 - 50,
        "dwer_tail": 0,
        "werr_other": 100 * (80 - 100) / 80,
        "dwer_head_other": 50 - 25,
        "dwer_mid_other": 0,
        "dwer_tail_other": np.nan,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-12, err_msg=name)


def test_the_gain_over_a_dense_run_without_errors_is_not_a_number():
    dense = by_hand() | {name: np.zeros(3, dtype=np.int64) for name in ("substitutions", "deletions", "insertions")}
    assert np.isnan(relative_metrics(by_hand(), dense)["werr"])
    assert relative_metrics(by_hand(), dense)["dwer_head"] == 0
