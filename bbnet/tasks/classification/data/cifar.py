"""Reads CIFAR's own layout, the python version: pickled batches of images of 32 x 32 pixels."""

from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from bbnet.data.files import contents, normal_form
from bbnet.tasks.classification.data.pickles import Array, read_pickle

META = "batches.meta"
TRAINING_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
TEST_BATCH = "test_batch"
LAYOUT = [META, *TRAINING_BATCHES, TEST_BATCH]
SHIPPED_BESIDE = "readme.html"  # in the published archive
SIZE = 32
VALUES = 3 * SIZE**2
MAX_SHOWN = 60


@dataclass(frozen=True)
class CifarBatch:
    """Images uint8 [images, 3, 32, 32], their labels and, as `batch/name`, their files."""

    images: np.ndarray
    labels: list[int]
    files: list[str]

    def chosen(self, keep: np.ndarray) -> "CifarBatch":
        return CifarBatch(self.images[keep], list(compress(self.labels, keep)), list(compress(self.files, keep)))


def read_classes(root: Path) -> list[str]:
    """Returns the names of the classes, in the order of labels; raises ValueError naming the file that has none."""
    path = root / META
    names = _read(path, "label_names").get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise ValueError(f"{path}: label_names must be a list of the names of classes")
    classes = [normal_form(_text(name, path)) for name in names]
    if len(set(classes)) < len(classes):
        raise ValueError(f"{path}: label_names has a name twice; each class needs its own")
    return classes


def read_training(root: Path, classes: int) -> CifarBatch:
    """Returns the images of all training batches, in the order of the archive. Raises as `read_batch`."""
    batches = [read_batch(root / name, classes) for name in TRAINING_BATCHES]
    return CifarBatch(
        np.concatenate([batch.images for batch in batches]),
        [label for batch in batches for label in batch.labels],
        [file for batch in batches for file in batch.files],
    )


def read_batch(path: Path, classes: int) -> CifarBatch:
    """Returns the images of a batch.

    Raises: ValueError naming the file if it is not a pickle of plain data, lacks an entry, has another shape than
        [images, 3072] of uint8, other counts of labels or filenames than of images, or a label beyond `classes`.
    """
    content = _read(path, "data, labels and filenames")
    for key in ("data", "labels", "filenames"):
        if key not in content:
            raise ValueError(f"{path}: has no entry {key}; a batch has data, labels and filenames")
    if not isinstance(content["data"], Array):
        raise ValueError(f"{path}: data must be a numpy array of uint8, [images, {VALUES}]")
    try:
        images = content["data"].values()
    except ValueError as error:
        raise ValueError(f"{path}: data must be a numpy array of uint8, [images, {VALUES}] ({error})") from None
    if images.ndim != 2 or images.shape[1] != VALUES:
        raise ValueError(f"{path}: data has shape {list(images.shape)}; allowed is [images, {VALUES}]")
    labels, names = content["labels"], content["filenames"]
    for key, values in (("labels", labels), ("filenames", names)):
        if not isinstance(values, list) or len(values) != len(images):
            found = f"{len(values)} entries" if isinstance(values, list) else type(values).__name__
            raise ValueError(
                f"{path}: {key} must be a list with an entry for each of {len(images)} images, not {found}"
            )
    for place, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise ValueError(
                f"{path}: label {_shown(label)} of image {place}; allowed are whole numbers from 0 to {classes - 1}"
            )
    if not all(isinstance(name, bytes | str) for name in names):
        raise ValueError(f"{path}: filenames must be a list of names")
    files = [f"{path.name}/{_text(name, path)}" for name in names]
    return CifarBatch(images.reshape(-1, 3, SIZE, SIZE), labels, files)


def unread(root: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files and the folders beside those of the layout."""
    files, folders = contents(root)
    return [path for path in files if path.name not in (*LAYOUT, SHIPPED_BESIDE)], folders


def _read(path: Path, entries: str) -> dict[str, Any]:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must contain a dictionary with {entries}")
    return content


def _text(value: Any, path: Path) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise ValueError(f"{path}: the name {_shown(value)} is not UTF-8") from None


def _shown(value: Any) -> str:
    """Returns the beginning of the value as Python writes it; of numbers it does not write, and of others, the type."""
    try:
        return repr(value)[:MAX_SHOWN] if isinstance(value, int | str | bytes) else type(value).__name__
    except ValueError:
        return type(value).__name__
