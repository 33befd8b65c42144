"""`bbnet.sparsify` in other people's training loops: mixed precision, compilers, ranks, copies, checkpoints.

Run as a script, this file is one of two ranks that train together: see `be_rank`.
"""

import copy
import io
import math
import os
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import cycle, product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from bbnet.sparsity import algorithms, ranks
from bbnet.sparsity.copies import OfCopy
from bbnet.sparsity.hooks import ignore
from bbnet.sparsity.masked_weight import SQUARE_OF_PRUNED, SQUARES
from bbnet.sparsity.slab import Slab
from bbnet.sparsity.sparsifier import METHODS, sparsify

MASKING = ("sp_in", "sp_out", "magnitude", "rigl", "set", "wanda")
LOOKING = ("sp_in", "sp_out", "wanda")  # at forward passes
EVERY = (*MASKING, "topk")
GRADUAL = ("sp_in", "sp_out", "magnitude", "wanda", "topk")
FEW = ("sp_in", "rigl", "topk")  # of each kind one: with on-rates, with dense gradients, with gates
ON_BOTH_NETS = list(zip(EVERY, cycle(["mlp", "conv_net"]), strict=False))


def method_of(name):
    return METHODS.get(name, {"algorithm": name, "side": "in"})


def slabs_of(net, name):
    return net.slabs(method_of(name).get("side", "in"))


def copy_masks(sparsifier):
    return {name: mask.clone() for name, mask in sparsifier.masks().items()}


def averages_of(sparsifier):
    return sparsifier.on_rates if sparsifier.on_rates is not None else sparsifier.input_norms


def pruned_parts(sparsifier, model, over_weight):
    """Of each slab: its weight, and where it is pruned."""
    for masked in sparsifier.weights:
        weight = model.get_submodule(masked.slab.name).weight
        yield weight, ~over_weight(sparsifier.masks()[masked.slab.name], weight, masked.slab.side)


def hooks_left(model, optimizer):
    """How many hooks hang on modules, parameters and the optimiser."""
    on_modules = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    on_weights = sum(
        len(weight._backward_hooks or ()) + len(weight._post_accumulate_grad_hooks or ())
        for weight in model.parameters()
    )
    kinds = (
        "step_pre",
        "step_post",
        "load_state_dict_pre",
        "load_state_dict_post",
        "state_dict_pre",
        "state_dict_post",
    )
    return on_modules + on_weights + sum(len(getattr(optimizer, f"_optimizer_{kind}_hooks")) for kind in kinds)


def through_a_file(whole, **options):
    file = io.BytesIO()
    torch.save(whole, file)
    file.seek(0)
    return torch.load(file, **options)


def sgd_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=0.01, foreach=False),
    "sgd_fused": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01, weight_decay=0.01),
    "adamw_foreach": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw_fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, fused=True),
}
SCALED = ("sgd", "sgd_fused", "adamw_foreach", "adamw_fused")


@pytest.fixture
def precise(mlp):
    """The MLP in float64, where another order of summation decides no mask."""

    def batch(step, size=32):
        x, y = mlp.batch(step, size)
        return x.double(), y

    return SimpleNamespace(build=lambda: mlp.build().double(), slabs=mlp.slabs, batch=batch)


@pytest.fixture
def meets_its_budget(exact_count, over_weight):
    """Whether every slab now has exactly the connections of the schedule's budget, and no others."""

    def check(sparsifier, model):
        budget = sparsifier.schedule.budget_at(sparsifier.step)
        if sparsifier.algorithm.starts_sparse:
            budget = sparsifier.schedule.budget
        counts = {name: exact_count(str(budget), *mask.shape) for name, mask in sparsifier.masks().items()}
        stray = [weight[pruned].any() for weight, pruned in pruned_parts(sparsifier, model, over_weight)]
        return counts == {name: int(mask.sum()) for name, mask in sparsifier.masks().items()} and not any(stray)

    return check


# --- Mixed precision ------------------------------------------------------------------------------------------------


def scaled_step(model, optimizer, scaler, loss, overflow=None, set_to_none=True):
    """A step of a loop with a GradScaler; `overflow` says where its gradient is not finite."""
    scaler.scale(loss * float("inf") if overflow == "everywhere" else loss).backward()
    if overflow == "elsewhere":
        model.last.bias.grad.fill_(float("nan"))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=set_to_none)


@pytest.mark.parametrize(
    "name, kind", [*zip(EVERY, cycle(SCALED), strict=False), ("rigl", "sgd"), ("topk", "sgd_fused")]
)
def test_a_step_that_a_grad_scaler_skips_changes_nothing(name, kind, mlp, sparse, same):
    """Every step is a refresh; a fused optimiser runs its hooks on the skipped ones too."""
    model, optimizer, sparsifier = sparse(
        mlp, method_of(name), "0.25", optimizer=lambda model: OPTIMIZERS[kind](model.parameters()), total_steps=20
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def state():
        return model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()

    applied = 0
    for step in range(20):
        x, y = mlp.batch(step)
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), y)
        before = copy.deepcopy(state())
        overflow = {1: "everywhere", 5: "elsewhere", 6: "everywhere", 18: "elsewhere"}.get(step)
        scaled_step(model, optimizer, scaler, loss, overflow)
        applied += overflow is None
        assert sparsifier.step == applied
        assert same(state(), before) == (overflow is not None)
        assert {row["step"] for row in sparsifier.refreshes} - {0} == (
            set() if name == "topk" else set(range(1, min(applied, 15) + 1))
        )
    assert sparsifier.schedule.freeze_step == 15 < applied


@pytest.mark.parametrize(
    "name, kind, set_to_none, overflow",
    [
        ("rigl", "sgd", True, "everywhere"),
        ("rigl", "sgd_fused", False, "elsewhere"),
        ("rigl", "adamw_foreach", False, "everywhere"),
        ("rigl", "adamw_foreach", False, "elsewhere"),
        ("rigl", "adamw_fused", True, "elsewhere"),
        ("set", "adamw_fused", False, "everywhere"),
        ("magnitude", "sgd", False, "elsewhere"),
    ],
)
def test_nothing_of_a_skipped_step_leaks_into_the_next(name, kind, set_to_none, overflow, mlp, sparse, loss_of, same):
    """A step is skipped ahead of each applied one, refreshes among them; the run without them is the same to the bit.

    Where it overflows elsewhere, in the last bias, RigL's gathered gradient of the skipped step is finite.
    """
    states = []
    for skips in (False, True):
        model, optimizer, sparsifier = sparse(
            mlp, method_of(name), "0.25", every=3, optimizer=lambda model: OPTIMIZERS[kind](model.parameters())
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        for step in range(1, 13):
            # After a first step that is skipped, torch's fused SGD takes an uninitialised momentum for its own.
            if skips and (step > 1 or kind != "sgd_fused"):
                loss = loss_of(model, mlp.batch(1000 + step))
                scaled_step(model, optimizer, scaler, loss, overflow, set_to_none)
            scaled_step(model, optimizer, scaler, loss_of(model, mlp.batch(step)), set_to_none=set_to_none)
        assert sparsifier.step == 12
        states.append((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    assert same(*states)


@pytest.mark.parametrize("name, kind", list(zip(EVERY, cycle(["sgd", "adamw_fused"]), strict=False)))
def test_a_forward_pass_that_overflows_in_half_precision_is_survived(name, kind, mlp, sparse, meets_its_budget):
    model, optimizer, sparsifier = sparse(
        mlp, method_of(name), "0.25", optimizer=lambda model: OPTIMIZERS[kind](model.parameters()), total_steps=20
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(1, 19):
        x, y = mlp.batch(step)
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(x * 1e6 if step == 4 else x)
        assert bool(logits.isfinite().all()) == (step != 4)
        scaled_step(model, optimizer, scaler, nn.functional.cross_entropy(logits.float(), y))
        assert sparsifier.step == step - (step >= 4)
        assert name == "topk" or sparsifier.step == 0 or meets_its_budget(sparsifier, model)


@pytest.mark.parametrize("name, net_name", ON_BOTH_NETS)
def test_budgets_are_exact_under_bfloat16_autocast(name, net_name, request, sparse, meets_its_budget):
    net = request.getfixturevalue(net_name)
    model, optimizer, sparsifier = sparse(net, method_of(name), "0.25", total_steps=20)
    for step in range(1, 19):
        x, y = net.batch(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, y)
        assert logits.dtype == torch.bfloat16
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert name == "topk" or meets_its_budget(sparsifier, model)
    assert sparsifier.step == 18


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_rates_under_autocast_count_what_the_layer_put_out(dtype, mlp, sparse):
    """Batches of 7 are not subsampled."""
    model, optimizer, sparsifier = sparse(mlp, "sp_in", "0.25", every=5)
    outputs = []
    model.second.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    for step in range(1, 3):
        with torch.autocast("cpu", dtype=dtype):
            loss = model(mlp.batch(step, size=7)[0]).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    shares = [(output > 0).double().mean(0) for output in outputs]
    expected = (0.99 * shares[0] + shares[1]) / 1.99
    assert all(output.dtype == dtype for output in outputs)
    torch.testing.assert_close(sparsifier.on_rates.of(("second",))[0], expected, rtol=1e-12, atol=0)


# --- Accumulation, clipping, checkpointing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, parts, set_to_none",
    [(name, *each) for name, each in zip(MASKING, cycle([(2, True), (4, False)]), strict=False)] + [("rigl", 4, True)],
)
def test_micro_batches_train_and_mask_like_their_joint_batch(name, parts, set_to_none, precise, sparse, loss_of):
    runs = []
    for pieces in (1, parts):
        model, optimizer, sparsifier = sparse(precise, method_of(name), "0.25", every=2)
        masks = []
        for step in range(1, 34):
            x, y = precise.batch(step, size=64)
            for piece in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (loss_of(model, piece) / pieces).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
            assert sparsifier.step == step
            masks += sparsifier.masks().values()
        runs.append((masks, model.state_dict()))
    (masks, weights), (masks_of_pieces, weights_of_pieces) = runs
    assert all(torch.equal(mine, other) for mine, other in zip(masks, masks_of_pieces, strict=True))
    assert len({mask.numpy().tobytes() for mask in masks}) > 10, "masks that never move show nothing"
    torch.testing.assert_close(weights_of_pieces, weights, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("parts", [1, 4])
def test_rigl_grows_where_the_gradient_of_all_micro_batches_is_largest(parts, set_to_none, precise, sparse, loss_of):
    """Weights do not move (learning rate 0): all that a refresh drops is worth 0, and what grows is easy to name."""
    model, optimizer, sparsifier = sparse(
        precise, "rigl", "0.25", every=2, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.0)
    )
    for step in range(1, 11):
        before = copy_masks(sparsifier)
        x, y = precise.batch(step, size=64)
        dense = torch.autograd.grad(loss_of(copied := copy.deepcopy(model), (x, y)), [copied.first.weight])[0].abs()
        for piece in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (loss_of(model, piece) / parts).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        mask = sparsifier.masks()["first"]
        if step % 2:
            assert torch.equal(mask, before["first"])
            continue
        grown = math.floor(sparsifier.algorithm.drop_share(step / 30) * 80)
        live = torch.where(before["first"], copied.first.weight.abs(), -1.0).flatten()
        kept = torch.zeros(320, dtype=torch.bool)
        kept[live.sort(descending=True, stable=True).indices[: 80 - grown]] = True
        kept[torch.where(kept, -1.0, dense.flatten()).topk(grown).indices] = True
        assert torch.equal(mask.flatten(), kept)


def test_gradients_that_are_asked_for_beside_do_not_count_in_what_rigl_grows(precise, sparse, loss_of, same):
    """By torch.autograd.grad, as for a penalty or a gradient's norm: before, between and after micro-batches."""
    runs = []
    for asks in (False, True):
        model, optimizer, sparsifier = sparse(precise, "rigl", "0.25", every=2)
        masks = []

        def ask(step, model=model, asks=asks):
            if asks:
                torch.autograd.grad(100 * loss_of(model, precise.batch(1000 + step)), [model.first.weight])

        for step in range(1, 13):
            ask(step)
            for micro in range(2):
                loss_of(model, precise.batch(2 * step + micro)).backward()
                ask(step)
            optimizer.step()
            optimizer.zero_grad()
            masks.append(copy_masks(sparsifier))
        runs.append(masks)
    assert same(*runs)


@pytest.mark.parametrize("name", ["sp_out", "rigl"])
def test_clipping_sees_the_gradient_of_live_weights_alone(name, mlp, sparse, loss_of, over_weight):
    model, optimizer, sparsifier = sparse(mlp, method_of(name), "0.25", every=2)
    pruned_share = []
    for step in range(1, 34):
        copied = copy.deepcopy(model)
        loss_of(copied, mlp.batch(step)).backward()
        full = sum(float(weight.grad.square().sum()) for weight in copied.parameters())
        for weight, pruned in pruned_parts(sparsifier, copied, over_weight):
            weight.grad[pruned] = 0
        live = sum(float(weight.grad.square().sum()) for weight in copied.parameters())
        pruned_share.append(1 - live / full)
        loss_of(model, mlp.batch(step)).backward()
        norm = clip_grad_norm_(model.parameters(), 0.1)
        assert float(norm) == pytest.approx(live**0.5, rel=1e-5)
        optimizer.step()
        optimizer.zero_grad()
    assert max(pruned_share) > 0.05, "nothing to clip away: the case shows nothing"


def test_clipping_does_not_change_where_rigl_grows(precise, sparse, loss_of, same):
    """Weights do not move (learning rate 0), so that masks differ by the gathered gradient alone."""
    clips = {
        "none": lambda weights: None,
        "norm": lambda weights: clip_grad_norm_(weights, 1e-3),
        "value": lambda weights: clip_grad_value_(weights, 1e-4),  # would make most gradients tie
    }
    runs = {}
    for kind, clip in clips.items():
        model, optimizer, sparsifier = sparse(
            precise, "rigl", "0.25", every=2, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.0)
        )
        runs[kind] = [copy_masks(sparsifier)]
        for step in range(1, 13):
            loss_of(model, precise.batch(step)).backward()
            clip(model.parameters())
            optimizer.step()
            optimizer.zero_grad()
            runs[kind].append(copy_masks(sparsifier))
    assert same(runs["norm"], runs["none"])
    assert same(runs["value"], runs["none"])
    assert not same(runs["none"][0], runs["none"][-1])


@pytest.mark.parametrize("name, use_reentrant", [*zip(EVERY, cycle([True, False]), strict=False), ("rigl", True)])
def test_activation_checkpointing_changes_nothing(name, use_reentrant, mlp, sparse, same):
    """It runs every forward pass twice."""
    states = []
    for checkpoints in (False, True):
        model, optimizer, sparsifier = sparse(mlp, method_of(name), "0.25")
        for step in range(1, 21):
            x, y = mlp.batch(step)
            logits = checkpoint(model, x.requires_grad_(), use_reentrant=use_reentrant) if checkpoints else model(x)
            nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append((model.state_dict(), copy_masks(sparsifier)))
    assert same(*states)


@pytest.mark.parametrize("name", ["sp_in", "rigl", "set", "wanda", "topk"])
def test_a_loop_with_everything_resumes_to_the_bit(name, mlp, sparse, meets_its_budget, same):
    """Autocast, GradScaler that skips, accumulation, clipping, a fused optimiser of two groups, a scheduler."""

    def optimizer_of(model):
        biases = [weight for weight in model.parameters() if weight.dim() == 1]
        weights = [weight for weight in model.parameters() if weight.dim() > 1]
        return torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}], lr=0.01, fused=True)

    def start(init):
        model, optimizer, sparsifier = sparse(
            mlp, method_of(name), "0.25", every=3, optimizer=optimizer_of, init=init, rescale="sqrt"
        )
        return {
            "model": model,
            "optimizer": optimizer,
            "sparsifier": sparsifier,
            "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=50),
            "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**12),
        }

    def train(parts, steps):
        model, optimizer, scaler = parts["model"], parts["optimizer"], parts["scaler"]
        for step in steps:
            for micro in range(2):
                x, y = mlp.batch(2 * step + micro)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(x), y) / 2
                scaler.scale(loss * float("inf") if step in (8, 21) and micro else loss).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            parts["scheduler"].step()

    def state(parts):
        return {part: each.state_dict() for part, each in parts.items()}

    whole = start(init=0)
    train(whole, range(20))
    saved = through_a_file(state(whole), weights_only=True)
    train(whole, range(20, 40))
    assert whole["sparsifier"].step == 38
    assert name == "topk" or meets_its_budget(whole["sparsifier"], whole["model"])
    resumed = start(init=7)
    for part, each in resumed.items():
        each.load_state_dict(saved[part])
    train(resumed, range(20, 40))
    assert same(state(resumed), state(whole))


# --- torch.compile --------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    """Compiles by aot_eager, which needs no C++ compiler; from a clean slate, whose counters count this test alone."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield partial(torch.compile, backend="aot_eager")
    torch.compiler.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def recompile_limit():
    """The name in torch's configuration of how often one function may be compiled."""
    return "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # torch 2.6


def loop(net, model, forward, optimizer, steps, each=lambda step: None, size=32):
    """Trains by `forward`; every seventh step is followed by an evaluation."""
    for step in steps:
        x, y = net.batch(step, size)
        nn.functional.cross_entropy(forward(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        each(step)
        if step % 7 == 0:
            model.eval()
            with torch.no_grad():
                torch.testing.assert_close(forward(x), model(x))
            model.train()


@pytest.mark.parametrize("name", ["sp_out", "topk"])
def test_a_compiled_model_sees_hooks_and_gates_that_come_later(name, mlp, compiled):
    """By the eager backend, which only traces. Of 800 positions every fourth counts, always the same ones."""
    model = mlp.build()
    forward = torch.compile(model, backend="eager", fullgraph=True)
    forward(mlp.batch(0, 800)[0])
    slabs = slabs_of(mlp, name)
    sparsifier = sparsify(forward, sgd_of(model), slabs, method_of(name), "0.25", total_steps=40, every=4, ramp_end=0)
    assert list(sparsifier.masks()) == [slab.name for slab in slabs]
    before = graphs()
    # Fails if a new share of the gates recompiles the graph of the old one instead of replacing it.
    with torch._dynamo.config.patch({recompile_limit(): 1 if name == "topk" else 2}):
        for step in range(1, 5):
            x, y = mlp.batch(step, 800)
            nn.functional.cross_entropy(forward(x), y).backward()
            if name == "sp_out" and step == 1:
                on = (nn.functional.linear(x, model.first.weight, model.first.bias)[::4] > 0).sum(0)
                assert sparsifier.on_rates.sums["first"].total.tolist() == on.tolist()
            sparsifier.optimizer.step()
            sparsifier.optimizer.zero_grad()
        assert graphs() - before <= 2
        x = mlp.batch(5, 800)[0]
        torch.testing.assert_close(forward(x), model(x))
        gated = forward(x)
    if name == "topk":
        sparsifier.remove()
        torch.testing.assert_close(forward(x), model.last(model.second(model.first(x).relu()).relu()))
        assert not torch.allclose(forward(x), gated)
    else:
        assert [row["step"] for row in sparsifier.refreshes] == [4, 4]


@pytest.mark.thorough
@pytest.mark.parametrize("name, size", [*product(MASKING, [32]), *product(LOOKING, [7])])
def test_a_compiled_model_is_masked_like_an_eager_one(name, size, precise, sparse, compiled, meets_its_budget):
    """As one graph, hooks and all. Batches of 7 are not subsampled; of 32, a compiled forward always sees the same
    quarter, so that on-rates are others and budgets alone can be compared."""
    runs = []
    for compiles in (False, True):
        model, optimizer, sparsifier = sparse(precise, method_of(name), "0.25", total_steps=100, every=2)
        masks = []

        def look(step, model=model, sparsifier=sparsifier, masks=masks):
            masks.append(copy_masks(sparsifier))
            assert step % 2 or meets_its_budget(sparsifier, model) or step > sparsifier.schedule.freeze_step

        forward = compiled(model, fullgraph=True) if compiles else model
        loop(precise, model, forward, optimizer, range(1, 101), look, size)
        assert meets_its_budget(sparsifier, model)
        runs.append(masks)
    # Training and evaluation; those that look on also the first pass, and both after the freeze.
    assert graphs() <= (5 if name in LOOKING else 2)
    if size == 7 or name not in LOOKING:
        eager, by_graph = runs
        for step, (mine, other) in enumerate(zip(eager, by_graph, strict=True), 1):
            assert all(torch.equal(mask, other[slab]) for slab, mask in mine.items()), f"step {step}"


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["sp_in", "rigl", "wanda", "topk"])
def test_a_forward_pass_compiled_before_sees_the_hooks(name, precise, compiled, meets_its_budget, same):
    """A dense warm-up, compiled; then the same compiled model is sparsified. Eager and compiled end alike."""
    states = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = precise.build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        forward = compiled(model) if compiles else model
        loop(precise, model, forward, optimizer, range(1, 9), size=7)
        warm = graphs()
        sparsifier = sparsify(
            model, optimizer, slabs_of(precise, name), method_of(name), "0.25", total_steps=40, ramp_end=0.05
        )
        loop(precise, model, forward, optimizer, range(9, 45), size=7)
        assert name == "topk" or meets_its_budget(sparsifier, model)
        x = precise.batch(1000)[0]
        inner = []
        model.second.register_forward_hook(lambda module, inputs, output, seen=inner: seen.append(output))
        torch.testing.assert_close(forward(x), model(x))
        states.append((copy_masks(sparsifier), averages_of(sparsifier)))
        if name == "topk":
            assert set((inner[-1] != 0).sum(1).tolist()) == {3}
        if compiles:
            assert warm > 0
    (eager, looked), (by_graph, looked_by_graph) = states
    assert same(by_graph, eager)
    if name in LOOKING:
        names = [each for slab in slabs_of(precise, name) for each in (slab.units if name != "wanda" else (slab.name,))]
        torch.testing.assert_close(looked_by_graph.average(names), looked.average(names), rtol=1e-9, atol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["sp_out", "magnitude", "topk"])
def test_slabs_of_a_compiled_model_are_named_as_in_the_model_inside(name, precise, compiled, meets_its_budget):
    model = precise.build()
    forward = compiled(model)
    optimizer = torch.optim.AdamW(forward.parameters(), lr=0.01)
    slabs = slabs_of(precise, name)
    sparsifier = sparsify(forward, optimizer, slabs, method_of(name), "0.25", total_steps=40, ramp_end=0.05)
    assert list(sparsifier.masks()) == [slab.name for slab in slabs]
    loop(precise, model, forward, optimizer, range(1, 9))
    assert name == "topk" or meets_its_budget(sparsifier, model)
    assert sparsifier.step == 8
    assert name != "topk" or float(sparsifier.gates.share) == 0.25


@pytest.mark.thorough
def test_gates_act_in_a_compiled_model_at_every_share_of_the_ramp(precise, sparse, compiled):
    model, optimizer, sparsifier = sparse(precise, "topk", "0.25")
    forward = compiled(model, fullgraph=True)
    shares = set()

    def look(step):
        x = precise.batch(1000 + step)[0]
        shares.add(sparsifier.gates.share)
        if step % 2 == 0:
            torch.testing.assert_close(forward(x), model(x), rtol=1e-9, atol=1e-12)

    loop(precise, model, forward, optimizer, range(1, 21), look)
    assert len(shares) > getattr(torch._dynamo.config, recompile_limit())
    # A gate of the model's own making: of 16 and 12 units, 4 and 3 pass.
    x = precise.batch(2000)[0]
    for layer in (model.first, model.second):
        x = nn.functional.linear(x.relu() if layer is model.second else x, layer.weight, layer.bias)
        x = torch.where(x >= x.topk(len(layer.bias) // 4, dim=1).values[:, -1:], x, 0.0)
    torch.testing.assert_close(forward(precise.batch(2000)[0]), model.last(x.relu()))


@pytest.mark.thorough
def test_a_gate_that_is_removed_leaves_the_compiled_model_too(precise, sparse, compiled):
    model, optimizer, sparsifier = sparse(precise, "topk", "0.25", ramp_end=0)
    forward = compiled(model)
    loop(precise, model, forward, optimizer, range(1, 4))
    x = precise.batch(1000)[0]
    gated = forward(x)
    sparsifier.remove()
    dense = model.last(model.second(model.first(x).relu()).relu())
    torch.testing.assert_close(forward(x), dense)
    assert not torch.allclose(gated, dense)


@pytest.mark.thorough
def test_padding_is_left_out_in_a_compiled_model_without_another_graph_per_batch(compiled):
    def layers():
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(first=nn.Linear(12, 16), on=nn.ReLU(), last=nn.Linear(16, 12))).double()

    rates = []
    for compiles in (False, True):
        model = layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = sparsify(model, optimizer, [Slab("first", "in", "first")], "sp_in", "0.4", total_steps=40)
        forward = compiled(model, fullgraph=True) if compiles else model
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            valid = torch.rand(5, 7, generator=generator) < 0.6
            x = torch.randn(5, 7, 12, dtype=torch.float64, generator=generator)
            with sparsifier.valid(valid):
                out = forward(torch.where(valid[..., None], x, 50.0))
            out[valid].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        rates.append(sparsifier.on_rates.of(("first",))[0])
    assert graphs() <= 2
    torch.testing.assert_close(rates[1], rates[0], rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_model_compiled_by_inductor_is_sparsified(precise, sparse, compiled, meets_its_budget):
    model, optimizer, sparsifier = sparse(precise, "sp_in", "0.25", total_steps=40)
    forward = torch.compile(model, fullgraph=True)
    for step in range(1, 19):
        x, y = precise.batch(step)
        nn.functional.cross_entropy(forward(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert meets_its_budget(sparsifier, model)
    assert sparsifier.step == 18
    assert graphs() <= 2


# --- Two ranks ------------------------------------------------------------------------------------------------------

STEPS = 16  # ramp to 6, a refresh every second step, freeze at 12
POISON = 1000  # index of a batch that one rank cannot bear


class Ranked(NamedTuple):
    """A training by two ranks. `given`: what `sparsify` got, the wrapper, the model inside, or that before it was
    wrapped. `syncs`: whether the first of two micro-batches does, None for no micro-batches. `poisoned`: ahead of each
    step comes one that overflows on the second rank."""

    method: str
    given: str = "wrapper"
    bucket_view: bool = False
    syncs: bool | None = None
    poisoned: bool = False


RANKED = {
    "sp_in": Ranked("sp_in"),
    "sp_in before wrapping": Ranked("sp_in", given="before", bucket_view=True),
    "sp_out": Ranked("sp_out", given="inside", syncs=False),
    "magnitude": Ranked("magnitude", bucket_view=True),
    "wanda": Ranked("wanda", given="inside", bucket_view=True),
    "set": Ranked("set"),
    "random": Ranked("random", given="inside"),
    "rigl": Ranked("rigl"),
    "rigl no_sync": Ranked("rigl", given="inside", syncs=False),
    "rigl no_sync bucket view": Ranked("rigl", syncs=False, bucket_view=True),
    "rigl synced": Ranked("rigl", syncs=True),
    "rigl synced bucket view": Ranked("rigl", syncs=True, bucket_view=True),
    "rigl poisoned": Ranked("rigl", poisoned=True),
}


def train_ranked(net, case, rank, all_reduce=None):
    """One rank of a training, whose batches are halves; None is a single process that sees whole batches.

    With `all_reduce`, which sums a tensor over ranks, the model is not wrapped and gradients are averaged at each step.
    """
    model = copy.deepcopy(net["model"])
    alone, slabs = rank is None, net["slabs"][method_of(case.method)["side"]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    make = partial(sparsify, optimizer=optimizer, slabs=slabs, method=method_of(case.method), budget="0.25")
    make = partial(make, total_steps=STEPS, every=2)
    sparsifier = make(model) if case.given == "before" else None
    plain = alone or all_reduce is not None
    outer = model if plain else DistributedDataParallel(model, gradient_as_bucket_view=case.bucket_view)
    if sparsifier is None:
        sparsifier = make(outer if case.given == "wrapper" else model)
    scaler = torch.amp.GradScaler("cpu", enabled=case.poisoned, init_scale=2.0**30)
    masks, gradients = [], []

    def step_on(batch, poison=1.0):
        parts = [batch] if alone else list(zip(*(each.chunk(2)[rank].chunk(2) for each in batch), strict=True))
        if not alone and case.syncs is None:
            parts = [tuple(each.chunk(2)[rank] for each in batch)]
        for index, (x, y) in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if plain or last or case.syncs else outer.no_sync():
                scaler.scale(nn.functional.cross_entropy(outer(x), y) / len(parts) * poison).backward()
        for weight in model.parameters() if all_reduce is not None else ():
            all_reduce(weight.grad)
            weight.grad /= 2
        gradients.append([(masked.weight.grad * masked.dead()).abs().sum() for masked in sparsifier.weights])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    for step in range(1, STEPS + 1):
        if case.poisoned and not alone:
            step_on(net["batches"][POISON], float("inf") if rank == 1 else 1.0)
            gradients.pop()
        step_on(net["batches"][step])
        masks.append(copy_masks(sparsifier))
    return {
        "step": sparsifier.step,
        "masks": masks,
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "stray": float(torch.tensor(gradients).sum()),
        "refreshes": sparsifier.refreshes,
    }


def mask_a_wrapped_copy(net):
    """Whether `apply_to` masks a copy under DDP."""
    model = copy.deepcopy(net["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = sparsify(model, optimizer, net["slabs"]["in"], "rigl", "0.25", total_steps=STEPS)
    wrapped = DistributedDataParallel(copy.deepcopy(net["model"]))
    with torch.no_grad():
        for weight in wrapped.parameters():
            weight.fill_(2)
    sparsifier.apply_to(wrapped)
    masks = sparsifier.masks()
    return all(torch.equal(wrapped.module.get_submodule(name).weight, 2.0 * mask) for name, mask in masks.items())


def refuse_sharded(net):
    """What `sparsify` says to models, and to an optimiser, that torch shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    mesh = init_device_mesh("cpu", (2,))
    whole, part = copy.deepcopy(net["model"]), copy.deepcopy(net["model"])
    fully_shard(whole, mesh=mesh)
    fully_shard(part.second, mesh=mesh)
    wrapped = FullyShardedDataParallel(copy.deepcopy(net["model"]), device_id=torch.device("cpu"))
    plain, said = copy.deepcopy(net["model"]), {}
    cases = {
        "fully_shard": (whole, sgd_of(whole)),
        "fully_shard of a layer": (part, sgd_of(part)),
        "wrapper": (wrapped, sgd_of(wrapped)),
        "optimizer": (plain, ZeroRedundancyOptimizer(plain.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)),
    }
    for name, (model, optimizer) in cases.items():
        try:
            sparsify(model, optimizer, net["slabs"]["in"], "sp_in", "0.25", total_steps=STEPS)
        except ValueError as error:
            said[name] = str(error)
    return said


def be_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    net = torch.load(folder / "net.pt", weights_only=False)
    results = {name: train_ranked(net, case, rank) for name, case in RANKED.items()}
    results["apply_to"] = mask_a_wrapped_copy(net)
    results["sharded"] = refuse_sharded(net)
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks_of(tmp_path_factory):
    """The results of both ranks, which run once, for the net of the first that asks."""
    found = []

    def results(net):
        if not found:
            folder = tmp_path_factory.mktemp("ranks")
            torch.save(net, folder / "net.pt")
            loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
            command = [sys.executable, "-W", "ignore", __file__]
            ranks = [
                subprocess.Popen(
                    [*command, str(rank), str(folder)], env=loopback | os.environ, stderr=subprocess.PIPE, text=True
                )
                for rank in range(2)
            ]
            try:
                errors = [rank.communicate(timeout=240)[1] for rank in ranks]
            finally:
                for rank in ranks:
                    rank.kill()
            assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
            found.extend(torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
        return found

    return results


@pytest.fixture
def ranked_net(precise):
    torch.manual_seed(0)
    return {
        "model": precise.build(),
        "slabs": {side: precise.slabs(side) for side in ("in", "out")},
        "batches": {step: precise.batch(step, size=64) for step in [*range(1, STEPS + 1), POISON]},
    }


@pytest.mark.parametrize("name", ["sp_in", "sp_out", "wanda", "random", "rigl", "rigl no_sync"])
def test_two_threads_as_ranks_train_and_mask_like_one_process(name, ranked_net, monkeypatch, same):
    """Threads instead of processes, and gradients averaged by hand instead of by DDP, which other tests use."""
    barrier, rank_of, shared = threading.Barrier(2, timeout=60), threading.local(), [None, None]

    def all_reduce(tensor):
        shared[rank_of.rank] = tensor.clone()
        barrier.wait()
        total = shared[0] + shared[1]
        barrier.wait()
        tensor.copy_(total)

    def train(rank):
        rank_of.rank = rank
        try:
            return train_ranked(ranked_net, RANKED[name], rank, all_reduce)
        except BaseException:
            barrier.abort()
            raise

    alone = train_ranked(ranked_net, RANKED[name], rank=None)
    two = {"is_available": lambda: True, "is_initialized": lambda: True, "get_world_size": lambda: 2}
    monkeypatch.setattr(ranks, "distributed", SimpleNamespace(all_reduce=all_reduce, **two))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(train, range(2))
    assert first["stray"] == second["stray"] == 0
    assert same(first["refreshes"], second["refreshes"])
    for part in ("masks", "weights"):
        assert same(first[part], second[part])
    assert same(first["masks"], alone["masks"])
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-7, atol=1e-10)


@pytest.fixture
def group_of_one(monkeypatch):
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["sp_in before wrapping", "rigl no_sync bucket view", "rigl synced bucket view"])
def test_under_ddp_one_rank_trains_and_masks_as_without(name, ranked_net, group_of_one, same):
    case = RANKED[name]
    whole = {step: tuple(torch.cat([each, each]) for each in batch) for step, batch in ranked_net["batches"].items()}
    wrapped = train_ranked(ranked_net | {"batches": whole}, case, rank=0)
    plain = train_ranked(ranked_net, case, rank=None)
    assert wrapped["stray"] == 0
    assert same(wrapped["masks"], plain["masks"])
    torch.testing.assert_close(wrapped["weights"], plain["weights"], rtol=1e-7, atol=1e-10)
    assert mask_a_wrapped_copy(ranked_net)


@pytest.mark.thorough
@pytest.mark.parametrize("name", RANKED)
def test_ranks_have_the_same_masks_at_every_refresh(name, ranks_of, ranked_net, same, exact_count):
    first, second = (results[name] for results in ranks_of(ranked_net))
    assert first["step"] == second["step"] == STEPS
    assert same(first["masks"], second["masks"])
    assert same(first["refreshes"], second["refreshes"])
    assert {row["step"] for row in first["refreshes"]} - {0} == {2, 4, 6, 8, 10, 12}
    assert all(row["connections"] == exact_count(row["budget"], *first["masks"][0][row["slab"]].shape)
               for row in first["refreshes"])  # fmt: skip
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", RANKED)
def test_gradients_of_pruned_weights_are_zero_on_every_rank(name, ranks_of, ranked_net):
    assert [results[name]["stray"] for results in ranks_of(ranked_net)] == [0.0, 0.0]


@pytest.mark.thorough
@pytest.mark.parametrize("name", RANKED)
def test_two_ranks_train_and_mask_like_one_process_that_sees_the_joint_batch(name, ranks_of, ranked_net, same):
    together, alone = ranks_of(ranked_net)[0][name], train_ranked(ranked_net, RANKED[name], rank=None)
    assert same(together["masks"], alone["masks"])
    assert name == "random" or not same(alone["masks"][3], alone["masks"][-1])
    torch.testing.assert_close(together["weights"], alone["weights"], rtol=1e-7, atol=1e-10)


@pytest.mark.thorough
def test_masks_apply_to_a_copy_under_ddp(ranks_of, ranked_net):
    assert [results["apply_to"] for results in ranks_of(ranked_net)] == [True, True]


@pytest.mark.thorough
def test_a_model_that_torch_shards_is_refused(ranks_of, ranked_net):
    kinds = {"fully_shard": "FSDPModule", "fully_shard of a layer": "FSDPModule", "wrapper": "FullyShardedDataParallel"}
    why = "cannot sparsify a model under {}: no rank holds whole rows of its weights"
    for results in ranks_of(ranked_net):
        assert {case: results["sharded"][case] for case in kinds} == {
            case: why.format(kind) for case, kind in kinds.items()
        }


@pytest.mark.thorough
def test_an_optimizer_that_shards_its_state_is_refused(ranks_of, ranked_net):
    for results in ranks_of(ranked_net):
        assert "under the optimizer ZeroRedundancyOptimizer: " in results["sharded"]["optimizer"]


# --- Optimisers -----------------------------------------------------------------------------------------------------


def groups_of(model):
    """The slabs' weights in two groups, with others; all else in a third."""
    return [
        {"params": [model.first.weight, model.first.bias]},
        {"params": [model.second.weight], "lr": 0.02, "weight_decay": 0.2},
        {"params": [model.second.bias], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    "name, kind", list(zip(["sp_in", "magnitude", "rigl", "set", "wanda"], OPTIMIZERS, strict=True))
)
def test_parameter_groups_may_have_any_layout(name, kind, mlp, train, over_weight, meets_its_budget):
    """Three groups, and a fourth that comes in the middle of the ramp."""
    model = mlp.build()
    optimizer = OPTIMIZERS[kind](groups_of(model))
    sparsifier = sparsify(model, optimizer, mlp.slabs("in"), method_of(name), "0.25", total_steps=40)

    def look(step):
        assert meets_its_budget(sparsifier, model)
        for weight, pruned in pruned_parts(sparsifier, model, over_weight):
            for key, value in optimizer.state[weight].items():
                assert value.shape != weight.shape or key in SQUARES or not value[pruned].any()

    train(mlp, model, optimizer, range(1, 11), look)
    late = model.last.weight.detach().clone()
    optimizer.add_param_group({"params": model.last.parameters()})
    train(mlp, model, optimizer, range(11, 41), look)
    assert sparsifier.step == 40
    assert not torch.equal(model.last.weight, late)
    assert all(bool(weight[~pruned].any()) for weight, pruned in pruned_parts(sparsifier, model, over_weight))


@pytest.mark.parametrize(
    "name, kind", list(zip(["rigl", "set", "wanda", "sp_in", "magnitude"], OPTIMIZERS, strict=True))
)
def test_optimizer_state_may_be_loaded_at_any_time(name, kind, mlp, train, over_weight, meets_its_budget):
    """That of a dense warm-up, before the first step and again in the middle: pruned weights get none of it."""

    def groups(model):
        return [*groups_of(model), {"params": model.last.parameters()}]

    dense = mlp.build()
    warm = OPTIMIZERS[kind](groups(dense))
    train(mlp, dense, warm, 5)
    model = mlp.build()
    optimizer = OPTIMIZERS[kind](groups(model))
    sparsifier = sparsify(model, optimizer, mlp.slabs("in"), method_of(name), "0.25", total_steps=40)
    for steps in (range(1, 15), range(15, 36)):
        optimizer.load_state_dict(copy.deepcopy(warm.state_dict()))
        pruned_of = dict(pruned_parts(sparsifier, model, over_weight))
        checked = []

        def check(*_, pruned_of=pruned_of, checked=checked):
            for (weight, pruned), loaded in zip(
                pruned_of.items(), (dense.first.weight, dense.second.weight), strict=True
            ):
                for key, value in warm.state[loaded].items():
                    if value.shape == weight.shape:
                        assert bool(value[pruned].any()) == bool(pruned.any())
                        held = value.clamp(max=SQUARE_OF_PRUNED) if key in SQUARES else torch.zeros(())
                        assert torch.equal(optimizer.state[weight][key], torch.where(pruned, held, value))
                        checked.append(key)

        hook = optimizer.register_step_pre_hook(check)
        train(mlp, model, optimizer, steps[:1])
        hook.remove()
        assert checked
        train(
            mlp, model, optimizer, steps[1:], lambda step: meets_its_budget(sparsifier, model) or pytest.fail(str(step))
        )


# --- Copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
def test_a_deepcopy_of_a_sparsified_model_is_on_its_own(name, mlp, sparse, train, over_weight, same):
    model, optimizer, sparsifier = sparse(mlp, method_of(name), "0.25")
    train(mlp, model, optimizer, 24)
    copied = copy.deepcopy(model)
    x = mlp.batch(1000)[0]
    outputs = model.eval()(x)
    assert torch.equal(copied.eval()(x), outputs)
    for each in (model, copied):
        each.train()
    before = copy.deepcopy((model.state_dict(), sparsifier.state_dict()))
    train(mlp, copied, torch.optim.AdamW(copied.parameters(), lr=0.05), range(500, 520))
    assert same((model.state_dict(), sparsifier.state_dict()), before)
    if name != "topk":
        moved = [bool(weight[pruned].any()) for weight, pruned in pruned_parts(sparsifier, copied, over_weight)]
        assert moved == [True, True], "pruned weights of the copy are free to move"
    # The original goes on as if there were no copy.
    train(mlp, model, optimizer, range(25, 41))
    alone, optimizer, _ = sparse(mlp, method_of(name), "0.25")
    train(mlp, alone, optimizer, 40)
    assert same(model.state_dict(), alone.state_dict())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("duplicate", [copy.deepcopy, partial(through_a_file, weights_only=False)])
@pytest.mark.parametrize("name, net_name", [("sp_in", "conv_net"), ("rigl", "mlp"), ("topk", "mlp")])
def test_a_copy_or_saved_model_puts_out_the_same_and_can_be_masked_anew(
    name, net_name, duplicate, request, sparse, train, meets_its_budget
):
    net = request.getfixturevalue(net_name)
    model, optimizer, sparsifier = sparse(net, method_of(name), "0.25")
    train(net, model, optimizer, 24)
    copied = duplicate(model)
    watching = [
        hook
        for module in copied.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    assert name == "topk" or all(hook is ignore or isinstance(hook, OfCopy) for hook in watching)
    x = net.batch(1000)[0]
    assert torch.equal(copied.eval()(x), model.eval()(x))
    if name == "topk":  # the copy has gates of its own
        return
    copied.train()
    optimizer = torch.optim.AdamW(copied.parameters(), lr=0.01)
    again = sparsify(copied, optimizer, slabs_of(net, name), method_of(name), "0.5", total_steps=40)
    train(net, copied, optimizer, 20)
    assert (sparsifier.step, again.step) == (24, 20)
    assert meets_its_budget(again, copied)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, partial(through_a_file, weights_only=False)])
def test_gates_of_a_copy_stay_where_they_were(duplicate, mlp, sparse, train):
    """In the middle of the ramp: those of the original go on closing."""
    model, optimizer, sparsifier = sparse(mlp, "topk", "0.25")
    train(mlp, model, optimizer, 6)
    copied = duplicate(model)
    share = float(sparsifier.gates.share)
    train(mlp, model, optimizer, range(7, 31))
    x = mlp.batch(1000)[0]
    open_now = {"original": model.first(x), "copy": copied.first(x)}
    passing = {name: set((output != 0).sum(1).tolist()) for name, output in open_now.items()}
    assert passing == {"original": {4}, "copy": {math.floor(share * 16 + 0.5)}}
    assert passing["copy"] != {4}


AVERAGES = {"swa": {}, "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}}


@pytest.mark.parametrize(
    "name, kind, wrapped", [("sp_in", "swa", False), ("sp_out", "ema", True), ("rigl", "swa", True)]
)
def test_masks_apply_to_a_weight_average(name, kind, wrapped, mlp, sparse, train, over_weight):
    model, optimizer, sparsifier = sparse(mlp, method_of(name), "0.25")
    average = AveragedModel(model, **AVERAGES[kind])
    train(mlp, model, optimizer, 40, lambda step: average.update_parameters(model))
    inside = average.module
    untouched = copy.deepcopy(inside.state_dict())
    assert any(bool(weight[pruned].any()) for weight, pruned in pruned_parts(sparsifier, inside, over_weight))
    sparsifier.apply_to(average if wrapped else inside)
    for (weight, pruned), slab in zip(pruned_parts(sparsifier, inside, over_weight), slabs_of(mlp, name), strict=True):
        assert torch.equal(weight, untouched[f"{slab.name}.weight"].masked_fill(pruned, 0))


@pytest.mark.thorough
def test_masks_apply_to_a_compiled_copy(mlp, sparse, train, over_weight, compiled):
    model, optimizer, sparsifier = sparse(mlp, "rigl", "0.25")
    train(mlp, model, optimizer, 12)
    other = compiled(mlp.build())
    sparsifier.apply_to(other)
    for weight, pruned in pruned_parts(sparsifier, other._orig_mod, over_weight):
        assert not weight[pruned].any()
        assert bool(weight[~pruned].all())


# --- What is refused ------------------------------------------------------------------------------------------------


class FSDPModule:
    """Has only the name of torch's."""


class FullyShardedDataParallel(nn.Module):
    """Has only the name of torch's."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def with_layer(change):
    """A model whose first layer is changed."""

    def build(model):
        change(model.first)
        return model, sgd_of(model)

    return build


def under(wrapper):
    def build(model):
        return wrapper(model), sgd_of(model)

    return build


def trained_by(make):
    return lambda model: (model, make(model))


COMPUTED = r"slab first: its weight is computed from other parameters \(weight_norm, spectral_norm, prune\)"
UNTRAINED = "its weight is not trained by the optimizer"
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no optimizer Muon")
UNFIT = {
    "Muon": (trained_by(lambda model: torch.optim.Muon([w for w in model.parameters() if w.dim() == 2])),
             "under the optimizer Muon: .* moves its pruned weights"),
    "a kind of Muon": (trained_by(lambda model: type("MyMuon", (torch.optim.SGD,), {})(model.parameters())),
                       "under the optimizer MyMuon: .* moves its pruned weights"),
    "LBFGS": (trained_by(lambda model: torch.optim.LBFGS(model.parameters())), "under the optimizer LBFGS: .* line"),
    "FSDP": (under(FullyShardedDataParallel), "under FullyShardedDataParallel: no rank holds whole rows"),
    "FSDP inside": (under(lambda model: nn.Sequential(OrderedDict(body=FullyShardedDataParallel(model)))),
                    "under FullyShardedDataParallel: no rank holds whole rows"),
    "DataParallel": (under(nn.DataParallel), "under DataParallel: its replicas"),
    "fully_shard": (with_layer(lambda layer: setattr(layer, "__class__", type("Sharded", (FSDPModule, nn.Linear), {}))),
                    "under FSDPModule: no rank holds whole rows"),
    "ZeRO": (trained_by(lambda model: type("ZeroRedundancyOptimizer", (torch.optim.SGD,), {})(model.parameters())),
             "under the optimizer ZeroRedundancyOptimizer: its state is held by an inner optimizer"),
    "weight_norm": (with_layer(parametrizations.weight_norm), COMPUTED),
    "old weight_norm": (with_layer(nn.utils.weight_norm), COMPUTED),
    "spectral_norm": (with_layer(parametrizations.spectral_norm), COMPUTED),
    "old spectral_norm": (with_layer(nn.utils.spectral_norm), COMPUTED),
    "orthogonal": (with_layer(parametrizations.orthogonal), COMPUTED),
    "prune": (with_layer(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)), COMPUTED),
    "slab in no group": (trained_by(lambda model: torch.optim.SGD(model.second.parameters(), lr=0.1)),
                         f"slab first: {UNTRAINED}"),
    "slab of another model": (trained_by(lambda model: sgd_of(copy.deepcopy(model))), f"slab first: {UNTRAINED}"),
    "frozen slab": (with_layer(lambda layer: layer.weight.requires_grad_(False)), f"slab first: {UNTRAINED}"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("case", [pytest.param(case, marks=needs_muon if case == "Muon" else ()) for case in UNFIT])
def test_what_cannot_work_is_refused_at_once_in_one_line_and_leaves_nothing_behind(case, mlp):
    build, message = UNFIT[case]
    model, optimizer = build(mlp.build())
    hooks, weights = hooks_left(model, optimizer), copy.deepcopy(model.state_dict())
    for name in FEW:
        with pytest.raises(ValueError, match=message) as refusal:
            sparsify(model, optimizer, mlp.slabs("in"), name, "0.25", total_steps=40)
        assert "\n" not in str(refusal.value)
    assert hooks_left(model, optimizer) == hooks
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    "option, value",
    [
        ("total_steps", 40.0),
        ("total_steps", 1e4),
        ("total_steps", "40"),
        ("total_steps", None),
        ("every", 2.0),
        ("every", "2"),
    ],
)
def test_steps_that_are_no_whole_number_are_refused(option, value, mlp):
    model = mlp.build()
    with pytest.raises(ValueError, match=f"^{option} must be an integer number of steps, got {value!r}$"):
        sparsify(model, sgd_of(model), mlp.slabs("in"), "sp_in", "0.25", **({"total_steps": 40} | {option: value}))


@pytest.mark.parametrize("steps", [np.int64(40), 40])
def test_steps_may_be_any_whole_number(steps, mlp):
    model = mlp.build()
    made = sparsify(model, sgd_of(model), mlp.slabs("in"), "sp_in", "0.25", total_steps=steps, every=steps // 20)
    assert (made.schedule.freeze_step, made.schedule.interval) == (30, 2)


@pytest.mark.parametrize("name", ["sp_out", "rigl"])
def test_a_weight_is_sparsified_once_at_a_time(name, mlp, sparse, train, meets_its_budget):
    model, optimizer, first = sparse(mlp, method_of(name), "0.25")
    train(mlp, model, optimizer, 20)
    hooks, state = hooks_left(model, optimizer), copy.deepcopy(model.state_dict())
    slabs = slabs_of(mlp, name)
    with pytest.raises(ValueError, match=f"slab {slabs[0].name}: its weight is sparsified already; call remove") as no:
        sparsify(model, optimizer, slabs, method_of(name), "0.5", total_steps=40)
    assert "\n" not in str(no.value)
    assert hooks_left(model, optimizer) == hooks
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    first.remove()
    assert hooks_left(model, optimizer) == 0
    second = sparsify(model, optimizer, slabs, method_of(name), "0.5", total_steps=40)
    train(mlp, model, optimizer, range(21, 56))
    assert (first.step, second.step) == (20, 35)
    assert meets_its_budget(second, model)


def test_slabs_ahead_of_one_that_is_taken_stay_free(mlp):
    model = mlp.build()
    optimizer = sgd_of(model)
    _first = sparsify(model, optimizer, mlp.slabs("in")[1:], "magnitude", "0.25", total_steps=40)
    hooks = hooks_left(model, optimizer)
    with pytest.raises(ValueError, match="slab second: its weight is sparsified already"):
        sparsify(model, optimizer, mlp.slabs("in"), "magnitude", "0.25", total_steps=40)
    assert hooks_left(model, optimizer) == hooks
    sparsify(model, optimizer, mlp.slabs("in")[:1], "magnitude", "0.25", total_steps=40)


def test_a_model_whose_first_mask_fails_stays_free(mlp):
    model = mlp.build()
    optimizer = sgd_of(model)
    with torch.no_grad():
        model.second.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="slab second: weights hold NaN"):
        sparsify(model, optimizer, mlp.slabs("in"), method_of("set"), "0.25", total_steps=40)
    assert hooks_left(model, optimizer) == 0
    with torch.no_grad():
        model.second.weight[0, 0] = 0.5
    sparsify(model, optimizer, mlp.slabs("in"), method_of("set"), "0.25", total_steps=40)


def test_units_are_gated_once_at_a_time(mlp, sparse, train):
    model, optimizer, first = sparse(mlp, "topk", "0.25")
    hooks = hooks_left(model, optimizer)
    for slabs in (mlp.slabs("in"), mlp.slabs("in")[1:]):
        with pytest.raises(ValueError, match=f"units at {slabs[0].name} are gated already; call remove") as refusal:
            sparsify(model, optimizer, slabs, "topk", "0.5", total_steps=40)
        assert "\n" not in str(refusal.value)
        assert hooks_left(model, optimizer) == hooks
    first.remove()
    assert hooks_left(model, optimizer) == 0
    second = sparsify(model, optimizer, mlp.slabs("in"), "topk", "0.5", total_steps=40, ramp_end=0)
    train(mlp, model, optimizer, 1)
    assert (first.step, second.step) == (0, 1)
    assert set((model.first(mlp.batch(1)[0]) != 0).sum(1).tolist()) == {8}


class Restless(torch.optim.Optimizer):
    """Moves every weight a little, whatever its gradient."""

    def __init__(self, weights):
        super().__init__(weights, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.sub_(group["lr"] * weight.grad + 1e-4)


@pytest.mark.parametrize("name", ["sp_out", "rigl"])
def test_an_optimizer_that_moves_pruned_weights_is_found_out_at_the_next_refresh(name, mlp, sparse, train):
    model, optimizer, sparsifier = sparse(
        mlp, method_of(name), "0.25", every=3, optimizer=lambda model: Restless(model.parameters())
    )
    # A gradual method prunes at its first refresh; the others have begun.
    late = 3 if name in GRADUAL else 0
    train(mlp, model, optimizer, late + 2)
    slab = slabs_of(mlp, name)[0].name
    with pytest.raises(
        ValueError, match=f"slab {slab}: a pruned weight is not 0. .* the optimiser moves weights"
    ) as no:
        train(mlp, model, optimizer, range(late + 3, late + 4))
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("name", ["sp_in", "set"])
def test_a_pruned_weight_that_is_overwritten_is_found_out_at_the_next_refresh(name, mlp, sparse, train, over_weight):
    model, optimizer, sparsifier = sparse(mlp, method_of(name), "0.25", every=3)
    train(mlp, model, optimizer, 7)
    weight, pruned = list(pruned_parts(sparsifier, model, over_weight))[1]
    with torch.no_grad():
        weight[tuple(pruned.nonzero()[-1])] = 1e-20
    train(mlp, model, optimizer, range(8, 9))
    with pytest.raises(ValueError, match=f"slab {slabs_of(mlp, name)[1].name}: a pruned weight is not 0"):
        train(mlp, model, optimizer, range(9, 10))


@pytest.mark.parametrize("name, value", [("sp_in", float("inf")), ("sp_out", float("nan")), ("rigl", float("inf"))])
def test_a_live_weight_that_is_not_finite_is_not_taken_for_a_pruned_one(name, value, mlp, sparse, train, over_weight):
    model, optimizer, sparsifier = sparse(mlp, method_of(name), "0.25", every=3)
    train(mlp, model, optimizer, 8)
    weight, pruned = next(pruned_parts(sparsifier, model, over_weight))
    with torch.no_grad():
        weight[tuple((~pruned).nonzero()[0])] = value
    optimizer.param_groups[0]["lr"] = 0.0
    slab = slabs_of(mlp, name)[0].name
    with pytest.raises(ValueError, match=f"^slab {slab}: weights hold NaN or infinite values$"):
        optimizer.step()


class Timed(torch.optim.AdamW):
    """Its step calls that of its base class, as people do; torch hooks both."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("name", FEW)
def test_a_step_that_calls_that_of_its_base_class_counts_once(name, mlp, sparse, train, same):
    torch.optim.AdamW(mlp.build().parameters())  # torch hooks the step of a class at its first instance
    states = []
    for kind in (torch.optim.AdamW, Timed):
        model, optimizer, sparsifier = sparse(
            mlp, method_of(name), "0.25", optimizer=lambda model, kind=kind: kind(model.parameters(), lr=0.01)
        )
        train(mlp, model, optimizer, 12)
        assert sparsifier.step == 12
        states.append((model.state_dict(), sparsifier.state_dict()))
    assert same(*states)


# --- State ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, net_name", ON_BOTH_NETS)
def test_a_state_survives_a_file_and_a_load_to_the_bit(name, net_name, request, sparse, train, same):
    net = request.getfixturevalue(net_name)
    model, optimizer, sparsifier = sparse(net, method_of(name), "0.25", rescale="energy")
    train(net, model, optimizer, 17)
    state = through_a_file(sparsifier.state_dict(), weights_only=True)
    assert same(state, sparsifier.state_dict())
    other, _, twin = sparse(net, method_of(name), "0.25", rescale="energy", init=9)
    assert not same(twin.state_dict(), state)
    other.load_state_dict(model.state_dict())
    twin.load_state_dict(state)
    assert same(twin.state_dict(), sparsifier.state_dict())
    assert same(twin.masks(), sparsifier.masks())
    assert twin.refreshes == sparsifier.refreshes
    assert torch.equal(other.eval()(net.batch(1)[0]), model.eval()(net.batch(1)[0]))


@pytest.mark.parametrize("name", ["sp_in", "rigl"])
def test_masks_are_stored_at_one_bit_per_connection(name, net, sparse, train):
    model, optimizer, sparsifier = sparse(net, method_of(name), "0.25")
    train(net, model, optimizer, 20)
    state = sparsifier.state_dict()
    for slab, mask in sparsifier.masks().items():
        packed = state["masks"][slab]
        bits = "".join(str(int(bit)) for bit in mask.flatten().tolist())
        by_hand = int(bits.ljust(8 * math.ceil(len(bits) / 8), "0"), 2).to_bytes(math.ceil(len(bits) / 8), "big")
        assert packed.dtype == torch.uint8
        assert packed.numpy().tobytes() == by_hand
        assert packed.untyped_storage().nbytes() == math.ceil(mask.numel() / 8)
        assert state["shapes"][slab] == str(list(mask.shape))


def stacked(**widths):
    """A model of linear layers by name, from 16 inputs on, with one slab per layer but the last."""
    layers, inputs = OrderedDict(), 16
    for name, units in widths.items():
        layers[name] = nn.Linear(inputs, units)
        inputs = units
    return nn.Sequential(layers), [Slab(name, "in", name) for name in list(widths)[:-1]]


OTHER_LAYOUTS = {
    "renamed layers": (stacked(a=16, c=12, out=8), ["slab b is only in the state", "slab c is not in the state"], "a"),
    "another layer": (stacked(a=16, b=12, c=12, out=8), ["slab c is not in the state"], "ab"),
    "a layer less": (stacked(a=16, out=8), ["slab b is only in the state"], "a"),
    "another width": (stacked(a=16, b=10, out=8), [r"slab b has .*\[12, 16\].*\[10, 16\]"], "a"),
    "another depth of it": (stacked(a=18, b=12, out=8), [r"slab a has .*\[16, 16\]", r"slab b has .*\[12, 18\]"], ""),
}


@pytest.mark.parametrize("case", OTHER_LAYOUTS)
@pytest.mark.parametrize("name", FEW)
def test_a_state_of_another_model_is_refused_by_the_names_that_differ(name, case, same):
    def make(model, slabs):
        return sparsify(model, sgd_of(model), slabs, method_of(name), "0.5", total_steps=40)

    (stranger, its_slabs), (model, slabs), differ, alike = (stacked(a=16, b=12, out=8), *OTHER_LAYOUTS[case])
    trained = make(stranger, its_slabs)
    for _ in range(3):
        stranger(torch.randn(32, 16)).square().mean().backward()
        trained.optimizer.step()
    model = copy.deepcopy(model)
    mine = make(model, slabs)
    before = copy.deepcopy((model.state_dict(), mine.state_dict()))
    with pytest.raises(ValueError, match="the sparsifier's state belongs to another run: ") as refusal:
        mine.load_state_dict(trained.state_dict())
    for each in differ:
        assert refusal.match(each)
    assert not any(f"slab {other} " in str(refusal.value) for other in alike)
    assert "\n" not in str(refusal.value)
    assert same((model.state_dict(), mine.state_dict()), before), "refused, and yet taken in part"


def test_slabs_that_differ_in_side_or_units_are_named_too():
    def make(slabs):
        model, _ = stacked(a=16, b=16, c=16, out=16)
        method = {"algorithm": "magnitude", "side": "both"}
        return sparsify(model, sgd_of(model), slabs, method, "0.5", total_steps=40)

    state = make([Slab("a", "in", "a"), Slab("b", "in", "b"), Slab("c", "in", "c")]).state_dict()
    other = make([Slab("a", "in", "a"), Slab("b", "out", "a"), Slab("c", "in", "b")])
    with pytest.raises(ValueError) as refusal:
        other.load_state_dict(state)
    assert refusal.match("slab b has side, units and shape .*'in'.*'out'")
    assert refusal.match("slab c has side, units and shape .*'c'.*'b'")
    assert "slab a" not in str(refusal.value)


def test_a_state_of_something_else_is_refused(mlp, sparse):
    model, _, sparsifier = sparse(mlp, "sp_in")
    with pytest.raises(ValueError, match="not a state of a sparsifier: its keys are first.weight, ") as refusal:
        sparsifier.load_state_dict(model.state_dict())
    assert "\n" not in str(refusal.value)


# --- Padding, and the end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LOOKING, "rigl"])
def test_padding_changes_neither_masks_nor_weights(name, same):
    """Sequences with two that are padding altogether, and positions that are."""

    def train(padded):
        torch.manual_seed(0)
        layers = OrderedDict(first=nn.Linear(12, 16), on=nn.ReLU(), second=nn.Linear(16, 12), on2=nn.ReLU())
        model = nn.Sequential(layers, ).double().append(nn.Linear(12, 8).double())  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        side = method_of(name)["side"]
        slabs = [Slab("first", "in", "first")] if side == "in" else []
        slabs += [Slab("second", side, "second" if side == "in" else "first")]
        sparsifier = sparsify(model, optimizer, slabs, method_of(name), "0.4", total_steps=40)
        generator, masks = torch.Generator().manual_seed(0), []
        for _ in range(36):
            x = torch.randn(6, 24, 12, dtype=torch.float64, generator=generator)
            valid = torch.rand(6, 24, generator=generator) < 0.7
            if padded:
                x = torch.cat([torch.where(valid[..., None], x, 300.0), torch.full((2, 24, 12), -300.0).double()])
                valid = torch.cat([valid, torch.zeros(2, 24, dtype=torch.bool)])
            with sparsifier.valid(valid):
                out = model(x)
            out[valid].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            masks.append(copy_masks(sparsifier))
        return masks, model.state_dict(), averages_of(sparsifier), slabs

    masks, weights, averages, slabs = train(padded=False)
    masks_padded, weights_padded, averages_padded, _ = train(padded=True)
    assert same(masks_padded, masks)
    torch.testing.assert_close(weights_padded, weights, rtol=1e-9, atol=1e-12)
    if name in LOOKING:
        names = [each for slab in slabs for each in (slab.units if name != "wanda" else (slab.name,))]
        torch.testing.assert_close(averages_padded.average(names), averages.average(names), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", LOOKING)
def test_positions_that_fit_no_output_are_refused_by_name(name, mlp, sparse):
    model, _, sparsifier = sparse(mlp, method_of(name))
    why = r"valid positions of shape \[31\] do not match .* first, \[32\]"
    with pytest.raises(ValueError, match=why) as refusal, sparsifier.valid(torch.ones(31, dtype=torch.bool)):
        model(mlp.batch(1)[0])
    assert "\n" not in str(refusal.value)
    model(mlp.batch(1)[0])


@pytest.mark.parametrize("name, net_name", ON_BOTH_NETS)
def test_after_removal_training_is_plain_again(name, net_name, request, sparse, train, over_weight, same):
    """Like that of a copy of model and optimiser that was never sparsified."""
    net = request.getfixturevalue(net_name)
    model, optimizer, sparsifier = sparse(net, method_of(name), "0.25")
    train(net, model, optimizer, 20)
    plain = net.build()
    plain.load_state_dict(model.state_dict())
    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)
    plain_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masks = copy_masks(sparsifier)
    sparsifier.remove()
    assert hooks_left(model, optimizer) == 0
    assert same(model.state_dict(), plain.state_dict())
    train(net, model, optimizer, range(21, 31))
    train(net, plain, plain_optimizer, range(21, 31))
    assert same((model.state_dict(), optimizer.state_dict()), (plain.state_dict(), plain_optimizer.state_dict()))
    assert sparsifier.step == 20
    assert same(copy_masks(sparsifier), masks)
    if name != "topk":
        moved = [bool(weight[pruned].any()) for weight, pruned in pruned_parts(sparsifier, model, over_weight)]
        assert moved == [True, True], "pruned weights are free to move"


def test_removal_may_be_repeated(mlp, sparse):
    model, optimizer, sparsifier = sparse(mlp, "sp_in")
    sparsifier.remove()
    sparsifier.remove()
    assert hooks_left(model, optimizer) == 0


if __name__ == "__main__":
    be_rank(int(sys.argv[1]), Path(sys.argv[2]))


# --- Found by a reader of the code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in algorithms.names() if name not in ("dense", "sparsegpt")])
def test_an_algorithm_may_be_given_by_its_name(name, mlp):
    model = mlp.build()
    sparsifier = sparsify(model, sgd_of(model), mlp.slabs("in"), name, "0.25", total_steps=40)
    assert type(sparsifier.algorithm) is type(algorithms.make(name))


def test_a_layer_that_a_refresh_step_did_not_use_keeps_its_connections_under_rigl():
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(20, 16), "rested": nn.Linear(20, 16)})
    slabs = [Slab(name, "in", name) for name in model]
    sparsifier = sparsify(model, sgd_of(model), slabs, "rigl", "0.25", total_steps=40, every=4)
    optimizer = sparsifier.optimizer
    before = copy_masks(sparsifier)
    for _ in range(4):
        model["used"](torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(sparsifier.masks()["rested"], before["rested"])
    assert not torch.equal(sparsifier.masks()["used"], before["used"])


def test_pruned_weights_that_are_overwritten_after_the_freeze_are_found_out(mlp, sparse, train):
    model, optimizer, sparsifier = sparse(mlp, "sp_in", "0.25", every=3)
    dense = copy.deepcopy(model.state_dict())
    train(mlp, model, optimizer, 31)
    model.load_state_dict(dense)
    with pytest.raises(ValueError, match="slab first: a pruned weight is not 0"):
        train(mlp, model, optimizer, range(32, 34))


def test_gates_are_not_applied_to_a_copy_made_before(mlp):
    model = mlp.build()
    early = copy.deepcopy(model)
    sparsifier = sparsify(model, sgd_of(model), mlp.slabs("in"), "topk", "0.25", total_steps=40)
    with pytest.raises(ValueError, match="no gates; make copies and averages after"):
        sparsifier.apply_to(early)
    sparsifier.apply_to(copy.deepcopy(model))


@pytest.mark.parametrize("slabs", [["first"], [None]])
def test_what_is_no_slab_is_refused(slabs, mlp):
    model = mlp.build()
    with pytest.raises(ValueError, match=r"slabs must be bbnet\.Slab objects, as bbnet\.find_slabs returns them, got"):
        sparsify(model, sgd_of(model), slabs, "sp_in", "0.25", total_steps=40)
