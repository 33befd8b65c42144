"""Slabs found in plain PyTorch models."""

import copy
import math
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, weight_norm

from bbnet.sparsity.limits import SMALLEST_FAN
from bbnet.sparsity.plain.structure import find_chains, find_slabs
from bbnet.sparsity.slab import Slab
from bbnet.sparsity.sparsifier import sparsify

SIDES = ("in", "out", "both")
NOTHING = "no Linear-activation-Linear or Conv-norm-activation-Conv pattern"


class Net(nn.Module):
    """Layers by name, and a forward pass over them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def found(model, side="in"):
    """(layer, side) of each slab; empty if there are none."""
    try:
        return [(slab.name, slab.side) for slab in find_slabs(model, side)]
    except ValueError as error:
        assert NOTHING in str(error)
        return []


def reasons(model, side, capsys):
    """Returns the reasons of skipped layers by name."""
    capsys.readouterr()
    try:
        find_slabs(model, side, verbose=True)
    except ValueError as error:
        assert NOTHING in str(error)
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["skipped", "reason"]
    return dict(re.split(r"\s{2,}", row, maxsplit=1) for row in table[1:])


def three_linears(between):
    """`between` is a module or a function."""
    act = {"act": between} if isinstance(between, nn.Module) else {}

    def forward(self, x):
        on = self.act if act else between
        return self.c(on(self.b(on(self.a(x)))))

    return Net(forward, a=nn.Linear(20, 16), b=nn.Linear(16, 12), c=nn.Linear(12, 10), **act)


class Bottleneck(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.norm3 = nn.Conv2d(8, width, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        out += x
        return self.relu(out)


@pytest.mark.parametrize("side", SIDES)
def test_the_mlp_of_the_other_tests(mlp, side):
    # On side out the last layer is the output layer: it is not touched.
    expected = {
        "in": [Slab("first", "in", "first"), Slab("second", "in", "second")],
        "out": [Slab("second", "out", "first")],
        "both": [Slab("first", "in", "first"), Slab("second", "out", "first")],
    }
    assert find_slabs(mlp.build(), side) == expected[side]


@pytest.mark.parametrize("side", SIDES)
def test_the_convolutional_net_of_the_other_tests(conv_net, side):
    # The stem reads three channels; `narrow` leads into the head, but through a flattening.
    assert (
        find_slabs(conv_net.build(), side)
        == {
            "in": conv_net.slabs("in"),
            "out": conv_net.slabs("out"),
            "both": [Slab("middle", "out", "norm1"), Slab("narrow", "out", "norm2")],
        }[side]
    )


@pytest.mark.parametrize(
    "activation",
    [
        functional.relu,
        torch.relu,
        lambda x: torch.relu(input=x),
        lambda x: x.relu(),
        lambda x: x.relu_(),
        lambda x: functional.relu(x, inplace=True),
        functional.relu6,
        functional.gelu,
        lambda x: functional.gelu(x, approximate="tanh"),
        functional.silu,
        functional.mish,
        functional.hardswish,
        functional.leaky_relu,
        functional.elu,
        torch.selu,
        torch.celu,
        nn.ReLU(),
        nn.ReLU6(),
        nn.LeakyReLU(0.2),
        nn.GELU(),
        nn.SiLU(),
        nn.ELU(),
        nn.CELU(),
        nn.SELU(),
        nn.Mish(),
        nn.Hardswish(),
        torch.tanh,
        nn.Tanh(),
        nn.Hardtanh(),
        nn.Softsign(),
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: 0.5 * x * (1 + torch.tanh(0.797885 * (x + 0.044715 * torch.pow(x, 3)))),
        lambda x: torch.relu(x).square(),
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: {"relu": nn.ReLU()}["relu"](x),
        lambda x: functional.softplus(2 * x) - math.log(2),
    ],
)
def test_activations_that_are_on_where_their_input_is_positive(activation):
    values = torch.linspace(-9, 9, 73)
    assert torch.equal(activation(values.clone()) > 0, values > 0)
    assert found(three_linears(activation)) == [("a", "in"), ("b", "in")]


@pytest.mark.parametrize(
    "activation, reason",
    [
        (torch.sigmoid, "its activation sigmoid is above 0 everywhere, so that it has no on-rate"),
        (functional.softplus, "its activation softplus is above 0 everywhere, so that it has no on-rate"),
        (nn.Softplus(), "its activation Softplus is above 0 everywhere, so that it has no on-rate"),
        (nn.LogSigmoid(), "its activation LogSigmoid is never above 0"),
        (nn.LeakyReLU(-0.1), "its activation LeakyReLU is not above 0 exactly where its input is"),
        (nn.Hardsigmoid(), "its activation Hardsigmoid is not above 0 exactly where its input is"),
        (lambda x: functional.elu(x, alpha=-1.0), "its activation elu is not above 0 exactly where its input is"),
        (lambda x: functional.relu(x + 1), "its activation relu is not above 0 exactly where its input is"),
        (lambda x: x.to(torch.float16), "no activation directly after it"),
        (lambda x: torch.softmax(x, -1), "no activation directly after it"),
        (lambda x: functional.layer_norm(x, (x.shape[-1],)), "no activation directly after it"),
        (lambda x: torch.relu(x).flip(0), None),
        (lambda x: functional.normalize(torch.relu(x)), None),
        (lambda x: torch.relu(x) * (x >= x.amax(1, keepdim=True)), "its outputs are also used without an activation"),
        (nn.LocalResponseNorm(5), "no activation directly after it"),
        (lambda x: functional.normalize(torch.relu(x), dim=-1), None),
        (lambda x: functional.normalize(x).relu(), "no activation directly after it"),
        (lambda x: x.flip(-1).relu(), "no activation directly after it"),
        (lambda x: x.cumsum(-1).relu(), "no activation directly after it"),
        (lambda x: x.chunk(2, -1)[0], "its outputs are split, so that a unit has rows in two places"),
    ],
)
def test_other_functions_are_no_activations(activation, reason, capsys):
    model = three_linears(activation)
    assert found(model, "out") == []
    assert reasons(model, "in", capsys).get("a") == reason


def test_a_trained_slope_may_become_negative_so_that_units_are_read_after_it():
    model = nn.Sequential(nn.Linear(9, 16), nn.Dropout(), nn.PReLU(16), nn.Linear(16, 9))
    model = nn.Sequential(*model, nn.PReLU(), nn.Linear(9, 2))
    assert find_slabs(model) == [Slab("0", "in", "2"), Slab("3", "in", "4")]
    assert find_slabs(model, "out") == [Slab("3", "out", "2")]
    assert not any(chain.exclusive for chain in find_chains(model))


def test_a_shifted_activation_leaves_units_that_nothing_reads_as_they_are():
    model = three_linears(lambda x: functional.relu(x) + 1)
    assert found(model, "in") == [("a", "in"), ("b", "in")]
    assert found(model, "out") == []


def test_units_are_read_at_the_norm_before_the_activation():
    layers = OrderedDict(
        a=nn.Linear(16, 12), norm=nn.LayerNorm(12), on=nn.GELU(), drop=nn.Dropout(), b=nn.Linear(12, 9), last=nn.ReLU()
    )
    model = nn.Sequential(layers | {"c": nn.Linear(9, 3)})
    # It normalises across units: a factor on one of them is not cancelled.
    assert find_slabs(model, "in") == [Slab("a", "in", "norm", normalised=False), Slab("b", "in", "b")]
    assert find_slabs(model, "out") == [Slab("b", "out", "norm")]


ACROSS_UNITS = (nn.GroupNorm(2, 8), nn.LayerNorm([8, 6, 6]), nn.RMSNorm([8, 6, 6]))
PER_UNIT = (nn.BatchNorm2d(8), nn.SyncBatchNorm(8), nn.InstanceNorm2d(8), nn.LayerNorm([6, 6]), nn.GroupNorm(8, 8))


@pytest.mark.parametrize("norm", [*ACROSS_UNITS, *PER_UNIT], ids=str)
def test_a_factor_on_a_unit_is_cancelled_by_a_norm_of_that_unit_alone(norm):
    model = nn.Sequential(nn.Conv2d(9, 8, 1, bias=False), norm, nn.ReLU(), nn.Conv2d(8, 9, 1))
    (slab,) = find_slabs(nn.Sequential(*model, nn.ReLU(), nn.Conv2d(9, 2, 1)))[:1]
    assert slab.normalised == any(norm is each for each in PER_UNIT)
    if isinstance(norm, nn.SyncBatchNorm):
        return
    maps = torch.randn(5, 9, 6, 6)
    before = model(maps)
    with torch.no_grad():
        model[0].weight[3] *= 7
    assert torch.allclose(model(maps), before, atol=1e-3) == slab.normalised


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(8), nn.SyncBatchNorm(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.LayerNorm([6, 6])]
)
def test_norms_of_a_convolution(norm):
    model = nn.Sequential(nn.Conv2d(9, 8, 1), norm, nn.ReLU(), nn.Conv2d(8, 9, 1), nn.ReLU(), nn.Conv2d(9, 2, 1))
    assert find_slabs(model)[0] == Slab("0", "in", "1", normalised=not isinstance(norm, nn.GroupNorm))
    assert find_slabs(model, "out")[0] == Slab("3", "out", "1")


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(12), nn.InstanceNorm1d(12)])
def test_a_norm_over_another_axis_than_the_units_is_none(norm):
    """On [batch, 12, 16], outputs of a linear layer, both normalise axis 1, the positions."""
    model = nn.Sequential(nn.Linear(20, 16), norm, nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
    assert found(model) == [("3", "in")]


@pytest.mark.parametrize(
    "between", [nn.Identity(), nn.Dropout(), nn.Sequential(nn.Identity(), nn.Dropout1d())], ids=str
)
def test_identities_and_dropouts_before_an_activation_are_passed(between):
    model = nn.Sequential(nn.Linear(9, 12), between, nn.LayerNorm(12), between, nn.ReLU(), nn.Linear(12, 9))
    model = nn.Sequential(*model, between, nn.ReLU(), nn.Linear(9, 2))
    assert find_slabs(model) == [Slab("0", "in", "2", normalised=False), Slab("5", "in", "5")]

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(functional.dropout(self.a(x), 0.5, self.training)))))

    model = Net(forward, a=nn.Linear(9, 9), b=nn.Linear(9, 9), c=nn.Linear(9, 2))
    assert find_slabs(model, "out") == [Slab("b", "out", "a")]


def test_a_norm_behind_a_shared_identity_is_seen_to_act_on_two_layers():
    def forward(self, x):
        return self.c(torch.relu(self.norm(self.same(self.a(x)))) + torch.relu(self.norm(self.same(self.b(x)))))

    layers = {name: nn.Linear(9, 9) for name in "abc"} | {"norm": nn.LayerNorm(9), "same": nn.Identity()}
    assert found(Net(forward, **layers), "both") == []


def test_what_reads_a_unit_before_its_activation_keeps_it_from_export():
    """The values behind an identity are read by a sum as well, so that they are no hidden units."""

    def forward(self, x):
        values = self.same(self.a(x))
        return self.b(torch.relu(values)) + values

    assert found(Net(forward, a=nn.Linear(9, 9), b=nn.Linear(9, 9), same=nn.Identity()), "both") == []


def test_a_frozen_weight_is_no_slab(mlp):
    model = mlp.build()
    first, *others = find_slabs(model)
    model.get_submodule(first.name).weight.requires_grad_(False)
    assert find_slabs(model) == others


def test_channels_are_followed_through_pools_dropout_and_norms():
    layers = [
        nn.Conv1d(9, 8, 3),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.BatchNorm1d(8),
        nn.Dropout1d(),
        nn.Identity(),
        nn.AdaptiveAvgPool1d(4),
        nn.Conv1d(8, 9, 1),
        nn.ReLU(),
    ]
    model = nn.Sequential(*layers, nn.Conv1d(9, 3, 1))
    assert find_slabs(model, "out") == [Slab("7", "out", "0")]

    def forward(self, x):
        x = functional.dropout(functional.avg_pool2d(functional.max_pool2d(torch.relu(self.a(x)), 2), 2), 0.2)
        return self.c(torch.relu(self.b(functional.adaptive_max_pool2d(x, 2))))

    model = Net(forward, a=nn.Conv2d(8, 8, 3), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 2, 1))
    assert find_slabs(model, "out") == [Slab("b", "out", "a")]


def test_pools_of_another_dimension_mix_channels():
    """A one-dimensional pool after a linear layer, or two dimensions after Conv1d, pools over the units."""
    linear = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.MaxPool1d(3, 1, 1), nn.Linear(16, 9), nn.Linear(9, 2))
    conv = nn.Sequential(nn.Conv1d(8, 8, 1), nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.Conv1d(8, 9, 1), nn.Conv1d(9, 2, 1))
    for model in (linear, conv):
        assert found(model, "in") == [("0", "in")]
        assert found(model, "out") == []
    conv[2] = nn.MaxPool1d(3, 1, 1)
    assert found(conv, "out") == [("3", "out")]


def test_flattened_or_joined_channels_are_no_longer_units_of_one_layer():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 2)
    )
    assert found(model, "in") == [("0", "in"), ("3", "in")]
    assert found(model, "out") == [("5", "out")]

    def forward(self, x):
        return self.d(torch.relu(self.c(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1))))

    model = Net(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(16, 16), d=nn.Linear(16, 2))
    assert found(model, "in") == [("a", "in"), ("b", "in"), ("c", "in")]
    assert found(model, "out") == []


def test_a_sum_before_the_activation_makes_no_units(capsys):
    model = nn.Sequential(nn.Conv2d(16, 16, 3), Bottleneck(16), Bottleneck(16), nn.Flatten(), nn.Linear(16, 2))
    assert found(model, "in") == [("1.conv1", "in"), ("1.conv2", "in"), ("2.conv1", "in"), ("2.conv2", "in")]
    assert found(model, "out") == [("1.conv2", "out"), ("1.conv3", "out"), ("2.conv2", "out"), ("2.conv3", "out")]
    assert found(model, "both") == [
        (f"{block}.{layer}", side)
        for block in (1, 2)
        for layer, side in (("conv1", "in"), ("conv2", "out"), ("conv3", "out"))
    ]
    assert find_slabs(model)[0] == Slab("1.conv1", "in", "1.norm1", normalised=True)
    assert reasons(model, "in", capsys) == {
        "0": "its outputs are also used without an activation",
        "1.conv3": "no activation directly after it",
        "2.conv3": "no activation directly after it",
        "4": "output layer",
    }


def test_a_pre_activation_used_elsewhere_makes_no_units():
    def forward(self, x):
        hidden = self.a(x)
        return self.c(torch.relu(self.b(torch.relu(hidden)))) + hidden.sum()

    model = Net(forward, a=nn.Linear(16, 16), b=nn.Linear(16, 16), c=nn.Linear(16, 2))
    assert found(model, "in") == [("b", "in")]


def test_its_shape_may_be_used_elsewhere():
    def forward(self, x):
        hidden = self.a(x)
        length = hidden.shape[0] + hidden.size(0)
        return self.c(torch.relu(self.b(torch.relu(hidden)))) / length

    model = Net(forward, a=nn.Linear(16, 16), b=nn.Linear(16, 16), c=nn.Linear(16, 2))
    assert found(model, "in") == [("a", "in"), ("b", "in")]
    assert [chain.exclusive for chain in find_chains(model)] == [False, True]


def test_several_layers_may_read_the_same_units():
    def forward(self, x):
        hidden = functional.relu(self.a(x))
        return self.d(torch.relu(self.b(hidden)) * torch.relu(self.c(hidden)))

    model = Net(forward, a=nn.Linear(16, 16), c=nn.Linear(16, 16), b=nn.Linear(16, 16), d=nn.Linear(16, 2))
    assert find_slabs(model, "out") == [Slab("b", "out", "a"), Slab("c", "out", "a")]
    assert found(model, "both") == [("a", "in"), ("b", "out"), ("c", "out")]
    assert [chain.consumers for chain in find_chains(model)] == [("b", "c"), ("d",), ("d",)]


def test_what_no_weight_comes_after_is_an_output(capsys):
    """Two heads, one with an activation on its outputs; a norm or a sum after a layer is no weight."""

    def forward(self, x):
        hidden = functional.relu(self.a(x))
        return functional.relu(self.norm(self.head(hidden))) + self.shift, self.other(hidden)

    model = Net(
        forward, a=nn.Linear(16, 16), head=nn.Linear(16, 16), norm=nn.LayerNorm([4, 16]), other=nn.Linear(16, 16)
    )
    model.shift = nn.Parameter(torch.zeros(4, 16))
    assert found(model, "both") == [("a", "in")]
    assert reasons(model, "out", capsys) == {
        "a": "does not read the units of one layer of its kind",
        "head": "output layer",
        "other": "output layer",
        "the model itself": "Net is neither Linear nor a convolution",
    }


@pytest.mark.parametrize(
    "later",
    [
        lambda self, x: functional.linear(x, self.embedding.weight),
        lambda self, x: functional.linear(x, self.embedding.weight[:4] * 2),
        lambda self, x: x @ self.table,
        lambda self, x: x.matmul(self.table),
        lambda self, x: self.gru(x)[0],
        lambda self, x: self.attention(x, x, x)[0],
    ],
    ids=["tied head", "part of a table", "product", "product by method", "gru", "attention"],
)
def test_weights_that_are_no_layers_come_after_too(later):
    model = Net(
        lambda self, x: later(self, torch.relu(self.a(x))),
        a=nn.Linear(16, 16),
        embedding=nn.Embedding(9, 16),
        gru=nn.GRU(16, 4),
        attention=nn.MultiheadAttention(16, 2),
    )
    model.table = nn.Parameter(torch.zeros(16, 3))
    assert found(model) == [("a", "in")]


def test_weights_with_a_second_owner_stay_dense(capsys):
    model = three_linears(torch.relu)
    model.tied = nn.Linear(16, 12)
    model.tied.weight = model.b.weight
    assert found(model, "in") == [("a", "in")]
    assert found(model, "out") == []
    why = reasons(model, "in", capsys)
    assert why["b"] == why["tied"] == "its weight is shared or used outside the layer"


def test_a_weight_used_as_a_matrix_stays_dense():
    def forward(self, x):
        return functional.linear(torch.relu(self.b(torch.relu(self.a(x)))), self.a.weight.t())

    model = Net(forward, a=nn.Linear(16, 16), b=nn.Linear(16, 16))
    assert found(model, "in") == [("b", "in")]


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "compute",
    [
        weight_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_computed_weights_stay_dense(compute, capsys):
    model = three_linears(torch.relu)
    compute(model.b)
    model(torch.randn(2, 20)).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert found(model, "in") == [("a", "in")]
    assert found(model, "out") == []
    assert reasons(model, "both", capsys)["b"] == "its weight is computed (parametrised)"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_grouped_convolutions_and_small_fans_stay_dense(capsys):
    """The channels of a grouped convolution are units for others."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 9, 1), nn.ReLU()),
        *(nn.Conv2d(9, 7, 1), nn.ReLU(), nn.Conv2d(7, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)),
    )
    assert found(model, "in") == [("4", "in"), ("6", "in")]
    assert found(model, "out") == [("4", "out"), ("8", "out")]
    assert [chain.exclusive for chain in find_chains(model)] == [False, False, True, True, True]
    assert reasons(model, "in", capsys) == {
        "0": f"fan 3 is below {SMALLEST_FAN}",
        "2": "grouped convolution",
        "8": f"fan 7 is below {SMALLEST_FAN}",
        "10": "output layer",
    }


@pytest.mark.parametrize("reader", [nn.Linear(8, 9), nn.Conv1d(16, 9, 1)])
def test_a_reader_is_of_the_kind_and_width_of_what_it_reads(reader):
    """A linear layer after Conv1d reads positions, be there as many of them as channels."""
    model = nn.Sequential(nn.Conv1d(8, 8, 1), nn.ReLU(), reader, nn.Sigmoid(), nn.Conv1d(9, 2, 1))
    assert found(model, "in") == [("0", "in")]
    assert found(model, "out") == []


def test_units_of_an_output_layer_are_no_chain():
    model = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU())
    assert [chain.producer for chain in find_chains(model)] == ["0"]


def test_an_activation_whose_slope_is_learnt_is_none():
    model = three_linears(lambda x: x)
    model.slope = nn.Parameter(torch.tensor(0.1))
    model.run = lambda self, x: self.c(functional.leaky_relu(self.b(torch.relu(self.a(x))), self.slope))
    assert found(model) == [("a", "in")]


def test_a_layer_called_at_places_that_agree_is_found_once():
    def forward(self, x):
        left, right = (self.b(self.on(self.a(x[:, side]))) for side in (0, 1))
        return self.c(left - right)

    model = Net(forward, a=nn.Linear(9, 9), on=nn.ReLU(), b=nn.Linear(9, 9), c=nn.Linear(9, 2))
    assert found(model, "in") == [("a", "in")]
    assert found(model, "out") == [("b", "out")]
    assert [chain.exclusive for chain in find_chains(model)] == [False]


def test_layers_called_at_places_that_differ_are_left_out(capsys):
    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(self.loop(x))
        x = torch.relu(self.loop(x))
        return self.c(self.b(x))

    model = Net(forward, a=nn.Linear(9, 9), loop=nn.Linear(9, 9), b=nn.Linear(9, 9), c=nn.Linear(9, 2))
    assert found(model, "in") == [("a", "in")]
    assert found(model, "out") == []
    assert reasons(model, "in", capsys)["loop"] == "its calls differ in how its outputs are used"
    assert reasons(model, "out", capsys)["b"] == "does not read the units of one layer of its kind"


def test_a_norm_of_two_layers_reads_no_units(capsys):
    def forward(self, x):
        return self.c(torch.relu(self.norm(self.a(x))) + torch.relu(self.norm(self.b(x))))

    model = Net(forward, a=nn.Linear(9, 9), b=nn.Linear(9, 9), norm=nn.LayerNorm(9), c=nn.Linear(9, 2))
    assert found(model) == []
    assert reasons(model, "in", capsys)["a"] == "its norm is shared with another layer"


def test_an_unused_layer_is_not_found(capsys):
    model = three_linears(torch.relu)
    model.spare = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    assert found(model, "both") == [("a", "in"), ("b", "out")]
    assert reasons(model, "in", capsys)["spare.0"] == "not seen in the data flow"


def test_layers_not_initialised_yet_stay_dense(capsys):
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    assert found(model) == [("2", "in")]
    assert reasons(model, "in", capsys)["0"] == "its weight is not initialised yet"


def test_classes_derived_from_layers():
    """One with its own forward pass is a layer only if it computes the same."""

    class Labelled(nn.Linear):
        label = "hidden"

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    class Equal(nn.Linear):
        def forward(self, x):
            return x @ self.weight.T + self.bias

    model = three_linears(torch.relu)
    model.a = Labelled(20, 16)
    assert found(model) == [("a", "in"), ("b", "in")]
    model.a = Scaled(20, 16)
    assert found(model) == [("b", "in")]
    model.a = Equal(20, 16)
    assert found(model) == [("a", "in"), ("b", "in")]
    model.a = Scaled(20, 16)
    model.b.forward = lambda x: functional.linear(x, model.b.weight * 2)
    assert found(model) == []


def test_the_order_is_that_of_the_data():
    def forward(self, x):
        left = torch.relu(self.d(torch.relu(self.c(x))))
        return self.a(torch.relu(self.b(torch.relu(left))))

    layers = {name: nn.Linear(9, 9) for name in "abcd"}
    assert found(Net(forward, **layers), "in") == [("c", "in"), ("d", "in"), ("b", "in")]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", functional.silu, nn.Mish()])
@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_a_transformer_layer_alone(kind, activation, norm_first):
    model = kind(16, 2, 32, activation=activation, norm_first=norm_first)
    assert find_slabs(model, "in") == [Slab("linear1", "in", "linear1")]
    assert find_slabs(model, "out") == [Slab("linear2", "out", "linear1")]
    assert found(model, "both") == [("linear1", "in"), ("linear2", "out")]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_whole_transformer(capsys):
    model = nn.Transformer(16, 2, dim_feedforward=32)
    blocks = [f"{half}.layers.{index}" for half in ("encoder", "decoder") for index in range(6)]
    assert found(model, "in") == [(f"{block}.linear1", "in") for block in blocks]
    assert found(model, "out") == [(f"{block}.linear2", "out") for block in blocks]
    assert len(found(model, "both")) == 24
    assert reasons(model, "both", capsys)["decoder.layers.5.multihead_attn.out_proj"] == "attention projection"
    assert found(model.decoder) == [(f"layers.{index}.linear1", "in") for index in range(6)]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_transformers_inside_a_model_stand_where_they_are_called():
    def forward(self, tokens):
        hidden = torch.relu(self.after(torch.relu(self.before(self.embedding(tokens)))))
        return self.head(self.encoder(hidden))

    model = Net(
        forward,
        encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2),
        head=nn.Linear(16, 9),
        embedding=nn.Embedding(9, 16),
        before=nn.Linear(16, 16),
        after=nn.Linear(16, 16),
    )
    inner = [f"encoder.layers.{index}.linear1" for index in (0, 1)]
    assert [name for name, _ in found(model, "in")] == ["before", "after", *inner]


def test_transformer_layers_are_taken_at_their_code():
    class Sum(nn.TransformerEncoderLayer):
        def _ff_block(self, x):
            return self.linear2(self.linear1(x).sigmoid())

    class Other(nn.TransformerEncoderLayer):
        def forward(self, src):
            return super().forward(src)

    assert found(nn.TransformerEncoderLayer(16, 2, 32, activation=torch.sigmoid)) == []
    assert found(Sum(16, 2, 32)) == []
    assert found(Other(16, 2, 32)) == []


def test_a_model_with_control_flow_falls_into_its_parts():
    """What follows a part is not seen: its outputs are held to lead on, and the last layer to be the output."""

    class Chooser(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(20, 16), nn.ReLU())
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in "ab")
            self.head = nn.Sequential(nn.Linear(16, 9), nn.ReLU())

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.blocks[int(x.sum() > 0)](x))

    first = ["stem.0", "blocks.0.0", "blocks.1.0"]
    assert found(Chooser(), "in") == [(name, "in") for name in first]
    assert found(Chooser(), "out") == [("blocks.0.2", "out"), ("blocks.1.2", "out")]
    assert [chain.exclusive for chain in find_chains(Chooser())] == [False, True, True, False]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_in_a_model_seen_in_parts_a_transformer_ends_with_a_hidden_layer():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2)

        def forward(self, x):
            return self.encoder(x) if x.sum() > 0 else x

    assert [name for name, _ in found(Encoder(), "out")] == ["encoder.layers.0.linear2", "encoder.layers.1.linear2"]


def test_arguments_with_defaults_are_left_at_them():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 9)

        def forward(self, x, mask=None, *, features=False, scale: float = 1.0):
            hidden = torch.relu(self.a(x))
            if mask is not None:
                hidden = hidden * mask
            if features:
                return hidden
            return self.c(torch.relu(self.b(hidden))) * scale

    assert found(Optional(), "out") == [("b", "out")]


def test_shapes_of_parameters_may_decide():
    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.b(x) if self.b.weight.shape[1] == 9 else self.c(x)

    model = Net(forward, a=nn.Linear(9, 9), b=nn.Linear(9, 3), c=nn.Linear(7, 3))
    assert [chain.consumers for chain in find_chains(model)] == [("b",)]


def test_a_block_that_must_be_given_its_option_is_traced_with_it():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(9, 9), nn.Linear(9, 9)

        def forward(self, x, scale=None):
            return self.b(torch.relu(self.a(x))) * scale.exp()

    assert found(Block()) == [("a", "in")]


@pytest.mark.parametrize("wrap", ["compile", "distributed", "both"])
def test_a_wrapped_model_has_the_names_of_the_inner_one(mlp, wrap, tmp_path):
    model = mlp.build()
    expected = find_slabs(model, "both")
    if wrap != "compile":
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = model if wrap == "compile" else nn.parallel.DistributedDataParallel(model)
        wrapped = wrapped if wrap == "distributed" else torch.compile(wrapped, backend="eager")
        assert wrapped is not model
        assert find_slabs(wrapped, "both") == expected
    finally:
        if wrap != "compile":
            torch.distributed.destroy_process_group()


def test_nothing_is_left_behind_in_the_model():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b, self.c = nn.Linear(9, 9), nn.BatchNorm1d(9), nn.Linear(9, 9), nn.Linear(9, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.block = nn.Sequential(nn.Dropout())
            self.seen, self.count = [], 0

        def forward(self, x):
            self.count += 1
            self.calls += 1
            self.seen.append(x)
            self.last = x
            for parameter in self.parameters():
                parameter.data.clamp_(-0.01, 0.01)
            x = torch.relu(self.norm(self.a(self.block(x) + torch.rand(9))))
            return self.c(torch.relu(self.b(functional.dropout(x, 0.5, self.training))))

    model = Careless()
    model.b.eval()
    model.c.weight.requires_grad_(False)
    called = []
    handles = [module.register_forward_hook(lambda *args: called.append(args)) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: module.training for name, module in model.named_modules()}
    identities = {name: id(value) for name, value in model.named_parameters()}
    entries = {key: value for key, value in vars(model).items() if not key.startswith("_")}
    random = torch.get_rng_state()

    assert found(model, "in") == [("a", "in"), ("b", "in")]

    assert torch.equal(torch.get_rng_state(), random)
    assert {key: value for key, value in vars(model).items() if not key.startswith("_")} == entries
    assert model.seen == [] and called == []
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {name: id(value) for name, value in model.named_parameters()} == identities
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(model.a._forward_hooks) == 1 and len(handles) == len(list(model.modules()))
    assert not hasattr(model, "last")


def test_weights_are_not_copied():
    devices = []

    def forward(self, x):
        devices.extend(parameter.device.type for parameter in self.parameters())
        return self.b(torch.relu(self.a(x)))

    assert found(Net(forward, a=nn.Linear(9, 9), b=nn.Linear(9, 9))) == [("a", "in")]
    assert set(devices) == {"meta"}


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_a_model_changes_nothing(training):
    def forward(self, x):
        hidden = torch.relu(self.a(x))
        return (self.head(hidden), self.auxiliary(hidden)) if self.training else self.head(hidden)

    model = Net(forward, a=nn.Linear(9, 9), head=nn.Linear(9, 2), auxiliary=nn.Linear(9, 2)).train(training)
    assert [chain.consumers for chain in find_chains(model)] == [("head",)]


def test_what_a_model_went_through_changes_nothing(conv_net):
    model = conv_net.build()
    fresh = find_slabs(model, "both")
    model(conv_net.batch(0)[0]).sum().backward()
    assert find_slabs(model, "both") == find_slabs(copy.deepcopy(model), "both") == fresh


def test_slabs_of_a_model_on_the_meta_device(mlp):
    assert find_slabs(mlp.build().to("meta")) == find_slabs(mlp.build())


def test_an_unknown_side_is_refused(mlp):
    with pytest.raises(ValueError, match="unknown side 'up', allowed: in, out, both"):
        find_slabs(mlp.build(), "up")


@pytest.mark.parametrize("model", [nn.Linear(9, 9), nn.Sequential(nn.Linear(9, 9)), nn.ReLU(), nn.GRU(9, 9)])
def test_a_model_without_patterns_is_refused(model):
    with pytest.raises(ValueError, match=rf"{NOTHING} of side 'in' was found in {type(model).__name__}.*bbnet.Slab"):
        find_slabs(model)


def test_layers_of_other_kinds_are_refused_by_name(capsys):
    model = nn.Sequential(nn.Conv2d(9, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    model.recurrent, model.cell, model.attention = nn.LSTM(8, 8), nn.GRUCell(8, 8), nn.MultiheadAttention(8, 2)
    why = reasons(model, "in", capsys)
    assert why["2"] == "transposed convolution"
    for name, kind in (("recurrent", "LSTM"), ("cell", "GRUCell"), ("attention", "MultiheadAttention")):
        assert why[name] == f"{kind} is neither Linear nor a convolution"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name, kind in (("2", "ConvTranspose2d"), ("recurrent", "LSTM"), ("cell", "GRUCell")):
        with pytest.raises(ValueError, match=f"slab {name}: cannot mask a {kind}, allowed: Linear, Conv1d"):
            sparsify(model, optimizer, [Slab(name, "in", name)], "magnitude", 0.5, total_steps=20)


def test_what_was_seen_is_named_where_nothing_is_found():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4), nn.Softmax(-1), nn.Linear(4, 9), nn.GRU(9, 9))
    with pytest.raises(ValueError) as error:
        find_slabs(model)
    assert "0: Embedding is neither Linear nor a convolution" in str(error.value)
    assert "1, 3: no activation directly after it" in str(error.value)
    assert "4: GRU is neither" in str(error.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_a_scripted_model_is_refused_like_one_without_patterns(mlp):
    with pytest.raises(ValueError, match=NOTHING):
        find_slabs(torch.jit.script(mlp.build()))


def test_the_report_lists_every_layer_once(capsys):
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 9, 1)]
    model = nn.Sequential(*layers)
    find_slabs(model, "both")
    assert capsys.readouterr().out == ""
    model.append(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)))
    find_slabs(model, "both", verbose=True)
    assert capsys.readouterr().out.splitlines() == [
        "layer  side  units  shape [units x fan]",
        "2      out   0      16 x 12",
        "5      out   3      12 x 9",
        "The slabs hold 1,836 of 2,349 parameters (78.2 %).",
        "",
        "skipped  reason",
        "0        fan 3 is below 8; does not read the units of one layer of its kind",
        "6.2      output layer",
    ]


@pytest.mark.parametrize("side", SIDES)
def test_units_are_on_where_the_named_modules_are_positive(side):
    """Against what really flows: a reader's inputs are above 0 exactly where the named module's outputs are."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.GELU(), nn.Conv2d(8, 9, 1)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(9, 2, 1)).eval()
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    slabs = find_slabs(model, side)
    model(torch.randn(2, 8, 6, 6))
    reader = {"0": "3", "1": "3", "3": "5", "5": "7"}
    for slab in slabs:
        (units,) = slab.units
        read = seen[slab.name][0] if slab.side == "out" else seen[reader[slab.name]][0]
        assert torch.equal(read > 0, seen[units][1] > 0)
    assert len(slabs) == {"in": 3, "out": 2, "both": 3}[side]


@pytest.mark.parametrize("side, method", [("in", "sp_in"), ("out", "sp_out"), ("in", "magnitude")])
def test_what_is_found_can_be_sparsified(net, adamw, train, side, method):
    model = net.build()
    optimizer = adamw(model)
    slabs = find_slabs(model, side)
    sparsifier = sparsify(model, optimizer, slabs, method, 0.5, total_steps=20)
    train(net, model, optimizer, 20)
    for slab in slabs:
        weight = model.get_submodule(slab.name).weight
        taps = weight[0, 0].numel()
        assert int((weight != 0).sum()) == taps * int(sparsifier.masks()[slab.name].sum())
        assert int(sparsifier.masks()[slab.name].sum()) == sparsifier.masks()[slab.name].numel() // 2


@pytest.fixture(scope="module")
def models():
    return pytest.importorskip("torchvision").models


@pytest.fixture(scope="module")
def resnet50(models):
    return models.resnet50(weights=None)


BLOCKS = [f"layer{stage}.{block}" for stage, count in enumerate((3, 4, 6, 3), 1) for block in range(count)]


def test_resnet_50_side_in(resnet50):
    """Conv1 and conv2 of all 16 bottlenecks; bn3 feeds a sum, and the stem reads 3 channels."""
    expected = [
        Slab(f"{block}.conv{index}", "in", f"{block}.bn{index}", normalised=True)
        for block in BLOCKS
        for index in (1, 2)
    ]
    assert len(expected) == 32
    assert find_slabs(resnet50, "in") == expected


def test_resnet_50_side_out(resnet50):
    """Conv2 and conv3 of all 16 bottlenecks read conv1 and conv2. The inputs of a bottleneck are sums, but for the very
    first: max-pooled units of the stem, read by its conv1 and, the widths being 64 and 256, by its downsampling."""
    slabs = find_slabs(resnet50, "out")
    first = [Slab("layer1.0.conv1", "out", "bn1"), Slab("layer1.0.downsample.0", "out", "bn1")]
    later = [Slab(f"{block}.conv{index + 1}", "out", f"{block}.bn{index}") for block in BLOCKS for index in (1, 2)]
    assert len(slabs) == 34
    assert set(slabs) == {*first, *later}
    assert [slab.name for slab in slabs[:4]] == [
        f"layer1.0.{name}" for name in ("conv1", "conv2", "conv3", "downsample.0")
    ]


def test_resnet_50_side_both(resnet50):
    """All 3 x 16 convolutions of the bottlenecks and the first downsampling. In the first bottleneck conv1 is taken by
    the units of the stem, which comes before it."""
    sides = dict(found(resnet50, "both"))
    first = ["layer1.0.conv1", "layer1.0.downsample.0"]
    conv1 = [f"{block}.conv1" for block in BLOCKS[1:]]
    others = [f"{block}.conv{index}" for block in BLOCKS for index in (2, 3)]
    assert sides == dict.fromkeys(first + others, "out") | dict.fromkeys(conv1, "in")
    assert len(sides) == 49


def test_vit_b_16(models):
    model = models.vit_b_16(weights=None)
    mlps = [f"encoder.layers.encoder_layer_{index}.mlp" for index in range(12)]
    assert find_slabs(model, "in") == [Slab(f"{mlp}.0", "in", f"{mlp}.0") for mlp in mlps]
    assert find_slabs(model, "out") == [Slab(f"{mlp}.3", "out", f"{mlp}.0") for mlp in mlps]
    assert len(find_slabs(model, "both")) == 24
