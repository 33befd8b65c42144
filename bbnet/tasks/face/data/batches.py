"""Serves prepared images in batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bbnet.data.store import open_array
from bbnet.tasks.batches import ImageSplit, LabelledImages
from bbnet.tasks.buckets import BUCKETS
from bbnet.tasks.face.data.pack import PROBE_FOLDERS

EVALUATION_PIXELS = 2**18
Batch = LabelledImages


class Faces(ImageSplit):
    """The images of one part of the prepared data.

    Attributes:
        files: paths within the pack.
        images: [images, 3, size, size] of 0 to 255, uint8 or, after augmentation, float.
        labels: int64 [images], indices of identities or, in verification, of people in the gallery; -1 is nobody.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any], part: str) -> None:
        self.files: list[str] = index["splits"][part]["files"]
        self.labels = torch.tensor(index["splits"][part]["labels"], dtype=torch.int64)
        self.images = torch.from_numpy(open_array(prepared / f"{part}.npy"))[: len(self.labels)]

    def in_order(self) -> list[Tensor]:
        if not len(self):
            return []
        return list(torch.arange(len(self)).split(max(1, EVALUATION_PIXELS // self.images.shape[-1] ** 2)))


class FacesToScore(Faces):
    """The images to classify in test, and those of verification: the gallery, and the probes of dev and test.

    Attributes:
        buckets: bucket of each identity: 0, 1 or 2 for Head, Mid or Tail.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any]) -> None:
        super().__init__(prepared, index, "test")
        self.known = Faces(prepared, index, "known")
        self.probes = {split: Faces(prepared, index, f"probes_{split}") for split in PROBE_FOLDERS}
        self.buckets = np.array([BUCKETS.index(index["buckets"][name]) for name in index["identities"]])
