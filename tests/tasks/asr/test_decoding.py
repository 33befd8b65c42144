"""Greedy and beam search against loops without a cache, and against all sequences there are."""

import itertools

import pytest
import torch

from bbnet.tasks.asr.decoding import beam_search, greedy, transcribe
from bbnet.tasks.asr.settings import Decoding

FRAMES = [60, 7, 41, 119, 8]
EOS = 1


def memory_of(model, batch, row: int | None = None):
    """Of the batch, or of one utterance alone and without padding."""
    if row is None:
        return model.encode(batch.features, batch.frames)
    frames = int(batch.frames[row])
    return model.encode(batch.features[row : row + 1, :frames], batch.frames[row : row + 1])


@torch.no_grad()
def next_logs(model, memory, written: list[int]) -> torch.Tensor:
    """Log-probabilities [vocabulary] of what follows, by a whole forward pass; the padding is impossible."""
    logits = model.decode(torch.tensor([[EOS, *written]]), memory)[0, -1].clone()
    logits[0] = -torch.inf
    return logits.log_softmax(0)


def naive_greedy(model, memory, limit: int) -> list[int]:
    written: list[int] = []
    while len(written) < limit:
        token = int(next_logs(model, memory, written).argmax())
        if token == EOS:
            break
        written.append(token)
    return written


def all_hypotheses(model, memory, limit: int, vocabulary: int) -> dict[tuple[int, ...], tuple[float, int]]:
    """Log-probability and length, the end counted, of every sequence that ends, or is cut off at the limit."""
    logs = {
        prefix: next_logs(model, memory, list(prefix)).double()
        for length in range(limit)
        for prefix in itertools.product(range(2, vocabulary), repeat=length)
    }
    found = {}
    for length in range(limit + 1):
        for tokens in itertools.product(range(2, vocabulary), repeat=length):
            total = sum(float(logs[tokens[:place]][token]) for place, token in enumerate(tokens))
            if length < limit:
                found[tokens] = (total + float(logs[tokens][EOS]), length + 1)
            else:
                found[tokens] = (total, length)
    return found


@pytest.fixture
def toy(small_model, random_batch):
    """A model of few tokens whose probabilities are uneven, and five utterances."""

    def make(seed: int, vocabulary: int, **changed):
        model = small_model(seed, vocabulary, decoder_layers=1, **changed)
        return model, random_batch(FRAMES, [1] * len(FRAMES), seed=seed)

    return make


# Greedy.


@pytest.mark.parametrize("seed", range(5))
def test_greedy_writes_what_a_loop_without_cache_writes(small_model, random_batch, seed):
    model, batch = small_model(seed, 12), random_batch(FRAMES, [1] * 5, seed=seed)
    limits = torch.tensor([12, 3, 1, 9, 12])
    found = greedy(model, memory_of(model, batch), limits)
    for row, limit in enumerate(limits.tolist()):
        assert found[row] == naive_greedy(model, memory_of(model, batch, row), limit)


def test_greedy_of_one_is_greedy_of_many(small_model, random_batch):
    model = small_model(3, 12)
    batch, wider = (random_batch(FRAMES, [1] * 5, more=more) for more in (0, 30))
    limits = torch.tensor([9, 4, 6, 12, 2])
    together = greedy(model, memory_of(model, batch), limits)
    assert greedy(model, memory_of(model, wider), limits) == together
    for row in range(5):
        assert greedy(model, memory_of(model, batch, row), limits[row : row + 1]) == [together[row]]
    backwards = model.encode(batch.features.flip(0), batch.frames.flip(0))
    assert greedy(model, backwards, limits.flip(0)) == together[::-1]


def bias_towards(model, token: int, amount: float) -> None:
    with torch.no_grad():
        model.head.bias[token] += amount


def test_greedy_stops_at_the_end_and_at_the_limit(toy):
    model, batch = toy(0, 5)
    limits = torch.tensor([1, 2, 3, 4, 5])
    bias_towards(model, EOS, 1e4)
    assert greedy(model, memory_of(model, batch), limits) == [[]] * 5
    bias_towards(model, EOS, -2e4)
    assert list(map(len, greedy(model, memory_of(model, batch), limits))) == [1, 2, 3, 4, 5]


def test_nobody_writes_padding_or_the_end(toy):
    model, batch = toy(0, 5)
    bias_towards(model, 0, 1e4)
    limits = torch.full((5,), 6)
    written = greedy(model, memory_of(model, batch), limits)
    written += beam_search(model, memory_of(model, batch), limits, 4, 1.0)
    assert all(token >= 2 for tokens in written for token in tokens)
    assert any(written)


# Beam search.


@pytest.mark.parametrize(("vocabulary", "limit"), [(4, 4), (5, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_of_all_sequences(toy, seed, vocabulary, limit):
    model, batch = toy(seed, vocabulary)
    everything = [all_hypotheses(model, memory_of(model, batch, row), limit, vocabulary) for row in range(len(FRAMES))]
    for exponent in (0.0, 0.5, 1.0, 2.0):
        limits = torch.full((len(FRAMES),), limit)
        found = beam_search(model, memory_of(model, batch), limits, (vocabulary - 2) ** limit, exponent)
        for tokens, hypotheses in zip(found, everything, strict=True):
            scores = {own: total / length**exponent for own, (total, length) in hypotheses.items()}
            assert scores[tuple(tokens)] == pytest.approx(max(scores.values()), abs=1e-5)


@pytest.mark.parametrize("towards_end", [-3.0, -1.0, 2.0, 4.0])
@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_whether_the_end_is_likely_or_not(toy, towards_end, exponent):
    model, batch = toy(7, 4)
    bias_towards(model, EOS, towards_end)
    limits = torch.tensor([1, 2, 3, 4, 3])
    found = beam_search(model, memory_of(model, batch), limits, 16, exponent)
    for row, (tokens, limit) in enumerate(zip(found, limits.tolist(), strict=True)):
        hypotheses = all_hypotheses(model, memory_of(model, batch, row), limit, 4)
        scores = {own: total / length**exponent for own, (total, length) in hypotheses.items()}
        assert len(tokens) <= limit
        assert scores[tuple(tokens)] == pytest.approx(max(scores.values()), abs=1e-5)


@pytest.mark.parametrize("beam", [2, 3, 5])
@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_a_narrow_beam_is_what_a_loop_over_lists_keeps(toy, beam, exponent):
    """Of the hypotheses that go on the likeliest live; each may end at any step."""
    for seed in range(2):
        model, batch = toy(seed, 6)
        bias_towards(model, EOS, -1.0)
        limits = torch.tensor([6, 2, 5, 6, 1])
        found = beam_search(model, memory_of(model, batch), limits, beam, exponent)
        for row, limit in enumerate(limits.tolist()):
            memory = memory_of(model, batch, row)
            live, ended = [((), 0.0)], {}
            for step in range(limit):
                going = []
                for tokens, total in live:
                    logs = next_logs(model, memory, list(tokens)).double().tolist()
                    ended[tokens] = (total + logs[EOS]) / (step + 1) ** exponent
                    going += [((*tokens, token), total + logs[token]) for token in range(2, 6)]
                live = sorted(going, key=lambda pair: -pair[1])[:beam]
            ended |= {tokens: total / limit**exponent for tokens, total in live}
            assert ended[tuple(found[row])] == pytest.approx(max(ended.values()), abs=1e-5)


@pytest.mark.parametrize("beam", [2, 4])
def test_beam_search_of_one_is_beam_search_of_many(small_model, random_batch, beam):
    for seed in range(2):
        model = small_model(seed, 9)
        batch, wider = (random_batch(FRAMES, [1] * 5, more=more) for more in (0, 30))
        limits = torch.tensor([9, 4, 6, 12, 2])
        together = beam_search(model, memory_of(model, batch), limits, beam, 1.0)
        assert beam_search(model, memory_of(model, wider), limits, beam, 1.0) == together
        for row in range(5):
            alone = memory_of(model, batch, row)
            assert beam_search(model, alone, limits[row : row + 1], beam, 1.0) == [together[row]]


def test_a_beam_of_one_without_normalisation_never_beats_a_wider_one(toy):
    for seed in range(2):
        model, batch = toy(seed, 5)
        limits = torch.full((5,), 3)
        narrow, wide = (beam_search(model, memory_of(model, batch), limits, beam, 0.0) for beam in (1, 27))
        for row in range(5):
            hypotheses = all_hypotheses(model, memory_of(model, batch, row), 3, 5)
            assert hypotheses[tuple(wide[row])][0] >= hypotheses[tuple(narrow[row])][0] - 1e-5


def test_a_beam_wider_than_the_vocabulary_is_possible(toy):
    model, batch = toy(0, 4)
    found = beam_search(model, memory_of(model, batch), torch.tensor([3, 1, 2, 3, 3]), 64, 1.0)
    assert all(len(tokens) <= limit for tokens, limit in zip(found, [3, 1, 2, 3, 3], strict=True))


@torch.no_grad()
def test_the_settings_choose_the_search(toy):
    model, batch = toy(2, 4)
    limits = torch.tensor([3, 1, 2, 3, 3])
    memory = memory_of(model, batch)
    found = [
        transcribe(model, batch.features, batch.frames, limits, Decoding(beam=beam, length_normalisation=exponent))
        for beam, exponent in ((1, 1.0), (8, 0.0), (8, 2.0))
    ]
    expected = [greedy(model, memory, limits), *(beam_search(model, memory, limits, 8, how) for how in (0.0, 2.0))]
    assert found == expected
    assert found[1] != found[2]


def test_decoding_keeps_no_gradient(toy):
    model, batch = toy(2, 4)
    with torch.no_grad():
        memory = memory_of(model, batch)
    for search in (greedy, lambda *inputs: beam_search(*inputs, 3, 1.0)):
        search(model, memory, torch.full((5,), 3))
    assert all(parameter.grad is None for parameter in model.parameters())
