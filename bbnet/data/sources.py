"""Describes files to download, verifies checksums and records those that are trusted at the first download."""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from bbnet.data.store import whole_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A file to download.

    Args:
        name: name of the file after the download.
        urls: addresses, which are tried in order.
        size: size in bytes, if known.
        algorithm: checksum algorithm, `sha256` or `md5`.
        digits: all or the first hexadecimal digits of the checksum; if None, the first download is trusted.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    algorithm: str = "sha256"
    digits: str | None = None


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises ValueError, naming `what`, if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder}: {what} needs {shown(needed)}, but the disk has only {shown(free)} left")


def holds(source: Source, path: Path) -> str:
    """Returns the checksum of a file as `algorithm:digits`; raises ValueError if the file does not match `source`."""
    if source.size is not None and path.stat().st_size != source.size:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, but {source.name} must have {source.size}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, source.algorithm).hexdigest()
    if source.digits is not None and not found.startswith(source.digits):
        raise ValueError(f"{path}: its {source.algorithm} is {found}, but {source.name} must have {source.digits}")
    return f"{source.algorithm}:{found}"


def demand_trusted(name: str, digest: str, folder: Path) -> None:
    """Raises ValueError if a file of this name was trusted before with another checksum than `digest`."""
    record = _record(name, folder)
    if not record.exists():
        return
    recorded = record.read_text(encoding="utf-8", errors="replace").split()
    if not recorded:
        raise ValueError(f"{record}: is empty, but must contain the checksum of the first download")
    if f"sha256:{recorded[0]}" != digest:
        raise ValueError(
            f"{name}: its checksum is {digest}, but that of the first download was sha256:{recorded[0]}; "
            f"to trust the new file, remove {record} and the old file"
        )


def is_trusted(name: str, folder: Path) -> bool:
    """Returns whether a checksum is recorded for a file of this name."""
    return _record(name, folder).exists()


def bytes_there(name: str, folder: Path) -> int:
    """Returns the size in bytes of a downloaded file or, if it is incomplete, of the part downloaded so far."""
    return size_of(folder / name) or size_of(part_of(name, folder))


def trust(name: str, digest: str, folder: Path) -> None:
    """Records the checksum of a file that has no published one; later downloads of this name must match it."""
    record = _record(name, folder)
    if record.exists():
        return
    logger.warning("%s: no checksum is published; trusted now and required from now on: %s (%s)", name, digest, record)
    with whole_file(record) as partial:
        partial.write_text(f"{digest.removeprefix('sha256:')}  {name}\n", encoding="utf-8")


def _record(name: str, folder: Path) -> Path:
    return folder / f"{name}.sha256"


def part_of(name: str, folder: Path) -> Path:
    return folder / f".{name}.part"


def size_of(path: Path) -> int:
    """Returns the size of a file in bytes, or 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def shown(size: int) -> str:
    """Formats a number of bytes as MB or GB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
