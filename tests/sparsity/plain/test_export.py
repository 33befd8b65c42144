"""Export: the same outputs from a plain model, with fewer units or in a sparse format."""

import warnings
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from bbnet.sparsity.plain import export as export_module
from bbnet.sparsity.plain.export import export
from bbnet.sparsity.plain.structure import find_slabs
from bbnet.sparsity.slab import Slab
from bbnet.sparsity.sparsifier import sparsify


class Net(nn.Module):
    """Layers by name, and a forward pass over them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


@torch.no_grad()
def outputs(model, *inputs):
    """Of the model itself in evaluation mode; it goes back to its own."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    made = model(*inputs)
    for module, mode in training.items():
        module.training = mode
    return made


def check_same_outputs(model, exported, *shapes, dtype=torch.float32, tolerance=1e-5):
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    expected = outputs(model, *inputs)
    assert float(expected.float().std()) > 0.01
    with torch.no_grad():
        torch.testing.assert_close(exported(*inputs), expected, rtol=tolerance, atol=tolerance)


def widths(model):
    """Shape of every weight of a Linear or convolution without its taps, and whether the attributes agree."""
    shapes = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
            assert f"in_features={layer.in_features}, out_features={layer.out_features}" in repr(layer)
        elif isinstance(layer, nn.modules.conv._ConvNd):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is None or layer.running_mean.shape == (layer.num_features,)
            continue
        else:
            continue
        assert layer.bias is None or layer.bias.shape == layer.weight.shape[:1]
        shapes[name] = tuple(layer.weight.shape[:2])
    return shapes


@torch.no_grad()
def drop(layer, rows=(), columns=(), bias=None):
    """Zeroes all weights of some outputs and inputs; gives these outputs a bias."""
    layer.weight[list(rows)] = 0
    layer.weight[:, list(columns)] = 0
    if bias is not None:
        layer.bias[list(rows)] = torch.as_tensor(bias, dtype=layer.bias.dtype)


@torch.no_grad()
def settle(norm):
    """Statistics and affine parameters as after some training."""
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2)
    if norm.affine:
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return norm


def linears(*sizes, activation=nn.ReLU, **options):
    layers = []
    for inputs, units in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, units, **options), activation()]
    return nn.Sequential(*layers[:-1])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("side, method", [("in", "sp_in"), ("out", "sp_out"), ("in", "magnitude")])
def test_a_trained_model_keeps_outputs_and_masks(net, sparse, train, side, method):
    model, optimizer, sparsifier = sparse(net, method, "0.30", total_steps=20)
    train(net, model, optimizer, 20)
    inputs = net.batch(99)[0]
    for remove_units in (False, True):
        exported = export(model, remove_units=remove_units)
        torch.testing.assert_close(exported(inputs), outputs(model, inputs), rtol=1e-5, atol=1e-5)
        assert all(parameter.is_leaf and parameter.grad is None for parameter in exported.parameters())
        assert all(type(parameter) is nn.Parameter for parameter in exported.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in exported.modules())
        assert not any(module.training for module in exported.modules())
        for name, mask in sparsifier.masks().items():
            weight = exported.get_submodule(name).weight
            kept = (weight.flatten(2) if weight.dim() > 2 else weight[..., None]).any(2)
            kept = kept if side == "in" else kept.T
            assert 0 < int(kept.sum()) <= int(mask.sum())
            assert remove_units or torch.equal(kept, mask)


def test_the_original_is_left_alone(net, sparse, train, same):
    model, optimizer, _ = sparse(net, "sp_in", "0.10")
    train(net, model, optimizer, 20)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    exported = export(model, remove_units=True)
    with torch.no_grad():
        for tensor in (*exported.parameters(), *exported.buffers()):
            tensor.zero_()
    assert same(dict(model.state_dict()), state)
    assert all(module.training for module in model.modules())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert sum(hooks) > 0
    train(net, model, optimizer, range(21, 41))


def test_nothing_masks_an_exported_model(mlp, sparse, train):
    model, optimizer, sparsifier = sparse(mlp, "sp_in", "0.30")
    train(mlp, model, optimizer, 40)
    exported = export(model).train()
    inputs, labels = mlp.batch(1)
    functional.cross_entropy(exported(inputs), labels).backward()
    pruned = ~sparsifier.masks()["second"]
    assert bool(exported.second.weight.grad[pruned].any())
    assert model.second.weight.grad is None or not bool(model.second.weight.grad[pruned].any())


def test_a_model_loaded_from_disk(mlp, sparse, train, tmp_path):
    model, optimizer, _ = sparse(mlp, "sp_in", "0.10")
    train(mlp, model, optimizer, 40)
    drop(model.second, rows=[3], columns=[1, 2])
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = mlp.build()
    loaded.load_state_dict(torch.load(tmp_path / "model.pt"))
    exported = export(loaded, remove_units=True)
    check_same_outputs(model, exported, (16, 20))
    assert widths(exported)["second"][0] <= 11 and widths(exported)["second"][1] <= 14


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "activation",
    [nn.ReLU, nn.GELU, nn.ELU, lambda: nn.ReLU(inplace=True), lambda: nn.Sequential(nn.Dropout(), nn.GELU())],
)
def test_units_of_an_mlp_without_connections_are_removed(activation, bias):
    """Of 16 units in the first layer 3 read nothing and 2 are read by nothing, one is both."""
    model = linears(20, 16, 12, 10, activation=activation, bias=bias)
    drop(model[0], rows=[2, 5, 15], bias=[1.5, -0.5, 0.25] if bias else None)
    drop(model[2], columns=[0, 5])
    exported = export(model, remove_units=True)
    assert widths(exported) == {"0": (12, 20), "2": (12, 12), "4": (10, 12)}
    biases = 12 + 12 + 10 if bias else 0
    assert sum(parameter.numel() for parameter in exported.parameters()) == 12 * 20 + 12 * 12 + 10 * 12 + biases
    assert torch.equal(exported[0].weight, model[0].weight[[1, 3, 4, *range(6, 15)]])
    check_same_outputs(model, exported, (32, 20))
    check_same_outputs(model, exported, (4, 7, 20))


def test_the_constant_of_a_unit_goes_into_the_biases_of_all_its_readers():
    def forward(self, x):
        hidden = torch.relu(self.a(x))
        return torch.relu(self.b(hidden)).sum(1, keepdim=True) + self.c(self.drop(hidden))

    model = Net(forward, a=nn.Linear(9, 8), b=nn.Linear(8, 5), c=nn.Linear(8, 1, bias=False), drop=nn.Dropout())
    drop(model.a, rows=[3, 6], bias=[2.0, -1.0])
    exported = export(model, remove_units=True)
    assert widths(exported) == {"a": (6, 9), "b": (5, 6), "c": (1, 6)}
    torch.testing.assert_close(exported.b.bias, model.b.bias + 2 * model.b.weight[:, 3])
    torch.testing.assert_close(exported.c.bias, 2 * model.c.weight[:, 3])
    check_same_outputs(model, exported, (32, 9))


def test_no_bias_is_made_for_units_that_put_out_nothing():
    model = linears(9, 8, 5, bias=False)
    drop(model[0], rows=[3])
    exported = export(model, remove_units=True)
    assert exported[2].bias is None
    assert widths(exported) == {"0": (7, 9), "2": (5, 7)}
    check_same_outputs(model, exported, (32, 9))


def test_a_removed_unit_takes_others_with_it():
    """Unit 1 of the middle layer reads only a constant, unit 2 of the first is read only by one that is not read."""
    model = linears(9, 8, 8, 8, 5)
    drop(model[0], rows=[0], bias=1.0)
    drop(model[2], columns=[2])
    with torch.no_grad():
        model[2].weight[1] = 0
        model[2].weight[1, 0] = 3.0
        model[2].weight[4, 2] = 1.0
    drop(model[4], columns=[4])
    exported = export(model, remove_units=True)
    assert widths(exported) == {"0": (6, 9), "2": (6, 6), "4": (8, 6), "6": (5, 8)}
    check_same_outputs(model, exported, (32, 9))


@given(st.lists(st.integers(1, 7), min_size=3, max_size=6), st.floats(0.05, 0.9), st.integers(0, 2**31), st.booleans())
def test_exactly_the_units_on_no_path_from_input_to_output_are_removed(sizes, density, draw, bias):
    """Paths counted by products of the patterns of non-zeros, an independent account of the repeated removal."""
    generator = torch.Generator().manual_seed(draw)
    model = linears(*sizes, bias=bias, activation=nn.GELU)
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for weight in weights:
            weight *= torch.rand(weight.shape, generator=generator) < density
            weight *= 3
    patterns = [(weight != 0).double() for weight in weights]
    reached, seen = [torch.ones(sizes[0])], [torch.ones(sizes[-1])]
    for pattern in patterns:
        reached.append((pattern @ reached[-1].double()).sign())
    for pattern in reversed(patterns):
        seen.append((pattern.T @ seen[-1].double()).sign())
    alive = [int((a.bool() & b.bool()).sum()) for a, b in zip(reached[1:-1], seen[-2:0:-1], strict=True)]
    exported = export(model, remove_units=True)
    assert [shape[0] for shape in widths(exported).values()] == [*(max(count, 1) for count in alive), sizes[-1]]
    inputs = torch.randn(8, sizes[0], generator=generator)
    torch.testing.assert_close(exported(inputs), outputs(model, inputs), rtol=1e-5, atol=1e-5)


def test_a_layer_keeps_a_unit():
    model = linears(9, 8, 5)
    drop(model[0], rows=range(8), bias=0.5)
    exported = export(model, remove_units=True)
    assert widths(exported) == {"0": (1, 9), "2": (5, 1)}
    inputs = torch.randn(16, 9)
    torch.testing.assert_close(exported(inputs), outputs(model, inputs))


@pytest.mark.parametrize(
    "options, folds",
    [
        ({}, True),
        ({"padding": "valid"}, True),
        ({"padding": 1}, False),
        ({"padding": (0, 1)}, False),
        ({"padding": "same"}, False),
        ({"padding": 1, "padding_mode": "circular"}, True),
        ({"padding": 1, "padding_mode": "reflect"}, True),
        ({"padding": 1, "padding_mode": "replicate"}, True),
        ({"stride": 2, "dilation": 2}, True),
        ({"padding": 1, "bias": False}, False),
        ({"bias": False}, True),
    ],
)
@pytest.mark.parametrize("normed", [False, True])
def test_units_of_a_convolution(options, folds, normed):
    """Of 9 channels, 4 read nothing: two put out a constant, of which one is not read, and two put out nothing."""
    first = nn.Conv2d(3, 9, 3, padding=1)
    norm = settle(nn.BatchNorm2d(9)) if normed else nn.Identity()
    model = nn.Sequential(first, norm, nn.ReLU(), nn.Conv2d(9, 5, 3, **options))
    drop(first, rows=[1, 4, 6, 8], bias=[1.0, 2.0, -1.0, 0.0])
    drop(model[3], columns=[4])
    if normed:
        with torch.no_grad():
            norm.bias[[1, 4, 6, 8]] = torch.tensor([4.0, 4.0, -4.0, -4.0])
    else:
        del model[1]
    exported = export(model, remove_units=True)
    assert widths(exported)["0"][0] == (5 if folds else 6)
    check_same_outputs(model, exported, (4, 3, 9, 9))
    if normed:
        assert exported[1].num_features == len(exported[1].running_var) == len(exported[1].bias)


def test_same_padding_of_a_single_tap_pads_nothing():
    model = nn.Sequential(nn.Conv1d(3, 9, 3), nn.ReLU(), nn.Conv1d(9, 5, 1, padding="same"))
    drop(model[0], rows=[1], bias=1.0)
    exported = export(model, remove_units=True)
    assert widths(exported) == {"0": (8, 3), "2": (5, 8)}
    check_same_outputs(model, exported, (4, 3, 9))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_convolutions_of_all_dimensions(axes):
    conv, norm = getattr(nn, f"Conv{axes}d"), settle(getattr(nn, f"BatchNorm{axes}d")(9))
    model = nn.Sequential(conv(3, 9, 3, bias=False), norm, nn.SiLU(), conv(9, 5, 2))
    drop(model[0], rows=[1, 2])
    drop(model[3], columns=[8])
    exported = export(model, remove_units=True)
    assert widths(exported) == {"0": (6, 3), "3": (5, 6)}
    check_same_outputs(model, exported, (2, 3, *(6,) * axes))


@pytest.mark.parametrize("between", [nn.MaxPool2d(2), nn.AvgPool2d(3, padding=1), nn.AdaptiveAvgPool2d(4)])
def test_only_zeros_are_followed_through_a_pool(between):
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), between, nn.Conv2d(9, 5, 1))
    drop(model[0], rows=[1, 2, 3], bias=[1.0, -1.0, -2.0])
    exported = export(model, remove_units=True)
    assert widths(exported) == {"0": (7, 3), "3": (5, 7)}
    check_same_outputs(model, exported, (4, 3, 12, 12))


@pytest.mark.parametrize(
    "layers",
    [
        (nn.BatchNorm2d(9, track_running_stats=False), nn.ReLU()),
        (nn.GroupNorm(3, 9), nn.ReLU()),
        (nn.InstanceNorm2d(9), nn.ReLU()),
        (nn.ReLU(), nn.BatchNorm2d(9)),
        (nn.ReLU(), nn.GroupNorm(3, 9)),
        (nn.ReLU(), nn.Upsample(scale_factor=2)),
        (nn.ReLU(), nn.ConstantPad2d(1, 1.0)),
    ],
)
def test_layers_with_other_steps_between_are_left_whole(layers):
    model = nn.Sequential(nn.Conv2d(3, 9, 3), *layers, nn.Conv2d(9, 5, 1))
    drop(model[0], rows=[1, 2], bias=[1.0, -1.0])
    drop(model[3], columns=[7])
    exported = export(model, remove_units=True)
    assert widths(exported) == {"0": (9, 3), "3": (5, 9)}
    check_same_outputs(model, exported, (4, 3, 9, 9))


class Bottleneck(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, 8, 1, bias=False), settle(nn.BatchNorm2d(8))
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), settle(nn.BatchNorm2d(8))
        self.conv3, self.norm3 = nn.Conv2d(8, width, 1, bias=False), settle(nn.BatchNorm2d(width))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        return self.relu(self.norm3(self.conv3(out)) + x)


def test_a_residual_network_shrinks_inside_its_blocks_only():
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 16, 3),
            norm=settle(nn.BatchNorm2d(16)),
            on=nn.ReLU(inplace=True),
            first=Bottleneck(16),
            second=Bottleneck(16),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(16, 4),
        )
    )
    drop(model.stem, rows=[0])
    drop(model.first.conv1, rows=[0, 1])
    drop(model.first.conv3, rows=[5], columns=[2, 3])
    drop(model.second.conv2, rows=[4], columns=[6])
    with torch.no_grad():
        model.first.norm1.running_mean[:2] = torch.tensor([-9.0, 9.0])
    exported = export(model, remove_units=True)
    assert widths(exported) == {
        "stem": (16, 3),
        "first.conv1": (7, 16),  # of its two constants one is above 0, and conv2 pads
        "first.conv2": (6, 7),
        "first.conv3": (16, 6),
        "second.conv1": (7, 16),
        "second.conv2": (7, 7),  # its constant goes through a single tap into conv3
        "second.conv3": (16, 7),
        "head": (4, 16),
    }
    assert exported.second.conv3.bias is not None
    check_same_outputs(model, exported, (4, 3, 8, 8))


def untouched(model, *shapes):
    """Whether nothing is removed, and the export is right."""
    exported = export(model, remove_units=True)
    check_same_outputs(model, exported, *shapes)
    return widths(exported) == widths(model)


def pruned(units=8, **options):
    layer = nn.Linear(9, units, **options)
    drop(layer, rows=[1, 2], bias=[1.0, -1.0])
    return layer


def on_hidden(use):
    """A forward pass that does `use(net, hidden)` with the units."""
    return lambda self, x: use(self, torch.relu(self.a(x)))


WHOLE = {
    "returned": on_hidden(lambda self, hidden: torch.cat([self.b(hidden), hidden], 1)),
    "summed": on_hidden(lambda self, hidden: self.b(hidden).sum(1) + hidden.sum(1)),
    "read in part": on_hidden(lambda self, hidden: self.b(hidden).sum(1) + hidden[:, 0]),
    "changed in place": on_hidden(lambda self, hidden: self.b(hidden).sum(1) + hidden.add_(1).sum(1)),
    "flattened": on_hidden(lambda self, hidden: self.b(hidden.flatten(1))),
    "shifted": on_hidden(lambda self, hidden: self.b(hidden + 1)),
    "divided by its width": on_hidden(lambda self, hidden: self.b(hidden) / hidden.shape[1]),
    "reader called twice": on_hidden(lambda self, hidden: self.b(hidden) + self.b(torch.ones(8))),
    "weight used": on_hidden(lambda self, hidden: functional.linear(self.b(hidden), self.a.weight[:, :5])),
    "bias used": on_hidden(lambda self, hidden: self.b(hidden) + self.a.bias.sum()),
    "two producers": on_hidden(lambda self, hidden: self.b(hidden + torch.relu(self.c(hidden[:, :1].expand(-1, 9))))),
    "layer norm after": on_hidden(lambda self, hidden: self.b(self.norm(hidden))),
    "layer norm before": lambda self, x: self.b(torch.relu(self.norm(self.a(x)))),
    "pre-activation used": lambda self, x: (lambda before: self.b(torch.relu(before)) + before.sum())(self.a(x)),
    "called twice": lambda self, x: self.b(torch.relu(self.a(x))) + self.b(torch.relu(self.a(-x))),
    "no activation": lambda self, x: self.b(self.a(x)),
    "another activation": lambda self, x: self.b(torch.sigmoid(self.a(x))),
}


@pytest.mark.parametrize("case", WHOLE)
def test_units_that_others_see_are_kept(case):
    layers = {"a": pruned(), "b": nn.Linear(8, 5), "c": pruned(), "norm": nn.LayerNorm(8)}
    drop(layers["b"], columns=[4])
    assert untouched(Net(WHOLE[case], **layers), (16, 9))


def test_the_cases_above_shrink_without_their_peculiarity():
    model = Net(on_hidden(lambda self, hidden: self.b(hidden)), a=pruned(), b=nn.Linear(8, 5))
    drop(model.b, columns=[4])
    assert not untouched(model, (16, 9))
    assert widths(export(model, remove_units=True)) == {"a": (5, 9), "b": (5, 5)}


def test_a_reader_of_several_layers_is_left_whole():
    def forward(self, x):
        return self.c(torch.relu(self.a(x))) + self.c(torch.relu(self.b(x)))

    assert untouched(Net(forward, a=pruned(), b=pruned(), c=nn.Linear(8, 5)), (16, 9))


@pytest.mark.parametrize("groups", [(1, 2), (2, 1)])
def test_grouped_convolutions_are_left_whole(groups):
    first, second = groups
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=first), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=second))
    drop(model[0], rows=[1, 2])
    assert untouched(model, (2, 4, 9, 9))


def test_positions_are_no_channels():
    """The linear layer reads the 8 positions of 8 channels."""
    model = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.Linear(8, 5))
    drop(model[0], rows=[1, 2])
    assert untouched(model, (2, 3, 8))


def test_always_active_dropout_keeps_units():
    def forward(self, x):
        return self.b(functional.dropout(torch.relu(self.a(x)), 0.5))

    model = Net(forward, a=pruned(), b=nn.Linear(8, 5))
    assert widths(export(model, remove_units=True)) == widths(model)


def test_dropout_that_follows_the_mode_is_passed():
    def forward(self, x):
        return self.b(functional.dropout(torch.relu(self.a(x)), 0.5, self.training))

    model = Net(forward, a=pruned(), b=nn.Linear(8, 5))
    assert not untouched(model, (16, 9))


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("how", ["tied", "tied bias", "parametrised", "hooked", "none"])
def test_layers_that_are_shared_computed_or_hooked_are_left_whole(who, how):
    model = Net(on_hidden(lambda self, hidden: self.b(hidden)), a=nn.Linear(9, 8), b=nn.Linear(8, 5))
    layer = model.get_submodule(who)
    drop(model.b, columns=[4])
    if how == "parametrised":
        parametrizations.weight_norm(layer)
    elif how == "hooked":
        layer.register_forward_hook(lambda module, inputs, output: output * torch.linspace(1, 2, output.shape[1]))
    elif how.startswith("tied"):
        model.twin = nn.Linear(*reversed(layer.weight.shape))
        kind = "bias" if how == "tied bias" else "weight"
        setattr(model.twin, kind, getattr(layer, kind))
    assert untouched(model, (16, 9)) == (how != "none")


def test_pruned_by_torch_itself():
    """Its masks are parametrisations: the copy works, and is left whole."""
    model = linears(9, 8, 5)
    prune.ln_structured(model[0], "weight", 0.5, n=2, dim=0)
    model(torch.randn(4, 9)).sum().backward()
    assert untouched(model, (16, 9))
    prune.remove(model[0], "weight")
    exported = export(model, remove_units=True)
    assert widths(exported) == {"0": (4, 9), "2": (5, 4)}
    check_same_outputs(model, exported, (16, 9))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_encoder_layer_on_its_fast_path_too(activation, norm_first, grad):
    model = nn.TransformerEncoderLayer(16, 2, 32, activation=activation, norm_first=norm_first, batch_first=True)
    drop(model.linear1, rows=range(5), bias=0.7)
    drop(model.linear2, columns=[9, 10])
    exported = export(model, remove_units=True)
    assert widths(exported) == {"self_attn.out_proj": (16, 16), "linear1": (25, 16), "linear2": (16, 25)}
    inputs = torch.randn(4, 7, 16)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(exported(inputs), outputs(model, inputs), rtol=1e-5, atol=1e-5)


def test_a_transformer_encoder_with_padding():
    """In evaluation mode it packs its inputs into nested tensors."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    drop(model.layers[1].linear1, rows=range(5), bias=0.7)
    exported = export(model, remove_units=True)
    inputs, padding = torch.randn(3, 7, 16), torch.arange(7) >= torch.tensor([[7], [4], [2]])
    with torch.no_grad():
        mine, expected = (each.eval()(inputs, src_key_padding_mask=padding) for each in (exported, model))
    torch.testing.assert_close(mine[~padding], expected[~padding], rtol=1e-5, atol=1e-5)
    assert exported.layers[1].linear1.out_features == 27
    assert exported.layers[0].linear1.out_features == 32


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_whole_transformer():
    model = nn.Transformer(16, 2, 1, 1, dim_feedforward=32, bias=False)
    drop(model.encoder.layers[0].linear2, columns=[0, 3])
    drop(model.decoder.layers[0].linear1, rows=[4])
    exported = export(model, remove_units=True)
    assert exported.encoder.layers[0].linear1.out_features == 30
    assert exported.decoder.layers[0].linear2.in_features == 31
    check_same_outputs(model, exported, (6, 3, 16), (5, 3, 16))


def test_memory_format_dtype_and_frozen_parameters_stay():
    model = nn.Sequential(nn.Conv2d(8, 16, 3), settle(nn.BatchNorm2d(16)), nn.ReLU(), nn.Conv2d(16, 8, 3))
    model = model.to(memory_format=torch.channels_last, dtype=torch.float64)
    model[0].weight.requires_grad_(False)
    drop(model[0], rows=[1])
    drop(model[3], columns=[2])
    exported = export(model, remove_units=True)
    for index in (0, 3):
        assert exported[index].weight.is_contiguous(memory_format=torch.channels_last)
        assert not exported[index].weight.is_contiguous()
    assert widths(exported) == {"0": (14, 8), "3": (8, 14)}
    assert {parameter.dtype for parameter in exported.parameters()} == {torch.float64}
    assert [p.requires_grad for p in exported.parameters()] == [p.requires_grad for p in model.parameters()]
    check_same_outputs(model, exported, (2, 8, 6, 6), dtype=torch.float64, tolerance=1e-12)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_bias_is_trained_like_the_one_before_or_else_the_weight(frozen, bias):
    model = linears(9, 8, 5)
    model[2] = nn.Linear(8, 5, bias=bias)
    drop(model[0], rows=[1], bias=[1.0])
    for name, parameter in model[2].named_parameters():
        parameter.requires_grad_(name != frozen)
    exported = export(model, remove_units=True)
    assert exported[2].bias.requires_grad == (frozen == ("weight" if bias else "bias"))


def test_half_precision():
    model = linears(16, 12, 10).bfloat16()
    drop(model[0], rows=[1, 2], bias=[1.0, -1.0])
    exported = export(model, remove_units=True)
    assert widths(exported) == {"0": (10, 16), "2": (10, 10)}
    check_same_outputs(model, exported, (8, 16), dtype=torch.bfloat16, tolerance=0.02)


def test_an_exported_model_trains_saves_and_finds_its_slabs_again(tmp_path):
    model = linears(20, 16, 12, 10)
    drop(model[0], rows=[1, 2])
    exported = export(model, remove_units=True)
    optimizer = torch.optim.SGD(exported.train().parameters(), lr=0.1)
    before = exported[0].weight.detach().clone()
    exported(torch.randn(8, 20)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(exported[0].weight, before)
    torch.save(exported, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert widths(loaded) == {"0": (14, 20), "2": (12, 14), "4": (10, 12)}
    assert [slab.name for slab in find_slabs(exported)] == ["0", "2"]


@pytest.mark.parametrize("wrap", [torch.compile, nn.Sequential])
def test_a_compiled_model_is_exported_plain(wrap):
    model = linears(9, 8, 5)
    drop(model[0], rows=[1])
    exported = export(torch.compile(model, backend="eager") if wrap is torch.compile else model, remove_units=True)
    assert type(exported) is nn.Sequential
    assert list(exported.state_dict()) == list(model.state_dict())
    check_same_outputs(model, exported, (16, 9))


def two_of_four(layer):
    with torch.no_grad():
        layer.weight.reshape(len(layer.weight), -1, 4)[..., [0, 3]] = 0
    return layer


def test_semi_structured_without_a_gpu_warns_once_and_stays_dense():
    model = linears(64, 64, 64, 32, 16)
    for index in (0, 4):
        two_of_four(model[index])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exported = export(model, semi_structured=True)
    (warning,) = caught
    assert str(warning.message) == (
        "2 of 2 Linear layers with 2:4 weights stay dense: 2 because 2:4 weights need a CUDA device, not cpu"
    )
    assert warning.filename == __file__
    assert all(type(parameter) is nn.Parameter for parameter in exported.parameters())
    check_same_outputs(model, exported, (8, 64))


@pytest.mark.parametrize("change", ["dense", "three of four", "width"])
def test_semi_structured_without_2_4_weights_says_so(change):
    model = linears(8, 6, 4)
    if change == "three of four":
        drop(model[0], columns=[0, 4])
    if change == "width":
        drop(model[2], columns=[0, 1, 2, 3, 5])
    with pytest.warns(UserWarning, match="no Linear layer has a 2:4 weight"):
        exported = export(model, semi_structured=True)
    check_same_outputs(model, exported, (8, 8))


@pytest.fixture
def emulated(monkeypatch):
    """Torch's own 2:4 tensors and their dispatch on a CPU, only the product being a dense one."""

    def compress(weight):
        packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
        return SparseSemiStructuredTensorCUTLASS(weight.shape, packed, meta, None, None, None)

    def product(self, other, *, bias=None, should_transpose_dense=False):
        # Newer torch leaves it to the product to transpose the dense operand, and the result back.
        result = self.to_dense() @ (other.t() if should_transpose_dense else other)
        result = result if bias is None else result + bias[:, None]
        return result.t() if should_transpose_dense else result

    monkeypatch.setattr(SparseSemiStructuredTensorCUTLASS, "_mm", product)
    monkeypatch.setattr(export_module, "to_sparse_semi_structured", compress)
    monkeypatch.setattr(export_module, "_obstacle", lambda weight: None)
    monkeypatch.setattr(SparseSemiStructuredTensor, "_PROTOTYPE_WARNING_SHOWN", True)
    SparseSemiStructuredTensorCUTLASS._load_dispatch_table()


@pytest.mark.parametrize("grad", [True, False])
def test_two_of_four_weights_are_stored_as_such(emulated, recwarn, grad):
    model = linears(128, 64, 64, 32).half()
    two_of_four(model[0])
    two_of_four(model[4])
    exported = export(model, semi_structured=True)
    assert [isinstance(exported[index].weight, SparseSemiStructuredTensor) for index in (0, 2, 4)] == [
        True,
        False,
        True,
    ]
    assert isinstance(exported[0].weight, nn.Parameter)
    assert torch.equal(exported[0].weight.to_dense(), model[0].weight)
    assert not list(recwarn)
    inputs = torch.randn(4, 5, 128).half()
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(exported(inputs), outputs(model, inputs), rtol=1e-2, atol=1e-2)


def test_a_transformer_with_two_of_four_weights_leaves_its_fused_path(emulated):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 2, 128, batch_first=True), 2).half()
    two_of_four(model.layers[0].linear1)
    two_of_four(model.layers[0].self_attn.out_proj)
    exported = export(model, semi_structured=True)
    assert isinstance(exported.layers[0].linear1.weight, SparseSemiStructuredTensor)
    assert not isinstance(exported.layers[0].self_attn.out_proj.weight, SparseSemiStructuredTensor)
    inputs, padding = torch.randn(3, 7, 64).half(), torch.arange(7) >= torch.tensor([[7], [4], [2]])
    with torch.no_grad():
        mine, expected = (each.eval()(inputs, src_key_padding_mask=padding) for each in (exported, model))
    torch.testing.assert_close(mine[~padding], expected[~padding], rtol=1e-2, atol=1e-2)


def fits(dtype, shape):
    return export_module._obstacle(torch.empty(shape, dtype=dtype, device="cuda"))


needs_sparse_cores = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs sparse tensor cores"
)


@needs_sparse_cores
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_of_four_weights_on_a_gpu(dtype, recwarn):
    model = linears(256, 128, 128, 64).to("cuda", dtype)
    two_of_four(model[0])
    two_of_four(model[2])
    exported = export(model, semi_structured=True)
    assert [isinstance(exported[index].weight, SparseSemiStructuredTensor) for index in (0, 2, 4)] == [
        True,
        True,
        False,
    ]
    assert not [warning for warning in recwarn if "stay dense" in str(warning.message)]
    inputs = torch.randn(32, 256, device="cuda", dtype=dtype)
    with torch.inference_mode():
        torch.testing.assert_close(exported(inputs), outputs(model, inputs), rtol=2e-2, atol=2e-2)


@needs_sparse_cores
def test_dtypes_and_shapes_that_a_gpu_refuses():
    model = two_of_four(nn.Linear(256, 128)).cuda()
    with pytest.warns(UserWarning, match="1 of 1 Linear.*not torch.float32"):
        export(model, semi_structured=True)
    with pytest.warns(UserWarning, match="1 of 1 Linear.*not a multiple of"):
        export(two_of_four(nn.Linear(256, 100)).cuda().half(), semi_structured=True)


def test_a_gated_model_is_refused_by_the_names_of_its_gates():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slabs = [Slab("0", "in", "0"), Slab("2", "in", "2")]
    sparsifier = sparsify(model, optimizer, slabs, "topk", 0.5, total_steps=40)
    with pytest.raises(ValueError, match="the units at 0, 2 are gated"):
        export(model)
    sparsifier.remove()
    assert torch.equal(export(model)(torch.ones(1, 8)), model.eval()(torch.ones(1, 8)))
