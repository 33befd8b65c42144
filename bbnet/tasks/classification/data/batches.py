"""Serves prepared images in batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bbnet.tasks.batches import LabelledImages, StoredImages


@dataclass(frozen=True)
class Batch(LabelledImages):
    """Images and labels. `input_size` is the height and width to which augmentation cuts them; None: as they are."""

    input_size: int | None = None


class Images(StoredImages):
    """The images of train, val or test; labels are indices of classes.

    Those of train are as they were prepared, and those of val and test are the centre that the network sees.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any], part: str) -> None:
        super().__init__(prepared, index, part)
        self.input_size: int = index["input_size"]
        if part != "train":
            self.images = centre(self.images, self.input_size)

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        batch = super().batch(indices, device)
        return Batch(batch.images, batch.labels, self.input_size)


def centre(images: Tensor, size: int) -> Tensor:
    """Returns a view of the central `size` x `size` pixels of square images [images, 3, height, width]."""
    first = (images.shape[-1] - size) // 2
    return images[..., first : first + size, first : first + size]
