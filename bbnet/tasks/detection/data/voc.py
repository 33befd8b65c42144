"""Reads the lists and annotations of a pack in the layout of VOC: the folders VOC2007 and, where it exists, VOC2012."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from bbnet.data.files import beside, by_stem, contents, normal_form
from bbnet.data.image_folders import Faulty
from bbnet.data.images import ALLOWED, images_in, upright_size

YEARS = {"trainval": ("VOC2007", "VOC2012"), "test": ("VOC2007",)}
IMAGES, ANNOTATIONS, LISTS = "JPEGImages", "Annotations", Path("ImageSets", "Main")
LAYOUT = ("VOC2007",)
CORNERS = ("xmin", "ymin", "xmax", "ymax")
TOLERANCE = 1.0  # pixels by which a box may leave the image


@dataclass(frozen=True)
class Listed:
    """An image of a list: its name, its file (None if there is none), and its annotation, which may not exist."""

    name: str
    image: Path | None
    annotation: Path


@dataclass(frozen=True)
class Annotated:
    """An image with its objects.

    Attributes:
        size: width and height in pixels, after it was turned upright.
        boxes: float32 [objects, 4], left, top, right and bottom in pixels, counted from 0 at the edges of the image.
        labels: int64 [objects].
        difficult: bool [objects].
    """

    image: Path
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def read_lists(root: Path, names: Iterable[str] = YEARS) -> dict[str, list[Listed]]:
    """Returns the images of trainval and of test, or of the lists in `names`, in the order of each year's list.

    Raises: ValueError naming a folder or list that is missing, or an image that is listed twice.
    """
    found: dict[str, list[Listed]] = {}
    files: dict[str, tuple[dict[str, Path], dict[str, Path]]] = {}
    for name in names:
        years = YEARS[name]
        there = [year for year in years if year == years[0] or (root / year).is_dir()]
        for year in there:
            files[year] = files.get(year) or _files_of(root / year)
        found[name] = [one for year in there for one in _read_list(root / year, name, *files[year])]
        if not found[name]:
            raise ValueError(f"{root / years[0] / LISTS / name}.txt: lists no image")
    return found


def _files_of(home: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns the images and the annotations of a year, by their names without the suffix."""
    for folder in (IMAGES, ANNOTATIONS, LISTS):
        if not (home / folder).is_dir():
            raise ValueError(f"{home / folder}: no such folder; a pack in the layout of VOC has it")
    annotations = [file for file in contents(home / ANNOTATIONS)[0] if file.suffix.lower() == ".xml"]
    return by_stem(images_in(home / IMAGES)[0]), by_stem(annotations)


def _read_list(home: Path, name: str, images: Mapping[str, Path], annotations: Mapping[str, Path]) -> list[Listed]:
    path = home / LISTS / f"{name}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a list in UTF-8 ({error})") from None
    found: dict[str, Listed] = {}
    for line in filter(None, map(str.strip, lines)):
        stem = normal_form(line)
        if stem in found:
            raise ValueError(f"{path}: lists {line} twice")
        annotation = annotations.get(stem, home / ANNOTATIONS / f"{line}.xml")
        found[stem] = Listed(f"{home.name}/{line}", images.get(stem), annotation)
    return list(found.values())


def unread(root: Path, lists: Mapping[str, Sequence[Listed]]) -> list[Path]:
    """Returns the files of the pack that no list names and that are no lists of its layout."""
    read = [file for listed in lists.values() for one in listed for file in (one.image, one.annotation) if file]
    homes = [root / year for year in YEARS["trainval"] if (root / year).is_dir()]
    inner = [home / folder for home in homes for folder in (IMAGES, ANNOTATIONS)]
    others = beside(root, homes)
    for home in homes:
        others += beside(home, [*inner, home / "ImageSets"])
    return others + [file for folder in inner for file in beside(folder, read)]


def annotated(root: Path, listed: Sequence[Listed], classes: Sequence[str], faulty: Faulty) -> list[Annotated]:
    """Returns the images of a list with their objects; what is unusable is refused or omitted by the rule of its kind.

    Raises: ValueError naming the file, and for an object its number in the file, if the rule of its kind is `refuse`.
    """
    faults: dict[str, list[str]] = {kind: [] for kind in WHAT}
    found = []
    for one in listed:
        if one.image is None:
            faults["missing_image"].append(str(root / one.name.replace("/", f"/{IMAGES}/", 1)) + ".jpg")
            continue
        try:
            size = upright_size(one.image)
        except ValueError as error:
            faults["undecodable"].append(str(error))
            continue
        try:
            found.append(_read_annotation(one, size, classes, faults))
        except ValueError as error:
            faults["annotation"].append(f"{one.annotation}: {error}")
    for kind, what in WHAT.items():
        faulty.judge(kind, faults[kind], what)
    return found


WHAT = {
    "missing_image": f"listed, but there is no such image; allowed are {ALLOWED}",
    "undecodable": "cannot be used",
    "annotation": "cannot be used as an annotation",
    "unknown_class": "not a class of the pack",
    "empty_box": "box without area",
    "outside_box": "box outside of the image",
}


def _read_annotation(
    one: Listed, size: tuple[int, int], classes: Sequence[str], faults: Mapping[str, list[str]]
) -> Annotated:
    """Returns an image with its objects, and adds those that are unusable to `faults`.

    Raises: ValueError for a file that cannot be read, or that is of an image of another size.
    """
    root = _parsed(one.annotation)
    of_size = root.find("size")
    stated = size if of_size is None else tuple(_number(of_size, name) for name in ("width", "height"))
    if stated != size:
        raise ValueError(f"it is of an image of {_shown(stated)} pixels, but {one.image.name} has {_shown(size)}")
    rows = []
    for number, node in enumerate(root.findall("object"), start=1):
        place = f"{one.annotation}, object {number}"
        name = (node.findtext("name") or "").strip()
        # Pixels are counted from 1, and xmax and ymax belong to the box.
        left, top, right, bottom = (_number(node.find("bndbox"), corner) for corner in CORNERS)
        box = np.array([left - 1, top - 1, right, bottom])
        inside = np.clip(box, 0, [*size, *size])
        corners = f"from {left:g}, {top:g} to {right:g}, {bottom:g}"
        outside = max(-box[:2].min(), (box[2:] - size).max())
        if name not in classes:
            faults["unknown_class"].append(f"{place}: {name or 'no name'}")
        elif right < left or bottom < top:
            faults["empty_box"].append(f"{place}: {corners}")
        elif outside > TOLERANCE or (inside[2:] <= inside[:2]).any():
            faults["outside_box"].append(f"{place}: {corners} in {_shown(size)} pixels")
        else:
            difficult = (node.findtext("difficult") or "0").strip()
            if difficult not in ("0", "1"):
                raise ValueError(f"object {number}: difficult is {difficult}; allowed are 0 and 1")
            rows.append((inside, classes.index(name), difficult == "1"))
    boxes, labels, difficult = zip(*rows, strict=True) if rows else ((), (), ())
    return Annotated(
        one.image,
        size,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(difficult, bool),
    )


def _parsed(path: Path) -> ElementTree.Element:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror) from None
    if b"<!ENTITY" in content:
        raise ValueError("it defines entities, which no annotation needs")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two by an unknown encoding
        raise ValueError(f"it is not valid XML ({error})") from None


def _number(node: ElementTree.Element | None, name: str) -> float:
    """Returns the number in a child of a node; raises ValueError if there is none."""
    text = None if node is None else node.findtext(name)
    try:
        number = float(text or "")
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"{name} is {'missing' if text is None else repr(text)}; needed is a number")
    return number


def _shown(size: Sequence[float]) -> str:
    return " x ".join(f"{edge:g}" for edge in size)
