"""Modules whose forward passes cannot be traced as they are."""

import functools
import threading

import pytest
import torch
from torch import nn

from bbnet.sparsity.plain.structure import find_slabs
from bbnet.sparsity.sparsifier import sparsify


class Attention(nn.Module):
    """Its control flow depends on data."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 16)

    def forward(self, x, **kwargs):
        return (self.project(x) if x.sum() > 0 else x), None


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(16, 24)

    def forward(self, x):
        return torch.relu(self.dense(x))


def decorated(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


class Layer(nn.Module):
    """A layer of transformers: a decorated forward pass with **kwargs, attention, and a feed-forward part inside."""

    def __init__(self):
        super().__init__()
        self.attention, self.hidden, self.output = Attention(), Hidden(), nn.Linear(24, 16)

    @decorated
    def forward(self, x, mask, cache=None, *, flag=False, **kwargs):
        attended, _ = self.attention(x, mask=mask, **kwargs)
        if cache is not None or flag:
            raise RuntimeError("arguments with defaults are left at them")
        x = x + attended
        x = x + self.output(self.hidden(x))
        if x.dtype == torch.float16:
            x = x.clamp(-6e4, 6e4)
        return x


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(3)), nn.Linear(16, 2)

    def forward(self, x):
        for layer in self.layers[: int(x.sum() > 0) + 2]:
            x = layer(x, None)
        return self.head(x)


@pytest.mark.parametrize("side, name", [("in", "hidden.dense"), ("out", "output")])
def test_a_part_that_cannot_be_traced_hides_nothing_around_it(side, name):
    slabs = find_slabs(Model(), side)
    assert [slab.name for slab in slabs] == [f"layers.{index}.{name}" for index in range(3)]
    assert {slab.units for slab in slabs} == {(f"layers.{index}.hidden.dense",) for index in range(3)}


def test_the_layers_inside_such_a_part_are_seen_too():
    class Chooser(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))

        def forward(self, x):
            return self.inner(x) if x.sum() > 0 else x

    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), Chooser(), Chooser(), nn.Linear(16, 2))
    assert [slab.name for slab in find_slabs(model)] == ["0", "2.inner.0", "3.inner.0"]
    assert [slab.name for slab in find_slabs(model, "out")] == ["2.inner.2", "3.inner.2"]


def test_the_dtype_is_that_of_the_weights():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.c(torch.relu(self.b(x)) if x.dtype == torch.bfloat16 else x)

    assert [slab.name for slab in find_slabs(Cast())] == ["a"]
    assert [slab.name for slab in find_slabs(Cast().bfloat16())] == ["a", "b"]


def test_attributes_that_cannot_be_copied_are_no_obstacle():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    model.lock, model.numbers = threading.Lock(), (number for number in range(3))
    model.cache = [model(torch.randn(2, 16))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slabs = find_slabs(model)
    model.sparsifier = sparsify(model, optimizer, slabs, "magnitude", 0.5, total_steps=20)
    model.sparsifier.remove()
    assert find_slabs(model) == slabs and [slab.name for slab in slabs] == ["0", "2"]


def test_a_layer_that_computes_its_weight_in_its_forward_pass_is_none():
    class Standardised(nn.Conv2d):
        """As ScaledStdConv2dSame of timm, whose padding depends on the shape of the input."""

        def forward(self, x):
            if x.shape[-1] % 2:
                x = torch.nn.functional.pad(x, (1, 0, 1, 0))
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return torch.nn.functional.conv2d(x, weight, self.bias)

    layers = [nn.Conv2d(8, 9, 1), nn.ReLU(), Standardised(9, 9, 1), nn.ReLU(), nn.Conv2d(9, 9, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(9, 2, 1))
    assert [slab.name for slab in find_slabs(model)] == ["0", "4"]
    with pytest.raises(ValueError, match="1: its class has a forward pass of its own"):
        find_slabs(nn.Sequential(nn.ReLU(), Standardised(9, 9, 1), nn.ReLU(), nn.Conv2d(9, 2, 1)))
