"""The three kinds of work on a run: its warm start, its training, its evaluation."""

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
from bbnet.training.resume import GOES_THROUGH, Resume
from bbnet.training.step import resolve_precision
from bbnet.training.trainer import OnEpoch, Trainer, unwatched
from bbnet.training.units import measure_units

logger = logging.getLogger(__name__)
NO_SIDE = "none"


class Job:
    """A run's configuration, resolved: what it trains, on what, where.

    Args:
        config: `task`, `model`, `training`, `slabs`, `seed`, `device`, `cpu_threads`, `deterministic`, `precision`,
            `compile` and, but for a warm-up, `method`, `budget`, `smallest_budget` and `sparsity`, as
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

    def trainer(self, on_epoch: OnEpoch = unwatched) -> Trainer:
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
        """The slabs of a side, and why each other candidate stays dense."""
        candidates = self.task.slabs(model, self.config["slabs"], side)
        return choose_slabs(model, candidates, Decimal(self.config.get("smallest_budget", 1)))

    @property
    def side(self) -> str:
        return self.config["method"].get("side", NO_SIDE)

    @property
    def slab_side(self) -> str:
        """The side of the slabs whose masks are recorded; for a dense run, all of them whole, `in`."""
        return "in" if self.side == NO_SIDE else self.side

    def sides(self) -> list[str]:
        """The sides whose units are measured: a dense network's both."""
        return ["in", "out"] if self.side == NO_SIDE else [self.side]

    def gate(self, model: nn.Module, slabs: list[Slab]) -> None:
        """Puts the gates of a method that gates activations behind its units, at the run's budget."""
        method = dict(self.config["method"])
        algorithm = algorithms.make(method.pop("algorithm"), **method)
        if algorithm.gates_activations:
            Gates(model, slabs, algorithm).let_pass(Decimal(self.config["budget"]))

    def measured_units(
        self, model: nn.Module, masks: Mapping[str, Tensor]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of units and of slabs, of a dense network those of both sides."""
        dev = self.task.open_split(self.prepared, self.index, "val")
        slabs = [slab for side in self.sides() for slab in self.slabs(model, side)[0]]
        return measure_units(self.task, model, dev, self.device, slabs, {} if self.side == NO_SIDE else masks)


def compute_deterministically() -> None:
    """Equal bits on each run on one kind of GPU, where torch has such algorithms; it warns where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def warm_up(
    job: Job, weights: Path | None = None, on_epoch: OnEpoch = unwatched, resume: Resume = GOES_THROUGH
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The dense first phase: the state that every method of this seed starts from, its history, its units on dev.

    Args:
        weights: file from which the model starts, of a task that knows such.
        on_epoch: is shown every row of the history as it comes.
        resume: where the training goes on from, and leaves its state.
    """
    trainer = job.trainer(on_epoch)
    saved = resume.load(job.device)
    if saved is not None:
        _go_on(trainer, saved)
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


def _go_on(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    trainer.load_state(saved)
    within = f", step {trainer.position} of the next" if trainer.position else ""
    logger.info("goes on after epoch %d of %d%s", trainer.epoch, trainer.training.epochs, within)


@dataclass
class TrainedRun:
    """`weights` are those of `selected_epoch`, the best on dev among the epochs after the freeze."""

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
    """The best weights on dev so far, `score` such that higher is better."""

    score: float = -float("inf")
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, score: float, epoch: int, model: nn.Module) -> None:
        if score > self.score:
            self.score, self.epoch = score, epoch
            self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train(
    job: Job, warm_start: Mapping[str, Any], on_epoch: OnEpoch = unwatched, resume: Resume = GOES_THROUGH
) -> TrainedRun:
    """The sparse phase of one run, from the warm start to the last epoch.

    Args:
        on_epoch: is shown every row of the history as it comes, those of the warm start first.
        resume: where the training goes on from, instead of the warm start, and leaves its state.
    """
    trainer = job.trainer(on_epoch)
    saved = resume.load(job.device)
    if saved is None:
        trainer.load_state(warm_start)
    else:
        _go_on(trainer, saved["trainer"])
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
    """Whether the next epoch ends with frozen masks that were trained for at least a step."""
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
    """Scores the selected weights in a run's folder on test.

    Args:
        scoring: settings of the scoring on test, and `buckets` where the task has them; see `Task.open_split`.
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
    """Kept shares: of the slabs together, of the network, and of each slab; and the network's number of weights."""
    return {
        "density": cost.density(masks),
        "net_density": cost.net_density(model, masks),
        "slabs": {name: cost.density({name: mask}) for name, mask in masks.items()},
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
