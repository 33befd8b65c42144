"""Reads a pack in the layout of LEVIR-CD, prepares its images as tiles, and serves batches of them."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor

from bbnet.data.files import beside, by_stem, normal_form, stem_of, warn_of_unread
from bbnet.data.images import ALLOWED, Converted, PixelMoments, decode, images_in, open_image
from bbnet.data.packs import DOWNLOADS, bring, read_pack, refuse_incomplete, spread
from bbnet.data.progress import track
from bbnet.data.store import create_array, open_array
from bbnet.tasks.batches import ImageSplit, LabelledImages, rows_of_part
from bbnet.tasks.change.settings import AerialScenes, Data, LevirCD
from bbnet.tasks.task import Trained

logger = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
PARTS = ("A", "B", "label")
EVALUATION_PIXELS = 2**16
JPEG = ("JPEG", "MPO")  # Pillow's names; MPO is a JPEG with more than one picture
Batch = LabelledImages


def fetch(
    data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS, test_only: bool = False
) -> dict[str, Any]:
    """Renders the embedded pack or downloads LEVIR-CD into `target`, or uses the given path; and checks it.

    Returns the manifest: for each split the names of A, B and label of each pair; the files that are not read; and the
        entries of `bring`.
    Raises: ValueError naming a missing split, folder or file, or what cannot be downloaded.
    """
    pack = TypeAdapter(Data).validate_python(data)
    if isinstance(pack, AerialScenes):
        _render(pack, target)
        root, origin = target, {}
    else:
        root, origin = bring(pack.pack, pack.path, target, downloads, complete=pack.complete, holding=SPLITS)
    unread = beside(root, [root / split for split in SPLITS])
    warn_of_unread(root, unread, f"{{{','.join(SPLITS)}}}/{{{','.join(PARTS)}}}/*")
    pairs, splits = {}, ("test",) if test_only else SPLITS
    for split in splits:
        pairs[split], unread_of_split = _read_names(root, split)
        unread += unread_of_split
    if isinstance(pack, LevirCD) and pack.complete:
        for split in splits:
            _check_complete(root / split, pairs[split], read_pack(pack.pack).counts[split])
    return {"pack": pack.pack, "splits": pairs, "unread": [str(file.relative_to(root)) for file in unread]} | origin


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


def _read_names(root: Path, split: str) -> tuple[list[list[str]], list[Path]]:
    """Returns the names of A, B and label of each pair, which are joined by stem, and the files that are not read.

    Raises: ValueError naming a missing folder, two files of one stem in a folder, or a file that a pair lacks.
    """
    home = root / split
    for part in PARTS:
        if not (home / part).is_dir():
            raise ValueError(f"{home / part}: no such folder; a pack has {{{','.join(SPLITS)}}}/{{{','.join(PARTS)}}}")
    unread = beside(home, [home / part for part in PARTS])
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
    pairs = [[images[part][stem].name for part in PARTS] for stem in everywhere]
    pairs.sort(key=lambda names: normal_form(stem_of(Path(names[0]))))
    return pairs, unread


def _refuse_missing(folder: Path, missing: list[str], unread: list[Path]) -> None:
    """Raises ValueError naming the first file that `folder` lacks, and a file in its place that is not read."""
    if not missing:
        return
    first = min(missing)
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    stem = normal_form(Path(first).stem)
    instead = [file.name for file in unread if file.parent == folder and normal_form(file.stem) == stem]
    unreadable = f" ({instead[0]} is not of a format that is read; allowed are {ALLOWED})" if instead else ""
    raise ValueError(f"{folder / first}: missing{others}{unreadable}; A, B and label need the same names")


def prepare(
    manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path, trained: Trained | None = None
) -> dict[str, Any]:
    """Writes tiles, uint8: `{split}_images.npy` [tiles, 2, 3, tile, tile], `{split}_labels.npy` [tiles, tile, tile].

    Returns the index: for each split, names (of A), grids and first tiles of the images; mean and sd of the training
        pixels; the files that were converted, by kind; and, if there are any, the files that are not read.
    Raises: ValueError naming a pair of unequal size, a size that is not a multiple of the tile, or a label that is a
        JPEG or not binary.
    """
    root, tile = Path(manifest["root"]), settings["tile"]
    index: dict[str, Any] = {"tile": tile, "splits": {}}
    if trained is not None:
        index |= {name: trained.index[name] for name in ("mean", "sd")}
    converted = Converted()
    for split in SPLITS if trained is None else ("test",):
        pairs = [
            {part: root / split / part / name for part, name in zip(PARTS, names, strict=True)}
            for names in manifest["splits"][split]
        ]
        starts = np.cumsum([0] + [_count_tiles(files, tile) for files in pairs]).tolist()
        tiles = starts[-1]
        images = create_array(target / f"{split}_images.npy", (tiles, 2, 3, tile, tile), np.uint8)
        labels = create_array(target / f"{split}_labels.npy", (tiles, tile, tile), np.uint8)
        pixels, grids = PixelMoments(), []
        for files, start, end in track(list(zip(pairs, starts, starts[1:], strict=False)), f"prepare {split}"):
            pair, label, conversions = _read_pair(files)
            for file, kinds in conversions.items():
                converted.add(str(file.relative_to(root)), kinds)
            images[start:end] = _cut(pair, tile)
            labels[start:end] = _cut(label, tile)
            pixels.add(pair)
            grids.append((label.shape[0] // tile, label.shape[1] // tile))
        if split == "train":
            index["mean"], index["sd"] = pixels.mean_and_sd()
        changed = float(np.mean(labels))
        _warn_of_one_class(root / split, changed)
        names = [files["A"].name for files in pairs]
        index["splits"][split] = {"images": names, "grids": grids, "starts": starts, "changed": changed}
    converted.report()
    skipped = {"skipped": {"not_read": manifest["unread"]}} if manifest["unread"] else {}
    return index | {"converted": converted.files} | skipped


def _count_tiles(files: Mapping[str, Path], tile: int) -> int:
    """Returns the number of tiles of a pair, which is the same whether or not its images are still to be turned.

    Nothing is decoded, so that a label that cannot be used is refused before the work begins.
    """
    with open_image(files["label"]) as label:
        if label.format in JPEG or "jpeg" in str(label.info.get("compression")):
            raise ValueError(
                f"{files['label']}: is compressed as JPEG, which blurs labels; allowed are lossless formats such as PNG"
            )
    with open_image(files["A"]) as image:
        width, height = image.size
    if width % tile or height % tile:
        raise ValueError(f"{files['A']}: {width} x {height} pixels; must be multiples of tile {tile}")
    return (height // tile) * (width // tile)


def _read_pair(files: Mapping[str, Path]) -> tuple[np.ndarray, np.ndarray, dict[Path, list[str]]]:
    """Returns both dates, uint8 [2, 3, height, width], the label, uint8 [height, width] of 0 and 1, and conversions."""
    found = {part: decode(files[part], None if part == "label" else "RGB") for part in PARTS}
    size = found["A"].image.size
    for part, decoded in found.items():
        if decoded.image.size != size:
            raise ValueError(
                f"{files[part]}: {_shown(decoded.image.size)} pixels, but A is {_shown(size)}; "
                "A, B and label must be of equal size"
            )
    pair = np.stack([np.asarray(found[part].image).transpose(2, 0, 1) for part in ("A", "B")])
    label = _binary(found["label"].image, files["label"])
    return pair, label, {files[part]: found[part].conversions for part in PARTS}


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _binary(label: Image.Image, path: Path) -> np.ndarray:
    """Returns a label as uint8 [height, width] of 0 and 1; raises ValueError naming a file that is not binary."""
    values = np.asarray(label if _is_read_by_index(label) else label.convert("L"))
    found = set(np.unique(values).tolist())
    if not (found <= {0, 255} or found <= {0, 1}):
        others = (sorted(found - {0, 1, 255}) or sorted(found))[:3]
        allowed = "0 and 255 or 0 and 1, without loss by compression"
        raise ValueError(f"{path}: label is not binary; found {others}, allowed {allowed}")
    return (values > 0).astype(np.uint8)


def _is_read_by_index(label: Image.Image) -> bool:
    """Returns whether a palette image has no indices but 0 and 1, whose colours are not both black, white or 0 and 1.

    With other palettes the colours decide, so that index 0 may be white.
    """
    if label.mode != "P" or np.asarray(label).max() > 1:
        return False
    palette = label.getpalette("RGB")
    colours = {tuple(palette[first : first + 3]) for first in (0, 3)}
    grey = {(value,) * 3 for value in (0, 1, 255)}
    return len(palette) >= 6 and not colours <= grey


def _warn_of_one_class(folder: Path, changed: float) -> None:
    if changed not in (0, 1):
        return
    what, cause = ("no", "empty") if changed == 0 else ("every", "inverted")
    logger.warning(
        "%s: %s pixel is changed in any label; such a split can neither teach nor score change. Are the labels %s, "
        "or those of another data set?",
        folder,
        what,
        cause,
    )


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

    def part(self, number: int, count: int) -> "Tiles":
        part, rows = copy.copy(self), rows_of_part(len(self.names), number, count)
        starts = self.starts[rows.start : rows.stop + 1]
        tiles = slice(starts[0], starts[-1])
        part.names, part.starts = self.names[rows], [start - starts[0] for start in starts]
        part.images, part.labels = self.images[tiles], self.labels[tiles]
        return part

    def in_order(self) -> list[Tensor]:
        return list(torch.arange(len(self)).split(max(1, EVALUATION_PIXELS // self.labels.shape[-1] ** 2)))
