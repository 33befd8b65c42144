"""Entropy, correlation and rank of constructed activations, whose answers are known."""

import numpy as np
import pytest
import torch
from torch import nn

from bbnet.analysis import claims
from bbnet.sparsity.slab import Slab
from bbnet.training.codes import (
    GROUP,
    MEASURES,
    POSITIONS_PER_PASS,
    Codes,
    Moments,
    binary_entropy,
    code_entropy,
    count_codes,
    effective_rank,
    mean_absolute_correlation,
)


@pytest.mark.parametrize(
    ("rates", "bits"),
    [
        ([0.5], 1.0),
        ([0.0, 1.0], 0.0),
        ([0.5, 0.0], 0.5),
        ([0.25], 0.8112781244591328),
        ([0.11, 0.89], 0.499915958164528),
    ],
)
def test_binary_entropy_of_known_rates(rates, bits):
    assert binary_entropy(np.array(rates)) == pytest.approx(bits, abs=1e-12)


def codes_of(on: torch.Tensor) -> float:
    return code_entropy(count_codes(on).numpy(), on.shape[1])


def test_counts_are_those_of_a_loop():
    on = torch.rand(300, 19, generator=torch.Generator().manual_seed(0)) < 0.4
    counts = count_codes(on)
    assert counts.shape == (3, 256)
    for group in range(3):
        expected = np.zeros(256, dtype=int)
        for row in on[:, group * GROUP : (group + 1) * GROUP].tolist():
            expected[sum(2**place for place, bit in enumerate(row) if bit)] += 1
        np.testing.assert_array_equal(counts[group].numpy(), expected)


def test_every_code_once_is_one_bit_per_unit():
    every = torch.tensor([[bool(code >> place & 1) for place in range(GROUP)] for code in range(2**GROUP)])
    assert codes_of(every) == pytest.approx(1.0)
    assert codes_of(every.repeat(1, 3)) == pytest.approx(1.0)


def test_copies_of_one_unit_share_its_bit():
    unit = torch.tensor([True, False]).repeat(64)[:, None]
    assert codes_of(unit.expand(-1, GROUP)) == pytest.approx(1 / GROUP)
    assert codes_of(unit) == pytest.approx(1.0)


def test_silent_units_say_nothing():
    assert codes_of(torch.zeros(100, 11, dtype=torch.bool)) == 0.0


def test_a_smaller_last_group_counts_its_own_units():
    every = torch.tensor([[bool(code >> place & 1) for place in range(10)] for code in range(2**10)])
    assert codes_of(every) == pytest.approx(1.0)


@pytest.mark.parametrize("r", [0.0, 0.3, -0.8, 1.0])
def test_correlation_of_a_pair_is_its_size(r):
    assert mean_absolute_correlation(np.array([[4.0, 2 * r], [2 * r, 1.0]])) == pytest.approx(abs(r))


def test_correlation_is_the_mean_over_pairs_that_vary():
    x = np.random.default_rng(0).normal(size=(500, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
    expected = np.abs(np.corrcoef(x.T)[np.triu_indices(6, 1)]).mean()
    with_silent = np.insert(x, 3, 0.0, axis=1)
    assert mean_absolute_correlation(np.cov(with_silent.T)) == pytest.approx(expected)
    assert np.isnan(mean_absolute_correlation(np.diag([1.0, 0.0])))


@pytest.mark.parametrize(
    ("eigenvalues", "rank"), [([1, 1, 1, 1], 4), ([5, 0, 0], 1), ([2, 2, 0, 0], 2), ([0.5, 0.5], 2)]
)
def test_effective_rank_of_known_spectra(eigenvalues, rank):
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(eigenvalues),) * 2))
    assert effective_rank(turn @ np.diag(eigenvalues) @ turn.T) == pytest.approx(rank)


def test_effective_rank_of_unequal_eigenvalues_is_that_of_the_formula():
    shares = np.array([0.7, 0.2, 0.1])
    assert effective_rank(np.diag(10 * shares)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert np.isnan(effective_rank(np.zeros((2, 2))))


def test_moments_are_those_of_all_rectified_positions_together():
    x = torch.randn(600, 10, generator=torch.Generator().manual_seed(0))
    moments = Moments()
    for part in x.split(250):
        moments.add(part)
    rectified = x.clamp(min=0).double().numpy()
    np.testing.assert_allclose(moments.covariance(), np.cov(rectified.T, ddof=0), atol=1e-12)
    np.testing.assert_array_equal(moments.on, (x > 0).sum(0).numpy())
    np.testing.assert_array_equal(moments.codes, count_codes(x > 0).numpy())


def test_convolutions_have_channels_first_and_padding_does_not_count():
    model = nn.Sequential(nn.Conv2d(3, 9, 1), nn.ReLU(), nn.Conv2d(9, 4, 1))
    slab = Slab("0", "in", "0")
    images = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    codes = Codes(model, [slab], lambda name: valid)
    with torch.no_grad():
        model(images)
        codes.remove()
        model(images)
        expected = model[0](images).movedim(1, -1)[valid]
    assert codes.moments["0"].seen == int(valid.sum())
    np.testing.assert_array_equal(codes.moments["0"].on, (expected > 0).sum(0).numpy())
    measures = codes.of(slab)
    np.testing.assert_allclose(
        measures["correlation"], mean_absolute_correlation(np.cov(expected.clamp(min=0).double().numpy().T)), rtol=1e-6
    )


def test_long_passes_are_looked_at_in_evenly_spread_positions():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    codes = Codes(model, [Slab("0", "in", "0")], lambda name: None)
    with torch.no_grad():
        model(torch.randn(4 * POSITIONS_PER_PASS + 1, 2))
    assert POSITIONS_PER_PASS / 2 < codes.moments["0"].seen <= POSITIONS_PER_PASS


def test_units_of_several_modules_are_weighed_by_their_number():
    model = nn.ModuleDict({"a": nn.Linear(2, 8), "b": nn.Linear(2, 2)})
    slab = Slab("c", "out", ("a", "b"))
    model["c"] = nn.Linear(10, 3)
    codes = Codes(model, [slab], lambda name: None)
    x = torch.randn(400, 2)
    with torch.no_grad():
        model["a"](x), model["b"](x)
    alone = {name: binary_entropy(moments.on / moments.seen) for name, moments in codes.moments.items()}
    assert codes.of(slab)["binary_entropy"] == pytest.approx((8 * alone["a"] + 2 * alone["b"]) / 10)


def test_the_analysis_knows_every_measure_by_the_same_name():
    """The two live on floors that do not know each other."""
    assert tuple(claims.MEASURES) == MEASURES
