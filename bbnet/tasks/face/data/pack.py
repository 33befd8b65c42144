"""A pack in the face pack's layout: what lies where, who is who, and what cannot be used."""

import csv
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch.hub import download_url_to_file

from bbnet.data.images import SUFFIXES
from bbnet.tasks.face.settings import Data, FaceFolder, Faults, Weights

logger = logging.getLogger(__name__)
HALVES = ("classification", "verification")
CLASSIFICATION_FOLDERS = {"train": "train", "val": "dev", "test": "test"}
PROBE_FOLDERS = {"dev": "unknown_dev", "test": "unknown_test"}
NOBODY = "n000000"
LABEL = "label"
NAMED_IN_ERRORS = 3


def fetch(data: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """Renders the embedded pack or downloads weights into `target`, or takes what is named; checks what is there.

    Returns the manifest: `root` where the pack lies elsewhere; the names of its two folders, or the file of weights.
    Raises: ValueError naming a folder that is missing, or weights whose content is not what their name says.
    """
    pack = TypeAdapter(Data | Weights).validate_python(data)
    if isinstance(pack, Weights) and pack.path is not None:
        path = Path(pack.path).expanduser().absolute()
        check_weights(path)
        return {"pack": pack.pack, "root": str(path.parent), "file": path.name}
    if isinstance(pack, Weights):
        return {"pack": pack.pack, "file": _download_weights(pack.url, target).name}
    if isinstance(pack, FaceFolder):
        root = Path(pack.path).expanduser().absolute()
        return {"pack": pack.pack, "root": str(root)} | _halves(root)
    from bbnet.data.synthetic.rendered_faces import write_face_pack  # late: no training job renders

    write_face_pack(target, **pack.model_dump(exclude={"pack"}))
    return {"pack": pack.pack} | _halves(target)


def _download_weights(url: str | None, target: Path) -> Path:
    """The file in `target`, checked; raises ValueError naming the address that does not give it."""
    if url is None:
        from torchvision.models import ResNet101_Weights  # late: importing it takes seconds

        url = ResNet101_Weights.IMAGENET1K_V1.url
    path = target / url.rsplit("/", 1)[1]
    try:
        download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise ValueError(f"{url}: cannot be downloaded ({error})") from None
    check_weights(path)
    return path


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


def read_classification(home: Path, faulty: Faulty) -> tuple[dict[str, Images], list[str], list[str]]:
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
    logger.info("%s has no identities: every second image of dev is taken for test", home / "test")
    parts["val"], parts["test"] = _every_second(parts["val"])
    if not parts["test"].files:
        raise ValueError(f"{home / 'dev'}: holds a single image, which cannot be divided into dev and test")
    return parts, identities, ["classification"]


def _by_identity(folder: Path, faulty: Faulty) -> dict[str, list[Path]]:
    """Images by the name of the folder that they lie in; none in a missing folder, or in a test without such."""
    if not folder.is_dir():
        return {}
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if folders and _images_in(folder):
        raise ValueError(f"{_images_in(folder)[0]}: lies beside folders of identities, in none of them")
    if not folders and _images_in(folder) and folder.name != CLASSIFICATION_FOLDERS["test"]:
        raise ValueError(f"{folder}: holds images but no folders of identities")
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
    """The first, third, ... of all images in the order of identities and names, and the others."""
    first = [False] * len(images.labels)
    for place, image in enumerate(sorted(range(len(images.labels)), key=lambda one: (images.labels[one], one))):
        first[image] = place % 2 == 0
    return images.chosen(first), images.chosen([not one for one in first])


def read_verification(home: Path, faulty: Faulty) -> tuple[Images, dict[str, Images], list[str], list[str]]:
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
    logger.info("there is no %s: every second probe of dev is taken for test", _label_file(home, "test"))
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
    if LABEL not in columns or not set(columns) - {LABEL}:
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
