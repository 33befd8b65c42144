"""On-rates against plain counting."""

import io
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bbnet.sparsity import ranks
from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.slab import Slab


class Echo(nn.Linear):
    """A linear layer in name: its output is its input, so a test decides what the units show."""

    def forward(self, x):
        return x


def echo(units):
    return Echo(units, units)


def naive_counts(output, channel_axis, valid=None):
    """(on counts by unit, positions) by loops over every element."""
    extents = [extent for axis, extent in enumerate(output.shape) if axis != channel_axis]
    units = output.shape[channel_axis]
    on, seen = [0] * units, 0
    for position in product(*(range(extent) for extent in extents)):
        if valid is not None and not bool(valid[position]):
            continue
        seen += 1
        for unit in range(units):
            index = (*position[:channel_axis], unit, *position[channel_axis:])
            on[unit] += bool(output[index] > 0)
    return on, seen


def naive_rates(*args, **kwargs):
    on, seen = naive_counts(*args, **kwargs)
    return [count / seen for count in on]


def counted(on_rates, name="layer"):
    on_rates.fold()
    return on_rates.of((name,))[0].tolist()


SHAPES = [
    (lambda: nn.Linear(6, 5), (9, 6), 1),
    (lambda: nn.Linear(6, 5), (3, 7, 6), 2),
    (lambda: nn.Linear(6, 5), (2, 3, 4, 6), 3),
    (lambda: nn.Conv2d(3, 5, 3), (2, 3, 6, 7), 1),
    (lambda: nn.Conv1d(3, 5, 3), (2, 3, 9), 1),
    (lambda: nn.BatchNorm2d(3), (2, 3, 6, 7), 1),
    (lambda: nn.BatchNorm1d(6), (9, 6), 1),
    (lambda: nn.GroupNorm(1, 4), (2, 4, 5, 6), 1),
    (lambda: nn.LayerNorm(6), (3, 7, 6), 2),
]


@pytest.mark.parametrize("build, shape, channel_axis", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_on_rates_are_the_share_of_valid_positions_above_zero(build, shape, channel_axis, masked):
    layer = build()
    x = torch.randn(shape)
    output = layer(x).detach()
    on_rates = OnRates({"layer": layer}, stride=1)
    valid = None
    if masked:
        valid = torch.rand([extent for axis, extent in enumerate(output.shape) if axis != channel_axis]) < 0.6
        with on_rates.valid(valid):
            layer(x)
    else:
        layer(x)
    assert counted(on_rates) == pytest.approx(naive_rates(output, channel_axis, valid), abs=1e-6)


def test_on_rates_are_exact_to_double_precision():
    layer = echo(3)
    on_rates = OnRates({"layer": layer}, stride=1)
    layer(torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]))
    assert counted(on_rates) == pytest.approx([2 / 3, 1 / 3, 1 / 3], rel=1e-14)


def test_zero_is_off():
    layer = echo(3)
    on_rates = OnRates({"layer": layer}, stride=1)
    layer(torch.tensor([[0.0, -0.0, 1e-30]] * 4))
    assert counted(on_rates) == [0, 0, 1]


@pytest.mark.parametrize("shape, axis", [((1400, 3), 0), ((100, 16, 3), 1), ((5, 300, 3), 1)])
def test_positions_are_subsampled_by_the_stride_and_four_steps_see_all(shape, axis):
    layer = echo(3)
    on_rates = OnRates({"layer": layer}, stride=4)
    x = torch.randn(shape)
    on, seen = naive_counts(x, len(shape) - 1)
    total = torch.zeros(3, dtype=torch.float64)
    for _ in range(4):
        layer(x)
        assert int(on_rates.sums["layer"].seen) == seen // 4
        total += on_rates.sums["layer"].total
        on_rates.fold()
    assert total.tolist() == on


def test_convolutions_are_subsampled_too():
    layer = nn.Conv2d(3, 4, 1)
    on_rates = OnRates({"layer": layer})
    x = torch.randn(30, 3, 8, 6)
    layer(x)
    assert int(on_rates.sums["layer"].seen) == 30 * 6 * 2


@pytest.mark.parametrize(
    "shape, seen",
    [((1, 3), 1), ((799, 3), 799), ((800, 3), 200), ((4, 199, 3), 796), ((200, 7, 3), 1400), ((100, 8, 3), 200)],
)
def test_few_positions_and_short_axes_are_not_subsampled(shape, seen):
    layer = echo(3)
    on_rates = OnRates({"layer": layer}, stride=4)
    layer(torch.randn(shape))
    assert int(on_rates.sums["layer"].seen) == seen


def test_the_valid_mask_is_subsampled_with_the_positions():
    layer = echo(3)
    on_rates = OnRates({"layer": layer}, stride=4)
    x, valid = torch.randn(90, 16, 3), torch.rand(90, 16) < 0.5
    on, seen = torch.zeros(3, dtype=torch.float64), 0
    for _ in range(4):
        with on_rates.valid(valid):
            layer(x)
        on += on_rates.sums["layer"].total
        seen += int(on_rates.sums["layer"].seen)
        on_rates.fold()
    assert (on.tolist(), seen) == naive_counts(x, 2, valid)


def test_a_valid_mask_of_another_shape_is_refused_and_ends_with_its_block():
    layer = echo(3)
    on_rates = OnRates({"layer": layer}, stride=1)
    with pytest.raises(ValueError, match=r"\[5, 2\].*layer.*\[5, 4\]"), on_rates.valid(torch.ones(5, 2, dtype=bool)):
        layer(torch.randn(5, 4, 3))
    x = torch.randn(5, 4, 3)
    layer(x)
    assert counted(on_rates) == pytest.approx(naive_rates(x, 2), abs=1e-6)


def test_a_batch_of_padding_alone_changes_nothing():
    layer = echo(2)
    on_rates = OnRates({"layer": layer}, stride=1)
    layer(torch.ones(3, 2))
    before = counted(on_rates)
    with on_rates.valid(torch.zeros(3, dtype=torch.bool)):
        layer(-torch.ones(3, 2))
    assert counted(on_rates) == before == [1, 1]


def test_only_training_mode_counts():
    layer = echo(2)
    on_rates = OnRates({"layer": layer}, stride=1)
    layer.eval()(torch.ones(50, 2))
    layer.train()(-torch.ones(3, 2))
    assert counted(on_rates) == [0, 0]


def test_forward_passes_and_shared_branches_are_pooled_by_their_positions():
    layer = echo(3)
    on_rates = OnRates({"layer": layer}, stride=1)
    branches = [torch.randn(size, 3) for size in (5, 2, 9)]
    for branch in branches:
        layer(branch)
    assert counted(on_rates) == pytest.approx(naive_rates(torch.cat(branches), 1), abs=1e-6)


def test_counting_leaves_outputs_and_gradients_alone():
    torch.manual_seed(3)
    layer, twin = nn.Linear(6, 5), nn.Linear(6, 5)
    twin.load_state_dict(layer.state_dict())
    OnRates({"layer": layer})
    x = torch.randn(16, 6)
    for each in (layer, twin):
        each(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, twin.weight.grad)


def test_the_average_is_the_closed_form_of_a_bias_corrected_ema():
    layer = echo(4)
    on_rates = OnRates({"layer": layer}, decay=0.9, stride=1)
    shares = []
    for size in (4, 8, 16, 5, 3):
        x = torch.randn(size, 4)
        layer(x)
        on_rates.fold()
        shares.append(torch.tensor(naive_rates(x, 1), dtype=torch.float64))
    steps = len(shares)
    weighted = sum(0.1 * 0.9 ** (steps - 1 - step) * share for step, share in enumerate(shares))
    expected = weighted / (1 - 0.9**steps)
    assert on_rates.of(("layer",))[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_default_decay_is_ninety_nine_hundredths():
    layer = echo(1)
    on_rates = OnRates({"layer": layer})
    layer(torch.ones(1, 1))
    on_rates.fold()
    layer(-torch.ones(1, 1))
    assert counted(on_rates) == pytest.approx([0.99 / 1.99])


def silence(on_rates):
    return on_rates.of(("layer",))[1].tolist()


@pytest.mark.parametrize("positions, silent", [(999, False), (1000, True), (5000, True)])
def test_silence_needs_a_thousand_positions(positions, silent):
    layer = echo(2)
    on_rates = OnRates({"layer": layer}, stride=1)
    x = -torch.ones(positions, 2)
    x[:, 1] = 1
    layer(x)
    on_rates.fold()
    assert silence(on_rates) == [silent, False]


def test_silence_is_an_exact_count_and_judged_anew_once_a_thousand_positions_were_seen():
    layer = echo(2)
    on_rates = OnRates({"layer": layer}, stride=1)
    once_on = -torch.ones(2000, 2)
    once_on[7, 0] = 1
    for x in (once_on, -torch.ones(2000, 2)):
        layer(x)
        on_rates.fold()
    assert silence(on_rates) == [False, True]
    on_rates.forget()
    layer(-torch.ones(600, 2))
    on_rates.fold()
    assert silence(on_rates) == [False, True]  # with the positions before the refresh
    layer(-torch.ones(600, 2))
    on_rates.fold()
    assert silence(on_rates) == [True, True]
    assert on_rates.of(("layer",))[0][0] > 0


def test_refreshes_that_see_few_positions_judge_silence_by_several_of_them():
    layer = echo(2)
    on_rates, found = OnRates({"layer": layer}, stride=1), []
    # The first unit is on in the third refresh alone, the second in none.
    for refresh in range(9):
        x = -torch.ones(400, 2)
        x[0, 0] = 1 if refresh == 2 else -1
        layer(x)
        on_rates.fold()
        found.append(silence(on_rates))
        on_rates.forget()
    # Sums begin anew after the third, sixth and ninth refresh; before a thousand new positions the old ones count too.
    first = [False, False, False, False, False, True, True, True, True]
    assert found == [[one, refresh >= 2] for refresh, one in enumerate(first)]


def test_a_sampled_step_decays_the_average_like_all_the_steps_it_stands_for():
    layer = echo(1)
    on_rates = OnRates({"layer": layer}, stride=1, every=3)
    for x in (torch.ones(4, 1), -torch.ones(4, 1), -torch.ones(4, 1), -torch.ones(4, 1)):
        layer(x)
        on_rates.fold()
    decay = 0.99**3
    assert on_rates.of(("layer",))[0].item() == pytest.approx(decay / (1 + decay), rel=1e-12)


def test_positions_of_all_ranks_count_towards_silence(monkeypatch):
    """Of two ranks that see the same 600 positions."""
    two = {"is_available": lambda: True, "is_initialized": lambda: True, "get_world_size": lambda: 2}
    monkeypatch.setattr(ranks, "distributed", SimpleNamespace(all_reduce=lambda tensor: tensor.mul_(2), **two))
    layer = echo(2)
    on_rates = OnRates({"layer": layer}, stride=1)
    x = -torch.ones(600, 2)
    x[:150, 1] = 1
    layer(x)
    on_rates.fold()
    assert silence(on_rates) == [True, False]
    assert on_rates.of(("layer",))[0].tolist() == pytest.approx([0, 0.25])


def test_units_of_several_modules_are_joined_in_order():
    first, second = echo(2), echo(3)
    on_rates = OnRates({"first": first, "second": second}, stride=1)
    first(torch.ones(4, 2))
    second(-torch.ones(4, 3))
    on_rates.fold()
    assert on_rates.of(("first", "second"))[0].tolist() == [1, 1, 0, 0, 0]
    assert on_rates.of(("second", "first"))[0].tolist() == [0, 0, 0, 1, 1]


def test_a_module_that_was_never_seen_is_an_error():
    on_rates = OnRates({"layer": echo(2)})
    on_rates.fold()
    with pytest.raises(RuntimeError, match="no on-rates of layer.*training mode"):
        on_rates.of(("layer",))


def test_a_state_comes_back_and_goes_on_alike():
    def feed(layer, on_rates, seeds):
        for seed in seeds:
            layer(torch.randn(40, 3, generator=torch.Generator().manual_seed(seed)))
            on_rates.fold()

    layer, other = echo(3), echo(3)
    on_rates, resumed = OnRates({"layer": layer}), OnRates({"layer": other})
    feed(layer, on_rates, range(5))
    layer(torch.ones(9, 3))
    file = io.BytesIO()
    torch.save(on_rates.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True), torch.device("cpu"))
    for both in ((layer, on_rates), (other, resumed)):
        feed(*both, range(5, 9))
    assert torch.equal(on_rates.of(("layer",))[0], resumed.of(("layer",))[0])
    assert resumed.steps == on_rates.steps == 9


def test_a_saved_state_does_not_change_with_further_counting():
    layer = echo(2)
    on_rates = OnRates({"layer": layer}, stride=1)
    layer(torch.ones(3, 2))
    on_rates.fold()
    state = on_rates.state_dict()
    layer(-torch.ones(3, 2))
    on_rates.fold()
    assert state["steps"] == 1
    assert state["joined"]["seen_since"].tolist() == [3]


def test_units_of_a_convolution_are_channels_also_when_read_at_the_activation():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    at_layer = OnRates.of_slabs(model, [Slab("2", "out", "0")], stride=1)
    at_activation = OnRates.of_slabs(model, [Slab("2", "out", "1")], stride=1)
    model(torch.randn(4, 3, 8, 8))
    at_layer.fold()
    at_activation.fold()
    rates = at_layer.of(("0",))[0]
    assert len(rates) == 8
    assert torch.equal(rates, at_activation.of(("1",))[0])


def test_parts_of_a_model_have_valid_positions_of_their_own():
    model = nn.ModuleDict(
        {"encoder": nn.Sequential(nn.Linear(3, 4)), "decoder": nn.Linear(3, 4), "head": nn.Linear(3, 2)}
    )
    on_rates = OnRates({name: model.get_submodule(name) for name in ("encoder.0", "decoder", "head")}, stride=1)
    long, short = torch.randn(2, 6, 3), torch.randn(2, 5, 3)
    valid = {"encoder": torch.rand(2, 6) < 0.5, "decoder": torch.rand(2, 5) < 0.5, "enc": torch.zeros(1)}
    with on_rates.valid(valid):
        outputs = {
            "encoder.0": model["encoder"](long),
            "decoder": model["decoder"](short),
            "head": model["head"](short),
        }
    on_rates.fold()
    kept = {"encoder.0": valid["encoder"], "decoder": valid["decoder"], "head": torch.ones(2, 5, dtype=torch.bool)}
    for name, output in outputs.items():
        expected = (output[kept[name]] > 0).double().mean(0)
        assert torch.allclose(on_rates.of((name,))[0], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["pooled", "joined", "other"])
def test_valid_positions_fit_outputs_whose_positions_are_pooled_or_joined(kind):
    valid = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    shape = {"pooled": (3,), "joined": (9,), "other": (4,)}[kind]
    layer = nn.Identity()
    on_rates = OnRates({"layer": layer}, stride=1)
    with on_rates.valid(valid):
        if kind == "other":
            with pytest.raises(ValueError, match="do not match"):
                layer(torch.ones(*shape, 2))
            return
        layer(torch.ones(*shape, 2))
    assert on_rates.since(("layer",))[1].tolist() == [0, 0]
    on_rates.fold()
    assert on_rates.since(("layer",))[1].tolist() == [{"pooled": 2, "joined": 3}[kind]] * 2
