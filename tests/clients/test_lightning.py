"""Lightning: sparsified where optimizers are configured, under automatic and manual optimisation, and resumed."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bbnet

lightning = pytest.importorskip("lightning")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")

METHODS = ["sp_in", "sp_out", "magnitude", {"algorithm": "rigl"}, {"algorithm": "set"}]
BUDGET, EPOCHS, STEPS_PER_EPOCH, SAVED_AFTER = 0.3, 8, 5, 3
STEPS = EPOCHS * STEPS_PER_EPOCH
INPUTS = torch.randn(80, 16, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(4, (80,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def quiet():
    """Hides what Lightning says of loggers, workers and accelerators."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*to be more than.*", ".*exists and is not empty.*"):
            warnings.filterwarnings("ignore", message=message)
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


class Automatic(lightning.LightningModule):
    """A module as its user would write it, which sparsifies itself where it makes its optimizer."""

    def __init__(self, method="sp_in", seed=0, whole=False):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
        )
        self.method = method
        self.whole = whole
        self.saved = None
        self.checks = []

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        self.sparsify(optimizer, self.trainer.estimated_stepping_batches)
        return optimizer

    def sparsify(self, optimizer, steps):
        model = self if self.whole else self.net
        self.slabs = bbnet.find_slabs(model, side="out" if self.method == "sp_out" else "in")
        self.sparsifier = bbnet.sparsify(model, optimizer, self.slabs, self.method, BUDGET, total_steps=steps, every=2)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["sparsifier"] = self.sparsifier.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.saved = checkpoint.get("sparsifier")  # the sparsifier is made only later, with the optimizer

    def on_fit_start(self):
        if self.saved is not None:
            self.sparsifier.load_state_dict(self.saved)

    def on_train_batch_end(self, outputs, batch, index):
        for check in self.checks:
            check()


class Manual(Automatic):
    """The same with a loop of its own; `wrapped` sparsifies what self.optimizers() returns, not the optimizer."""

    def __init__(self, method="sp_in", seed=0, wrapped=False):
        super().__init__(method, seed)
        self.automatic_optimization = False
        self.wrapped = wrapped

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        if not self.wrapped:
            self.sparsify(optimizer, STEPS)
        return optimizer

    def on_fit_start(self):
        if self.wrapped:
            assert isinstance(self.optimizers(), lightning.pytorch.core.optimizer.LightningOptimizer)
            self.sparsify(self.optimizers(), STEPS)
        super().on_fit_start()

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, index))
        if index % 2 == 1:
            self.clip_gradients(optimizer, gradient_clip_val=1.0)
            optimizer.step()
            optimizer.zero_grad()


KINDS = {
    "automatic": Automatic,
    "manual": Manual,
    "manual, wrapped": lambda *args, **options: Manual(*args, **options, wrapped=True),
}


def fit(module, folder, epochs=EPOCHS, resume=None, also=(), **options):
    """Trains with two micro-batches per step, and keeps the checkpoint after every epoch."""
    if module.automatic_optimization:
        options |= {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    keep = callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[keep, *also],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8), ckpt_path=resume)
    return module


def checkpoint(folder):
    return folder / f"epoch={SAVED_AFTER - 1}.ckpt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_micro_batches_count_as_one_step_and_every_refresh_meets_its_budget(kind, precision, tmp_path, check_exact):
    module, steps = KINDS[kind](), []

    def check():
        sparsifier = module.sparsifier
        steps.append(sparsifier.step)
        budget = sparsifier.refreshes[-1]["budget"] if sparsifier.refreshes else 1
        check_exact(module.net, sparsifier, module.slabs, budget)

    module.checks.append(check)
    fit(module, tmp_path, precision=precision)
    assert steps == [batch // 2 for batch in range(1, 2 * STEPS + 1)]
    assert sorted({row["step"] for row in module.sparsifier.refreshes}) == list(range(2, 31, 2))
    check_exact(module.net, module.sparsifier, module.slabs, BUDGET)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_checkpoint_ends_in_the_straight_runs_bits(kind, method, tmp_path, same, check_exact):
    straight = fit(KINDS[kind](method), tmp_path)
    resumed = KINDS[kind](method, seed=1)
    assert not same(resumed.state_dict(), straight.state_dict())
    fit(resumed, tmp_path, resume=checkpoint(tmp_path))
    assert same(resumed.state_dict(), straight.state_dict())
    assert same(resumed.sparsifier.state_dict(), straight.sparsifier.state_dict())
    check_exact(resumed.net, resumed.sparsifier, resumed.slabs, BUDGET)


def test_a_checkpoint_resumed_without_the_sparsifiers_state_is_warned_of(tmp_path):
    fit(Automatic(), tmp_path)
    state = torch.load(checkpoint(tmp_path), weights_only=False)
    del state["sparsifier"]
    torch.save(state, tmp_path / "without.ckpt")
    with pytest.warns(UserWarning, match="load also the sparsifier's state_dict"):
        fit(Automatic(seed=1), tmp_path, epochs=SAVED_AFTER + 1, resume=tmp_path / "without.ckpt")


def test_the_lightning_module_itself_can_be_sparsified(tmp_path, same, check_exact):
    part, whole = fit(Automatic(), tmp_path), fit(Automatic(whole=True), tmp_path)
    assert [slab.name for slab in whole.slabs] == [f"net.{slab.name}" for slab in part.slabs]
    assert same(whole.state_dict(), part.state_dict())
    check_exact(whole, whole.sparsifier, whole.slabs, BUDGET)


class Watched(Automatic):
    """Watches itself, by the optimizer that Lightning wraps."""

    def on_fit_start(self):
        super().on_fit_start()
        self.watched = bbnet.watch(self, self.optimizers(), every=5)
        self.watched.start()

    def on_fit_end(self):
        self.watched.stop()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_watched_training_ends_in_the_same_bits_and_is_healthy(precision, tmp_path, same):
    plain, watched = (fit(kind(), tmp_path / kind.__name__, precision=precision) for kind in (Automatic, Watched))
    assert same(watched.state_dict(), plain.state_dict())
    rows = {row["parameter"]: row for row in watched.watched.rows()}
    assert set(rows) == {name for name, _ in watched.named_parameters()}
    assert {row["observations"] for row in rows.values()} == {STEPS // 5}
    assert all(row["updates"] == STEPS // 5 for row in rows.values())


class Noisy(Automatic):
    """Adds noise to its gradients after the backward pass, in the hook that Lightning has for it."""

    def on_before_optimizer_step(self, optimizer):
        for weight in self.parameters():
            weight.grad += 0.1


def test_gradients_changed_in_the_hook_before_the_step_are_masked(tmp_path, check_exact):
    module = fit(Noisy(), tmp_path)
    check_exact(module.net, module.sparsifier, module.slabs, BUDGET)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_of_the_net_has_its_outputs(kind, tmp_path, check_exact):
    module = fit(KINDS[kind](), tmp_path)
    exported = bbnet.export(module.net, remove_units=True)
    assert torch.allclose(exported(INPUTS), module.net.eval()(INPUTS), rtol=0, atol=1e-5)
    check_exact(bbnet.export(module.net), module.sparsifier, module.slabs, BUDGET)


def test_an_export_of_the_lightning_module_has_its_outputs(tmp_path):
    module = fit(Automatic(), tmp_path)
    assert torch.equal(bbnet.export(module)(INPUTS), module.eval()(INPUTS))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_fabric_checkpoint_ends_in_the_straight_runs_bits(wrapped, tmp_path, same, check_exact):
    def training(seed):
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        module = Automatic(seed=seed).net
        model, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), lr=0.01))
        sparse = model if wrapped else model.module
        slabs = bbnet.find_slabs(sparse)
        sparsifier = bbnet.sparsify(sparse, optimizer, slabs, "sp_in", BUDGET, total_steps=STEPS, every=2)
        return fabric, sparse, slabs, {"model": model, "optimizer": optimizer, "sparsifier": sparsifier}

    def train(fabric, state, steps):
        for step in steps:
            batch = slice(step % 10 * 8, step % 10 * 8 + 8)
            fabric.backward(nn.functional.cross_entropy(state["model"](INPUTS[batch]), TARGETS[batch]))
            state["optimizer"].step()
            state["optimizer"].zero_grad()

    fabric, _, _, straight = training(seed=0)
    train(fabric, straight, range(15))
    fabric.save(tmp_path / "state.ckpt", straight)
    train(fabric, straight, range(15, STEPS))
    fabric, sparse, slabs, resumed = training(seed=1)
    fabric.load(tmp_path / "state.ckpt", resumed)
    train(fabric, resumed, range(15, STEPS))
    assert all(same(resumed[name].state_dict(), straight[name].state_dict()) for name in straight)
    check_exact(sparse, resumed["sparsifier"], slabs, BUDGET)


def test_weights_averaged_by_lightning_are_masked_by_the_sparsifier(tmp_path, check_exact):
    module = Automatic()
    average = callbacks.EMAWeightAveraging(decay=0.9)
    fit(module, tmp_path, also=[average])
    masks = module.sparsifier.masks()
    assert all(module.net.get_submodule(slab.name).weight[~masks[slab.name]].any() for slab in module.slabs)
    module.sparsifier.apply_to(module.net)
    check_exact(module.net, module.sparsifier, module.slabs, BUDGET)
