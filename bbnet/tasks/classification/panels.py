"""Selects the test images that a method, and dense, classify wrongly with most confidence. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MOST_SHOWN = 6
LARGEST_SHOWN = 256


def choose(dense: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns the images that each run classifies wrongly with most confidence: `other_1`, ..., `dense_1`, ...

    Args:
        dense, other: items, `rank` and `confidence` [images], of the same images in the same order. Of two images of
            equal confidence, the earlier one comes first.
    """
    chosen = {}
    for name, items in (("other", other), ("dense", dense)):
        wrong = np.flatnonzero(np.asarray(items["rank"]) > 0)
        ranked = wrong[np.argsort(-np.asarray(items["confidence"])[wrong], kind="stable")]
        chosen |= {f"{name}_{place}": int(image) for place, image in enumerate(ranked[:MOST_SHOWN], start=1)}
    return chosen


def describe(dense: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the caption data of an image from its items of both runs: confidence, and whether the answer is right."""
    of_runs = {
        name: {"confidence": round(float(items["confidence"]), 4), "right": int(items["rank"]) == 0}
        for name, items in (("dense", dense), ("other", other))
    }
    return {"image": str(dense["image"])} | of_runs


def case(
    prepared: Path, index: Mapping[str, Any], image: int, predictions: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns the `pixels` of a test image, uint8 [height, width, 3], downsampled, and names of classes as 0-d arrays.

    These are that of the `true` class and, by name, those that the runs predict.

    Args:
        prepared: folder of the prepared arrays, with their `index`.
        predictions: predictions of each run, by name, as returned by `evaluate`.
    """
    pixels = np.load(prepared / "test.npy", mmap_mode="r")[image].transpose(1, 2, 0)
    step = -(-max(pixels.shape[:2]) // LARGEST_SHOWN)
    labels = {"true": index["splits"]["test"]["labels"][image]}
    labels |= {name: packed["class"][image] for name, packed in predictions.items()}
    names = {name: np.array(index["classes"][int(label)]) for name, label in labels.items()}
    return {"pixels": np.ascontiguousarray(pixels[::step, ::step])} | names
