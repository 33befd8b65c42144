"""Lists the files of a pack. Hidden files and the litter of systems and file servers count as not there."""

import hashlib
import json
import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)
NAMED = 3
MOST_FILES = 100_000  # in a folder whose files are looked at one by one, which takes less than a second
ICON_OF_MACOS = "Icon\r"
LITTER = {
    name.casefold()
    for name in (
        *("__MACOSX", ICON_OF_MACOS),
        *("Thumbs.db", "ehthumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information"),  # Windows
        *("@eaDir", "#recycle", "#snapshot", "@Recycle"),  # file servers of Synology and QNAP
        "lost+found",  # Linux
    )
}


def is_litter(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden or litter, which no pack contains."""
    return name.startswith(".") or name.casefold() in LITTER


def normal_form(name: str) -> str:
    """Returns the composed form of a name, by which names compare: a Mac stores the letter é as e and an accent."""
    return unicodedata.normalize("NFC", name)


def stem_of(path: Path) -> str:
    """Returns a name without its suffix; digits behind a dot, as in a date, are none."""
    return path.name if path.suffix[1:].isdigit() else path.stem


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files and the folders in `folder`, each ordered by stem, without litter.

    Raises: ValueError for a name that is not UTF-8, which cannot be written to tables.
    """
    with os.scandir(folder) as entries:
        visible = [(folder / entry.name, entry.is_dir()) for entry in entries if not is_litter(entry.name)]
    for path, _ in visible:
        if not is_utf8(path.name):
            raise ValueError(f"{ascii(str(path))}: its name is not UTF-8; rename it")
    visible.sort(key=lambda entry: (normal_form(stem_of(entry[0])), normal_form(entry[0].name)))
    return [path for path, is_folder in visible if not is_folder], [path for path, is_folder in visible if is_folder]


def named(folder: Path, name: str) -> Path:
    """Returns the file or folder `name` in `folder`, whatever the case of its letters; it need not exist.

    Raises: ValueError naming two whose names differ in nothing but the case.
    """
    found = [path for kind in contents(folder) for path in kind if path.name.casefold() == name.casefold()]
    if len(found) > 1:
        found.sort()
        raise ValueError(
            f"{found[1]}: its name equals that of {found[0].name} but for capitals; remove or rename one of them"
        )
    return found[0] if found else folder / name


def beside(folder: Path, read: Iterable[Path]) -> list[Path]:
    """Returns all files in `folder`, at any depth, but those in `read`, which are files and folders in it."""
    files, folders = contents(folder)
    read = set(read)
    return [file for file in files if file not in read] + files_below(inner for inner in folders if inner not in read)


def files_below(folders: Iterable[Path]) -> list[Path]:
    """Returns the files in `folders` at any depth, without litter; links to folders further down are not followed."""
    found = []
    for folder in folders:
        for home, inner, names in os.walk(folder):
            inner[:] = sorted(name for name in inner if not is_litter(name))
            found += [Path(home, name) for name in sorted(names) if not is_litter(name)]
    return found


def state_of(path: Path) -> str | None:
    """Returns a hash by which a change of a file or folder is seen without reading it; None if it does not exist.

    It is made of the names, sizes and times of all files but litter or, beyond `MOST_FILES`, of the names and times of
    the folders, which change when files are added, removed or renamed.

    Raises: OSError if a folder cannot be read.
    """
    if not path.is_dir():
        return _hash([["", *_size_and_time(path.stat())]]) if path.exists() else None
    files, folders, seen = [], [], set()
    to_visit = [("", path)]
    while to_visit:
        name, folder = to_visit.pop()
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder above or beside it
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.append([name, stat.st_mtime_ns])
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                inner = f"{name}/{entry.name}"
                if entry.is_dir():
                    to_visit.append((inner, folder / entry.name))
                elif len(files) <= MOST_FILES:
                    files.append([inner, *_size_and_time(entry.stat(follow_symlinks=_leads_somewhere(entry)))])
    return _hash(files if len(files) <= MOST_FILES else folders)


def _leads_somewhere(entry: os.DirEntry) -> bool:
    return not entry.is_symlink() or os.path.exists(entry)


def _size_and_time(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _hash(rows: list) -> str:
    # Names as the bytes that they are on the disk, which text in another locale is not.
    raw = sorted([os.fsencode(name).decode("latin-1"), *rest] for name, *rest in rows)
    return hashlib.sha256(json.dumps(raw).encode()).hexdigest()[:16]


def by_stem(files: Sequence[Path]) -> dict[str, Path]:
    """Returns the files of a folder by their names without the suffix; raises ValueError naming two of one stem."""
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(normal_form(stem_of(file)), file)
        if other is not file:
            raise ValueError(f"{file}: its name without the suffix equals that of {other.name}; remove one of them")
    return found


def warn_of_unread(folder: Path, unread: Sequence[Path], read: str) -> None:
    """Logs how many files in `folder` are left out, the first of them, and what is read."""
    if unread:
        named = ", ".join(str(path.relative_to(folder)) for path in unread[:NAMED])
        others = f" and {len(unread) - NAMED} more" if len(unread) > NAMED else ""
        logger.warning(
            "%s: files that are not read: %d: %s%s; what is read: %s", folder, len(unread), named, others, read
        )
