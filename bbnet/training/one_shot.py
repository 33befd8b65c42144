"""Runs of one-shot methods: the dense run of the seed, pruned once for each calibration seed.

The pruned network is not trained, unless the method has `recovery_epochs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bbnet.sparsity import cost
from bbnet.sparsity.one_shot.prune import prune_one_shot
from bbnet.sparsity.slab import Slab, connections
from bbnet.tasks.settings import Training
from bbnet.tasks.task import Split
from bbnet.training.checkpoint import load_weights
from bbnet.training.runs import Draw, Job, TrainedRun, sizes
from bbnet.training.seeding import stream
from bbnet.training.trainer import OnEpoch, Trainer, no_callback

PHASE, RECOVERY = "one_shot", "recovery"


def prune(
    job: Job, dense: Path, selected_epoch: int, warm_start: Mapping[str, Any], on_epoch: OnEpoch = no_callback
) -> TrainedRun:
    """Prunes the weights of a dense run once for each calibration seed of the job; the first one is the run itself.

    The history has a row that scores the first one on dev, and one for each epoch of its recovery.

    Args:
        dense: folder of the dense run, and `selected_epoch` the epoch of its weights.
        warm_start: that of the seed, for the FLOPs.
        on_epoch: callback that is called with each row of the history.
    """
    runs = []
    for calibration_seed in job.config["calibration_seeds"]:
        trainer = job.trainer()
        load_weights(dense / "model.safetensors", trainer.model)
        runs.append(_pruned(job, trainer, calibration_seed, selected_epoch, warm_start))
    for row in runs[0].history:
        on_epoch(row)
    return replace(runs[0], draws=[Draw(run.weights, run.masks, run.draws[0].calibration) for run in runs])


def _pruned(
    job: Job, trainer: Trainer, calibration_seed: int, selected_epoch: int, warm_start: Mapping[str, Any]
) -> TrainedRun:
    model, task = trainer.model, job.task
    slabs, left_dense = job.slabs(model, job.slab_side)
    settings = job.config["method"]["one_shot"]
    indices = calibration_samples(
        trainer.feed.split, trainer.training, settings["sequences"], job.config["seed"], calibration_seed
    )
    done = prune_one_shot(
        model,
        [trainer.feed.split.batch(each, job.device) for each in indices],
        job.algorithm,
        job.config["budget"],
        allocation=settings["allocation"],
        layers=slabs,
        seed=job.config["seed"],
        forward=task.loss,
        valid=partial(task.valid_positions, model),
    )
    masks = done.masks()
    masks = {slab.name: masks[slab.name] for slab in slabs}
    figures = sizes(task, model, masks, {})
    inputs = task.example_inputs(job.index, job.device)
    counted = (model, inputs, masks, None, warm_start["flops"])
    figures["flops"] = cost.flops(*counted)
    history = [_scored(job, trainer, masks, selected_epoch)]
    history += _recovered(job, trainer, slabs, masks, selected_epoch)
    samples = torch.cat(indices).tolist()
    calibration = {"calibration_seed": calibration_seed, "samples": samples} | (done.calibration or {})
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return TrainedRun(
        weights,
        {},
        {},
        masks,
        slabs,
        history,
        done.rows,
        history[-1]["epoch"],
        left_dense,
        figures,
        cost.flops_of_slabs(*counted),
        compiled=False,
        draws=[Draw(weights, masks, calibration)],
    )


def calibration_samples(split: Split, training: Training, count: int, seed: int, calibration_seed: int) -> list[Tensor]:
    """Returns the indices of `count` training samples, in the batches of an epoch in which they are read.

    They differ from seed to seed, also for the same calibration seed, so that draws are nested in seeds.

    Raises: ValueError if an epoch has fewer samples.
    """
    batches, left = [], count
    for indices in split.batches(training, stream("calibration", seed, calibration_seed)):
        batches.append(indices[:left])
        left -= len(batches[-1])
        if left == 0:
            return batches
    raise ValueError(f"one_shot.sequences {count} exceeds the {count - left} training samples of an epoch")


def _scored(job: Job, trainer: Trainer, masks: Mapping[str, Tensor], epoch: int) -> dict[str, Any]:
    """Returns the row of the history: the scores on dev after pruning."""
    trainer.model.eval()
    items, _ = job.task.evaluate(trainer.model, trainer.dev_split, job.device)
    row = {
        "epoch": epoch,
        "phase": PHASE,
        "step": epoch * trainer.steps_per_epoch,
        "learning_rate": 0.0,
        "train_loss": float("nan"),
        "density": cost.density(trainer.model, masks),
    }
    row |= {f"dev_{name}": float(value) for name, value in job.task.metrics(items).items()}
    return row | job.watch(trainer, lambda: masks)()


def _recovered(
    job: Job, trainer: Trainer, slabs: Sequence[Slab], masks: Mapping[str, Tensor], epoch: int
) -> list[dict[str, Any]]:
    """Trains the pruned network for the epochs of its recovery, and returns their rows, which count on from `epoch`.

    The schedule of the learning rate is that of a training of so many epochs. Gradients of pruned weights are zeroed as
    soon as they are computed, so that these weights stay 0 under the new state of any optimiser, and gradients are
    clipped by the norm of those of kept weights.
    """
    settings, training = job.config["method"]["one_shot"], trainer.training
    if not settings["recovery_epochs"]:
        return []
    learning_rate = settings["recovery_rate"] * training.learning_rate
    shortened = {"epochs": settings["recovery_epochs"], "warm_up_epochs": 0, "learning_rate": learning_rate}
    trainer.training = training.model_copy(update=shortened)
    for slab in slabs:
        weight = trainer.model.get_submodule(slab.name).weight
        pruned = ~masks[slab.name].to(weight.device)[..., None]
        weight.register_post_accumulate_grad_hook(partial(_zero_gradient, slab, pruned))
    watch = job.watch(trainer, lambda: masks)
    for _ in range(settings["recovery_epochs"]):
        trainer.run_epoch(RECOVERY, watch=lambda: {"density": cost.density(trainer.model, masks)} | watch())
    before = epoch * trainer.steps_per_epoch
    return [row | {"epoch": epoch + row["epoch"], "step": before + row["step"]} for row in trainer.history]


def _zero_gradient(slab: Slab, pruned: Tensor, weight: nn.Parameter) -> None:
    """Zeroes the gradient where `pruned` is true, [units, fan, 1]."""
    connections(weight.grad, slab.side).masked_fill_(pruned, 0)
