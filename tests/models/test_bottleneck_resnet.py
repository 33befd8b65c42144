"""Bottleneck ResNets against torchvision's: structure, initial weights, outputs and costs, all to the bit or digit."""

import math

import pytest
import torch
from torch import nn

from bbnet.models.bottleneck_resnet import Bottleneck, BottleneckResNet, slabs
from bbnet.models.settings.bottleneck_resnet import PUBLISHED, paired
from tests.networks import macs, restless


def test_a_bottleneck_is_torchvisions():
    from torchvision.models import resnet

    for inputs, stride in ((32, 1), (32, 2), (16, 1), (16, 2)):
        own = restless(Bottleneck(inputs, 8, stride))
        shortcut = nn.Sequential(nn.Conv2d(inputs, 32, 1, stride, bias=False), nn.BatchNorm2d(32))
        plain = inputs == 32 and stride == 1
        theirs = resnet.Bottleneck(inputs, 8, stride, None if plain else shortcut).eval()
        assert list(own.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(own.state_dict())
        maps = torch.randn(2, inputs, 9, 9)
        for mode in (False, True):
            torch.testing.assert_close(own.train(mode)(maps.clone()), theirs.train(mode)(maps.clone()))


def test_a_small_network_is_torchvisions_behind_another_stem():
    from torchvision.models import resnet

    own = restless(BottleneckResNet([(64, 2), (128, 1), (256, 1), (512, 1)], "small"))
    theirs = resnet.ResNet(resnet.Bottleneck, [2, 1, 1, 1])
    theirs.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    theirs.maxpool, theirs.fc = nn.Identity(), nn.Identity()
    assert list(own.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(own.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(own(images), theirs.eval()(images))
    assert own.features == 2048


@pytest.mark.parametrize("mode", [False, True])
def test_an_imagenet_network_is_torchvisions_from_its_initial_weights_to_its_logits(mode, same):
    from torchvision.models import resnet

    made = []
    for make in (lambda: BottleneckResNet(PUBLISHED["resnet50"], classes=11), lambda: resnet.resnet50(num_classes=11)):
        torch.manual_seed(7)
        made.append(make().train(mode))
    own, theirs = made
    assert list(own.state_dict()) == list(theirs.state_dict())
    assert same(dict(own.state_dict()), dict(theirs.state_dict()))
    images = torch.randn(2, 3, 65, 33)
    assert torch.equal(own(images), theirs(images))
    assert same(dict(own.state_dict()), dict(theirs.state_dict()))


def test_convolutions_start_as_torchvisions():
    for module in BottleneckResNet([(64, 1), (32, 1)], "small").modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("name", "giga_macs", "millions"),
    [("resnet50", 4.089, 25.557), ("resnet101", 7.801, 44.549), ("resnet152", 11.514, 60.193)],
)
def test_costs_are_the_published_ones(name, giga_macs, millions):
    with torch.device("meta"):
        network, image = BottleneckResNet(PUBLISHED[name], classes=1000), torch.zeros(1, 3, 224, 224)
    assert sum(each.numel() for each in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert macs(network.eval(), image) / 1e9 == pytest.approx(giga_macs, abs=5e-4)


def test_names_of_slabs_have_the_prefix_of_the_network():
    network = BottleneckResNet([(8, 1), (8, 1)], "small")
    model = nn.ModuleDict({"body": network})
    for side in ("in", "out", "both"):
        plain, inside = slabs(network, "wide", side), slabs(network, "wide", side, "body.")
        assert [f"body.{slab.name}" for slab in plain] == [slab.name for slab in inside]
        assert [tuple(f"body.{unit}" for unit in slab.units) for slab in plain] == [slab.units for slab in inside]
        assert all(model.get_submodule(name) for slab in inside for name in (slab.name, *slab.units))


def test_stages_of_other_numbers_of_widths_and_blocks_are_refused():
    assert paired([8, 16], [1, 2]) == [(8, 1), (16, 2)]
    with pytest.raises(ValueError, match="blocks has 1 stages, but widths has 2"):
        paired([8, 16], [1])
