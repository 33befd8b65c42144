"""Reads image files and computes the mean and standard deviation of their pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


def open_image(path: Path) -> Image.Image:
    """Opens an image without decoding it; raises ValueError naming the file if it is not an image."""
    try:
        return Image.open(path)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from None


def decode(path: Path, mode: str) -> Image.Image:
    """Decodes an image to mode `L` or `RGB`. In `RGB`, grey images get three equal channels. Alpha is dropped.

    Raises: ValueError naming the file if it cannot be decoded or does not have 8 bits per channel.
    """
    try:
        with open_image(path) as image:
            if image.mode not in EIGHT_BIT_MODES:
                raise ValueError(f"{path}: image mode {image.mode}; allowed are {', '.join(EIGHT_BIT_MODES)}")
            if any(";16" in str(tile.args) for tile in image.tile):
                raise ValueError(f"{path}: 16 bits per channel; allowed are 8")
            return image.convert(mode)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from None


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
