"""The model's size, its slabs, and that padding changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from bbnet.sparsity.on_rate import OnRates
from bbnet.sparsity.slab import slab_shape, slab_weight
from bbnet.tasks.asr import task
from bbnet.tasks.asr.model import SpeechTransformer, sinusoids

FRAMES, COUNTS = [90, 7, 33, 121, 8], [4, 1, 0, 9, 2]
NOTEBOOK = 25_394_384  # parameters, as it prints them


def singles(batch):
    """Each utterance as a batch of one without padding."""
    for row, (frames, count) in enumerate(zip(batch.frames.tolist(), batch.counts.tolist(), strict=True)):
        yield replace(
            batch,
            features=batch.features[row : row + 1, :frames],
            tokens=batch.tokens[row : row + 1, : max(1, count)],
            frames=batch.frames[row : row + 1],
            counts=batch.counts[row : row + 1],
        )


def places(frames: int) -> int:
    return ((frames - 3) // 2 + 1 - 3) // 2 + 1


def outputs(model, batch):
    with torch.no_grad():
        return model(batch.features, batch.frames, batch.decoder_inputs())


# Size.


@pytest.fixture
def paper_size(sizes):
    """Parameters of the paper's model without a CTC head, of 1,000 tokens."""
    layers = {"encoder_layers": 4, "decoder_layers": 4, "heads": 8, "stem_channels": 384}
    model = SpeechTransformer(sizes(width=384, hidden=1536, ctc_weight=0.0, **layers), 1000)
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_papers_size_is_the_notebooks_but_for_three_parts(paper_size):
    """The notebook counts a two-way LSTM of 192 that it bypasses and a second head of 1,000, and has no last norm."""
    lstm = 2 * 4 * (192 * (384 + 192) + 2 * 192)
    head, norm = 384 * 1000 + 1000, 2 * 384
    assert paper_size == NOTEBOOK - lstm - head + norm
    assert abs(paper_size / NOTEBOOK - 1) < 0.06


def test_the_papers_size_is_the_sum_over_its_layers(paper_size):
    stem = (9 * 384 + 384) + (384 * 384 * 9 + 384) + (384 * 37 * 384 + 384)
    attention, ffn, norm = 4 * (384 * 384 + 384), 2 * 384 * 1536 + 1536 + 384, 2 * 384
    encoder, decoder = 4 * (attention + ffn + 2 * norm) + norm, 4 * (2 * attention + ffn + 3 * norm) + norm
    assert paper_size == stem + encoder + decoder + 1000 * 384 + 384 * 1000 + 1000


def test_without_a_ctc_weight_there_is_no_ctc_head(small_model, random_batch):
    batch = random_batch([30, 20], [2, 3])
    without, with_ = small_model(ctc_weight=0.0), small_model(ctc_weight=0.3)
    assert outputs(without, batch).ctc is None
    assert outputs(with_, batch).ctc.shape == (2, places(30), 30)
    difference = sum(p.numel() for p in with_.parameters()) - sum(p.numel() for p in without.parameters())
    assert difference == 16 * 30 + 30


def test_both_stacks_end_in_a_norm(small_model, random_batch):
    model = small_model()
    seen = {}
    for name in ("encoder_norm", "decoder_norm"):
        norm = model.get_submodule(name)
        assert isinstance(norm, torch.nn.LayerNorm)
        torch.nn.init.ones_(norm.weight)
        torch.nn.init.zeros_(norm.bias)
        norm.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    outputs(model, random_batch([30, 20], [2, 3]))
    for output in seen.values():
        torch.testing.assert_close(output.mean(-1), torch.zeros(output.shape[:-1]), atol=1e-5, rtol=0)
    assert set(seen) == {"encoder_norm", "decoder_norm"}


def test_positions_are_sines_and_cosines_of_falling_rate():
    found = sinusoids(3, 5, torch.zeros(1, 8))
    for row in range(5):
        for pair in range(4):
            angle = torch.tensor((3 + row) / 10_000 ** (2 * pair / 8))
            assert found[row, pair] == pytest.approx(torch.sin(angle).item(), abs=1e-5)
            assert found[row, 4 + pair] == pytest.approx(torch.cos(angle).item(), abs=1e-5)


@pytest.mark.parametrize("length", [7, 8, 9, 10, 11, 14, 15, 16, 63, 64, 65, 66])
def test_the_encoder_has_as_many_positions_as_the_rule_says(small_model, length):
    memory = small_model().encode(torch.randn(2, length, 80), torch.tensor([length, 7]))
    assert memory.states.shape == (2, places(length), 16)
    assert memory.valid.flatten(1).sum(1).tolist() == [places(length), 1]


def test_a_token_does_not_see_those_behind_it(small_model, random_batch):
    model, batch = small_model(), random_batch([60], [8])
    whole = outputs(model, batch).tokens
    changed = batch.tokens.clone()
    changed[:, 5] = (changed[:, 5] - 2 + 1) % 28 + 2
    other = outputs(model, replace(batch, tokens=changed)).tokens
    torch.testing.assert_close(whole[:, :6], other[:, :6], atol=1e-6, rtol=0)
    assert not torch.allclose(whole[:, 6:], other[:, 6:], atol=1e-3)


def test_tokens_depend_on_the_whole_utterance(small_model, random_batch):
    model, batch = small_model(), random_batch([60], [3])
    before = outputs(model, batch).tokens
    for frame in (0, 30, 58):
        features = batch.features.clone()
        features[:, frame] += 5
        assert not torch.allclose(outputs(model, replace(batch, features=features)).tokens, before, atol=1e-5)


# Padding.


@pytest.mark.parametrize("more", [0, 1, 2, 3, 50])
def test_padding_changes_no_logit(small_model, random_batch, more):
    model, batch = small_model(), random_batch(FRAMES, COUNTS, more=more)
    together = outputs(model, batch)
    for row, single in enumerate(singles(batch)):
        alone = outputs(model, single)
        count, length = int(single.counts), places(int(single.frames))
        torch.testing.assert_close(together.tokens[row, : count + 1], alone.tokens[0, : count + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.ctc[row, :length], alone.ctc[0], atol=1e-5, rtol=0)


def test_what_stands_in_the_padding_changes_no_logit(small_model, random_batch):
    model, batch = small_model(), random_batch(FRAMES, COUNTS)
    features, tokens = batch.features.clone(), batch.tokens.clone()
    for row, (frames, count) in enumerate(zip(FRAMES, COUNTS, strict=True)):
        features[row, frames:] = 1e3
        tokens[row, count:] = 17
    before, after = outputs(model, batch), outputs(model, replace(batch, features=features, tokens=tokens))
    for row, (frames, count) in enumerate(zip(FRAMES, COUNTS, strict=True)):
        torch.testing.assert_close(before.tokens[row, : count + 1], after.tokens[row, : count + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            before.ctc[row, : places(frames)], after.ctc[row, : places(frames)], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("changed", [{}, {"ctc_weight": 0.0}, {"ctc_weight": 0.9}, {"label_smoothing": 0.2}])
def test_padding_does_not_change_an_utterances_loss(small_model, random_batch, changed):
    model = small_model(spread=0.7, **changed)
    for frames, count in ((90, 4), (7, 1), (33, 0), (121, 9)):
        expected = task.loss(model, random_batch([frames], [count]))
        for more in (1, 3, 40):
            found = task.loss(model, random_batch([frames], [count], more=more))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def likelihoods_by_brute_force(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """CTC: the summed probability of all alignments, blank 0, by walking through all of them."""
    probabilities = logits.double().softmax(-1)
    found = torch.zeros((), dtype=torch.float64)
    symbols = sorted({0, *tokens})

    def walk(time: int, probability: torch.Tensor, path: list[int]) -> None:
        nonlocal found
        if time == len(logits):
            merged = [symbol for place, symbol in enumerate(path) if place == 0 or symbol != path[place - 1]]
            if [symbol for symbol in merged if symbol] == tokens:
                found = found + probability
            return
        for symbol in symbols:
            walk(time + 1, probability * probabilities[time, symbol], [*path, symbol])

    walk(0, torch.ones((), dtype=torch.float64), [])
    return found.log()


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.8])
def test_the_loss_is_the_mean_over_tokens_of_both_parts(small_model, random_batch, weight):
    frames, counts = [23, 30, 19], [2, 3, 1]
    model, batch = small_model(spread=0.7, ctc_weight=weight), random_batch(frames, counts)
    output = outputs(model, batch)
    crosses, ctc = [], []
    for row, (length, count) in enumerate(zip(frames, counts, strict=True)):
        own = batch.tokens[row, :count].tolist()
        for place, label in enumerate([*own, 1]):
            crosses.append(-output.tokens[row, place].double().log_softmax(0)[label])
        if weight:
            ctc.append(-likelihoods_by_brute_force(output.ctc[row, : places(length)], own))
    expected = (1 - weight) * torch.stack(crosses).mean()
    if weight:
        expected = expected + weight * torch.stack(ctc).sum() / sum(counts)
    assert task.loss(model, batch).item() == pytest.approx(expected.item(), abs=1e-5)


def test_label_smoothing_spreads_over_the_vocabulary(small_model, random_batch):
    model, batch = small_model(ctc_weight=0.0, label_smoothing=0.1), random_batch([40], [3])
    logs = outputs(model, batch).tokens[0].double().log_softmax(-1)
    labels = [*batch.tokens[0].tolist(), 1]
    expected = torch.stack([-0.9 * logs[place, label] - 0.1 * logs[place].mean() for place, label in enumerate(labels)])
    assert task.loss(model, batch).item() == pytest.approx(expected.mean().item(), abs=1e-5)


def test_more_tokens_than_ctc_can_align_leave_a_finite_loss(small_model, random_batch):
    model = small_model()
    batch = random_batch([7, 60], [9, 3])
    loss = task.loss(model, batch)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_utterances_without_tokens_leave_a_finite_loss(small_model, random_batch):
    model = small_model()
    loss = task.loss(model, random_batch([7, 60], [0, 0]))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_the_gradient_reaches_every_parameter(small_model, random_batch, weight, activation):
    model = small_model(ctc_weight=weight, activation=activation, dropout=0.1).train()
    task.loss(model, random_batch([90, 40, 60], [8, 3, 6])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


# Slabs and on-rates.


@pytest.mark.parametrize(("which", "stacks"), [("paper", ["decoder"]), ("wide", ["encoder", "decoder"])])
@pytest.mark.parametrize("side", ["in", "out", "both"])
def test_slabs_are_feed_forward_layers_of_hidden_units(small_model, which, stacks, side):
    model = small_model(encoder_layers=3)
    layers = {f"{stack}.{number}.ffn" for stack in stacks for number in range(3 if stack == "encoder" else 2)}
    found = task.slabs(model, which, side)
    expected = {(f"{layer}.expand", "in") for layer in layers if side in ("in", "both")}
    expected |= {(f"{layer}.contract", "out") for layer in layers if side in ("out", "both")}
    assert {(slab.name, slab.side) for slab in found} == expected
    assert len(found) == len(expected)
    for slab in found:
        assert slab_shape(slab_weight(model, slab), slab.side) == (24, 16)
        assert slab.units == (slab.name.rpartition(".")[0] + ".expand",)
        assert not slab.normalised


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_units_are_on_where_their_activation_is_positive(small_model, random_batch, activation):
    model = small_model(activation=activation)
    slab = task.slabs(model, "paper", "out")[0]
    seen = {}
    model.get_submodule(slab.units[0]).register_forward_hook(lambda *_: seen.__setitem__("before", _[2]))
    model.get_submodule(slab.name).register_forward_pre_hook(lambda *_: seen.__setitem__("after", _[1][0]))
    outputs(model, random_batch([60, 30], [3, 5]))
    assert ((seen["before"] > 0) == (seen["after"] > 0)).all()


@pytest.mark.parametrize("side", ["in", "out", "both"])
@pytest.mark.parametrize("more", [0, 7])
def test_padding_does_not_count_in_on_rates(small_model, random_batch, side, more):
    model, batch = small_model(), random_batch(FRAMES, COUNTS, more=more)
    slabs = task.slabs(model, "wide", side)
    counts = []
    for batches in ([batch], list(singles(batch))):
        rates = OnRates.of_slabs(model, slabs, stride=1, in_training=False)
        for one in batches:
            with rates.valid(task.valid_positions(model, one)):
                outputs(model, one)
        rates.remove()
        counts.append({name: (sums.total.tolist(), int(sums.seen)) for name, sums in rates.sums.items()})
    assert counts[0].keys() == {name for slab in slabs for name in slab.units}
    for name, (total, seen) in counts[0].items():
        expected = sum(map(places, FRAMES)) if name.startswith("encoder") else sum(COUNTS) + len(COUNTS)
        assert seen == counts[1][name][1] == expected
        # One unit in 24 may stand within rounding of 0 at one position.
        assert sum(abs(one - other) for one, other in zip(total, counts[1][name][0], strict=True)) <= 1


def test_an_utterance_of_mean_length_goes_through_the_model(small_model):
    inputs = task.example_inputs({"mean_frames": 77, "mean_tokens": 5}, torch.device("cpu"))
    model = small_model()
    output = model(*inputs)
    assert output.tokens.shape == (1, 6, 30)
    assert output.ctc.shape == (1, places(77), 30)


def test_settings_reach_the_layers(small_model):
    model = small_model(activation="relu", dropout=0.25, encoder_layers=1, decoder_layers=3)
    assert (len(model.encoder), len(model.decoder)) == (1, 3)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    assert any(isinstance(module, torch.nn.ReLU) for module in model.modules())
    assert not any(isinstance(module, torch.nn.GELU) for module in model.modules())


def test_pre_norm_layers_add_to_what_they_read(small_model):
    """An encoder layer computed by hand."""
    layer = small_model().encoder[0]
    states = torch.randn(1, 5, 16)
    valid = torch.tensor([True, True, True, True, False])[None, None, None]
    normed = layer.norm1(states)
    query = layer.attention.query(normed)
    key, value = layer.attention.key_value(normed).chunk(2, -1)
    mixed = []
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        scores = query[..., own] @ key[..., own].transpose(1, 2) / 8**0.5
        scores[..., 4] = -torch.inf
        mixed.append(scores.softmax(-1) @ value[..., own])
    middle = states + layer.attention.output(torch.cat(mixed, -1))
    ffn = layer.ffn.contract(functional.gelu(layer.ffn.expand(layer.norm2(middle))))
    torch.testing.assert_close(layer(states, valid), middle + ffn, atol=1e-5, rtol=1e-5)
