"""The ResNets for CIFAR against the published counts, and against their equations computed from the weights alone."""

import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bbnet.models.cifar_resnet import BasicBlock, CifarResNet, slabs
from bbnet.models.settings.cifar_resnet import blocks_per_stage, fans
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.slab import check_slabs, slab_shape, slab_weight
from tests.networks import macs, restless, seen

SIDES = ("in", "out", "both")


@pytest.fixture
def network() -> CifarResNet:
    return restless(CifarResNet(14, classes=7, width=9))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 18, 18)


@pytest.mark.parametrize(
    ("depth", "parameters", "mega_macs"),
    [(20, 269_722, 40.551), (32, 464_154, 68.9), (44, 658_586, 97.2), (56, 853_018, 125.5), (110, 1_727_962, 252.9)],
)
def test_counts_are_the_published_ones(depth, parameters, mega_macs):
    with torch.device("meta"):
        network, image = CifarResNet(depth, classes=10), torch.zeros(1, 3, 32, 32)
    assert sum(each.numel() for each in network.parameters()) == parameters
    assert macs(network.eval(), image) / 1e6 == pytest.approx(mega_macs, abs=5e-4 if depth == 20 else 0.05)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_resnet_20_has_20_weights_to_binarise_and_a_stem_of_stride_2_costs_a_quarter():
    with torch.device("meta"):
        network, image = CifarResNet(20, classes=10, stem_stride=2), torch.zeros(1, 3, 32, 32)
    kernels = [each.numel() for each in network.parameters() if each.dim() > 1]
    assert (len(kernels), sum(kernels)) == (20, 268_336)
    assert sum(each.numel() for each in network.parameters()) == 269_722
    assert macs(network.eval(), image) / 1e6 == pytest.approx(10.138, abs=5e-4)


def equations(network: CifarResNet, images: torch.Tensor) -> tuple[torch.Tensor, dict, dict]:
    """The logits from the weights alone, and what each 3x3 convolution of a block reads and where its output goes."""

    def normed(maps, norm):
        mean, variance = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        return (maps - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    read, written = {}, {}
    stride = network.conv1.stride[0]
    maps = normed(functional.conv2d(images, network.conv1.weight, stride=stride, padding=1), network.bn1).relu()
    for stage, number in itertools.product((1, 2, 3), range(len(network.layer1))):
        name, block = f"layer{stage}.{number}", network.get_submodule(f"layer{stage}")[number]
        stride = 2 if stage > 1 and number == 0 else 1
        first = normed(functional.conv2d(maps, block.conv1.weight, stride=stride, padding=1), block.bn1).relu()
        second = normed(functional.conv2d(first, block.conv2.weight, padding=1), block.bn2)
        channels, missing = maps.shape[1], second.shape[1] - maps.shape[1]
        for channel in range(channels):  # the other channels of the shortcut are 0
            second[:, missing // 2 + channel] += maps[:, channel, ::stride, ::stride]
        read |= {f"{name}.conv1": maps, f"{name}.conv2": first}
        maps = second.relu()
        written |= {f"{name}.conv1": first, f"{name}.conv2": maps}
    return maps.mean((2, 3)) @ network.fc.weight.T + network.fc.bias, read, written


@torch.no_grad()
def test_logits_are_those_of_the_equations():
    for depth, width, stem_stride, size in ((8, 4, 1, 8), (14, 5, 2, 13), (20, 16, 1, 32)):
        network = restless(CifarResNet(depth, classes=6, width=width, stem_stride=stem_stride))
        images = torch.randn(3, 3, size, size)
        expected, _, _ = equations(network, images)
        torch.testing.assert_close(network(images), expected, atol=1e-3, rtol=1e-3)
        assert expected.std(0).min() > 0.01


def test_a_shortcut_takes_every_second_pixel_between_channels_of_0():
    block = BasicBlock(2, 5, stride=2)
    nn.init.zeros_(block.bn2.weight)  # which leaves the shortcut alone
    maps = torch.rand(1, 2, 4, 4)
    found = block.eval()(maps)
    assert torch.equal(found[:, 1:3], maps[:, :, [0, 2]][..., [0, 2]])
    assert not found[:, [0, 3, 4]].any()


def test_weights_start_as_he_et_al_draw_them_by_fan_in():
    for module in CifarResNet(20, classes=100).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert module.weight.mean().item() == pytest.approx(0, abs=0.1 * math.sqrt(2 / fan_in))
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.12)
            share_within_one_sd = (module.weight.abs() < math.sqrt(2 / fan_in)).float().mean().item()
            assert share_within_one_sd == pytest.approx(0.683, abs=0.07)  # normal, not uniform (0.577)


def test_depths_other_than_6n_plus_2_are_refused():
    assert [blocks_per_stage(depth) for depth in (8, 20, 110)] == [1, 3, 18]
    for depth in (2, 18, 21, -4):
        with pytest.raises(ValueError, match=f"depth {depth} is not 6n \\+ 2; allowed are 8, 14, 20"):
            CifarResNet(depth, classes=10)


# Slabs.


def test_slabs_are_the_3x3_convolutions_of_blocks_and_the_same_on_all_sides(network):
    blocks = [name for name, module in network.named_modules() if isinstance(module, BasicBlock)]
    layers = {"paper": ("conv1",), "wide": ("conv1", "conv2")}
    for which, side in itertools.product(layers, SIDES):
        found = slabs(network, which, side)
        assert [slab.name for slab in found] == [f"{block}.{layer}" for block in blocks for layer in layers[which]]
        assert len(check_slabs(network, found, Decimal("0.5"))) == len(found)
        sides = [slab.side for slab in found[:: len(layers[which])]]
        assert sides == (["in", "out", "in", "out", "in", "out"] if side == "both" else [side] * 6)


def test_the_settings_know_the_fans_of_slabs():
    for depth, which in itertools.product((8, 14), ("paper", "wide")):
        network = CifarResNet(depth, classes=3, width=10)
        found = {
            slab_shape(slab_weight(network, slab), side)[1]
            for side in SIDES[:2]
            for slab in slabs(network, which, side)
        }
        assert fans(10) == found


def test_units_are_those_that_the_weight_writes_or_reads(network, images):
    inputs, outputs = seen(network, images)
    for slab in itertools.chain.from_iterable(slabs(network, "wide", side) for side in SIDES):
        (unit,) = slab.units
        assert slab.normalised == (slab.side == "in")
        if slab.side == "out":
            assert torch.equal(outputs[unit].relu(), inputs[slab.name]), slab
        elif slab.name.endswith("conv1"):
            assert torch.equal(inputs[unit], outputs[slab.name]), slab
        else:
            assert f"{unit}.conv2" == slab.name


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_a_shared_relu_gives_each_unit_its_own_on_rate(network, images, side):
    _, read, written = equations(network, images)
    chosen = slabs(network, "wide", side)
    rates = OnRates.of_slabs(network, chosen, stride=1, in_training=False)
    network(images)
    rates.remove()
    rates.fold()
    for slab in chosen:
        activation = written[slab.name] if slab.side == "in" else read[slab.name]
        expected = (activation > 0).double().mean((0, 2, 3)).numpy()
        tolerance = 1.01 / activation[:, 0].numel()  # one position within rounding of 0
        np.testing.assert_allclose(rates.of(slab.units)[0].numpy(), expected, atol=tolerance, err_msg=slab.name)
        assert np.ptp(expected) > 0.1
