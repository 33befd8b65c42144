"""A small pack in the face pack's layout, and what becomes of it."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbnet.tasks.face.data.pack import fetch
from bbnet.tasks.face.data.prepare import prepare

CLASSIFICATION = {
    "train": {"n000020": "abc", "n000003": "ab", "n000100": "abcd"},
    "dev": {"n000020": "ab", "n000003": "abc", "n000100": "a"},
    "test": {"n000020": "a", "n000003": "ab", "n000100": "b"},
}
KNOWN = {"n000501": "a", "n000407": "ab", "n000600": "a"}
PROBES = {
    "dev": ["n000407", "n000000", "n000600", "n000407", "n000000", "n000407", "n000600"],
    "test": ["n000600", "n000501", "n000000", "n000407"],
}


@pytest.fixture
def random_image():
    """Uint8 [height, width, 3]."""

    def make(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def write_labels():
    """Writes a label file: rows of the columns named."""

    def write(root: Path, split: str, rows: Iterable[Iterable[str]], columns: Iterable[str] = ("file", "label")):
        path = root / "verification" / f"verification_{split}.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        return path

    return write


@pytest.fixture
def pack(tmp_path, random_image, write_labels) -> Path:
    """Three identities to classify, three in the gallery; random PNG files of 16 x 16, label files in reverse order."""
    root = tmp_path / "pack"
    names = [
        f"classification/{split}/{identity}/{letter}.png"
        for split, identities in CLASSIFICATION.items()
        for identity, letters in identities.items()
        for letter in letters
    ]
    names += [
        f"verification/known/{identity}/{letter}.png" for identity, letters in KNOWN.items() for letter in letters
    ]
    for split, labels in PROBES.items():
        probes = [f"{number:06d}.png" for number in range(1, len(labels) + 1)]
        names += [f"verification/unknown_{split}/{probe}" for probe in probes]
        (root / "verification").mkdir(parents=True, exist_ok=True)
        write_labels(root, split, reversed(list(zip(probes, labels, strict=True))))
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_image(seed)).save(root / name)
    return root


@pytest.fixture
def prepared(tmp_path):
    """Fetches and prepares a folder as the workflow does, its manifest and index having been JSON."""

    def run(root: Path, size: int = 16, resize: str = "crop", **faults: str) -> tuple[Path, dict]:
        raw, target = tmp_path / "raw", tmp_path / "prepared"
        raw.mkdir(exist_ok=True)
        target.mkdir(exist_ok=True)
        manifest = json.loads(
            json.dumps(fetch({"pack": "faces", "path": str(root), "complete": False}, raw), sort_keys=True)
        )
        settings = {"size": size, "resize": resize, "faults": faults}
        return target, json.loads(json.dumps(prepare({"root": str(raw)} | manifest, settings, target), sort_keys=True))

    return run
