"""Reads folders of images whose names are their labels, and writes images resized to arrays."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bbnet.data.files import contents, normal_form, warn_of_unread
from bbnet.data.images import ALLOWED, PixelMoments, decode, images_in, told_apart
from bbnet.data.progress import track
from bbnet.data.store import create_array, whole_file

logger = logging.getLogger(__name__)
NAMED_IN_ERRORS = 3
IMAGES_AT_ONCE = 256
LONGEST_SCALED = 4  # largest ratio of the edges of an image that is scaled
PROGRESS = ".progress"
GREY = 128  # around a letterboxed image


@dataclass
class Faulty:
    """Handles unusable files by the rule of their kind: refuse or skip.

    `skipped` lists the skipped ones by kind, by their names relative to the folder of the pack, `root`.
    """

    rules: Any
    root: Path
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def judge(self, kind: str, found: Sequence[str], what: str) -> None:
        """Raises ValueError naming the first files if their kind is refused; otherwise adds them to `skipped`."""
        if not found:
            return
        first = "; ".join(found[:NAMED_IN_ERRORS])
        others = f"; and {len(found) - NAMED_IN_ERRORS} more" if len(found) > NAMED_IN_ERRORS else ""
        if getattr(self.rules, kind) != "skip":
            raise ValueError(f"{first}{others}: {what} (faults.{kind}: skip omits such files)")
        logger.info("%d skipped (faults.%s), %s: %s%s", len(found), kind, what, first, others)
        self.skipped.setdefault(kind, []).extend(one.removeprefix(f"{self.root}/") for one in found)

    def leave_out(self, folder: Path, unread: Sequence[Path], read: str) -> None:
        """Adds the files in `folder` that are not read to `skipped` and warns of them, naming what is `read`."""
        warn_of_unread(folder, unread, read)
        if unread:
            self.skipped.setdefault("not_read", []).extend(str(file.relative_to(self.root)) for file in unread)


@dataclass(frozen=True)
class LabelledFiles:
    """Image files, with the index of each one's label in a list of names, or -1 for none of them."""

    files: list[Path]
    labels: list[int]

    def chosen(self, keep: Sequence[bool]) -> "LabelledFiles":
        return LabelledFiles(list(compress(self.files, keep)), list(compress(self.labels, keep)))


def files_by_folder(folder: Path, faulty: Faulty, one: str, many: str, *, flat: bool = False) -> dict[str, list[Path]]:
    """Returns the images in each subfolder, in composed Unicode, and ordered by name; none if `folder` is missing.

    Args:
        one, many: what a subfolder stands for, such as identity and identities; `empty_{one}` is a kind of fault.
        flat: whether the folder may have images but no subfolders; these are left out.
    Raises: ValueError naming an image beside the subfolders, two subfolders of one name, or one without images.
    """
    if not folder.is_dir():
        return {}
    files, folders = contents(folder)
    beside, unread = told_apart(files)
    if folders and beside:
        raise ValueError(f"{beside[0]}: is not in the folder of {_a(one)}")
    if beside and not flat:
        raise ValueError(f"{folder}: has images but no folders of {many}")
    unread += beside
    found, empty, unreadable = {}, [], []
    names: set[str] = set()
    for labelled in folders:
        name = normal_form(labelled.name)
        if name in names:
            raise ValueError(
                f"{labelled}: another folder has the same name, with its accents stored in another way; "
                "move the images of both into one"
            )
        names.add(name)
        images, others = images_in(labelled)
        unread += others
        if images:
            found[name] = images
        elif others:
            unreadable.append(f"{labelled}: {others[0].relative_to(labelled)}, 1 of {len(others)} files")
        else:
            empty.append(str(labelled))
    faulty.judge(f"empty_{one}", empty, f"{_a(one)}'s folder without images")
    what = f"none of {_a(one)}'s files is read; allowed are images directly in its folder, of {ALLOWED}"
    faulty.judge(f"empty_{one}", unreadable, what)
    faulty.leave_out(folder, unread, f"{{{one}}}/* of {ALLOWED}")
    return found


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def labelled(by_name: Mapping[str, Sequence[Path]], names: Sequence[str]) -> LabelledFiles:
    """Returns the files of all names, whose labels are the places of their names in `names`."""
    place = {name: number for number, name in enumerate(names)}
    rows = [(file, place[name]) for name, files in sorted(by_name.items()) for file in files]
    return LabelledFiles([file for file, _ in rows], [label for _, label in rows])


def write_images(
    images: LabelledFiles, size: int, rule: str, path: Path, faulty: Faulty, pixels: PixelMoments
) -> tuple[LabelledFiles, list[list[str]]]:
    """Writes the images to `path`, uint8 [images, 3, size, size], the decodable ones first, and adds them to `pixels`.

    A call that is interrupted leaves `path` and, beside it, a file that says what is done. The next call resumes from
    them, unless image files have changed since. When all arrays are written, `remove_progress` removes these files.

    Returns the decodable ones, and the conversions of each of them.
    """
    groups = [images.files[first : first + IMAGES_AT_ONCE] for first in range(0, len(images.files), IMAGES_AT_ONCE)]
    shape = (len(images.files), 3, size, size)
    progress = path.with_suffix(PROGRESS)
    entries = _done(progress, groups) if _has_shape(path, shape) else []
    array = np.load(path, mmap_mode="r+") if entries else create_array(path, shape, np.uint8)
    with whole_file(progress) as partial_file:
        partial_file.write_text("".join(map(_line, entries)), encoding="utf-8")
    done, start = len(entries), sum(sum(entry["usable"]) for entry in entries)
    read = partial(_read, size=size, rule=rule)
    with progress.open("a", encoding="utf-8") as log, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for group in track(groups[done:], f"prepare {path.stem}", size=len):
            decoded = list(pool.map(read, group))
            pictures = [one[0] for one in decoded if not isinstance(one, ValueError)]
            moments = PixelMoments()
            if pictures:
                array[start : start + len(pictures)] = pictures
                moments.add(np.stack(pictures))
                array.flush()
            start += len(pictures)
            entries.append(
                {
                    "files": _state(group),
                    "usable": [not isinstance(one, ValueError) for one in decoded],
                    "faults": [str(one) for one in decoded if isinstance(one, ValueError)],
                    "conversions": [one[1] for one in decoded if not isinstance(one, ValueError)],
                    "pixels": moments.sums(),
                }
            )
            log.write(_line(entries[-1]))
            log.flush()
    for entry in entries:
        pixels.add_sums(*entry["pixels"])
    faulty.judge("undecodable", [fault for entry in entries for fault in entry["faults"]], "cannot be used")
    usable = [one for entry in entries for one in entry["usable"]]
    return images.chosen(usable), [kinds for entry in entries for kinds in entry["conversions"]]


def remove_progress(folder: Path) -> None:
    """Removes what `write_images` left beside the arrays in a folder."""
    for file in folder.glob(f"*{PROGRESS}"):
        file.unlink()


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _done(progress: Path, groups: Sequence[Sequence[Path]]) -> list[dict[str, Any]]:
    """Returns what an interrupted call wrote of the first groups, up to the first whose files have changed."""
    entries = []
    lines = progress.read_text(encoding="utf-8").splitlines() if progress.exists() else []
    for line, group in zip(lines, groups, strict=False):
        try:
            entry = json.loads(line)
        except ValueError:  # the line that was being written
            break
        if entry["files"] != _state(group):
            break
        entries.append(entry)
    return entries


def _has_shape(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError, EOFError):  # there is none, or it was being created
        return False


def _state(files: Sequence[Path]) -> str:
    """Returns a hash of the names, sizes and times of files."""
    rows = []
    for file in files:
        try:
            stat = file.stat()
            rows.append([str(file), stat.st_size, stat.st_mtime_ns])
        except OSError:
            rows.append([str(file)])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _read(path: Path, size: int, rule: str) -> tuple[np.ndarray, list[str]] | ValueError:
    """Returns the image, uint8 [3, size, size], and its conversions, or the error of a file that cannot be decoded."""
    try:
        image, conversions = decode(path, "RGB")
    except ValueError as error:
        return error
    return np.asarray(resize(image, size, rule)).transpose(2, 0, 1), conversions


def resize(image: Image.Image, size: int, rule: str) -> Image.Image:
    """Resizes to `size` x `size` pixels: bilinear, with antialiasing when shrinking.

    Args:
        rule: `stretch`; `crop` scales the shorter edge to `size` and crops; `pad` scales the longer edge and pads with
            black, `letterbox` with grey.
    """
    width, height = image.size
    if rule == "stretch":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    edge = min(width, height) if rule == "crop" else max(width, height)
    if rule == "crop" and max(width, height) > LONGEST_SCALED * edge:  # scaling a narrow strip would exhaust memory
        image = _centred(image, min(width, LONGEST_SCALED * edge), min(height, LONGEST_SCALED * edge))
    scaled = image.resize(
        (max(1, round(image.width * size / edge)), max(1, round(image.height * size / edge))), Image.Resampling.BILINEAR
    )
    if rule == "letterbox":
        grey = Image.new("RGB", (size, size), (GREY, GREY, GREY))
        grey.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
        return grey
    return _centred(scaled, size, size)


def letterboxed(sizes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factors [images, 2] and shifts [images, 2], in pixels, by which `letterbox` of `resize` moves points.

    Args:
        sizes: width and height of each image, int [images, 2].
    """
    scaled = np.maximum(1, np.rint(sizes * size / sizes.max(1, keepdims=True)))
    return scaled / sizes, (size - scaled) // 2


def _centred(image: Image.Image, width: int, height: int) -> Image.Image:
    """Crops the image about its centre, or pads it with black on both sides."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
