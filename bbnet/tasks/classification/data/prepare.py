"""Writes the images of a pack as arrays, and their index."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bbnet.data.files import beside, files_below, named, warn_of_unread
from bbnet.data.image_folders import (
    Faulty,
    LabelledFiles,
    files_by_folder,
    labelled,
    remove_progress,
    resize,
    write_images,
)
from bbnet.data.images import ALLOWED, Converted, PixelMoments
from bbnet.data.progress import track
from bbnet.data.store import create_array
from bbnet.tasks.classification.data import cifar
from bbnet.tasks.classification.data.pack import BATCHES, FOLDERS_OF_TEST
from bbnet.tasks.classification.data.split import dev_count, dev_rows
from bbnet.tasks.classification.data_settings import Faults
from bbnet.tasks.task import Trained

logger = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
IMAGES_AT_ONCE = 1024
NAMED = 3


def prepare(
    manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path, trained: Trained | None = None
) -> dict[str, Any]:
    """Writes `{train,val,test}.npy`, uint8 [images, 3, size, size].

    In CIFAR's layout, and in folders without test, dev is a part of the training images: of each class the last ones,
    in the order of the batches or by name, whatever the seed. Without test, val is the test set.

    Returns the index: classes in the order of labels, size, the `input_size` that the network sees, files and labels of
        each split, mean and sd of the training pixels (0 to 255), and the files that were skipped and converted, by
        kind.
    Raises: ValueError naming a class that training lacks or that is too small to divide, an image that cannot be
        decoded, or a class that is not among those of `trained`, or lacks in the pack.
    """
    write = _write_batches if manifest["layout"] == BATCHES else _write_folders
    index = write(Path(manifest["root"]), settings, target, trained)
    for split in (split for split in index["splits"] if split != "train"):
        there = set(index["splits"][split]["labels"])
        missing = [name for label, name in enumerate(index["classes"]) if label not in there]
        if missing:
            named = ", ".join(missing[:NAMED])
            logger.warning("%s has no images of %d classes: %s", split, len(missing), named)
    return index | {"size": settings["size"], "input_size": settings["input_size"] or settings["size"]}


def _write_batches(
    root: Path, settings: Mapping[str, Any], target: Path, trained: Trained | None = None
) -> dict[str, Any]:
    classes = cifar.read_classes(root)
    parts = {"test": cifar.read_batch(root / cifar.TEST_BATCH, len(classes))}
    if trained is None:
        training = cifar.read_training(root, len(classes))
        of_dev = np.array(_rows_of_dev(training.labels, classes, settings["data"], str(root)))
        parts = {"train": training.chosen(~of_dev), "val": training.chosen(of_dev)} | parts
    else:
        place = _places(root, classes, trained.index["classes"])
        test = parts["test"]
        parts["test"] = cifar.CifarBatch(test.images, [place[classes[label]] for label in test.labels], test.files)
        classes = trained.index["classes"]
    for split, part in parts.items():
        if not part.labels:
            raise ValueError(f"{root}: has no image for {split}")
    pixels = PixelMoments()
    for split, part in parts.items():
        _write_array(part.images, settings, target / f"{split}.npy", pixels if split == "train" else None)
    mean, sd = pixels.mean_and_sd() if trained is None else (trained.index["mean"], trained.index["sd"])
    files, folders = cifar.unread(root)
    unread = files + files_below(folders)
    warn_of_unread(root, unread, ", ".join(cifar.LAYOUT))
    return {
        "classes": classes,
        "mean": mean,
        "sd": sd,
        "splits": {split: {"files": part.files, "labels": part.labels} for split, part in parts.items()},
        "skipped": {"not_read": [str(file.relative_to(root)) for file in unread]} if unread else {},
        "converted": {},
    }


def _write_array(images: np.ndarray, settings: Mapping[str, Any], path: Path, pixels: PixelMoments | None) -> None:
    """Writes images uint8 [images, 3, 32, 32], resized if necessary, and adds them to `pixels`."""
    size = settings["size"]
    array = create_array(path, (len(images), 3, size, size), np.uint8)
    for first in track(range(0, len(images), IMAGES_AT_ONCE), f"prepare {path.stem}"):
        chunk = images[first : first + IMAGES_AT_ONCE]
        if size != images.shape[-1]:
            pictures = (Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in chunk)
            chunk = np.stack([np.asarray(resize(one, size, settings["resize"])).transpose(2, 0, 1) for one in pictures])
        array[first : first + len(chunk)] = chunk
        if pixels is not None:
            pixels.add(chunk)


def _rows_of_dev(labels: Sequence[int], classes: Sequence[str], data: Mapping[str, Any], where: str) -> list[bool]:
    """Returns which training images form dev; raises ValueError naming a class that would keep none for training."""
    images = np.bincount(labels, minlength=len(classes)).tolist()
    if "val" in data:  # the embedded pack says how many
        dev = [data["val"] // len(classes)] * len(classes)
    else:
        dev = [dev_count(count, data["dev_share"]) for count in images]
    for name, count, of_dev in zip(classes, images, dev, strict=True):
        if count <= of_dev:
            raise ValueError(
                f"{where}: class {name} has {count} training images, of which dev takes {of_dev} "
                "(data.dev_share); at least one must be left for training"
            )
    return dev_rows(labels, dict(enumerate(dev)))


def _places(where: Path, found: Sequence[str], trained: Sequence[str]) -> dict[str, int]:
    """Returns the label of each class of a pack; raises ValueError naming those in which it differs from `trained`."""
    extra, missing = sorted(set(found) - set(trained)), sorted(set(trained) - set(found))
    if extra or missing:
        differ = (("no class of the run", extra), ("missing", missing))
        shown = "; ".join(f"{what}: {', '.join(names)}" for what, names in differ if names)
        raise ValueError(f"{where}: its classes must be those that the run was trained on; {shown}")
    return {name: label for label, name in enumerate(trained)}


def _write_folders(
    root: Path, settings: Mapping[str, Any], target: Path, trained: Trained | None = None
) -> dict[str, Any]:
    faulty = Faulty(Faults(**settings["faults"]), root)
    if trained is None:
        parts, classes = _read_folders(root, settings["data"], faulty)
        index: dict[str, Any] = {"classes": classes, "splits": {}}
    else:
        index = {name: trained.index[name] for name in ("classes", "mean", "sd")} | {"splits": {}}
        parts = {"test": _read_test(root, index["classes"], faulty)}
    converted = Converted()
    for split, images in parts.items():
        pixels = PixelMoments()
        path = target / f"{split}.npy"
        used, conversions = write_images(images, settings["size"], settings["resize"], path, faulty, pixels)
        for file, kinds in zip(used.files, conversions, strict=True):
            converted.add(str(file.relative_to(root)), kinds)
        if not used.files:
            raise ValueError(f"{root}: no image of {split} is left")
        if split == "train":
            index["mean"], index["sd"] = pixels.mean_and_sd()
            lost = sorted(set(images.labels) - set(used.labels))
            if lost:
                raise ValueError(f"{named(root, 'train')}: no training image of class {classes[lost[0]]} is left")
        index["splits"][split] = {"files": [str(file.relative_to(root)) for file in used.files], "labels": used.labels}
    remove_progress(target)
    converted.report()
    return index | {"skipped": faulty.skipped, "converted": converted.files}


def _read_test(root: Path, classes: Sequence[str], faulty: Faulty) -> LabelledFiles:
    """Returns the images of test or, without test, of val, with labels in the order of `classes`."""
    for folder in (named(root, name) for name in FOLDERS_OF_TEST):
        found = files_by_folder(folder, faulty, "class", "classes", flat=folder.name == "test")
        if found:
            _places(folder, sorted(found), classes)
            return labelled(found, classes)
    raise ValueError(f"{named(root, 'test')}: has no classes; allowed are {{class}}/* of {ALLOWED}")


def _read_folders(root: Path, data: Mapping[str, Any], faulty: Faulty) -> tuple[dict[str, LabelledFiles], list[str]]:
    """Returns the images of train, val and test, and the classes, which are the subfolders of train, by name."""
    folders = {split: named(root, split) for split in SPLITS}
    found = {
        split: files_by_folder(folder, faulty, "class", "classes", flat=split == "test")
        for split, folder in folders.items()
    }
    faulty.leave_out(root, beside(root, filter(Path.is_dir, folders.values())), f"{{{','.join(SPLITS)}}}/*/*")
    classes = sorted(found["train"])
    if not classes:
        raise ValueError(f"{folders['train']}: has no classes; allowed are {{class}}/* of {ALLOWED}")
    for split in SPLITS[1:]:
        unknown = sorted(set(found[split]) - set(classes))
        if unknown:
            raise ValueError(f"{folders[split] / unknown[0]}: no such class in {folders['train']}")
    if not found["val"]:
        raise ValueError(f"{folders['val']}: has no classes; allowed are {{class}}/* of {ALLOWED}")
    parts = {split: labelled(found[split], classes) for split in SPLITS}
    if not parts["test"].files:
        logger.info("%s has no classes: val is the test set, and dev is a part of train", folders["test"])
        train = parts["train"]
        of_dev = _rows_of_dev(train.labels, classes, data, str(folders["train"]))
        dev, train = train.chosen(of_dev), train.chosen([not one for one in of_dev])
        parts = {"train": train, "val": dev, "test": parts["val"]}
    return parts, classes
