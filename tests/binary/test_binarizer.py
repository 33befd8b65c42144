"""`bbnet.binarize` against plain loops that save, sign and restore, and against straight-through parametrizations."""

import copy
import gc
import io
import itertools
import math
import pickle
import warnings
import weakref
from collections import OrderedDict
from functools import partial
from itertools import cycle

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import bbnet
from bbnet.sparsity import algorithms
from bbnet.sparsity.slab import Slab

MASKING = [name for name in algorithms.names() if algorithms.make(name).masks_weights]
CASES = [(name, side) for name in MASKING for side in ("in", "out", "both")] + [("topk", "in")]

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=0.01, foreach=False),
    "sgd fused": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, foreach=False),
    "adamw fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, fused=True),
    "adam foreach": lambda weights: torch.optim.Adam(weights, lr=0.01, weight_decay=0.01, foreach=True),
}


def h_of(layer, scale="glorot"):
    """h by the fans that torch.nn.init counts."""
    fans = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    return math.sqrt(1.5 / sum(fans)) if scale == "glorot" else 1.0


def through_a_file(whole):
    file = io.BytesIO()
    torch.save(whole, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def named(net, layers):
    """The names that `layers` means for the nets of the tests."""
    every = [name for name, module in net.build().named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return {"all": every, "inner": every[1:-1]}.get(layers, layers) if isinstance(layers, str) else layers


class SaveSignRestore:
    """BinaryConnect as a plain loop: real weights aside, signs into the parameters, real ones back, step, clip."""

    def __init__(self, model, optimizer, names, scale="glorot"):
        self.optimizer = optimizer
        self.layers = {name: model.get_submodule(name) for name in names}
        self.h = {name: h_of(layer, scale) for name, layer in self.layers.items()}
        self.latent = {}
        self.clip_and_sign()

    @torch.no_grad()
    def clip_and_sign(self):
        for name, layer in self.layers.items():
            layer.weight.clamp_(-self.h[name], self.h[name])
            self.latent[name] = layer.weight.clone()
            layer.weight.copy_(layer.weight.sign() * self.h[name])

    @torch.no_grad()
    def step(self):
        for name, layer in self.layers.items():
            layer.weight.copy_(self.latent[name])
        self.optimizer.step()
        self.clip_and_sign()


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latent, h):
        return latent.sign() * h

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class StraightThrough(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.h = h

    def forward(self, latent):
        return _Sign.apply(latent, self.h)


# --- The rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net_name", ["mlp", "conv_net"])
@pytest.mark.parametrize(
    "kind, scale, layers",
    [
        ("sgd", "glorot", "all"),
        ("sgd fused", "one", "inner"),
        ("adamw", "one", "all"),
        ("adamw fused", "glorot", "inner"),
        ("adam foreach", "glorot", "second"),
    ],
)
def test_hooks_a_loop_and_a_parametrization_give_the_same_bits(
    kind, scale, layers, net_name, request, loss_of, train, same
):
    net = request.getfixturevalue(net_name)
    names = [named(net, "all")[1]] if layers == "second" else named(net, layers)
    start = net.build()

    hooked = copy.deepcopy(start)
    optimizer = OPTIMIZERS[kind](hooked.parameters())
    binarizer = bbnet.binarize(hooked, optimizer, names if layers == "second" else layers, scale=scale)
    train(net, hooked, optimizer, 50)

    looped = copy.deepcopy(start)
    loop = SaveSignRestore(looped, OPTIMIZERS[kind](looped.parameters()), names, scale)
    for step in range(1, 51):
        loop.optimizer.zero_grad()
        loss_of(looped, net.batch(step)).backward()
        loop.step()

    through = copy.deepcopy(start)
    h = {name: h_of(through.get_submodule(name), scale) for name in names}
    for name in names:
        with torch.no_grad():
            through.get_submodule(name).weight.clamp_(-h[name], h[name])
        parametrize.register_parametrization(through.get_submodule(name), "weight", StraightThrough(h[name]))
    optimizer = OPTIMIZERS[kind](through.parameters())
    for step in range(1, 51):
        optimizer.zero_grad()
        loss_of(through, net.batch(step)).backward()
        optimizer.step()
        with torch.no_grad():
            for name in names:
                through.get_submodule(name).parametrizations.weight.original.clamp_(-h[name], h[name])

    assert binarizer.step == 50
    assert binarizer.half_ranges == h
    assert same(hooked.state_dict(), looped.state_dict())
    assert same(binarizer.latent_weights(), loop.latent)
    originals = {name: through.get_submodule(name).parametrizations.weight.original.detach() for name in names}
    assert same(binarizer.latent_weights(), originals)
    for name, module in through.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            mine = hooked.get_submodule(name)
            assert torch.equal(module.weight, mine.weight)
            assert module.bias is None or torch.equal(module.bias, mine.bias)
    assert not same(originals, {name: start.get_submodule(name).weight.detach() for name in names})


@pytest.mark.parametrize("adam", [False, True])
def test_glorot_contains_the_papers_scaling_of_learning_rates(adam):
    """Weights of -1 and +1 with lr / h^2 under SGD, lr / h under Adam, each layer followed by a batch norm."""

    def build():
        torch.manual_seed(0)
        sizes = [(12, 24), (24, 16), (16, 6)]
        layers = [(nn.Linear(*size, bias=False), nn.BatchNorm1d(size[1], eps=1e-30), nn.Tanh()) for size in sizes]
        return nn.Sequential(*(part for layer in layers for part in layer)).double()

    def run(model, optimizer, after=lambda: None):
        generator = torch.Generator().manual_seed(1)
        for _ in range(40):
            x, y = torch.randn(64, 12, generator=generator).double(), torch.randint(6, (64,), generator=generator)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            after()
            optimizer.zero_grad()

    def optimizer_of(model, scaled):
        norms = [weight for weight in model.parameters() if weight.dim() == 1]
        groups = [{"params": norms}]
        for layer in model:
            if isinstance(layer, nn.Linear):
                h = h_of(layer) if scaled else 1.0
                group = {"lr": 0.01 / h, "eps": 1e-8 * h} if adam else {"lr": 0.02 / h**2}
                groups.append({"params": [layer.weight]} | group)
        if adam:
            return torch.optim.Adam(groups, lr=0.01, eps=1e-8)
        return torch.optim.SGD(groups, lr=0.02, momentum=0.9)

    ours = build()
    optimizer = optimizer_of(ours, scaled=False)
    binarizer = bbnet.binarize(ours, optimizer)
    run(ours, optimizer)

    papers = build()
    layers = {str(index): layer for index, layer in enumerate(papers) if isinstance(layer, nn.Linear)}
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.div_(h_of(layer))
    optimizer = optimizer_of(papers, scaled=True)
    loop = SaveSignRestore(papers, optimizer, layers, scale="one")
    optimizer = type("Stepping", (), {"step": staticmethod(loop.step), "zero_grad": optimizer.zero_grad})
    run(papers, optimizer)

    clipped = 0
    for name, latent in binarizer.latent_weights().items():
        torch.testing.assert_close(latent / h_of(layers[name]), loop.latent[name], rtol=0, atol=1e-10)
        clipped += int((loop.latent[name].abs() == 1).sum())
    assert clipped > 10, "the clip shows"


LAYERS = {
    "linear": lambda: nn.Linear(6, 10),
    "conv": lambda: nn.Conv2d(4, 6, (3, 5)),
    "conv1d": lambda: nn.Conv1d(4, 6, 3),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "grouped transposed": lambda: nn.ConvTranspose3d(4, 6, 2, groups=2),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_h_counts_fans_as_torch_does(kind):
    model = nn.Sequential(OrderedDict(only=LAYERS[kind]()))
    expected = h_of(model.only)
    binarizer = bbnet.binarize(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert binarizer.half_ranges["only"] == pytest.approx(expected, rel=1e-12)
    assert set(model.only.weight.abs().unique().tolist()) == {float(torch.tensor(expected))}


def test_layers_of_other_kinds_are_left_alone():
    """Of an attention only the output projection is a layer; embeddings and norms are none; a Conv1D of GPT-2 is."""
    conv1d = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})()
    conv1d.weight = nn.Parameter(torch.randn(6, 18))
    model = nn.ModuleDict(
        OrderedDict(
            embed=nn.Embedding(7, 8), attention=nn.MultiheadAttention(8, 2), norm=nn.LayerNorm(8), transposed=conv1d
        )
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    binarizer = bbnet.binarize(model, torch.optim.SGD(model.parameters(), lr=0.1))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"attention.out_proj.weight", "transposed.weight"}
    assert binarizer.half_ranges == pytest.approx(
        {"attention.out_proj": math.sqrt(1.5 / 16), "transposed": math.sqrt(1.5 / 24)}
    )


def test_an_attention_trains_as_in_the_plain_loop(same):
    runs = []
    for hooks in (False, True):
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        names = ["self_attn.out_proj", "linear1", "linear2"]
        loop = None if hooks else SaveSignRestore(model, optimizer, names)
        binarizer = bbnet.binarize(model, optimizer) if hooks else None
        for step in range(10):
            model(torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(step))).pow(4).mean().backward()
            (optimizer if hooks else loop).step()
            optimizer.zero_grad()
        runs.append((model.state_dict(), binarizer.latent_weights() if hooks else loop.latent))
    assert same(*runs)


@pytest.mark.filterwarnings("ignore:the training of binary weights begins")
@pytest.mark.parametrize("stochastic", [False, True])
def test_latent_weights_of_zero_stay_and_nan_is_not_hidden(stochastic):
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    binarizer = bbnet.binarize(model, optimizer, stochastic=stochastic)
    h = float(torch.tensor(h_of(model[0])))
    with binarizer.latent(), torch.no_grad():
        model[0].weight.zero_()
    assert not model[0].weight.any()
    model[0].weight.grad = torch.zeros(4, 4)
    model[0].weight.grad[0] = torch.tensor([float("nan"), float("inf"), -float("inf"), -1e9])
    optimizer.step()
    assert torch.equal(model[0].weight[0].nan_to_num(5.0), torch.tensor([5.0, -h, h, h]))
    assert torch.equal(binarizer.latent_weights()["0"][0].nan_to_num(5.0), torch.tensor([5.0, -h, h, h]))
    assert not model[0].weight[1:].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_may_be_converted_before_or_after(dtype, mlp, loss_of):
    """Latent weights have the type of the parameter that the optimiser trains."""
    for late in (False, True):
        model = mlp.build() if late else mlp.build().to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        binarizer = bbnet.binarize(model, optimizer)
        if late:
            model.to(dtype)
        for step in range(3):
            x, y = mlp.batch(step)
            loss_of(model, (x.to(dtype), y)).backward()
            optimizer.step()
            optimizer.zero_grad()
        for name, latent in binarizer.latent_weights().items():
            weight = model.get_submodule(name).weight
            assert latent.dtype == weight.dtype == dtype
            assert torch.equal(weight, latent.sign() * torch.tensor(h_of(model.get_submodule(name)), dtype=dtype))


# --- Stochastic weights ---------------------------------------------------------------------------------------------


SHARES = [-1, -0.996, -0.7, -0.3, -0.1, 0.1, 0.4, 0.7, 0.996, 1]  # latent weights, in h


def wide(dtype=torch.float32, **options):
    """A wide layer whose latent weights are, row by row, `SHARES` of h; its optimiser moves none."""
    model = nn.Sequential(nn.Linear(400, 10, bias=False, dtype=dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    binarizer = bbnet.binarize(model, optimizer, stochastic=True, **options)
    h = torch.tensor(h_of(model[0]), dtype=dtype)
    with binarizer.latent(), torch.no_grad():
        model[0].weight.copy_((torch.tensor(SHARES, dtype=dtype)[:, None] * h).expand(10, 400))
    return model, optimizer, binarizer, h


def drawn(model, optimizer, steps):
    weights = []
    for _ in range(steps):
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        optimizer.step()
        weights.append(model[0].weight.detach().clone())
    return torch.stack(weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_follow_equation_2(dtype):
    model, optimizer, binarizer, h = wide(dtype)
    draws = drawn(model, optimizer, 100)
    assert set(draws.unique().tolist()) == {-float(h), float(h)}
    latent = binarizer.latent_weights()["0"][:, 0].double()
    chance = ((latent / float(h) + 1) / 2).clip(0, 1)
    share = (draws > 0).double().mean((0, 2))
    bound = 4.5 * (chance * (1 - chance) / 40_000).sqrt()
    assert bool(((share - chance).abs() <= bound).all())
    # Each place on its own, and steps among themselves: no place is drawn once and for all.
    per_place = (draws[:, 7] > 0).double().mean(0)
    assert 0.4 < float(per_place.min()) < float(per_place.max()) < 0.98
    assert float(per_place.var()) == pytest.approx(float(chance[7] * (1 - chance[7])) / 100, rel=0.5)


def test_draws_depend_on_the_seed_and_the_step_alone():
    """Neither on torch's own generator, which they leave alone, nor on forward passes, nor on the memory format."""
    torch.manual_seed(1)
    model, optimizer, _held, _ = wide()
    state = torch.get_rng_state()
    draws = drawn(model, optimizer, 6)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, optimizer, binarizer, _ = wide()
    x = torch.randn(3, 400)
    for step in range(6):
        before = again[0].weight.detach().clone()
        for _ in range(step):
            again(x).sum().backward()
        assert torch.equal(again[0].weight, before)
        assert torch.equal(drawn(again, optimizer, 1)[0], draws[step])
    binarizer.load_state_dict(binarizer.state_dict() | {"step": 2})
    assert torch.equal(drawn(again, optimizer, 1)[0], draws[2])
    other, optimizer, _other, _ = wide(seed=1)
    assert not torch.equal(drawn(other, optimizer, 1)[0], draws[0])

    convolutions = [nn.Sequential(nn.Conv2d(5, 7, 3)) for _ in range(2)]
    convolutions[1].load_state_dict(convolutions[0].state_dict())
    convolutions[1].to(memory_format=torch.channels_last)
    held = [bbnet.binarize(each, torch.optim.SGD(each.parameters(), lr=1.0), stochastic=True) for each in convolutions]
    assert torch.equal(convolutions[0][0].weight, convolutions[1][0].weight)
    assert len(held) == 2


def test_stochastic_weights_are_evaluated_by_their_signs_or_latent_weights(mlp, train, same):
    model, plain = mlp.build(), mlp.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    binarizer = bbnet.binarize(model, optimizer, stochastic=True)
    train(mlp, model, optimizer, 5)
    x = mlp.batch(0)[0]
    before = copy.deepcopy((model.state_dict(), binarizer.state_dict()))
    latent = binarizer.latent_weights()
    for way in ("signs", "latent"):
        weights = {
            f"{name}.weight": value.sign() * h_of(plain.get_submodule(name)) if way == "signs" else value
            for name, value in latent.items()
        }
        plain.load_state_dict(model.state_dict() | weights)
        with torch.inference_mode(), getattr(binarizer, way)():
            assert torch.equal(model(x), plain(x))
            assert not same(model.state_dict(), before[0])
        assert same((model.state_dict(), binarizer.state_dict()), before)
    with pytest.raises(KeyError), binarizer.signs():
        raise KeyError
    assert same((model.state_dict(), binarizer.state_dict()), before)


# --- With bbnet.sparsify --------------------------------------------------------------------------------------------


def both_ways(net, method, loss_of, sparse, hooks, stochastic=False, steps=36, each=lambda *_: None):
    """A sparse training with binary weights, by hooks or by the plain loop under the same sparsifier."""
    model, optimizer, sparsifier = sparse(net, method, "0.25", every=2)
    names = named(net, "all")
    binarizer = bbnet.binarize(model, optimizer, stochastic=stochastic) if hooks else None
    loop = None if hooks else SaveSignRestore(model, optimizer, names)
    seen = []
    for step in range(1, steps + 1):
        loss_of(model, net.batch(step)).backward()
        (optimizer if hooks else loop).step()
        optimizer.zero_grad()
        latent = binarizer.latent_weights() if hooks else {name: value.clone() for name, value in loop.latent.items()}
        seen.append(({name: mask.clone() for name, mask in sparsifier.masks().items()}, latent))
        each(step, model, sparsifier, latent)
    return seen, model.state_dict()


@pytest.mark.parametrize(
    "name, side, net_name", [(*case, net) for case, net in zip(CASES, cycle(["mlp", "conv_net"]), strict=False)]
)
def test_sparse_weights_are_ternary_and_masks_are_those_of_the_plain_loop(
    name, side, net_name, request, sparse, loss_of, same, over_weight, exact_count
):
    net = request.getfixturevalue(net_name)
    method = {"algorithm": name} | ({} if name == "topk" else {"side": side})
    slabs = {slab.name: slab for slab in net.slabs(side)}

    def look(step, model, sparsifier, latent):
        for layer_name in named(net, "all"):
            layer = model.get_submodule(layer_name)
            h = float(torch.tensor(h_of(layer)))
            assert set(layer.weight.unique().tolist()) <= {-h, 0.0, h}
            if name == "topk" or layer_name not in slabs:
                assert set(layer.weight.unique().tolist()) == {-h, h}
                continue
            mask = sparsifier.masks()[layer_name]
            spread = over_weight(mask, layer.weight, side=slabs[layer_name].side)
            assert not layer.weight[~spread].any()
            assert torch.equal(layer.weight == 0, latent[layer_name] == 0)
            # RigL and SET regrow at 0, from where the next step moves a weight.
            regrows_at_zero = name in ("rigl", "set")
            assert regrows_at_zero or bool(layer.weight[spread].all())
            budget = sparsifier.schedule.budget_at(step // 2 * 2)
            if sparsifier.algorithm.starts_sparse:
                budget = sparsifier.schedule.budget
            assert step == 1 or int(mask.sum()) == exact_count(str(budget), *mask.shape)

    hooked, weights = both_ways(net, method, loss_of, sparse, hooks=True, each=look)
    looped, weights_of_loop = both_ways(net, method, loss_of, sparse, hooks=False)
    assert same(hooked, looped)
    assert same(weights, weights_of_loop)
    assert name in ("topk", "random") or not same(hooked[1][0], hooked[28][0]), "masks that never move show nothing"


@pytest.mark.parametrize("side, net_name", [("in", "mlp"), ("out", "conv_net")])
def test_magnitude_ranks_latent_weights_with_the_dormant_ones(
    side, net_name, request, sparse, loss_of, exact_count, over_weight
):
    """All from scratch: top-k by the norms of latent weights as the step has left them, and of dormant ones."""
    net = request.getfixturevalue(net_name)
    method = {"algorithm": "magnitude", "side": side}
    model, optimizer, sparsifier = sparse(
        net, method, "0.25", every=2, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1)
    )
    mine = copy.deepcopy(model)
    binarizer = bbnet.binarize(model, optimizer)
    latent, dormant = {}, {}
    h = {name: h_of(mine.get_submodule(name)) for name in named(net, "all")}
    for name in h:
        latent[name] = mine.get_submodule(name).weight.detach().clamp(-h[name], h[name])
        dormant[name] = torch.zeros_like(latent[name])
    masks = {slab.name: torch.ones_like(sparsifier.masks()[slab.name]) for slab in net.slabs(side)}
    moved = 0
    for step in range(1, 37):
        with torch.no_grad():
            for name, value in latent.items():
                mine.get_submodule(name).weight.copy_(value.sign() * h[name])
        mine.zero_grad()
        loss_of(mine, net.batch(step)).backward()
        with torch.no_grad():
            for name, weight in mine.named_parameters():
                layer = name.removesuffix(".weight")
                if layer not in latent or not name.endswith("weight"):
                    weight.sub_(0.1 * weight.grad)
                    continue
                gradient = weight.grad
                if layer in masks:
                    gradient = gradient * over_weight(masks[layer], gradient, side)
                latent[layer] = latent[layer] - 0.1 * gradient
            if step <= 30 and step % 2 == 0:
                for layer, before in masks.items():
                    full = latent[layer] + dormant[layer]
                    norms = torch.linalg.vector_norm(full.flatten(2) if full.dim() > 2 else full[..., None], dim=2)
                    norms = norms if side == "in" else norms.T
                    count = exact_count(str(sparsifier.schedule.budget_at(step)), *norms.shape)
                    order = norms.flatten().argsort(descending=True, stable=True)
                    masks[layer] = torch.zeros(norms.numel(), dtype=torch.bool)
                    masks[layer][order[:count]] = True
                    masks[layer] = masks[layer].reshape(norms.shape)
                    spread = over_weight(masks[layer], full, side)
                    latent[layer], dormant[layer] = full * spread, full * ~spread
                    moved += int((masks[layer] & ~before).sum())
            for name in latent:
                latent[name] = latent[name].clamp(-h[name], h[name])
        loss_of(model, net.batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(torch.equal(mask, sparsifier.masks()[name]) for name, mask in masks.items())
        for name, value in binarizer.latent_weights().items():
            torch.testing.assert_close(value, latent[name], rtol=1e-4, atol=1e-6)
    assert moved > 0, "connections return"


# --- Loops ----------------------------------------------------------------------------------------------------------


def scaled_step(model, optimizer, scaler, loss, overflows):
    scaler.scale(loss * float("inf") if overflows else loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["sgd", "sgd fused", "adam foreach", "adamw fused"])
def test_a_step_that_a_grad_scaler_skips_changes_and_draws_nothing(kind, mlp, loss_of, same):
    """And the run without the skipped steps is the same to the bit."""
    runs = []
    for skips in (False, True):
        torch.manual_seed(0)
        model = mlp.build()
        optimizer = OPTIMIZERS[kind](model.parameters())
        binarizer = bbnet.binarize(model, optimizer, stochastic=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(1, 9):
            # After a first step that is skipped, torch's fused SGD takes an uninitialised momentum for its own.
            if skips and step % 3 == 2:
                before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), binarizer.state_dict()))
                scaled_step(model, optimizer, scaler, loss_of(model, mlp.batch(100 + step)), True)
                assert same((model.state_dict(), optimizer.state_dict(), binarizer.state_dict()), before)
            scaled_step(model, optimizer, scaler, loss_of(model, mlp.batch(step)), False)
            assert binarizer.step == step
        runs.append((model.state_dict(), optimizer.state_dict(), binarizer.state_dict()))
    assert same(*runs)


@pytest.mark.parametrize("way", ["closure", "closure by name", "accumulation", "clipping", "checkpointing", "autocast"])
def test_loops_of_many_kinds_are_those_of_the_plain_one(way, mlp, loss_of, same):
    def backward(model, optimizer, batch):
        optimizer.zero_grad()
        x, y = batch
        if way == "accumulation":
            before = copy.deepcopy(model.state_dict())
            for part in zip(x.chunk(4), y.chunk(4), strict=True):
                (loss_of(model, part) / 4).backward()
                assert same(model.state_dict(), before)
            return None
        if way == "checkpointing":
            logits = checkpoint(model, x.requires_grad_(), use_reentrant=False)
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
                logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), y)
        loss.backward()
        if way == "clipping":
            assert float(clip_grad_norm_(model.parameters(), 0.05)) > 0.05
        return loss

    runs = []
    for hooks in (False, True):
        torch.manual_seed(0)
        model = mlp.build()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        loop = None if hooks else SaveSignRestore(model, optimizer, named(mlp, "all"))
        binarizer = bbnet.binarize(model, optimizer) if hooks else None
        for step in range(1, 13):
            closure = partial(backward, model, optimizer, mlp.batch(step))
            if hooks and way.startswith("closure"):
                taken = optimizer.step(closure) if way == "closure" else optimizer.step(closure=closure)
                assert float(taken.detach()) > 0
                continue
            closure()
            (optimizer if hooks else loop).step()
        runs.append((model.state_dict(), binarizer.latent_weights() if hooks else loop.latent))
    assert same(*runs)


class Calling(torch.optim.AdamW):
    """Its step calls that of its base class, and goes on after it."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.mul_(0.99)
        return loss


def test_a_step_that_goes_on_after_that_of_its_base_class_counts_once(mlp, train, loss_of, same):
    torch.optim.AdamW(mlp.build().parameters())  # torch hooks the step of a class at its first instance
    torch.manual_seed(0)
    model = mlp.build()
    looped = copy.deepcopy(model)
    optimizer = Calling(model.parameters(), lr=0.01)
    binarizer = bbnet.binarize(model, optimizer, stochastic=False)
    train(mlp, model, optimizer, 10)
    assert binarizer.step == 10
    loop = SaveSignRestore(looped, Calling(looped.parameters(), lr=0.01), named(mlp, "all"))
    for step in range(1, 11):
        loss_of(looped, mlp.batch(step)).backward()
        loop.step()
        loop.optimizer.zero_grad()
    assert same(model.state_dict(), looped.state_dict())
    assert same(binarizer.latent_weights(), loop.latent)


def test_a_weight_that_is_swapped_out_and_back_is_still_its_own(mlp, train, same):
    """As sharpness-aware minimisation and the averages of some packages do."""
    runs = []
    for swaps in (False, True):
        torch.manual_seed(0)
        model = mlp.build()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        binarizer = bbnet.binarize(model, optimizer, stochastic=True)

        def swap(step, model=model, swaps=swaps):
            if swaps:
                kept = copy.deepcopy(model.state_dict())
                model.load_state_dict({name: value + 1 for name, value in kept.items()})
                model.load_state_dict(kept)

        train(mlp, model, optimizer, 6, swap)
        runs.append((model.state_dict(), binarizer.state_dict()))
    assert same(*runs)


def test_an_exception_in_a_closure_leaves_binary_weights(mlp, loss_of, train, same):
    torch.manual_seed(0)
    model = mlp.build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    binarizer = bbnet.binarize(model, optimizer)
    train(mlp, model, optimizer, 3)
    before = copy.deepcopy((model.state_dict(), binarizer.state_dict()))

    def fails():
        raise KeyError("batch")

    with pytest.raises(KeyError):
        optimizer.step(fails)
    assert same((model.state_dict(), binarizer.state_dict()), before)
    train(mlp, model, optimizer, range(4, 6))
    assert binarizer.step == 5
    assert not same(binarizer.state_dict(), before[1])
    assert set(model.first.weight.abs().unique().tolist()) == {float(torch.tensor(h_of(model.first)))}


def test_gradients_at_latent_weights_after_a_step_that_failed_are_refused(mlp, loss_of, train):
    """Out of memory, for example: the step is not repeated in silence."""
    model = mlp.build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    binarizer = bbnet.binarize(model, optimizer)
    train(mlp, model, optimizer, 2)
    fails = optimizer.register_step_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError()))
    loss_of(model, mlp.batch(3)).backward()
    with pytest.raises(MemoryError):
        optimizer.step()
    fails.remove()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="the last step of AdamW did not end, .*latent") as refusal:
        loss_of(model, mlp.batch(3)).backward()
    assert "\n" not in str(refusal.value)
    optimizer.zero_grad()
    with binarizer.latent():
        pass
    train(mlp, model, optimizer, range(3, 5))
    assert binarizer.step == 4


def test_autocast_does_not_keep_other_weights(mlp):
    """Inside one region of autocast, which caches converted weights."""
    model = mlp.build()
    binarizer = bbnet.binarize(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x = mlp.batch(0)[0]
    plain = mlp.build()
    plain.load_state_dict(model.state_dict() | {f"{k}.weight": v for k, v in binarizer.latent_weights().items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        binary = model(x)
        with binarizer.latent():
            assert torch.equal(model(x), plain(x))
        assert torch.equal(model(x), binary)


def test_weight_averages_are_taken_of_latent_weights(mlp, train):
    model = mlp.build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    binarizer = bbnet.binarize(model, optimizer)
    average, seen = AveragedModel(model), []

    def update(step):
        with binarizer.latent():
            average.update_parameters(model)
        seen.append(binarizer.latent_weights()["second"])

    train(mlp, model, optimizer, 8, update)
    torch.testing.assert_close(average.module.second.weight.detach(), torch.stack(seen).mean(0))
    with binarizer.latent():
        model.load_state_dict(average.module.state_dict())
    assert torch.equal(model.second.weight, average.module.second.weight.sign() * h_of(model.second))
    train(mlp, model, optimizer, range(9, 11))


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_compiled_model_computes_with_the_weights_of_now(stochastic, mlp, same):
    """By the eager backend, which only traces: one graph, though hooks come after it."""
    torch.compiler.reset()
    runs = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = mlp.build()
        forward = torch.compile(model, backend="eager", fullgraph=True) if compiles else model
        forward(mlp.batch(0)[0])
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        binarizer = bbnet.binarize(forward, optimizer, stochastic=stochastic)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for step in range(1, 6):
                x, y = mlp.batch(step)
                nn.functional.cross_entropy(forward(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
                with binarizer.latent():
                    assert torch.equal(forward(x), model(x))
        runs.append((model.state_dict(), binarizer.state_dict()))
    assert same(*runs)
    torch.compiler.reset()


@pytest.fixture
def group_of_one(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("given", ["wrapper", "inside", "before"])
def test_under_ddp_one_rank_trains_as_without(given, mlp, train, group_of_one, same):
    runs = []
    for wraps in (False, True):
        torch.manual_seed(0)
        model = mlp.build()
        optimizer = OPTIMIZERS["adamw fused"](model.parameters())
        make = partial(bbnet.binarize, optimizer=optimizer, stochastic=True)
        binarizer = make(model) if given == "before" else None
        outer = DistributedDataParallel(model, gradient_as_bucket_view=True) if wraps else model
        binarizer = binarizer or make(outer if given == "wrapper" else model)
        train(mlp, outer, optimizer, 6)
        runs.append((model.state_dict(), binarizer.state_dict()))
    assert same(*runs)


@pytest.mark.parametrize("prunes", [False, True])
def test_ranks_draw_alike(prunes, mlp, loss_of, same):
    """Two replicas that average their gradients, as ranks do."""
    ranks = []
    for _ in range(2):
        torch.manual_seed(0)
        model = mlp.build()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        if prunes:
            model.sparsifier = bbnet.sparsify(model, optimizer, mlp.slabs("in"), "magnitude", 0.25, total_steps=20)
        ranks.append((model, optimizer, bbnet.binarize(model, optimizer, stochastic=True)))
    for step in range(1, 15):
        for rank, (model, optimizer, _) in enumerate(ranks):
            optimizer.zero_grad()
            loss_of(model, mlp.batch(2 * step + rank)).backward()
        for pair in zip(*(model.parameters() for model, _, _ in ranks), strict=True):
            mean = (pair[0].grad + pair[1].grad) / 2
            for weight in pair:
                weight.grad.copy_(mean)
        for _, optimizer, _ in ranks:
            optimizer.step()
        (first, _, mine), (second, _, other) = ranks
        assert same((first.state_dict(), mine.state_dict()), (second.state_dict(), other.state_dict()))


# --- State ----------------------------------------------------------------------------------------------------------


def fresh(net, method, stochastic, sparse, init, every=3):
    model, optimizer, sparsifier = sparse(net, method, "0.25", every=every, init=init, total_steps=24)
    parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier}
    return parts | {"binarizer": bbnet.binarize(model, optimizer, stochastic=stochastic)}


def states(parts):
    return {name: part.state_dict() for name, part in parts.items()}


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name, net_name", list(zip([*MASKING, "topk"], cycle(["conv_net", "mlp"]), strict=False)))
def test_every_algorithm_resumes_from_a_file_to_the_bit(name, net_name, stochastic, request, sparse, train, same):
    """At every step: on the ramp, at refreshes, after the freeze."""
    net = request.getfixturevalue(net_name)
    method = {"algorithm": name}
    whole = fresh(net, method, stochastic, sparse, init=0)
    saved = []
    train(net, whole["model"], whole["optimizer"], 21, lambda step: saved.append(through_a_file(states(whole))))
    end = states(whole)
    for step in (1, 2, 3, 8, 9, 17, 18, 20):
        resumed = fresh(net, method, stochastic, sparse, init=step)
        for part, state in saved[step - 1].items():
            resumed[part].load_state_dict(state)
        train(net, resumed["model"], resumed["optimizer"], range(step + 1, 22))
        assert same(states(resumed), end)


@pytest.mark.parametrize("name", ["rigl", "magnitude", "budgeted_broadcast", "topk"])
def test_a_loop_with_everything_resumes_to_the_bit(name, mlp, sparse, same):
    """Autocast, GradScaler that skips, accumulation, clipping, a fused optimiser of two groups, a scheduler."""

    def optimizer_of(model):
        groups = [[weight for weight in model.parameters() if (weight.dim() == 1) == bias] for bias in (False, True)]
        return torch.optim.AdamW(
            [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}], lr=0.01, fused=True
        )

    def start(init):
        model, optimizer, sparsifier = sparse(
            mlp, {"algorithm": name}, "0.25", optimizer=optimizer_of, init=init, every=2, total_steps=24
        )
        return {
            "model": model,
            "optimizer": optimizer,
            "sparsifier": sparsifier,
            "binarizer": bbnet.binarize(model, optimizer, stochastic=True),
            "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=30),
            "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**12),
        }

    def run(parts, steps):
        model, optimizer, scaler = parts["model"], parts["optimizer"], parts["scaler"]
        for step in steps:
            for micro in range(2):
                x, y = mlp.batch(2 * step + micro)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(x), y) / 2
                scaler.scale(loss * float("inf") if step in (4, 13) and micro else loss).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            parts["scheduler"].step()

    whole = start(init=0)
    run(whole, range(9))
    saved = through_a_file(states(whole))
    run(whole, range(9, 22))
    assert whole["sparsifier"].step == whole["binarizer"].step == 20
    resumed = start(init=7)
    for part, each in resumed.items():
        each.load_state_dict(saved[part])
    run(resumed, range(9, 22))
    assert same(states(resumed), states(whole))


@pytest.mark.parametrize("name", ["rigl", "magnitude", "budgeted_broadcast"])
def test_states_may_be_loaded_in_any_order(name, mlp, sparse, train, same):
    method = {"algorithm": name}
    whole = fresh(mlp, method, True, sparse, init=0)
    train(mlp, whole["model"], whole["optimizer"], 7)
    saved = through_a_file(states(whole))
    train(mlp, whole["model"], whole["optimizer"], range(8, 12))
    for order in itertools.permutations(saved):
        resumed = fresh(mlp, method, True, sparse, init=1)
        train(mlp, resumed["model"], resumed["optimizer"], range(50, 52))  # a roll-back, too
        for part in order:
            resumed[part].load_state_dict(copy.deepcopy(saved[part]))
        train(mlp, resumed["model"], resumed["optimizer"], range(8, 12))
        assert same(states(resumed), states(whole)), order


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("loaded", ["binary", "float", "assigned", "copied", "of another step"])
def test_a_model_that_is_loaded_without_the_binarizers_state_is_found_at_the_next_step(
    loaded, stochastic, mlp, train, loss_of, same
):
    model, other = mlp.build(), mlp.build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    binarizer = bbnet.binarize(model, optimizer, stochastic=stochastic)
    train(mlp, model, optimizer, 3)
    earlier = copy.deepcopy(model.state_dict())
    train(mlp, model, optimizer, range(4, 12))
    if loaded == "binary":
        bbnet.binarize(other, torch.optim.SGD(other.parameters(), lr=0.1))
    if loaded == "copied":
        with torch.no_grad():
            model.first.weight[0, 0] *= -1
    else:
        model.load_state_dict(earlier if "step" in loaded else other.state_dict(), assign=loaded == "assigned")
    latent = binarizer.latent_weights()
    loss_of(model, mlp.batch(0)).backward()
    message = "^layer first: its weight was overwritten or replaced since it was binarised"
    for act in (optimizer.step, binarizer.restore, binarizer.latent().__enter__, binarizer.signs().__enter__):
        with pytest.raises(ValueError, match=message) as refusal:
            act()
        assert "\n" not in str(refusal.value)
    assert same(binarizer.latent_weights(), latent)
    assert binarizer.step == 11


def test_a_training_that_begins_at_a_saved_binary_network_is_warned(mlp, train):
    """Its latent weights were not loaded; the states of all parts are in order."""
    model, resumed, informed = mlp.build(), mlp.build(), mlp.build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    binarizer = bbnet.binarize(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(mlp, model, optimizer, 3)
        informed.load_state_dict(model.state_dict())
        optimizer = OPTIMIZERS["adamw"](informed.parameters())
        twin = bbnet.binarize(informed, optimizer)
        twin.load_state_dict(binarizer.state_dict())
        train(mlp, informed, optimizer, 2)
    resumed.load_state_dict(model.state_dict())
    optimizer = OPTIMIZERS["adamw"](resumed.parameters())
    _held = bbnet.binarize(resumed, optimizer)
    with pytest.warns(UserWarning, match="begins at latent weights that are all -h, 0 or .h.*load also") as found:
        train(mlp, resumed, optimizer, 3)
    assert len(found) == 1


def test_states_of_other_runs_are_refused(mlp, sparse, same):
    def make(net=mlp, **options):
        model = net.build()
        return model, bbnet.binarize(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)

    model, binarizer = make()
    before = copy.deepcopy((model.state_dict(), binarizer.state_dict()))
    for options, message in [
        ({"stochastic": True}, "stochastic is True, here False"),
        ({"scale": "one"}, "scale is one, here glorot"),
        ({"seed": 1}, "seed is 1, here 0"),
        ({"layers": "inner"}, "layers is {'second': .*here {'first'"),
    ]:
        stranger, another = make(**options)
        with pytest.raises(ValueError, match=f"the binarizer's state belongs to another run: {message}") as refusal:
            binarizer.load_state_dict(another.state_dict())
        assert "\n" not in str(refusal.value)
        assert stranger is not None
    with pytest.raises(ValueError, match="^this is not a state of a binarizer: its keys are first.weight, "):
        binarizer.load_state_dict(model.state_dict())
    sparsifier = sparse(mlp, "sp_in")[2]
    with pytest.raises(ValueError, match="^this is not a state of a binarizer"):
        binarizer.load_state_dict(sparsifier.state_dict())
    assert same((model.state_dict(), binarizer.state_dict()), before)


def test_latent_and_signs_are_left_before_anything_else(mlp, loss_of, same):
    model = mlp.build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    binarizer = bbnet.binarize(model, optimizer, stochastic=True)
    before = copy.deepcopy((model.state_dict(), binarizer.state_dict()))
    loss_of(model, mlp.batch(0)).backward()
    for context in (binarizer.latent, binarizer.signs):
        with context():
            for act in (
                optimizer.step,
                binarizer.remove,
                binarizer.restore,
                partial(binarizer.load_state_dict, binarizer.state_dict()),
                binarizer.latent().__enter__,
                binarizer.signs().__enter__,
            ):
                with pytest.raises(RuntimeError, match=r"leave latent\(\) or signs\(\) first"):
                    act()
            assert same(binarizer.state_dict(), before[1])
        assert same((model.state_dict(), binarizer.state_dict()), before)
    with pytest.raises(ValueError, match="layer first: its weight was overwritten"), binarizer.signs():
        model.load_state_dict(mlp.build().state_dict())
    assert same(binarizer.state_dict(), before[1])


# --- Copies, and the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_copy_of_a_binarizer_is_refused_and_names_its_state(duplicate, mlp):
    model = mlp.build()
    binarizer = bbnet.binarize(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"a Binarizer cannot be copied or pickled.*state_dict\(\)"):
        duplicate(binarizer)


@pytest.mark.filterwarnings("error")
def test_a_copy_of_the_model_is_a_plain_binary_network(mlp, train, same):
    model = mlp.build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    binarizer = bbnet.binarize(model, optimizer)
    train(mlp, model, optimizer, 3)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert same(copied.state_dict(), model.state_dict())
        before = copy.deepcopy((model.state_dict(), binarizer.state_dict()))
        other = OPTIMIZERS["adamw"](copied.parameters())
        train(mlp, copied, other, 2)
        assert same((model.state_dict(), binarizer.state_dict()), before)
        assert len(copied.first.weight.unique()) > 2, "trained as a plain one"


def test_removal_keeps_binary_weights_and_restoring_latent_ones(mlp, train, same):
    ends = {}
    for end in ("remove", "restore"):
        torch.manual_seed(0)
        model = mlp.build()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        hooks = len(optimizer._optimizer_step_pre_hooks)
        binarizer = bbnet.binarize(model, optimizer)
        train(mlp, model, optimizer, 4)
        binary, latent = copy.deepcopy(model.state_dict()), binarizer.latent_weights()
        for _ in range(2):
            getattr(binarizer, end)()
        assert not binarizer.is_attached
        assert len(optimizer._optimizer_step_pre_hooks) == hooks
        ends[end] = {f"{name}.weight": value for name, value in latent.items()} if end == "restore" else {}
        assert same(model.state_dict(), binary | ends[end])
        plain = mlp.build()
        plain.load_state_dict(model.state_dict())
        other = OPTIMIZERS["adamw"](plain.parameters())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(mlp, model, optimizer, range(5, 8))
        train(mlp, plain, other, range(5, 8))
        assert same(model.state_dict(), plain.state_dict())
        assert binarizer.step == 4
        bbnet.binarize(model, optimizer)


@pytest.mark.parametrize("then", ["binarize", "sparsify"])
def test_a_cell_of_a_notebook_may_run_again(then, mlp, train):
    """What nothing holds any more is removed with a warning, and latent weights are given back."""
    model = mlp.build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    binarizer = bbnet.binarize(model, optimizer)
    train(mlp, model, optimizer, 4)
    latent = binarizer.latent_weights()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with pytest.raises(ValueError, match="^layer first: its weight is binary already; call remove"):
        bbnet.binarize(model, optimizer)
    del binarizer
    with pytest.warns(UserWarning, match="a binarizer of this model, at step 4, is removed") as found:
        if then == "binarize":
            again = bbnet.binarize(model, optimizer)
        else:
            again = bbnet.sparsify(model, optimizer, mlp.slabs("in"), "magnitude", 0.25, total_steps=20)
    assert [warning.filename for warning in found] == [__file__]
    if then == "binarize":
        assert torch.equal(again.latent_weights()["first"], latent["first"])
    else:
        assert torch.equal(model.first.weight, latent["first"])
        binarizer = bbnet.binarize(model, optimizer)
        assert binarizer.step == 0
    train(mlp, model, optimizer, 2)
    assert again.step == 2


def test_weights_that_are_loaded_before_a_cell_runs_again_are_kept(mlp, train):
    model, start = mlp.build(), mlp.build()
    for seed in range(2):
        model.load_state_dict(start.state_dict())
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        with warnings.catch_warnings(record=True):
            binarizer = bbnet.binarize(model, optimizer, seed=seed)
        h = h_of(model.first)
        assert torch.equal(binarizer.latent_weights()["first"], start.first.weight.detach().clamp(-h, h))
        train(mlp, model, optimizer, 3)
        del binarizer


def test_a_training_whose_references_are_dropped_is_freed(mlp, train):
    model = mlp.build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    binarizer = bbnet.binarize(model, optimizer)
    train(mlp, model, optimizer, 2)
    held = [weakref.ref(each) for each in (model, optimizer, binarizer, binarizer._latent[0])]
    del model, optimizer, binarizer
    gc.collect()
    assert [each() for each in held] == [None] * 4


# --- What is refused ------------------------------------------------------------------------------------------------


class FullyShardedDataParallel(nn.Module):
    """Has only the name of torch's."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def sgd_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def changed(change):
    def build(model):
        change(model)
        return model, sgd_of(model)

    return build


def tie(model):
    model.tied = nn.Linear(16, 12)
    model.tied.weight = model.second.weight


def tie_to_an_embedding(model):
    model.embedding = nn.Embedding(12, 12)
    model.last.weight = model.embedding.weight


COMPUTED = r"^layer second: its weight is computed from other parameters .*; remove the parametrization first$"
UNTRAINED = "^layer second: its weight is not trained by the optimizer; name the layers to binarize$"
REFUSED = {
    "LBFGS": (lambda model: (model, torch.optim.LBFGS(model.parameters())), "all", "under the optimizer LBFGS: "),
    "ZeRO": (lambda model: (model, type("ZeroRedundancyOptimizer", (torch.optim.SGD,), {})(model.parameters())), "all",
             "under the optimizer ZeroRedundancyOptimizer: "),
    "no optimizer": (lambda model: (model, model), "all", "Sequential is no torch.optim.Optimizer"),
    "FSDP": (lambda model: (FullyShardedDataParallel(model), sgd_of(model)), "all",
             "cannot binarize a model under FullyShardedDataParallel: no rank holds whole weights"),
    "weight_norm": (changed(lambda model: parametrizations.weight_norm(model.second)), "all", COMPUTED),
    "prune": (changed(lambda model: prune.l1_unstructured(model.second, "weight", 0.5)), "all", COMPUTED),
    "frozen": (changed(lambda model: model.second.requires_grad_(False)), "all", UNTRAINED),
    "in no group": (lambda model: (model, torch.optim.SGD([*model.first.parameters(), model.last.weight])), "all",
                    UNTRAINED),
    "of another model": (lambda model: (model, sgd_of(copy.deepcopy(model))), ["second"], UNTRAINED),
    "tied": (changed(tie), "all", "^layer second: its weight is also that of tied, which would be binary too"),
    "tied to an embedding": (changed(tie_to_an_embedding), "all", "^layer last: .* also that of embedding"),
    "a word": (changed(lambda model: None), "inside", "^layers 'inside' is unknown, allowed: all, inner, or a list"),
    "a name": (changed(lambda model: None), ["first", "third"], "^layer third is no linear layer or convolution"),
    "an activation": (changed(lambda model: None), ["on"], "^layer on is no linear layer or convolution"),
    "no names": (changed(lambda model: None), [], r"^layers \[\] names no linear layer"),
    "nothing inside": (changed(lambda model: model.pop("second")), "inner", "^layers inner names no linear layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line_and_leaves_nothing_behind(case, mlp, same):
    build, layers, message = REFUSED[case]
    model = mlp.build()
    if case == "nothing inside":
        model = nn.Sequential(OrderedDict(first=model.first, last=nn.Linear(16, 12)))
        optimizer = sgd_of(model)
    else:
        model, optimizer = build(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message) as refusal:
        bbnet.binarize(model, optimizer, layers)
    assert "\n" not in str(refusal.value)
    assert same(model.state_dict(), before)
    assert not getattr(optimizer, "_optimizer_step_pre_hooks", None)


def test_unknown_scales_and_taken_weights_are_refused(mlp, same):
    model = mlp.build()
    optimizer = sgd_of(model)
    with pytest.raises(ValueError, match="^unknown scale 'two', allowed: glorot, one$"):
        bbnet.binarize(model, optimizer, scale="two")
    held = bbnet.binarize(model, optimizer, ["second"])
    before = copy.deepcopy((model.state_dict(), held.state_dict()))
    with pytest.raises(ValueError, match="^layer second: its weight is binary already"):
        bbnet.binarize(model, optimizer)
    assert same((model.state_dict(), held.state_dict()), before)
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    other = bbnet.binarize(model, optimizer, ["first", "last"], scale="one")  # two binarizers of other layers
    assert other.half_ranges == {"first": 1.0, "last": 1.0}


@pytest.mark.parametrize("name", [*MASKING, "topk"])
def test_sparsify_comes_first(name, mlp, same):
    model = mlp.build()
    optimizer = sgd_of(model)
    held = bbnet.binarize(model, optimizer)
    before = copy.deepcopy((model.state_dict(), held.state_dict()))
    with pytest.raises(ValueError, match="^slab first: its weight is binary already; call restore.. of the") as refusal:
        bbnet.sparsify(model, optimizer, mlp.slabs("in"), {"algorithm": name}, 0.25, total_steps=40)
    assert "\n" not in str(refusal.value)
    assert same((model.state_dict(), held.state_dict()), before)
    held.restore()
    bbnet.sparsify(model, optimizer, mlp.slabs("in"), {"algorithm": name}, 0.25, total_steps=40)


@pytest.mark.parametrize("rescale", ["sqrt", "energy"])
def test_rescaled_rows_are_refused_unless_a_norm_makes_them_void(rescale, mlp, conv_net):
    model = mlp.build()
    optimizer = sgd_of(model)
    bound = bbnet.sparsify(model, optimizer, mlp.slabs("in"), "sp_in", 0.25, total_steps=40, rescale=rescale)
    with pytest.raises(ValueError, match="^layer first: its sparsifier rescales rows.*use rescale='none'$"):
        bbnet.binarize(model, optimizer)
    bbnet.binarize(model, optimizer, ["last"])
    bound.remove()
    model = conv_net.build()
    optimizer = sgd_of(model)
    slabs = [Slab("middle", "in", "norm2", normalised=True)]
    _held = bbnet.sparsify(model, optimizer, slabs, "sp_in", 0.25, total_steps=40, rescale=rescale)
    bbnet.binarize(model, optimizer)
