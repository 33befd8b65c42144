"""Reads a pack in the layout of LEVIR-CD, prepares its images as tiles, and serves batches of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from bbnet.data.images import SUFFIXES, PixelMoments, decode, open_image
from bbnet.data.packs import DOWNLOADS, bring, read_pack, refuse_incomplete, spread
from bbnet.data.progress import track
from bbnet.data.store import create_array, open_array
from bbnet.tasks.batches import ImageSplit, LabelledImages
from bbnet.tasks.change.settings import AerialScenes, Data

SPLITS = ("train", "val", "test")
PARTS = ("A", "B", "label")
EVALUATION_PIXELS = 2**16
Batch = LabelledImages


def fetch(data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS) -> dict[str, Any]:
    """Renders the embedded pack or downloads LEVIR-CD into `target`, or uses the given path; and checks it.

    Returns the manifest: the image names of each split, and the entries of `bring`.
    Raises: ValueError naming a missing split, folder or file, or what cannot be downloaded.
    """
    pack = TypeAdapter(Data).validate_python(data)
    if isinstance(pack, AerialScenes):
        _render(pack, target)
        return {"pack": pack.pack, "splits": {split: _pair_names(target, split) for split in SPLITS}}
    root, origin = bring(pack.pack, pack.path, target, downloads, holding=SPLITS)
    names = {split: _pair_names(root, split) for split in SPLITS}
    if pack.complete:
        for split in SPLITS:
            _check_complete(root, split, names[split], read_pack(pack.pack).counts[split])
    return {"pack": pack.pack, "splits": names} | origin


def _render(pack: AerialScenes, target: Path) -> None:
    # Imported here because training jobs do not need the generator.
    from bbnet.data.synthetic.aerial_scenes import write_scene_pairs

    pairs = {split: getattr(pack, split) for split in SPLITS}
    write_scene_pairs(target, seed=pack.seed, size=pack.size, pairs=pairs, unchanged=pack.unchanged)


def _check_complete(root: Path, split: str, names: list[str], published: int) -> None:
    numbered = {f"{split}_{number}.png" for number in range(1, published + 1)}
    missing = sorted(numbered - set(names)) if numbered & set(names) else []
    refuse_incomplete(root / split, len(names), published, "pairs", missing)
    for name in spread(names):
        for part in PARTS:
            decode(root / split / part / name, "RGB")


def _pair_names(root: Path, split: str) -> list[str]:
    names = {}
    for part in PARTS:
        folder = root / split / part
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; a pack has {{{','.join(SPLITS)}}}/{{{','.join(PARTS)}}}")
        files = (path for path in folder.iterdir() if not path.name.startswith("."))
        names[part] = {path.name for path in files if path.suffix.lower() in SUFFIXES}
    everywhere = set.union(*names.values())
    for part in PARTS:
        missing = sorted(everywhere - names[part])
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{root / split / part / missing[0]}: missing{others}; A, B and label need the same names")
    if not everywhere:
        raise ValueError(f"{root / split}: has no images; allowed are {', '.join(sorted(SUFFIXES))}")
    return sorted(everywhere)


def prepare(manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """Writes tiles, uint8: `{split}_images.npy` [tiles, 2, 3, tile, tile], `{split}_labels.npy` [tiles, tile, tile].

    Returns the index: for each split, names, grids and first tiles of the images; mean and sd of the training pixels.
    Raises: ValueError naming a pair of unequal size, a size that is not a multiple of the tile, or a non-binary label.
    """
    root, tile = Path(manifest["root"]), settings["tile"]
    index: dict[str, Any] = {"tile": tile, "splits": {}}
    for split in SPLITS:
        names = manifest["splits"][split]
        grids = [_tile_grid(root / split, name, tile) for name in names]
        starts = np.cumsum([0] + [rows * columns for rows, columns in grids]).tolist()
        tiles = starts[-1]
        images = create_array(target / f"{split}_images.npy", (tiles, 2, 3, tile, tile), np.uint8)
        labels = create_array(target / f"{split}_labels.npy", (tiles, tile, tile), np.uint8)
        pixels = PixelMoments()
        for name, start, end in track(list(zip(names, starts, starts[1:], strict=False)), f"prepare {split}"):
            pair, label = _read_pair(root / split, name)
            images[start:end] = _cut(pair, tile)
            labels[start:end] = _cut(label, tile)
            pixels.add(pair)
        if split == "train":
            index["mean"], index["sd"] = pixels.mean_and_sd()
        index["splits"][split] = {"images": names, "grids": grids, "starts": starts, "changed": float(np.mean(labels))}
    return index


def _tile_grid(folder: Path, name: str, tile: int) -> tuple[int, int]:
    sizes = {}
    for part in PARTS:
        with open_image(folder / part / name) as image:
            sizes[part] = image.size
    for part in PARTS[1:]:
        if sizes[part] != sizes["A"]:
            raise ValueError(
                f"{folder / part / name}: {_shown(sizes[part])} pixels, but A is {_shown(sizes['A'])}; "
                "A, B and label must be of equal size"
            )
    width, height = sizes["A"]
    if width % tile or height % tile:
        raise ValueError(f"{folder / 'A' / name}: {width} x {height} pixels; must be multiples of tile {tile}")
    return height // tile, width // tile


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _read_pair(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns both dates, uint8 [2, 3, height, width], and the label, uint8 [height, width] of 0 and 1."""
    pair = np.stack([np.asarray(decode(folder / part / name, "RGB")).transpose(2, 0, 1) for part in ("A", "B")])
    path = folder / "label" / name
    label = np.asarray(decode(path, "L"))
    values = np.unique(label)
    if not (set(values.tolist()) <= {0, 255} or set(values.tolist()) <= {0, 1}):
        others = [value for value in values.tolist() if value not in (0, 1, 255)]
        found = (others or values.tolist())[:3]
        raise ValueError(f"{path}: label is not binary; found {found}, allowed 0 and 255 or 0 and 1")
    return pair, (label > 0).astype(np.uint8)


def _cut(image: np.ndarray, tile: int) -> np.ndarray:
    """Cuts [..., height, width] into tiles [tiles, ..., tile, tile], row by row."""
    *lead, height, width = image.shape
    grid = image.reshape(*lead, height // tile, tile, width // tile, tile)
    grid = np.moveaxis(grid, (-4, -2), (0, 1))
    return grid.reshape(-1, *lead, tile, tile)


class Tiles(ImageSplit):
    """The tiles of one split of the prepared data.

    `images` uint8 [tiles, 2, 3, tile, tile], dates A and B; `labels` uint8 [tiles, tile, tile], 1 where changed.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any], split: str) -> None:
        self.images = torch.from_numpy(open_array(prepared / f"{split}_images.npy"))
        self.labels = torch.from_numpy(open_array(prepared / f"{split}_labels.npy"))
        self.names: list[str] = index["splits"][split]["images"]
        self.starts: list[int] = index["splits"][split]["starts"]

    def in_order(self) -> list[Tensor]:
        return list(torch.arange(len(self)).split(max(1, EVALUATION_PIXELS // self.labels.shape[-1] ** 2)))
