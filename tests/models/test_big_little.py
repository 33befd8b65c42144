"""Big-Little ResNets against published costs, shapes and their equations, computed from the weights alone."""

import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bbnet.models.big_little import BigLittleResNet, Bottleneck, slabs
from bbnet.models.settings.big_little import PUBLISHED, branch_of, fans, little_blocks
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.slab import check_slabs, slab_shape, slab_weight
from tests.networks import macs, restless, seen

SIDES = ("in", "out", "both")
STEMS = ("imagenet", "small")
SMALL = [(8, 4), (10, 6), (12, 2)]


def network(stem: str = "small", stages=SMALL, alpha: float = 2, beta: float = 2) -> BigLittleResNet:
    return BigLittleResNet(stages, alpha, beta, stem, classes=7)


# Giga-multiplications at 224 px and millions of parameters, by alpha and beta, of the authors' code.
GOLDEN = {
    "bl_resnet50": {(2, 2): "2.911 26.975", (2, 4): "2.856 26.695", (4, 2): "2.491 26.307", (4, 4): "2.477 26.236"},
    "bl_resnet101": {(2, 2): "4.275 43.393", (2, 4): "3.893 41.852", (4, 2): "3.528 41.362", (4, 4): "3.432 40.974"},
    "bl_resnet152": {(2, 2): "5.640 59.811", (2, 4): "5.040 57.359", (4, 2): "4.565 56.417", (4, 4): "4.415 55.800"},
}


def costs(name: str, alpha: int, beta: int, size: int) -> str:
    with torch.device("meta"):
        made, image = BigLittleResNet(PUBLISHED[name], alpha, beta, classes=1000), torch.zeros(1, 3, size, size)
    parameters = sum(each.numel() for each in made.parameters())
    return f"{macs(made.eval(), image) / 1e9:.3f} {parameters / 1e6:.3f}"


@pytest.mark.parametrize("name", GOLDEN)
def test_costs_are_those_of_the_authors_network(name):
    assert {sizes: costs(name, *sizes, 224) for sizes in GOLDEN[name]} == GOLDEN[name]


def test_costs_at_256_pixels():
    assert costs("bl_resnet101", 2, 4, 256) == "5.084 41.852"
    assert costs("bl_resnet152", 2, 4, 256) == "6.582 57.359"


# Of bL-ResNet-50 with alpha 2 and beta 4, of the authors' code: channels, resolution, and parameters with norms.
PARTS = {
    "stem.first": (64, 112, 9_408 + 128),
    "stem.big": (64, 56, 36_864 + 128),
    "stem.little": (64, 56, 29_696 + 64 + 64 + 128),
    "stem.merge": (64, 56, 4_096 + 128),
    "stage1.big": (256, 28, 145_408),
    "stage1.little": (128, 56, 24_192),
    "stage1.expand": (256, 56, 33_280),
    "stage1.fusion": (256, 28, 70_400),
    "stage2.big": (512, 14, 939_520),
    "stage2.little": (256, 28, 70_400),
    "stage2.expand": (512, 28, 132_096),
    "stage2.fusion": (512, 14, 280_064),
    "stage3.big": (1024, 7, 5_981_184),
    "stage3.little": (512, 14, 280_064),
    "stage3.expand": (1024, 14, 526_336),
    "stage3.fusion": (1024, 14, 1_117_184),
    "stage4": (2048, 7, 14_964_736),
}


def test_every_part_has_the_shape_and_the_parameters_of_the_authors_network():
    with torch.device("meta"):
        made = BigLittleResNet(PUBLISHED["bl_resnet50"], 2, 4, classes=1000).eval()
        _, outputs = seen(made, torch.zeros(1, 3, 224, 224))
    for name, (channels, size, parameters) in PARTS.items():
        assert outputs[name].shape == (1, channels, size, size), name
        assert sum(each.numel() for each in made.get_submodule(name).parameters()) == parameters, name
    assert sum(each.numel() for each in made.fc.parameters()) == 2_049_000


def test_little_branches_have_as_many_bottlenecks_as_the_authors():
    counts = {
        name: {beta: [little_blocks(blocks, beta) for _, blocks in stages[:-1]] for beta in (2, 4)}
        for name, stages in PUBLISHED.items()
    }
    assert counts == {
        "bl_resnet50": {2: [1, 1, 2], 4: [1, 1, 1]},
        "bl_resnet101": {2: [1, 3, 8], 4: [1, 1, 3]},
        "bl_resnet152": {2: [1, 5, 14], 4: [1, 2, 6]},
    }


# The forward pass.


def equations(made: BigLittleResNet, images: torch.Tensor) -> tuple[torch.Tensor, dict, dict]:
    """The logits from the weights alone, and what each 1x1 convolution reads and where its output goes, after a ReLU.

    What a shortcut reads is given before its pool.
    """
    state, read, written = made.state_dict(), {}, {}

    def normed(maps, name):
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
        shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
        return maps * scale[:, None, None] + shift[:, None, None]

    def convolved(maps, convolution, norm, stride=1):
        weight = state[f"{convolution}.weight"]
        if weight.shape[-1] == 1:
            read[convolution] = maps
        return normed(functional.conv2d(maps, weight, stride=stride, padding=weight.shape[-1] // 2), norm)

    def bottleneck(maps, name, stride):
        first = convolved(maps, f"{name}.conv1", f"{name}.bn1").relu()
        second = convolved(first, f"{name}.conv2", f"{name}.bn2", stride).relu()
        shortcut = maps
        if stride == 2:  # the mean of 9 pixels, of which those outside of the maps are 0
            mean = torch.full((maps.shape[1], 1, 3, 3), 1 / 9)
            shortcut = functional.conv2d(maps, mean, stride=2, padding=1, groups=maps.shape[1])
        if f"{name}.downsample.0.weight" in state:
            shortcut = convolved(shortcut, f"{name}.downsample.0", f"{name}.downsample.1")
            read[f"{name}.downsample.0"] = maps
        total = convolved(second, f"{name}.conv3", f"{name}.bn3") + shortcut
        written[f"{name}.conv1"] = first
        written[f"{name}.conv3"] = written[f"{name}.downsample.0"] = total.relu()
        return total

    def stack(maps, name, stride, ends_with_relu=True):
        blocks = len({key.removeprefix(f"{name}.").split(".")[0] for key in state if key.startswith(f"{name}.")})
        for number in range(blocks):
            maps = bottleneck(maps, f"{name}.{number}", stride if number == 0 else 1)
            maps = maps.relu() if ends_with_relu or number < blocks - 1 else maps
        return maps

    if "stem.merge.0.weight" in state:
        maps = convolved(images, "stem.first.0", "stem.first.1", 2).relu()
        little = convolved(maps, "stem.little.0", "stem.little.1").relu()
        little = convolved(little, "stem.little.3", "stem.little.4", 2).relu()
        merged = (
            convolved(maps, "stem.big.0", "stem.big.1", 2) + convolved(little, "stem.little.6", "stem.little.7")
        ).relu()
        maps = convolved(merged, "stem.merge.0", "stem.merge.1").relu()
        written |= {"stem.little.6": merged, "stem.merge.0": maps}
    else:
        maps = convolved(images, "stem.0", "stem.1", 2).relu()
    branched = len(made.stages) - 1
    for number in range(1, branched + 1):
        name = f"stage{number}"
        big = stack(maps, f"{name}.big", 2, ends_with_relu=False)
        little = convolved(stack(maps, f"{name}.little", 1), f"{name}.expand.0", f"{name}.expand.1")
        rows, columns = (
            torch.tensor([place * half // whole for place in range(whole)])
            for half, whole in zip(big.shape[2:], little.shape[2:], strict=True)
        )
        merged = (big[:, :, rows][..., columns] + little).relu()
        last = len(made.get_submodule(f"{name}.big")) - 1
        for layer in (f"{name}.expand.0", f"{name}.big.{last}.conv3", f"{name}.big.{last}.downsample.0"):
            written[layer] = merged
        maps = bottleneck(merged, f"{name}.fusion", 2 if number < branched else 1).relu()
    maps = stack(maps, made.stages[-1], 2)
    return maps.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"], read, written


@torch.no_grad()
def test_logits_are_those_of_the_equations():
    cases = [
        ("imagenet", [(8, 3), (6, 4), (5, 2)], 2, 2, (64, 64)),
        ("imagenet", [(8, 2), (6, 5), (7, 3), (4, 1)], 4, 1, (97, 65)),
        ("small", SMALL, 1.5, 4, (32, 32)),
        ("small", [(4, 2), (4, 1)], 3, 2, (17, 23)),
    ]
    for stem, stages, alpha, beta, size in cases:
        made = restless(network(stem, stages, alpha, beta))
        images = torch.randn(3, 3, *size)
        expected, _, _ = equations(made, images)
        torch.testing.assert_close(made(images), expected, atol=1e-4, rtol=1e-4)
        assert expected.std(0).max() > 0.01


@pytest.mark.parametrize(
    ("size", "batch"),
    [(224, 2), (256, 1), pytest.param(97, 1, id="odd size"), pytest.param((65, 130), 2, id="not square")],
)
def test_every_parameter_has_a_gradient(size, batch):
    made = restless(network("imagenet", [(4, 3), (4, 4), (4, 6), (4, 3)], 2, 4)).train()
    logits = made(torch.randn(batch, 3, *(size if isinstance(size, tuple) else (size, size))))
    assert logits.shape == (batch, 7)
    logits.square().sum().backward()
    assert all(each.grad.isfinite().all() and each.grad.any() for each in made.parameters())


@pytest.mark.thorough
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_take_one_image_of_97_pixels(name):
    made = BigLittleResNet(PUBLISHED[name], 2, 4, classes=10).train()
    made(torch.randn(1, 3, 97, 97)).sum().backward()
    assert all(each.grad.isfinite().all() for each in made.parameters())


def test_bottlenecks_begin_as_their_shortcuts_and_kernels_by_fan_out():
    made = network("imagenet", [(64, 3), (32, 2)])
    bottlenecks = [module for module in made.modules() if isinstance(module, Bottleneck)]
    assert len(bottlenecks) == 2 + 1 + 1 + 2
    for module in bottlenecks:
        assert not module.bn3.weight.any()
    block, maps = made.get_submodule("stage2.1"), torch.randn(1, 128, 5, 5)
    assert torch.equal(block(maps.clone()), maps.relu())
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.12)


def test_stages_that_cannot_have_branches_are_refused():
    with pytest.raises(ValueError, match="stage 2 of a Big-Little network has 1 bottleneck; all stages but the last"):
        network(stages=[(8, 2), (8, 1), (8, 3)])
    with pytest.raises(ValueError, match="needs at least two stages"):
        network(stages=[(8, 4)])


# Slabs.


@pytest.mark.parametrize("stem", STEMS)
def test_slabs_are_the_1x1_convolutions_and_the_same_on_all_sides(stem):
    made = network(stem)
    ones = [name for name, each in made.named_modules() if isinstance(each, nn.Conv2d) and each.kernel_size == (1, 1)]
    for which, side in itertools.product(("paper", "wide"), SIDES):
        found = slabs(made, which, side)
        expected = [name for name in ones if which == "wide" or name.endswith("conv1")]
        assert sorted(slab.name for slab in found) == sorted(expected)
        assert len(check_slabs(made, found, Decimal("0.5"))) == len(found)
        assert {slab.side for slab in found} == ({"in", "out"} if side == "both" else {side})


def test_names_of_slabs_tell_the_branch():
    branches = {}
    for slab in slabs(network("imagenet"), "wide", "in"):
        branches.setdefault(branch_of(f"backbone.{slab.name}"), []).append(slab.name)
    assert branches["stem"] == ["stem.little.6", "stem.merge.0"]
    assert branches["last"] == [f"stage3.0.{layer}" for layer in ("conv1", "conv3", "downsample.0")] + [
        f"stage3.1.{layer}" for layer in ("conv1", "conv3")
    ]
    assert {name.split(".")[1] for name in branches["little"]} == {"little", "expand"}
    for branch in ("big", "fusion"):
        assert {name.split(".")[1] for name in branches[branch]} == {branch}


def test_names_of_slabs_have_the_prefix_of_the_network():
    made = network("imagenet")
    model = nn.ModuleDict({"body": made})
    for side in SIDES:
        plain, inside = slabs(made, "wide", side), slabs(made, "wide", side, "body.")
        assert [f"body.{slab.name}" for slab in plain] == [slab.name for slab in inside]
        assert [tuple(f"body.{unit}" for unit in slab.units) for slab in plain] == [slab.units for slab in inside]
        assert all(model.get_submodule(name) for slab in inside for name in (slab.name, *slab.units))


@pytest.mark.parametrize("stem", STEMS)
def test_the_settings_know_the_fans_of_slabs(stem):
    cases = [(SMALL, 2, 2), ([(9, 2), (14, 3), (11, 1)], 4, 4), ([(8, 7), (32, 1)], 1.5, 2)]
    for (stages, alpha, beta), which in itertools.product(cases, ("paper", "wide")):
        made = network(stem, stages, alpha, beta)
        found = {
            slab_shape(slab_weight(made, slab), side)[1] for side in SIDES[:2] for slab in slabs(made, which, side)
        }
        assert fans(stages, alpha, beta, stem, which) == found


@pytest.mark.parametrize(("stem", "side"), list(itertools.product(STEMS, SIDES)))
@torch.no_grad()
def test_on_rates_are_those_after_each_units_own_relu(stem, side):
    made, images = restless(network(stem)), torch.randn(5, 3, 38, 38)
    _, read, written = equations(made, images)
    chosen = slabs(made, "wide", side)
    rates = OnRates.of_slabs(made, chosen, stride=1, in_training=False)
    made(images)
    rates.remove()
    rates.fold()
    spreads = []
    for slab in chosen:
        activation = written[slab.name] if slab.side == "in" else read[slab.name]
        expected = (activation > 0).double().mean((0, 2, 3)).numpy()
        tolerance = 1.01 / activation[:, 0].numel()  # one position within rounding of 0
        np.testing.assert_allclose(rates.of(slab.units)[0].numpy(), expected, atol=tolerance, err_msg=slab.name)
        assert slab.normalised == (slab.side == "in")
        spreads.append(np.ptp(expected))
    assert np.median(spreads) > 0.1
