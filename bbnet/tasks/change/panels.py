"""Selects the test images on which a method gains most, the median, and least against dense. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bbnet.tasks.cases import ranked_cases

LARGEST_SHOWN = 256


def choose(dense: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns the best, median and worst test image by gain, delta TP - delta FP in pixels, `other` minus `dense`.

    Delta TP alone would favour a method that predicts too much change. Images without true or predicted change are
    excluded, unless there are no others. Of two images, there is no median; a single one is the `only` case.

    Args:
        dense, other: items, `tp`, `fp`, `fn` [images], of the same images in the same order.
    """
    dense, other = ({name: np.asarray(items[name]) for name in ("tp", "fp", "fn")} for items in (dense, other))
    gain = (other["tp"] - dense["tp"]) - (other["fp"] - dense["fp"])
    relevant = (dense["tp"] + dense["fn"] + dense["fp"] + other["fp"]) > 0
    return ranked_cases(gain, relevant)


def describe(dense: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is printed beside a case, from its items of both runs."""
    return {"image": str(dense["image"])} | {f"delta_{name}": int(other[name] - dense[name]) for name in ("tp", "fp")}


def case(
    prepared: Path, index: Mapping[str, Any], image: int, predictions: Mapping[str, Mapping[str, np.ndarray]]
) -> dict:
    """Returns a test image, downsampled: `A`, `B` uint8 [height, width, 3], label, predictions bool [height, width].

    Args:
        prepared: folder of the prepared arrays, with their `index`.
        predictions: predictions of each run, by name, as returned by `evaluate`.
    """
    split, tile = index["splits"]["test"], index["tile"]
    first, last = split["starts"][image : image + 2]
    grid = split["grids"][image]
    images = np.load(prepared / "test_images.npy", mmap_mode="r")[first:last]
    before, after = assemble(images, grid).transpose(0, 2, 3, 1)
    label = assemble(np.load(prepared / "test_labels.npy", mmap_mode="r")[first:last], grid) > 0
    shown = {"A": before, "B": after, "label": label}
    for name, packed in predictions.items():
        tiles = np.unpackbits(packed["changed"][first:last], axis=1, count=tile * tile).reshape(-1, tile, tile)
        shown[name] = assemble(tiles, grid) > 0
    step = -(-max(before.shape[:2]) // LARGEST_SHOWN)
    return {name: image[::step, ::step] for name, image in shown.items()}


def assemble(tiles: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Joins the tiles of an image, [tiles, ..., tile, tile] row by row, to [..., height, width]."""
    rows, columns = grid
    *lead, tile, _ = tiles.shape[1:]
    image = np.moveaxis(tiles.reshape(rows, columns, *lead, tile, tile), (0, 1), (-4, -2))
    return image.reshape(*lead, rows * tile, columns * tile)
