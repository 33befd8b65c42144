"""The task's scores against the losses of single tokens, its settings, and a network that learns."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from bbnet.data.packs import read_pack
from bbnet.tasks.language import task
from bbnet.tasks.language.buckets import make_buckets
from bbnet.tasks.language.metrics import PARTS
from bbnet.tasks.language.settings import Decoder, Settings
from tests.tasks.language.conftest import PIECES

CPU = torch.device("cpu")
DECODER = {"width": 16, "hidden": 24, "layers": 2, "heads": 2}
SECTION = {
    "data": {"pack": "python_source", "train": 50_000, "val": 5_000, "test": 8_000},
    "models": {"decoder": DECODER},
    "training": {"epochs": 3, "warm_up_epochs": 1, "batch_size": 4, "learning_rate": 0.01},
}


@pytest.fixture
def pack(prepared):
    found = prepared(PIECES)
    found.index["buckets"] = make_buckets(found.index)["types"]
    return found


@pytest.fixture
def model(pack):
    torch.manual_seed(0)
    found = task.build_model(Decoder(**DECODER), pack.index, CPU).eval()
    for weight in found.parameters():  # so that predictions differ
        torch.nn.init.normal_(weight, mean=1.0 if weight.dim() == 1 else 0.0, std=0.3)
    return found


def test_scores_are_those_of_each_document_read_token_by_token(pack, model):
    """Every token is predicted from the longest context that the windows promise, one at a time."""
    text = task.open_split(pack.folder, pack.index, "test")
    items, predictions = task.evaluate(model, text, CPU)
    tokens, context = text.tokens.long(), pack.index["context"]
    stride = context // 2
    for number, (first, end) in enumerate(zip(text.starts[:-1], text.starts[1:], strict=True)):
        losses, right = [], []
        for place in range(first, end):
            ahead = place - first  # tokens of the document before this one
            start = first - 1 + (0 if ahead < context else stride * (1 + (ahead - context) // stride))
            with torch.no_grad():
                logits = model(tokens[None, start:place])[0, -1]
            losses.append(functional.cross_entropy(logits, tokens[place]).item())
            right.append(int(logits.argmax() == tokens[place]))
        assert items["document"][number] == f"test/{['0', '1', '2', 'greek'][number]}.txt"
        assert items["nll"][number] == pytest.approx(sum(losses), rel=1e-5)
        assert (items["right"][number], items["tokens"][number]) == (sum(right), len(losses))
        own = predictions["nll"][first - 1 : end - 1]
        assert own.astype(float) == pytest.approx(np.array(losses), rel=2e-3)
        names = [pack.index["names"][token] for token in tokens[first:end]]
        for part in PARTS:
            members = [pack.index["buckets"].get(name, "unseen") == part for name in names]
            assert items[f"{part}_tokens"][number] == sum(members)
            assert items[f"{part}_nll"][number] == pytest.approx(np.array(losses)[members].sum(), rel=1e-5, abs=1e-9)
    assert items["unseen_tokens"][3] > 0
    floor = np.load(pack.folder / "floor.npy").astype(float)
    assert items["floor_nll"].sum() == pytest.approx(floor.sum())
    assert sum(items[f"floor_{part}_nll"] for part in PARTS) == pytest.approx(items["floor_nll"])


def test_without_a_floor_there_are_no_scores_of_it(prepared, model):
    pack = prepared(PIECES, "bare", floor_order=None)
    text = task.open_split(pack.folder, pack.index | {"buckets": {}}, "test")
    items, _ = task.evaluate(model, text, CPU)
    assert not any(name.startswith("floor") for name in items)
    assert (items["unseen_tokens"] == items["tokens"]).all()


def test_the_loss_is_the_mean_over_predicted_tokens_and_padding_has_no_say(pack, model):
    text = task.open_split(pack.folder, pack.index, "val")
    total, count = 0.0, 0
    for indices in text.in_order():
        batch = text.batch(indices, CPU)
        scored = int(batch.scored.sum())
        total, count = total + scored * task.loss(model, batch).item(), count + scored
        valid = task.valid_positions(model, batch)
        assert valid[""].shape == batch.inputs.shape and int(valid[""].sum()) == scored
    items, _ = task.evaluate(model, text, CPU)
    assert count == len(text.tokens) - 1 and total == pytest.approx(items["nll"].sum(), rel=1e-5)
    training = task.open_split(pack.folder, pack.index, "train")
    assert task.valid_positions(model, training.batch(torch.tensor([0, 3]), CPU)) == {}


def test_a_network_that_is_not_finite_has_no_right_token_score(pack, model):
    model.norm.weight.data.fill_(float("nan"))
    items, _ = task.evaluate(model, task.open_split(pack.folder, pack.index, "val"), CPU)
    assert np.isnan(task.metrics(items)["bits_per_byte"])


@pytest.mark.parametrize("kind", ["swiglu", "relu"])
def test_a_few_steps_learn(pack, kind):
    torch.manual_seed(1)
    settings = Settings.model_validate(SECTION | {"models": {"decoder": DECODER | {"ffn": kind}}})
    model = task.build_model(settings.models["decoder"], pack.index, CPU)
    text, dev = (task.open_split(pack.folder, pack.index, split) for split in ("train", "val"))
    before = task.metrics(task.evaluate(model, dev, CPU)[0])["perplexity"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for epoch in range(3):
        for indices in text.batches(settings.training, torch.Generator().manual_seed(epoch)):
            loss = task.loss(model, task.augment(text.batch(indices, CPU), settings.training, None))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert task.metrics(task.evaluate(model, dev, CPU)[0])["perplexity"] < 0.3 * before


def test_a_random_batch_is_one_of_training(pack):
    settings = Settings.model_validate(SECTION | {"tokens": PIECES, "context": 16})
    index, batch = task.random_batch(settings, None, CPU)
    model = task.build_model(settings.models["decoder"], index, CPU)
    assert batch.inputs.shape == (4, 16)
    assert task.loss(model, batch).item() == pytest.approx(np.log(300), abs=0.5)
    assert model(*task.example_inputs(index, CPU)).shape == (1, 16, 300)


def test_steps_and_sizes_are_estimated_before_the_data_are_prepared(pack):
    settings = Settings.model_validate(SECTION)
    assert settings.steps_per_epoch() is None
    assert settings.estimate(None) == ((50_000 - 255) // 256 // 4, 2 * 63_000)
    index = pack.index
    small = settings.model_copy(update={"context": 16})
    text = task.open_split(pack.folder, index, "train")
    assert small.prepared_steps(pack.folder, index) == text.steps_per_epoch(small.training)
    published = Settings.model_validate(
        SECTION | {"data": {"pack": "wikitext2"}, "tokens": {"kind": "bpe", "size": 4000}}
    )
    assert published.estimate(read_pack("wikitext2")).steps_per_epoch == pytest.approx(
        10_940_747 / 3 / 256 / 4, rel=0.01
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("models", {"decoder": DECODER | {"heads": 3}}, "width 16 is not a multiple of twice the 3 heads"),
        ("data", SECTION["data"] | {"train": 7_300_000}, "the pack has 7300000"),
        ("context", 4, "greater than or equal to 8"),
    ],
)
def test_settings_that_fit_nothing_are_refused(key, value, message):
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate(SECTION | {key: value})


def test_fans_are_those_of_the_slabs(pack, model):
    for which in ("wide", "all"):
        settings = Settings.model_validate(json.loads(json.dumps(SECTION | {"slabs": which})))
        found = {
            model.get_submodule(slab.name).weight.shape[1 if slab.side == "in" else 0]
            for side in ("in", "out", "both")
            for slab in task.slabs(model, which, side)
        }
        assert found == settings.fans()["decoder"]
