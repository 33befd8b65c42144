"""A training that was stopped anywhere ends in the same bits as one that went through, for every kind of method."""

import importlib
import os
import signal

import pytest
import torch

from bbnet.training.checkpoint import load_state, save_state
from bbnet.training.resume import StateFile, Stopped
from bbnet.training.runs import train, warm_up

STEPS_PER_EPOCH = 4  # 13 tiles in batches of 3
SPARSE_STEPS = 16
CPU = torch.device("cpu")


class PowerCutError(Exception):
    """Comes without a warning."""


class Fragile(StateFile):
    """Saves its state after every step, and breaks down after some."""

    def __init__(self, path, fingerprint="f", *, steps: int) -> None:
        super().__init__(path, fingerprint, minutes=0)
        self.left = steps

    def after_step(self, state) -> None:
        super().after_step(state)
        self.left -= 1
        if self.left == 0:
            raise PowerCutError


def bits(run) -> tuple:
    """All that a run leaves, comparable."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in [*run.weights.items(), *run.latent.items()]}
    masks = {name: mask.numpy().tobytes() for name, mask in run.masks.items()}
    return weights, masks, run.history, run.refreshes, run.selected_epoch, run.cost


@pytest.fixture(scope="session")
def uninterrupted(job, warm_start):
    made = {}

    def make(method: str) -> tuple:
        if method not in made:
            made[method] = bits(train(job(method), warm_start()))
        return made[method]

    return make


METHODS = ("dense", "sp_in", "sp_out", "both", "magnitude", "rigl", "wanda", "topk", "binary", "ternary", "stochastic")


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
def test_a_run_cut_off_at_every_single_step_in_turn_ends_in_the_same_bits(
    job, warm_start, uninterrupted, tmp_path, method
):
    """One step per life: what is not in the state is lost sixteen times."""
    path, lives = tmp_path / "state.pt", 0
    while True:
        lives += 1
        torch.manual_seed(lives)  # another process draws other numbers
        try:
            run = train(job(method), warm_start(), resume=Fragile(path, steps=1))
            break
        except PowerCutError:
            assert path.exists()
    assert lives == SPARSE_STEPS + 1
    assert bits(run) == uninterrupted(method)


@pytest.mark.parametrize("method", ["sp_in", "rigl", "topk", "ternary", "stochastic"])
@pytest.mark.parametrize("steps", [1, 4, 5, 11, 15])
def test_a_run_cut_off_once_ends_in_the_same_bits(job, warm_start, uninterrupted, tmp_path, method, steps):
    path = tmp_path / "state.pt"
    with pytest.raises(PowerCutError):
        train(job(method), warm_start(), resume=Fragile(path, steps=steps))
    resumed = StateFile(path, "f", minutes=60)
    assert bits(train(job(method), warm_start(), resume=resumed)) == uninterrupted(method)
    assert resumed.interruptions == 1


def test_a_warm_up_cut_off_ends_in_the_same_bytes(job, tmp_path):
    longer = {"warm_up_epochs": 3}
    state, history, units = warm_up(job(**longer))
    save_state(tmp_path / "whole.pt", state)
    path = tmp_path / "state.pt"
    for steps in (2, 4, 3):
        with pytest.raises(PowerCutError):
            warm_up(job(**longer), resume=Fragile(path, steps=steps))
    state, history_again, units_again = warm_up(job(**longer), resume=StateFile(path, "f", minutes=60))
    save_state(tmp_path / "again.pt", state)
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert (history_again, units_again) == (history, units)


def test_a_state_is_saved_after_every_epoch_and_as_often_as_the_minutes_say(job, warm_start, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("bbnet.training.resume.save_state", lambda path, state: saved.append(state["trainer"]))
    train(job("sp_in"), warm_start(), resume=StateFile(tmp_path / "state.pt", "f", minutes=60))
    assert [state["epoch"] for state in saved] == [2, 3, 4, 5]
    assert all("within_epoch" not in state for state in saved)
    saved.clear()
    train(job("sp_in"), warm_start(), resume=StateFile(tmp_path / "state.pt", "f", minutes=0))
    positions = [state.get("within_epoch", {}).get("position", 0) for state in saved]
    assert positions == [*range(1, STEPS_PER_EPOCH + 1), 0] * 4


@pytest.mark.parametrize("other", ["another config", ""])
def test_a_state_of_another_fingerprint_is_not_taken(job, warm_start, uninterrupted, tmp_path, other):
    path = tmp_path / "state.pt"
    with pytest.raises(PowerCutError):
        train(job("rigl"), warm_start(), resume=Fragile(path, other, steps=6))
    afresh = StateFile(path, "f", minutes=60)
    assert bits(train(job("sp_in"), warm_start(), resume=afresh)) == uninterrupted("sp_in")
    assert afresh.interruptions == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_training_after_the_step_with_its_state_saved(
    job, warm_start, uninterrupted, tmp_path, monkeypatch, number
):
    path, handlers, start = tmp_path / "state.pt", {signal.getsignal(number)}, warm_start()
    change = job().task
    original, seen = change.loss, []

    def loss(model, batch):
        seen.append(len(seen))
        if len(seen) == 6:
            os.kill(os.getpid(), number)
        return original(model, batch)

    monkeypatch.setattr(change, "loss", loss)
    with pytest.raises(Stopped) as stopped, StateFile(path, "f", minutes=60) as state_file:
        train(job("sp_in"), start, resume=state_file)
    monkeypatch.undo()
    assert stopped.value.code == 128 + number
    assert load_state(path, CPU)["sparsifier"]["step"] == 6
    assert {signal.getsignal(number)} == handlers
    assert bits(train(job("sp_in"), warm_start(), resume=StateFile(path, "f", minutes=60))) == uninterrupted("sp_in")


def test_a_loss_that_is_no_number_is_never_saved_and_named_by_its_step(job, warm_start, tmp_path, monkeypatch):
    path, change, start = tmp_path / "state.pt", job().task, warm_start()
    original, steps = change.loss, []

    def loss(model, batch):
        if model.training:
            steps.append(len(steps))
        value = original(model, batch)
        return value * float("nan") if len(steps) == 10 and model.training else value

    monkeypatch.setattr(change, "loss", loss)
    with pytest.raises(ValueError, match=r"step 2 of 4 of epoch 4 \(seed 0\)"):
        train(job(), start, resume=StateFile(path, "f", minutes=0))
    saved = load_state(path, CPU)["trainer"]
    assert (saved["epoch"], saved["within_epoch"]["position"]) == (3, 1)


def test_seconds_and_interruptions_add_up_over_the_parts(job, warm_start, tmp_path):
    path = tmp_path / "state.pt"
    seconds = []
    for part in range(3):
        state_file = Fragile(path, steps=3)
        with pytest.raises(PowerCutError):
            train(job(), warm_start(), resume=state_file)
        assert state_file.interruptions == part
        seconds.append(state_file.seconds)
    assert 0 < seconds[0] < seconds[1] < seconds[2]


@pytest.mark.parametrize("moment", ["bbnet.training.runs.sizes", "bbnet.sparsity.cost.flops"])
def test_a_signal_after_the_last_epoch_is_heeded_too(job, warm_start, uninterrupted, tmp_path, monkeypatch, moment):
    path, start = tmp_path / "state.pt", warm_start()
    owner, name = moment.rsplit(".", 1)
    original = getattr(importlib.import_module(owner), name)

    def interrupted(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    monkeypatch.setattr(moment, interrupted)
    with pytest.raises(Stopped), StateFile(path, "f", minutes=60) as state_file:
        train(job("sp_in"), start, resume=state_file)
    monkeypatch.undo()
    assert bits(train(job("sp_in"), start, resume=StateFile(path, "f", minutes=60))) == uninterrupted("sp_in")


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StateFile(tmp_path / "state.pt", "f", minutes=60):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_state_of_another_device_data_or_warm_start_is_not_taken(tmp_path, monkeypatch):
    path, made_of = tmp_path / "state.pt", ("fingerprint", "data", "warm start")
    StateFile.as_configured(path, CPU, *made_of).after_epoch(lambda: {"epoch": 3})
    assert StateFile.as_configured(path, CPU, *made_of).load(CPU) == {"epoch": 3}
    assert StateFile.as_configured(path, torch.device("cuda", 1), *made_of).load(CPU) is None
    for number in range(3):
        other = [part if place != number else "other" for place, part in enumerate(made_of)]
        assert StateFile.as_configured(path, CPU, *other).load(CPU) is None
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert StateFile.as_configured(path, CPU, *made_of).load(CPU) is None


@pytest.mark.parametrize(
    "content", [[1, 2], torch.ones(3), {"fingerprint": "f"}, {"interruptions": 0, "seconds": 1.0}, "text", None]
)
def test_a_file_that_is_no_state_is_not_taken(tmp_path, content):
    torch.save(content, tmp_path / "state.pt")
    assert StateFile(tmp_path / "state.pt", "f", minutes=60).load(CPU) is None


def test_the_knob_says_how_often(tmp_path, monkeypatch):
    monkeypatch.setenv("BBNET_CHECKPOINT_MINUTES", "0.25")
    assert StateFile.as_configured(tmp_path / "state.pt", CPU).minutes == 0.25
