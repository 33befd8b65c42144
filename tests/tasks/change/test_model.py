"""FC-Siam-conc: its size, its shared encoder, and that a slab's units are what its weight reads or writes."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional

from bbnet.tasks.change.model import FCSiamConc, slabs
from bbnet.tasks.change.settings import FCSiamConc as Settings
from bbnet.tasks.change.task import build_model, example_inputs

WIDTHS = [4, 6, 10]
LEVELS = range(len(WIDTHS))
ENCODER = [f"encoder.{level}" for level in LEVELS]
DECODER = [f"decoder.{level}.block" for level in LEVELS]
CASES = [(which, side) for which in ("paper", "wide") for side in ("in", "out", "both")]


def convolutions(blocks: list[str], *names: str) -> set[str]:
    return {f"{block}.{name}" for block in blocks for name in names}


# By (which, side): layer -> side of its slab, as DESIGN 5 names them.
EXPECTED = {
    ("paper", "in"): dict.fromkeys(convolutions(ENCODER, "conv1"), "in"),
    ("paper", "out"): dict.fromkeys(convolutions(ENCODER, "conv2"), "out"),
    ("paper", "both"): dict.fromkeys(convolutions(ENCODER, "conv1"), "in")
    | dict.fromkeys(convolutions(ENCODER, "conv2"), "out"),
    ("wide", "in"): dict.fromkeys(convolutions(ENCODER + DECODER, "conv1", "conv2"), "in"),
    ("wide", "out"): dict.fromkeys(convolutions(ENCODER + DECODER, "conv1", "conv2") - {"encoder.0.conv1"}, "out"),
    ("wide", "both"): dict.fromkeys(convolutions(ENCODER + DECODER, "conv1"), "in")
    | dict.fromkeys(convolutions(ENCODER + DECODER, "conv2"), "out"),
}


@pytest.fixture
def model() -> FCSiamConc:
    """With batch norms that are no identity, so that units differ."""
    network = FCSiamConc(WIDTHS, [120.0, 110.0, 100.0], [50.0, 40.0, 30.0])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 2, 3, 32, 32)).float()


@pytest.fixture
def seen(model):
    """Inputs and outputs of every module in a forward pass."""

    def run(images) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        inputs, outputs = {}, {}

        def note(name):
            def hook(module, given, output) -> None:
                inputs[name], outputs[name] = given[0], output

            return hook

        hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
        with torch.no_grad():
            model.eval()(images)
        for hook in hooks:
            hook.remove()
        return inputs, outputs

    return run


def parameters(widths: list[int]) -> int:
    """By hand: 3x3 convolutions, each with the two vectors of its norm; 2x2 transposed ones and a head with bias."""
    encoder = sum(9 * i * o + 9 * o * o + 4 * o for i, o in zip([3, *widths], widths, strict=False))
    below = [2 * widths[-1], *widths[:0:-1]]
    up = sum(4 * i * o + o for i, o in zip(below, widths[::-1], strict=True))
    decoder = sum(9 * 3 * o * o + 9 * o * o + 4 * o for o in widths)
    return encoder + up + decoder + widths[0] + 1


def test_the_notebooks_widths_give_5_005_409_weights_and_biases():
    model = FCSiamConc([32, 64, 128, 256], [0.0] * 3, [1.0] * 3)
    assert sum(weight.numel() for weight in model.parameters()) == 5_005_409 == parameters([32, 64, 128, 256])
    assert sum(weight.numel() for weight in model.encoder.parameters()) == 1_173_216


@pytest.mark.parametrize("widths", [[5], [8, 8], WIDTHS])
def test_other_widths_have_as_many_as_counted_by_hand(widths):
    model = FCSiamConc(widths, [0.0] * 3, [1.0] * 3)
    assert sum(weight.numel() for weight in model.parameters()) == parameters(widths)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 32, 16)])
def test_logits_have_the_shape_of_the_tiles(model, batch, height, width):
    assert model(torch.zeros(batch, 2, 3, height, width)).shape == (batch, height, width)


def test_the_task_builds_the_model_for_tiles_of_its_index():
    index = {"mean": [10.0, 20.0, 30.0], "sd": [1.0, 2.0, 3.0], "tile": 16}
    cpu = torch.device("cpu")
    model = build_model(Settings(widths=[8, 8]), index, cpu)
    (example,) = example_inputs(index, cpu)
    assert model(example).shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("tile", "device", "by_plane"),
    [(255, "cpu", False), (256, "cpu", True), (1024, "cpu", True), (256, "meta", False), (16, "meta", False)],
)
def test_large_tiles_are_convolved_plane_by_plane_on_a_cpu(tile, device, by_plane):
    index = {"mean": [10.0, 20.0, 30.0], "sd": [1.0, 2.0, 3.0], "tile": tile}
    model = build_model(Settings(widths=[8, 8]), index, torch.device(device))
    weight = model.encoder[1].conv1.weight
    assert weight.is_contiguous() == by_plane
    assert weight.is_contiguous(memory_format=torch.channels_last) != by_plane


def test_pixels_are_standardised_before_the_first_convolution(seen, images):
    first = seen(images)[0]["encoder.0.conv1"]
    mean, sd = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([50.0, 40.0, 30.0])
    for pair in range(2):
        for date in range(2):
            expected = (images[pair, date].permute(1, 2, 0) - mean) / sd
            torch.testing.assert_close(first[2 * pair + date].permute(1, 2, 0), expected)


def test_swapped_dates_swap_the_skips_and_nothing_else_of_the_encoder(seen, images):
    there, back = seen(images)[0], seen(images.flip(1))[0]
    for level, width in enumerate(reversed(WIDTHS)):
        name = f"decoder.{level}.block.conv1"
        _, before, after = there[name].split(width, dim=1)
        _, swapped_before, swapped_after = back[name].split(width, dim=1)
        torch.testing.assert_close(swapped_before, after)
        torch.testing.assert_close(swapped_after, before)
        assert not torch.allclose(before, after)


def test_equal_dates_have_equal_skips(seen, images):
    same = images[:, :1].repeat(1, 2, 1, 1, 1)
    _, before, after = seen(same)[0]["decoder.0.block.conv1"].split(WIDTHS[-1], dim=1)
    torch.testing.assert_close(before, after)


# Slabs.


@pytest.mark.parametrize(("which", "side"), CASES)
def test_the_slabs_are_those_of_the_design(model, which, side):
    found = slabs(model, which, side)
    assert {slab.name: slab.side for slab in found} == EXPECTED[which, side]
    assert len({slab.name for slab in found}) == len(found)


@pytest.mark.parametrize(("which", "side"), CASES)
def test_there_are_as_many_units_as_probed_channels(model, seen, images, which, side):
    outputs = seen(images)[1]
    for slab in slabs(model, which, side):
        weight = model.get_submodule(slab.name).weight
        units = weight.shape[0 if slab.side == "in" else 1]
        assert sum(outputs[name].shape[1] for name in slab.units) == units, slab


@pytest.mark.parametrize("which", ["paper", "wide"])
def test_on_side_in_a_probe_is_the_norm_of_the_weights_own_output(model, seen, images, which):
    inputs, outputs = seen(images)
    for slab in slabs(model, which, "in"):
        (probe,) = slab.units
        assert inputs[probe] is outputs[slab.name]
        assert isinstance(model.get_submodule(probe), nn.BatchNorm2d)
        assert slab.normalised


@pytest.mark.parametrize("which", ["paper", "wide"])
def test_on_side_out_probes_are_the_channels_that_the_weight_reads(model, seen, images, which):
    inputs, outputs = seen(images)
    kinds = OrderedDict()
    for slab in slabs(model, which, "out"):
        read = inputs[slab.name]
        probed = [outputs[name] for name in slab.units]
        if slab.name.endswith("conv2"):
            kinds["own block"] = None
            assert torch.equal(read, functional.relu(probed[0]))
        elif slab.name.startswith("encoder"):
            kinds["level above"] = None
            assert torch.equal(read, functional.max_pool2d(functional.relu(probed[0]), 2))
        else:
            kinds["decoder"] = None
            up, before, after = probed
            joined = torch.cat([up, functional.relu(before)[0::2], functional.relu(after)[1::2]], dim=1)
            assert torch.equal(read, joined)
        assert not slab.normalised
    assert list(kinds) == (["own block"] if which == "paper" else ["level above", "decoder", "own block"])
