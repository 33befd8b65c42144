"""Lists the files of a pack. Hidden files and the litter of systems and file servers count as not there."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)
NAMED = 3
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


def contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files and the folders in `folder`, each ordered by name, without litter."""
    with os.scandir(folder) as entries:
        visible = [(folder / entry.name, entry.is_dir()) for entry in entries if not is_litter(entry.name)]
    files = sorted(path for path, is_folder in visible if not is_folder)
    return files, sorted(path for path, is_folder in visible if is_folder)


def files_below(folders: Iterable[Path]) -> list[Path]:
    """Returns the files in `folders` at any depth, without litter; links to folders further down are not followed."""
    found = []
    for folder in folders:
        for home, inner, names in os.walk(folder):
            inner[:] = sorted(name for name in inner if not is_litter(name))
            found += [Path(home, name) for name in sorted(names) if not is_litter(name)]
    return found


def by_stem(files: Sequence[Path]) -> dict[str, Path]:
    """Returns the files of a folder by their names without the suffix; raises ValueError naming two of one stem."""
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(file.stem, file)
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
