"""Hugging Face accelerate: prepared models and optimizers, accumulation, mixed precision, and states of a folder."""

import copy
import itertools
import multiprocessing
import os
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bbnet

accelerate = pytest.importorskip("accelerate")
states = pytest.importorskip("accelerate.state")

METHODS = ["sp_in", "sp_out", "magnitude", {"algorithm": "rigl"}, {"algorithm": "set"}]
BUDGET, EPOCHS, STEPS_PER_EPOCH, SAVED_AFTER = 0.3, 8, 5, 3


@pytest.fixture(autouse=True)
def a_new_process():
    """Forgets the settings that accelerate keeps for the whole process."""
    yield
    states.AcceleratorState._reset_state(reset_partial_state=True)
    states.GradientState._reset_state()


class Training:
    """A training as its user would write it, with dropout, two micro-batches per step, and clipping."""

    def __init__(
        self, method="sp_in", seed=0, sparsify_first=False, registered=True, budget=BUDGET, shuffle=True, **options
    ):
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, **options)
        torch.manual_seed(seed)
        layers = (nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
        model = nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(0)
        inputs, targets = torch.randn(80, 16, generator=generator), torch.randint(4, (80,), generator=generator)
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=shuffle)
        if sparsify_first:
            self._sparsify(model, optimizer, method, budget)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        if not sparsify_first:
            self._sparsify(self.model, self.optimizer, method, budget)
        if registered:
            self.accelerator.register_for_checkpointing(self.sparsifier)

    def _sparsify(self, model, optimizer, method, budget):
        steps = EPOCHS * STEPS_PER_EPOCH
        self.slabs = bbnet.find_slabs(model, side="out" if method == "sp_out" else "in")
        self.sparsifier = bbnet.sparsify(model, optimizer, self.slabs, method, budget, total_steps=steps, every=2)

    def train(self, epochs, each=lambda: None):
        self.model.train()
        for _ in range(epochs):
            for inputs, targets in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = nn.functional.cross_entropy(self.model(inputs), targets)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                each()

    def parts(self):
        return {"m": self.model, "o": self.optimizer, "s": self.sparsifier}

    def state(self):
        return copy.deepcopy({key: part.state_dict() for key, part in self.parts().items()})


def straight(method, folder):
    """Trains from end to end; returns also the states and the random state from where it saves, between refreshes."""
    training = Training(method)
    training.train(SAVED_AFTER)
    training.accelerator.save_state(folder)
    saved, random = training.state(), torch.get_rng_state()
    training.train(EPOCHS - SAVED_AFTER)
    return training, saved, random


@pytest.mark.parametrize("sparsify_first", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_micro_batches_count_as_one_step_and_every_refresh_meets_its_budget(precision, sparsify_first, check_exact):
    training = Training(sparsify_first=sparsify_first, mixed_precision=precision)
    sparsifier, steps = training.sparsifier, []

    def check():
        steps.append(sparsifier.step)
        budget = sparsifier.refreshes[-1]["budget"] if sparsifier.refreshes else 1
        check_exact(training.model, sparsifier, training.slabs, budget)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the optimizer has loaded")
        training.train(EPOCHS, check)
    assert steps == [batch // 2 for batch in range(1, 2 * EPOCHS * STEPS_PER_EPOCH + 1)]
    assert sorted({row["step"] for row in sparsifier.refreshes}) == list(range(2, 31, 2))
    check_exact(training.model, sparsifier, training.slabs, BUDGET)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_slabs_of_a_prepared_model_are_those_of_the_model(precision):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
    prepared = accelerate.Accelerator(cpu=True, mixed_precision=precision).prepare(copy.deepcopy(model))
    assert ("forward" in vars(prepared)) == (precision == "bf16")
    assert bbnet.find_slabs(prepared, side="both") == bbnet.find_slabs(model, side="both")


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_loaded_by_new_objects_ends_in_the_straight_runs_bits(method, tmp_path, same, check_exact):
    expected = straight(method, tmp_path)[0].state()
    resumed = Training(method, seed=1)
    resumed.accelerator.load_state(tmp_path)
    resumed.train(EPOCHS - SAVED_AFTER)
    assert same(resumed.state(), expected)
    check_exact(resumed.model, resumed.sparsifier, resumed.slabs, BUDGET)


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_loaded_in_the_live_process_ends_in_the_straight_runs_bits(method, tmp_path, same, check_exact):
    training = straight(method, tmp_path)[0]
    expected = training.state()
    training.accelerator.load_state(tmp_path)
    assert training.sparsifier.step == SAVED_AFTER * STEPS_PER_EPOCH
    training.train(EPOCHS - SAVED_AFTER)
    assert same(training.state(), expected)
    check_exact(training.model, training.sparsifier, training.slabs, BUDGET)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["".join(order) for order in itertools.permutations("mos")])
def test_prepared_objects_loaded_in_any_order_end_in_the_straight_runs_bits(method, order, tmp_path, same, check_exact):
    training, saved, random = straight(method, tmp_path)
    expected = training.state()
    for each in (training, Training(method, seed=1)):
        for key in order:
            each.parts()[key].load_state_dict(copy.deepcopy(saved[key]))
        torch.set_rng_state(random)
        each.train(EPOCHS - SAVED_AFTER)
        assert same(each.state(), expected)
        check_exact(each.model, each.sparsifier, each.slabs, BUDGET)


def test_a_folder_without_the_sparsifiers_state_is_warned_of(tmp_path):
    training = Training(registered=False)
    training.train(SAVED_AFTER)
    training.accelerator.save_state(tmp_path)
    resumed = Training(seed=1, registered=False)
    resumed.accelerator.load_state(tmp_path)
    with pytest.warns(UserWarning, match="load also the sparsifier's state_dict"):
        resumed.train(1)


def test_a_folder_of_another_budget_is_refused(tmp_path):
    training = Training()
    training.train(SAVED_AFTER)
    training.accelerator.save_state(tmp_path)
    with pytest.raises(ValueError, match=r"budget is 0\.3, here 0\.5"):
        Training(budget=0.5).accelerator.load_state(tmp_path)


def test_an_export_under_bf16_is_a_model_of_its_own_with_equal_outputs(check_exact):
    training = Training(mixed_precision="bf16")
    training.train(EPOCHS)
    model = training.accelerator.unwrap_model(training.model, keep_fp32_wrapper=False).eval()
    inputs = torch.randn(32, 16)
    exported = bbnet.export(model)
    assert torch.equal(exported(inputs), model(inputs))
    check_exact(exported, training.sparsifier, training.slabs, BUDGET)
    with torch.no_grad():
        model[0].weight.zero_()
    assert not torch.equal(exported(inputs), model(inputs))


# Two processes. Of the ten batches of an epoch each has five: two steps of two micro-batches, and one of the last.

AT_A_REFRESH, BETWEEN, LAST = 2, 3, 14  # epochs, of three steps each


def be_rank(rank, folder):
    """Trains as one of two ranks; goes back to both folders, and stores the states at the end of each run."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    training = Training(shuffle=False)  # accelerate does not restore the order of a shuffle over ranks
    assert isinstance(training.model, nn.parallel.DistributedDataParallel)
    accelerator = training.accelerator
    before = 0
    for epochs in (AT_A_REFRESH, BETWEEN):
        training.train(epochs - before)
        before = epochs
        accelerator.save_state(folder / str(epochs))
    training.train(LAST - before)
    ends = {"straight": training.state()}
    for epochs in (AT_A_REFRESH, BETWEEN):
        accelerator.wait_for_everyone()
        accelerator.load_state(folder / str(epochs))
        training.train(LAST - epochs)
        ends[epochs] = training.state()
    torch.save(ends, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ends_of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes = multiprocessing.get_context("fork")
    ranks = [processes.Process(target=be_rank, args=(rank, folder)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("epochs", [AT_A_REFRESH, BETWEEN])
def test_two_ranks_resumed_end_in_the_straight_runs_bits(epochs, ends_of_ranks, same):
    """At a refresh and between two, from the one state that accelerate saves."""
    for ends in ends_of_ranks:
        assert ends["straight"]["s"]["step"] == 3 * LAST
        assert sorted({row["step"] for row in ends["straight"]["s"]["refreshes"]}) == list(range(2, 31, 2))
        assert same(ends[epochs], ends["straight"])
    assert same(ends_of_ranks[0]["straight"]["s"]["masks"], ends_of_ranks[1]["straight"]["s"]["masks"])
