"""The training loop, with one learning-rate schedule over warm-up and sparse phase for every method."""

import inspect
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bbnet.binary.binarizer import Binarizer
from bbnet.sparsity.cost import density
from bbnet.sparsity.sparsifier import Sparsifier
from bbnet.tasks.batches import Batch
from bbnet.tasks.settings import Training
from bbnet.tasks.task import Items
from bbnet.training.feed import Feed, Resident
from bbnet.training.latent import take_statistics_anew
from bbnet.training.ranks import joined_items, own_rank, rank_count, share_of
from bbnet.training.seeding import stream
from bbnet.training.step import Compile, compiled, optimiser_step, pays_to_compile

logger = logging.getLogger(__name__)
OnEpoch = Callable[[Mapping[str, Any]], None]
Watch = Callable[[], Mapping[str, Any]]


def no_callback(*arguments: Any) -> None:
    """The default of callbacks; does nothing."""


class Trainer:
    """Trains one model of a task. Initial weights, data order and augmentation depend on the seed, never on the method.

    Of several ranks, each calls the same methods in the same order, and has the same weights, state and history.

    Args:
        precision: dtype of the activations in training; scores are computed in float32.
        resident, gpu_slots: see `Feed`.
        on_epoch: callback that is called with each new row of the history, and with the rows of a loaded state.

    Attributes:
        epoch: number of completed epochs.
        position: number of completed steps of the current epoch.
        history: one row per epoch.
    """

    def __init__(
        self,
        task: ModuleType,
        model_settings: Any,
        training: Training,
        prepared: Path,
        index: Mapping[str, Any],
        seed: int,
        device: torch.device,
        *,
        precision: torch.dtype = torch.float32,
        resident: Resident = "auto",
        gpu_slots: int = 1,
        on_epoch: OnEpoch = no_callback,
    ) -> None:
        self.task = task
        self.training = training
        self.seed = seed
        self.device = device
        self.precision = precision
        train, dev = (task.open_split(prepared, index, split) for split in ("train", "val"))
        self.feed = Feed(train, device, resident, gpu_slots)
        self.dev_split = Feed(dev, device, resident, gpu_slots).split
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream("weights", seed).initial_seed())
            self.model: nn.Module = task.build_model(model_settings, index, device)
        self.network = self.model
        self.optimizer = make_optimizer(self.model, training)
        exempt = task.without_decay(self.model) if hasattr(task, "without_decay") else []
        if exempt:
            self.exempt_from_decay(exempt)
        self.epoch = 0
        self.position = 0
        self.history: list[dict[str, Any]] = []
        self.on_epoch = on_epoch
        self.steps_per_epoch = train.steps_per_epoch(training)

    @property
    def warm_up_steps(self) -> int:
        return self.training.warm_up_epochs * self.steps_per_epoch

    @property
    def sparse_steps(self) -> int:
        """Number of optimiser steps of the sparse phase."""
        return self.training.sparse_epochs * self.steps_per_epoch

    def exempt_from_decay(self, weights: Iterable[nn.Parameter]) -> None:
        """Moves weights that the optimiser decays to a parameter group of their own without weight decay."""
        moved = {id(weight) for weight in weights}
        decayed = self.optimizer.param_groups[0]
        own = {key: value for key, value in decayed.items() if key != "params"} | {"weight_decay": 0.0}
        params = decayed["params"]
        decayed["params"] = [weight for weight in params if id(weight) not in moved]
        self.optimizer.add_param_group(own | {"params": [weight for weight in params if id(weight) in moved]})

    def compile(self, how: Compile) -> bool:
        """Compiles the model if that pays off, and returns whether; call it after `sparsify`, before the first step."""
        if pays_to_compile(how, self.training.epochs * self.steps_per_epoch, self.device):
            indices = self.feed.split.batches(self.training, stream("order", self.seed, 1))[0]
            batch = self.feed.split.batch(share_of(indices), self.device)
            self.network = compiled(self.task, self.model, batch, self.precision, how)
        return self.network is not self.model

    def run_epoch(
        self,
        phase: str,
        sparsifier: Sparsifier | None = None,
        after_step: Callable[[], None] = no_callback,
        binarizer: Binarizer | None = None,
        watch: Watch = dict,
    ) -> dict[str, Any]:
        """Trains one epoch, or the rest of a resumed one, and scores dev; returns the epoch's row of the history.

        Binary weights are scored by the signs of the latent ones, also if they are drawn in training. Then the
        statistics of batch norms are taken anew with the signs, because those of random draws do not fit them.
        `after_step` is called after each step, when `state` is that from which the next step resumes. `watch` is called
        after the scoring and returns further columns of the row, by default none.
        Raises: ValueError naming epoch and step if the loss is no longer finite.
        """
        began = time.monotonic()
        loss = self._train(sparsifier, after_step)
        self.model.eval()
        with nullcontext() if binarizer is None else binarizer.signs():
            if binarizer is not None and binarizer.stochastic:
                split, training = self.feed.split, self.training
                take_statistics_anew(self.task, self.model, split, training, self.seed, self.device)
            items = self._dev_items()
            watched = watch()
        self.epoch += 1
        self.position = 0
        step = self.epoch * self.steps_per_epoch
        row = {
            "epoch": self.epoch,
            "phase": phase,
            "step": step,
            "learning_rate": self.learning_rate_at(step - 1),
            "train_loss": loss,
            "density": 1.0 if sparsifier is None else density(self.model, sparsifier.masks()),
        }
        row |= {f"dev_{name}": float(value) for name, value in self.task.metrics(items).items()} | watched
        self.history.append(row)
        selected_by = f"dev_{self.task.SELECTION}"
        scores = f"loss {loss:.4f}, {selected_by} {row[selected_by]:.4f}, density {row['density']:.4f}"
        seconds, epochs = time.monotonic() - began, self.training.epochs
        times = f"{seconds:.1f} s, about {seconds * (epochs - self.epoch):.0f} s left"
        logger.info("epoch %d of %d (%s): %s, %s", self.epoch, epochs, phase, scores, times)
        self.on_epoch(row)
        return row

    def state(self) -> dict[str, Any]:
        """Returns everything that the next step depends on."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
        }
        if self.position:
            on_gpu = self.device.type == "cuda"
            state["within_epoch"] = {
                "position": self.position,
                "losses": self._losses,
                "augmentation": self._augmentation.get_state(),
                "dropout": torch.cuda.get_rng_state(self.device) if on_gpu else torch.get_rng_state(),
            }
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
        self.history = [dict(row) for row in state["history"]]
        for row in self.history:
            self.on_epoch(row)
        within = state.get("within_epoch")
        if within is not None:
            self._begin_epoch()
            self.position = within["position"]
            self._losses.copy_(within["losses"])
            self._augmentation.set_state(within["augmentation"].cpu())
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(within["dropout"].cpu(), self.device)
            else:
                torch.set_rng_state(within["dropout"].cpu())

    @property
    def diverged(self) -> bool:
        """Whether the loss is no longer finite; reading it synchronises with the device."""
        return self.position > 0 and not bool(self._losses[0].isfinite())

    def _dev_items(self) -> Items:
        """Scores dev, of which each rank scores a part."""
        part = self.dev_split if rank_count() == 1 else self.dev_split.part(own_rank(), rank_count())
        return joined_items(self.task.evaluate(self.model, part, self.device)[0] if len(part) else {})

    def _begin_epoch(self) -> None:
        self._augmentation = stream("augmentation", self.seed, self.epoch + 1, device=self.device)
        torch.manual_seed(stream("dropout", self.seed, self.epoch + 1).initial_seed())
        # The sum of the losses, and the number of steps for which it was finite.
        self._losses = torch.zeros(2, device=self.device)

    def _begin_step(self) -> None:
        """Gives each of several ranks its own streams, anew at each step, so that they are in no state to be saved."""
        if rank_count() > 1:
            step = (self.seed, self.epoch + 1, self.position, f"rank {own_rank()}")
            self._augmentation.manual_seed(stream("augmentation", *step).initial_seed())
            torch.manual_seed(stream("dropout", *step).initial_seed())

    def _train(self, sparsifier: Sparsifier | None, after_step: Callable[[], None]) -> float:
        self.model.train()
        batches = self.feed.split.batches(self.training, stream("order", self.seed, self.epoch + 1))
        if not self.position:
            self._begin_epoch()
        left = batches[self.position :]
        shares = [share_of(indices) for indices in left]
        for batch, own, whole in zip(self.feed.batches(shares), shares, left, strict=True):
            self._begin_step()
            learning_rate = self.learning_rate_at(self.epoch * self.steps_per_epoch + self.position)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self._losses[0] += self._step(batch, sparsifier, len(own) / len(whole))
            self._losses[1] += self._losses[0].isfinite()
            self.position += 1
            after_step()
        total, finite_steps = self._losses.tolist()
        if not math.isfinite(total):
            raise ValueError(f"the training loss became {total} {self._place(round(finite_steps) + 1)}")
        return total / self.steps_per_epoch

    def _step(self, batch: Batch, sparsifier: Sparsifier | None, share: float) -> Tensor:
        try:
            return optimiser_step(
                self.task,
                self.network,
                self.optimizer,
                self.training,
                batch,
                self._augmentation,
                self.precision,
                sparsifier,
                share,
            )
        except ValueError as error:
            raise ValueError(f"{error} {self._place(self.position + 1)}") from error

    def _place(self, step: int) -> str:
        return f"in step {step} of {self.steps_per_epoch} of epoch {self.epoch + 1} (seed {self.seed})"

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a step, from 0: a linear rise, then a cosine to zero, over both phases."""
        total = self.training.epochs * self.steps_per_epoch
        rising, start, largest = self.training.rising(self.steps_per_epoch)
        if step < rising:
            return start + (largest - start) * (step + 1) / rising
        done = (step - rising) / max(1, total - rising)
        return largest * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Returns the optimiser of the settings; weight decay acts on matrices and kernels, not on biases and norms."""
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    shared = {"lr": training.learning_rate, "fused": True}
    if training.optimizer == "sgd":
        return light_start(torch.optim.SGD)(groups, momentum=0.9, nesterov=training.nesterov, **shared)
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return light_start(kind)(groups, betas=training.betas, **shared)


def light_start(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Returns a subclass of `optimizer` that behaves the same without importing torch's compiler.

    The methods of torch's optimisers are wrapped so that they import `torch._dynamo` when they are first called. That
    import takes 0.6 s, a quarter of the start-up of a job, and the default study has 72 of them. The subclass has the
    methods without the wrapper, whose only effect is in compiled code; here optimisers are never compiled.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    return type(optimizer.__name__, (optimizer,), methods | {"step": torch.no_grad()(inspect.unwrap(optimizer.step))})
