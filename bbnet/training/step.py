"""One optimiser step, in the precision of the study, and the decision whether to compile the model."""

import copy
import logging
from contextlib import nullcontext
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from bbnet.sparsity.sparsifier import Sparsifier
from bbnet.tasks.batches import Batch
from bbnet.tasks.settings import Training
from bbnet.training.ranks import backward

logger = logging.getLogger(__name__)
Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "on", "off"]
# Shorter trainings than this do not gain enough to pay for the compilation.
STEPS_WORTH_COMPILING = {"cuda": 2_000, "cpu": 10_000}
MOST_SHAPES = 64


def resolve_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """Returns the dtype of activations in training; `auto` is bfloat16 on a GPU that supports it, else float32."""
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return getattr(torch, wanted)


def optimiser_step(
    task: ModuleType,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Training,
    batch: Batch,
    generator: torch.Generator,
    precision: torch.dtype = torch.float32,
    sparsifier: Sparsifier | None = None,
    share: float = 1.0,
) -> Tensor:
    """Performs one training step and returns its loss, a scalar tensor on the device, without synchronising with it.

    Args:
        model: the model that the task's loss calls, either the model itself or its compiled version.
        generator: random generator of the augmentation, on the device of the batch.
        precision: dtype of the activations; weights, gradients and the optimiser's state stay float32.
        share: of several ranks, the share of `batch` in the whole batch, of which all make the step.
    """
    batch = task.augment(batch, training, generator)
    with sparsifier.valid(task.valid_positions(model, batch)) if sparsifier else nullcontext():
        loss = forward(task, model, batch, precision)
    loss = backward(model, loss, share)
    if training.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def forward(task: ModuleType, model: nn.Module, batch: Batch, precision: torch.dtype) -> Tensor:
    """Returns the loss of a batch, computed under autocast unless `precision` is float32."""
    device = next(iter(batch.tensors().values())).device.type
    with torch.autocast(device, precision, enabled=precision != torch.float32):
        return task.loss(model, batch)


def pays_to_compile(how: Compile, steps: int, device: torch.device) -> bool:
    """Returns whether to compile the model for a training of `steps` steps; `auto` does so only for long trainings."""
    worth = STEPS_WORTH_COMPILING[device.type]
    if how == "auto" and steps < worth:
        logger.info("compile: off, since the training has %d steps; on this device it pays off from %d", steps, worth)
    return how == "on" or (how == "auto" and steps >= worth)


def compiled(task: ModuleType, model: nn.Module, batch: Batch, precision: torch.dtype, how: Compile) -> nn.Module:
    """Returns a compiled version of `model` that shares its parameters.

    The compiler is first tried on a copy of the model with `batch`. If it fails, `auto` returns `model` uncompiled.

    Raises: ValueError if it fails and `how` is `on`.
    """
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            forward(task, torch.compile(copy.deepcopy(model).train(), dynamic=False), batch, precision).backward()
    except Exception as error:  # dynamo, inductor, triton and the C++ compiler each raise their own types
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if how == "on":
            raise ValueError(f"compile on: the model cannot be compiled here ({why}); allowed: auto, off") from error
        logger.warning("compile: off, since the model cannot be compiled here (%s)", why)
        return model
    # Speech batches have one shape per class of lengths; shapes beyond the limit would run uncompiled.
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    return torch.compile(model, dynamic=False)
