"""Small packs in CIFAR's layout, as Python 3 pickles them, and with a folder per class."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbnet.tasks.classification.data.pack import fetch
from bbnet.tasks.classification.data.prepare import prepare

CLASSES = ["airplane", "frog", "truck"]
FILES = {
    "train": {"truck": "abcd", "airplane": "ab", "frog": "abc"},
    "val": {"truck": "a", "airplane": "ab", "frog": "a"},
    "test": {"truck": "ab", "airplane": "a", "frog": "a"},
}


def random_batch(seed: int, images: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "batch_label": f"batch {seed}",
        "labels": rng.permutation(np.arange(images) % len(CLASSES)).tolist(),
        "data": rng.integers(0, 256, (images, 3072), dtype=np.uint8),
        "filenames": [f"image_{seed}_{number}.png" for number in range(images)],
    }


@pytest.fixture
def batches() -> dict[str, dict]:
    """The content of a pack of five training batches of 12 images and a test batch of 6."""
    return {
        **{f"data_batch_{number}": random_batch(number, 12) for number in range(1, 6)},
        "test_batch": random_batch(6, 6),
        "batches.meta": {"label_names": CLASSES},
    }


@pytest.fixture
def write(tmp_path) -> Callable[[dict], Path]:
    """Writes batches as pickles of Python 3."""

    def to_folder(batches: dict[str, dict], protocol: int = 4) -> Path:
        root = tmp_path / "cifar-10-batches-py"
        root.mkdir(exist_ok=True)
        for name, content in batches.items():
            (root / name).write_bytes(pickle.dumps(content, protocol))
        return root

    return to_folder


@pytest.fixture
def images(tmp_path) -> Path:
    """A pack with a folder per class: random PNG files of 8 x 8."""
    root = tmp_path / "images"
    number = 0
    for split, classes in FILES.items():
        for name, letters in classes.items():
            for letter in letters:
                number += 1
                path = root / split / name / f"{letter}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def made(tmp_path) -> Callable[..., tuple[dict[str, np.ndarray], dict]]:
    """Fetches and prepares a pack as the workflow does, its manifest having been JSON; returns arrays and index."""

    def run(
        data: dict,
        size: int = 32,
        resize: str = "crop",
        name: str = "prepared",
        input_size: int | None = None,
        **faults: str,
    ):
        raw, target = tmp_path / f"raw-{name}", tmp_path / name
        raw.mkdir(exist_ok=True)
        target.mkdir(exist_ok=True)
        manifest = fetch(data, raw, tmp_path / "downloads")
        manifest = json.loads(json.dumps(manifest | {"root": str(raw / manifest.get("root", ""))}))
        data = {"dev_share": 0.1} | data if data["pack"] != "rendered_objects" else data
        settings = {"data": data, "size": size, "input_size": input_size, "resize": resize, "faults": faults}
        index = json.loads(json.dumps(prepare(manifest, settings, target)))
        return {path.stem: np.load(path) for path in target.glob("*.npy")}, index

    return run
