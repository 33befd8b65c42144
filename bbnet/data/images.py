"""Reads image files and computes the mean and standard deviation of their pixels."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from bbnet.data.files import contents, files_below

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
# The formats that are read, by Pillow's names. Other decoders of Pillow never see a file of a pack.
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "PPM": (".pgm", ".ppm", ".pbm", ".pnm"),
}
ALLOWED = "PNG, JPEG, TIFF, WebP, BMP and PGM/PPM"
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
# A raw photograph (.dng, .nef, ...) is a TIFF by its content, whose first image is a thumbnail.
FORMATS_UNDER_ANY_SUFFIX = [name for name in FORMATS if name != "TIFF"]


def images_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the images in a folder, and all other files in it at any depth, which are not read; without litter."""
    files, folders = contents(folder)
    images, others = told_apart(files)
    return images, others + files_below(folders)


def told_apart(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Returns the images that are read among files, and the other files."""
    images, others = [], []
    for file in files:
        (images if _is_image(file) else others).append(file)
    return images, others


def _is_image(path: Path) -> bool:
    """Returns whether the file is an image that is read: by its suffix or, if that is unknown, by its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with Image.open(path, formats=FORMATS_UNDER_ANY_SUFFIX):
            return True
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def open_image(path: Path) -> Image.Image:
    """Opens an image, whatever its suffix, without decoding it; raises ValueError naming the file if it is not one."""
    try:
        return Image.open(path, formats=list(FORMATS))
    except UnidentifiedImageError:
        raise ValueError(f"{path}: cannot be read as an image; allowed are {ALLOWED}") from None
    except (Image.DecompressionBombError, OSError, ValueError) as error:  # the last by damaged headers of PGM/PPM
        raise ValueError(f"{path}: cannot be read as an image ({error})") from None


def decode(path: Path, mode: str) -> Image.Image:
    """Decodes an image to mode `L` or `RGB`. In `RGB`, grey images get three equal channels. Alpha is dropped.

    Raises: ValueError naming the file if it cannot be decoded or does not have 8 bits per channel.
    """
    try:
        with open_image(path) as image:
            if image.mode not in EIGHT_BIT_MODES:
                raise ValueError(f"{path}: image mode {image.mode}; allowed are {', '.join(EIGHT_BIT_MODES)}")
            if any(map(_is_of_16_bits, image.tile)):
                raise ValueError(f"{path}: 16 bits per channel; allowed are 8")
            return image.convert(mode)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from None


def _is_of_16_bits(tile: tuple) -> bool:
    """Returns whether the decoder of a part of an image reads more than 8 bits per channel, which it would cut off."""
    codec, _, _, arguments = tile
    largest = arguments[1] if codec in ("ppm", "ppm_plain") else 0  # PGM and PPM tell the largest value
    return ";16" in str(arguments) or largest > 255


class PixelMoments:
    """Accumulates the mean and standard deviation of each channel from exact integer sums."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = np.zeros(3, dtype=np.int64)
        self.squares = np.zeros(3, dtype=np.int64)

    def add(self, images: np.ndarray) -> None:
        """Adds integer images [images, 3, height, width]."""
        values = images.astype(np.int64)
        self.count += values[:, 0].size
        self.sum += values.sum((0, 2, 3))
        self.squares += (values**2).sum((0, 2, 3))

    def mean_and_sd(self) -> tuple[list[float], list[float]]:
        """Returns the mean and standard deviation of each channel; the standard deviation is at least 1."""
        mean = self.sum / self.count
        sd = np.sqrt(self.squares / self.count - mean**2)
        return mean.tolist(), np.maximum(sd, 1.0).tolist()
