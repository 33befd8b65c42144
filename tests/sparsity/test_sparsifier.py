"""Every weight-masking algorithm through one list, against a shadow that keeps its own dormant values and states."""

import copy
import io
import json
import math
import os
import subprocess
import sys
import zlib
from collections import OrderedDict
from decimal import Decimal
from itertools import cycle, permutations, product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bbnet.sparsity import algorithms
from bbnet.sparsity.degrees import LAWS, allocate_degrees
from bbnet.sparsity.masked_weight import SQUARE_OF_PRUNED, SQUARES
from bbnet.sparsity.masks import keep_largest_of_all
from bbnet.sparsity.slab import Slab
from bbnet.sparsity.sparsifier import METHODS, sparsify

MASKING = [name for name in algorithms.names() if algorithms.make(name).masks_weights]
METHODS_ON_BOTH = [{"algorithm": name, "side": "both"} for name in MASKING]
# Every algorithm, side, variant, kind of law and pattern at least once, on the two nets in turn.
CASES = [
    ("mlp", {"algorithm": "budgeted_broadcast", "side": "in"}),
    ("conv_net", {"algorithm": "budgeted_broadcast", "side": "both", "law": "shuffled"}),
    ("conv_net", {"algorithm": "magnitude", "side": "out"}),
    ("mlp", {"algorithm": "magnitude", "side": "both", "distribution": "global"}),
    ("mlp", {"algorithm": "random", "side": "in"}),
    ("conv_net", {"algorithm": "random", "side": "both", "ramp": True}),
    ("conv_net", {"algorithm": "rigl", "side": "both"}),
    ("mlp", {"algorithm": "rigl", "side": "out", "ramp": True, "distribution": "erk"}),
    ("mlp", {"algorithm": "set", "side": "out"}),
    ("conv_net", {"algorithm": "set", "side": "in", "distribution": "erk"}),
    ("mlp", {"algorithm": "wanda", "side": "both"}),
    ("conv_net", {"algorithm": "wanda", "side": "out"}),
    ("mlp", {"algorithm": "magnitude", "side": "in", "pattern": "2:4"}),
    ("conv_net", {"algorithm": "rigl", "side": "both", "pattern": "2:4"}),
]
EVERY = [method for _, method in CASES] + [
    {"algorithm": "budgeted_broadcast", "side": "both", "law": law} for law in LAWS[1:]
]
SP_IN = METHODS["sp_in"]


def label(value):
    """The id of a method in a parametrised test."""
    if not isinstance(value, dict):
        return None
    return "-".join(key if part is True else str(part) for key, part in value.items())


def starts_sparse(method):
    return method["algorithm"] in ("rigl", "set", "random") and not method.get("ramp")


def regrows_at_zero(method):
    return method["algorithm"] in ("rigl", "set")


def exact_over_all_slabs_only(method):
    return method.get("distribution") in ("global", "erk")


def budget_of(method):
    """The budget that the method's pattern implies, or the tests' default; for erk less, so that no slab is whole."""
    return "0.50" if "pattern" in method else "0.10" if method.get("distribution") == "erk" else "0.25"


OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
    "adamw_fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, fused=True),
    "adamw_foreach": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, foreach=True),
    "adam_amsgrad": lambda weights: torch.optim.Adam(weights, lr=0.01, weight_decay=0.1, amsgrad=True),
    "nadam": lambda weights: torch.optim.NAdam(weights, lr=0.01, weight_decay=0.1),
    "radam": lambda weights: torch.optim.RAdam(weights, lr=0.01, weight_decay=0.1),
    "adamax": lambda weights: torch.optim.Adamax(weights, lr=0.01, weight_decay=0.1),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.01, weight_decay=0.1),
    "adadelta": lambda weights: torch.optim.Adadelta(weights, weight_decay=0.1),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "rprop": lambda weights: torch.optim.Rprop(weights),
    "adafactor": lambda weights: torch.optim.Adafactor(weights, weight_decay=0.1),
}

# Rprop's steps and Adamax's infinity norm are kept above 0 by their optimisers, averages of squares by the sparsifier;
# none of them moves an idle weight.
KEPT_ABOVE_ZERO = ("step_size", "exp_inf", *SQUARES)


def per_weight_state(optimizer, weight):
    """The optimiser's tensors that hold one number per weight."""
    values = optimizer.state.get(weight, {}).items()
    return {key: value for key, value in values if torch.is_tensor(value) and value.shape == weight.shape}


def weight_of(model, slab):
    return model.get_submodule(slab.name).weight


def copy_masks(sparsifier):
    return {name: mask.clone() for name, mask in sparsifier.masks().items()}


def live_weights(tensor, mask, side):
    """[units, fan, taps] of a weight, 0 where `mask` is false."""
    by_unit = tensor.reshape(*tensor.shape[:2], -1)
    by_unit = by_unit if side == "in" else by_unit.transpose(0, 1)
    return by_unit * mask[:, :, None]


class Shadow:
    """Watches a training from outside: what a refresh found, and what, by DESIGN 4.2, it must leave behind.

    A connection that a refresh drops and grows again at once is in the old mask and in the new, so it must keep its
    value and state.
    """

    def __init__(self, over_weight, rescale, regrows_at_zero):
        self.over_weight = over_weight
        self.rescale = rescale
        self.regrows_at_zero = regrows_at_zero
        self.refreshes = []
        self.others_changed = []

    def watch(self, model, optimizer, slabs):
        self.model, self.optimizer, self.slabs = model, optimizer, slabs
        self.masks = {slab.name: None for slab in slabs}
        self.dormant = {slab.name: torch.zeros_like(weight_of(model, slab)) for slab in slabs}
        self.scale = {}
        optimizer.register_step_post_hook(lambda *_: self.look())
        self.look()

    def look(self):
        """Runs ahead of the sparsifier, and at every step ahead of its own hook."""
        self.found = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.found_state = copy.deepcopy(
            {name: self.optimizer.state.get(weight, {}) for name, weight in self.model.named_parameters()}
        )

    def check_others(self, same):
        """After a step: lists the parameters and buffers outside the slabs that the sparsifier changed."""
        own = {f"{slab.name}.weight" for slab in self.slabs}
        now, parameters = self.model.state_dict(), dict(self.model.named_parameters())
        self.others_changed += [name for name in now if name not in own and not same(now[name], self.found[name])]
        self.others_changed += [
            name
            for name, parameter in parameters.items()
            if name not in own and not same(dict(self.optimizer.state.get(parameter, {})), self.found_state[name])
        ]

    def compare(self, sparsifier):
        """After a refresh."""
        for slab in self.slabs:
            key = f"{slab.name}.weight"
            new = sparsifier.masks()[slab.name].clone()
            old = self.masks[slab.name] if self.masks[slab.name] is not None else torch.ones_like(new)
            scale = self.scale.get(slab.name, torch.ones(len(new)))
            old_spread = self.over_weight(old, self.found[key], slab.side)
            full = torch.where(old_spread, self.found[key], self.dormant[slab.name])
            factor = self.factor(slab, full, old, new, scale)
            across = self.over_weight(factor[:, None].expand(new.shape), full, slab.side)
            rescaled = full if self.rescale == "none" else full * across
            live = self.over_weight(new, full, slab.side)
            self.refreshes.append(
                SimpleNamespace(
                    step=sparsifier.step,
                    slab=slab,
                    old=old,
                    new=new,
                    regrown=live & ~old_spread,
                    changed=live != old_spread,
                    full=full,
                    scale_before=scale,
                    scale=scale * factor,
                    expected=torch.where(live, rescaled, torch.zeros_like(full)),
                    weight=weight_of(self.model, slab).detach().clone(),
                    state=copy.deepcopy(dict(self.optimizer.state.get(weight_of(self.model, slab), {}))),
                    state_before=self.found_state[key],
                )
            )
            self.masks[slab.name] = new
            self.scale[slab.name] = scale * factor
            if not self.regrows_at_zero:
                self.dormant[slab.name] = torch.where(live, torch.zeros_like(full), rescaled)

    def factor(self, slab, full, old, new, scale):
        """Of each unit; sqrt by its cumulative form, sqrt(n / k), which a unit without connections leaves alone."""
        moved = (old != new).any(1) & (new.sum(1) > 0)
        ones = torch.ones(len(new))
        if self.rescale == "none" or slab.normalised:
            return ones
        if self.rescale == "sqrt":
            return torch.where(moved, (new.shape[1] / new.sum(1)).sqrt() / scale, ones)
        norm_old, norm_new = (live_weights(full, mask, slab.side).square().sum((1, 2)).sqrt() for mask in (old, new))
        return torch.where(moved & (norm_old > 0) & (norm_new > 0), norm_old / norm_new, ones)


@pytest.fixture(scope="module")
def shadowed_runs():
    """The runs of `shadowed` so far; tests only read them."""
    return {}


@pytest.fixture
def shadowed(sparse, train, over_weight, same, request, shadowed_runs):
    """A warm start and 40 steps with their shadow; live weights are shrunk twice, so that dormant ones regrow."""

    def run(net_name, method, rescale="none"):
        key = (net_name, label(method), rescale)
        if key not in shadowed_runs:
            shadowed_runs[key] = train_with_shadow(request.getfixturevalue(net_name), method, rescale)
        return shadowed_runs[key]

    def train_with_shadow(net, method, rescale):
        shadow = Shadow(over_weight, rescale, regrows_at_zero(method))

        def warm_up(model, optimizer, slabs):
            train(net, model, optimizer, range(101, 104))
            shadow.watch(model, optimizer, slabs)

        _, optimizer, sparsifier = sparse(net, method, budget_of(method), rescale=rescale, before=warm_up)

        def follow(step):
            if step <= 30:
                shadow.compare(sparsifier)
            shadow.check_others(same)
            if step in (18, 24):
                with torch.no_grad():
                    for slab in shadow.slabs:
                        weight_of(shadow.model, slab).mul_(0.2)

        if starts_sparse(method):
            follow(0)
        train(net, shadow.model, optimizer, 40, follow)
        assert len(shadow.refreshes) == len(shadow.slabs) * (30 + starts_sparse(method))
        return shadow, sparsifier

    return run


@pytest.mark.parametrize(
    "net_name, method, budget",
    [
        *((net_name, method, budget_of(method)) for net_name, method in CASES),
        *(("mlp", method, "0.10") for method in METHODS_ON_BOTH),
    ],
    ids=label,
)
def test_every_refresh_keeps_exactly_k_connections(
    net_name, method, budget, request, sparse, train, exact_count, over_weight
):
    """Of each slab, or of all slabs together; density counts masks, and outside a mask weights are 0."""
    net = request.getfixturevalue(net_name)
    model, optimizer, sparsifier = sparse(net, method, budget)
    slabs = net.slabs(method["side"])

    def check(step):
        rows = [row for row in sparsifier.refreshes if row["step"] == step]
        refreshed = 0 < step <= 30 or (step == 0 and starts_sparse(method))
        assert [row["slab"] for row in rows] == ([slab.name for slab in slabs] if refreshed else [])
        expected = []
        for slab, row in zip(slabs, rows, strict=refreshed):
            mask = sparsifier.masks()[slab.name]
            if starts_sparse(method):
                assert Decimal(row["budget"]) == Decimal(budget)
            else:
                ramp = float(budget) + (1 - float(budget)) * max(1 - step / 16, 0) ** 3
                assert float(row["budget"]) == pytest.approx(ramp, rel=1e-12)
            assert int(mask.sum()) == row["connections"]
            assert row["density"] == row["connections"] / mask.numel()
            expected.append(exact_count(row["budget"], *mask.shape))
        counts = [row["connections"] for row in rows]
        if exact_over_all_slabs_only(method) and rows:
            kernels = [weight_of(model, slab)[0, 0].numel() for slab in slabs]
            weights = sum(weight_of(model, slab).numel() for slab in slabs)
            missing = exact_count(rows[0]["budget"], weights, 1) - sum(
                map(math.prod, zip(counts, kernels, strict=True))
            )
            assert 0 <= missing < max(kernels)
        else:
            assert counts == expected
        for slab in slabs:
            weight, mask = weight_of(model, slab), sparsifier.masks()[slab.name]
            assert not weight[~over_weight(mask, weight, slab.side)].any()

    check(0)
    train(net, model, optimizer, 32, check)
    shapes = [weight_of(model, slab).shape[:2] for slab in slabs]
    masks = [sparsifier.masks()[slab.name] for slab in slabs]
    assert [mask.shape for mask in masks] == [
        shape if slab.side == "in" else shape[::-1] for slab, shape in zip(slabs, shapes, strict=True)
    ]
    if not exact_over_all_slabs_only(method):
        assert sum(int(mask.sum()) for mask in masks) == sum(exact_count(budget, *shape) for shape in shapes)


with_shadow = pytest.mark.xdist_group("shadowed runs")


@with_shadow
@pytest.mark.parametrize("net_name, method", CASES, ids=label)
def test_regrown_weights_return_to_their_dormant_value_or_start_at_zero(net_name, method, shadowed):
    shadow, _ = shadowed(net_name, method)
    for refresh in shadow.refreshes:
        assert torch.equal(refresh.weight, refresh.expected), f"{refresh.slab.name} at step {refresh.step}"
    regrown = torch.cat([refresh.weight[refresh.regrown] for refresh in shadow.refreshes])
    if method["algorithm"] == "random":
        assert len(regrown) == 0, "a fixed random mask only ever shrinks"
    else:
        assert len(regrown) > 0, "nothing regrew: the case shows nothing"
        assert bool((regrown == 0).all() if regrows_at_zero(method) else regrown.all())


@with_shadow
@pytest.mark.parametrize("net_name, method", CASES, ids=label)
def test_a_refresh_changes_only_the_slabs_and_the_state_of_what_it_pruned_or_regrew(
    net_name, method, shadowed, same, over_weight
):
    shadow, _ = shadowed(net_name, method)
    assert shadow.others_changed == []
    zeroed = []
    for refresh in shadow.refreshes:
        now, before = refresh.state, refresh.state_before
        assert same(now.get("step"), before.get("step"))
        for key in ("exp_avg", "exp_avg_sq"):
            expected = before[key].masked_fill(refresh.changed, 0)
            if key in SQUARES:
                expected = torch.where(
                    over_weight(refresh.new, expected, refresh.slab.side), expected, SQUARE_OF_PRUNED
                )
            assert torch.equal(now[key], expected)
            zeroed.append(bool(before[key][refresh.changed].any()))
    assert any(zeroed), "no state was zeroed: the case shows nothing"


@with_shadow
@pytest.mark.parametrize(
    "net_name, method, rescale",
    [(*case, rescale) for case, rescale in zip(CASES, cycle(["sqrt", "energy"]), strict=False)]
    + [("conv_net", METHODS_ON_BOTH[0], "sqrt"), ("mlp", METHODS_ON_BOTH[0], "energy")],
    ids=label,
)
def test_rescaling_applies_to_the_whole_row_once_when_its_support_changes(net_name, method, rescale, shadowed):
    shadow, sparsifier = shadowed(net_name, method, rescale)
    for refresh in shadow.refreshes:
        torch.testing.assert_close(refresh.weight, refresh.expected, rtol=1e-5, atol=1e-8)
    for slab, masked in zip(shadow.slabs, sparsifier.weights, strict=True):
        if slab.normalised:
            assert bool((shadow.scale[slab.name] == 1).all())
        elif rescale == "sqrt":
            degree = masked.mask.sum(1)
            whole = (masked.mask.shape[1] / degree).sqrt()[degree > 0]
            torch.testing.assert_close(masked.scale[degree > 0], whole, rtol=1e-5, atol=0)
    assert any(bool((scale != 1).any()) for scale in shadow.scale.values())


@with_shadow
@pytest.mark.parametrize("method", [METHODS_ON_BOTH[0], {"algorithm": "set", "side": "out"}], ids=label)
def test_energy_rescaling_preserves_the_norm_of_a_units_live_weights(method, shadowed):
    shadow, _ = shadowed("mlp", method, "energy")
    for refresh in shadow.refreshes:
        side = refresh.slab.side
        before = live_weights(refresh.full, refresh.old, side).square().sum((1, 2)).sqrt()
        after = live_weights(refresh.weight, refresh.new, side).square().sum((1, 2)).sqrt()
        moved = (refresh.old != refresh.new).any(1) & (before > 0) & (after > 0)
        torch.testing.assert_close(after[moved], before[moved], rtol=1e-5, atol=0)


@with_shadow
@pytest.mark.parametrize(
    "net_name, law, rescale",
    [*(("mlp", law, "none") for law in LAWS), ("conv_net", "log_odds", "sqrt"), ("mlp", "log_odds", "energy")],
)
def test_each_unit_keeps_its_largest_connections_including_dormant_ones(net_name, law, rescale, shadowed):
    method = {"algorithm": "budgeted_broadcast", "side": "both"} | ({} if law == "log_odds" else {"law": law})
    shadow, _ = shadowed(net_name, method, rescale)
    for refresh in shadow.refreshes:
        norms = live_weights(refresh.full, torch.ones_like(refresh.new), refresh.slab.side).square().sum(2).sqrt()
        least_kept = norms.masked_fill(~refresh.new, float("inf")).amin(1)
        most_pruned = norms.masked_fill(refresh.new, -1).amax(1)
        assert bool((least_kept >= most_pruned * (1 - 1e-5)).all())


@with_shadow
@pytest.mark.parametrize(
    "net_name, distribution, rescale",
    [
        ("mlp", "uniform", "none"),
        ("conv_net", "uniform", "sqrt"),
        ("mlp", "global", "energy"),
        ("mlp", "global", "sqrt"),
    ],
)
def test_magnitude_keeps_the_largest_whatever_the_rescaling(net_name, distribution, rescale, shadowed):
    shadow, _ = shadowed(net_name, {"algorithm": "magnitude", "side": "both", "distribution": distribution}, rescale)
    compared = 0
    for pair in zip(shadow.refreshes[::2], shadow.refreshes[1::2], strict=True):
        rankings = [
            live_weights(refresh.full, torch.ones_like(refresh.new), refresh.slab.side).square().sum(2).sqrt()
            / refresh.scale_before[:, None]
            for refresh in pair
        ]
        kept = [ranking[refresh.new] for ranking, refresh in zip(rankings, pair, strict=True)]
        pruned = [ranking[~refresh.new] for ranking, refresh in zip(rankings, pair, strict=True)]
        groups = [(torch.cat(kept), torch.cat(pruned))] if distribution == "global" else zip(kept, pruned, strict=True)
        for above, below in groups:
            if len(above) and len(below):
                assert float(above.min()) >= float(below.max()) * (1 - 1e-5)
                compared += 1
    assert compared >= 25


@pytest.mark.parametrize("law, side", [("log_odds", "in"), ("log_odds", "both"), ("linear", "out"), ("uniform", "in")])
def test_degrees_follow_the_on_rates_of_the_slabs_units(law, side, mlp, train, sparse):
    # Batches of 7 are not subsampled, and 7 * 30 positions are too few for silence.
    outputs, averages, weight = {}, {}, 0.0

    def fold(*_):
        nonlocal weight
        weight = 0.99 * weight + 0.01
        for name, output in outputs.items():
            share = (output > 0).double().mean(0)
            averages[name] = 0.99 * averages.get(name, torch.zeros_like(share)) + 0.01 * share

    def before(model, optimizer, slabs):
        for slab in slabs:
            unit = model.get_submodule(slab.units[0])
            unit.register_forward_hook(
                lambda module, inputs, output, name=slab.units[0]: outputs.update({name: output})
            )
        optimizer.register_step_post_hook(fold)

    method = {"algorithm": "budgeted_broadcast", "side": side, "law": law}
    model, optimizer, sparsifier = sparse(mlp, method, "0.35", before=before)

    def check(step):
        for slab in mlp.slabs(side) if step <= 30 else []:
            mask = sparsifier.masks()[slab.name]
            budget = sparsifier.schedule.budget_at(step)
            rates = (averages[slab.units[0]] / weight).clamp(0, 1)
            assert mask.sum(1).tolist() == allocate_degrees(rates, mask.shape[1], budget, law=law).tolist()

    few = SimpleNamespace(batch=lambda step: mlp.batch(step, size=7))
    train(few, model, optimizer, 31, check)


@pytest.mark.parametrize(
    "kind, net_name, method",
    [
        *(
            (kind, "mlp", {"algorithm": name, "side": "both"})
            for kind, name in zip(OPTIMIZERS, cycle(["budgeted_broadcast", "rigl"]), strict=False)
        ),
        *((kind, *case) for kind, case in zip(cycle(["adamw", "sgd"]), CASES, strict=False)),
    ],
    ids=label,
)
def test_pruned_weights_stay_zero_and_masks_stay_after_the_freeze(
    kind, net_name, method, request, sparse, train, over_weight
):
    """From the start of the sparse phase to 20 steps after the freeze at step 15."""
    net = request.getfixturevalue(net_name)

    def optimizer_of(model):
        return OPTIMIZERS[kind](model.parameters())

    model, optimizer, sparsifier = sparse(net, method, budget_of(method), optimizer=optimizer_of, total_steps=20)
    frozen = {}

    def check(step):
        for slab in net.slabs(method["side"]):
            weight, mask = weight_of(model, slab), sparsifier.masks()[slab.name]
            pruned = ~over_weight(mask, weight, slab.side)
            assert not weight[pruned].any()
            for key, value in per_weight_state(optimizer, weight).items():
                assert key in KEPT_ABOVE_ZERO or not value[pruned].any(), key
        if step == 15:
            frozen.update(copy_masks(sparsifier))
        if step > 15:
            assert all(torch.equal(mask, frozen[name]) for name, mask in sparsifier.masks().items())

    train(net, model, optimizer, 15 + 20, check)
    for slab in net.slabs(method["side"]):
        weight, mask = weight_of(model, slab), sparsifier.masks()[slab.name]
        # SET also grows connections of dead units: no gradient ever moves those from 0.
        if net_name == "mlp" and method["algorithm"] != "set":
            assert bool(weight[over_weight(mask, weight, slab.side)].all()), "a live weight died"


@pytest.mark.parametrize("net_name, method", CASES[:8], ids=label)
def test_the_mask_of_a_forward_pass_is_that_of_its_backward_pass(
    net_name, method, request, sparse, loss_of, over_weight
):
    net = request.getfixturevalue(net_name)
    model, optimizer, sparsifier = sparse(net, method, "0.25", total_steps=20)
    for step in range(17):
        before = copy_masks(sparsifier)
        sums = {slab.name: 0 for slab in net.slabs(method["side"])}
        for micro in range(2):
            loss = loss_of(model, net.batch(2 * step + micro))
            weights = [weight_of(model, slab) for slab in net.slabs(method["side"])]
            true_gradients = torch.autograd.grad(loss, weights, retain_graph=True)
            loss.backward()
            for slab, gradient in zip(net.slabs(method["side"]), true_gradients, strict=True):
                sums[slab.name] = sums[slab.name] + gradient
        for slab in net.slabs(method["side"]):
            weight, mask = weight_of(model, slab), sparsifier.masks()[slab.name]
            assert torch.equal(mask, before[slab.name])
            spread = over_weight(mask, weight, slab.side)
            assert not weight[~spread].any()
            assert torch.equal(weight.grad, sums[slab.name] * spread)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("parts", [4])
def test_micro_batches_count_as_one_step_and_one_batch(parts, mlp, sparse, loss_of):
    runs = []
    for pieces in (1, parts):
        model, optimizer, sparsifier = sparse(mlp, "sp_in", "0.25", every=3)
        rates = []
        for step in range(1, 31):
            x, y = mlp.batch(step, size=64)
            for piece in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (loss_of(model, piece) / pieces).backward()
            optimizer.step()
            optimizer.zero_grad()
            rates.append(sparsifier.on_rates.of(("first", "second"))[0].clone())
            assert sparsifier.step == step
        runs.append((rates, [row["step"] for row in sparsifier.refreshes]))
    assert torch.equal(runs[0][0][0], runs[1][0][0])
    assert torch.equal(runs[0][0][2], runs[1][0][2])
    assert runs[0][1] == runs[1][1] == [step for step in range(3, 31, 3) for _ in range(2)]


@pytest.mark.parametrize("method", METHODS_ON_BOTH, ids=label)
def test_gradients_may_be_zeroed_or_dropped(method, mlp, sparse, loss_of, same):
    states = []
    for set_to_none in (True, False):
        model, optimizer, _ = sparse(mlp, method, budget_of(method), total_steps=20)
        for step in range(20):
            for micro in range(2):
                loss_of(model, mlp.batch(2 * step + micro)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        states.append(model.state_dict())
    assert same(*states)


@pytest.mark.parametrize("algorithm", ["magnitude", "rigl"])
def test_gradients_left_from_before_a_refresh_cannot_revive_a_pruned_weight(
    algorithm, mlp, sparse, loss_of, over_weight
):
    model, optimizer, sparsifier = sparse(mlp, algorithm, "0.25")
    for step in range(25):
        loss_of(model, mlp.batch(step)).backward()
        optimizer.step()
        for slab in mlp.slabs("in"):
            weight = weight_of(model, slab)
            pruned = ~over_weight(sparsifier.masks()[slab.name], weight, slab.side)
            assert not weight.grad[pruned].any()
            assert not weight[pruned].any()


def trained_state(net, sparse, train, method, **options):
    model, optimizer, sparsifier = sparse(net, method, budget_of(method), total_steps=20, **options)
    train(net, model, optimizer, 20)
    return model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()


@pytest.mark.parametrize("method", METHODS_ON_BOTH + [EVERY[1], {"algorithm": "random", "ramp": True}], ids=label)
def test_a_run_repeats_to_the_bit_and_neither_reads_nor_moves_the_global_generator(method, mlp, sparse, train, same):
    states = []
    for noise in (1, 2):
        before = {"before": lambda *_, noise=noise: torch.manual_seed(noise)}
        states.append(trained_state(mlp, sparse, train, method, seed=5, **before))
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(noise).get_state())
    assert same(*states)


MASKS_OF_EVERY_METHOD = """
import hashlib, json, sys, torch
from torch import nn
from bbnet.sparsity.masked_weight import SQUARE_OF_PRUNED, SQUARES
from bbnet.sparsity.slab import Slab
from bbnet.sparsity.sparsifier import sparsify

digests = {}
for name, (method, budget) in json.loads(sys.argv[1]).items():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    slabs = {"in": [Slab("0", "in", "0"), Slab("2", "in", "2")], "out": [Slab("2", "out", "0")]}
    slabs["both"] = slabs["in"][:1] + slabs["out"]
    sparsifier = sparsify(model, optimizer, slabs[method["side"]], method, budget, total_steps=12)
    for step in range(12):
        model(torch.randn(16, 20)).logsumexp(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    masks = b"".join(mask.contiguous().numpy().tobytes() for mask in sparsifier.masks().values())
    digests[name] = hashlib.sha256(masks).hexdigest()
print(json.dumps(digests))
"""


def test_the_seed_of_a_slab_is_a_checksum_of_seed_and_name(mlp, sparse):
    """Python's own hash of a name would differ from process to process."""
    _, _, sparsifier = sparse(mlp, {"algorithm": "random"}, "0.25", seed=5)
    for name, mask in sparsifier.masks().items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"5/{name}".encode()))
        assert torch.equal(mask, keep_largest_of_all(torch.rand(mask.shape, generator=generator), mask.numel() // 4))


@pytest.mark.thorough
def test_masks_do_not_depend_on_pythonhashseed():
    methods = json.dumps({label(method): (method, budget_of(method)) for method in EVERY})
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", MASKS_OF_EVERY_METHOD, methods],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (json.loads(run.communicate(timeout=120)[0]) for run in runs)
    assert first == second
    # Were the masks of all methods one, equality would show nothing.
    assert len(set(first.values())) > len(EVERY) // 2


def test_shuffled_degrees_depend_on_the_seed_and_the_slab_alone(mlp, sparse, train):
    method = {"algorithm": "budgeted_broadcast", "side": "in", "law": "shuffled"}
    degrees = {}
    for seed, init in product((0, 1), (0, 1)):
        model, optimizer, sparsifier = sparse(mlp, method, "0.50", seed=seed, init=init)
        with torch.no_grad():
            # The same on-rates whatever the weights: the bias decides.
            for layer in (model.first, model.second):
                units = len(layer.bias)
                layer.weight.mul_(1e-6)
                layer.bias.copy_(torch.linspace(-1, 1, units))
        optimizer.param_groups[0]["lr"] = 0.0
        train(mlp, model, optimizer, 5)
        degrees[seed, init] = [mask.sum(1).tolist() for mask in sparsifier.masks().values()]
    assert degrees[0, 0] == degrees[0, 1] != degrees[1, 0] == degrees[1, 1]


class Run:
    """A run of 12 steps, refreshed at 2, 4, 6, 8 and 9 = freeze, that can be saved, and be resumed in a new process."""

    def __init__(self, sparse, train, net, method, rescale):
        self.train, self.net = train, net
        self.make = lambda **options: sparse(
            net, method, budget_of(method), total_steps=12, every=2, rescale=rescale, **options
        )
        self.parts = dict(zip(("model", "optimizer", "sparsifier"), self.make(), strict=True))
        self.saved = {0: self.state()}
        self.go_on(range(1, 13), lambda step: self.saved.update({step: self.state()}))

    def state(self):
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
        return file.getvalue()

    def go_on(self, steps, each=lambda step: None):
        self.train(self.net, self.parts["model"], self.parts["optimizer"], steps, each)

    def resume(self, step, order):
        """Another model is built, and `order` names the states to load and when to call `sparsify`."""
        state = torch.load(io.BytesIO(self.saved[step]), weights_only=True)

        def load(names):
            for name in names:
                self.parts[name].load_state_dict(state[name])

        sparsified = order.index("sparsify")

        def before(model, optimizer, slabs):
            self.parts = {"model": model, "optimizer": optimizer}
            load(order[:sparsified])

        self.parts["sparsifier"] = self.make(init=99, before=before)[2]
        load(order[sparsified + 1 :])
        self.go_on(range(step + 1, 13))


LOADED_AFTER = ("sparsify", "sparsifier", "optimizer", "model")
LOADED_BEFORE = ("model", "optimizer", "sparsify", "sparsifier")
LOAD_ORDERS = [
    order
    for order in permutations(("sparsify", "model", "optimizer", "sparsifier"))
    if order.index("sparsify") < order.index("sparsifier")
]


@pytest.mark.parametrize(
    "net_name, method, rescale",
    [(*case, rescale) for case, rescale in zip(CASES, cycle(["sqrt", "energy", "none"]), strict=False)],
    ids=label,
)
def test_a_run_resumes_to_the_bit_from_every_step(net_name, method, rescale, request, sparse, train, same):
    """Before, at and after a refresh, at the freeze and after it."""
    run = Run(sparse, train, request.getfixturevalue(net_name), method, rescale)
    final = torch.load(io.BytesIO(run.saved[12]))
    for step in (0, 1, 2, 3, 6, 9, 10):
        run.resume(step, LOADED_BEFORE if step // 2 % 2 else LOADED_AFTER)
        assert same(torch.load(io.BytesIO(run.state())), final), f"resumed after step {step}"


@pytest.mark.parametrize("algorithm", ["rigl", "random", "budgeted_broadcast"])
def test_states_may_be_loaded_in_any_order(algorithm, mlp, sparse, train, same):
    run = Run(sparse, train, mlp, {"algorithm": algorithm, "side": "both"}, "sqrt")
    final = torch.load(io.BytesIO(run.saved[12]))
    for order, step in zip(LOAD_ORDERS * (1 + (algorithm == "rigl")), cycle([3, 4, 3]), strict=False):
        run.resume(step, order)
        assert same(torch.load(io.BytesIO(run.state())), final), f"resumed after step {step} by {order}"


def test_a_saved_state_does_not_change_with_further_training(mlp, sparse, train, same):
    model, optimizer, sparsifier = sparse(mlp, "sp_in", "0.25", rescale="sqrt")
    train(mlp, model, optimizer, 10)
    state = sparsifier.state_dict()
    kept = copy.deepcopy(state)
    train(mlp, model, optimizer, range(11, 20))
    assert same(state, kept)


OTHER_RUNS = {
    "budget": ({}, "0.50", {}, "budget is 0.25, here 0.5"),
    "method": ({"algorithm": "magnitude"}, "0.25", {}, "algorithm is BudgetedBroadcast, here Magnitude"),
    "law": ({"law": "uniform"}, "0.25", {}, "parameters is .*log_odds.*here .*uniform"),
    "length": ({}, "0.25", {"total_steps": 60}, "schedule is .*40.*here .*60"),
    "rescale": ({}, "0.25", {"rescale": "sqrt"}, "rescale is none, here sqrt"),
    "seed": ({}, "0.25", {"seed": 1}, "seed is 0, here 1"),
    "gates": ({"algorithm": "topk"}, "0.25", {}, "algorithm is BudgetedBroadcast, here TopK"),
}


@pytest.mark.parametrize("other", OTHER_RUNS)
def test_a_state_of_another_run_is_refused_with_what_differs(other, mlp, sparse, train, same):
    model, optimizer, sparsifier = sparse(mlp, SP_IN, "0.25")
    train(mlp, model, optimizer, 10)
    method, budget, options, message = OTHER_RUNS[other]
    model, _, stranger = sparse(mlp, method if "algorithm" in method else SP_IN | method, budget, **options)
    before = copy.deepcopy((model.state_dict(), stranger.state_dict()))
    with pytest.raises(ValueError, match=f"state belongs to another run: .*{message}"):
        stranger.load_state_dict(sparsifier.state_dict())
    assert same((model.state_dict(), stranger.state_dict()), before)


FIRST_IN, SECOND_OUT = Slab("first", "in", "first"), Slab("second", "out", "first")


@pytest.mark.parametrize(
    "slabs, width, message",
    [
        ([FIRST_IN], 16, "slab second is only in the state"),
        ([SECOND_OUT], 16, "slab first is only in the state"),
        ([FIRST_IN, SECOND_OUT, Slab("third", "in", "third")], 16, "slab third is not in the state"),
        ([SECOND_OUT, FIRST_IN], 16, "slabs are in the order first, second, here second, first"),
        ([FIRST_IN, Slab("second", "in", "second")], 16, "slab second has side, units and shape .*out.*here .*in"),
        ([FIRST_IN, Slab("second", "out", "third")], 16, "slab second has side, units and shape .*first.*here .*third"),
        ([FIRST_IN, SECOND_OUT], 20, r"slab first has side, units and shape .*16, 16.*here .*20, 16.*slab second"),
    ],
    ids=["fewer", "another one", "more", "order", "sides", "units", "width"],
)
@pytest.mark.parametrize("algorithm", ["magnitude", "topk"])
def test_a_state_of_another_layout_is_refused_with_the_names_that_differ(algorithm, slabs, width, message):
    def make(slabs, width=16):
        layers = {"first": nn.Linear(16, width), "second": nn.Linear(width, 16), "third": nn.Linear(16, 16)}
        model = nn.Sequential(OrderedDict(layers))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = {"algorithm": algorithm} | ({"side": "both"} if algorithm == "magnitude" else {})
        return sparsify(model, optimizer, slabs, method, "0.5", total_steps=40)

    mine = make([FIRST_IN, SECOND_OUT])
    with pytest.raises(ValueError, match=f"state belongs to another run: .*{message}"):
        make(slabs, width).load_state_dict(mine.state_dict())


def test_a_budget_written_otherwise_is_the_same_run(mlp, sparse, train):
    model, optimizer, sparsifier = sparse(mlp, "sp_in", "0.50")
    train(mlp, model, optimizer, 3)
    _, _, twin = sparse(mlp, "sp_in", 0.5)
    twin.load_state_dict(sparsifier.state_dict())
    assert twin.step == 3


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_step_after_loading_optimizer_state_finds_none_of_pruned_weights(kind, mlp, sparse, train, over_weight):
    dense = mlp.build()
    warm = OPTIMIZERS[kind](dense.parameters())
    train(mlp, dense, warm, 5)
    model, optimizer, sparsifier = sparse(
        mlp, "sp_in", "0.25", optimizer=lambda model: OPTIMIZERS[kind](model.parameters())
    )
    train(mlp, model, optimizer, 20)
    optimizer.load_state_dict(copy.deepcopy(warm.state_dict()))
    checked = []

    def check(*_):
        for slab in mlp.slabs("in"):
            weight = weight_of(model, slab)
            live = over_weight(sparsifier.masks()[slab.name], weight, slab.side)
            loaded, state = (per_weight_state(optimizer, weight), per_weight_state(warm, weight_of(dense, slab)))
            assert loaded.keys() == state.keys()
            for key, value in loaded.items():
                if key in SQUARES:
                    assert torch.equal(value[live], state[key][live]) and value[~live].max() <= SQUARE_OF_PRUNED
                else:
                    assert torch.equal(value, state[key] * live)
                checked.append(key)

    optimizer.register_step_pre_hook(check)
    train(mlp, model, optimizer, range(20, 21))
    assert checked


def test_the_warm_starts_optimizer_state_is_left_whole_before_the_first_refresh(mlp, sparse, train, same):
    dense = mlp.build()
    warm = OPTIMIZERS["adamw"](dense.parameters())
    train(mlp, dense, warm, 5)
    _, optimizer, _ = sparse(mlp, "sp_in", "0.25")
    optimizer.load_state_dict(warm.state_dict())
    assert same(optimizer.state_dict(), warm.state_dict())


def plainly_trained(net, train, optimizer_of):
    torch.manual_seed(0)
    model = net.build()
    optimizer = optimizer_of(model)
    train(net, model, optimizer, 40)
    return model.state_dict(), optimizer.state_dict()


def test_dense_is_plain_training_to_the_bit(net, sparse, train, adamw, same):
    model, optimizer, sparsifier = sparse(net, "dense", 1)
    train(net, model, optimizer, 40)
    assert same((model.state_dict(), optimizer.state_dict()), plainly_trained(net, train, adamw))
    masks = sparsifier.masks()
    assert {name: mask.shape for name, mask in masks.items()} == {
        slab.name: weight_of(model, slab).shape[:2] for slab in net.slabs("in")
    }
    assert all(bool(mask.all()) for mask in masks.values())


@pytest.mark.parametrize(
    "net_name, method, rescale",
    [(*case, rescale) for case, rescale in zip(CASES[:12], cycle(["sqrt", "energy"]), strict=False)],
    ids=label,
)
def test_budget_one_is_plain_training_to_the_bit(net_name, method, rescale, request, sparse, train, sgd, same):
    net = request.getfixturevalue(net_name)
    model, optimizer, _ = sparse(net, method, "1.00", rescale=rescale, optimizer=sgd)
    train(net, model, optimizer, 40)
    assert same((model.state_dict(), optimizer.state_dict()), plainly_trained(net, train, sgd))


@pytest.mark.parametrize("rescale", ["sqrt", "energy"])
def test_normalised_slabs_are_never_rescaled(rescale, conv_net, train, same):
    states = []
    for kind in ("none", rescale):
        torch.manual_seed(0)
        model = conv_net.build()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        sparsify(model, optimizer, conv_net.slabs("in")[:1], SP_IN, "0.25", total_steps=40, rescale=kind)
        train(conv_net, model, optimizer, 40)
        states.append(model.state_dict())
    assert same(*states)


@pytest.mark.parametrize("net_name, method", CASES[:8:2], ids=label)
def test_masks_apply_to_a_copy_and_to_an_average(net_name, method, request, sparse, train, over_weight, same):
    net = request.getfixturevalue(net_name)
    model, optimizer, sparsifier = sparse(net, method, "0.25")
    train(net, model, optimizer, 20)
    average = torch.optim.swa_utils.AveragedModel(model).module
    duplicate = copy.deepcopy(model)
    train(net, model, optimizer, range(21, 30))
    live = copy.deepcopy(model.state_dict())
    for other in (average, duplicate):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.fill_(2)
        sparsifier.apply_to(other)
        masked = {f"{slab.name}.weight": slab for slab in net.slabs(method["side"])}
        for name, parameter in other.named_parameters():
            expected = torch.full_like(parameter, 2)
            if name in masked:
                slab = masked[name]
                expected = expected * over_weight(sparsifier.masks()[slab.name], parameter, slab.side)
            assert torch.equal(parameter, expected)
    assert same(model.state_dict(), live)


@pytest.mark.parametrize("method, figure", [("sp_in", "on-rates"), ({"algorithm": "wanda"}, "input norms")])
def test_a_first_refresh_without_figures_of_forward_passes_says_why(method, figure, mlp, sparse, train):
    model, optimizer, _ = sparse(mlp, method)
    model.eval()
    with pytest.raises(RuntimeError, match=rf"{figure} of first.*training mode.*compiled.*model\.train"):
        train(mlp, model, optimizer, 1)


def test_validation_in_between_changes_nothing(mlp, sparse, train, same):
    states = []
    for validates in (False, True):
        model, optimizer, sparsifier = sparse(mlp, "sp_in", "0.25")

        def validate(step, model=model, validates=validates):
            if validates:
                model.eval()(mlp.batch(1000 + step)[0])
                model.train()

        train(mlp, model, optimizer, 40, validate)
        states.append((model.state_dict(), sparsifier.state_dict()))
    assert same(*states)


def test_padding_is_no_position():
    def first_refresh(padded):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        sparsifier = sparsify(model, optimizer, [Slab("0", "in", "0")], SP_IN, "0.4", total_steps=40, ramp_end=0)
        x, valid = torch.randn(3, 24, 12), torch.ones(3, 24, dtype=torch.bool)
        if padded:
            x = torch.cat([x, 100 * torch.randn(2, 24, 12)])
            valid = torch.cat([valid, torch.zeros(2, 24, dtype=torch.bool)])
        with sparsifier.valid(valid):
            model(x).square().mean().backward()
        optimizer.step()
        return sparsifier.masks()["0"]

    assert torch.equal(first_refresh(False), first_refresh(True))


@pytest.mark.parametrize("silent, degree", [("smallest", 1), ("literal", 20)])
def test_silent_units_get_the_smallest_degree_unless_read_literally(silent, degree, mlp, sparse, train):
    method = SP_IN | {"silent": silent, "gain": 1.0}
    model, optimizer, sparsifier = sparse(mlp, method, "0.50", ramp_end=0)
    with torch.no_grad():
        model.first.bias[3] = model.first.bias[11] = -100
    # 4,000 rows, of which every fourth is sampled: just enough to call a unit silent.
    many = SimpleNamespace(batch=lambda step: mlp.batch(step, size=4000))
    train(many, model, optimizer, 1)
    assert sparsifier.masks()["first"].sum(1)[[3, 11]].tolist() == [degree] * 2
    row = sparsifier.refreshes[0]
    if silent == "smallest":
        assert (row["silent_units"], row["silent_connections"]) == (2, 2)
        # A unit that was on is silent too if it has been off since the last refresh.
        with torch.no_grad():
            model.first.bias[5] = -100
        train(many, model, optimizer, range(2, 3))
        assert sparsifier.refreshes[2]["silent_units"] == 3


@pytest.mark.parametrize(("k_min", "smallest"), [(0.0, 1), (0.05, 1), (0.2, 4), (0.21, 5)])
def test_no_unit_has_a_degree_below_k_min(k_min, smallest, mlp, sparse, train):
    """Units of `first` have a fan of 20. With a large gain those that are on most often have the smallest degree."""
    model, optimizer, sparsifier = sparse(mlp, SP_IN | {"k_min": k_min, "gain": 1.0}, "0.30", ramp_end=0)
    with torch.no_grad():
        model.first.bias.copy_(torch.linspace(-3, 3, len(model.first.bias)))
    train(mlp, model, optimizer, 1)
    degrees = sparsifier.masks()["first"].sum(1)
    assert int(degrees.min()) == smallest
    assert int(degrees.sum()) == math.floor(0.3 * degrees.numel() * 20 + 0.5)


def test_a_k_min_above_the_budget_is_refused_by_the_name_of_the_slab(mlp, sparse):
    with pytest.raises(ValueError, match="slab first: budget 0.30 cannot be met with fan 20 and degrees from 7 to 20"):
        sparse(mlp, SP_IN | {"k_min": 0.35}, "0.30")


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_on_rates_decay_as_the_method_says(decay, mlp, sparse, train):
    model, optimizer, sparsifier = sparse(mlp, SP_IN | {"decay": decay}, "0.30", every=1)
    shares = []
    model.first.register_forward_hook(lambda module, args, out: shares.append((out > 0).double().mean(0)))
    train(mlp, model, optimizer, 3)
    weights = torch.tensor([decay**2, decay, 1.0], dtype=torch.float64)
    expected = (weights[:, None] * torch.stack(shares)).sum(0) / weights.sum()
    torch.testing.assert_close(sparsifier.on_rates.of(("first",))[0], expected, rtol=1e-12, atol=1e-12)


def test_units_may_come_from_several_modules_joined_in_order():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.often, self.rarely, self.head = (nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 40))

        def forward(self, x):
            return self.head(torch.cat([self.often(x), self.rarely(x)], 1).relu())

    model = Joined()
    with torch.no_grad():
        model.often.bias.fill_(1)
        model.rarely.bias.fill_(-1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    slab = Slab("head", "out", ("often", "rarely"))
    sparsifier = sparsify(model, optimizer, [slab], "sp_out", "0.5", total_steps=40, ramp_end=0)
    model(torch.randn(64, 6)).square().mean().backward()
    optimizer.step()
    degrees = sparsifier.masks()["head"].sum(1)
    assert int(degrees[:8].max()) < int(degrees[8:].min())


@with_shadow
def test_rows_of_the_refresh_log_count_what_changed(shadowed):
    shadow, sparsifier = shadowed("mlp", SP_IN)
    assert len(sparsifier.refreshes) == len(shadow.refreshes)
    for row, refresh in zip(sparsifier.refreshes, shadow.refreshes, strict=True):
        old, new = refresh.old, refresh.new
        assert (row["step"], row["slab"]) == (refresh.step, refresh.slab.name)
        assert row["pruned"] == int((old & ~new).sum())
        assert row["regrown"] == int((new & ~old).sum())
        assert row["churn"] == pytest.approx(int((old != new).sum()) / int(old.sum() + new.sum()))


def test_a_step_that_a_fused_optimizer_skips_does_not_count(mlp, sparse, loss_of):
    model, optimizer, sparsifier = sparse(
        mlp, "sp_in", "0.25", optimizer=lambda model: OPTIMIZERS["adamw_fused"](model.parameters())
    )
    scaler = torch.amp.GradScaler("cpu")
    for step in range(6):
        scaler.scale(loss_of(model, mlp.batch(step))).backward()
        if step in (2, 4):
            model.last.bias.grad.fill_(float("inf"))
        masks = copy_masks(sparsifier)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step in (2, 4):
            assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks().items())
    assert sparsifier.step == 4
    assert [row["step"] for row in sparsifier.refreshes[::2]] == [1, 2, 3, 4]


def test_the_layout_of_a_channels_last_weight_is_kept(conv_net, sparse, train, exact_count):
    built = conv_net.build
    conv_net.build = lambda: built().to(memory_format=torch.channels_last)
    model, optimizer, sparsifier = sparse(conv_net, {"algorithm": "budgeted_broadcast", "side": "both"}, "0.25")
    train(conv_net, model, optimizer, 40)
    assert model.middle.weight.is_contiguous(memory_format=torch.channels_last)
    assert int(sparsifier.masks()["middle"].sum()) == exact_count("0.25", 16, 12)


@pytest.mark.parametrize(
    "dtype, rescale", [(torch.float64, "sqrt"), (torch.bfloat16, "none"), (torch.bfloat16, "energy")]
)
def test_nets_of_other_precision_are_sparsified_too(dtype, rescale, mlp, sparse, train, exact_count):
    built, batch = mlp.build, mlp.batch
    mlp.build = lambda: built().to(dtype)
    mlp.batch = lambda step: (batch(step)[0].to(dtype), batch(step)[1])
    model, optimizer, sparsifier = sparse(mlp, "sp_in", "0.25", rescale=rescale)
    train(mlp, model, optimizer, 40)
    assert int(sparsifier.masks()["first"].sum()) == exact_count("0.25", 16, 20)
    assert model.first.weight.dtype == dtype


FIRST = [Slab("first", "in", "first")]
REFUSED = {
    "unknown label": ({"method": "sp_inn"}, "unknown method 'sp_inn'.*sp_in"),
    "unknown algorithm": ({"method": {"algorithm": "magic"}}, "unknown algorithm 'magic'.*magnitude"),
    "no algorithm": ({"method": {"side": "in"}}, "algorithm"),
    "unknown parameter": ({"method": SP_IN | {"gian": 0.2}}, "gian"),
    "unknown law": ({"method": SP_IN | {"law": "log"}}, "law"),
    "unknown side": ({"method": SP_IN | {"side": "up"}}, "side"),
    "unknown rescale": ({"rescale": "root"}, "rescale 'root'.*none, sqrt, energy"),
    "budget 0": ({"budget": 0}, "budget"),
    "budget 1.2": ({"budget": 1.2}, "budget"),
    "budget nan": ({"budget": float("nan")}, "budget"),
    "infeasible budget": ({"budget": "0.04"}, r"slab first.*0\.05 to 1"),
    "dense with a budget": ({"method": "dense", "budget": 0.5}, "budget"),
    "slab of the other side": ({"method": "sp_out"}, "slab first has side in.*out"),
    "unknown layer": ({"slabs": [Slab("third", "in", "first")]}, "slab third"),
    "weight claimed twice": ({"slabs": [*FIRST, Slab("first", "out", "first")]}, "slab first.*already belongs"),
    "no slabs": ({"slabs": []}, "no slabs"),
    "too few steps": ({"total_steps": 4}, "refreshes"),
    "units of another width": ({"slabs": [Slab("first", "in", "second")]}, "slab first.*second"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_sparsified_is_refused_by_name(case, mlp, train):
    changes, message = REFUSED[case]
    model = mlp.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"slabs": FIRST, "method": "sp_in", "budget": "0.5", "total_steps": 40} | changes
    with pytest.raises(ValueError, match=message):
        sparsify(model, optimizer, options.pop("slabs"), **options)
        train(mlp, model, optimizer, 1)


def test_a_slab_that_the_optimizer_does_not_train_is_refused(mlp):
    model = mlp.build()
    optimizer = torch.optim.SGD(model.second.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="slab first.*not trained by the optimizer"):
        sparsify(model, optimizer, FIRST, "sp_in", "0.5", total_steps=40)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_stops_the_run_by_a_clear_error(bad, mlp, sparse, train):
    model, optimizer, _ = sparse(mlp, "magnitude")
    with torch.no_grad():
        model.first.weight[0, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        train(mlp, model, optimizer, 1)


def test_a_pruned_weight_that_was_overwritten_stops_the_run_by_name(mlp, sparse, train):
    model, optimizer, sparsifier = sparse(mlp, "rigl", "0.25")
    with torch.no_grad():
        model.second.weight[~sparsifier.masks()["second"]] = 0.5
    with pytest.raises(ValueError, match="slab second: a pruned weight is not 0"):
        train(mlp, model, optimizer, 1)


def test_algorithms_are_found_by_module_name():
    masking = {"budgeted_broadcast", "magnitude", "random", "rigl", "set", "wanda"}
    assert masking <= set(MASKING)
    assert {"dense", "topk"} <= set(algorithms.names()) - set(MASKING)
    assert {"dense", "sp_in", "sp_out", "magnitude", "rigl", "topk"} <= set(METHODS)
