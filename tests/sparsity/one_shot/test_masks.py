"""The masks of the other methods against their formulas in plain loops, and exact densities."""

import math
from decimal import Decimal

import pytest
import torch
from torch import nn

from bbnet.sparsity.degrees import LAWS, allocate_degrees
from bbnet.sparsity.one_shot.prune import prune_one_shot
from bbnet.sparsity.one_shot.settings import METHODS
from bbnet.sparsity.slab import Slab

OUTPUTS, INPUTS = 10, 24


class FeedForward(nn.Module):
    """Hidden units between two layers, with biases that make their on-rates differ."""

    def __init__(self, activation=nn.ReLU, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(INPUTS, OUTPUTS, dtype=dtype)
        self.activation = activation()
        self.down = nn.Linear(OUTPUTS, INPUTS, dtype=dtype)
        nn.init.normal_(self.up.bias)

    def forward(self, inputs):
        return self.down(self.activation(self.up(inputs)))


def batches(dtype=torch.float32):
    torch.manual_seed(1)
    scale = torch.rand(INPUTS).add(0.1)
    return [(torch.randn(4, 7, INPUTS) * scale).to(dtype) for _ in range(3)]


def norms(given):
    """The l2 norm of each input over all positions, by plain loops."""
    rows = [row for batch in given for row in batch.double().flatten(0, 1).tolist()]
    return [math.sqrt(sum(row[read] ** 2 for row in rows)) for read in range(len(rows[0]))]


def largest(scores, count):
    """The indices of the `count` largest, ties to the lower index."""
    return set(sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count])


def places(mask):
    return set(map(tuple, mask.nonzero().tolist()))


def count_of(budget, size):
    return math.floor(Decimal(str(budget)) * size + Decimal("0.5"))


@pytest.mark.parametrize("budget", ["0.5", "0.3", "0.1"])
def test_wanda_keeps_per_output_the_largest_products_of_magnitude_and_input_norm(budget):
    model = FeedForward()
    weight = model.up.weight.detach().double().tolist()
    mask = prune_one_shot(model, batches(), "wanda", budget, layers=["up"]).masks()["up"]
    of_inputs = norms(batches())
    total = count_of(budget, OUTPUTS * INPUTS)
    for output in range(OUTPUTS):
        scores = [abs(weight[output][read]) * of_inputs[read] for read in range(INPUTS)]
        count = total // OUTPUTS + (output < total % OUTPUTS)
        assert set(mask[output].nonzero().flatten().tolist()) == largest(scores, count)


@pytest.mark.parametrize("side", ["in", "out"])
def test_ria_keeps_the_largest_relative_importance_and_activation_of_the_layer(side):
    model = FeedForward()
    weight = model.up.weight.detach().double().abs().tolist()
    mask = prune_one_shot(model, batches(), "ria", "0.3", layers=["up"], side=side).masks()["up"]
    of_inputs = norms(batches())
    of_rows = [sum(row) for row in weight]
    of_columns = [sum(row[read] for row in weight) for read in range(INPUTS)]
    scores = [
        (weight[output][read] / of_rows[output] + weight[output][read] / of_columns[read]) * of_inputs[read] ** 0.5
        for output in range(OUTPUTS)
        for read in range(INPUTS)
    ]
    expected = {divmod(index, INPUTS) for index in largest(scores, count_of("0.3", len(scores)))}
    assert places(mask if side == "in" else mask.T) == expected


def test_ria_of_a_row_and_a_column_without_weights_is_finite():
    model = FeedForward()
    with torch.no_grad():
        model.up.weight[3] = 0
        model.up.weight[:, 5] = 0
    mask = prune_one_shot(model, batches(), "ria", "0.5", layers=["up"]).masks()["up"]
    assert int(mask.sum()) == OUTPUTS * INPUTS // 2
    assert not mask[3].any()
    assert not mask[:, 5].any()


def test_magnitude_keeps_the_largest_weights_of_the_layer_and_needs_no_inputs():
    model = FeedForward()
    scores = model.up.weight.detach().abs().flatten().tolist()
    done = prune_one_shot(model, (), "magnitude", "0.3", layers=["up"])
    expected = {divmod(index, INPUTS) for index in largest(scores, count_of("0.3", len(scores)))}
    assert places(done.masks()["up"]) == expected
    assert done.calibration is None


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("score", ["magnitude", "wanda"])
@pytest.mark.parametrize(("layer", "side"), [("up", "in"), ("down", "out")])
def test_budgeted_broadcast_gives_degrees_by_the_on_rates_of_the_hidden_units(layer, side, score, law):
    model = FeedForward()
    hidden = torch.cat([model.activation(model.up(batch)).detach().flatten(0, 1) for batch in batches()])
    rates = torch.tensor([sum(value > 0 for value in unit) / len(unit) for unit in hidden.T.tolist()])
    weight = getattr(model, layer).weight.detach().abs().double()
    if score == "wanda":
        weight = weight * torch.tensor(norms(batches() if layer == "up" else [hidden[None]]))
    weight = weight if side == "in" else weight.T
    done = prune_one_shot(
        model, batches(), "budgeted_broadcast", "0.4", layers=[layer], side=side, law=law, score=score
    )
    mask = done.masks()[layer]
    if law == "shuffled":
        expected = allocate_degrees(rates, INPUTS, "0.4", law="log_odds")
        assert mask.sum(1).sort().values.tolist() == expected.sort().values.tolist()
    else:
        assert mask.sum(1).tolist() == allocate_degrees(rates, INPUTS, "0.4", law=law).tolist()
    for unit, degree in enumerate(mask.sum(1).tolist()):
        assert set(mask[unit].nonzero().flatten().tolist()) == largest(weight[unit].tolist(), degree)


@pytest.mark.parametrize(("layer", "side"), [("up", "out"), ("down", "in")])
def test_where_there_are_no_hidden_units_the_sign_of_the_input_or_output_counts(layer, side):
    model = FeedForward()
    given = torch.cat(batches()).flatten(0, 1)
    values = given if layer == "up" else model(given).detach()
    rates = (values > 0).double().mean(0)
    mask = prune_one_shot(model, batches(), "budgeted_broadcast", "0.4", layers=[layer], side=side).masks()[layer]
    assert mask.sum(1).tolist() == allocate_degrees(rates, OUTPUTS, "0.4").tolist()


def test_units_that_are_never_on_keep_the_smallest_degree_unless_the_rule_is_taken_literally():
    degrees = {}
    for silent in ("smallest", "literal"):
        model = FeedForward()
        with torch.no_grad():
            model.up.bias.zero_()[2] = -100
        inputs = torch.randn(1200, INPUTS)
        done = prune_one_shot(model, [inputs], "budgeted_broadcast", "0.3", layers=["up"], silent=silent)
        degrees[silent] = int(done.masks()["up"][2].sum())
        assert done.rows[0]["silent_units"] == 1
        assert done.rows[0]["silent_connections"] == degrees[silent]
    assert degrees["smallest"] == 2
    assert degrees["literal"] > INPUTS - 4


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_a_pattern_holds_in_every_group_of_inputs(method, side, pattern):
    kept, size = map(int, pattern.split(":"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 32))
    inputs = torch.randn(6, 32)
    done = prune_one_shot(model, [inputs], method, kept / size, pattern=pattern, layers=["0", "2"], side=side)
    for name, mask in done.masks().items():
        by_output = mask if side == "in" else mask.T
        assert (by_output.reshape(len(by_output), -1, size).sum(2) == kept).all()
        live = model.get_submodule(name).weight.reshape(len(by_output), -1, size) != 0
        assert (live.sum(2) == kept).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", ["0.5", "0.3", "0.13", "1"])
@pytest.mark.parametrize("sizes", [(33, 17), (8, 1), (131, 9)])
def test_every_layer_keeps_exactly_its_number_of_connections(method, budget, sizes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*sizes), nn.Tanh(), nn.Linear(*reversed(sizes)))
    inputs = torch.randn(5, sizes[0])
    done = prune_one_shot(model, [inputs], method, budget, layers=["0"])
    mask = done.masks()["0"]
    assert mask.shape == (sizes[1], sizes[0])
    assert int(mask.sum()) == count_of(budget, mask.numel())
    assert done.densities["0"] == int(mask.sum()) / mask.numel()
    assert not model[0].weight[~mask].any()
    assert model[2].weight.all()


def test_random_masks_differ_by_seed_and_layer_but_not_from_call_to_call():
    def masks(seed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        return prune_one_shot(model, (), "random", 0.5, layers=["*"], seed=seed).masks()

    first, again, other = masks(0), masks(0), masks(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0"], other["0"])
    assert not torch.equal(first["0"], first["2"])


@pytest.mark.parametrize("method", METHODS)
def test_kernels_of_convolutions_are_connections(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3)).to(memory_format=torch.channels_last)
    images = torch.randn(2, 8, 9, 9)
    done = prune_one_shot(model, [images], method, 0.5, layers=[Slab("0", "in", "0"), Slab("2", "in", "2")])
    for name, mask in done.masks().items():
        weight = model.get_submodule(name).weight
        assert int(mask.sum()) == mask.numel() // 2
        assert not weight[~mask].any()
        assert weight[mask].flatten(1).any(1).all()
