"""From random formulas to scores: labels, batches, the network against a plain computation, slabs, refused settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bbnet.sparsity.sparsifier import sparsify
from bbnet.tasks.logic import task
from bbnet.tasks.logic.metrics import metrics, scaled
from bbnet.tasks.logic.settings import Settings

CPU = torch.device("cpu")
SETTINGS = {
    "data": {"pack": "formulas", "bits": 12, "train": 600, "val": 100, "test": 200, "dnf_literals": 3},
    "models": {"dnf": {"formula": "dnf", "widths": [16, 24, 8]}, "xor": {"formula": "xor", "widths": [10, 10]}},
    "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 50, "epoch_steps": 3, "learning_rate": 0.01},
}


def settings(**changed) -> Settings:
    return Settings.model_validate(SETTINGS | changed)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, dict]:
    raw, target = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    manifest = {"root": str(raw)} | task.fetch(settings().data.model_dump(), raw)
    return target, json.loads(json.dumps(task.prepare(manifest, settings().model_dump(), target)))


@pytest.fixture
def split(prepared):
    return lambda name: task.open_split(*prepared, name)


def test_labels_are_the_formulas_of_the_inputs(prepared, split):
    formulas = prepared[1]["formulas"]
    for name in ("train", "val", "test"):
        found = split(name)
        for row, (xor, dnf) in zip(found.inputs.tolist(), found.labels.tolist(), strict=True):
            assert xor == sum(row[bit] for bit in formulas["xor"]) % 2
            terms = zip(formulas["dnf"]["variables"], formulas["dnf"]["wanted"], strict=True)
            assert dnf == any(all(row[b] == v for b, v in zip(*term, strict=True)) for term in terms)
        assert prepared[1]["true"][name] == dict(
            zip(("xor", "dnf"), found.labels.double().mean(0).tolist(), strict=True)
        )


def test_no_input_is_in_two_splits(split):
    rows = [tuple(row) for name in ("train", "val", "test") for row in split(name).inputs.tolist()]
    assert len(rows) == len(set(rows)) == 900


def test_an_epoch_has_its_steps_of_different_inputs_from_all_of_train(split):
    train, training = split("train"), settings().training
    epochs = [train.batches(training, torch.Generator().manual_seed(seed)) for seed in range(30)]
    for batches in epochs:
        assert [len(each) for each in batches] == [50] * train.steps_per_epoch(training) == [50] * 3
        assert len(torch.cat(batches).unique()) == 150
    assert len(torch.cat([each for batches in epochs for each in batches]).unique()) == 600


def test_the_network_is_the_plain_computation(prepared, split):
    model = task.build_model(settings().models["dnf"], prepared[1], CPU)
    inputs = split("val").inputs[:7]
    values = 2 * inputs.numpy().astype(np.float64) - 1
    for layer in model.hidden:
        values = np.maximum(values @ layer.weight.detach().double().numpy().T + layer.bias.detach().numpy(), 0)
    expected = values @ model.last.weight.detach().double().numpy()[0] + model.last.bias.item()
    assert model(inputs).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


class Fixed(nn.Module):
    """A network with these logits, whatever it reads."""

    def __init__(self, logits: torch.Tensor, label: int) -> None:
        super().__init__()
        self.logits, self.label = logits, label

    def forward(self, inputs):
        return self.logits


@pytest.mark.parametrize("label", [0, 1])
def test_rows_loss_and_accuracy_are_those_of_the_logits_and_of_the_model_s_own_formula(split, label):
    test = split("test")
    logits = torch.randn(len(test))
    logits[3] = torch.nan
    items, predictions = task.evaluate(Fixed(logits, label), test, CPU)
    truth = test.labels[:, label].tolist()
    expected = [int((value > 0) == true) for value, true in zip(logits.tolist(), truth, strict=True)]
    expected[3] = 0
    assert items["right"].tolist() == expected
    assert predictions["true"].tolist() == [int(value > 0) for value in logits.tolist()]
    assert metrics(items)["accuracy"] == pytest.approx(sum(expected) / len(expected))
    weights = np.random.default_rng(0).integers(0, 3, (4, len(test)))
    by_hand = [sum(w * right for w, right in zip(row, expected, strict=True)) / row.sum() for row in weights]
    assert metrics(items, weights)["accuracy"].tolist() == pytest.approx(by_hand)
    batch = test.batch(torch.arange(len(test)), CPU)
    logits[3] = 0.5
    probabilities = 1 / (1 + np.exp(-logits.double().numpy()))
    entropy = -np.mean([np.log(p if true else 1 - p) for p, true in zip(probabilities, truth, strict=True)])
    assert task.loss(Fixed(logits, label), batch).item() == pytest.approx(entropy, rel=1e-5)


def test_slabs_are_the_hidden_matrices_by_side(prepared):
    model = task.build_model(settings().models["dnf"], prepared[1], CPU)
    sides = {
        side: sorted((slab.name, slab.side, slab.units) for slab in task.slabs(model, "hidden", side))
        for side in ("in", "out", "both")
    }
    first, second, third = "hidden.0", "hidden.1", "hidden.2"
    assert sides == {
        "in": [(first, "in", (first,)), (second, "in", (second,)), (third, "in", (third,))],
        "out": [(second, "out", (first,)), (third, "out", (second,))],
        "both": [(first, "in", (first,)), (second, "out", (first,)), (third, "in", (third,))],
    }
    fans = settings().fans()["dnf"]
    assert fans == {12, 16, 24, 8}


@pytest.mark.parametrize("side", ["in", "out", "both"])
def test_a_budget_is_met_exactly_while_it_trains(prepared, split, side, exact_count):
    model = task.build_model(settings().models["dnf"], prepared[1], CPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    method = {"algorithm": "budgeted_broadcast", "side": side}
    sparsifier = sparsify(model, optimizer, task.slabs(model, "hidden", side), method, 0.25, total_steps=20)
    train = split("train")
    for indices in train.batches(settings().training, torch.Generator().manual_seed(0)) * 7:
        task.loss(model, train.batch(indices, CPU)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, mask in sparsifier.masks().items():
        assert int(mask.sum()) == exact_count("0.25", *mask.shape), name


def test_a_random_batch_fits_the_model():
    index, batch = task.random_batch(settings(), None, CPU)
    model = task.build_model(settings().models["xor"], index, CPU)
    assert task.loss(model, batch).isfinite()
    assert model(*task.example_inputs(index, CPU)).shape == (1,)


def test_steps_and_bytes_are_known_before_any_job(prepared):
    estimate = settings().estimate(None)
    assert estimate.steps_per_epoch == settings().steps_per_epoch() == 3
    arrays = sum(np.load(path).nbytes for path in prepared[0].glob("*.npy"))
    assert estimate.prepared_bytes == arrays


def test_the_width_of_a_model_is_that_of_its_first_layer():
    assert [scaled(model.model_dump()) for model in settings().models.values()] == [("dnf", 16), ("xor", 10)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": SETTINGS["data"] | {"bits": 8, "train": 157, "val": 50, "test": 50}}, "257 different inputs"),
        ({"data": SETTINGS["data"] | {"xor_bits": 13}}, "xor_bits 13 exceeds the 12 bits"),
        ({"data": SETTINGS["data"] | {"bits": 8, "train": 100, "val": 50, "test": 50, "dnf_literals": 9}}, "dnf_liter"),
        (
            {"training": SETTINGS["training"] | {"epoch_steps": 13}},
            "need 650 different training inputs, data.train has 600",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(changed, message):
    with pytest.raises(ValidationError, match=message):
        settings(**changed)
