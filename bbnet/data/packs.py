"""The published packs: the table packs.yaml, and how a pack comes to lie in a folder, whole."""

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator, model_validator

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
    """A file of a pack: an archive, or a file as it is."""

    urls: list[str] = Field(min_length=1, description="Tried in order; {file} stands for the file's name.")
    size: int | None = Field(None, ge=1, description="Bytes.")
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{8,64}$")] | None = Field(
        None, description="All digits, or the first ones."
    )
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")] | None = None
    into: str = Field("", pattern="^[A-Za-z0-9_-]*$", description="Folder of the pack that the archive is unpacked to.")

    @model_validator(mode="after")
    def _one_checksum(self) -> "PublishedFile":
        if self.sha256 is not None and self.md5 is not None:
            raise ValueError("sha256 and md5 exclude each other")
        return self

    @property
    def has_checksum(self) -> bool:
        return self.md5 is not None or self.sha256 is not None

    def source(self, name: str) -> Source:
        """Where the file of that name is fetched from, and what it must be."""
        algorithm = "md5" if self.md5 is not None else "sha256"
        urls = tuple(_address(url, name) for url in self.urls)
        return Source(name, urls, self.size, algorithm, getattr(self, algorithm))


def _address(url: str, name: str) -> str:
    if not url.startswith(TORCHVISION):
        return url.replace("{file}", name)
    from torchvision.models import get_weight  # late: importing it takes seconds

    return get_weight(url.removeprefix(TORCHVISION)).url


class Pack(BaseModel, extra="forbid", frozen=True):
    """A published data set."""

    title: str
    home: str = Field(description="Where it is described.")
    licence: str
    cite: str
    notice: str | None = Field(None, description="What a user must be told.")
    files: dict[str, PublishedFile] = Field(min_length=1)
    counts: dict[str, Annotated[int, Field(ge=0)]] = Field({}, description="How many of what it holds.")
    hours: dict[str, float] = Field({}, description="Of audio, by part.")
    image_size: int | None = Field(None, description="Height and width of its images in pixels.")

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, PublishedFile]) -> dict[str, PublishedFile]:
        for name in files:
            if name != Path(name).name or name.startswith("."):
                raise ValueError(f"{name!r} is no plain file name")
        return files


def read_pack(name: str, table: Path | None = None) -> Pack:
    """The pack of that name in the table, `TABLE` if absent; raises ValueError naming what is wrong with it."""
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
    """The published pack that a section of a task's settings names, if it does."""
    return read_pack(data.pack) if hasattr(data, "path") else None


def bring(
    name: str,
    path: str | None,
    target: Path,
    downloads: Path,
    *,
    holding: Collection[str] = (),
    parts: Collection[str] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Puts a published pack into `target`, or takes what lies at `path`: a folder, an archive, a folder of archives.

    Args:
        downloads: folder that keeps what is fetched.
        holding: what the folder of the pack holds, as names or patterns; an outer folder around it is left out.
        parts: the files of the pack that are needed; all of them if absent.

    Returns the folder that holds the pack; and, for the manifest, the same as `root`, relative if it is in `target`,
        and the checksums of the `files` that were unpacked.
    Raises: ValueError naming the file that cannot be had, or is not what the table says.
    """
    pack = read_pack(name)
    files = {file: pack.files[file] for file in parts or pack.files}
    logger.info("%s (%s). Licence: %s. To cite: %s", pack.title, pack.home, pack.licence, pack.cite)
    if pack.notice:
        logger.warning("%s: %s", name, pack.notice)
    if path is None:
        from bbnet.data.fetch import fetch_files  # late: what only reads packs need not import requests

        check_space(target, _space_needed(files, downloads), f"downloading and unpacking {name}")
        digests = fetch_files([file.source(key) for key, file in files.items()], downloads)
        archives = {downloads / key: file for key, file in files.items()}
    else:
        here = Path(path).expanduser().absolute()
        archives = _local_archives(here, files, holding)
        if not archives:
            root = _inside(here, holding)
            return root, {"root": str(root)}
        digests = {archive.name: _digest(archive, pack, downloads) for archive in archives}
    check_space(target, sum(archive.stat().st_size for archive in archives), f"unpacking {name}")
    for archive, file in archives.items():
        folder = target / file.into
        on_trust = path is None and not file.has_checksum
        _place(archive, folder, on_trust)
        if on_trust:
            trust(archive.name, digests[archive.name], downloads)
        _lift(folder, file.into)
    root = _inside(target, holding)
    return root, {"root": str(root.relative_to(target)), "files": digests}


def _space_needed(files: Mapping[str, PublishedFile], downloads: Path) -> int:
    """Bytes of what is not downloaded yet, and again of all that will be unpacked, as far as sizes are known."""
    sizes = {name: file.size or 0 for name, file in files.items()}
    missing = sum(size - bytes_there(name, downloads) for name, size in sizes.items())
    return max(0, missing) + sum(size for name, size in sizes.items() if name.lower().endswith(SUFFIXES))


def _inside(folder: Path, holding: Collection[str]) -> Path:
    """`folder`, or the only one in it where it has nothing of `holding`."""
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))]
    if len(folders) == 1 and not any(any(folder.glob(name)) for name in holding):
        return folders[0]
    return folder


def _lift(folder: Path, name: str) -> None:
    """Archives of `name` may hold a folder of that name around everything."""
    outer = folder / name
    if name and _inside(folder, ()) == outer and not any((folder / entry.name).exists() for entry in outer.iterdir()):
        for entry in outer.iterdir():
            os.rename(entry, folder / entry.name)
        outer.rmdir()


def _local_archives(
    home: Path, files: Mapping[str, PublishedFile], holding: Collection[str]
) -> dict[Path, PublishedFile]:
    """The archive `home`, or all the pack's files in the folder `home`; none where this holds the unpacked pack."""
    if home.is_file():
        if not home.name.lower().endswith(SUFFIXES):
            raise ValueError(f"{home}: is neither a folder nor an archive; allowed are {', '.join(SUFFIXES)}")
        return {home: files.get(home.name, PublishedFile(urls=[home.as_uri()]))}
    if not home.is_dir():
        raise ValueError(f"{home}: there is no such folder or archive")
    unpacked = any(any(_inside(home, holding).glob(name)) for name in holding)
    inside = {home / key: file for key, file in files.items() if (home / key).is_file()}
    if unpacked or not inside:
        return {}
    missing = sorted(set(files) - {archive.name for archive in inside})
    if missing:
        raise ValueError(f"{home}: lacks {', '.join(missing)}, beside {', '.join(path.name for path in inside)}")
    return inside


def _digest(archive: Path, pack: Pack, downloads: Path) -> str:
    """`algorithm:digits` of a local archive; one named like a file of the pack must be that file."""
    if archive.name in pack.files:
        digest = holds(pack.files[archive.name].source(archive.name), archive)
        if not pack.files[archive.name].has_checksum:
            demand_trusted(archive.name, digest, downloads)
        return digest
    with archive.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _place(file: Path, folder: Path, on_trust: bool) -> None:
    """Unpacks an archive into `folder`; any other file is linked, or copied.

    A download on trust that was not trusted before is removed where it cannot be unpacked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if file.name.lower().endswith(SUFFIXES):
        try:
            unpack(file, folder)
        except ArchiveError as error:
            if on_trust and not isinstance(error, DiskError) and not is_trusted(file.name, file.parent):
                file.unlink()
                raise ValueError(f"{error}; it was removed, and is fetched again") from None
            raise
        return
    try:
        os.link(file, folder / file.name)
    except OSError:
        shutil.copyfile(file, folder / file.name)


def refuse_incomplete(folder: Path, found: int, published: int, what: str, missing: Sequence[str] = ()) -> None:
    """Raises ValueError if `found` is not the number published, naming the first of those known to be `missing`."""
    if found == published:
        return
    others = f" and {len(missing) - NAMED_IN_ERRORS} more" if len(missing) > NAMED_IN_ERRORS else ""
    named = f": {'; '.join(missing[:NAMED_IN_ERRORS])}{others}" if missing else ""
    raise ValueError(
        f"{folder}: has {found} of the {published} {what} of the published pack{named} "
        "(data.complete: false takes any pack of this layout)"
    )


def spread(items: Sequence[Item]) -> list[Item]:
    """A sample from the first to the last."""
    last = len(items) - 1
    return [items[place] for place in sorted({last * step // (SAMPLE - 1) for step in range(SAMPLE)})] if items else []
