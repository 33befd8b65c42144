"""Densities and FLOPs against counts by hand; a multiply and an add are two FLOPs."""

from collections import OrderedDict
from decimal import Decimal

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bbnet.sparsity import algorithms
from bbnet.sparsity.cost import density, flops, flops_of_slabs, net_density
from bbnet.sparsity.gate import Gates
from bbnet.sparsity.slab import Slab


def mask_of(shape, kept):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[:kept] = True
    return mask


@pytest.fixture
def mlp():
    return nn.Sequential(OrderedDict(first=nn.Linear(10, 8), on=nn.ReLU(), last=nn.Linear(8, 4)))


@pytest.fixture
def conv_net():
    layers = OrderedDict(
        stem=nn.Conv2d(3, 6, 3, padding=1), norm=nn.BatchNorm2d(6), on=nn.ReLU(), last=nn.Conv2d(6, 5, 1)
    )
    return nn.Sequential(layers)


def test_density_counts_weights_over_all_slabs(mlp, conv_net):
    assert density(mlp, {"first": mask_of((8, 10), 20), "last": mask_of((4, 8), 8)}) == 28 / 112
    assert density(mlp, {"first": mask_of((8, 10), 80)}) == 1
    # Kernels of 9 weights and of 1.
    assert density(conv_net, {"stem": mask_of((6, 3), 6), "last": mask_of((5, 6), 30)}) == (54 + 30) / (162 + 30)


def test_net_density_and_flops_of_a_small_mlp(mlp):
    # 80 + 8 + 32 + 4 = 124 weights and biases; 60 and 16 connections are pruned.
    masks = {"first": mask_of((8, 10), 20), "last": mask_of((8, 4), 16)}
    assert net_density(mlp, masks) == (124 - 60 - 16) / 124
    # A batch of 7: 2 * 7 * (80 + 32) = 1568 dense, 2 * 7 * (20 + 16) = 504 sparse.
    assert flops(mlp, (torch.randn(7, 10),), masks) == {"dense": 1568, "sparse": 504}
    of_slabs = {"first": {"dense": 1120, "sparse": 280}, "last": {"dense": 448, "sparse": 224}}
    assert flops_of_slabs(mlp, (torch.randn(7, 10),), masks) == of_slabs


def test_net_density_and_flops_of_a_small_conv_net(conv_net):
    # 162 + 6 + 12 + 30 + 5 = 215; 12 of 18 connections of 9 taps and 10 of 30 of one tap are pruned.
    masks = {"stem": mask_of((6, 3), 6), "last": mask_of((6, 5), 20)}
    assert net_density(conv_net, masks) == (215 - 12 * 9 - 10) / 215
    # 2 images of 4 x 5 = 40 positions: 2 * 40 * (162 + 30) = 15360 dense, 2 * 40 * (54 + 20) = 5920 sparse.
    assert flops(conv_net, (torch.randn(2, 3, 4, 5),), masks) == {"dense": 15360, "sparse": 5920}


def test_without_masks_sparse_is_dense(mlp):
    assert net_density(mlp, {}) == 1
    assert flops(mlp, (torch.randn(1, 10),), {}) == {"dense": 224, "sparse": 224}


def test_a_layer_shared_by_two_branches_is_stored_once_and_computed_twice():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(10, 8))
            self.head = nn.Linear(8, 2)

        def forward(self, a, b):
            return self.head(self.branch(a) - self.branch(b))

    masks = {"branch.0": mask_of((8, 10), 20)}
    model = Siamese()
    # 88 + 18 weights and biases; one pair: 2 * (80 + 80 + 16) = 352, and 2 * (20 + 20 + 16) = 112.
    assert net_density(model, masks) == (106 - 60) / 106
    assert flops(model, (torch.randn(1, 10), torch.randn(1, 10)), masks) == {"dense": 352, "sparse": 112}


def test_counting_flops_leaves_the_model_as_it_was(conv_net):
    conv_net.norm.eval()
    state = {name: value.clone() for name, value in conv_net.state_dict().items()}
    modes = {name: module.training for name, module in conv_net.named_modules()}
    flops(conv_net, (torch.randn(2, 3, 4, 5),), {})
    assert all(torch.equal(value, state[name]) for name, value in conv_net.state_dict().items())
    assert {name: module.training for name, module in conv_net.named_modules()} == modes


@pytest.mark.parametrize(
    "layer",
    [
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0),
        nn.MultiheadAttention(16, 2, batch_first=True),
    ],
    ids=["encoder layer", "attention"],
)
def test_layers_that_torch_computes_on_a_fast_path_are_counted_too(layer):
    inputs = (torch.randn(2, 5, 16),) * (3 if isinstance(layer, nn.MultiheadAttention) else 1)
    with FlopCounterMode(display=False) as with_gradients, sdpa_kernel(SDPBackend.MATH):
        layer.eval()(*inputs)
    assert flops(layer, inputs, {})["dense"] == with_gradients.get_total_flops() > 0


def gated(model, share, **readers):
    """Gates that let `share` pass at the units of `readers`: the layer that reads them, by the units' module."""
    slabs = [Slab(reader, "out", units) for units, reader in readers.items()]
    gates = Gates(model, slabs, algorithms.make("topk"))
    gates.set_share(Decimal(share))
    return gates


@pytest.mark.parametrize("share, kept", [("1", 8), ("0.75", 6), ("0.5", 4), ("0.3", 2), ("0.01", 1)])
def test_behind_a_gate_the_product_counts_what_passes_and_the_one_before_all(share, kept):
    model = nn.Sequential(OrderedDict(first=nn.Linear(10, 8), on=nn.ReLU(), last=nn.Linear(8, 4)))
    gates = gated(model, share, first="last")
    # 2 * 7 * (80 + 32) = 1568 dense; `last` has 8 inputs, of which 8 b pass, rounded.
    counted = flops(model, (torch.randn(7, 10),), {"last": mask_of((8, 4), 32)}, gates)
    assert counted == {"dense": 1568, "sparse": 14 * (80 + 4 * kept)}


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Identity()])
def test_behind_every_gate_of_a_stack_the_product_counts_its_share(activation):
    model = nn.Sequential(
        OrderedDict(first=nn.Linear(10, 8), on=activation, second=nn.Linear(8, 6), on2=activation, last=nn.Linear(6, 4))
    )
    gates = gated(model, "0.5", first="second", second="last")
    # 2 * 7 * (80 + 48 + 24) = 2128 dense, 2 * 7 * (80 + 24 + 12) = 1624.
    assert flops(model, (torch.randn(7, 10),), {}, gates) == {"dense": 2128, "sparse": 1624}


def test_what_an_activation_does_not_leave_at_zero_is_not_saved():
    model = nn.Sequential(OrderedDict(first=nn.Linear(10, 8), on=nn.Sigmoid(), last=nn.Linear(8, 4)))
    assert flops(model, (torch.randn(7, 10),), {}, gated(model, "0.5", first="last")) == {"dense": 1568, "sparse": 1568}


@pytest.mark.parametrize("units", ["stem", "norm"])
def test_a_convolution_behind_a_gate_counts_the_channels_that_pass(units):
    layers = OrderedDict(
        stem=nn.Conv2d(3, 6, 3, padding=1), norm=nn.BatchNorm2d(6), on=nn.ReLU(), last=nn.Conv2d(6, 5, 3)
    )
    if units == "stem":
        del layers["norm"]
    model = nn.Sequential(layers)
    # 2 images of 6 x 7, then of 4 x 5: 2 * (84 * 162 + 40 * 270) = 48816; a third of the latter's 21600 is left.
    counted = flops(model, (torch.randn(2, 3, 6, 7),), {}, gated(model, "0.3333", **{units: "last"}))
    assert counted == {"dense": 48816, "sparse": 27216 + 7200}


class Joining(nn.Module):
    """Two layers whose outputs meet in a third."""

    def __init__(self, joins, width):
        super().__init__()
        self.joins = joins
        self.left, self.right, self.head = nn.Linear(10, 8), nn.Linear(10, 8), nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.joins(self.left(x).relu(), self.right(x).relu()))


def test_of_joined_inputs_only_the_gated_part_is_saved():
    model = Joining(lambda left, right: torch.cat([left, right], -1), 16)
    # 2 * 7 * (80 + 80 + 64) = 3136; of the 64 a quarter is saved, half of the left inputs.
    counted = flops(model, (torch.randn(7, 10),), {}, gated(model, "0.5", left="head"))
    assert counted == {"dense": 3136, "sparse": 3136 - 14 * 16}


def test_where_a_sum_fills_what_a_gate_closed_nothing_is_saved():
    model = Joining(torch.add, 8)
    # 2 * 7 * (80 + 80 + 32).
    counted = flops(model, (torch.randn(7, 10),), {}, gated(model, "0.5", left="head"))
    assert counted == {"dense": 2688, "sparse": 2688}


def test_a_gated_layer_of_two_branches_is_saved_in_both():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.units, self.reader = nn.Linear(10, 8), nn.Linear(8, 4)

        def forward(self, a, b):
            return self.reader(self.units(a).relu()).sum() - self.reader(self.units(b).relu()).sum()

    model = Siamese()
    counted = flops(model, (torch.randn(3, 10), torch.randn(5, 10)), {}, gated(model, "0.25", units="reader"))
    # 8 rows: 16 * (80 + 32) = 1792, and 16 * (80 + 8).
    assert counted == {"dense": 1792, "sparse": 1408}


def test_counting_behind_gates_leaves_model_gates_and_generator_as_they_were():
    model = nn.Sequential(
        OrderedDict(first=nn.Linear(10, 8), norm=nn.BatchNorm1d(8), on=nn.ReLU(), last=nn.Linear(8, 4))
    )
    gates, x = gated(model, "0.5", norm="last"), torch.randn(7, 10)
    model.norm.eval()
    out = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    counted = flops(model, (x,), {}, gates)
    assert torch.equal(torch.get_rng_state(), stream)
    assert (model.training, model.norm.training, gates.share) == (True, False, Decimal("0.5"))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), out)
    assert flops(model, (x,), {}, gates) == counted == {"dense": 1568, "sparse": 1568 - 224}


class SelfAttention(nn.Module):
    """One head, by the function of torch that has fused kernels."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, self.mix(x))


def test_scaled_dot_product_attention_is_counted():
    counted = flops(SelfAttention(), (torch.randn(1, 1, 5, 8),), {})
    assert counted["dense"] == 2 * (5 * 8 * 8) + 2 * (5 * 5 * 8) + 2 * (5 * 5 * 8)
