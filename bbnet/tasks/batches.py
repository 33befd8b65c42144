"""Batches of equally many samples."""

import torch
from torch import Tensor

from bbnet.tasks.settings import FixedBatchTraining


def full_batches(samples: int, training: FixedBatchTraining) -> int:
    """How many batches an epoch has, an incomplete last one left out; raises ValueError if that is none."""
    if samples < training.batch_size:
        raise ValueError(f"training.batch_size {training.batch_size} exceeds the {samples} training samples")
    return samples // training.batch_size


def shuffled_batches(samples: int, training: FixedBatchTraining, generator: torch.Generator) -> list[Tensor]:
    """The samples of an epoch in random order, as indices of `full_batches` batches."""
    order = torch.randperm(samples, generator=generator)
    return list(order.split(training.batch_size))[: full_batches(samples, training)]
