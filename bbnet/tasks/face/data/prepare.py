"""Decodes image files into arrays and writes their index."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bbnet.data.files import beside, named
from bbnet.data.image_folders import Faulty, LabelledFiles, remove_progress, write_images
from bbnet.data.images import Converted, PixelMoments
from bbnet.tasks.face.data.pack import (
    CLASSIFICATION_FOLDERS,
    COMPLETE_PARTS,
    HALVES,
    PROBE_FOLDERS,
    read_classification,
    read_verification,
)
from bbnet.tasks.face.settings import Faults
from bbnet.tasks.task import Trained

logger = logging.getLogger(__name__)


def prepare(
    manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path, trained: Trained | None = None
) -> dict[str, Any]:
    """Decodes train, val, test, known, probes_dev and probes_test to `{part}.npy`, uint8 [images, 3, size, size].

    If test has no identities or no labels, every second image or probe of dev, by identity and name, is used instead.
    With `trained`, train and val are left out, and test is empty if it has an identity that the run does not know:
    then only verification can be scored. Identities are known by their names.

    Returns the index: identities, files and labels of each part, mean and sd of the training pixels, and the files
        that were skipped and converted, by kind.
    Raises: ValueError naming an image that cannot be decoded, an identity without images, an image or identity of a
        label file that does not exist, or an image or row that occurs twice or has no counterpart.
    """
    root = Path(manifest["root"])
    classification, verification = (root / manifest[half] for half in HALVES)
    faulty = Faulty(Faults(**settings["faults"]), root)
    parts, identities, divided = read_classification(classification, faulty)
    known, probes, gallery, divided_probes = read_verification(verification, faulty)
    faulty.leave_out(root, beside(root, (classification, verification)), "*classification and *verification")
    parts |= {"known": known} | {f"probes_{split}": probes[split] for split in PROBE_FOLDERS}
    index: dict[str, Any] = {"size": settings["size"], "identities": identities, "gallery": gallery, "splits": {}}
    if trained is not None:
        index |= {name: trained.index[name] for name in ("identities", "mean", "sd")}
        parts["test"] = _known_by_name(parts["test"], identities, index["identities"])
        del parts["train"], parts["val"]
    converted = Converted()
    for part, images in parts.items():
        pixels = PixelMoments()
        path = target / f"{part}.npy"
        used, conversions = write_images(images, settings["size"], settings["resize"], path, faulty, pixels)
        for file, kinds in zip(used.files, conversions, strict=True):
            converted.add(str(file.relative_to(root)), kinds)
        if part in CLASSIFICATION_FOLDERS and not used.files and trained is None:
            raise ValueError(f"{named(classification, CLASSIFICATION_FOLDERS[part])}: no image is left")
        if part == "train":
            index["mean"], index["sd"] = pixels.mean_and_sd()
        lost = sorted(set(images.labels) - set(used.labels))
        if lost and part in COMPLETE_PARTS:
            raise ValueError(f"{images.files[images.labels.index(lost[0])].parent}: no image of this identity is left")
        index["splits"][part] = {"files": [str(file.relative_to(root)) for file in used.files], "labels": used.labels}
    remove_progress(target)
    converted.report()
    return index | {"skipped": faulty.skipped, "converted": converted.files, "divided": divided + divided_probes}


def _known_by_name(images: LabelledFiles, identities: Sequence[str], trained: Sequence[str]) -> LabelledFiles:
    """Returns images with labels in the order of `trained`, or no images if not all their identities are there."""
    place = {name: label for label, name in enumerate(trained)}
    found = {identities[label] for label in images.labels}
    unknown = sorted(found - place.keys())
    if unknown:
        logger.warning(
            "%d of the %d identities of test are not among those that the run was trained on, such as %s: only "
            "verification is scored",
            len(unknown),
            len(found),
            unknown[0],
        )
        return LabelledFiles([], [])
    return LabelledFiles(images.files, [place[identities[label]] for label in images.labels])
