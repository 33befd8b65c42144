"""One optimiser step, in the precision of the study and, where it pays, compiled."""

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

logger = logging.getLogger(__name__)
Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "on", "off"]
# Of a training: below it compiling takes longer than it saves.
STEPS_WORTH_COMPILING = {"cuda": 2_000, "cpu": 10_000}
MOST_SHAPES = 64


def resolve_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """Of the activations in training: bfloat16 by `auto` on a GPU that computes in it."""
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
) -> Tensor:
    """Trains on a batch; returns its loss, a scalar on the device, which nothing here waits for.

    Args:
        model: what the loss calls, the model itself or its compiled twin.
        generator: of the augmentation, of the batch's device.
        precision: of the activations; weights, their gradients and the optimiser's state stay float32.
    """
    batch = task.augment(batch, training, generator)
    with sparsifier.valid(task.valid_positions(batch)) if sparsifier else nullcontext():
        loss = forward(task, model, batch, precision)
    loss.backward()
    if training.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def forward(task: ModuleType, model: nn.Module, batch: Batch, precision: torch.dtype) -> Tensor:
    """The loss of a batch."""
    device = next(iter(batch.tensors().values())).device.type
    with torch.autocast(device, precision, enabled=precision != torch.float32):
        return task.loss(model, batch)


def pays_to_compile(how: Compile, steps: int, device: torch.device) -> bool:
    """Whether a training of so many steps is to be compiled; `auto` leaves out short ones."""
    worth = STEPS_WORTH_COMPILING[device.type]
    if how == "auto" and steps < worth:
        logger.info("compile: off, since the training has %d steps; on this device it pays from %d", steps, worth)
    return how == "on" or (how == "auto" and steps >= worth)


def compiled(task: ModuleType, model: nn.Module, batch: Batch, precision: torch.dtype, how: Compile) -> nn.Module:
    """A compiled twin of `model`, for steps to call.

    The compiler is tried on a copy and `batch` first. Where it fails, `auto` goes on with `model`, `on` raises
    ValueError.
    """
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            forward(task, torch.compile(copy.deepcopy(model).train(), dynamic=False), batch, precision).backward()
    except Exception as error:  # dynamo, inductor, triton and the C++ compiler have each their own
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if how == "on":
            raise ValueError(f"compile on: the model cannot be compiled here ({why}); allowed: auto, off") from error
        logger.warning("compile: off, since the model cannot be compiled here (%s)", why)
        return model
    # Speech has a shape per class of lengths; beyond the limit shapes would run uncompiled.
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    return torch.compile(model, dynamic=False)
