"""Computes the warm start of a seed, trains a run from it, and scores a trained run on test."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bbnet.sparsity import algorithms, cost
from bbnet.sparsity.gate import Gates
from bbnet.sparsity.slab import Slab, choose_slabs, connections
from bbnet.sparsity.sparsifier import Sparsifier, sparsify
from bbnet.tasks import task as tasks
from bbnet.training.checkpoint import load_masks, load_weights
from bbnet.training.devices import choose_device
from bbnet.training.resume import WITHOUT_RESUME, Resume
from bbnet.training.step import resolve_precision
from bbnet.training.trainer import OnEpoch, Trainer, no_callback
from bbnet.training.units import measure_units

logger = logging.getLogger(__name__)
NO_SIDE = "none"


class Job:
    """The configuration of a run with its task, data, device and precision.

    Args:
        config: `task`, `model`, `training`, `slabs`, `seed`, `device`, `cpu_threads`, `deterministic`, `precision`,
            `compile` and, except for a warm-up, `method`, `budget`, `smallest_budget` and `sparsity`, as
            `bbnet.study.recipe` writes them.
        prepared: folder of the prepared arrays.
        index: their index.
    """

    def __init__(self, config: Mapping[str, Any], prepared: Path, index: Mapping[str, Any]) -> None:
        torch.set_num_threads(config["cpu_threads"])
        self.config = config
        self.prepared = prepared
        self.index = index
        self.task: ModuleType = tasks.load(config["task"])
        self.gpu_slots = int(os.environ.get("BBNET_GPU_SLOTS", "1"))
        self.device = choose_device(config["device"], self.gpu_slots)
        if config["deterministic"] and self.device.type == "cuda":
            compute_deterministically()
        self.precision = resolve_precision(config["precision"], self.device)
        self.model_settings = self.task.ModelSettings(**config["model"])

    def trainer(self, on_epoch: OnEpoch = no_callback) -> Trainer:
        return Trainer(
            self.task,
            self.model_settings,
            self.task.TrainingSettings(**self.config["training"]),
            self.prepared,
            self.index,
            self.config["seed"],
            self.device,
            precision=self.precision,
            resident=os.environ.get("BBNET_RESIDENT", "auto"),
            gpu_slots=self.gpu_slots,
            on_epoch=on_epoch,
        )

    def slabs(self, model: nn.Module, side: str) -> tuple[list[Slab], dict[str, str]]:
        """Returns the slabs of a side, and the reason why each other candidate stays dense."""
        candidates = self.task.slabs(model, self.config["slabs"], side)
        return choose_slabs(model, candidates, Decimal(self.config.get("smallest_budget", 1)))

    @property
    def side(self) -> str:
        return self.config["method"].get("side", NO_SIDE)

    @property
    def slab_side(self) -> str:
        """The side of the slabs whose masks are recorded. For a dense run it is `in`, and all masks are true."""
        return "in" if self.side == NO_SIDE else self.side

    def sides(self) -> list[str]:
        """Returns the sides whose units are measured, which for a dense network are both."""
        return ["in", "out"] if self.side == NO_SIDE else [self.side]

    def gate(self, model: nn.Module, slabs: list[Slab]) -> None:
        """Adds the gates of a method that gates activations, at the run's budget; does nothing for other methods."""
        method = dict(self.config["method"])
        algorithm = algorithms.make(method.pop("algorithm"), **method)
        if algorithm.gates_activations:
            Gates(model, slabs, algorithm).set_share(Decimal(self.config["budget"]))

    def measured_units(
        self, model: nn.Module, masks: Mapping[str, Tensor]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Returns the rows of `units.csv` and `codes.csv`, measured on dev; for a dense network those of both sides."""
        dev = self.task.open_split(self.prepared, self.index, "val")
        slabs = [slab for side in self.sides() for slab in self.slabs(model, side)[0]]
        return measure_units(self.task, model, dev, self.device, slabs, {} if self.side == NO_SIDE else masks)


def compute_deterministically() -> None:
    """Makes torch compute equal bits in every run on one kind of GPU; torch warns where it has no such algorithm."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def warm_up(
    job: Job, weights: Path | None = None, on_epoch: OnEpoch = no_callback, resume: Resume = WITHOUT_RESUME
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Trains the dense first phase; returns the state that every method starts from, the history, and rows of units.

    Args:
        weights: file with the initial weights, for a task that has `load_pretrained`.
        on_epoch: callback that is called with each new row of the history.
        resume: loads the state of an interrupted warm-up, and saves it.
    """
    trainer = job.trainer(on_epoch)
    saved = resume.load(job.device)
    if saved is not None:
        _resume(trainer, saved)
    elif weights is not None:
        job.task.load_pretrained(trainer.model, weights)

    def state() -> dict[str, Any] | None:
        return None if trainer.diverged else trainer.state()

    trainer.compile(job.config["compile"])
    while trainer.epoch < trainer.training.warm_up_epochs:
        trainer.run_epoch("warm_up", after_step=partial(resume.after_step, state))
        resume.after_epoch(state)
    units, _ = job.measured_units(trainer.model, {})
    inputs = job.task.example_inputs(job.index, job.device)
    flops = cost.flops_by_module(trainer.model, inputs)
    return trainer.state() | {"flops": flops}, trainer.history, units


def _resume(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    trainer.load_state(saved)
    within = f", step {trainer.position} of the next" if trainer.position else ""
    logger.info("resumed after epoch %d of %d%s", trainer.epoch, trainer.training.epochs, within)


@dataclass
class TrainedRun:
    """A finished training. `weights` are those of `selected_epoch`, the best on dev of the epochs after the freeze."""

    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    slabs: list[Slab]
    history: list[dict[str, Any]]
    refreshes: list[dict[str, Any]]
    selected_epoch: int
    left_dense: dict[str, str]
    cost: dict[str, Any]
    compiled: bool


@dataclass
class Selection:
    """The best weights on dev so far. Of two scores, the higher one is better."""

    score: float = -float("inf")
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, score: float, epoch: int, model: nn.Module) -> None:
        if score > self.score:
            self.score, self.epoch = score, epoch
            self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train(
    job: Job, warm_start: Mapping[str, Any], on_epoch: OnEpoch = no_callback, resume: Resume = WITHOUT_RESUME
) -> TrainedRun:
    """Trains the sparse phase of one run, from the warm start to the last epoch.

    Args:
        on_epoch: callback that is called with each row of the history, those of the warm start first.
        resume: loads the state of an interrupted training, which then replaces the warm start, and saves it.
    """
    trainer = job.trainer(on_epoch)
    saved = resume.load(job.device)
    if saved is None:
        trainer.load_state(warm_start)
    else:
        _resume(trainer, saved["trainer"])
    slabs, left_dense = job.slabs(trainer.model, job.slab_side)
    for name, why in left_dense.items():
        logger.info("%s stays dense: %s", name, why)
    sparsifier = sparsify(
        trainer.model,
        trainer.optimizer,
        slabs,
        job.config["method"],
        job.config["budget"],
        total_steps=trainer.sparse_steps,
        seed=job.config["seed"],
        **job.config["sparsity"],
    )
    if sparsifier.schedule.freeze_step >= trainer.sparse_steps:
        raise ValueError(
            f"sparsity.freeze {sparsifier.schedule.freeze} leaves none of the {trainer.sparse_steps} steps of the "
            "sparse phase to train with frozen masks"
        )
    best = Selection()
    if saved is not None:
        sparsifier.load_state_dict(saved["sparsifier"])
        best = Selection(**saved["best"])

    def state() -> dict[str, Any] | None:
        if trainer.diverged:
            return None
        return {"trainer": trainer.state(), "sparsifier": sparsifier.state_dict(), "best": vars(best)}

    compiled = trainer.compile(job.config["compile"])
    sign = 1 if job.task.METRICS[job.task.SELECTION].better == "higher" else -1
    while trainer.epoch < trainer.training.epochs:
        phase = "frozen" if _ends_after_freeze(trainer, sparsifier) else "sparse"
        row = trainer.run_epoch(phase, sparsifier, partial(resume.after_step, state))
        if phase == "frozen":
            best.offer(sign * row[f"dev_{job.task.SELECTION}"], trainer.epoch, trainer.model)
        resume.after_epoch(state)
    if not best.weights:
        last = trainer.history[-1][f"dev_{job.task.SELECTION}"]
        raise ValueError(f"no epoch after the freeze has a dev {job.task.SELECTION} to select by: {last}")
    masks = {name: mask.cpu() for name, mask in sparsifier.masks().items()}
    figures = densities(trainer.model, masks)
    inputs = job.task.example_inputs(job.index, job.device)
    figures["flops"] = cost.flops(trainer.model, inputs, masks, sparsifier.gates, warm_start["flops"])
    refreshes = sparsifier.refreshes
    history = trainer.history
    return TrainedRun(best.weights, masks, slabs, history, refreshes, best.epoch, left_dense, figures, compiled)


def _ends_after_freeze(trainer: Trainer, sparsifier: Sparsifier) -> bool:
    """Returns whether the next epoch ends with masks that have been frozen for at least one step."""
    sparse_epochs = trainer.epoch + 1 - trainer.training.warm_up_epochs
    return sparse_epochs * trainer.steps_per_epoch > sparsifier.schedule.freeze_step


@dataclass
class Evaluation:
    items: Mapping[str, Any]
    predictions: Mapping[str, Any]
    metrics: dict[str, float]
    units: list[dict[str, Any]]
    codes: list[dict[str, Any]]
    densities: dict[str, Any]


def evaluate(job: Job, run: Path, scoring: Mapping[str, Any] | None = None) -> Evaluation:
    """Scores the selected weights of a run on test.

    Args:
        scoring: settings of the scoring, and `buckets` if the task has them; see `Task.open_split`.
    Raises: ValueError if a pruned weight is not 0, or if the masks are those of other slabs.
    """
    model = job.task.build_model(job.model_settings, job.index, job.device)
    load_weights(run / "model.safetensors", model)
    masks = load_masks(run / "masks.safetensors")
    slabs, _ = job.slabs(model, job.slab_side)
    check_masks_in_force(model, slabs, masks)
    job.gate(model, slabs)
    model.eval()
    test = job.task.open_split(job.prepared, {**job.index, **(scoring or {})}, "test")
    items, predictions = job.task.evaluate(model, test, job.device)
    metrics = {name: float(value) for name, value in job.task.metrics(items).items()}
    units, codes = job.measured_units(model, masks)
    return Evaluation(items, predictions, metrics, units, codes, densities(model, masks))


def densities(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the kept share of all slabs, of the network and of each slab, and the network's number of weights."""
    return {
        "density": cost.density(model, masks),
        "net_density": cost.net_density(model, masks),
        "slabs": {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()},
        "weights": sum(parameter.numel() for parameter in model.parameters()),
    }


def check_masks_in_force(model: nn.Module, slabs: list[Slab], masks: Mapping[str, Tensor]) -> None:
    """Raises ValueError naming a slab without a mask, a mask without a slab, or a pruned weight that is not 0."""
    names = {slab.name for slab in slabs}
    if names != set(masks):
        raise ValueError(f"masks are of other slabs: {', '.join(sorted(names ^ set(masks)))}")
    for slab in slabs:
        weight = connections(model.get_submodule(slab.name).weight, slab.side)
        if masks[slab.name].shape != weight.shape[:2]:
            shapes = f"{list(masks[slab.name].shape)}, its weight {list(weight.shape[:2])}"
            raise ValueError(f"slab {slab.name}: its mask has shape {shapes}")
        if bool(weight[~masks[slab.name].to(weight.device)].any()):
            raise ValueError(f"slab {slab.name}: a pruned weight is not 0")
