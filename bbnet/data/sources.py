"""What a fetched file must be, what of it is there, and what was trusted at its first download."""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from bbnet.data.store import whole_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A file to fetch.

    Args:
        urls: tried in order.
        size: in bytes, where it is known.
        algorithm: `sha256` or `md5`.
        digits: of the checksum, all or the first ones; absent: the first download is trusted and recorded.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    algorithm: str = "sha256"
    digits: str | None = None


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises ValueError if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder}: {what} needs {shown(needed)}, the disk has {shown(free)} left")


def holds(source: Source, path: Path) -> str:
    """The checksum of a file at `path`, as `algorithm:digits`; raises ValueError unless it is that of `source`."""
    if source.size is not None and path.stat().st_size != source.size:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, {source.name} has {source.size}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, source.algorithm).hexdigest()
    if source.digits is not None and not found.startswith(source.digits):
        raise ValueError(f"{path}: its {source.algorithm} is {found}, that of {source.name} is {source.digits}")
    return f"{source.algorithm}:{found}"


def demand_trusted(name: str, digest: str, folder: Path) -> None:
    """Raises ValueError if a file of that name was trusted before with another checksum."""
    record = _record(name, folder)
    if not record.exists():
        return
    recorded = record.read_text(errors="replace").split()
    if not recorded:
        raise ValueError(f"{record}: is empty; it should hold the checksum of the first download")
    if f"sha256:{recorded[0]}" != digest:
        raise ValueError(
            f"{name}: its checksum is {digest}, that of the first download was sha256:{recorded[0]}; "
            f"whoever trusts the new file removes {record} and the old one"
        )


def is_trusted(name: str, folder: Path) -> bool:
    """Whether a file of that name was trusted before."""
    return _record(name, folder).exists()


def bytes_there(name: str, folder: Path) -> int:
    """Of a file of that name, whole or on its way."""
    return size_of(folder / name) or size_of(part_of(name, folder))


def trust(name: str, digest: str, folder: Path) -> None:
    """From now on a file of that name without a published checksum must have this one."""
    record = _record(name, folder)
    if record.exists():
        return
    logger.warning("%s: no checksum is published; trusted now, and from now on: %s (%s)", name, digest, record)
    with whole_file(record) as partial:
        partial.write_text(f"{digest.removeprefix('sha256:')}  {name}\n")


def _record(name: str, folder: Path) -> Path:
    return folder / f"{name}.sha256"


def part_of(name: str, folder: Path) -> Path:
    """Where the bytes of a file gather that is on its way."""
    return folder / f".{name}.part"


def size_of(path: Path) -> int:
    """In bytes; 0 if there is no file."""
    return path.stat().st_size if path.exists() else 0


def shown(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
