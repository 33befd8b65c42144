"""Reads image files, counts what was converted, and computes the mean and standard deviation of the pixels."""

import logging
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bbnet.data.files import contents, files_below

logger = logging.getLogger(__name__)
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
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
CONVERSIONS = {
    "exif_orientation": "turned as their EXIF orientation says",
    "cmyk": "converted from CMYK",
    "alpha": "read without their transparency",
}
TURNED = range(2, 9)  # EXIF orientations; 1 is upright, and others mean nothing
LYING = range(5, 9)  # those that swap width and height
METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
NAMED_IN_LOG = 3


class Decoded(NamedTuple):
    """A decoded image, and which of `CONVERSIONS` were necessary."""

    image: Image.Image
    conversions: list[str]


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


def decode(path: Path, mode: str | None) -> Decoded:
    """Decodes an image to mode `L` or `RGB`, or keeps its own mode if `mode` is None, and turns it upright.

    In `RGB`, grey images get three equal channels. Alpha is dropped.

    Raises: ValueError naming the file if it cannot be decoded or does not have 8 bits per channel.
    """
    try:
        with open_image(path) as image:
            if image.mode not in EIGHT_BIT_MODES:
                raise ValueError(f"{path}: image mode {image.mode}; allowed are {', '.join(EIGHT_BIT_MODES)}")
            if any(map(_is_of_16_bits, image.tile)):
                raise ValueError(f"{path}: 16 bits per channel; allowed are 8")
            if _is_misread(image):
                raise ValueError(f"{path}: a BMP of two colours with several bits per pixel; allowed is 1 bit, or PNG")
            turned = _is_turned(image)  # before the image is loaded, because Pillow turns TIFF when it does
            if turned:
                image.filename = ""  # otherwise Pillow maps an uncompressed TIFF into memory in its turned shape
            image.load()
            found = {"exif_orientation": turned, "cmyk": image.mode == "CMYK", "alpha": image.has_transparency_data}
            if turned:
                for key in METADATA:  # Pillow would write them again, which fails for much that cameras store
                    image.info.pop(key, None)
                ImageOps.exif_transpose(image, in_place=True)
            return Decoded(image.convert(mode or image.mode), [kind for kind, needed in found.items() if needed])
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from None


def _is_of_16_bits(tile: tuple) -> bool:
    """Returns whether the decoder of a part of an image reads more than 8 bits per channel, which it would cut off."""
    codec, _, _, arguments = tile
    largest = arguments[1] if codec in ("ppm", "ppm_plain") else 0  # PGM and PPM tell the largest value
    return ";16" in str(arguments) or largest > 255


def _is_misread(image: Image.Image) -> bool:
    """Returns whether Pillow takes a BMP of black and white for one of 1 bit per pixel although its rows are longer."""
    bytes_of_row = (image.width + 31) // 32 * 4
    return image.format == "BMP" and image.mode == "1" and image.tile[0].args[1] != bytes_of_row


def upright_size(path: Path) -> tuple[int, int]:
    """Returns width and height of an image as `decode` returns it, without decoding it.

    Raises: ValueError naming the file if it is not an image that is read.
    """
    with open_image(path) as image:
        turned_by_pillow = image.format == "TIFF"  # whose size Pillow states as that of the upright image
        return image.size[::-1] if _orientation(image) in LYING and not turned_by_pillow else image.size


def _is_turned(image: Image.Image) -> bool:
    """Returns whether the EXIF orientation is not upright."""
    return _orientation(image) in TURNED


def _orientation(image: Image.Image) -> int | None:
    """Returns the EXIF orientation; a damaged EXIF block counts as none."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except (struct.error, ArithmeticError, LookupError, SyntaxError, TypeError, ValueError):
        return None


@dataclass
class Converted:
    """Counts converted images. `files` lists their names by kind of conversion."""

    files: dict[str, list[str]] = field(default_factory=dict)

    def add(self, file: str, conversions: Iterable[str]) -> None:
        for kind in conversions:
            self.files.setdefault(kind, []).append(file)

    def report(self) -> None:
        """Logs the number of images of each kind and names the first."""
        for kind, found in self.files.items():
            others = f"; and {len(found) - NAMED_IN_LOG} more" if len(found) > NAMED_IN_LOG else ""
            named = "; ".join(found[:NAMED_IN_LOG])
            logger.info("images %s: %d: %s%s", CONVERSIONS[kind], len(found), named, others)


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

    def sums(self) -> tuple[int, list[int], list[int]]:
        """Returns the number of pixels, and of each channel the sum of the values and of their squares."""
        return self.count, self.sum.tolist(), self.squares.tolist()

    def add_sums(self, count: int, sums: list[int], squares: list[int]) -> None:
        """Adds what `sums` of other images returned."""
        self.count += count
        self.sum += sums
        self.squares += squares

    def mean_and_sd(self) -> tuple[list[float], list[float]]:
        """Returns the mean and standard deviation of each channel; the standard deviation is at least 1."""
        mean = self.sum / self.count
        sd = np.sqrt(self.squares / self.count - mean**2)
        return mean.tolist(), np.maximum(sd, 1.0).tolist()
