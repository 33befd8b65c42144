"""From a spoken corpus of a dozen utterances to scores."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bbnet.data.synthetic.spoken_words import LEXICON
from bbnet.tasks.asr import task
from bbnet.tasks.asr.buckets import make_buckets
from bbnet.tasks.asr.data.tokens import normalise
from bbnet.tasks.asr.decoding import beam_search
from bbnet.tasks.asr.settings import Faults, SpeechTraining, SpokenWords

CPU = torch.device("cpu")
PACK = {"pack": "spoken_words", "train": 6, "val": 2, "test": 3, "train_speakers": 2, "speakers": 1, "unseen": 0.4}
PACK |= {"words": 12, "unseen_words": 4, "shortest": 1, "longest": 3}


def edit_distance(one, other) -> int:
    row = list(range(len(other) + 1))
    for first, left in enumerate(one, 1):
        corner, row[0] = row[0], first
        for second, right in enumerate(other, 1):
            corner, row[second] = row[second], min(row[second] + 1, row[second - 1] + 1, corner + (left != right))
    return row[-1]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """The prepared folder and its index, with the buckets that scoring on test has."""
    raw, target = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        manifest = {"root": str(raw)} | task.fetch(SpokenWords(**PACK).model_dump(), raw)
        settings = {"tokens": {"kind": "characters"}, "faults": Faults().model_dump()}
        manifest = json.loads(json.dumps(manifest, sort_keys=True))
        index = json.loads(json.dumps(task.prepare(manifest, settings, target), sort_keys=True))
    assert manifest["audio_files"] == {"train-clean-100": 6, "dev-clean": 2, "test-clean": 3, "test-other": 3}
    return target, index | {"buckets": make_buckets(index)["types"]}


@pytest.fixture
def opened(spoken):
    return {split: task.open_split(*spoken, split) for split in ("train", "val", "test")}


def naive_transcript(model, split, number: int, limit: int) -> str:
    features = split.features[split.starts[number] : split.starts[number + 1]][None]
    memory = model.encode(features, torch.tensor([features.shape[1]]))
    written: list[int] = []
    while len(written) < limit:
        logits = model.decode(torch.tensor([[1, *written]]), memory)[0, -1]
        logits[0] = -torch.inf
        token = int(logits.argmax())
        if token == 1:
            break
        written.append(token)
    return normalise(split.tokeniser.decode(written))


def test_the_embedded_pack_is_prepared(opened):
    assert {name: len(split) for name, split in opened.items()} == {"train": 6, "val": 2, "test": 6}
    assert opened["test"].other.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(1 <= len(text.split()) <= 3 for split in opened.values() for text in split.texts)


@pytest.mark.parametrize("beam", [1, 3])
def test_items_have_a_row_per_utterance_in_the_order_of_the_index(spoken, small_model, beam):
    target, index = spoken
    split = task.open_split(target, index | {"decoding": {"beam": beam}}, "test")
    items, predictions = task.evaluate(small_model(), split, CPU)
    assert items["utterance"].tolist() == split.keys
    assert items["other"].tolist() == [0, 0, 0, 1, 1, 1]
    assert all(len(values) == len(split) for values in (*items.values(), *predictions.values()))
    assert items["words"].tolist() == [len(text.split()) for text in split.texts]
    assert items["characters"].tolist() == list(map(len, split.texts))


@torch.no_grad()
def test_hypotheses_are_those_of_each_utterance_alone(opened, small_model):
    split, model = opened["test"], small_model(seed=1)
    _, predictions = task.evaluate(model, split, CPU)
    for number, frames in enumerate(split.frames.tolist()):
        places = ((frames - 3) // 2 + 1 - 3) // 2 + 1
        limit = max(places, max(split.counts.tolist()) + 1)
        assert predictions["hypothesis"][number] == naive_transcript(model, split, number, limit)
    assert len(set(predictions["hypothesis"].tolist())) > 1


def test_items_sum_to_the_errors_of_the_corpus(opened, small_model):
    split = opened["test"]
    items, predictions = task.evaluate(small_model(seed=1), split, CPU)
    found = task.metrics(items)
    for suffix, rows in (("", range(3)), ("_other", range(3, 6))):
        pairs = [(split.texts[row], str(predictions["hypothesis"][row])) for row in rows]
        words = sum(len(text.split()) for text, _ in pairs)
        errors = sum(edit_distance(text.split(), own.split()) for text, own in pairs)
        letters = sum(edit_distance(text, own) for text, own in pairs)
        assert found[f"wer{suffix}"] == pytest.approx(100 * errors / words)
        assert found[f"cer{suffix}"] == pytest.approx(100 * letters / sum(len(text) for text, _ in pairs))
    in_training = {word for text in opened["train"].texts for word in text.split()}
    unseen = [sum(word not in in_training for word in text.split()) for text in split.texts]
    assert items["oov_words"].tolist() == unseen
    assert sum(unseen) > 0


def test_dev_is_scored_without_buckets(spoken, small_model):
    target, index = spoken
    split = task.open_split(target, {name: part for name, part in index.items() if name != "buckets"}, "val")
    items, _ = task.evaluate(small_model(), split, CPU)
    assert "head_words" not in items
    assert task.metrics(items).keys() == {"wer", "cer"}


def test_nothing_but_the_reference_is_no_error_and_room_enough_for_all(spoken, small_model, monkeypatch):
    """A model that writes the references has no errors, and its limits cut none of them."""
    split = task.open_split(*spoken, "test")
    order = iter(split.in_order())

    def write_references(model, features, frames, limits, *how):
        indices = next(order)
        assert frames.tolist() == split.frames[indices].tolist()
        places = ((frames - 3) // 2 + 1 - 3) // 2 + 1
        assert (limits >= split.counts.max()).all()
        assert (limits >= places).all()
        edges = split.token_starts.tolist()
        return [split.tokens[edges[number] : edges[number + 1]].tolist() for number in indices.tolist()]

    monkeypatch.setattr(task, "transcribe", write_references)
    items, predictions = task.evaluate(small_model(), split, CPU)
    assert predictions["hypothesis"].tolist() == split.texts
    assert task.metrics(items)["wer"] == task.metrics(items)["cer"] == task.metrics(items)["wer_other"] == 0


@torch.no_grad()
def test_the_index_says_how_wide_the_beam_is_and_how_lengths_are_normalised(spoken, small_model):
    target, index = spoken
    model = small_model(seed=1)
    for how in ({"beam": 2, "length_normalisation": 0.0}, {"beam": 3, "length_normalisation": 1.5}):
        split = task.open_split(target, index | {"decoding": how}, "test")
        _, predictions = task.evaluate(model, split, CPU)
        for number in range(len(split)):
            batch = split.batch(torch.tensor([number]), CPU)
            memory = model.encode(batch.features, batch.frames)
            limit = max(memory.states.shape[1], split.longest + 1)
            (tokens,) = beam_search(model, memory, torch.tensor([limit]), how["beam"], how["length_normalisation"])
            assert predictions["hypothesis"][number] == normalise(split.tokeniser.decode(tokens))


def test_the_settings_know_the_size_of_the_lexicon():
    most = len(LEXICON) - 20
    assert SpokenWords(pack="spoken_words", train=1, val=1, test=1, words=most, unseen_words=20).words == most
    with pytest.raises(ValidationError, match="lexicon"):
        SpokenWords(pack="spoken_words", train=1, val=1, test=1, words=most + 1, unseen_words=20)


def test_scoring_does_not_depend_on_the_size_of_batches(opened, small_model, monkeypatch):
    split, model = opened["test"], small_model(seed=2)
    expected, texts = task.evaluate(model, split, CPU)
    monkeypatch.setattr("bbnet.tasks.asr.data.batches.EVALUATION_FRAMES", 1)
    found, others = task.evaluate(model, split, CPU)
    assert texts["hypothesis"].tolist() == others["hypothesis"].tolist()
    assert all((found[name] == values).all() for name, values in expected.items())


def test_scoring_leaves_no_gradient(opened, small_model):
    model = small_model()
    task.evaluate(model, opened["val"], CPU)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_loss_is_finite_and_its_gradient_reaches_every_parameter(spoken, opened, sizes, weight):
    _, index = spoken
    model = task.build_model(sizes(ctc_weight=weight), index, CPU)
    split = opened["train"]
    batch = split.batch(torch.arange(len(split)), CPU)
    loss = task.loss(model, batch)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_few_steps_lower_the_loss(spoken, opened, sizes):
    _, index = spoken
    torch.manual_seed(0)
    model = task.build_model(sizes(dropout=0.0), index, CPU)
    settings = SpeechTraining(epochs=2, warm_up_epochs=1, learning_rate=0.1, batch_seconds=4)
    drawing, losses = torch.Generator().manual_seed(0), []
    for _ in range(4):
        total = 0.0
        for indices in opened["train"].batches(settings, drawing):
            model.zero_grad()
            loss = task.loss(model, task.augment(opened["train"].batch(indices, CPU), settings, drawing))
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.003 * parameter.grad.sign())
            total += loss.item()
        losses.append(total)
    assert losses[-1] < 0.9 * losses[0]


def test_the_example_is_of_mean_length(spoken, opened):
    _, index = spoken
    features, frames, tokens = task.example_inputs(index, CPU)
    mean = np.mean(opened["train"].frames.tolist())
    assert features.shape == (1, round(mean), 80)
    assert frames.tolist() == [round(mean)]
    assert tokens.shape == (1, round(np.mean(opened["train"].counts.tolist())) + 1)
