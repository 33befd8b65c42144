"""Serves prepared images in batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bbnet.tasks.batches import LabelledImages, StoredImages
from bbnet.tasks.buckets import BUCKETS
from bbnet.tasks.face.data.pack import PROBE_FOLDERS

Batch = LabelledImages


class Faces(StoredImages):
    """The images of one part; labels are indices of identities or, in verification, of the gallery; -1 is nobody."""


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
