"""Writes the images and boxes of a pack as arrays, and their index."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from bbnet.data.image_folders import Faulty, LabelledFiles, remove_progress, write_images
from bbnet.data.images import Converted, PixelMoments
from bbnet.data.store import create_array
from bbnet.tasks.detection.data import voc
from bbnet.tasks.detection.data.voc import Annotated, Listed
from bbnet.tasks.detection.data_settings import Data, Faults
from bbnet.tasks.task import Trained

logger = logging.getLogger(__name__)
PARTS = (("train", False), ("val", True))  # of trainval: whether their images are those of dev
PADDING = -1  # the label of rows without an object


def prepare(
    manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path, trained: Trained | None = None
) -> dict[str, Any]:
    """Writes the arrays of each split, in which every image has as many rows for objects as the one with most.

    These are `{split}.npy`, uint8 [images, 3, size, size], letterboxed: the longer edge is scaled to `size`, and the
    rest is grey; `{split}_boxes.npy` float32 [images, objects, 4], left, top, right and bottom in pixels of the
    original image; `{split}_labels.npy` int16 [images, objects], -1 for no object; `{split}_difficult.npy` bool, alike;
    and `{split}_sizes.npy` int32 [images, 2], width and height of the original image.

    Dev is a part of trainval: images that are evenly spaced in the order of the lists. With `trained`, classes, mean
    and sd are those of these data, and an object of another class is a fault.

    Returns the index: classes in the order of labels, size, files of each split, number of training objects of each
        class that are not difficult, mean and sd of the training pixels (0 to 255), and what was skipped and converted,
        by kind.
    Raises: ValueError naming an image, annotation or object that is unusable, or a split without images.
    """
    pack = TypeAdapter(Data).validate_python(settings["data"])
    root, size = Path(manifest["root"]), settings["size"]
    faulty, converted = Faulty(Faults(**settings["faults"]), root), Converted()
    lists = voc.read_lists(root, voc.YEARS if trained is None else ["test"])
    if not manifest["complete"]:
        faulty.leave_out(root, voc.unread(root, lists), "images that are listed, and their annotations")
    index: dict[str, Any] = {"classes": list(pack.classes)}
    if trained is not None:
        index = {name: trained.index[name] for name in ("classes", "mean", "sd")}
    index |= {"size": size, "splits": {}}
    for split, listed in _parts(lists, pack).items():
        images = voc.annotated(root, listed, index["classes"], faulty)
        files = LabelledFiles([one.image for one in images], list(range(len(images))))
        pixels = PixelMoments()
        used, conversions = write_images(files, size, "letterbox", target / f"{split}.npy", faulty, pixels)
        for file, kinds in zip(used.files, conversions, strict=True):
            converted.add(str(file.relative_to(root)), kinds)
        if not used.files:
            raise ValueError(f"{root}: no image of {split} is left")
        index["splits"][split] = {"files": [str(file.relative_to(root)) for file in used.files]}
        kept = [images[row] for row in used.labels]
        _write_objects(target, split, kept)
        if split == "train":
            index["mean"], index["sd"] = pixels.mean_and_sd()
            index["objects"] = _counts(kept, index["classes"])
    remove_progress(target)
    converted.report()
    return index | {"skipped": faulty.skipped, "converted": converted.files}


def _parts(lists: Mapping[str, Sequence[Listed]], pack: Any) -> dict[str, Sequence[Listed]]:
    """Returns the images of each split: train and val, which are trainval, if that is there, and test."""
    if "trainval" not in lists:
        return {"test": lists["test"]}
    listed = lists["trainval"]
    of_dev = dev_rows(len(listed), pack.dev_count(len(listed)))
    parts = {name: [one for one, dev in zip(listed, of_dev, strict=True) if dev == wanted] for name, wanted in PARTS}
    return parts | {"test": lists["test"]}


def dev_rows(images: int, dev: int) -> list[bool]:
    """Returns which rows form dev: `dev` of them, evenly spaced, whatever the seed."""
    return [(row + 1) * dev // images > row * dev // images for row in range(images)]


def _write_objects(target: Path, split: str, images: Sequence[Annotated]) -> None:
    most = max(len(one.labels) for one in images)
    shape = (len(images), max(1, most))  # an array without elements cannot be memory-mapped
    boxes = create_array(target / f"{split}_boxes.npy", (*shape, 4), np.float32)
    labels = create_array(target / f"{split}_labels.npy", shape, np.int16)
    difficult = create_array(target / f"{split}_difficult.npy", shape, np.bool_)
    sizes = create_array(target / f"{split}_sizes.npy", (len(images), 2), np.int32)
    labels[:] = PADDING
    for row, one in enumerate(images):
        there = slice(len(one.labels))
        boxes[row, there], labels[row, there], difficult[row, there] = one.boxes, one.labels, one.difficult
        sizes[row] = one.size


def _counts(images: Sequence[Annotated], classes: Sequence[str]) -> dict[str, int]:
    """Returns the number of objects of each class that are not difficult; warns of classes without any."""
    labels = np.concatenate([one.labels[~one.difficult] for one in images])
    counts = dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))
    missing = [name for name, count in counts.items() if not count]
    if missing:
        logger.warning("train has no objects of %d classes: %s", len(missing), ", ".join(missing))
    return counts
