"""Reads a pack in the layout of LEVIR-CD, prepares its images as tiles, and serves batches of them."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from bbnet.data.files import by_stem, contents, files_below, warn_of_unread
from bbnet.data.images import ALLOWED, PixelMoments, decode, images_in, open_image
from bbnet.data.packs import DOWNLOADS, bring, read_pack, refuse_incomplete, spread
from bbnet.data.progress import track
from bbnet.data.store import create_array, open_array
from bbnet.tasks.batches import ImageSplit, LabelledImages
from bbnet.tasks.change.settings import AerialScenes, Data, LevirCD

SPLITS = ("train", "val", "test")
PARTS = ("A", "B", "label")
EVALUATION_PIXELS = 2**16
Batch = LabelledImages


def fetch(data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS) -> dict[str, Any]:
    """Renders the embedded pack or downloads LEVIR-CD into `target`, or uses the given path; and checks it.

    Returns the manifest: for each split the names of A, B and label of each pair, and the files that are not read; and
        the entries of `bring`.
    Raises: ValueError naming a missing split, folder or file, or what cannot be downloaded.
    """
    pack = TypeAdapter(Data).validate_python(data)
    if isinstance(pack, AerialScenes):
        _render(pack, target)
        root, origin = target, {}
    else:
        root, origin = bring(pack.pack, pack.path, target, downloads, holding=SPLITS)
    pairs, unread = {}, {}
    for split in SPLITS:
        pairs[split], unread[split] = _read_names(root, split)
    if isinstance(pack, LevirCD) and pack.complete:
        for split in SPLITS:
            _check_complete(root / split, pairs[split], read_pack(pack.pack).counts[split])
    return {"pack": pack.pack, "splits": pairs, "unread": unread} | origin


def _render(pack: AerialScenes, target: Path) -> None:
    # Imported here because training jobs do not need the generator.
    from bbnet.data.synthetic.aerial_scenes import write_scene_pairs

    pairs = {split: getattr(pack, split) for split in SPLITS}
    write_scene_pairs(target, seed=pack.seed, size=pack.size, pairs=pairs, unchanged=pack.unchanged)


def _check_complete(folder: Path, pairs: list[list[str]], published: int) -> None:
    stems = {Path(names[0]).stem for names in pairs}
    numbered = {f"{folder.name}_{number}" for number in range(1, published + 1)}
    missing = [f"{stem}.png" for stem in sorted(numbered - stems)] if numbered & stems else []
    refuse_incomplete(folder, len(pairs), published, "pairs", missing)
    for names in spread(pairs):
        for part, name in zip(PARTS, names, strict=True):
            decode(folder / part / name, "RGB")


def _read_names(root: Path, split: str) -> tuple[list[list[str]], list[str]]:
    """Returns the names of A, B and label of each pair, which are joined by stem, and the files that are not read.

    Raises: ValueError naming a missing folder, two files of one stem in a folder, or a file that a pair lacks.
    """
    home = root / split
    for part in PARTS:
        if not (home / part).is_dir():
            raise ValueError(f"{home / part}: no such folder; a pack has {{{','.join(SPLITS)}}}/{{{','.join(PARTS)}}}")
    beside, folders = contents(home)
    unread = beside + files_below(folder for folder in folders if folder.name not in PARTS)
    images = {}
    for part in PARTS:
        files, others = images_in(home / part)
        images[part] = by_stem(files)
        unread += others
    everywhere = images["label"] | images["B"] | images["A"]
    for part in PARTS:
        _refuse_missing(home / part, [everywhere[stem].name for stem in everywhere.keys() - images[part]], unread)
    if not everywhere:
        raise ValueError(f"{home}: has no images; allowed are {ALLOWED}")
    warn_of_unread(home, unread, f"{{{','.join(PARTS)}}}/* of {ALLOWED}")
    pairs = sorted([images[part][stem].name for part in PARTS] for stem in everywhere)
    return pairs, [str(file.relative_to(root)) for file in unread]


def _refuse_missing(folder: Path, missing: list[str], unread: list[Path]) -> None:
    """Raises ValueError naming the first file that `folder` lacks, and a file in its place that is not read."""
    if not missing:
        return
    first = min(missing)
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    instead = [file.name for file in unread if file.parent == folder and file.stem == Path(first).stem]
    unreadable = f" ({instead[0]} is not of a format that is read; allowed are {ALLOWED})" if instead else ""
    raise ValueError(f"{folder / first}: missing{others}{unreadable}; A, B and label need the same names")


def prepare(manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """Writes tiles, uint8: `{split}_images.npy` [tiles, 2, 3, tile, tile], `{split}_labels.npy` [tiles, tile, tile].

    Returns the index: for each split, names (of A), grids and first tiles of the images; mean and sd of the training
        pixels; and, if there are any, the files that are not read.
    Raises: ValueError naming a pair of unequal size, a size that is not a multiple of the tile, or a non-binary label.
    """
    root, tile = Path(manifest["root"]), settings["tile"]
    index: dict[str, Any] = {"tile": tile, "splits": {}}
    for split in SPLITS:
        pairs = [
            {part: root / split / part / name for part, name in zip(PARTS, names, strict=True)}
            for names in manifest["splits"][split]
        ]
        grids = [_tile_grid(files, tile) for files in pairs]
        starts = np.cumsum([0] + [rows * columns for rows, columns in grids]).tolist()
        tiles = starts[-1]
        images = create_array(target / f"{split}_images.npy", (tiles, 2, 3, tile, tile), np.uint8)
        labels = create_array(target / f"{split}_labels.npy", (tiles, tile, tile), np.uint8)
        pixels = PixelMoments()
        for files, start, end in track(list(zip(pairs, starts, starts[1:], strict=False)), f"prepare {split}"):
            pair, label = _read_pair(files)
            images[start:end] = _cut(pair, tile)
            labels[start:end] = _cut(label, tile)
            pixels.add(pair)
        if split == "train":
            index["mean"], index["sd"] = pixels.mean_and_sd()
        names = [files["A"].name for files in pairs]
        index["splits"][split] = {"images": names, "grids": grids, "starts": starts, "changed": float(np.mean(labels))}
    unread = list(chain(*manifest["unread"].values()))
    return index | ({"skipped": {"not_read": unread}} if unread else {})


def _tile_grid(files: Mapping[str, Path], tile: int) -> tuple[int, int]:
    sizes = {}
    for part in PARTS:
        with open_image(files[part]) as image:
            sizes[part] = image.size
    for part in PARTS[1:]:
        if sizes[part] != sizes["A"]:
            raise ValueError(
                f"{files[part]}: {_shown(sizes[part])} pixels, but A is {_shown(sizes['A'])}; "
                "A, B and label must be of equal size"
            )
    width, height = sizes["A"]
    if width % tile or height % tile:
        raise ValueError(f"{files['A']}: {width} x {height} pixels; must be multiples of tile {tile}")
    return height // tile, width // tile


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _read_pair(files: Mapping[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Returns both dates, uint8 [2, 3, height, width], and the label, uint8 [height, width] of 0 and 1."""
    pair = np.stack([np.asarray(decode(files[part], "RGB")).transpose(2, 0, 1) for part in ("A", "B")])
    path = files["label"]
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
