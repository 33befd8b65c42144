"""Serves prepared images with their objects in batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bbnet.data.image_folders import letterboxed
from bbnet.data.store import open_array
from bbnet.tasks.batches import EVALUATION_PIXELS, Batch, full_batches, shuffled_batches
from bbnet.tasks.detection.data.prepare import PADDING
from bbnet.tasks.detection.scoring import Objects
from bbnet.tasks.settings import FixedBatchTraining


@dataclass(frozen=True)
class Scenes(Batch):
    """A batch of images with their objects.

    Attributes:
        images: [batch, 3, size, size] of 0 to 255, uint8 or, after augmentation, float.
        boxes: float32 [batch, objects, 4], centre x, centre y, width and height, in shares of the letterboxed image.
        labels: int64 [batch, objects], -1 for no object.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor


class Split:
    """The images of train, val or test. Difficult objects are not among the boxes, which are for training.

    Attributes:
        files: paths within the pack.
        images, boxes, labels: those of all images, as in `Scenes`.
        sizes: int64 [images, 2], width and height of the original images.
    """

    ARRAYS = ("images", "boxes", "labels")

    def __init__(self, prepared: Path, index: Mapping[str, Any], part: str) -> None:
        self.files: list[str] = index["splits"][part]["files"]
        self.size: int = index["size"]
        self.images = torch.from_numpy(open_array(prepared / f"{part}.npy"))[: len(self.files)]
        self.sizes = np.array(open_array(prepared / f"{part}_sizes.npy"), dtype=np.int64)
        self._corners = np.array(open_array(prepared / f"{part}_boxes.npy"), dtype=np.float64)
        self._labels = np.array(open_array(prepared / f"{part}_labels.npy"), dtype=np.int64)
        self._difficult = np.array(open_array(prepared / f"{part}_difficult.npy"))
        self.boxes = torch.from_numpy(self._centred()).float()
        self.labels = torch.from_numpy(np.where(self._difficult, PADDING, self._labels))

    def _centred(self) -> np.ndarray:
        factors, shifts = letterboxed(self.sizes, self.size)
        first, last = self._corners[..., :2], self._corners[..., 2:]
        centre = (first + last) / 2 * factors[:, None] + shifts[:, None]
        return np.concatenate([centre, (last - first) * factors[:, None]], axis=-1) / self.size

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Tensor, device: torch.device) -> Scenes:
        indices = indices.to(self.labels.device, non_blocking=True)
        return Scenes(*(getattr(self, name)[indices] for name in self.ARRAYS)).to(device)

    def steps_per_epoch(self, training: FixedBatchTraining) -> int:
        return full_batches(len(self), training)

    def batches(self, training: FixedBatchTraining, generator: torch.Generator) -> list[Tensor]:
        return shuffled_batches(len(self), training, generator)

    def in_order(self) -> list[Tensor]:
        return list(torch.arange(len(self)).split(max(1, EVALUATION_PIXELS // self.size**2)))

    def objects(self, image: int) -> Objects:
        """Returns all objects of an image, difficult ones included, with boxes in pixels of the original image."""
        there = self._labels[image] != PADDING
        rows = (self._corners, self._labels, self._difficult)
        return Objects(*(array[image][there] for array in rows))

    def in_pixels(self, images: slice, boxes: np.ndarray) -> np.ndarray:
        """Returns boxes of consecutive images in pixels of the original images, clipped to them.

        Args:
            boxes: [images, n, 4], left, top, right and bottom in shares of the letterboxed image.
        """
        sizes = self.sizes[images]
        factors, shifts = (np.tile(each, 2)[:, None] for each in letterboxed(sizes, self.size))
        return np.clip((boxes.astype(float) * self.size - shifts) / factors, 0, np.tile(sizes, 2)[:, None])
