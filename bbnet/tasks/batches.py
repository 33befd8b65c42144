"""What batches of all tasks share, and batches of equally many samples."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Self

import torch
from torch import Tensor

from bbnet.tasks.settings import FixedBatchTraining


class Batch:
    """Base of a task's batches, which are dataclasses of tensors."""

    def to(self, device: torch.device) -> Self:
        """The batch on the device, without waiting for the copy from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Its memory is not given to others before what `stream` has to do so far is done."""
        for tensor in self.tensors().values():
            tensor.record_stream(stream)

    def tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})


def full_batches(samples: int, training: FixedBatchTraining) -> int:
    """How many batches an epoch has, an incomplete last one left out; raises ValueError if that is none."""
    if samples < training.batch_size:
        raise ValueError(f"training.batch_size {training.batch_size} exceeds the {samples} training samples")
    return samples // training.batch_size


def shuffled_batches(samples: int, training: FixedBatchTraining, generator: torch.Generator) -> list[Tensor]:
    """The samples of an epoch in random order, as indices of `full_batches` batches."""
    order = torch.randperm(samples, generator=generator)
    return list(order.split(training.batch_size))[: full_batches(samples, training)]
