"""Decodes image files into arrays and writes their index."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bbnet.data.images import Converted, PixelMoments, decode
from bbnet.data.progress import track
from bbnet.data.store import create_array
from bbnet.tasks.face.data.pack import (
    CLASSIFICATION_FOLDERS,
    HALVES,
    PROBE_FOLDERS,
    Faulty,
    Images,
    read_classification,
    read_verification,
)
from bbnet.tasks.face.settings import Faults

IMAGES_AT_ONCE = 256
LONGEST_SCALED = 4  # largest ratio of the edges of an image that is scaled
COMPLETE_PARTS = ("train", "known")  # parts in which every identity must have an image


def prepare(manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """Decodes train, val, test, known, probes_dev and probes_test to `{part}.npy`, uint8 [images, 3, size, size].

    If test has no identities or no labels, every second image or probe of dev, by identity and name, is used instead.

    Returns the index: identities, files and labels of each part, mean and sd of the training pixels, and the files
        that were skipped and converted, by kind.
    Raises: ValueError naming an image that cannot be decoded, an identity without images, an image or identity of a
        label file that does not exist, or an image or row that occurs twice or has no counterpart.
    """
    root = Path(manifest["root"])
    classification, verification = (root / manifest[half] for half in HALVES)
    faulty = Faulty(Faults(**settings["faults"]))
    parts, identities, divided = read_classification(classification, faulty)
    known, probes, gallery, divided_probes = read_verification(verification, faulty)
    parts |= {"known": known} | {f"probes_{split}": probes[split] for split in PROBE_FOLDERS}
    index: dict[str, Any] = {"size": settings["size"], "identities": identities, "gallery": gallery, "splits": {}}
    converted = Converted()
    for part, images in parts.items():
        pixels = PixelMoments()
        used, conversions = _write(images, settings, target / f"{part}.npy", part, faulty, pixels)
        for file, kinds in zip(used.files, conversions, strict=True):
            converted.add(str(file.relative_to(root)), kinds)
        if part in CLASSIFICATION_FOLDERS and not used.files:
            raise ValueError(f"{classification / CLASSIFICATION_FOLDERS[part]}: no image is left")
        if part == "train":
            index["mean"], index["sd"] = pixels.mean_and_sd()
        lost = sorted(set(images.labels) - set(used.labels))
        if lost and part in COMPLETE_PARTS:
            raise ValueError(f"{images.files[images.labels.index(lost[0])].parent}: no image of this identity is left")
        index["splits"][part] = {"files": [str(file.relative_to(root)) for file in used.files], "labels": used.labels}
    converted.report()
    return index | {"skipped": faulty.skipped, "converted": converted.files, "divided": divided + divided_probes}


def _write(
    images: Images, settings: Mapping[str, Any], path: Path, part: str, faulty: Faulty, pixels: PixelMoments
) -> tuple[Images, list[list[str]]]:
    """Writes the images to `path`, uint8 [images, 3, size, size], the decodable ones first.

    Returns the decodable ones, and the conversions of each of them.
    """
    size = settings["size"]
    read = partial(_read, size=size, rule=settings["resize"])
    array = create_array(path, (len(images.files), 3, size, size), np.uint8)
    usable, faults, conversions = [], [], []
    groups = [images.files[first : first + IMAGES_AT_ONCE] for first in range(0, len(images.files), IMAGES_AT_ONCE)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for group in track(groups, f"prepare {part}", size=len):
            decoded = list(pool.map(read, group))
            faults += [str(one) for one in decoded if isinstance(one, ValueError)]
            pictures = [one[0] for one in decoded if not isinstance(one, ValueError)]
            conversions += [one[1] for one in decoded if not isinstance(one, ValueError)]
            start = sum(usable)
            if pictures:
                array[start : start + len(pictures)] = pictures
                pixels.add(np.stack(pictures))
            usable += [not isinstance(one, ValueError) for one in decoded]
    faulty.judge("undecodable", faults, "cannot be used")
    return images.chosen(usable), conversions


def _read(path: Path, size: int, rule: str) -> tuple[np.ndarray, list[str]] | ValueError:
    """Returns the image, uint8 [3, size, size], and its conversions, or the error of a file that cannot be decoded."""
    try:
        image, conversions = decode(path, "RGB")
    except ValueError as error:
        return error
    return np.asarray(resize(image, size, rule)).transpose(2, 0, 1), conversions


def resize(image: Image.Image, size: int, rule: str) -> Image.Image:
    """Resizes to `size` x `size` pixels by a rule of `Settings.resize`; bilinear, with antialiasing when shrinking."""
    width, height = image.size
    if rule == "stretch":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    edge = min(width, height) if rule == "crop" else max(width, height)
    if rule == "crop" and max(width, height) > LONGEST_SCALED * edge:  # scaling a narrow strip would exhaust memory
        image = _centred(image, min(width, LONGEST_SCALED * edge), min(height, LONGEST_SCALED * edge))
    scaled = image.resize(
        (max(1, round(image.width * size / edge)), max(1, round(image.height * size / edge))), Image.Resampling.BILINEAR
    )
    return _centred(scaled, size, size)


def _centred(image: Image.Image, width: int, height: int) -> Image.Image:
    """Crops the image about its centre, or pads it with black on both sides."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
