"""The base classes of batches and of splits of labelled images, and functions that draw batches of a fixed size."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from bbnet.tasks.settings import FixedBatchTraining


class Batch:
    """Base class of the batches of a task, which are dataclasses with tensors as fields."""

    def to(self, device: torch.device) -> Self:
        """Returns the batch on the device; copies from pinned memory to a GPU are asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of the batch from being reused before the work queued on `stream` so far is done."""
        for tensor in self.tensors().values():
            tensor.record_stream(stream)

    def tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})


def full_batches(samples: int, training: FixedBatchTraining) -> int:
    """Returns the number of full batches in an epoch; raises ValueError if there is none."""
    if samples < training.batch_size:
        raise ValueError(f"training.batch_size {training.batch_size} exceeds the {samples} training samples")
    return samples // training.batch_size


def shuffled_batches(samples: int, training: FixedBatchTraining, generator: torch.Generator) -> list[Tensor]:
    """Returns the indices of the samples in each of an epoch's `full_batches` batches, in random order."""
    order = torch.randperm(samples, generator=generator)
    return list(order.split(training.batch_size))[: full_batches(samples, training)]


@dataclass(frozen=True)
class LabelledImages(Batch):
    """A batch of images and their labels, of the shapes that the task states."""

    images: Tensor
    labels: Tensor


class ImageSplit:
    """A split whose samples are images with labels, served in batches of a fixed number of samples."""

    ARRAYS = ("images", "labels")
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, device: torch.device) -> LabelledImages:
        indices = indices.to(self.labels.device, non_blocking=True)
        return LabelledImages(self.images[indices], self.labels[indices]).to(device)

    def steps_per_epoch(self, training: FixedBatchTraining) -> int:
        return full_batches(len(self), training)

    def batches(self, training: FixedBatchTraining, generator: torch.Generator) -> list[Tensor]:
        return shuffled_batches(len(self), training, generator)
