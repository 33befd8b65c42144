"""Figures of copies of many tensors, end to end on a CPU or apart, against those of each tensor in float64."""

import math

import numpy as np
import pytest
import torch

from bbnet.diagnostics import reductions
from bbnet.diagnostics.reductions import FIGURES, Copies

AXES = {2: 0, 5: 0, 8: 1, 9: 0, 12: 0}  # of the units


def tensors():
    """Returns tensors of several types and layouts, by number."""
    torch.manual_seed(0)
    found = {
        0: torch.randn(7),
        2: torch.randn(6, 4, 5, 5).contiguous(memory_format=torch.channels_last),
        3: torch.randn(1),
        5: torch.randn(64, 33),
        6: torch.randn(()),
        7: torch.zeros(5, dtype=torch.float64),
        8: torch.randn(9, 4, 3, 3),
        9: torch.randn(12, 5).t(),
        11: torch.randn(3, 4, dtype=torch.float64),
        12: torch.randn(8, 6, dtype=torch.complex64),
        13: torch.randn(5, 5).to(torch.bfloat16),
        14: torch.arange(4, dtype=torch.int32),
        15: torch.randn(6, 4).to_sparse(),
    }
    found[5][::2] = 0.0
    found[8][:, 1] = 0.0
    found[9][2] = 0.0
    found[12][3:] = 0.0
    return found


def real(tensor):
    tensor = tensor.to_dense()
    return torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()


def by_number(found):
    return {
        int(number): float(value) for numbers, values in found for number, value in zip(numbers, values, strict=True)
    }


@pytest.mark.parametrize("small", [2**16, 30, 0])
def test_copies_have_the_figures_of_each_tensor(small, monkeypatch):
    monkeypatch.setattr(reductions, "SMALL", small)
    given = tensors()
    copies = Copies({number: each.to_dense() for number, each in given.items()}, AXES)
    copies.set(given)
    expected = {"norm": lambda x: x.square().sum().sqrt(), "largest": lambda x: x.abs().max(), "sum": lambda x: x.sum()}
    for name in FIGURES:
        wanted = {number: float(expected[name](real(each))) for number, each in given.items()}
        assert by_number(copies.measure(name)) == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    counted = list(copies.count())
    wanted = {number: float((real(each) != 0).sum()) for number, each in given.items()}
    assert by_number([(numbers, values) for numbers, values, _ in counted]) == wanted
    flows = {number: units for *_, own in counted for number, units in own.items()}
    assert flows.keys() == AXES.keys()
    for number, axis in AXES.items():
        rows = real(given[number]).movedim(axis, 0).flatten(1)
        assert np.asarray(flows[number]).tolist() == (rows != 0).any(1).tolist()


@pytest.mark.parametrize("small", [2**16, 0])
def test_differences_are_computed_in_the_type_of_the_copies(small, monkeypatch):
    monkeypatch.setattr(reductions, "SMALL", small)
    given = {number: each for number, each in tensors().items() if number != 15}
    other = {number: (each * 3).to(each.dtype) for number, each in given.items()}
    copies = Copies(given, AXES)
    copies.set(given)
    copies.subtract(other)
    for number in given:
        torch.testing.assert_close(real(copies[number]), real(given[number]) - real(other[number]), rtol=1e-6, atol=0.0)


def test_figures_of_a_tensor_with_nan_do_not_reach_its_neighbours():
    given = dict(
        enumerate([torch.ones(3), torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 1.0]), torch.ones(2)])
    )
    copies = Copies(given, {})
    copies.set(given)
    for name in ("norm", "largest"):
        assert [math.isfinite(value) for value in by_number(copies.measure(name)).values()] == [
            True,
            False,
            False,
            True,
        ]


def test_nothing_is_copied_of_nothing():
    copies = Copies({}, {})
    copies.set({})
    copies.subtract({})
    assert list(copies) == [] and list(copies.measure("norm")) == list(copies.count()) == []
