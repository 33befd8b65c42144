"""Small packs in LEVIR-CD's layout, prepared splits, and models whose answers are known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbnet.tasks.change.data import Tiles

PARTS = ("A", "B", "label")
SPLITS = ("train", "val", "test")


@pytest.fixture
def random_pair():
    """A, B uint8 [height, width, 3] and a label of 0 and 255, [height, width]."""

    def make(seed: int, height: int = 32, width: int = 32) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        dates = {part: generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for part in "AB"}
        return dates | {"label": generator.integers(0, 2, (height, width), dtype=np.uint8) * 255}

    return make


@pytest.fixture
def write_pack(tmp_path, random_pair):
    """Writes a pack of PNG files; a split that is not given gets one pair."""

    def write(**splits: dict[str, dict[str, np.ndarray]]) -> Path:
        root = tmp_path / "pack"
        for split in SPLITS:
            for name, pair in splits.get(split, {"only.png": random_pair(9)}).items():
                for part in PARTS:
                    path = root / split / part / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pair[part]).save(path)
        return root

    return write


@pytest.fixture
def tiles(tmp_path):
    """A split of images [tiles, 2, 3, tile, tile] and labels, cut from images of the given numbers of tiles."""

    def make(images: np.ndarray, labels: np.ndarray, counts: list[int], split: str = "test") -> Tiles:
        np.save(tmp_path / f"{split}_images.npy", images)
        np.save(tmp_path / f"{split}_labels.npy", labels)
        names = [f"image_{number}" for number in range(len(counts))]
        starts = np.cumsum([0, *counts]).tolist()
        return Tiles(tmp_path, {"splits": {split: {"images": names, "starts": starts}}}, split)

    return make
