"""Reads a pack in the layout of the face pack: its files, their identities, and which of them are unusable."""

import csv
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bbnet.data.files import beside, contents, named, normal_form, stem_of
from bbnet.data.image_folders import Faulty, LabelledFiles, files_by_folder, labelled
from bbnet.data.images import ALLOWED, SUFFIXES, decode, images_in
from bbnet.data.packs import DOWNLOADS, bring, read_pack, refuse_incomplete, spread
from bbnet.tasks.face.settings import Data, RenderedFaces, Weights

logger = logging.getLogger(__name__)
HALVES = ("classification", "verification")
CLASSIFICATION_FOLDERS = {"train": "train", "val": "dev", "test": "test"}
PROBE_FOLDERS = {"dev": "unknown_dev", "test": "unknown_test"}
COMPLETE_PARTS = ("train", "known")  # parts in which every identity must have an image
NOBODY = "n000000"
LABEL = "label"
SEPARATORS = (",", ";", "\t")


def fetch(
    data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS, test_only: bool = False
) -> dict[str, Any]:
    """Renders the embedded pack, or downloads a pack or weights, into `target`, or uses the given path; and checks it.

    All of the pack is needed in any case, because test may be a part of dev.

    Returns the manifest: the names of the pack's two folders or of the weights file, and the entries of `bring`.
    Raises: ValueError naming a folder that is missing or incomplete, weights that do not match the checksum in their
        name, or what cannot be downloaded.
    """
    pack = TypeAdapter(Data | Weights).validate_python(data)
    if isinstance(pack, RenderedFaces):
        # Imported here because training jobs do not need the generator.
        from bbnet.data.synthetic.rendered_faces import write_face_pack

        write_face_pack(target, **pack.model_dump(exclude={"pack"}))
        return {"pack": pack.pack} | _halves(target)
    if isinstance(pack, Weights):
        return {"pack": pack.pack} | _fetch_weights(pack, target, downloads)
    names = [f"*{half}" for half in HALVES]
    root, origin = bring(pack.pack, pack.path, target, downloads, complete=pack.complete, holding=names)
    halves = _halves(root)
    if pack.complete:
        _check_complete(root, halves, read_pack(pack.pack).counts)
    return {"pack": pack.pack} | halves | origin


def _fetch_weights(pack: Weights, target: Path, downloads: Path) -> dict[str, Any]:
    if pack.path is not None:
        path = Path(pack.path).absolute()
        check_weights(path)
        return {"root": str(path.parent), "file": path.name}
    _, origin = bring(pack.pack, None, target, downloads)
    (file,) = origin["files"]
    return {"file": file} | origin


def _check_complete(root: Path, halves: Mapping[str, str], published: Mapping[str, int]) -> None:
    classification, verification = (root / halves[half] for half in HALVES)
    folders = {"train": named(classification, "train")}
    folders |= {name: named(verification, name) for name in ("known", *PROBE_FOLDERS.values())}
    for folder in folders.values():
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    by_identity = {name: _images_by_folder(folders[name]) for name in COMPLETE_PARTS}
    unknown_people = sorted(set(_images_by_folder(named(classification, "dev"))) - set(by_identity["train"]))
    refuse_incomplete(
        folders["train"], len(by_identity["train"]), published["identities"], "identities", unknown_people
    )
    for name, folder in folders.items():
        found = list(chain(*by_identity[name].values())) if name in by_identity else images_in(folder)[0]
        refuse_incomplete(folder, len(found), published[name], "images", _missing_probes(verification, name, found))
        for image in spread(found):
            decode(image, "RGB")


def _missing_probes(home: Path, folder: str, found: Sequence[Path]) -> list[str]:
    """Returns the images that are named in the label file of a folder of probes but do not exist."""
    split = next((split for split, probes in PROBE_FOLDERS.items() if probes == folder), None)
    if split is None or not _label_file(home, split).is_file():
        return []
    _, rows = _read_labels(_label_file(home, split))
    values = {value for _, row in rows for column, value in row.items() if column != LABEL}
    existing = {_join_key(file.name) for file in found}
    return sorted(one for one in values if Path(one).suffix.lower() in SUFFIXES and _join_key(one) not in existing)


def _images_by_folder(home: Path) -> dict[str, list[Path]]:
    return {folder.name: images_in(folder)[0] for folder in contents(home)[1]}


def check_weights(path: Path) -> None:
    """Raises ValueError unless the SHA-256 of the file begins with the digits at the end of the file's name."""
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
    """Returns the name of the folder that ends in `classification`, and of the one that ends in `verification`."""
    found = {}
    for half, needed in zip(HALVES, (("train", "dev"), ("known", "unknown_dev")), strict=True):
        folders = [path for path in contents(root)[1] if path.name.casefold().endswith(half)]
        if len(folders) != 1:
            several = ", ".join(path.name for path in folders) or "none"
            raise ValueError(f"{root}: needs exactly one folder whose name ends in {half}, found {several}")
        for name in needed:
            if not named(folders[0], name).is_dir():
                raise ValueError(f"{folders[0] / name}: no such folder")
        found[half] = folders[0].name
    return found


def read_classification(home: Path, faulty: Faulty) -> tuple[dict[str, LabelledFiles], list[str], list[str]]:
    """Returns the images of train, val and test, the identities, and `["classification"]` if dev was divided."""
    folders = {split: named(home, name) for split, name in CLASSIFICATION_FOLDERS.items()}
    found = {split: _by_identity(folder, faulty, flat=split == "test") for split, folder in folders.items()}
    faulty.leave_out(
        home,
        beside(home, filter(Path.is_dir, folders.values())),
        f"{{{','.join(CLASSIFICATION_FOLDERS.values())}}}/*/*",
    )
    identities = sorted(found["train"])
    if not identities:
        raise ValueError(f"{folders['train']}: has no identities; allowed are {{identity}}/* of {ALLOWED}")
    parts = {}
    for split, folder in folders.items():
        unknown = sorted(set(found[split]) - set(identities))
        if unknown:
            raise ValueError(f"{folder / unknown[0]}: no such identity in {folders['train']}")
        parts[split] = labelled(found[split], identities)
    if parts["test"].files:
        return parts, identities, []
    logger.info("%s has no identities: every second image of dev is used for test", folders["test"])
    parts["val"], parts["test"] = _every_second(parts["val"])
    if not parts["test"].files:
        raise ValueError(f"{folders['val']}: has a single image, which cannot be divided into dev and test")
    return parts, identities, ["classification"]


def _by_identity(folder: Path, faulty: Faulty, flat: bool = False) -> dict[str, list[Path]]:
    """Returns the images of each identity (subfolder); none if `folder` is missing."""
    return files_by_folder(folder, faulty, "identity", "identities", flat=flat)


def _every_second(images: LabelledFiles) -> tuple[LabelledFiles, LabelledFiles]:
    """Returns the first, third, ... image, in the order of identities and names, and the other images."""
    first = [False] * len(images.labels)
    for place, image in enumerate(sorted(range(len(images.labels)), key=images.labels.__getitem__)):
        first[image] = place % 2 == 0
    return images.chosen(first), images.chosen([not one for one in first])


def read_verification(
    home: Path, faulty: Faulty
) -> tuple[LabelledFiles, dict[str, LabelledFiles], list[str], list[str]]:
    """Returns the gallery, the probes, the gallery's identities, and `["verification"]` if dev was divided."""
    home_of_known = named(home, "known")
    by_identity = _by_identity(home_of_known, faulty)
    if NOBODY in by_identity:
        raise ValueError(f"{home_of_known / NOBODY}: this name is reserved for probes of nobody in the gallery")
    gallery = sorted(by_identity)
    known = labelled(by_identity, gallery)
    if not gallery:
        logger.warning("%s is empty: nobody can be identified", home_of_known)
    splits = [split for split in PROBE_FOLDERS if split == "dev" or _label_file(home, split).is_file()]
    probes = {split: _probes(home, split, gallery, faulty) for split in splits}
    folders = [home_of_known, *(named(home, PROBE_FOLDERS[split]) for split in splits)]
    read = "known/*/*, and unknown_{dev,test}/* with the labels verification_{dev,test}.csv"
    faulty.leave_out(home, beside(home, [*folders, *(_label_file(home, split) for split in splits)]), read)
    if "test" in probes:
        return known, probes, gallery, []
    logger.info("%s does not exist: every second probe of dev is used for test", _label_file(home, "test"))
    dev, test = _every_second(probes["dev"])
    return known, {"dev": dev, "test": test}, gallery, ["verification"]


def _label_file(home: Path, split: str) -> Path:
    return named(home, f"verification_{split}.csv")


def _probes(home: Path, split: str, gallery: Sequence[str], faulty: Faulty) -> LabelledFiles:
    """Returns the probes of a split, ordered by file name, with the index of each one's identity in the gallery.

    The rows of the label file are matched to images by file name, with or without folder and suffix, in any column.
    Names that consist of digits are compared as numbers.
    """
    path, folder = _label_file(home, split), named(home, PROBE_FOLDERS[split])
    columns, rows = _read_labels(path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    images, unread = images_in(folder)
    faulty.leave_out(folder, unread, f"* of {ALLOWED}")
    files = {}
    for file in images:
        if _join_key(file.name) in files:
            raise ValueError(f"{file}: its name, without the suffix, equals that of {files[_join_key(file.name)].name}")
        files[_join_key(file.name)] = file
    names = _column_of_names(path, columns, rows, files)
    place = {name: number for number, name in enumerate(gallery)} | {NOBODY: -1}
    labels = {}
    for line, row in rows:
        key = _join_key(row[names])
        if key not in files:
            stem = normal_form(Path(row[names]).stem)
            instead = [file.name for file in unread if normal_form(file.stem) == stem]
            unreadable = f" ({instead[0]} is not of a format that is read; allowed are {ALLOWED})" if instead else ""
            raise ValueError(f"{path}, line {line}: there is no image {row[names]} in {folder}{unreadable}")
        if key in labels:
            raise ValueError(f"{path}, line {line}: image {row[names]} is given twice")
        identity = normal_form(row[LABEL])
        if identity not in place:
            raise ValueError(
                f"{path}, line {line}: identity {identity} is neither in {named(home, 'known')} nor {NOBODY}"
            )
        labels[key] = place[identity]
    unnamed = sorted(set(files) - set(labels))
    if unnamed:
        raise ValueError(f"{files[unnamed[0]]}: has no row in {path} ({len(unnamed)} of {len(files)} have none)")
    order = sorted(files, key=lambda key: normal_form(stem_of(files[key])))
    return LabelledFiles([files[key] for key in order], [labels[key] for key in order])


def _read_labels(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Returns the columns, and the rows with the number of the line at which each ends."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            before, start, header = 0, 0, file.readline()
            while header and (not header.strip() or header.lower().startswith("sep=")):  # as Excel may begin a table
                before, start, header = before + 1, file.tell(), file.readline()
            separator = _separator(header)
            file.seek(start)
            reader = csv.DictReader(file, restval="", delimiter=separator)
            columns = reader.fieldnames = [column.strip() for column in reader.fieldnames or []]
            rows = [
                (before + reader.line_num, {key: row[key].strip() for key in row if key is not None}) for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a table in UTF-8 ({error})") from None
    missing = f"column {LABEL}" if LABEL not in columns else "column that names images"
    if LABEL not in columns or not set(columns) - {LABEL}:
        found = ", ".join(columns) or "no columns"
        raise ValueError(f"{path}: has no {missing}; it has {found} (columns may be separated by comma, ; or tab)")
    return columns, rows


def _separator(header: str) -> str:
    """Returns what separates the columns: that by which the header has a column of labels, and most columns."""

    def columns(separator: str) -> tuple[bool, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        return LABEL in names, len(names)

    return max(SEPARATORS, key=columns)


def _column_of_names(
    path: Path, columns: Sequence[str], rows: Sequence[tuple[int, Mapping[str, str]]], files: Mapping[str, Path]
) -> str:
    """Returns the column, except `label`, that names most images: by exact spelling or, for ties, by `_join_key`."""
    spelled = {normal_form(spelling) for file in files.values() for spelling in (file.name, file.stem)}

    def matches(column: str) -> tuple[int, int]:
        values = {normal_form(re.split(r"[/\\]", row[column])[-1]) for _, row in rows}
        return len(values & spelled), len({_join_key(value) for value in values} & set(files))

    best = max((column for column in columns if column != LABEL), key=matches)
    if rows and files and not any(matches(best)):
        raise ValueError(f"{path}: no column names images of {path.parent}; found {', '.join(columns)}")
    return best


def _join_key(name: str) -> str:
    stem = re.split(r"[/\\]", name)[-1]
    stem = Path(stem).stem if Path(stem).suffix.lower() in SUFFIXES else stem
    return str(int(stem)) if re.fullmatch("[0-9]+", stem) else normal_form(stem)
