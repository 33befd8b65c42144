"""Reads the table of published packs, packs.yaml, and downloads and unpacks packs."""

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator, model_validator

from bbnet.data.files import beside, contents, is_litter, warn_of_unread
from bbnet.data.sources import Source, bytes_there, check_space, demand_trusted, holds, is_trusted, trust
from bbnet.data.unpack import SUFFIXES, ArchiveError, DiskError, unpack

logger = logging.getLogger(__name__)
TABLE = Path(__file__).with_suffix(".yaml")
DOWNLOADS = Path("data", "downloads")
TORCHVISION = "torchvision:"
NAMED_IN_ERRORS = 3
SAMPLE = 8

Item = TypeVar("Item")


class PublishedFile(BaseModel, extra="forbid", frozen=True):
    """A file of a pack: an archive, which is unpacked, or any other file, which is kept unchanged."""

    urls: list[str] = Field(min_length=1, description="Addresses, tried in order; {file} stands for the file name.")
    size: int | None = Field(None, ge=1, description="Size in bytes.")
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{8,64}$")] | None = Field(
        None, description="All hexadecimal digits, or the first ones."
    )
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")] | None = None
    into: str = Field("", pattern="^[A-Za-z0-9_-]*$", description="Subfolder to which the archive is unpacked.")

    @model_validator(mode="after")
    def _one_checksum(self) -> "PublishedFile":
        if self.sha256 is not None and self.md5 is not None:
            raise ValueError("give either sha256 or md5, not both")
        return self

    @property
    def has_checksum(self) -> bool:
        return self.md5 is not None or self.sha256 is not None

    def source(self, name: str) -> Source:
        """Returns the addresses, size and checksum of the file, whose name is `name`."""
        algorithm = "md5" if self.md5 is not None else "sha256"
        urls = tuple(_address(url, name) for url in self.urls)
        return Source(name, urls, self.size, algorithm, getattr(self, algorithm))


def _address(url: str, name: str) -> str:
    if not url.startswith(TORCHVISION):
        return url.replace("{file}", name)
    from torchvision.models import get_weight  # imported here because the import takes seconds

    return get_weight(url.removeprefix(TORCHVISION)).url


class Pack(BaseModel, extra="forbid", frozen=True):
    title: str
    home: str = Field(description="Web page that describes it.")
    licence: str
    cite: str
    notice: str | None = Field(None, description="Warning that is logged when the pack is used.")
    files: dict[str, PublishedFile] = Field(min_length=1)
    counts: dict[str, Annotated[int, Field(ge=0)]] = Field({}, description="Number of items, by part or kind.")
    hours: dict[str, float] = Field({}, description="Hours of audio, by part.")
    image_size: int | None = Field(None, description="Height and width of its images in pixels.")

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, PublishedFile]) -> dict[str, PublishedFile]:
        for name in files:
            if name != Path(name).name or name.startswith("."):
                raise ValueError(f"{name!r} must be a file name without folders or a leading dot")
        return files


def read_pack(name: str, table: Path | None = None) -> Pack:
    """Reads a pack from `table` (default: `TABLE`); raises ValueError naming an unknown pack or an invalid entry."""
    table = table or TABLE
    try:
        content = yaml.safe_load(table.read_text(encoding="utf-8"))
        return Pack.model_validate(content[name])
    except KeyError:
        raise ValueError(f"{table}: has no pack {name}; it has {', '.join(content)}") from None
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{table}: cannot be read ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, (name, *problem["loc"])))
        raise ValueError(f"{table}: {key}: {problem['msg']}") from None


def pack_of(data: BaseModel) -> Pack | None:
    """Returns the published pack that the data settings of a task name, or None if they name none."""
    return read_pack(data.pack) if hasattr(data, "path") and getattr(data, "published", True) else None


def bring(
    name: str,
    path: str | None,
    target: Path,
    downloads: Path,
    *,
    complete: bool = True,
    holding: Collection[str] = (),
    parts: Collection[str] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Downloads and unpacks a published pack into `target`, or uses the folder, archive or archives at `path` instead.

    Args:
        downloads: folder in which downloaded files are kept.
        complete: whether the files at `path` must be those of the published pack; otherwise they may be the user's own,
            which are not announced with its licence.
        holding: names or glob patterns, at least one of which exists in the root folder of the pack; if none does, the
            only subfolder is taken as the root.
        parts: the files of the pack that are needed (default: all).

    Returns: the root folder of the pack; and, for the manifest, this folder as `root`, relative if it is in `target`,
        and the checksums of the unpacked `files`.
    Raises: ValueError naming a file that is missing, cannot be downloaded or differs from the table.
    """
    pack = read_pack(name)
    files = {file: pack.files[file] for file in parts or pack.files}
    if path is None or complete:
        logger.info("%s (%s). Licence: %s. To cite: %s", pack.title, pack.home, pack.licence, pack.cite)
        if pack.notice:
            logger.warning("%s: %s", name, pack.notice)
    else:
        logger.info("%s: your own data, in the layout of %s", path, pack.title)
    if path is None:
        from bbnet.data.fetch import fetch_files  # imported here so that reading packs does not import requests

        check_space(target, _space_needed(files, downloads), f"downloading and unpacking {name}")
        digests = fetch_files([file.source(key) for key, file in files.items()], downloads)
        archives = {downloads / key: file for key, file in files.items()}
    else:
        here = Path(path).absolute()
        archives = _local_archives(here, files, holding)
        if not archives:
            root = _warned_root_of(here, holding)
            return root, {"root": str(root)}
        digests = {archive.name: _digest(archive, pack, downloads) for archive in archives}
    check_space(target, sum(archive.stat().st_size for archive in archives), f"unpacking {name}")
    for archive, file in archives.items():
        folder = target / file.into
        on_trust = path is None and not file.has_checksum
        _unpack_or_link(archive, folder, on_trust)
        if on_trust:
            trust(archive.name, digests[archive.name], downloads)
        _remove_outer_folder(folder, file.into)
    root = _warned_root_of(target, holding)
    return root, {"root": str(root.relative_to(target)), "files": digests}


def bring_own(path: str, target: Path, *, holding: Collection[str]) -> tuple[Path, dict[str, Any]]:
    """Unpacks the archive at `path`, which no table describes, into `target`, or uses the folder at `path` in place.

    Returns: as `bring`.
    Raises: ValueError naming a path at which there is neither a folder nor an archive, or an unsafe or damaged archive.
    """
    here = Path(path).expanduser().absolute()
    if not _local_archives(here, {}, holding):
        root = _root_of(here, holding)
        return root, {"root": str(root)}
    check_space(target, here.stat().st_size, f"unpacking {here.name}")
    unpack(here, target)
    root = _root_of(target, holding)
    return root, {"root": str(root.relative_to(target)), "files": {here.name: _sha256(here)}}


def _space_needed(files: Mapping[str, PublishedFile], downloads: Path) -> int:
    """Returns the bytes still to be downloaded plus the size of the archives to be unpacked; unknown sizes are 0."""
    sizes = {name: file.size or 0 for name, file in files.items()}
    missing = sum(max(0, size - bytes_there(name, downloads)) for name, size in sizes.items())
    return missing + sum(size for name, size in sizes.items() if name.lower().endswith(SUFFIXES))


def _root_of(folder: Path, holding: Collection[str]) -> Path:
    """Returns `folder`, or its only subfolder if nothing in `folder` matches `holding`."""
    _, folders = contents(folder)
    return folders[0] if len(folders) == 1 and not _has_any(folder, holding) else folder


def _warned_root_of(folder: Path, holding: Collection[str]) -> Path:
    """Returns the root of a pack, and warns of files outside of it."""
    root = _root_of(folder, holding)
    if root != folder:
        warn_of_unread(folder, beside(folder, [root]), f"{root.name}/")
    return root


def _has_any(folder: Path, holding: Collection[str]) -> bool:
    """Returns whether a name or glob pattern of `holding` matches something in `folder` that is not litter."""
    return any(not is_litter(path.name) for name in holding for path in folder.glob(name))


def _remove_outer_folder(folder: Path, name: str) -> None:
    """Moves the content of the subfolder `name` up to `folder` if the whole archive was inside this subfolder."""
    outer = folder / name
    if not name or _root_of(folder, ()) != outer:
        return
    entries = list(chain(*contents(outer)))
    if not any((folder / entry.name).exists() for entry in entries):
        for entry in entries:
            os.rename(entry, folder / entry.name)
        shutil.rmtree(outer)  # in which only litter is left


def _local_archives(
    home: Path, files: Mapping[str, PublishedFile], holding: Collection[str]
) -> dict[Path, PublishedFile]:
    """Returns the archive `home`, or the pack files in the folder `home`; none if it holds the unpacked pack."""
    if home.is_file():
        if not home.name.lower().endswith(SUFFIXES):
            raise ValueError(f"{home}: is neither a folder nor an archive; allowed are {', '.join(SUFFIXES)}")
        return {home: files.get(home.name, PublishedFile(urls=[home.as_uri()]))}
    if not home.is_dir():
        raise ValueError(f"{home}: there is no such folder or archive")
    unpacked = _has_any(_root_of(home, holding), holding)
    inside = {home / key: file for key, file in files.items() if (home / key).is_file()}
    if unpacked or not inside:
        return {}
    missing = sorted(set(files) - {archive.name for archive in inside})
    if missing:
        raise ValueError(f"{home}: lacks {', '.join(missing)}; it has only {', '.join(path.name for path in inside)}")
    return inside


def _digest(archive: Path, pack: Pack, downloads: Path) -> str:
    """Returns the checksum of a local archive as `algorithm:digits`, checked if a pack file has the same name."""
    if archive.name in pack.files:
        digest = holds(pack.files[archive.name].source(archive.name), archive)
        if not pack.files[archive.name].has_checksum:
            demand_trusted(archive.name, digest, downloads)
        return digest
    return _sha256(archive)


def _sha256(archive: Path) -> str:
    with archive.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _unpack_or_link(file: Path, folder: Path, on_trust: bool) -> None:
    """Unpacks an archive into `folder`; hard-links any other file or, if that fails, copies it.

    If `on_trust`, an archive that cannot be unpacked is removed, unless it was trusted before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if file.name.lower().endswith(SUFFIXES):
        try:
            unpack(file, folder)
        except ArchiveError as error:
            if on_trust and not isinstance(error, DiskError) and not is_trusted(file.name, file.parent):
                file.unlink()
                raise ValueError(f"{error}; it was removed; the next call downloads it again") from None
            raise
        return
    try:
        os.link(file, folder / file.name)
    except OSError:
        shutil.copyfile(file, folder / file.name)


def refuse_incomplete(folder: Path, found: int, published: int, what: str, missing: Sequence[str] = ()) -> None:
    """Raises ValueError, naming the first `missing` items, if `found` is not the `published` number of items."""
    if found == published:
        return
    others = f" and {len(missing) - NAMED_IN_ERRORS} more" if len(missing) > NAMED_IN_ERRORS else ""
    named = f": {'; '.join(missing[:NAMED_IN_ERRORS])}{others}" if missing else ""
    raise ValueError(
        f"{folder}: has {found} of the {published} {what} of the published pack{named} "
        "(data.complete: false accepts any pack of this layout)"
    )


def spread(items: Sequence[Item]) -> list[Item]:
    """Returns up to 8 items, evenly spaced from the first to the last."""
    last = len(items) - 1
    return [items[place] for place in sorted({last * step // (SAMPLE - 1) for step in range(SAMPLE)})] if items else []
