"""Similarities of features against references that compute every pair, and known values."""

import copy
import math

import pytest
import torch
from torch import nn

import bbnet
from bbnet.diagnostics.similarity import LinearCKA, mean_cosine, mean_kl


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_similarities_are_means_over_all_pairs(axis):
    features = normal(4, 5, 6)
    slices = [each.flatten().double() for each in features.unbind(axis)]
    pairs = [(a, b) for i, a in enumerate(slices) for j, b in enumerate(slices) if i != j]
    cosine = sum(float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs) / len(pairs)
    assert mean_cosine(features, axis) == pytest.approx(cosine)
    divergence = [
        float(torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=each) for each in pair)))
        for pair in pairs
    ]
    assert mean_kl(features, axis) == pytest.approx(sum(divergence) / len(pairs), rel=1e-6)


def test_kl_of_equal_channels_is_0_and_that_of_random_ones_about_1():
    """Fault 1: -16.7 and -22.1, because probabilities were passed in place of their logarithms."""
    equal = normal(1, 1, 32, 32).expand(1, 8, 32, 32)
    assert mean_kl(equal, 1) == pytest.approx(0, abs=1e-9)
    # For independent standard normal entries the divergence is their variance, 1, for many entries.
    assert mean_kl(normal(1, 8, 64, 64), 1) == pytest.approx(1.0, abs=0.05)
    assert mean_cosine(equal, 1) == pytest.approx(1) and abs(mean_cosine(normal(1, 8, 64, 64), 1)) < 0.05


def test_slices_of_zeros_and_single_slices():
    features = normal(3, 4)
    features[:, 1] = 0
    kept = features[:, [0, 2, 3]]
    assert mean_cosine(features, 1) == pytest.approx(mean_cosine(kept, 1))
    assert mean_cosine(features[:, :1], 1) is None and mean_kl(features[:, :1], 1) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_have_no_similarity(value):
    features = torch.randn(3, 4)
    features[1, 2] = value
    assert mean_cosine(features, 0) is None and mean_kl(features, 0) is None


def cka_by_grams(x, y):
    """Kornblith et al. 2019, by Gram matrices of the positions."""
    centre = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    k, m = (centre @ each.double() @ each.double().T @ centre for each in (x, y))
    return float((k * m).sum() / (k.norm() * m.norm()))


def cka(x, y, parts=1):
    one = LinearCKA()
    for pair in zip(x.chunk(parts), y.chunk(parts), strict=True):
        one.add(*pair)
    return one.value()


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_cka_is_that_of_gram_matrices_in_any_number_of_batches(parts, offset):
    x, y = normal(60, 7).double() + offset, normal(60, 5, seed=1).double()
    y[:, 0] += x[:, 0] - offset
    assert cka(x, y, parts) == pytest.approx(cka_by_grams(x, y), rel=1e-6)


def test_cka_knows_rotations_and_scales_but_not_other_maps():
    x = normal(200, 6).double()
    rotation = torch.linalg.qr(normal(6, 6, seed=1).double()).Q
    assert cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    stretched = x * torch.tensor([100.0, 1, 1, 1, 1, 1]).double()
    assert cka(x, stretched) == pytest.approx(cka_by_grams(x, stretched)) and cka(x, stretched) < 0.6
    assert cka(x, normal(200, 6, seed=2)) < 0.1
    assert cka(x, torch.ones(200, 3)) is None


def test_models_are_aligned_layer_by_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(other[0].weight.flip(0))
        other[0].bias.copy_(other[0].bias.flip(0))
        nn.init.normal_(other[3].weight)
    x = normal(32, 3, 8, 8)
    found = {row["layer"]: row for row in bbnet.probe(model, list(x.split(8)), against=other).alignment()}
    assert [found["0"]["cka"], found["1"]["cka"]] == pytest.approx([1, 1]), "channels in another order"
    assert (found["0"]["positions"], found["3"]["positions"]) == (32 * 36, 32)
    mine, others = model(x).detach(), other(x).detach()
    assert found["3"]["cka"] == pytest.approx(cka_by_grams(mine, others), rel=1e-4)


def test_layers_that_cannot_be_aligned_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="layer 1: the model given as `against` has no such layer"):
        bbnet.probe(model, normal(3, 4), against=nn.Sequential(nn.Linear(4, 6)))
    wide = nn.Sequential(nn.Linear(4, 5000))
    with pytest.raises(ValueError, match="layer 0: it has 5000 channels"):
        bbnet.probe(wide, normal(3, 4), against=wide)
    images = normal(2, 3, 8, 8)
    with pytest.raises(ValueError, match="layer 0: it has 72 positions, but 32 in `against`"):
        bbnet.probe(
            nn.Sequential(nn.Conv2d(3, 4, 3)), images, against=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1))
        )
