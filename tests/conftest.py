"""Every test computes alike: one thread, one seed. Small nets and a training loop, for the tests of the library."""

import importlib.util
import math
import signal
from collections import OrderedDict
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bbnet.sparsity.slab import Slab
from bbnet.sparsity.sparsifier import METHODS, sparsify

# A shell that runs the tests in the background has Ctrl-C ignored, which the processes that tests start would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# These tests need packages that only the environment of `make test-clients` has.
if not all(map(importlib.util.find_spec, ("accelerate", "lightning", "timm", "transformers"))):
    collect_ignore = ["clients"]


@pytest.fixture(autouse=True)
def one_thread_and_a_fixed_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def same():
    """Whether two nested states are equal to the bit."""

    def equal(mine, other):
        if torch.is_tensor(mine):
            return torch.is_tensor(other) and mine.dtype == other.dtype and torch.equal(mine, other)
        if isinstance(mine, dict):
            return mine.keys() == other.keys() and all(equal(mine[key], other[key]) for key in mine)
        if isinstance(mine, list | tuple):
            return len(mine) == len(other) and all(equal(a, b) for a, b in zip(mine, other, strict=True))
        return mine == other

    return equal


@pytest.fixture
def exact_count():
    """K of DESIGN 4.1 in rational arithmetic."""

    def count(budget, units: int, fan: int) -> int:
        share = budget if isinstance(budget, Fraction) else Fraction(str(budget))
        return math.floor(share * units * fan + Fraction(1, 2))

    return count


@pytest.fixture
def mlp():
    """A net of linear layers, widths 20-16-12-12; both = the rows of the first layer and the columns of the next."""

    def build():
        layers = OrderedDict(
            first=nn.Linear(20, 16), on=nn.ReLU(), second=nn.Linear(16, 12), on2=nn.ReLU(), last=nn.Linear(12, 12)
        )
        return nn.Sequential(layers)

    def slabs(side):
        return {
            "in": [Slab("first", "in", "first"), Slab("second", "in", "second")],
            "out": [Slab("second", "out", "first"), Slab("last", "out", "second")],
            "both": [Slab("first", "in", "first"), Slab("second", "out", "first")],
        }[side]

    def batch(step, size=32):
        generator = torch.Generator().manual_seed(step)
        return torch.randn(size, 20, generator=generator), torch.randint(10, (size,), generator=generator)

    return SimpleNamespace(build=build, slabs=slabs, batch=batch)


@pytest.fixture
def conv_net():
    """Convolutions with batch norm; a stem that stays dense, a 3 x 3 and a 1 x 1 convolution."""

    def build():
        layers = OrderedDict(
            stem=nn.Conv2d(3, 16, 3, padding=1),
            norm1=nn.BatchNorm2d(16),
            on1=nn.ReLU(),
            middle=nn.Conv2d(16, 12, 3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(12),
            on2=nn.ReLU(),
            narrow=nn.Conv2d(12, 12, 1),
            on3=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(12, 10),
        )
        return nn.Sequential(layers)

    def slabs(side):
        return {
            "in": [Slab("middle", "in", "norm2", normalised=True), Slab("narrow", "in", "narrow")],
            "out": [Slab("middle", "out", "norm1"), Slab("narrow", "out", "norm2")],
            "both": [Slab("middle", "in", "norm2", normalised=True), Slab("narrow", "out", "norm2")],
        }[side]

    def batch(step, size=4):
        generator = torch.Generator().manual_seed(step)
        return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(10, (size,), generator=generator)

    return SimpleNamespace(build=build, slabs=slabs, batch=batch)


@pytest.fixture(params=["mlp", "conv_net"])
def net(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def adamw():
    return lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


@pytest.fixture
def sgd():
    return lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


@pytest.fixture
def loss_of():
    return lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def train(loss_of):
    """Trains for the steps of a range (batch t belongs to step t); calls `each(t)` after every step."""

    def run(net, model, optimizer, steps, each=lambda step: None):
        for step in steps if isinstance(steps, range) else range(1, steps + 1):
            loss_of(model, net.batch(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
            each(step)

    return run


@pytest.fixture
def sparse(adamw):
    """A fresh model, optimiser and sparsifier; by default 40 steps: ramp to step 16, a refresh each step, freeze at 30.

    `before` is called ahead of the sparsifier, so that its hooks on the optimiser see the state before a refresh.
    """

    def make(net, method="sp_in", budget="0.50", *, optimizer=adamw, total_steps=40, init=0, before=None, **options):
        torch.manual_seed(init)
        model = net.build()
        method = METHODS[method] if isinstance(method, str) else method
        slabs = net.slabs(method.get("side", "in"))
        made = optimizer(model)
        if before is not None:
            before(model, made, slabs)
        return (model, made, sparsify(model, made, slabs, method, budget, total_steps=total_steps, **options))

    return make


@pytest.fixture
def over_weight():
    """A mask [units, fan] spread over a weight [out, in, *taps]."""

    def spread(mask, weight, side):
        matrix = mask if side == "in" else mask.T
        return matrix.reshape(*weight.shape[:2], *(1 for _ in weight.shape[2:])).expand_as(weight)

    return spread
