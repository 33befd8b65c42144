"""The base classes of batches and of splits of labelled images, and functions that draw batches of a fixed size."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bbnet.data.store import open_array
from bbnet.tasks.settings import FixedBatchTraining

EVALUATION_PIXELS = 2**18


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


def rows_of_part(items: int, number: int, count: int) -> slice:
    """Returns the rows of part `number`, from 0, of `items` in `count` contiguous parts of about equal size."""
    return slice(items * number // count, items * (number + 1) // count)


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


class StoredImages(ImageSplit):
    """The images of one part of the prepared data, `{part}.npy`, with the files and labels of the index.

    Attributes:
        files: paths within the pack.
        images: [images, 3, size, size] of 0 to 255, uint8 or, after augmentation, float.
        labels: int64 [images].
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any], part: str) -> None:
        self.files: list[str] = index["splits"][part]["files"]
        self.labels = torch.tensor(index["splits"][part]["labels"], dtype=torch.int64)
        self.images = torch.from_numpy(open_array(prepared / f"{part}.npy"))[: len(self.labels)]

    def part(self, number: int, count: int) -> Self:
        part, rows = copy.copy(self), rows_of_part(len(self), number, count)
        part.files, part.labels, part.images = self.files[rows], self.labels[rows], self.images[rows]
        return part

    def in_order(self) -> list[Tensor]:
        if not len(self):
            return []
        return list(torch.arange(len(self)).split(max(1, EVALUATION_PIXELS // self.images.shape[-1] ** 2)))
