"""One learning-rate schedule, one data order, one augmentation: methods differ in their masks alone."""

import copy
import math
import subprocess
import sys

import pytest
import torch

from bbnet.tasks.change import task as change
from bbnet.training.runs import train, warm_up
from bbnet.training.trainer import light_start, make_optimizer

STEPS_PER_EPOCH = 4  # 13 tiles in batches of 3, the incomplete one left out
EPOCHS = 5


@pytest.fixture
def uninterrupted(job):
    """A dense training without a break: the trainer, and the weights after each epoch."""
    trainer = job().trainer()
    weights = []
    for _ in range(EPOCHS):
        trainer.run_epoch("any")
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
    return trainer, weights


def numbers(history) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "phase"} for row in history]


def test_a_warm_start_and_a_dense_phase_are_one_uninterrupted_training(job, warm_start, uninterrupted):
    trainer, weights = uninterrupted
    run = train(job(), warm_start())
    assert numbers(run.history) == numbers(trainer.history)
    assert [row["phase"] for row in run.history] == ["warm_up", "sparse", "sparse", "sparse", "frozen"]
    selected = weights[run.selected_epoch - 1]
    assert run.weights.keys() == selected.keys()
    assert all(torch.equal(run.weights[name], selected[name]) for name in selected)


def test_a_resumed_trainer_goes_on_bitwise(job, uninterrupted):
    trainer, weights = uninterrupted
    first = job().trainer()
    for _ in range(3):
        first.run_epoch("any")
    second = job().trainer()
    second.load_state(first.state())
    for _ in range(EPOCHS - 3):
        second.run_epoch("any")
    assert second.history == trainer.history
    assert all(torch.equal(tensor, weights[-1][name]) for name, tensor in second.model.state_dict().items())


def test_every_method_sees_the_same_batches_after_the_same_warm_start(job, warm_start, batches_seen):
    start = warm_start()
    seen = {}
    for method in ("dense", "sp_in", "sp_out", "magnitude"):
        batches_seen.clear()
        torch.rand(len(seen) + 1)  # whatever else draws from torch's own generator
        train(job(method), start)
        seen[method] = list(batches_seen)
    assert len(seen["dense"]) == (EPOCHS - 1) * STEPS_PER_EPOCH
    assert len(set(seen["dense"])) == len(seen["dense"])
    assert all(batches == seen["dense"] for batches in seen.values())


def test_another_seed_has_other_weights_order_and_augmentation(job, batches_seen):
    starts = []
    for seed in (0, 1):
        trainer = job(seed=seed).trainer()
        starts.append(trainer.model.encoder[0].conv1.weight.clone())
        trainer.run_epoch("any")
    assert not torch.equal(*starts)
    assert set(batches_seen[:STEPS_PER_EPOCH]).isdisjoint(batches_seen[STEPS_PER_EPOCH:])


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator(job):
    torch.manual_seed(1)
    first = job().trainer().model.state_dict()
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    second = job("sp_in").trainer().model.state_dict()
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_epoch_has_its_own_order_and_no_sample_twice(job, prepared, monkeypatch):
    orders = []
    original = change.Tiles.batch

    def batch(split, indices, device):
        if len(split) == 13:
            orders.append(indices.tolist())
        return original(split, indices, device)

    monkeypatch.setattr(change.Tiles, "batch", batch)
    trainer = job().trainer()
    for _ in range(2):
        trainer.run_epoch("any")
    first, second = orders[:STEPS_PER_EPOCH], orders[STEPS_PER_EPOCH:]
    for epoch in (first, second):
        assert [len(indices) for indices in epoch] == [3] * STEPS_PER_EPOCH
        assert len({sample for indices in epoch for sample in indices}) == 12
    assert first != second


# Learning rate.


@pytest.mark.parametrize(
    ("rise", "step", "share"),
    [
        (0.1, 0, 1 / 2),  # 20 steps, of which 2 rise
        (0.1, 1, 1),
        (0.1, 2, 1),
        (0.1, 11, 1 / 2),
        (0.1, 8, (1 + math.cos(math.pi / 3)) / 2),
        (0.1, 19, (1 + math.cos(math.pi * 17 / 18)) / 2),
        (0.5, 4, 1 / 2),
        (0.5, 9, 1),
        (0.5, 15, 1 / 2),
        (0.0, 0, 1),
        (0.0, 19, (1 + math.cos(math.pi * 18 / 19)) / 2),
    ],
)
def test_the_learning_rate_rises_and_then_follows_a_cosine(job, rise, step, share):
    trainer = job(rise=rise, learning_rate=0.02).trainer()
    assert trainer.learning_rate_at(step) == pytest.approx(0.02 * share, rel=1e-12)


def test_a_large_batch_has_a_rate_in_proportion_that_is_risen_to(job):
    """Goyal et al. (2017): the rate of a batch of 2, here three tiles, from which it rises over half an epoch."""
    trainer = job(learning_rate=0.02, large_batch={"of": 2, "epochs": 0.5}).trainer()
    assert trainer.learning_rate_at(0) == pytest.approx(0.025, rel=1e-12)  # half of the way from .02 to .03
    assert trainer.learning_rate_at(1) == pytest.approx(0.03, rel=1e-12)
    assert trainer.learning_rate_at(11) == pytest.approx(0.015, rel=1e-12)
    with pytest.raises(ValueError, match="large_batch.epochs 5 must be below epochs 5"):
        job(large_batch={"epochs": 5}).trainer()


def test_the_optimizer_uses_the_schedule_across_warm_up_and_sparse_phase(job, warm_start, monkeypatch):
    start = warm_start()
    used = []
    original = torch.optim.AdamW.step

    def step(optimizer, *arguments):
        used.append({group["lr"] for group in optimizer.param_groups})
        return original(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    warm_up(job())
    train(job("sp_in"), start)
    schedule = job().trainer().learning_rate_at
    assert used == [{schedule(step)} for step in range(EPOCHS * STEPS_PER_EPOCH)]


@pytest.mark.parametrize(
    ("settings", "kind", "used"),
    [
        ({"optimizer": "adamw", "betas": (0.8, 0.9)}, torch.optim.AdamW, {"betas": (0.8, 0.9)}),
        ({"optimizer": "adam", "betas": (0.8, 0.9)}, torch.optim.Adam, {"betas": (0.8, 0.9)}),
        ({"optimizer": "sgd"}, torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ({"optimizer": "sgd", "nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_weight_decay_acts_on_kernels_alone(job, settings, kind, used):
    trainer = job(**settings).trainer()
    made = make_optimizer(trainer.model, trainer.training)
    assert type(made).__mro__[1] is kind
    assert all(used.items() <= group.items() for group in made.param_groups)
    decay = {id(weight): group["weight_decay"] for group in made.param_groups for weight in group["params"]}
    assert {decay[id(weight)] for name, weight in trainer.model.named_parameters() if weight.dim() == 4} == {0.1}
    assert {decay[id(weight)] for name, weight in trainer.model.named_parameters() if weight.dim() == 1} == {0.0}
    assert len(decay) == len(list(trainer.model.parameters()))


# Selection.


@pytest.fixture
def scores(monkeypatch):
    """Sets the dev F1 of successive epochs."""

    def give(values):
        left = iter(values)
        original = change.metrics
        monkeypatch.setattr(change, "metrics", lambda items: original(items) | {"f1": next(left)})

    return give


@pytest.fixture
def weights_scored(monkeypatch):
    """The weights at every scoring on dev."""
    scored = []
    original = change.evaluate

    def evaluate(model, split, device):
        scored.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return original(model, split, device)

    monkeypatch.setattr(change, "evaluate", evaluate)
    return scored


@pytest.mark.parametrize(
    ("by_epoch", "selected"),
    [
        # 9 epochs of 4 steps, the first dense; the freeze is at step 24 of 32: epochs 8 and 9 end after it
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 8),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], 9),
        ([0.5] * 9, 8),
        ([0.0] * 9, 8),
    ],
)
@pytest.mark.parametrize("method", ["dense", "sp_in"])
def test_weights_are_selected_on_dev_after_the_freeze_only(
    job, warm_start, scores, weights_scored, by_epoch, selected, method
):
    start = warm_start(epochs=9)
    scores(by_epoch[1:])
    run = train(job(method, epochs=9), start)
    assert run.selected_epoch == selected
    those_of_the_epoch = weights_scored[selected - 9 - 1]
    assert all(torch.equal(run.weights[name], tensor) for name, tensor in those_of_the_epoch.items())
    assert [row["epoch"] for row in run.history if row["phase"] == "frozen"] == [8, 9]
    assert [row["dev_f1"] for row in run.history[1:]] == by_epoch[1:]


@pytest.mark.parametrize(
    ("latest", "first"),
    [
        ({"warm_up_epochs": 1, "freeze": 0.75}, 8),  # the run's own: 1 + .75 * 8 = 7 epochs
        ({"warm_up_epochs": 1, "freeze": 0.95}, 9),  # 1 + .95 * 8 = 8.6
        ({"warm_up_epochs": 5, "freeze": 0.75}, 9),  # 5 + .75 * 4 = 8
        ({"warm_up_epochs": 1, "freeze": 0.5}, 8),  # earlier than the run's own, which counts
    ],
)
@pytest.mark.parametrize("method", ["dense", "magnitude"])
def test_weights_are_selected_after_the_latest_freeze_of_all_runs(job, warm_start, scores, latest, first, method):
    start = warm_start(epochs=9)
    scores([0.9 - epoch / 100 for epoch in range(8)])  # the first epoch that counts is the best
    its_job = job(method, epochs=9)
    its_job.config["latest_freeze"] = latest
    assert train(its_job, start).selected_epoch == first


@pytest.mark.parametrize(("freeze", "frozen"), [(0.5, 6), (0.75, 8)])
def test_masks_that_freeze_earlier_are_selected_among_the_same_epochs(job, warm_start, scores, freeze, frozen):
    start = warm_start(epochs=9)
    scores([0.9 - epoch / 100 for epoch in range(8)])
    its_job = job("magnitude", epochs=9)
    its_job.config |= {
        "sparsity": its_job.config["sparsity"] | {"freeze": freeze},
        "latest_freeze": {"warm_up_epochs": 1, "freeze": 0.75},
    }
    run = train(its_job, start)
    assert run.selected_epoch == 8
    assert next(row["epoch"] for row in run.history if row["phase"] == "frozen") == frozen


# Failures.


@pytest.mark.parametrize("method", ["dense", "magnitude", "sp_in"])
def test_a_loss_that_is_not_a_number_is_an_error_that_names_the_epoch(job, warm_start, monkeypatch, method):
    start = warm_start()
    original = change.loss
    calls = []

    def loss(model, batch):
        calls.append(None)
        return original(model, batch) * (math.nan if len(calls) == STEPS_PER_EPOCH + 2 else 1)

    monkeypatch.setattr(change, "loss", loss)
    with pytest.raises(ValueError, match="epoch 3") as refused:
        train(job(method), start)
    assert "nan" in str(refused.value).lower()
    assert "\n" not in str(refused.value)


def test_an_infinite_loss_is_an_error_too(job, monkeypatch):
    original = change.loss
    monkeypatch.setattr(change, "loss", lambda model, batch: original(model, batch) + math.inf)
    with pytest.raises(ValueError, match="became inf in step 1 of 4 of epoch 1"):
        job().trainer().run_epoch("warm_up")


def test_a_batch_larger_than_the_data_is_refused_with_its_key(job):
    with pytest.raises(ValueError, match=r"training\.batch_size 14 exceeds the 13 training samples"):
        job(batch_size=14).trainer()


def test_a_gpu_that_is_not_there_is_refused(prepared, job, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = job().config | {"device": "cuda"}
    with pytest.raises(ValueError, match="device cuda: torch sees no GPU; allowed here: auto, cpu"):
        type(job())(config, prepared.folder, prepared.index)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_the_optimizer_that_starts_faster_computes_what_torchs_does(kind):
    """Steps, hooks of steps, and states, with gradients that need none of their own."""
    found = []
    for optimizer_class in (kind, light_start(kind)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        optimizer = optimizer_class([{"params": [layer.weight]}, {"params": [layer.bias], "lr": 0.5}], lr=0.1)
        stepped = []
        optimizer.register_step_post_hook(lambda *_, stepped=stepped: stepped.append(1))
        for step in range(4):
            layer(torch.randn(2, 5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert len(stepped) == 4
        found.append((layer.weight, layer.bias))
    for torchs, light in zip(*found, strict=True):
        assert torch.equal(torchs, light)


def test_a_training_step_does_not_import_the_compiler():
    code = (
        "import sys, torch\n"
        "from bbnet.training.trainer import light_start\n"
        "layer = torch.nn.Linear(2, 2)\n"
        "optimizer = light_start(torch.optim.AdamW)(layer.parameters(), fused=True)\n"
        "layer(torch.ones(1, 2)).sum().backward()\n"
        "optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
