"""Reads a pack in the layout of the face pack: its files, their identities, and which of them are unusable."""

import csv
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bbnet.data.files import contents, normal_form, stem_of, warn_of_unread
from bbnet.data.images import ALLOWED, SUFFIXES, decode, images_in, told_apart
from bbnet.data.packs import DOWNLOADS, bring, read_pack, refuse_incomplete, spread
from bbnet.tasks.face.settings import Data, Faults, RenderedFaces, Weights

logger = logging.getLogger(__name__)
HALVES = ("classification", "verification")
CLASSIFICATION_FOLDERS = {"train": "train", "val": "dev", "test": "test"}
PROBE_FOLDERS = {"dev": "unknown_dev", "test": "unknown_test"}
NOBODY = "n000000"
LABEL = "label"
SEPARATORS = (",", ";", "\t")
NAMED_IN_ERRORS = 3


def fetch(data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS) -> dict[str, Any]:
    """Renders the embedded pack, or downloads a pack or weights, into `target`, or uses the given path; and checks it.

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
        path = Path(pack.path).expanduser().absolute()
        check_weights(path)
        return {"root": str(path.parent), "file": path.name}
    _, origin = bring(pack.pack, None, target, downloads)
    (file,) = origin["files"]
    return {"file": file} | origin


def _check_complete(root: Path, halves: Mapping[str, str], published: Mapping[str, int]) -> None:
    classification, verification = (root / halves[half] for half in HALVES)
    train = _images_by_folder(classification / "train")
    unknown_people = sorted(set(_images_by_folder(classification / "dev")) - set(train))
    refuse_incomplete(classification / "train", len(train), published["identities"], "identities", unknown_people)
    for folder in PROBE_FOLDERS.values():
        if not (verification / folder).is_dir():
            raise ValueError(f"{verification / folder}: no such folder")
    images = {
        classification / "train": list(chain(*train.values())),
        verification / "known": list(chain(*_images_by_folder(verification / "known").values())),
        **{verification / name: images_in(verification / name)[0] for name in PROBE_FOLDERS.values()},
    }
    for folder, found in images.items():
        missing = _missing_probes(verification, folder.name, found)
        refuse_incomplete(folder, len(found), published[folder.name], "images", missing)
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
        folders = [path for path in contents(root)[1] if path.name.endswith(half)]
        if len(folders) != 1:
            named = ", ".join(path.name for path in folders) or "none"
            raise ValueError(f"{root}: needs exactly one folder whose name ends in {half}, found {named}")
        for name in needed:
            if not (folders[0] / name).is_dir():
                raise ValueError(f"{folders[0] / name}: no such folder")
        found[half] = folders[0].name
    return found


@dataclass
class Faulty:
    """Handles unusable files by the rule of their kind: refuse or skip. `skipped` lists the skipped ones by kind."""

    rules: Faults
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def judge(self, kind: str, found: Sequence[str], what: str) -> None:
        """Raises ValueError naming the first files if their kind is refused; otherwise adds them to `skipped`."""
        if not found:
            return
        named = "; ".join(found[:NAMED_IN_ERRORS])
        others = f"; and {len(found) - NAMED_IN_ERRORS} more" if len(found) > NAMED_IN_ERRORS else ""
        if getattr(self.rules, kind) != "skip":
            raise ValueError(f"{named}{others}: {what} (faults.{kind}: skip omits such files)")
        logger.info("%d skipped (faults.%s), %s: %s%s", len(found), kind, what, named, others)
        self.skipped.setdefault(kind, []).extend(found)

    def leave_out(self, folder: Path, unread: Sequence[Path], read: str) -> None:
        """Adds the files in `folder` that are not read to `skipped` and warns of them, naming what is `read`."""
        warn_of_unread(folder, unread, f"{read} of {ALLOWED}")
        if unread:
            self.skipped.setdefault("not_read", []).extend(map(str, unread))


@dataclass(frozen=True)
class Images:
    """Image files, with the index of each one's identity in a list of identities, or -1 for nobody."""

    files: list[Path]
    labels: list[int]

    def chosen(self, keep: Sequence[bool]) -> "Images":
        return Images(list(compress(self.files, keep)), list(compress(self.labels, keep)))


def read_classification(home: Path, faulty: Faulty) -> tuple[dict[str, Images], list[str], list[str]]:
    """Returns the images of train, val and test, the identities, and `["classification"]` if dev was divided."""
    found = {split: _by_identity(home / folder, faulty) for split, folder in CLASSIFICATION_FOLDERS.items()}
    identities = sorted(found["train"])
    if not identities:
        raise ValueError(f"{home / 'train'}: has no identities; allowed are {{identity}}/* of {ALLOWED}")
    parts = {}
    for split, folder in CLASSIFICATION_FOLDERS.items():
        unknown = sorted(set(found[split]) - set(identities))
        if unknown:
            raise ValueError(f"{home / folder / unknown[0]}: no such identity in {home / 'train'}")
        parts[split] = _labelled(found[split], identities)
    if parts["test"].files:
        return parts, identities, []
    logger.info("%s has no identities: every second image of dev is used for test", home / "test")
    parts["val"], parts["test"] = _every_second(parts["val"])
    if not parts["test"].files:
        raise ValueError(f"{home / 'dev'}: has a single image, which cannot be divided into dev and test")
    return parts, identities, ["classification"]


def _by_identity(folder: Path, faulty: Faulty) -> dict[str, list[Path]]:
    """Returns the images of each identity (subfolder); none if `folder` is missing or is a test without identities."""
    if not folder.is_dir():
        return {}
    files, folders = contents(folder)
    beside, unread = told_apart(files)
    if folders and beside:
        raise ValueError(f"{beside[0]}: is not in the folder of an identity")
    if beside and folder.name != CLASSIFICATION_FOLDERS["test"]:
        raise ValueError(f"{folder}: has images but no folders of identities")
    found, empty, unreadable = {}, [], []
    names: set[str] = set()
    for identity in folders:
        name = normal_form(identity.name)
        if name in names:
            raise ValueError(
                f"{identity}: another folder has the same name, with its accents stored in another way; "
                "move the images of both into one"
            )
        names.add(name)
        images, others = images_in(identity)
        unread += others
        if images:
            found[name] = images
        elif others:
            unreadable.append(f"{identity}: {others[0].relative_to(identity)}, 1 of {len(others)} files")
        else:
            empty.append(str(identity))
    faulty.judge("empty_identity", empty, "an identity's folder without images")
    what = f"none of an identity's files is read; allowed are images directly in its folder, of {ALLOWED}"
    faulty.judge("empty_identity", unreadable, what)
    faulty.leave_out(folder, unread, "{identity}/*")
    return found


def _labelled(by_identity: Mapping[str, list[Path]], identities: Sequence[str]) -> Images:
    place = {name: number for number, name in enumerate(identities)}
    rows = [(file, place[name]) for name, files in sorted(by_identity.items()) for file in files]
    return Images([file for file, _ in rows], [label for _, label in rows])


def _every_second(images: Images) -> tuple[Images, Images]:
    """Returns the first, third, ... image, in the order of identities and names, and the other images."""
    first = [False] * len(images.labels)
    for place, image in enumerate(sorted(range(len(images.labels)), key=images.labels.__getitem__)):
        first[image] = place % 2 == 0
    return images.chosen(first), images.chosen([not one for one in first])


def read_verification(home: Path, faulty: Faulty) -> tuple[Images, dict[str, Images], list[str], list[str]]:
    """Returns the gallery, the probes, the gallery's identities, and `["verification"]` if dev was divided."""
    by_identity = _by_identity(home / "known", faulty)
    if NOBODY in by_identity:
        raise ValueError(f"{home / 'known' / NOBODY}: this name is reserved for probes of nobody in the gallery")
    gallery = sorted(by_identity)
    known = _labelled(by_identity, gallery)
    if not gallery:
        logger.warning("%s is empty: nobody can be identified", home / "known")
    probes = {"dev": _probes(home, "dev", gallery, faulty)}
    if _label_file(home, "test").is_file():
        return known, probes | {"test": _probes(home, "test", gallery, faulty)}, gallery, []
    logger.info("%s does not exist: every second probe of dev is used for test", _label_file(home, "test"))
    dev, test = _every_second(probes["dev"])
    return known, {"dev": dev, "test": test}, gallery, ["verification"]


def _label_file(home: Path, split: str) -> Path:
    return home / f"verification_{split}.csv"


def _probes(home: Path, split: str, gallery: Sequence[str], faulty: Faulty) -> Images:
    """Returns the probes of a split, ordered by file name, with the index of each one's identity in the gallery.

    The rows of the label file are matched to images by file name, with or without folder and suffix, in any column.
    Names that consist of digits are compared as numbers.
    """
    path, folder = _label_file(home, split), home / PROBE_FOLDERS[split]
    columns, rows = _read_labels(path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    images, unread = images_in(folder)
    faulty.leave_out(folder, unread, "*")
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
            raise ValueError(f"{path}, line {line}: identity {identity} is neither in {home / 'known'} nor {NOBODY}")
        labels[key] = place[identity]
    unnamed = sorted(set(files) - set(labels))
    if unnamed:
        raise ValueError(f"{files[unnamed[0]]}: has no row in {path} ({len(unnamed)} of {len(files)} have none)")
    order = sorted(files, key=lambda key: normal_form(stem_of(files[key])))
    return Images([files[key] for key in order], [labels[key] for key in order])


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

    def named(column: str) -> tuple[int, int]:
        values = {normal_form(re.split(r"[/\\]", row[column])[-1]) for _, row in rows}
        return len(values & spelled), len({_join_key(value) for value in values} & set(files))

    best = max((column for column in columns if column != LABEL), key=named)
    if rows and files and not any(named(best)):
        raise ValueError(f"{path}: no column names images of {path.parent}; found {', '.join(columns)}")
    return best


def _join_key(name: str) -> str:
    stem = re.split(r"[/\\]", name)[-1]
    stem = Path(stem).stem if Path(stem).suffix.lower() in SUFFIXES else stem
    return str(int(stem)) if re.fullmatch("[0-9]+", stem) else normal_form(stem)
