"""Each algorithm against a literal reading of its source, written as plain loops."""

import copy
import math
from collections import OrderedDict
from decimal import Decimal
from itertools import cycle, pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, prune

from bbnet.sparsity import algorithms
from bbnet.sparsity.algorithms import SlabView
from bbnet.sparsity.slab import Slab
from bbnet.sparsity.sparsifier import sparsify

MASKING = [name for name in algorithms.names() if algorithms.make(name).masks_weights]


def norms_of(tensor, side):
    """[units][fan], the l2 norm over the taps of each connection of a weight [out, in, *taps]."""
    outputs, inputs = tensor.shape[:2]
    taps = tensor.detach().reshape(outputs, inputs, -1).tolist()
    by_output = [[math.hypot(*taps[output][read]) for read in range(inputs)] for output in range(outputs)]
    return by_output if side == "in" else [list(column) for column in zip(*by_output, strict=True)]


def places_of(*masks):
    """Where masks are true: (slab, unit, other)."""
    return {(slab, *place) for slab, mask in enumerate(masks) for place in map(tuple, mask.nonzero().tolist())}


def largest(count, among, scores):
    """The `count` places of `among` with the largest of several slabs' scores, ties to the earlier."""
    return set(sorted(sorted(among), key=lambda place: -scores[place[0]][place[1]][place[2]])[:count])


def everywhere(*masks):
    return places_of(*(torch.ones_like(mask) for mask in masks))


class OneLayer(nn.Module):
    """A weight under a linear loss: its dense gradient is what `push` is given, to the bit."""

    def __init__(self, weight):
        super().__init__()
        self.layer = nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype)
        with torch.no_grad():
            self.layer.weight.copy_(weight)

    def push(self, gradient):
        (self.layer.weight * gradient).sum().backward()


@pytest.fixture
def one_layer():
    """A `OneLayer` under SGD with momentum that moves no weight; refreshes at 3, 6, 9 and 12 = freeze, of 16 steps."""

    def make(weight, algorithm, budget="0.5", *, side="in", rescale="none", seed=0, total_steps=16, every=3, **method):
        model = OneLayer(weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
        slabs, method = [Slab("layer", side, "layer")], {"algorithm": algorithm, "side": side} | method
        sparsifier = sparsify(
            model, optimizer, slabs, method, budget, total_steps=total_steps, every=every, rescale=rescale, seed=seed
        )

        def step(*gradients):
            """One optimiser step after a micro-batch for each gradient; gradients that are not finite move nothing."""
            for gradient in gradients:
                model.push(gradient)
            model.layer.weight.grad.nan_to_num_(0, 0, 0)
            optimizer.step()
            optimizer.zero_grad()
            return sparsifier.masks()["layer"].clone()

        return SimpleNamespace(
            model=model, weight=model.layer.weight, optimizer=optimizer, sparsifier=sparsifier, step=step
        )

    return make


def slab_view(scores, **figures):
    """What an algorithm sees of one slab; by default at a first refresh, with everything live."""
    defaults = {"mask": torch.ones_like(scores, dtype=torch.bool), "scale": torch.ones(len(scores)), "seed": 0}
    defaults |= {"step": 1, "progress": 0.0, "name": "slab", "side": "in", "taps": ()}
    return replaced(SlabView(compute_scores=lambda: scores, **defaults), **figures)


def replaced(view, **figures):
    computed = {f"compute_{name}": figures.pop(name) for name in ("scores", "gradient") if name in figures}
    functions = {name: (lambda value=value: value) for name, value in computed.items()}
    return SlabView(**(vars(view) | figures | functions))


# --- RigL -------------------------------------------------------------------------------------------------------------

# 20 connections at b = .5: the ten integers are the largest, so they are live at first, and the others are pruned.
TOY = torch.tensor(
    [[9.0, -8.0, 1.0, 0.1, 0.2], [7.0, 2.0, 0.3, 0.4, -6.0], [5.0, 0.5, 0.6, -3.0, 0.7], [-4.0, 10.0, 0.8, 0.9, -0.05]]
)
INTEGERS = TOY.frac() == 0


def test_rigl_on_a_toy_problem_worked_by_hand_that_drops_30_percent(one_layer):
    """At step 3, a quarter of the way to the freeze, the drop share is .36 / 2 * (1 + cos(pi / 4)) = .307.

    floor(.307 * 10) = 3 drop: weights 1, 2 and -3, at (0, 2), (1, 1) and (2, 3). Of the 13 then pruned the largest
    gradients are 50 at (0, 2), just dropped, -40 at (3, 2) and 30 at (1, 3): they grow. As in the authors' code,
    (0, 2) never went: it keeps its weight 1 and its momentum. (3, 2) and (1, 3) start at 0 without momentum, whatever
    their weights were once. Larger gradients of live connections, 99, play no part.
    """
    toy = one_layer(TOY, "rigl", drop_fraction=0.36)
    start = toy.sparsifier.masks()["layer"].clone()
    assert torch.equal(start, INTEGERS)
    gradient = torch.tensor(
        [
            [99.0, 99.0, 50.0, 1.0, 2.0],
            [99.0, 3.0, -4.0, 30.0, 99.0],
            [99.0, 5.0, 6.0, -7.0, -29.0],
            [99.0, 99.0, -40.0, 8.0, 9.0],
        ]
    )
    for step in (1, 2):
        assert torch.equal(toy.step(torch.ones(4, 5)), start), f"step {step} is no refresh"
    mask = toy.step(gradient)
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert toy.weight.tolist() == [[9, -8, 1, 0, 0], [7, 0, 0, 0, -6], [5, 0, 0, 0, 0], [-4, 10, 0, 0, 0]]
    # Momentum after gradients 1, 1 and g is .75 + g.
    momentum = torch.where(start & mask, 0.75 + gradient, 0.0)
    assert torch.equal(toy.optimizer.state[toy.weight]["momentum_buffer"], momentum)
    row = toy.sparsifier.refreshes[-1]
    assert (row["step"], row["connections"], row["pruned"], row["regrown"]) == (3, 10, 2, 2)


def test_rigl_on_a_toy_problem_worked_by_hand_that_drops_50_percent(one_layer):
    """At step 3 the drop share is .6 / 2 * (1 + cos(pi / 4)) = .512: floor(5.12) = 5 of 10 drop.

    They are 1 to 5, at (0, 2), (1, 1), (2, 3), (3, 0) and (2, 0), and row 2 is empty then. Of the 15 then pruned grow
    those with gradients 23 at (3, 4), -22 at (0, 4), 21 at (0, 3), 20 at (2, 0), just dropped, and -19 at (2, 4).
    """
    toy = one_layer(TOY, "rigl", drop_fraction=0.6)
    gradient = torch.tensor(
        [
            [0.0, 0.0, 1.0, 21.0, -22.0],
            [0.0, 2.0, 3.0, 4.0, 0.0],
            [20.0, 5.0, 6.0, 7.0, -19.0],
            [8.0, 0.0, 9.0, 10.0, 23.0],
        ]
    )
    for each in (gradient * 0, gradient * 0, gradient):
        mask = toy.step(each)
    assert mask.int().tolist() == [[1, 1, 0, 1, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [0, 1, 0, 0, 1]]
    assert toy.weight.tolist() == [[9, -8, 0, 0, 0], [7, 0, 0, 0, -6], [5, 0, 0, 0, 0], [0, 10, 0, 0, 0]]
    assert toy.optimizer.state[toy.weight]["momentum_buffer"].nonzero().tolist() == [[2, 0]]


def literal_rigl(old, magnitudes, gradients, share):
    """One slab's update in Evci et al.'s code: both of its top-k are stable sorts."""
    drops = int(share * int(old.sum()))
    kept = largest(int(old.sum()) - drops, places_of(old), [magnitudes])
    return kept | largest(drops, everywhere(old) - kept, [gradients])


def dense_gradients(model, loss_of, batches):
    """By parameter, summed over batches, without bbnet: of a twin that shares nothing but the values."""
    twin = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for batch in batches:
        loss_of(lambda x: functional_call(model, twin | buffers, (x,)), batch).backward()
    return {name: weight.grad for name, weight in twin.items()}


def in_double(net):
    """A net in float64, where the order in which a reference adds decides no rank."""
    build, batch = net.build, net.batch
    return SimpleNamespace(
        build=lambda: build().double(), batch=lambda step: (batch(step)[0].double(), batch(step)[1]), slabs=net.slabs
    )


@pytest.mark.parametrize(
    "net_name, side, drop_fraction, distribution",
    [
        ("mlp", "in", 0.3, "uniform"),
        ("mlp", "both", 0.9, "erk"),
        ("conv_net", "out", 0.9, "erk"),
        ("conv_net", "both", 0.3, "uniform"),
    ],
)
def test_rigl_equals_a_literal_reading(net_name, side, drop_fraction, distribution, request, sparse, loss_of):
    """At every refresh, of weights after the step and dense gradients of its micro-batches, which are then clipped."""
    net, stepped = in_double(request.getfixturevalue(net_name)), {}

    def before(model, optimizer, slabs):
        weights = dict(model.named_parameters())
        optimizer.register_step_post_hook(
            lambda *_: stepped.update({name: weight.detach().clone() for name, weight in weights.items()})
        )

    method = {"algorithm": "rigl", "side": side, "drop_fraction": drop_fraction, "distribution": distribution}
    model, optimizer, sparsifier = sparse(net, method, "0.3", total_steps=24, every=3, before=before)
    grown = 0
    for step in range(1, 19):
        old = {name: mask.clone() for name, mask in sparsifier.masks().items()}
        batches = [net.batch(10 * step + micro) for micro in range(3)]
        gradients = dense_gradients(model, loss_of, batches)
        for batch in batches:
            loss_of(model, batch).backward()
        clip_grad_value_(model.parameters(), 1e-3)
        clip_grad_norm_(model.parameters(), 1e-2)
        optimizer.step()
        optimizer.zero_grad()
        share = drop_fraction / 2 * (1 + math.cos(math.pi * step / 18)) if step % 3 == 0 else 0
        for slab in net.slabs(side):
            magnitudes, growth = (norms_of(values[f"{slab.name}.weight"], slab.side) for values in (stepped, gradients))
            found = places_of(sparsifier.masks()[slab.name])
            assert found == literal_rigl(old[slab.name], magnitudes, growth, share), f"{slab.name} at step {step}"
            grown += len(found - places_of(old[slab.name]))
    assert grown > 20


@pytest.mark.parametrize("algorithm", ["rigl", "set"])
def test_the_live_count_stays_and_the_drop_share_falls_along_a_cosine_to_zero(algorithm, one_layer):
    """Under RigL what is dropped has no gradient here, so that it stays away and every drop shows; SET may draw it."""
    weight = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    run = one_layer(weight, algorithm, "0.3", total_steps=40, every=1)
    mask = run.sparsifier.masks()["layer"].clone()
    drops, pruned = [], []
    for step in range(1, 41):
        gradient = torch.rand(30, 40, generator=torch.Generator().manual_seed(step)) + 1
        new = run.step(gradient * ~mask)
        drops.append(math.floor(0.15 * (1 + math.cos(math.pi * step / 30)) * 360) if step < 30 else 0)
        pruned.append(int((mask & ~new).sum()))
        assert int(new.sum()) == 360
        mask = new
    assert drops[0] == 107
    if algorithm == "rigl":
        assert pruned == drops
    else:
        assert all(some <= most for some, most in zip(pruned, drops, strict=True))
        assert sum(pruned) > 0.85 * sum(drops)


@pytest.fixture
def moved_by(one_layer):
    """Masks of RigL on one weight at the refresh of step 3, by what is done at each step."""

    def run(do, steps=3):
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(12, 16, generator=generator)
        gradients = torch.randn(steps, 12, 16, generator=generator)
        layer = one_layer(weight, "rigl", "0.4", drop_fraction=0.8)
        for step, gradient in enumerate(gradients, start=1):
            do(layer, step, gradient)
        assert layer.sparsifier.step == steps
        return layer.sparsifier.masks()["layer"]

    return run


def plain_step(layer, step, gradient):
    layer.step(gradient)


def test_rigl_takes_the_gradient_of_the_refresh_step_alone(moved_by):
    """No average over steps: what came before, not finite or huge, leaves no trace."""
    for others in (0.0, 1e30, float("inf"), float("nan")):

        def do(layer, step, gradient, others=others):
            layer.step(gradient if step == 3 else gradient * others)

        assert torch.equal(moved_by(do), moved_by(plain_step))


def test_rigl_does_not_mind_the_scale_of_the_loss(moved_by):
    assert torch.equal(
        moved_by(lambda layer, step, gradient: layer.step(gradient * 2.0 ** (16 - 5 * step))), moved_by(plain_step)
    )


def test_rigl_sees_gradients_as_they_were_before_clipping(moved_by):
    def clipped(layer, step, gradient):
        layer.model.push(gradient)
        clip_grad_value_(layer.model.parameters(), 1e-3)
        layer.optimizer.step()
        layer.optimizer.zero_grad()

    assert torch.equal(moved_by(clipped), moved_by(plain_step))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_rigl_adds_up_micro_batches_and_forgets_what_was_zeroed(set_to_none, moved_by):
    def piecewise(layer, step, gradient):
        layer.model.push(-7 * gradient.flip(0))
        layer.optimizer.zero_grad(set_to_none=set_to_none)
        first = torch.randint(-8, 8, gradient.shape, generator=torch.Generator().manual_seed(step)).float()
        for part in (first, gradient - first):
            layer.model.push(part)
        layer.optimizer.step()
        layer.optimizer.zero_grad(set_to_none=set_to_none)

    # A sum of parts is rounded, and here it ties no two gradients.
    assert torch.equal(moved_by(piecewise), moved_by(plain_step))


def test_rigl_counts_a_micro_batch_whose_gradient_is_all_at_pruned_connections(one_layer):
    runs = [one_layer(TOY, "rigl", drop_fraction=1.0) for _ in range(2)]
    pruned, elsewhere = TOY * ~INTEGERS, torch.linspace(-1, 1, 20).reshape(4, 5) / 16
    for _ in range(3):
        masks = [runs[0].step(pruned, elsewhere), runs[1].step(pruned + elsewhere)]
    assert torch.equal(*masks)


def test_rigl_adds_up_micro_batches_that_are_clipped_one_by_one(moved_by):
    def clipped(layer, step, gradient):
        first = torch.randint(-8, 8, gradient.shape, generator=torch.Generator().manual_seed(step)).float()
        for part in (first, gradient - first):
            layer.model.push(part)
            clip_grad_value_(layer.model.parameters(), 0.1)
        layer.optimizer.step()
        layer.optimizer.zero_grad()

    assert torch.equal(moved_by(clipped), moved_by(plain_step))


def test_a_refresh_without_a_backward_pass_does_not_fall_back_on_an_older_gradient(one_layer):
    masks = []
    for last in ([torch.zeros(4, 5)], []):
        run = one_layer(TOY, "rigl", drop_fraction=1.0, every=1)
        run.step(TOY * ~INTEGERS)
        if last:
            run.step(*last)
        else:
            run.optimizer.step()
        masks.append(run.sparsifier.masks()["layer"].clone())
    assert [row["step"] for row in run.sparsifier.refreshes] == [0, 1, 2]
    assert torch.equal(*masks)


def test_what_grows_starts_with_fresh_optimiser_state_whatever_was_there(one_layer):
    """Rprop's and Adamax's state of a pruned weight is not 0 either."""
    run = one_layer(TOY, "rigl", drop_fraction=1.0)
    gradient = (~INTEGERS).float()
    for _ in range(2):
        run.step(gradient)
    momentum = run.optimizer.state[run.weight]["momentum_buffer"]
    momentum[~INTEGERS] = 7.0
    grown = run.step(gradient) & ~INTEGERS
    assert int(grown.sum()) == 8
    assert not momentum[grown].any()


def test_rigl_does_not_count_gradients_that_were_only_asked_for(moved_by):
    def asking(layer, step, gradient):
        layer.model.push(gradient)
        torch.autograd.grad((layer.weight * gradient.flip(0) * 9).sum(), [layer.weight])
        layer.optimizer.step()
        layer.optimizer.zero_grad()

    assert torch.equal(moved_by(asking), moved_by(plain_step))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["live", "pruned", "one of two micro-batches"])
def test_a_dense_gradient_that_is_not_finite_leaves_the_mask_and_the_next_one_moves_it(bad, where, one_layer):
    run = one_layer(TOY, "rigl", drop_fraction=1.0)
    start = run.sparsifier.masks()["layer"].clone()
    broken = torch.ones(4, 5)
    broken[(0, 0) if where == "live" else (0, 4)] = bad
    healthy = (~start).float()
    for gradients in ([healthy], [healthy], [broken, healthy] if where.startswith("one") else [broken]):
        assert torch.equal(run.step(*gradients), start)
    assert torch.equal(run.weight, TOY * start)
    row = run.sparsifier.refreshes[-1]
    assert (row["step"], row["connections"], row["pruned"], row["regrown"]) == (3, 10, 0, 0)
    for _ in range(3):
        mask = run.step(healthy)
    assert int((mask & ~start).sum()) == 5


@pytest.mark.parametrize("algorithm", ["rigl", "set", "random"])
def test_the_first_mask_is_in_force_before_the_first_step(algorithm, one_layer):
    run = one_layer(TOY, algorithm)
    mask = run.sparsifier.masks()["layer"]
    assert int(mask.sum()) == 10
    assert torch.equal(run.weight, TOY * mask)
    assert torch.equal(mask, INTEGERS) == (algorithm != "random")


# --- SET --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def halved():
    """A slab of 8 x 10 with 20 live connections."""
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask.view(-1)[torch.randperm(80)[:20]] = True
    return slab_view((torch.rand(8, 10) + 0.1) * mask, mask=mask, gradient=torch.rand(8, 10))


def moved(algorithm, view, budget="0.25", **parameters):
    (mask,) = algorithms.make(algorithm, **parameters).masks([view], Decimal(budget))
    return mask


def test_set_and_rigl_drop_alike_and_differ_in_what_grows(halved):
    kept = largest(14, places_of(halved.mask), [halved.scores.tolist()])
    for algorithm in ("set", "rigl"):
        mask = places_of(moved(algorithm, halved))
        assert len(mask) == 20
        assert kept <= mask
    assert not torch.equal(moved("set", halved), moved("rigl", halved))


def test_what_set_grows_is_drawn_anew_at_each_refresh_and_decided_by_the_seed(halved):
    def draw(**figures):
        return moved("set", replaced(halved, **figures))

    assert torch.equal(draw(step=7), draw(step=7))
    assert torch.equal(draw(step=7), draw(step=7, gradient=None))
    by_step = {tuple(draw(step=step).flatten().tolist()) for step in range(1, 21)}
    by_seed = {tuple(draw(seed=seed).flatten().tolist()) for seed in range(20)}
    assert (len(by_step), len(by_seed)) == (20, 20)


def chi_square(counts, expected):
    return sum((count - expected) ** 2 / expected for count in counts)


def test_set_grows_uniformly_over_all_that_is_pruned(halved):
    """6 of 66 places, 1,000 times. If they are uniform, chi-square over 65 seldom leaves 65 +- 5 sqrt(130)."""
    kept = largest(14, places_of(halved.mask), [halved.scores.tolist()])
    counts = dict.fromkeys(everywhere(halved.mask) - kept, 0)
    for seed in range(1000):
        grown = places_of(moved("set", replaced(halved, seed=seed))) - kept
        assert len(grown) == 6
        for place in grown:
            counts[place] += 1
    assert chi_square(counts.values(), 1000 * 6 / 66) < 65 + 5 * math.sqrt(130)
    assert min(counts.values()) > 0


# --- A random mask ----------------------------------------------------------------------------------------------------


def test_a_random_mask_has_its_exact_size_and_any_place_equally_often():
    """Not each connection with probability b: the size never varies. 24 of 80 places, 1,000 times."""
    counts = torch.zeros(8, 10)
    for seed in range(1000):
        mask = moved("random", slab_view(torch.rand(8, 10), seed=seed, step=0), "0.3")
        assert int(mask.sum()) == 24
        counts += mask
    assert chi_square(counts.flatten().tolist(), 1000 * 0.3) < 79 + 5 * math.sqrt(158)
    assert int(counts.min()) > 0


def two_equal_slabs():
    layers = OrderedDict(first=nn.Linear(12, 12), on=nn.ReLU(), second=nn.Linear(12, 12))
    return nn.Sequential(layers), [Slab("first", "in", "first"), Slab("second", "in", "second")]


def random_masks(init, seed, **parameters):
    """Masks at the start and after each of 12 steps, which end in freeze."""
    torch.manual_seed(init)
    model, slabs = two_equal_slabs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = {"algorithm": "random"} | parameters
    sparsifier = sparsify(model, optimizer, slabs, method, "0.2", total_steps=16, every=1, seed=seed)
    masks = [tuple(mask.clone() for mask in sparsifier.masks().values())]
    for _ in range(12):
        model(torch.randn(5, 12)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.append(tuple(mask.clone() for mask in sparsifier.masks().values()))
    return masks


def test_a_random_mask_never_changes_and_depends_on_seed_and_slab_alone(same):
    masks = random_masks(init=0, seed=0)
    assert all(same(later, masks[0]) for later in masks)
    assert same(random_masks(init=1, seed=0), masks)
    assert not same(random_masks(init=0, seed=1)[0], masks[0])
    first, second = masks[0]
    assert not torch.equal(first, second)


def test_on_a_ramp_random_masks_are_nested_and_end_as_without(same):
    masks = random_masks(init=0, seed=0, ramp=True)
    assert all(bool(mask.all()) for mask in masks[0])
    for earlier, later in pairwise(masks):
        assert all(bool((old | ~new).all()) for old, new in zip(earlier, later, strict=True))
    assert sum(not same(earlier, later) for earlier, later in pairwise(masks)) >= 5
    assert same(masks[-1], random_masks(init=0, seed=0)[-1])


# --- Distributions over slabs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["0.10", "0.90"])
@pytest.mark.parametrize("algorithm, side", [("rigl", "in"), ("set", "out"), ("random", "both")])
def test_erk_densities_are_those_of_the_paper_and_keep_the_budget_of_weights(
    algorithm, side, budget, net, sparse, train, exact_count, literal_erk
):
    """Up to one kernel. Of the convolutions the 1 x 1 one is whole at b = .9."""
    method = {"algorithm": algorithm, "side": side, "distribution": "erk"}
    model, optimizer, sparsifier = sparse(net, method, budget, total_steps=20, every=3)
    train(net, model, optimizer, 6)
    masks = sparsifier.masks()
    shapes = [(*masks[slab.name].shape, model.get_submodule(slab.name).weight.shape[2:]) for slab in net.slabs(side)]
    kernels = [math.prod(taps) for *_, taps in shapes]
    total = exact_count(budget, sum(math.prod((units, fan, *taps)) for units, fan, taps in shapes), 1)
    shares = [share / kernel for share, kernel in zip(literal_erk(total, shapes), kernels, strict=True)]
    counts = [int(masks[slab.name].sum()) for slab in net.slabs(side)]
    assert 0 <= total - sum(map(math.prod, zip(counts, kernels, strict=True))) < max(kernels)
    assert all(math.floor(share) <= count <= math.ceil(share) for count, share in zip(counts, shares, strict=True))
    if "narrow" in masks and budget == "0.90":
        assert bool(masks["narrow"].all())


@pytest.fixture
def still():
    """Training steps that move no weight."""
    return {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.0)}


@pytest.mark.parametrize("side", ["in", "out", "both"])
def test_global_magnitude_is_one_sort_of_all_slabs(side, net, sparse, train, still, exact_count):
    net = in_double(net)
    method = {"algorithm": "magnitude", "side": side, "distribution": "global"}
    model, optimizer, sparsifier = sparse(net, method, "0.15", **still)
    weights = [model.get_submodule(slab.name).weight for slab in net.slabs(side)]
    norms = [norms_of(weight, slab.side) for weight, slab in zip(weights, net.slabs(side), strict=True)]
    kernels = [weight[0, 0].numel() for weight in weights]

    def check(step):
        masks = list(sparsifier.masks().values())
        if step <= 30:
            left = exact_count(sparsifier.refreshes[-1]["budget"], sum(weight.numel() for weight in weights), 1)
            left -= sum(kernel * int(mask.sum()) for kernel, mask in zip(kernels, masks, strict=True))
            assert 0 <= left < max(kernels)
            kept = places_of(*masks)
            assert kept == largest(len(kept), everywhere(*masks), norms)

    train(net, model, optimizer, 31, check)


def test_a_global_mask_may_empty_a_slab_and_give_it_back(mlp, sparse, train, still):
    method = {"algorithm": "magnitude", "distribution": "global"}
    model, optimizer, sparsifier = sparse(mlp, method, "0.25", ramp_end=0, **still)
    with torch.no_grad():
        model.first.weight *= 1e-3
    weight = model.first.weight.detach().clone()
    train(mlp, model, optimizer, 1)
    # 128 of 320 + 192.
    assert [int(mask.sum()) for mask in sparsifier.masks().values()] == [0, 128]
    assert not model.first.weight.any()
    with torch.no_grad():
        model.second.weight *= 1e-6
    train(mlp, model, optimizer, 1)
    first = sparsifier.masks()["first"]
    # The 64 others of the second slab, dormant, were not made smaller.
    assert [int(mask.sum()) for mask in sparsifier.masks().values()] == [64, 64]
    assert torch.equal(model.first.weight, weight * first)


@pytest.mark.parametrize("budget", ["0.10", "0.25", "0.50", "0.81"])
@pytest.mark.parametrize("side", ["in", "out"])
def test_magnitude_masks_are_those_of_torchs_l1_unstructured(side, budget, net, sparse, train, still, exact_count):
    """Of linear layers its own; a convolution's connections are handed to it as a matrix of their norms."""
    model, optimizer, sparsifier = sparse(net, {"algorithm": "magnitude", "side": side}, budget, ramp_end=0, **still)
    pruned = {}
    for slab in net.slabs(side):
        weight = model.get_submodule(slab.name).weight
        values = weight.detach().clone() if weight.dim() == 2 else torch.tensor(norms_of(weight, "in"))
        peer = OneLayer(values).layer
        prune.l1_unstructured(peer, "weight", amount=values.numel() - exact_count(budget, *values.shape))
        pruned[slab.name] = peer.weight_mask.bool() if side == "in" else peer.weight_mask.bool().T
    train(net, model, optimizer, 1)
    assert all(torch.equal(mask, pruned[name]) for name, mask in sparsifier.masks().items())


# --- Wanda ------------------------------------------------------------------------------------------------------------


def literal_wanda(weight, norms, count):
    """bool [outputs, inputs]: each output keeps as many, the first ones one more if they do not divide."""
    scores = [[magnitude * norm for magnitude, norm in zip(row, norms, strict=True)] for row in norms_of(weight, "in")]
    mask = torch.zeros(weight.shape[:2], dtype=torch.bool)
    for output, row in enumerate(scores):
        keeps = count // len(scores) + (output < count % len(scores))
        for read in sorted(range(len(row)), key=lambda at: -row[at])[:keeps]:
            mask[output, read] = True
    return mask


def squares_by_channel(inputs, channels_first):
    """Mean square over positions, one channel after the other."""
    values = inputs.double().movedim(1, -1) if channels_first else inputs.double()
    return [float(values[..., channel].square().mean()) for channel in range(values.shape[-1])]


@pytest.mark.parametrize("side", ["in", "out", "both"])
def test_wanda_equals_a_literal_reading_with_its_own_norms(side, net, sparse, still, loss_of, exact_count):
    """Batches of 7, and images of 7 x 7, are not subsampled. Forward passes in evaluation mode count for nothing."""
    read, averages = {}, {}
    model, optimizer, sparsifier = sparse(net, {"algorithm": "wanda", "side": side}, "0.3", **still)
    layers = {slab.name: model.get_submodule(slab.name) for slab in net.slabs(side)}
    whole = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda module, inputs, name=name: read.update({name: inputs[0].detach()}))
    for step in range(1, 31):
        x, y = net.batch(step, 7)
        x = x[..., :7, :7] if x.dim() > 2 else x
        model.eval()(1000 * x)
        loss_of(model.train(), (x, y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        budget = sparsifier.refreshes[-1]["budget"]
        for slab in net.slabs(side):
            weight, mask = whole[slab.name], sparsifier.masks()[slab.name]
            squares = squares_by_channel(read[slab.name], weight.dim() > 2)
            old = averages.get(slab.name, [0.0] * len(squares))
            averages[slab.name] = [0.99 * of + 0.01 * square for of, square in zip(old, squares, strict=True)]
            norms = [math.sqrt(average / (1 - 0.99**step)) for average in averages[slab.name]]
            expected = literal_wanda(weight, norms, exact_count(budget, *mask.shape))
            assert torch.equal(mask if slab.side == "in" else mask.T, expected), f"{slab.name} at step {step}"


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("scale", [torch.ones(5), torch.linspace(1, 20, 5) ** 2])
def test_wanda_keeps_equally_many_of_every_output_whatever_the_scale_of_units(scale, side):
    """The last input is a hundred times as loud: every output keeps it, beside its largest other weight."""
    magnitudes, norms = (TOY.abs(), torch.tensor([[1.0, 1.0, 1.0, 1.0, 100.0]]))
    scores, norms = (magnitudes, norms) if side == "in" else (magnitudes.T, norms.T)
    scale = scale[: len(scores)]
    mask = moved("wanda", slab_view(scores * scale[:, None], scale=scale, side=side, input_norms=norms), "0.4")
    by_output = mask if side == "in" else mask.T
    assert by_output.int().tolist() == [[1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [0, 1, 0, 0, 1]]


def test_wanda_reads_valid_positions_only(same):
    def first_masks(padded):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        slabs = [Slab("0", "in", "0"), Slab("2", "in", "2")]
        sparsifier = sparsify(model, optimizer, slabs, {"algorithm": "wanda"}, "0.4", total_steps=40, ramp_end=0)
        x, valid = torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool)
        loud = torch.randn(2, 5, 12) * torch.tensor([1000.0] * 6 + [0.0] * 6)
        if padded != "none":
            x, valid = torch.cat([x, loud]), torch.cat([valid, torch.zeros(2, 5, dtype=torch.bool)])
        with sparsifier.valid(valid if padded != "unmarked" else torch.ones_like(valid)):
            model(x).square().mean().backward()
        optimizer.step()
        return sparsifier.masks()

    assert same(first_masks("none"), first_masks("marked"))
    assert not same(first_masks("none"), first_masks("unmarked"))


# --- Top-K ------------------------------------------------------------------------------------------------------------

# The module at which 16 units are read, the shape of its input, the axis of its units, and what reads them.
GATED = {
    "linear": (lambda: nn.Linear(6, 16), (7, 6), 1, lambda: nn.Linear(16, 8)),
    "linear, sequences": (lambda: nn.Linear(6, 16), (3, 5, 6), 2, lambda: nn.Linear(16, 8)),
    "convolution": (lambda: nn.Conv2d(3, 16, 3), (2, 3, 6, 5), 1, lambda: nn.Conv2d(16, 8, 1)),
    "convolution, sequences": (lambda: nn.Conv1d(3, 16, 3), (2, 3, 9), 1, lambda: nn.Conv1d(16, 8, 1)),
    "batch norm": (lambda: nn.BatchNorm1d(16), (7, 16), 1, lambda: nn.Linear(16, 8)),
    "batch norm, images": (lambda: nn.BatchNorm2d(16), (2, 16, 4, 3), 1, lambda: nn.Conv2d(16, 8, 1)),
    "group norm": (lambda: nn.GroupNorm(2, 16), (2, 16, 4, 3), 1, lambda: nn.Conv2d(16, 8, 1)),
    "layer norm": (lambda: nn.LayerNorm(16), (3, 5, 16), 2, lambda: nn.Linear(16, 8)),
}


@pytest.fixture
def gated():
    """A module with 16 units, a ReLU and a layer that reads them, under top-k with refreshes at 2, 4, 6, 8 and 9."""

    def make(kind="linear", budget="0.25", init=0):
        torch.manual_seed(init)
        unit, _, _, reader = GATED[kind]
        model = nn.Sequential(OrderedDict(unit=unit(), on=nn.ReLU(), reader=reader()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        slabs, options = [Slab("reader", "out", "unit")], {"total_steps": 12, "every": 2, "ramp_end": 0.4}
        return model, optimizer, sparsify(model, optimizer, slabs, {"algorithm": "topk"}, budget, **options)

    return make


def passed(model, x):
    """What leaves the model's gated module."""
    outputs = []
    handle = model.unit.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(x)
    handle.remove()
    return outputs[0]


def literal_top_k(outputs, axis, count):
    """By loops over positions: the largest by signed value, the others 0."""
    values = outputs.detach().movedim(axis, -1)
    kept = torch.zeros_like(values)
    for position in np.ndindex(values.shape[:-1]):
        of_units = values[position].tolist()
        for unit in sorted(range(len(of_units)), key=lambda at: -of_units[at])[:count]:
            kept[(*position, unit)] = of_units[unit]
    return kept.movedim(-1, axis)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", GATED)
def test_top_k_passes_the_largest_units_of_every_position(kind, training, gated):
    _, shape, axis, _ = GATED[kind]
    model, optimizer, _ = gated(kind)
    for _ in range(9):
        optimizer.step()
    x = torch.randn(shape)
    model.train(training)
    plain = model.unit.forward(x)
    out = passed(model, x)
    assert torch.equal(out, literal_top_k(plain, axis, 4))
    assert bool((out.count_nonzero(axis) == 4).all())


@pytest.mark.parametrize(
    "budget, count",
    [("0.01", 1), ("0.09375", 2), ("0.10", 2), ("0.25", 4), ("0.28125", 5), ("0.34375", 6), ("0.5", 8), ("1", 16)],
)
def test_the_share_is_rounded_half_up_and_at_least_one_unit_passes(budget, count, gated):
    model, optimizer, _ = gated(budget=budget)
    for _ in range(9):
        optimizer.step()
    assert passed(model, torch.randn(50, 6)).count_nonzero(1).tolist() == [count] * 50


def test_the_share_follows_the_ramp_at_refreshes_and_stays_after_the_freeze(gated):
    model, optimizer, sparsifier = gated(budget="0.2")
    x = torch.randn(5, 6)
    counts = []
    for _ in range(13):
        counts.append(passed(model, x).count_nonzero(1).unique().tolist())
        optimizer.step()
    # The ramp ends at step 4.8: b(2) = .2 + .8 (1 - 2 / 4.8)^3 = .3588, b(4) = .2037; of 16 units 5.74, 3.26, 3.2.
    assert counts == [[16]] * 2 + [[6]] * 2 + [[3]] * 9
    assert sparsifier.refreshes == []


def test_only_units_that_pass_have_gradients(gated):
    model, optimizer, _ = gated()
    for _ in range(9):
        optimizer.step()
    out = passed(model, torch.randn(7, 6))
    weights = torch.rand(7, 16) + 1
    (out * weights).sum().backward()
    assert torch.allclose(model.unit.bias.grad, (weights * (out != 0)).sum(0))


def test_top_k_leaves_weights_dense_and_masks_true(gated):
    model, optimizer, sparsifier = gated()
    for _ in range(12):
        model(torch.randn(7, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(bool(parameter.all()) for parameter in model.parameters())
    assert {name: mask.shape for name, mask in sparsifier.masks().items()} == {"reader": (16, 8)}
    assert bool(sparsifier.masks()["reader"].all())


@pytest.mark.parametrize("saved_at", [0, 1, 2, 3, 9, 11])
def test_a_gated_run_resumes_to_the_bit(saved_at, gated, same):
    def go_on(parts, steps):
        model, optimizer, _ = parts
        for step in steps:
            model(torch.randn(7, 6, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    parts = gated()
    go_on(parts, range(saved_at))
    states = copy.deepcopy([part.state_dict() for part in parts])
    resumed = gated(init=9)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    assert torch.equal(*(passed(model, torch.ones(2, 6)) for model in (parts[0], resumed[0])))
    for run in (parts, resumed):
        go_on(run, range(saved_at, 12))
    assert same(*([part.state_dict() for part in run] for run in (parts, resumed)))


def test_a_gate_that_is_removed_lets_everything_pass(gated):
    model, optimizer, sparsifier = gated()
    for _ in range(9):
        optimizer.step()
    sparsifier.remove()
    x = torch.randn(5, 6)
    assert torch.equal(passed(model, x), model.unit.forward(x))


# --- N:M patterns -----------------------------------------------------------------------------------------------------


SPARSE_AT_ONCE = ("rigl", "set", "random")


@pytest.mark.parametrize(
    "pattern, budget, net_name, algorithm, parameters",
    [
        *(
            ("2:4", "0.5", net_name, *each)
            for net_name, each in zip(
                cycle(["mlp", "conv_net"]),
                [*product(MASKING, [{}]), *product(SPARSE_AT_ONCE, [{"ramp": True}])],
                strict=False,
            )
        ),
        ("1:4", "0.25", "conv_net", "budgeted_broadcast", {}),
        ("3:4", "0.75", "mlp", "budgeted_broadcast", {}),
        ("1:4", "0.25", "mlp", "rigl", {}),
    ],
    ids=str,
)
def test_every_group_keeps_at_least_n_on_the_ramp_and_exactly_n_at_the_budget(
    pattern, budget, net_name, algorithm, parameters, request, sparse, train, exact_count
):
    net = request.getfixturevalue(net_name)
    method = {"algorithm": algorithm, "side": "both", "pattern": pattern} | parameters
    model, optimizer, sparsifier = sparse(net, method, budget)
    n, m = map(int, pattern.split(":"))
    surplus = 0

    def check(step):
        nonlocal surplus
        for row in sparsifier.refreshes[-2:]:
            mask = sparsifier.masks()[row["slab"]]
            groups = mask.reshape(-1, m).sum(1)
            assert int(mask.sum()) == exact_count(row["budget"], *mask.shape)
            assert bool((groups == n if row["budget"] == budget else groups >= n).all())
            surplus += bool((groups > n).any())

    train(net, model, optimizer, 31, check)
    assert {row["budget"] for row in sparsifier.refreshes[-2:]} == {budget}
    assert (surplus == 0) == (algorithm in SPARSE_AT_ONCE and not parameters)


@pytest.mark.parametrize("side", ["in", "out"])
def test_groups_run_along_the_fan(side, mlp, sparse, train):
    """Of rows on side in, of columns on side out, in the weight itself."""
    method = {"algorithm": "magnitude", "side": side, "pattern": "2:4"}
    model, optimizer, sparsifier = sparse(mlp, method, "0.5", ramp_end=0)
    train(mlp, model, optimizer, 1)
    for slab in mlp.slabs(side):
        weight = model.get_submodule(slab.name).weight
        rows = weight if side == "in" else weight.T
        assert bool((rows.reshape(-1, 4).count_nonzero(1) == 2).all())


def test_at_one_refresh_magnitude_in_a_pattern_keeps_the_best_of_each_group(mlp, sparse, train, still):
    """The mask without a pattern comes first, then magnitude: together that is magnitude alone, within the group."""
    method = {"algorithm": "magnitude", "pattern": "1:4"}
    model, optimizer, sparsifier = sparse(mlp, method, "0.25", ramp_end=0, **still)
    weight = model.first.weight.detach().clone()
    train(mlp, model, optimizer, 1)
    best = weight.abs().reshape(-1, 4).argmax(1)
    assert torch.equal(sparsifier.masks()["first"].reshape(-1, 4).long().argmax(1), best)


def literal_choice(mask, ranking, kept, size):
    """Of each group those in the mask come first, then those that rank higher, then the lower index."""
    chosen = set()
    for unit, row in enumerate(mask):
        for start in range(0, len(row), size):
            best = sorted(range(start, start + size), key=lambda at: (not row[at], -ranking[unit][at], at))
            chosen |= {(0, unit, at) for at in best[:kept]}
    return chosen


@pytest.mark.parametrize("algorithm", ["budgeted_broadcast", "magnitude", "random", "rigl", "set", "wanda"])
def test_a_group_is_filled_from_the_algorithms_own_mask_then_by_its_own_ranking(algorithm):
    generator = torch.Generator().manual_seed(2)
    live = (torch.rand(6, 4, 4, generator=generator).argsort(2) < 2).reshape(6, 16)
    scores = torch.rand(6, 16, generator=generator)
    scores = scores * live if algorithm in ("rigl", "set") else scores
    norms, scale = torch.rand(1, 16, generator=generator), torch.rand(6, generator=generator) + 0.5
    view = slab_view(
        scores,
        mask=live,
        scale=scale,
        input_norms=norms,
        gradient=torch.rand(6, 16, generator=generator),
        on_rates=torch.linspace(0.1, 0.9, 6, dtype=torch.float64),
        silent=torch.zeros(6, dtype=torch.bool),
    )
    magnitude = scores / scale[:, None]
    ranking = {"random": view.noise(), "wanda": magnitude * norms}.get(algorithm, magnitude)
    # What RigL and SET would grow first comes first among the pruned, all of them behind the live ones.
    growth = {"rigl": view.gradient * scale[:, None], "set": view.noise(fresh=True)}.get(algorithm)
    if growth is not None:
        ranking = torch.where(live, ranking, growth / growth.max() * ranking[live].min() / 2)
    free = moved(algorithm, view, "0.5")
    assert int(free.sum()) == 48
    half = Decimal("0.5")
    (mask,) = algorithms.make(algorithm, pattern="2:4").patterned_masks([view], half)
    assert places_of(mask) == literal_choice(free.tolist(), ranking.tolist(), 2, 4)
    assert next(algorithms.make(algorithm).patterned_masks([view], half)).equal(free)


PATTERNS_REFUSED = {
    "budget of another pattern": ({"pattern": "2:4"}, "0.25", "pattern 2:4 implies budget 2/4 below 1, not 0.25"),
    "budget near it": ({"pattern": "2:4"}, "0.5000001", "pattern 2:4 implies budget"),
    "as many as there are": ({"pattern": "4:4"}, "1", "pattern 4:4 implies budget 4/4 below 1"),
    "more than there are": ({"pattern": "5:4"}, "0.5", "pattern 5:4 implies budget 5/4 below 1"),
    "no multiple": ({"pattern": "3:6"}, "0.5", "slab first: its fan 20 does not fit pattern 3:6"),
    "global": ({"pattern": "2:4", "distribution": "global"}, "0.5", "pattern 2:4 needs the same density.*not global"),
    "erk": ({"algorithm": "rigl", "pattern": "2:4", "distribution": "erk"}, "0.5", "needs the same density.*not erk"),
    "no pattern": ({"pattern": "half"}, "0.5", "pattern"),
    "none of 4": ({"pattern": "0:4"}, "0.5", "pattern"),
    "leading zero": ({"pattern": "02:4"}, "0.5", "pattern"),
}


@pytest.mark.parametrize("case", PATTERNS_REFUSED)
def test_a_pattern_that_cannot_be_is_refused_with_the_reason(case, mlp, sparse):
    method, budget, message = PATTERNS_REFUSED[case]
    with pytest.raises(ValueError, match=message):
        sparse(mlp, {"algorithm": "magnitude"} | method, budget)


# --- Rescaling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("algorithm", ["rigl", "set", "magnitude"])
def test_under_rescaling_the_same_net_has_the_same_live_set(algorithm, side, one_layer):
    """One weight u, held as w = s u by a run with rescaling: the gradient by w is that by u over s.

    Before each refresh the live u are drawn anew, as if trained, and the loss has gradient g by u. The drop must divide
    magnitudes by s and the growth multiply gradients by s, to find those of u again.
    """
    masks, scales = {}, []
    for rescale in ("none", "sqrt"):
        generator = torch.Generator().manual_seed(8)
        weight = torch.randn(10, 14, generator=generator, dtype=torch.float64)
        run = one_layer(weight, algorithm, "0.4", side=side, rescale=rescale, total_steps=40, every=1)
        (masked,) = run.sparsifier.weights
        masks[rescale] = []
        for _ in range(30):
            unscaled, gradient = torch.randn(2, 10, 14, generator=generator, dtype=torch.float64)
            scale, live = masked.scale.double()[:, None], masked.mask
            scale, live = (scale, live) if side == "in" else (scale.T, live.T)
            with torch.no_grad():
                run.weight.copy_(unscaled * scale * live)
            masks[rescale].append(run.step(gradient / scale))
        scales.append(masked.scale)
    assert all(torch.equal(*pair) for pair in zip(*masks.values(), strict=True))
    assert bool((scales[0] == 1).all())
    assert float(scales[1].max() / scales[1].min()) > 1.2
