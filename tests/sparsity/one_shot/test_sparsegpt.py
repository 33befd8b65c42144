"""SparseGPT against a reading of its paper with dense matrices: one explicit inverse for every column."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional

from bbnet.sparsity.algorithms.sparsegpt import BLOCK
from bbnet.sparsity.one_shot.prune import prune_one_shot
from bbnet.sparsity.slab import Slab
from bbnet.sparsity.sparsifier import sparsify


def optimal_brain_surgeon(weight, inputs, budget, taps=1, pattern=None, damping=0.01):
    """Prunes `weight` [outputs, columns] for `inputs` [positions, columns], columns in order, `taps` of them at a time.

    Of the Hessian of the columns that are left, the inverse says what pruning the first ones costs, and how the others
    change (eq. 3 and 4 of the paper). Returns the new weight and the mask [outputs, columns / taps].
    """
    weight, inputs = weight.double().clone(), inputs.double()
    hessian = sum(torch.outer(row, row) for row in inputs)
    for column in range(len(hessian)):
        if hessian[column, column] == 0:
            hessian[column, column] = 1
            weight[:, column] = 0
    hessian = hessian + damping * hessian.trace() / len(hessian) * torch.eye(len(hessian))
    outputs, connections = len(weight), weight.shape[1] // taps
    mask = torch.ones(outputs, connections, dtype=torch.bool)

    inverses = [torch.linalg.inv(hessian[each * taps :, each * taps :]) for each in range(connections)]

    def losses(connection):
        own = weight[:, connection * taps : (connection + 1) * taps]
        removal = torch.linalg.inv(inverses[connection][:taps, :taps])
        return [float(row @ removal @ row) for row in own]

    def keep(first, end, count, per_row):
        """Keeps the `count` connections from `first` to `end`, of every row or of all, that cost most to prune."""
        found = {(row, each): cost for each in range(first, end) for row, cost in enumerate(losses(each))}
        groups = [[place for place in found if place[0] == row] for row in range(outputs)] if per_row else [list(found)]
        for places in groups:
            for place in sorted(places, key=lambda place: -found[place])[count:]:
                mask[place] = False

    def share(end):
        return math.floor(Fraction(str(budget)) * outputs * end + Fraction(1, 2))

    for connection in range(connections):
        if pattern is None and connection % BLOCK == 0:
            end = min(connection + BLOCK, connections)
            keep(connection, end, share(end) - share(connection), per_row=False)
        if pattern is not None and connection % pattern[1] == 0:
            keep(connection, connection + pattern[1], pattern[0], per_row=True)
        inverse = inverses[connection]
        own = slice(connection * taps, (connection + 1) * taps)
        for row in range(outputs):
            if not mask[row, connection]:
                change = weight[row, own] @ torch.linalg.inv(inverse[:taps, :taps]) @ inverse[:taps]
                weight[row, own.start :] -= change
                weight[row, own] = 0
    return weight, mask


@pytest.fixture
def correlated():
    """Inputs [positions, columns] whose columns are correlated and of different size."""

    def make(columns, positions=400, dtype=torch.float32):
        torch.manual_seed(0)
        mixed = torch.randn(positions, columns) @ (torch.eye(columns) + 0.3 * torch.randn(columns, columns))
        return (mixed * torch.rand(columns).add(0.2)).to(dtype)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("budget", "pattern"), [("0.5", None), ("0.3", None), ("0.5", "2:4"), ("0.25", "1:4")])
def test_a_linear_layer_is_pruned_as_in_the_paper(budget, pattern, dtype, correlated):
    inputs = correlated(148, dtype=dtype)
    layer = nn.Linear(148, 6, dtype=dtype)
    group = pattern and tuple(map(int, pattern.split(":")))
    expected, mask = optimal_brain_surgeon(layer.weight.detach(), inputs, budget, pattern=group)
    model = nn.Sequential(layer)
    done = prune_one_shot(model, inputs.split(150), "sparsegpt", budget, pattern=pattern, layers=["0"])
    assert torch.equal(done.masks()["0"], mask)
    assert done.densities == {"0": pytest.approx(float(budget), abs=1e-3)}
    torch.testing.assert_close(layer.weight.detach().double(), expected, atol=1e-5, rtol=1e-5)
    assert not layer.weight[~mask].any()


def test_what_is_kept_compensates_for_what_is_pruned(correlated):
    inputs, errors = correlated(64), {}
    for method in ("sparsegpt", "magnitude"):
        torch.manual_seed(1)
        layer = nn.Linear(64, 16)
        before = layer(inputs)
        prune_one_shot(nn.Sequential(layer), [inputs], method, 0.5, layers=["0"])
        errors[method] = float((layer(inputs) - before).detach().square().mean())
    assert errors["sparsegpt"] < errors["magnitude"] / 2


def test_inputs_that_are_always_0_lose_their_weights_and_leave_the_others_alone(correlated):
    inputs = correlated(40)
    inputs[:, [3, 17, 39]] = 0
    layer = nn.Linear(40, 8)
    expected, mask = optimal_brain_surgeon(layer.weight.detach(), inputs, "0.5")
    done = prune_one_shot(nn.Sequential(layer), [inputs], "sparsegpt", 0.5, layers=["0"])
    assert torch.equal(done.masks()["0"], mask)
    torch.testing.assert_close(layer.weight.detach().double(), expected, atol=1e-5, rtol=1e-5)
    assert not layer.weight[:, [3, 17, 39]].any()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 5, 3, padding=1, stride=2),
        nn.Conv2d(6, 5, (3, 1), dilation=(2, 1), padding_mode="reflect", padding=(1, 0)),
        nn.Conv1d(8, 5, 3, padding="same"),
        nn.Conv2d(12, 5, 1),
    ],
)
def test_kernels_of_a_convolution_are_pruned_as_groups_of_columns(layer):
    torch.manual_seed(0)
    layer = layer.double()
    taps = layer.weight[0, 0].numel()
    shape = (7, 9)[: layer.weight.dim() - 2]
    images = torch.randn(20, layer.in_channels, *shape, dtype=torch.float64)
    # The patches by hand: the gradient of an output with respect to a kernel is what the kernel reads there.
    rows = []
    reading = torch.zeros_like(layer.weight[:1], requires_grad=True)
    for image in images[:, None]:
        outputs = layer._conv_forward(image, reading, None).flatten()
        rows += [torch.autograd.grad(each, reading, retain_graph=True)[0].flatten() for each in outputs]
    expected, mask = optimal_brain_surgeon(layer.weight.detach().flatten(1), torch.stack(rows), "0.5", taps)
    done = prune_one_shot(nn.Sequential(layer), images.split(10), "sparsegpt", 0.5, layers=[Slab("0", "in", "0")])
    assert torch.equal(done.masks()["0"], mask)
    torch.testing.assert_close(layer.weight.detach().flatten(1), expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_pruned_in_float32(dtype, correlated):
    inputs = correlated(32).to(dtype)
    layer = nn.Linear(32, 8).to(dtype)
    expected, mask = optimal_brain_surgeon(layer.weight.detach().float(), inputs.float(), "0.5")
    done = prune_one_shot(nn.Sequential(layer), [inputs], "sparsegpt", 0.5, layers=["0"])
    assert torch.equal(done.masks()["0"], mask)
    assert layer.weight.dtype == dtype
    torch.testing.assert_close(layer.weight.detach(), expected.to(dtype), atol=1e-5, rtol=2 * torch.finfo(dtype).eps)


def test_a_row_of_the_mask_may_keep_more_than_another_but_blocks_keep_their_share(correlated):
    inputs = correlated(300)
    done = prune_one_shot(nn.Sequential(nn.Linear(300, 7)), [inputs], "sparsegpt", "0.3", layers=["0"])
    mask, ends = done.masks()["0"], (0, 128, 256, 300)
    shares = [math.floor(Decimal("0.3") * 7 * end + Decimal("0.5")) for end in ends]
    counts = [int(mask[:, start:end].sum()) for start, end in zip(ends, ends[1:], strict=False)]
    assert counts == [after - before for before, after in zip(shares, shares[1:], strict=False)]
    assert len(set(mask.sum(1).tolist())) > 1


def test_inputs_that_are_not_finite_are_refused_by_name(correlated):
    inputs = correlated(16)
    inputs[3, 2] = math.inf
    with pytest.raises(ValueError, match="layer 0: its calibration inputs are not finite"):
        prune_one_shot(nn.Sequential(nn.Linear(16, 8)), [inputs], layers=["0"])


def test_training_with_sparsegpt_is_refused():
    model = nn.Sequential(nn.Linear(16, 8))
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match="SparseGPT prunes a trained model once: use bbnet.prune_one_shot"):
        sparsify(model, optimizer, [Slab("0", "in", "0")], "sparsegpt", 0.5, total_steps=40)


def test_few_inputs_are_enough_because_of_the_damping():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(64, 8), torch.randn(3, 64)
    before = functional.linear(inputs, layer.weight)
    done = prune_one_shot(nn.Sequential(layer), [inputs], "sparsegpt", 0.5, layers=["0"])
    assert int(done.masks()["0"].sum()) == 256
    assert (functional.linear(inputs, layer.weight) - before).abs().max() < 0.1
