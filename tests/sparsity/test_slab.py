"""Slabs: a weight's connections, and which weights may be sparsified."""

from collections import OrderedDict
from decimal import Decimal

import pytest
import torch
from torch import nn

from bbnet.sparsity.slab import Slab, check_slabs, choose_slabs, connection_norms, connections, over_weight, slab_shape

WEIGHTS = [(5, 7), (5, 7, 3), (5, 7, 3, 2), (5, 7, 2, 3, 2), (5, 7, 1, 1)]


@pytest.fixture
def model():
    layers = OrderedDict(
        wide=nn.Linear(40, 30),
        on=nn.ReLU(),
        narrow=nn.Linear(30, 7),
        conv=nn.Conv2d(9, 8, 3),
        grouped=nn.Conv2d(8, 8, 3, groups=2),
    )
    return nn.Sequential(layers)


@pytest.mark.parametrize("shape", WEIGHTS)
def test_a_connection_is_all_taps_of_one_unit_and_one_channel(shape):
    weight = torch.randn(shape)
    for side in ("in", "out"):
        units, fan = slab_shape(weight, side)
        view, norms = connections(weight, side), connection_norms(weight, side)
        assert (units, fan) == ((5, 7) if side == "in" else (7, 5))
        assert view.shape[:2] == norms.shape == (units, fan)
        for unit in range(units):
            for other in range(fan):
                taps = weight[unit, other] if side == "in" else weight[other, unit]
                assert torch.equal(view[unit, other], taps.reshape(-1))
                assert float(norms[unit, other]) == pytest.approx(float(taps.square().sum().sqrt()), rel=1e-6)


@pytest.mark.parametrize("shape", WEIGHTS)
@pytest.mark.parametrize("side", ["in", "out"])
def test_a_mask_spreads_over_the_taps_of_its_weight(shape, side):
    weight = torch.randn(shape)
    units, fan = slab_shape(weight, side)
    mask = torch.rand(units, fan) < 0.5
    spread = over_weight(mask, weight, side).expand_as(weight)
    for unit in range(units):
        for other in range(fan):
            taps = spread[unit, other] if side == "in" else spread[other, unit]
            assert bool((taps == mask[unit, other]).all())


def test_units_of_one_module_may_be_named_without_a_tuple():
    assert Slab("a", "in", "b") == Slab("a", "in", ("b",))


def test_a_slab_has_a_side():
    with pytest.raises(ValueError, match="slab wide: side 'up'"):
        Slab("wide", "up", "wide")


def test_slabs_too_small_for_the_budget_stay_dense_with_the_reason(model):
    candidates = [
        Slab("wide", "in", "wide"),
        Slab("narrow", "out", "wide"),
        Slab("narrow", "in", "narrow"),
        Slab("conv", "out", "conv"),
    ]
    # Fans 40, 7, 30 and 8; k_min 2, 1, 2 and 1: shares .05, -, .0667 and .125.
    for smallest, names in [("0.05", [40]), ("0.06", [40]), ("0.07", [40, 30]), ("0.125", [40, 30, 8])]:
        chosen, dense = choose_slabs(model, candidates, Decimal(smallest))
        assert [slab_shape(model.get_submodule(slab.name).weight, slab.side)[1] for slab in chosen] == names
        assert len(chosen) + len(set(dense)) >= len({slab.name for slab in candidates})
        assert "fan 7 is below 8" in dense["narrow"] or len(names) == 1


def test_a_weight_left_dense_is_listed(model):
    _, dense = choose_slabs(model, [Slab("conv", "out", "conv")], Decimal("0.12"))
    assert list(dense) == ["conv"]
    assert "k_min 1" in dense["conv"]


@pytest.mark.parametrize("sides", [("in", "in"), ("in", "out"), ("out", "in")])
def test_a_weight_claimed_twice_is_refused(model, sides):
    slabs = [Slab("wide", side, "wide") for side in sides]
    with pytest.raises(ValueError, match=rf"slab wide \(side {sides[1]}\).*already.*wide \(side {sides[0]}\)"):
        check_slabs(model, slabs, Decimal("0.5"))


def test_a_weight_claimed_through_two_names_is_refused(model):
    model.twin = nn.Linear(40, 30)
    model.twin.weight = model.wide.weight
    with pytest.raises(ValueError, match="slab wide: its weight is also that of twin, which"):
        check_slabs(model, [Slab("wide", "in", "wide"), Slab("twin", "out", "on")], Decimal("0.5"))


@pytest.mark.parametrize(
    "slab, message",
    [
        (Slab("wide", "in", "wide"), r"slab wide:.*0\.05 to 1"),
        (Slab("missing", "in", "wide"), "slab missing:.*missing"),
        (Slab("wide", "in", "gone"), "slab wide:.*gone"),
        (Slab("on", "in", "on"), "slab on: cannot mask a ReLU.*Linear"),
        (Slab("grouped", "in", "grouped"), "slab grouped: grouped"),
    ],
    ids=lambda value: value.name if isinstance(value, Slab) else "",
)
def test_a_slab_that_cannot_be_is_refused_by_name(model, slab, message):
    with pytest.raises(ValueError, match=message):
        check_slabs(model, [slab], Decimal("0.04"))


def test_no_slabs_are_refused(model):
    with pytest.raises(ValueError, match="no slabs"):
        check_slabs(model, [], Decimal("0.5"))
