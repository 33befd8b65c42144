"""The training loop: one learning-rate schedule over warm-up and sparse phase, the same for every method."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bbnet.sparsity.cost import density
from bbnet.sparsity.sparsifier import Sparsifier
from bbnet.tasks.settings import Training
from bbnet.training.seeding import stream

logger = logging.getLogger(__name__)
OnEpoch = Callable[[Mapping[str, Any]], None]


def unwatched(row: Mapping[str, Any]) -> None:
    """The `on_epoch` of a training that nobody watches."""


class Trainer:
    """Trains one model of a task. Weights, data order and augmentation depend on the seed alone, never on the method.

    `on_epoch` is called with every row of the history as it comes, those of a loaded state first.

    Attributes:
        epoch: passes over the training data so far.
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
        on_epoch: OnEpoch = unwatched,
    ) -> None:
        self.task = task
        self.training = training
        self.seed = seed
        self.device = device
        self.train_split = task.open_split(prepared, index, "train")
        self.dev_split = task.open_split(prepared, index, "val")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream("weights", seed).initial_seed())
            self.model: nn.Module = task.build_model(model_settings, index).to(device)
        self.optimizer = make_optimizer(self.model, training)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.on_epoch = on_epoch
        self.steps_per_epoch = self.train_split.steps_per_epoch(training)

    @property
    def sparse_steps(self) -> int:
        """Optimiser steps of the sparse phase."""
        return self.training.sparse_epochs * self.steps_per_epoch

    def run_epoch(self, phase: str, sparsifier: Sparsifier | None = None) -> dict[str, Any]:
        """One pass over the training data and one over dev; returns the epoch's row of the history."""
        began = time.monotonic()
        self.epoch += 1
        loss, learning_rate = self._train(sparsifier)
        self.model.eval()
        items, _ = self.task.evaluate(self.model, self.dev_split, self.device)
        row = {
            "epoch": self.epoch,
            "phase": phase,
            "step": self.epoch * self.steps_per_epoch,
            "learning_rate": learning_rate,
            "train_loss": loss,
            "density": 1.0 if sparsifier is None else density(sparsifier.masks()),
        }
        row |= {f"dev_{name}": float(value) for name, value in self.task.metrics(items).items()}
        self.history.append(row)
        selected_by = f"dev_{self.task.SELECTION}"
        seconds = time.monotonic() - began
        logger.info(
            "epoch %d of %d (%s): loss %.4f, %s %.4f, density %.4f, %.1f s, about %.0f s left",
            self.epoch,
            self.training.epochs,
            phase,
            loss,
            selected_by,
            row[selected_by],
            row["density"],
            seconds,
            seconds * (self.training.epochs - self.epoch),
        )
        self.on_epoch(row)
        return row

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
        self.history = [dict(row) for row in state["history"]]
        for row in self.history:
            self.on_epoch(row)

    def _train(self, sparsifier: Sparsifier | None) -> tuple[float, float]:
        self.model.train()
        batches = self.train_split.batches(self.training, stream("order", self.seed, self.epoch))
        augmentation = stream("augmentation", self.seed, self.epoch, device=self.device)
        torch.manual_seed(stream("dropout", self.seed, self.epoch).initial_seed())
        first_step = (self.epoch - 1) * self.steps_per_epoch
        total = torch.zeros((), device=self.device)
        for step, indices in enumerate(batches, start=first_step):
            learning_rate = self.learning_rate_at(step)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            batch = self.task.augment(self.train_split.batch(indices, self.device), self.training, augmentation)
            with sparsifier.valid(self.task.valid_positions(batch)) if sparsifier else nullcontext():
                loss = self.task.loss(self.model, batch)
            loss.backward()
            if self.training.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
            self._step()
            self.optimizer.zero_grad()
            total += loss.detach()
        mean = total.item() / self.steps_per_epoch
        if not math.isfinite(mean):
            raise ValueError(f"the training loss became {mean} in epoch {self.epoch} (seed {self.seed})")
        return mean, learning_rate

    def _step(self) -> None:
        try:
            self.optimizer.step()
        except ValueError as error:
            raise ValueError(f"{error} in epoch {self.epoch} (seed {self.seed})") from error

    def learning_rate_at(self, step: int) -> float:
        """Linear rise, then cosine to zero, over warm-up and sparse phase together; steps count from 0."""
        total = self.training.epochs * self.steps_per_epoch
        rising = max(1, round(self.training.rise * total))
        if step < rising:
            return self.training.learning_rate * (step + 1) / rising
        done = (step - rising) / max(1, total - rising)
        return self.training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Weight decay acts on matrices and kernels, not on biases and norms."""
    groups = [
        {
            "params": [weight for weight in model.parameters() if weight.dim() > 1],
            "weight_decay": training.weight_decay,
        },
        {"params": [weight for weight in model.parameters() if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=True)
