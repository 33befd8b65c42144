"""Face data: a pack in the face pack's layout, and its images as arrays."""

import csv
import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor

from bbnet.data.images import SUFFIXES, PixelMoments, decode
from bbnet.data.progress import track
from bbnet.data.store import create_array, open_array
from bbnet.tasks.batches import full_batches, shuffled_batches
from bbnet.tasks.face.settings import Data, FaceFolder, FaceTraining, Faults, Weights

logger = logging.getLogger(__name__)
HALVES = ("classification", "verification")
CLASSIFICATION_FOLDERS = {"train": "train", "val": "dev", "test": "test"}
PROBE_FOLDERS = {"dev": "unknown_dev", "test": "unknown_test"}
NOBODY = "n000000"
LABEL = "label"
NAMED_IN_ERRORS = 3
IMAGES_AT_ONCE = 256
EVALUATION_PIXELS = 2**18


def fetch(data: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """Renders the embedded pack into `target`, or takes the folder or file of weights named; checks what is there.

    Returns the manifest: `root` where the pack lies elsewhere; the names of its two folders, or the file of weights.
    Raises: ValueError naming a folder that is missing, or weights whose content is not what their name says.
    """
    pack = TypeAdapter(Data | Weights).validate_python(data)
    if isinstance(pack, Weights):
        path = Path(pack.path).expanduser().absolute()
        check_weights(path)
        return {"pack": pack.pack, "root": str(path.parent), "file": path.name}
    if isinstance(pack, FaceFolder):
        root = Path(pack.path).expanduser().absolute()
        return {"pack": pack.pack, "root": str(root)} | _halves(root)
    from bbnet.data.synthetic.rendered_faces import write_face_pack  # late: no training job renders

    write_face_pack(target, **pack.model_dump(exclude={"pack"}))
    return {"pack": pack.pack} | _halves(target)


def check_weights(path: Path) -> None:
    """Raises ValueError unless the SHA-256 of the file begins with the digits that end its name."""
    digits = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if digits is None:
        raise ValueError(f"{path}: the name must end in the first digits of the SHA-256, as resnet101-63fe2227.pth")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digits[1]):
        raise ValueError(f"{path}: its SHA-256 begins with {found[: len(digits[1])]}, its name says {digits[1]}")


def _halves(root: Path) -> dict[str, str]:
    """The folders whose names end in `classification` and `verification`, as `11-785-s24-hw2p2-classification` does."""
    found = {}
    for half, needed in zip(HALVES, (("train", "dev"), ("known", "unknown_dev")), strict=True):
        folders = sorted(path for path in root.glob(f"*{half}") if path.is_dir())
        if len(folders) != 1:
            named = ", ".join(path.name for path in folders) or "none"
            raise ValueError(f"{root}: needs one folder whose name ends in {half}, found {named}")
        for name in needed:
            if not (folders[0] / name).is_dir():
                raise ValueError(f"{folders[0] / name}: no such folder")
        found[half] = folders[0].name
    return found


@dataclass
class Faulty:
    """What cannot be used: refused or skipped as the rule of its kind says."""

    rules: Faults
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def judge(self, kind: str, found: Sequence[str], what: str) -> None:
        """Raises ValueError naming the first of a kind that is refused; counts those that are skipped."""
        if not found:
            return
        named = "; ".join(found[:NAMED_IN_ERRORS])
        others = f"; and {len(found) - NAMED_IN_ERRORS} more" if len(found) > NAMED_IN_ERRORS else ""
        if getattr(self.rules, kind) != "skip":
            raise ValueError(f"{named}{others}: {what} (faults.{kind}: skip leaves such out)")
        logger.info("%d skipped (faults.%s), %s: %s%s", len(found), kind, what, named, others)
        self.skipped.setdefault(kind, []).extend(found)


@dataclass(frozen=True)
class Images:
    """Files and the place of each one's identity in a list of names; -1 is nobody."""

    files: list[Path]
    labels: list[int]

    def chosen(self, keep: Sequence[bool]) -> "Images":
        return Images(
            [file for file, kept in zip(self.files, keep, strict=True) if kept],
            [label for label, kept in zip(self.labels, keep, strict=True) if kept],
        )


def prepare(manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """Decodes every image once: uint8 `{part}.npy` [images, 3, size, size] of train, val, test, known, dev and test.

    Where test has no identities or labels, every second image or probe of each identity of dev, by name, stands for it.

    Returns the index: identities, and files and labels of each part; mean and sd of the training pixels.
    Raises: ValueError naming an image that cannot be decoded, an identity without images, an image or identity of a
        label file that is not there, and an image or row that is there twice or lacks its counterpart.
    """
    root = Path(manifest["root"])
    classification, verification = (root / manifest[half] for half in HALVES)
    faulty = Faulty(Faults(**settings["faults"]))
    parts, identities, divided = _classification(classification, faulty)
    known, probes, gallery, divided_probes = _verification(verification, faulty)
    parts |= {"known": known} | {f"probes_{split}": probes[split] for split in PROBE_FOLDERS}
    index: dict[str, Any] = {"size": settings["size"], "identities": identities, "gallery": gallery, "splits": {}}
    for part, images in parts.items():
        pixels = PixelMoments()
        used = _write(images, settings, target / f"{part}.npy", part, faulty, pixels)
        if part in CLASSIFICATION_FOLDERS and not used.files:
            raise ValueError(f"{classification / CLASSIFICATION_FOLDERS[part]}: no image is left")
        if part == "train":
            index["mean"], index["sd"] = pixels.mean_and_sd()
            gone = sorted(set(range(len(identities))) - set(used.labels))
            if gone:
                raise ValueError(f"{classification / 'train' / identities[gone[0]]}: no image of this identity is left")
        index["splits"][part] = {
            "files": [str(file.relative_to(root)) for file in used.files],
            "labels": used.labels,
        }
    return index | {"skipped": faulty.skipped, "divided": divided + divided_probes}


def _classification(home: Path, faulty: Faulty) -> tuple[dict[str, Images], list[str], list[str]]:
    """Images of train, val and test, the identities, and what had to be divided."""
    found = {split: _by_identity(home / folder, faulty) for split, folder in CLASSIFICATION_FOLDERS.items()}
    identities = sorted(found["train"])
    if not identities:
        raise ValueError(f"{home / 'train'}: holds no identities; it needs {{identity}}/*.jpg or another image format")
    parts = {}
    for split, folder in CLASSIFICATION_FOLDERS.items():
        strange = sorted(set(found[split]) - set(identities))
        if strange:
            raise ValueError(f"{home / folder / strange[0]}: no such identity in {home / 'train'}")
        parts[split] = _labelled(found[split], identities)
    if parts["test"].files:
        return parts, identities, []
    logger.info("%s has no identities: every second image of each identity of dev is taken for test", home / "test")
    parts["val"], parts["test"] = _every_second(parts["val"])
    if not parts["test"].files:
        raise ValueError(f"{home / 'dev'}: has no identity of two images, so it cannot be divided into dev and test")
    return parts, identities, ["classification"]


def _by_identity(folder: Path, faulty: Faulty) -> dict[str, list[Path]]:
    """Images by the name of the folder that they lie in; none where the folder is missing or holds images alone."""
    if not folder.is_dir():
        return {}
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if folders and _images_in(folder):
        raise ValueError(f"{_images_in(folder)[0]}: lies beside folders of identities, in none of them")
    found = {path.name: _images_in(path) for path in folders}
    empty = [str(folder / name) for name, files in found.items() if not files]
    faulty.judge("empty_identity", empty, "an identity's folder without images")
    return {name: files for name, files in found.items() if files}


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _labelled(by_identity: Mapping[str, list[Path]], identities: Sequence[str]) -> Images:
    place = {name: number for number, name in enumerate(identities)}
    rows = [(file, place[name]) for name, files in sorted(by_identity.items()) for file in files]
    return Images([file for file, _ in rows], [label for _, label in rows])


def _every_second(images: Images) -> tuple[Images, Images]:
    """The first, third, ... of each identity, and the others."""
    seen: dict[int, int] = defaultdict(int)
    first = []
    for label in images.labels:
        first.append(seen[label] % 2 == 0)
        seen[label] += 1
    return images.chosen(first), images.chosen([not one for one in first])


def _verification(home: Path, faulty: Faulty) -> tuple[Images, dict[str, Images], list[str], list[str]]:
    """Images of the gallery, probes of dev and test, identities of the gallery, and what had to be divided."""
    by_identity = _by_identity(home / "known", faulty)
    if NOBODY in by_identity:
        raise ValueError(f"{home / 'known' / NOBODY}: this name says that a probe is of nobody in the gallery")
    gallery = sorted(by_identity)
    known = _labelled(by_identity, gallery)
    if not gallery:
        logger.warning("%s is empty: nobody can be identified", home / "known")
    probes = {"dev": _probes(home, "dev", gallery)}
    if _label_file(home, "test").is_file():
        return known, probes | {"test": _probes(home, "test", gallery)}, gallery, []
    logger.info(
        "there is no %s: every second probe of each identity of dev is taken for test", _label_file(home, "test")
    )
    dev, test = _every_second(probes["dev"])
    return known, {"dev": dev, "test": test}, gallery, ["verification"]


def _label_file(home: Path, split: str) -> Path:
    return home / f"verification_{split}.csv"


def _probes(home: Path, split: str, gallery: Sequence[str]) -> Images:
    """The images that a label file names, with the place of each one's identity in the gallery; by name.

    Images are joined by their names, in whichever column these stand, with or without folder and suffix; names of
    digits alone by their number.
    """
    path, folder = _label_file(home, split), home / PROBE_FOLDERS[split]
    columns, rows = _read_labels(path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = {}
    for file in _images_in(folder):
        if _join_key(file.name) in files:
            raise ValueError(f"{file}: cannot be told from {files[_join_key(file.name)].name} by name")
        files[_join_key(file.name)] = file
    names = _column_of_names(path, columns, rows, files)
    place = {name: number for number, name in enumerate(gallery)} | {NOBODY: -1}
    labels = {}
    for line, row in rows:
        key = _join_key(row[names])
        if key not in files:
            raise ValueError(f"{path}, line {line}: there is no image {row[names]} in {folder}")
        if key in labels:
            raise ValueError(f"{path}, line {line}: image {row[names]} is given twice")
        if row[LABEL] not in place:
            raise ValueError(f"{path}, line {line}: identity {row[LABEL]} is neither in {home / 'known'} nor {NOBODY}")
        labels[key] = place[row[LABEL]]
    unnamed = sorted(set(files) - set(labels))
    if unnamed:
        raise ValueError(f"{files[unnamed[0]]}: has no row in {path} ({len(unnamed)} of {len(files)} have none)")
    order = sorted(files, key=lambda key: files[key].name)
    return Images([files[key] for key in order], [labels[key] for key in order])


def _read_labels(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns, and the rows with the line of the file that each ends in."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            rows = [
                (reader.line_num, {key: value.strip() for key, value in row.items() if key is not None})
                for row in reader
            ]
            columns = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if LABEL not in columns or len(columns) < 2:
        raise ValueError(
            f"{path}: needs a column {LABEL} and one that names images, found {', '.join(columns) or 'none'}"
        )
    return columns, rows


def _column_of_names(
    path: Path, columns: Sequence[str], rows: Sequence[tuple[int, Mapping[str, str]]], files: Mapping[str, Path]
) -> str:
    """The column, `label` apart, that names most of the images; a number that happens to fit is no name beside one."""
    spelled = {spelling for file in files.values() for spelling in (file.name, file.stem)}

    def named(column: str) -> tuple[int, int]:
        values = {re.split(r"[/\\]", row[column])[-1] for _, row in rows}
        return len(values & spelled), len({_join_key(value) for value in values} & set(files))

    best = max((column for column in columns if column != LABEL), key=named)
    if rows and files and not any(named(best)):
        raise ValueError(f"{path}: no column names images of {path.parent}; found {', '.join(columns)}")
    return best


def _join_key(name: str) -> str:
    stem = re.split(r"[/\\]", name)[-1]
    stem = Path(stem).stem if Path(stem).suffix.lower() in SUFFIXES else stem
    return str(int(stem)) if re.fullmatch("[0-9]+", stem) else stem


def _write(
    images: Images, settings: Mapping[str, Any], path: Path, part: str, faulty: Faulty, pixels: PixelMoments
) -> Images:
    """Decodes into an array of uint8 [images, 3, size, size]; returns the images that could be, which stand first."""
    size = settings["size"]
    read = partial(_read, size=size, rule=settings["resize"])
    array = create_array(path, (len(images.files), 3, size, size), np.uint8)
    usable, faults = [], []
    groups = [images.files[first : first + IMAGES_AT_ONCE] for first in range(0, len(images.files), IMAGES_AT_ONCE)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for group in track(groups, f"prepare {part}"):
            decoded = list(pool.map(read, group))
            faults += [str(one) for one in decoded if isinstance(one, ValueError)]
            whole = [one for one in decoded if not isinstance(one, ValueError)]
            start = sum(usable)
            if whole:
                array[start : start + len(whole)] = whole
                pixels.add(np.stack(whole))
            usable += [not isinstance(one, ValueError) for one in decoded]
    faulty.judge("undecodable", faults, "cannot be used")
    return images.chosen(usable)


def _read(path: Path, size: int, rule: str) -> np.ndarray | ValueError:
    """Uint8 [3, size, size], or what is wrong with the file."""
    try:
        return np.asarray(resize(decode(path, "RGB"), size, rule)).transpose(2, 0, 1)
    except ValueError as error:
        return error


def resize(image: Image.Image, size: int, rule: str) -> Image.Image:
    """`size` x `size` pixels by a rule of `Settings.resize`; bilinear, antialiased where it shrinks."""
    width, height = image.size
    if rule == "stretch":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    edge = min(width, height) if rule == "crop" else max(width, height)
    scaled = image.resize(
        (max(1, round(width * size / edge)), max(1, round(height * size / edge))), Image.Resampling.BILINEAR
    )
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class Batch:
    """`images` [batch, 3, size, size] of 0 to 255, uint8 or, once augmented, float; `labels` int64 [batch]."""

    images: Tensor
    labels: Tensor


class Faces:
    """The images of one part of the prepared data.

    Attributes:
        files: names within the pack.
        labels: int64 [images], places in the list of identities or of the gallery; -1 is nobody.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any], part: str) -> None:
        self.files: list[str] = index["splits"][part]["files"]
        self.labels = torch.tensor(index["splits"][part]["labels"], dtype=torch.int64)
        self.images = torch.from_numpy(open_array(prepared / f"{part}.npy"))[: len(self.labels)]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        return Batch(self.images[indices].to(device), self.labels[indices].to(device))

    def steps_per_epoch(self, training: FaceTraining) -> int:
        return full_batches(len(self), training)

    def batches(self, training: FaceTraining, generator: torch.Generator) -> list[Tensor]:
        return shuffled_batches(len(self), training, generator)

    def in_order(self) -> list[Tensor]:
        """Every image once, in batches for evaluation."""
        if not len(self):
            return []
        return list(torch.arange(len(self)).split(max(1, EVALUATION_PIXELS // self.images.shape[-1] ** 2)))


class FacesToScore(Faces):
    """The images to classify on test, and what verification takes: the gallery, and the probes of dev and test.

    Attributes:
        buckets: by label of classification, 0, 1 and 2 for Head, Mid and Tail.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any]) -> None:
        super().__init__(prepared, index, "test")
        self.known = Faces(prepared, index, "known")
        self.probes = {split: Faces(prepared, index, f"probes_{split}") for split in PROBE_FOLDERS}
        numbers = {bucket: number for number, bucket in enumerate(("head", "mid", "tail"))}
        self.buckets = np.array([numbers[index["buckets"][name]] for name in index["identities"]])
