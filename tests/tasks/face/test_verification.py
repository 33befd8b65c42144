"""ROC curves, their figures and thresholds, against scikit-learn, loops over pairs, and by hand."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from bbnet.tasks.face.verification import (
    auroc,
    balanced_accuracy,
    best_identification_threshold,
    best_pair_threshold,
    equal_error_rate,
    roc,
    tar_at_far,
)

SEEDS = range(12)
LEVELS = (0.0, 1e-3, 0.01, 0.1, 1 / 3, 0.5, 1.0)


def random_pairs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of few distinct values, below and above 0, genuine ones somewhat larger; pairs of both kinds."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(2, 60))
    genuine = draw.random(count) < draw.uniform(0.1, 0.9)
    genuine[:2] = True, False
    values = draw.integers(1, 12)
    scores = draw.integers(-values, values + 1, count) / 7 + genuine * draw.integers(0, 3) / 7
    return scores, genuine


def naive_roc(scores, genuine) -> tuple[list[float], list[float]]:
    """Every distinct score as a threshold, one pair after the other."""
    far, tar = [], []
    for threshold in [np.inf, *sorted(set(scores.tolist()), reverse=True)]:
        accepted = [score >= threshold for score in scores.tolist()]
        true = sum(one and kind for one, kind in zip(accepted, genuine, strict=True))
        tar.append(true / genuine.sum())
        far.append((sum(accepted) - true) / (~genuine).sum())
    return far, tar


def naive_auroc(scores, genuine) -> float:
    won = [(own > other) + 0.5 * (own == other) for own in scores[genuine] for other in scores[~genuine]]
    return float(np.mean(won))


def naive_eer(far, tar) -> float:
    """The place along the curve, from point to point, where FAR is 1 - TAR."""
    places = np.arange(len(far))

    def excess(place: float) -> float:
        return np.interp(place, places, far) + np.interp(place, places, tar) - 1

    return float(np.interp(brentq(excess, 0, len(far) - 1, xtol=1e-14), places, far))


def figures(scores, genuine, weights=None) -> dict[str, np.ndarray]:
    far, tar = roc(scores, genuine, weights)
    found = {"auroc": auroc(far, tar), "eer": equal_error_rate(far, tar)}
    found |= {f"tar at {level}": tar_at_far(far, tar, level) for level in LEVELS}
    return found | {f"accuracy at {at}": balanced_accuracy(scores, genuine, at, weights) for at in (-0.5, 1 / 7, 0.3)}


# Against scikit-learn.


def points(far, tar) -> set[tuple[float, float]]:
    return set(zip(np.round(far, 12).tolist(), np.round(tar, 12).tolist(), strict=True))


def test_every_corner_is_a_threshold_of_scikit_learn():
    for seed in SEEDS:
        scores, genuine = random_pairs(seed)
        far, tar = roc(scores, genuine)
        assert points(far, tar) <= points(*roc_curve(genuine, scores, drop_intermediate=False)[:2])
        assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)
        assert (np.diff(far) >= 0).all()
        assert (np.diff(tar) >= 0).all()


def test_figures_of_the_curve_are_those_of_scikit_learn():
    for seed in SEEDS:
        scores, genuine = random_pairs(seed)
        times = np.random.default_rng(seed + 1000).integers(0, 4, len(scores))
        times[:2] += 1
        for weights in (None, times):
            own = {"sample_weight": weights}
            far, tar, thresholds = roc_curve(genuine, scores, drop_intermediate=False, **own)
            curve = roc(scores, genuine, weights)
            expected = brentq(lambda at, far=far, tar=tar: 1 - at - np.interp(at, far, tar), 0, 1)
            assert auroc(*curve) == pytest.approx(roc_auc_score(genuine, scores, **own), abs=1e-12)
            assert equal_error_rate(*curve) == pytest.approx(expected, abs=1e-9)
            for level in LEVELS:
                assert tar_at_far(*curve, level) == pytest.approx(tar[far <= level + 1e-12].max(), abs=1e-12)
            for threshold in thresholds:
                accuracy = balanced_accuracy_score(genuine, scores >= threshold, **own)
                assert balanced_accuracy(scores, genuine, threshold, weights) == pytest.approx(accuracy, abs=1e-12)


# Against loops.


def test_every_threshold_lies_on_the_curve():
    for seed in SEEDS:
        scores, genuine = random_pairs(seed)
        found = roc(scores, genuine)
        along = np.add(*found)
        for false, true in zip(*naive_roc(scores, genuine), strict=True):
            assert np.interp(false + true, along, found[0]) == pytest.approx(false, abs=1e-12)


def test_figures_of_the_curve_are_those_of_loops():
    for seed in SEEDS:
        scores, genuine = random_pairs(seed)
        far, tar = naive_roc(scores, genuine)
        curve = roc(scores, genuine)
        assert auroc(*curve) == pytest.approx(naive_auroc(scores, genuine), abs=1e-12)
        assert equal_error_rate(*curve) == pytest.approx(naive_eer(far, tar), abs=1e-9)
        for level in LEVELS:
            reached = [one for false, one in zip(far, tar, strict=True) if false <= level]
            assert tar_at_far(*curve, level) == pytest.approx(max(reached), abs=1e-12)


def test_weights_are_repetitions_of_pairs():
    for seed in SEEDS:
        scores, genuine = random_pairs(seed)
        times = np.random.default_rng(seed + 1000).integers(0, 4, len(scores))
        times[:2] += 1
        expected = figures(np.repeat(scores, times), np.repeat(genuine, times))
        for name, value in figures(scores, genuine, times).items():
            assert value == pytest.approx(expected[name], abs=1e-12), name


def test_batches_of_weights_are_one_by_one():
    scores, genuine = random_pairs(4)
    weights = np.random.default_rng(0).integers(0, 3, (2, 5, len(scores)))
    weights[1, 3] = 0
    weights[0, 2, genuine] = 0
    far, tar = roc(scores, genuine, weights)
    assert far.shape == tar.shape == (2, 5, far.shape[-1])
    for name, values in figures(scores, genuine, weights).items():
        assert values.shape == (2, 5)
        for place in np.ndindex(2, 5):
            one = figures(scores, genuine, weights[place])[name]
            np.testing.assert_allclose(values[place], one, atol=1e-12, err_msg=f"{name} {place}")
    assert np.isnan(figures(scores, genuine, weights)["auroc"]).sum() == 2


def test_the_order_of_pairs_does_not_matter():
    scores, genuine = random_pairs(7)
    order = np.random.default_rng(0).permutation(len(scores))
    expected = figures(scores, genuine)
    for name, value in figures(scores[order], genuine[order]).items():
        assert value == pytest.approx(expected[name], abs=1e-12), name


# Worked by hand.


def test_a_curve_worked_by_hand():
    scores = np.array([0.9, 0.8, 0.8, 0.4, 0.3, 0.1])
    genuine = np.array([True, True, False, True, False, False])
    far, tar = roc(scores, genuine)
    expected = [(0, 0), (0, 1 / 3), (1 / 3, 2 / 3), (1 / 3, 1), (1, 1)]
    assert points(far, tar) == points(*zip(*expected, strict=True))
    assert auroc(far, tar) == pytest.approx((3 + 2.5 + 2) / 9)
    assert equal_error_rate(far, tar) == pytest.approx(1 / 3)
    assert tar_at_far(far, tar, 0.0) == pytest.approx(1 / 3)
    assert tar_at_far(far, tar, 1 / 3) == 1
    assert tar_at_far(far, tar, 0.33) == pytest.approx(1 / 3)
    assert balanced_accuracy(scores, genuine, 0.4) == pytest.approx((1 + 2 / 3) / 2)
    assert balanced_accuracy(scores, genuine, 0.80001) == pytest.approx((1 / 3 + 1) / 2)


def test_the_equal_error_rate_lies_between_points():
    far, tar = np.array([0, 0.1, 0.5, 1]), np.array([0, 0.6, 0.8, 1])
    # From (0.1, 0.6) to (0.5, 0.8): far + tar runs from 0.7 to 1.3.
    assert equal_error_rate(far, tar) == pytest.approx(0.1 + 0.4 * 0.5)


def test_apart_and_upside_down_and_all_alike():
    genuine = np.array([True, True, False, False, False])
    apart = figures(np.array([3.0, 2, 1, 0, 0]), genuine)
    assert (apart["auroc"], apart["eer"], apart["tar at 0.0"]) == (1, 0, 1)
    reversed_ = figures(np.array([0.0, 1, 2, 3, 3]), genuine)
    assert (reversed_["auroc"], reversed_["eer"], reversed_["tar at 0.5"]) == (0, 1, 0)
    alike = figures(np.full(5, 0.3), genuine)
    assert (alike["auroc"], alike["eer"], alike["tar at 0.5"], alike["tar at 1.0"]) == (0.5, 0.5, 0, 1)


def test_a_false_accept_rate_of_a_tenth_is_at_most_a_tenth():
    """In floating point 3 times 1 / 30 would not do."""
    genuine = np.arange(31) == 30
    scores = np.append(np.arange(30.0)[::-1], 26.5)
    far, tar = roc(scores, genuine, np.where(genuine, 1, 1 / 30))
    assert tar_at_far(far, tar, 0.1) == 1
    assert tar_at_far(far, tar, 0.09) == 0


# Nothing to count.


@pytest.mark.filterwarnings("error")
def test_without_pairs_of_a_kind_figures_are_no_numbers():
    for genuine in (np.ones(4, dtype=bool), np.zeros(4, dtype=bool), np.zeros(0, dtype=bool)):
        for batch in ((), (3,), (2, 3)):
            scores = np.array([0.1, 0.5, 0.5, 0.9])[: len(genuine)]
            for name, value in figures(scores, genuine, np.ones((*batch, len(scores)))).items():
                assert value.shape == batch
                assert np.isnan(value).all(), name
            assert all(np.isnan(value) for value in figures(scores, genuine).values())


@pytest.mark.filterwarnings("error")
def test_the_rate_of_the_kind_that_is_there_is_known():
    scores = np.array([0.1, 0.5, 0.9])
    far, tar = roc(scores, np.ones(3, dtype=bool))
    assert np.isnan(far).all()
    assert sorted(set(tar.tolist())) == pytest.approx([0, 1 / 3, 2 / 3, 1])


# Thresholds.


def candidates(scores) -> list[float]:
    values = sorted(set(scores.tolist()))
    return [-np.inf, *((one + other) / 2 for one, other in zip(values, values[1:], strict=False)), np.inf]


def exact_balance(scores, genuine, threshold: float) -> Fraction:
    """TAR - FAR, 0 in place of the rate of a kind that is not there."""
    accepted = scores >= threshold
    shares = [
        Fraction(int((accepted & kind).sum()), int(kind.sum())) if kind.any() else Fraction(0)
        for kind in (genuine, ~genuine)
    ]
    return shares[0] - shares[1]


def test_the_pair_threshold_is_the_lowest_of_the_best_of_all_midpoints():
    for seed in SEEDS:
        scores, genuine = random_pairs(seed)
        best = max(candidates(scores), key=lambda at: (exact_balance(scores, genuine, at), -at))
        assert best_pair_threshold(scores, genuine) == pytest.approx(best, abs=1e-12)


def test_pairs_of_one_kind_are_all_taken_for_it():
    for kind in (True, False):
        scores = np.array([0.2, 0.7, 0.7])
        found = best_pair_threshold(scores, np.full(3, kind))
        assert ((scores >= found) == kind).all()
        assert not isinstance(best_pair_threshold(np.zeros(0), np.zeros(0, dtype=bool)), np.ndarray)


def test_a_pair_threshold_worked_by_hand():
    scores = np.array([0.9, 0.6, 0.5, 0.5, 0.2])
    # Above 0.75: 1 of 2; above 0.55: both of 2 at no impostor.
    assert best_pair_threshold(scores, np.array([True, True, False, False, False])) == pytest.approx(0.55)
    assert best_pair_threshold(np.array([1.0, 2.0]), np.array([False, False])) == np.inf
    # The wrong way round -inf, 1.5 and inf are worth 1 / 2, 0 and 1 / 2.
    assert best_pair_threshold(np.array([2.0, 1.0]), np.array([False, True])) == -np.inf


def test_the_threshold_parts_neighbouring_numbers():
    """Between neighbours there is no number: half way is rounded to either of them."""
    for dtype, start in itertools.product((np.float32, np.float64), (0.5, 0.75, 0.999)):
        low = dtype(start)
        for _ in range(4):
            high = np.nextafter(low, dtype(1))
            scores, genuine = np.array([low, high]), np.array([False, True])
            assert balanced_accuracy(scores, genuine, best_pair_threshold(scores, genuine)) == 1
            threshold = best_identification_threshold(scores, genuine, ~genuine)
            assert (scores >= threshold).tolist() == [False, True]
            low = high


def random_probes(seed: int):
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 40))
    stranger = draw.random(count) < draw.random()
    right = ~stranger & (draw.random(count) < draw.random())
    return draw.integers(-5, 6, count) / 7 + right * draw.integers(0, 3) / 7, right, stranger


def answered_rightly(nearest, right, stranger, threshold) -> int:
    return sum(
        bool(own) if score >= threshold else bool(nobody)
        for score, own, nobody in zip(nearest.tolist(), right, stranger, strict=True)
    )


def test_the_identification_threshold_answers_as_many_probes_as_any():
    for seed in range(40):
        nearest, right, stranger = random_probes(seed)
        best = max(answered_rightly(nearest, right, stranger, at) for at in candidates(nearest))
        found = best_identification_threshold(nearest, right, stranger)
        assert answered_rightly(nearest, right, stranger, found) == best
        assert min(abs(found - at) if np.isfinite(found) else found != at for at in candidates(nearest)) < 1e-12


def test_an_identification_threshold_worked_by_hand():
    nearest = np.array([0.9, 0.8, 0.7, 0.4, 0.3])
    right = np.array([True, False, True, False, True])
    stranger = np.array([False, True, False, True, False])
    # From -inf on 3 rightly, from 0.35 on 2, from 0.55 on 3, from 0.75 on 2, from 0.85 on 3, none 2.
    assert best_identification_threshold(nearest, right, stranger) == -np.inf
    # Without the last probe: 2, then 0.55 on 3.
    assert best_identification_threshold(nearest[:4], right[:4], stranger[:4]) == pytest.approx(0.55)


def test_with_an_empty_gallery_nobody_is_named():
    for strangers in (0, 2, 3):
        stranger = np.arange(3) < strangers
        found = best_identification_threshold(np.full(3, -np.inf), np.zeros(3, dtype=bool), stranger)
        assert not np.isnan(found)
        if strangers:
            assert found > -np.inf


def test_without_probes_there_is_a_threshold():
    nothing = np.zeros(0, dtype=bool)
    assert best_identification_threshold(np.zeros(0), nothing, nothing) == np.inf
