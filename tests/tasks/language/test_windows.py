"""Windows of tokens: every token of dev and test is scored once, behind enough context, and training sees all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bbnet.tasks.language.data.batches import TextToScore, TrainingText, windows_of
from bbnet.tasks.language.settings import windows_per_epoch
from bbnet.tasks.settings import FixedBatchTraining

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(2, 33))
def test_each_token_is_scored_once_behind_half_a_context_of_its_own_document(lengths, context):
    starts = 1 + np.cumsum([0, *lengths])
    found = windows_of(starts, context)
    times = np.zeros(starts[-1] - 1, dtype=int)
    for start, length, skipped in zip(*(each.tolist() for each in vars(found).values()), strict=True):
        assert 0 <= skipped < length <= context
        document = np.searchsorted(starts, start + 1, side="right") - 1
        assert starts[document] - 1 <= start and start + length < starts[document + 1]
        for place in range(skipped, length):
            times[start + place] += 1
            assert place + 1 >= min(context / 2, start + place + 2 - starts[document])
    assert (times == 1).all()
    assert (np.diff(found.length) <= 0).all()


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("context", [8, 16, 1000])
def test_batches_have_the_tokens_of_their_places(prepared, split, context):
    pack = prepared(context=context)
    text = TextToScore(pack.folder, pack.index, split)
    places = []
    for indices in text.in_order():
        batch = text.batch(indices, CPU)
        assert batch.inputs.shape == batch.places.shape
        chosen = batch.places[batch.scored]
        assert torch.equal(batch.targets[batch.scored], text.tokens[chosen + 1].long())
        assert torch.equal(batch.inputs[batch.scored], text.tokens[chosen].long())
        places += chosen.tolist()
    assert sorted(places) == list(range(len(text.tokens) - 1))
    assert text.by_document(np.ones(len(places))).tolist() == np.diff(text.starts).tolist()


def test_training_windows_follow_each_other_from_a_random_start(prepared):
    pack = prepared()
    text, training = TrainingText(pack.folder, pack.index), training_of(4)
    firsts = set()
    for seed in range(8):
        batches = text.batches(training, torch.Generator().manual_seed(seed))
        assert len(batches) == text.steps_per_epoch(training) and {len(each) for each in batches} == {4}
        starts = torch.cat(batches).sort().values
        assert len(starts.unique()) == len(starts) and starts.max() + text.context < len(text.tokens)
        firsts.add(int(starts[0] % text.context))
        assert set((starts % text.context).tolist()) == {int(starts[0] % text.context)}
        batch = text.batch(batches[0], CPU)
        assert batch.scored is None and batch.tokens.dtype == torch.int64
        assert torch.equal(batch.targets[:, :-1], batch.inputs[:, 1:])
        first = int(batches[0][0])
        assert torch.equal(batch.tokens[0], text.tokens[first : first + text.context + 1].long())
    assert len(firsts) > 3
    last = text.batch(torch.tensor([len(text) - 1]), CPU)
    assert torch.equal(last.targets[0], text.tokens[-text.context :].long())
    assert [len(each) for each in text.in_order()] and sum(map(len, text.in_order())) == text.windows


def test_too_short_a_text_for_a_batch_is_named(prepared):
    pack = prepared(context=512)
    with pytest.raises(ValueError, match=r"batch_size 64 exceeds the \d windows of 512 tokens"):
        TrainingText(pack.folder, pack.index).steps_per_epoch(training_of(64))


@pytest.mark.parametrize(("tokens", "windows"), [(0, 0), (9, 0), (18, 0), (19, 1), (28, 1), (29, 2)])
def test_an_epoch_has_as_many_windows_whatever_it_begins_with(tokens, windows):
    context = 10
    assert windows_per_epoch(tokens, context) == windows
    # a stream of END and the tokens, from the last possible start
    assert windows * context + (context - 1) + 1 <= tokens + 1 or not windows


def training_of(batch_size: int) -> FixedBatchTraining:
    return FixedBatchTraining(epochs=2, warm_up_epochs=1, batch_size=batch_size, learning_rate=0.01)
