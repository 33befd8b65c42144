"""Densities and FLOPs against counts by hand; a multiply and an add are two FLOPs."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from bbnet.sparsity.cost import density, flops, net_density


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


def test_density_counts_connections_over_all_slabs():
    assert density({"a": mask_of((8, 10), 20), "b": mask_of((4, 5), 20)}) == 0.4
    assert density({"a": mask_of((8, 10), 80)}) == 1


def test_net_density_and_flops_of_a_small_mlp(mlp):
    # 80 + 8 + 32 + 4 = 124 weights and biases; 60 and 16 connections are pruned.
    masks = {"first": mask_of((8, 10), 20), "last": mask_of((8, 4), 16)}
    assert net_density(mlp, masks) == (124 - 60 - 16) / 124
    # A batch of 7: 2 * 7 * (80 + 32) = 1568 dense, 2 * 7 * (20 + 16) = 504 sparse.
    assert flops(mlp, (torch.randn(7, 10),), masks) == {"dense": 1568, "sparse": 504}


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
