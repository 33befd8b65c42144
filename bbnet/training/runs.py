"""Computes the warm start of a seed, trains a run from it, and scores a trained run on test."""

import logging
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from bbnet.analysis.draws import joined_draws, mean_metrics
from bbnet.binary.binarizer import Binarizer, binarize, choose_layers
from bbnet.binary.settings import WeightValues
from bbnet.sparsity import algorithms, cost
from bbnet.sparsity.gate import Gates
from bbnet.sparsity.one_shot.settings import OneShotMethod
from bbnet.sparsity.slab import Slab, choose_slabs, connections
from bbnet.sparsity.sparsifier import Sparsifier, sparsify
from bbnet.study.record import LATENT, draw_files
from bbnet.tasks import task as tasks
from bbnet.training import ranks
from bbnet.training.checkpoint import load_masks, load_weights
from bbnet.training.latent import scores_beside
from bbnet.training.pretrained import start_from
from bbnet.training.resume import WITHOUT_RESUME, Resume
from bbnet.training.step import resolve_precision
from bbnet.training.trainer import OnEpoch, Trainer, Watch, no_callback
from bbnet.training.units import measure_balance, measure_units

logger = logging.getLogger(__name__)
NO_SIDE = "none"


class Job:
    """The configuration of a run with its task, data, device and precision.

    Args:
        config: `task`, `model`, `training`, `slabs`, `seed`, `device`, `cpu_threads`, `deterministic`, `precision`,
            `compile` and, except for a warm-up, `method`, `budget`, `smallest_budget`, `sparsity` and `latest_freeze`
            (without it, the run's own counts), as `bbnet.study.recipe` writes them.
        prepared: folder of the prepared arrays.
        index: their index.
        devices: number of devices to train on, `ranks.device_count` of the configuration or one.
    """

    def __init__(self, config: Mapping[str, Any], prepared: Path, index: Mapping[str, Any], devices: int = 1) -> None:
        torch.set_num_threads(config["cpu_threads"])
        self.config = config
        self.prepared = prepared
        self.index = index
        self.task: ModuleType = tasks.load(config["task"])
        self.gpu_slots = int(os.environ.get("BBNET_GPU_SLOTS", "1"))
        self.device_count = devices
        self.devices = ranks.devices_of_job(config["device"], self.gpu_slots, devices)
        self.device = self.devices[0]
        if config["deterministic"] and self.device.type == "cuda":
            compute_deterministically()
        self.precision = resolve_precision(config["precision"], self.device)
        self.model_settings = TypeAdapter(self.task.ModelSettings).validate_python(config["model"])

    def together(self) -> AbstractContextManager[None]:
        """Returns a context inside which the processes of all devices train together; see `ranks.together`."""
        return ranks.together(self.devices, self.device_count)

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

    @property
    def algorithm(self) -> dict[str, Any]:
        """The name and the parameters of the method's algorithm."""
        others = (*WeightValues.model_fields, *OneShotMethod.model_fields)
        return {key: value for key, value in self.config["method"].items() if key not in others}

    @property
    def weights(self) -> WeightValues:
        """What the method's weights may be."""
        given = {key: value for key, value in self.config["method"].items() if key in WeightValues.model_fields}
        return WeightValues(**given)

    def sparsifier(self, trainer: Trainer, slabs: list[Slab]) -> Sparsifier:
        """Sparsifies a trainer's model by the run's method, budget and schedule; see `bbnet.sparsify`."""
        return sparsify(
            trainer.model,
            trainer.optimizer,
            slabs,
            self.algorithm,
            self.config["budget"],
            total_steps=trainer.sparse_steps,
            seed=self.config["seed"],
            **self.config["sparsity"],
        )

    def selectable_after(self, trainer: Trainer, sparsifier: Sparsifier) -> int:
        """Returns the step of the whole training after which the masks of all runs of the task are fixed.

        Weights are selected among the epochs that end after it, so that no run has more epochs to choose from.
        """
        own = trainer.warm_up_steps + sparsifier.schedule.freeze_step
        latest = self.config.get("latest_freeze")
        if latest is None:
            return own
        warm_up, epochs = latest["warm_up_epochs"], trainer.training.epochs
        sparse_steps = (epochs - warm_up) * trainer.steps_per_epoch
        return max(own, warm_up * trainer.steps_per_epoch + round(latest["freeze"] * sparse_steps))

    def exempt_latent(self, trainer: Trainer) -> None:
        """Takes the weights that will be latent ones out of the weight decay, unless the method has `latent_decay`."""
        if self.weights.weights != "float" and not self.weights.latent_decay:
            layers = choose_layers(trainer.model, self.weights.binary_layers)
            trainer.exempt_from_decay(layer.weight for layer in layers.values())

    def binarizer(self, trainer: Trainer) -> Binarizer | None:
        """Makes the weights of a trainer's model binary, if the method's are; see `bbnet.binarize`."""
        wanted = self.weights
        if wanted.weights == "float":
            return None
        return binarize(
            trainer.model,
            trainer.optimizer,
            wanted.binary_layers,
            stochastic=wanted.weights == "stochastic_binary",
            scale=wanted.binary_scale,
            seed=self.config["seed"],
        )

    def gate(self, model: nn.Module, slabs: list[Slab]) -> None:
        """Adds the gates of a method that gates activations, at the run's budget; does nothing for other methods."""
        parameters = self.algorithm
        algorithm = algorithms.make(parameters.pop("algorithm"), **parameters)
        if algorithm.gates_activations:
            Gates(model, slabs, algorithm).set_share(Decimal(self.config["budget"]))

    def measured_units(
        self, model: nn.Module, masks: Mapping[str, Tensor]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Returns the rows of `units.csv` and `codes.csv`, measured on dev; for a dense network those of both sides."""
        dev = self.task.open_split(self.prepared, self.index, "val")
        slabs = self.measured_slabs(model)
        return measure_units(self.task, model, dev, self.device, slabs, {} if self.side == NO_SIDE else masks)

    def measured_slabs(self, model: nn.Module) -> list[Slab]:
        """Returns the slabs whose units are measured, which for a dense network are those of both sides."""
        return [slab for side in self.sides() for slab in self.slabs(model, side)[0]]

    def watch(self, trainer: Trainer, masks: Callable[[], Mapping[str, Tensor]]) -> Watch:
        """Returns what measures the balance line on dev after each epoch, if the task's training asks for it."""
        if not trainer.training.watch_balance:
            return dict
        slabs = self.measured_slabs(trainer.model)

        def measured() -> Mapping[str, float]:
            found = {} if self.side == NO_SIDE else masks()
            return measure_balance(self.task, trainer.model, trainer.dev_split, self.device, slabs, found)

        return measured


def compute_deterministically() -> None:
    """Makes torch compute equal bits in every run on one kind of GPU; torch warns where it has no such algorithm."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def warm_up(
    job: Job,
    weights: Path | None = None,
    on_epoch: OnEpoch = no_callback,
    resume: Resume = WITHOUT_RESUME,
    source: Path | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Trains the dense first phase; returns the state that every method starts from, the history, and rows of units.

    Args:
        weights: file with the initial weights, for a task that has `load_pretrained`.
        on_epoch: callback that is called with each new row of the history.
        resume: loads the state of an interrupted warm-up, and saves it; of several ranks in the first.
        source: folder of the run that the recipe's `source` names, whose weights the model starts from.
    """
    trainer = job.trainer(on_epoch)
    started = {}
    if source is not None:
        started = {"started_from": start_from(trainer.model, source, job.config["source"]["fingerprint"])}
    saved = ranks.from_first(resume.load(job.device), job.device)
    if saved is not None:
        _resume(trainer, saved)
    elif weights is not None:
        job.task.load_pretrained(trainer.model, weights)

    def state() -> dict[str, Any] | None:
        return None if trainer.diverged else trainer.state()

    trainer.compile(job.config["compile"])
    watch = job.watch(trainer, dict)
    while trainer.epoch < trainer.training.warm_up_epochs:
        trainer.run_epoch("warm_up", after_step=partial(resume.after_step, state), watch=watch)
        resume.after_epoch(state)
    units, _ = job.measured_units(trainer.model, {})
    inputs = job.task.example_inputs(job.index, job.device)
    flops = cost.flops_by_module(trainer.model, inputs)
    return trainer.state() | {"flops": flops} | started, trainer.history, units


def _resume(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    trainer.load_state(saved)
    within = f", step {trainer.position} of the next" if trainer.position else ""
    logger.info("resumed after epoch %d of %d%s", trainer.epoch, trainer.training.epochs, within)


@dataclass
class Draw:
    """The network that one calibration seed of a one-shot method gives, and what a record says of its calibration."""

    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    calibration: dict[str, Any]


@dataclass
class TrainedRun:
    """A finished training. `weights` are those of `selected_epoch`, the best on dev after the latest freeze.

    Of binary weights `latent` holds the latent ones of that epoch, and `half_ranges` h, by name of the layer. A run of
    a one-shot method has `draws`; its own weights and masks are those of the first one.
    """

    weights: dict[str, Tensor]
    latent: dict[str, Tensor]
    half_ranges: dict[str, float]
    masks: dict[str, Tensor]
    slabs: list[Slab]
    history: list[dict[str, Any]]
    refreshes: list[dict[str, Any]]
    selected_epoch: int
    left_dense: dict[str, str]
    cost: dict[str, Any]
    slab_flops: dict[str, dict[str, int]]
    compiled: bool
    draws: list[Draw] = field(default_factory=list)


@dataclass
class Selection:
    """The best weights on dev so far. Of two scores, the higher one is better."""

    score: float = -float("inf")
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    latent: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, score: float, epoch: int, model: nn.Module, binarizer: Binarizer | None) -> None:
        if score > self.score:
            self.score, self.epoch = score, epoch
            with nullcontext() if binarizer is None else binarizer.signs():
                self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            self.latent = {} if binarizer is None else binarizer.latent_weights()


def train(
    job: Job, warm_start: Mapping[str, Any] | None, on_epoch: OnEpoch = no_callback, resume: Resume = WITHOUT_RESUME
) -> TrainedRun:
    """Trains the sparse phase of one run, from the warm start to the last epoch.

    Args:
        warm_start: may be None in ranks above 0, as may the default of `resume`.
        on_epoch: callback that is called with each row of the history, those of the warm start first.
        resume: loads the state of an interrupted training, which then replaces the warm start, and saves it.
    """
    trainer = job.trainer(on_epoch)
    warm_start = ranks.from_first(warm_start, job.device)
    saved = ranks.from_first(resume.load(job.device), job.device)
    if saved is None:
        trainer.load_state(warm_start)
        job.exempt_latent(trainer)
    else:
        job.exempt_latent(trainer)
        _resume(trainer, saved["trainer"])
    slabs, left_dense = job.slabs(trainer.model, job.slab_side)
    for name, why in left_dense.items():
        logger.info("%s stays dense: %s", name, why)
    sparsifier = job.sparsifier(trainer, slabs)
    if sparsifier.schedule.freeze_step >= trainer.sparse_steps:
        raise ValueError(
            f"sparsity.freeze {sparsifier.schedule.freeze} leaves none of the {trainer.sparse_steps} steps of the "
            "sparse phase to train with frozen masks"
        )
    selectable_after = job.selectable_after(trainer, sparsifier)
    best = Selection()
    if saved is not None:
        sparsifier.load_state_dict(saved["sparsifier"])
        best = Selection(**saved["best"])
    binarizer = job.binarizer(trainer)
    if saved is not None and binarizer is not None:
        binarizer.load_state_dict(saved["binarizer"])

    def state() -> dict[str, Any] | None:
        if trainer.diverged:
            return None
        binary = {} if binarizer is None else {"binarizer": binarizer.state_dict()}
        return {"trainer": trainer.state(), "sparsifier": sparsifier.state_dict(), "best": vars(best)} | binary

    compiled = trainer.compile(job.config["compile"])
    sign = 1 if job.task.METRICS[job.task.SELECTION].better == "higher" else -1
    watch = job.watch(trainer, sparsifier.masks)
    while trainer.epoch < trainer.training.epochs:
        phase = "frozen" if _ends_after_freeze(trainer, sparsifier) else "sparse"
        row = trainer.run_epoch(phase, sparsifier, partial(resume.after_step, state), binarizer, watch)
        if trainer.epoch * trainer.steps_per_epoch > selectable_after:
            best.offer(sign * row[f"dev_{job.task.SELECTION}"], trainer.epoch, trainer.model, binarizer)
        resume.after_epoch(state)
    if not best.weights:
        last = trainer.history[-1][f"dev_{job.task.SELECTION}"]
        raise ValueError(f"no epoch after the freeze has a dev {job.task.SELECTION} to select by: {last}")
    masks = {name: mask.cpu() for name, mask in sparsifier.masks().items()}
    half_ranges = {} if binarizer is None else binarizer.half_ranges
    figures = sizes(job.task, trainer.model, masks, half_ranges)
    inputs = job.task.example_inputs(job.index, job.device)
    counted = (trainer.model, inputs, masks, sparsifier.gates, warm_start["flops"])
    figures["flops"] = cost.flops(*counted)
    return TrainedRun(
        best.weights,
        best.latent,
        half_ranges,
        masks,
        slabs,
        trainer.history,
        sparsifier.refreshes,
        best.epoch,
        left_dense,
        figures,
        cost.flops_of_slabs(*counted),
        compiled,
    )


def _ends_after_freeze(trainer: Trainer, sparsifier: Sparsifier) -> bool:
    """Returns whether the next epoch ends with masks that have been frozen for at least one step."""
    sparse_epochs = trainer.epoch + 1 - trainer.training.warm_up_epochs
    return sparse_epochs * trainer.steps_per_epoch > sparsifier.schedule.freeze_step


@dataclass
class Scores:
    items: Mapping[str, Any]
    predictions: Mapping[str, Any]
    metrics: dict[str, float]


@dataclass
class Evaluation(Scores):
    units: list[dict[str, Any]]
    codes: list[dict[str, Any]]
    sizes: dict[str, Any]
    beside: list[dict[str, Any]]  # for binary weights, the rows of `scores_beside`


def evaluate(job: Job, run: Path, scoring: Mapping[str, Any] | None = None) -> Evaluation:
    """Scores the selected weights of a run on test.

    Of a run with several draws, the items are those of all draws, with the column `draw`, the metrics are their means,
    and everything else is that of the first draw.

    Args:
        scoring: settings of the scoring, and `buckets` if the task has them; see `Task.open_split`.
    Raises: ValueError if a pruned weight is not 0, or if the masks are those of other slabs.
    """
    model, masks = load_run(job, run)
    test = job.task.open_split(job.prepared, {**job.index, **(scoring or {})}, "test")
    scores = score(job, run, model, test)
    units, codes = job.measured_units(model, masks)
    binary, beside = [], []
    if job.weights.weights != "float":
        binary = choose_layers(model, job.weights.binary_layers)
        beside = scores_beside(job, model, run / LATENT, test)
    return Evaluation(
        **vars(scores), units=units, codes=codes, sizes=sizes(job.task, model, masks, binary), beside=beside
    )


def load_run(job: Job, run: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """Returns the network of a run with its selected weights, ready to be scored, and its masks; see `evaluate`."""
    return _load(job, run / "model.safetensors", run / "masks.safetensors")


def score(job: Job, run: Path, model: nn.Module, test: tasks.Split) -> Scores:
    """Scores a run on a split, with `model` from `load_run`; see `evaluate` for a run with several draws."""
    items, predictions = job.task.evaluate(model, test, job.device)
    others = range(1, len(job.config.get("calibration_seeds", ())))
    if not others:
        return Scores(items, predictions, {name: float(value) for name, value in job.task.metrics(items).items()})
    of_draws = [items]
    for draw in others:
        other, _ = _load(job, *(run / name for name in draw_files(draw)))
        of_draws.append(job.task.evaluate(other, test, job.device)[0])
    return Scores(joined_draws(of_draws), predictions, mean_metrics(job.task.metrics, of_draws))


def _load(job: Job, weights: Path, masks: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """Returns a trained network in evaluation mode, and its masks, which it was checked against."""
    model = job.task.build_model(job.model_settings, job.index, job.device)
    load_weights(weights, model)
    loaded = load_masks(masks)
    slabs, _ = job.slabs(model, job.slab_side)
    check_masks_in_force(model, slabs, loaded)
    job.gate(model, slabs)
    return model.eval(), loaded


def sizes(task: ModuleType, model: nn.Module, masks: Mapping[str, Tensor], binary: Collection[str]) -> dict[str, Any]:
    """Returns the kept share of all slabs, of the network and of each slab, and the network's weights and bytes.

    What training alone calls is not part of the network.
    """
    if hasattr(task, "deployed"):
        model = task.deployed(model)
    modules = {name for name, _ in model.named_modules()}
    binary = [name for name in binary if name in modules]
    return {
        "density": cost.density(model, masks),
        "net_density": cost.net_density(model, masks),
        "slabs": {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()},
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": {"memory": cost.stored_bytes(model, {}), "stored": cost.stored_bytes(model, masks, binary)},
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
