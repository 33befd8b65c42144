"""Units that are computed in the ways of other libraries: joint norms, products of two layers, transposed weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from bbnet.sparsity.plain.export import export
from bbnet.sparsity.plain.structure import find_chains, find_slabs
from bbnet.sparsity.slab import Slab
from bbnet.sparsity.sparsifier import sparsify

STEPS = 12


class Conv1D(nn.Module):
    """The linear layer of transformers' GPT-2, whose weight is [in, out]."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(0.2 * torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(x.size()[:-1] + (self.nf,))


class NormAct(nn.BatchNorm2d):
    """A batch norm that applies an activation, as BatchNormAct2d of timm."""

    def __init__(self, width, act):
        super().__init__(width)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        assert x.ndim == 4
        return self.act(self.drop(super().forward(x)))


class SwiGLU(nn.Module):
    """The feed-forward block of Llama."""

    def __init__(self, width, hidden, act=functional.silu):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down, self.act = nn.Linear(hidden, width), act

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


def train(model, method, side, inputs, **options):
    """Trains to budget .25; returns the sparsifier."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = sparsify(
        model, optimizer, find_slabs(model, side), method, 0.25, total_steps=STEPS, every=2, **options
    )
    for step in range(STEPS):
        optimizer.zero_grad()
        model(inputs[step % len(inputs)]).square().mean().backward()
        optimizer.step()
    return sparsifier


@pytest.mark.parametrize("rescale", ["none", "energy"])
@pytest.mark.parametrize("method, side", [("sp_in", "in"), ("sp_out", "out"), ("magnitude", "in"), ("rigl", "in")])
def test_a_transposed_layer_is_trained_like_a_linear_one(method, side, rescale):
    """The same network with weights [in, out] and [out, in] ends with the same masks, weights and export."""
    torch.manual_seed(0)
    transposed = nn.Sequential(Conv1D(24, 16), nn.GELU(), Conv1D(20, 24), nn.GELU(), nn.Linear(20, 4))
    linear = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 20), nn.GELU(), copy.deepcopy(transposed[4]))
    with torch.no_grad():
        for index in (0, 2):
            linear[index].weight.copy_(transposed[index].weight.T)
            linear[index].bias.copy_(transposed[index].bias)
    inputs = torch.randn(3, 64, 16)
    assert find_slabs(transposed, side) == find_slabs(linear, side)
    sparsifiers = [train(model, method, side, inputs, rescale=rescale) for model in (transposed, linear)]
    masks, expected = (each.masks() for each in sparsifiers)
    for slab in find_slabs(linear, side):
        assert torch.equal(masks[slab.name], expected[slab.name])
        weight = linear.get_submodule(slab.name).weight
        assert int(masks[slab.name].sum()) == int((weight != 0).sum()) == masks[slab.name].numel() // 4
        torch.testing.assert_close(transposed.get_submodule(slab.name).weight.T, weight)
    with torch.no_grad():
        transposed[0].weight[:, [3, 5]] = 0
        linear[0].weight[[3, 5]] = 0
    smaller, width = export(transposed, remove_units=True), export(linear, remove_units=True)[0].out_features
    assert (smaller[0].nf, smaller[2].nx, tuple(smaller[0].weight.shape)) == (width, width, (16, width))
    assert width <= 22
    torch.testing.assert_close(smaller(inputs[0]), transposed.eval()(inputs[0]))


@pytest.mark.parametrize("act", [functional.silu, nn.GELU(), torch.relu])
def test_both_projections_of_a_gated_unit_own_it(act):
    model = nn.Sequential(nn.Embedding(30, 16), SwiGLU(16, 24, act), SwiGLU(16, 24, act), nn.Linear(16, 30))
    names = [f"{block}.{layer}" for block in (1, 2) for layer in ("gate", "up")]
    assert find_slabs(model, "in") == [Slab(name, "in", name.replace("up", "gate")) for name in names]
    assert find_slabs(model, "out") == [Slab(f"{block}.down", "out", f"{block}.gate") for block in (1, 2)]
    assert [slab.name for slab in find_slabs(model, "both")] == [*names[:2], "1.down", *names[2:], "2.down"]
    assert [chain.factors for chain in find_chains(model)] == [("1.up",), ("2.up",)]


def test_the_degrees_of_a_gated_unit_follow_the_on_rate_of_its_gate():
    torch.manual_seed(0)
    model = nn.Sequential(SwiGLU(16, 24), nn.Linear(16, 2))
    with torch.no_grad():
        model[0].gate.weight[:, 0] += torch.linspace(-1, 1, 24)  # without silent units
    inputs = torch.randn(3, 400, 16)
    inputs[..., 0] = 1
    sparsifier = train(model, "sp_in", "in", inputs, freeze=1.0)
    on_rates, _ = sparsifier.on_rates.of(("0.gate",))
    rarer = on_rates[:, None] < on_rates
    for name in ("0.gate", "0.up"):
        degrees = sparsifier.masks()[name].sum(1)
        assert int(degrees.sum()) == 24 * 16 // 4
        assert bool((degrees[:, None] >= degrees)[rarer].all()) and degrees.max() > degrees.min()
    exported = export(model, remove_units=True)
    torch.testing.assert_close(exported(inputs[0]), model.eval()(inputs[0]))


@pytest.mark.parametrize("partner", ["used twice", "of another width", "activated"])
def test_other_products_add_no_layer_to_the_units(partner):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(16, 24), nn.Linear(16, 1 if partner == "of another width" else 24)
            self.down = nn.Linear(24, 16)

        def forward(self, x):
            up = self.up(x)
            hidden = functional.silu(self.gate(x)) * (torch.sigmoid(up) if partner == "activated" else up)
            return self.down(hidden + up if partner == "used twice" else hidden)

    model = nn.Sequential(Product(), nn.Linear(16, 2))
    assert [slab.name for slab in find_slabs(model, "in")] == ["0.gate"]
    assert find_chains(model)[0].factors == ()


def test_a_norm_that_applies_an_activation_is_both():
    class Block(nn.Module):
        """An inverted residual with squeeze-and-excitation."""

        def __init__(self):
            super().__init__()
            self.expand, self.norm1 = nn.Conv2d(9, 16, 1, bias=False), NormAct(16, nn.SiLU())
            self.depthwise, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, groups=16), NormAct(16, nn.ReLU())
            self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
            self.project, self.norm3 = nn.Conv2d(16, 9, 1, bias=False), NormAct(9, nn.Identity())

        def forward(self, x):
            hidden = self.norm2(self.depthwise(self.norm1(self.expand(x))))
            scale = self.excite(functional.relu(self.squeeze(hidden.mean((2, 3), keepdim=True))))
            return self.norm3(self.project(hidden * scale.sigmoid())) + x

    model = nn.Sequential(Block(), Block(), nn.Conv2d(9, 2, 1))
    assert find_slabs(model, "in") == [
        slab
        for block in "01"
        for slab in (
            Slab(f"{block}.expand", "in", f"{block}.norm1", normalised=True),
            Slab(f"{block}.squeeze", "in", f"{block}.squeeze"),
        )
    ]
    assert find_slabs(model, "out") == [
        Slab(f"{block}.{name}", "out", f"{block}.{units}")
        for block in "01"
        for name, units in (("excite", "squeeze"), ("project", "norm2"))
    ]


def test_a_norm_that_applies_something_else_says_so():
    model = nn.Sequential(nn.Conv2d(9, 16, 1), NormAct(16, nn.Softplus()), nn.Conv2d(16, 9, 1))
    with pytest.raises(ValueError, match="0: the Softplus that its norm applies is above 0 everywhere"):
        find_slabs(model)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU()])
def test_units_behind_a_joint_norm_are_removed_exactly(act):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(9, 16, 1), NormAct(16, act), nn.Conv2d(16, 9, 3), nn.ReLU())
    model.append(nn.Conv2d(9, 2, 1))
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].bias.fill_(-0.5 if isinstance(act, nn.ReLU) else 0)
        model[0].weight[[1, 4]] = 0
        model[0].bias[[1, 4]] = model[1].running_mean[[1, 4]]
    assert len(export(model, remove_units=True)[0].weight) == 14
    inputs = torch.randn(2, 9, 5, 5)
    torch.testing.assert_close(export(model, remove_units=True)(inputs), model.eval()(inputs))


@pytest.mark.parametrize("change", [lambda h, y: h.add_(y), lambda h, y: torch.relu_(h.sub_(y))])
def test_units_that_are_changed_in_place_are_not_those_that_a_later_layer_reads(change):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(9, 9) for _ in "abcd")

        def forward(self, x):
            hidden = torch.relu(self.a(x))
            before = self.b(hidden)
            change(hidden, x)
            return self.d(torch.relu(self.c(hidden)) + before)

    assert find_slabs(InPlace(), "out") == [Slab("b", "out", "a")]
