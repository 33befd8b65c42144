"""Unpacks archives safely: nothing is written outside the target folder."""

import gzip
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

from bbnet.data.files import ICON_OF_MACOS, is_litter
from bbnet.data.progress import track

SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")
CHUNK = 1 << 20
MAX_BYTES = 1 << 40
MAX_MEMBERS = 10_000_000
MAX_RATIO = 100  # unpacked size divided by archive size; it is about 1 for speech and images
RATIO_FROM_BYTES = 64 << 20  # below this unpacked size the ratio is not limited: many small files compress well
MAX_PATH_BYTES = 1024
MAX_FOLDERS = 64
MAX_HEADER_BYTES = 1 << 14  # limit for tar headers with long names; tarfile parses longer ones slowly
MAX_SHOWN = 200
BLOCK = 512  # block size of a tar archive in bytes; a block of zeros marks its end
DRIVE = re.compile(r"[A-Za-z]:[\\/]")
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile does not limit the output of other methods
ZIP_UTF8_FLAG = 0x800
ZIP_END = struct.Struct("<4s4H2IH")
ZIP_END_MAGIC = b"PK\5\6"
DAMAGE = (
    EOFError,
    IndexError,  # zipfile and tarfile raise this error and the next two for invalid numbers and names
    OverflowError,
    ValueError,
    MemoryError,
    RuntimeError,  # raised by zipfile for encrypted members
    gzip.BadGzipFile,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class ArchiveError(ValueError):
    """Raised if an archive is damaged, unsafe or of an unsupported format."""


class DiskError(ArchiveError):
    """Raised if an archive cannot be read from disk or its content cannot be written to disk."""


def unpack(archive: Path, target: Path) -> None:
    """Unpacks a .zip, .tar.gz or .tar archive into `target`: only regular files and folders, with default permissions.

    Raises: ArchiveError, naming the archive and the member, for a path that is absolute, contains `..`, a backslash or
        a control character, is deeper than 64 folders or occurs twice; for links, devices and other special files; for
        encrypted, damaged or truncated archives and zip members that are neither stored nor deflated; and for archives
        that would unpack to more than 100 times their size (beyond 64 MiB), 1 TiB or 10 million members. DiskError if
        the archive cannot be read or its content cannot be written. Files unpacked before the error are kept.
    Litter is unpacked like any other member, but left out if it is a link, is compressed in another way, occurs twice,
    or leads elsewhere by `..`.
    """
    name = archive.name.lower()
    if not name.endswith(SUFFIXES):
        raise ArchiveError(f"{archive}: not a supported archive; allowed are {', '.join(SUFFIXES)}")
    try:
        writer = _Writer(archive, target)
        with _convert_errors(str(archive)):
            if name.endswith(".zip"):
                _unpack_zip(archive, writer)
            else:
                _unpack_tar(archive, writer)
    except OSError as error:
        raise DiskError(f"{archive}: cannot be unpacked: {error.filename or target}: {error.strerror}") from None


@contextmanager
def _convert_errors(what: str) -> Iterator[None]:
    """Converts exceptions that a damaged archive causes to an ArchiveError that names `what`."""
    try:
        yield
    except ArchiveError:
        raise
    except DAMAGE as error:
        why = _shorten(str(error)) or type(error).__name__
        raise ArchiveError(f"{what}: is encrypted, damaged or truncated ({why})") from None


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


class _Writer:
    """Writes members to the target folder and enforces the limits on their paths, number and size."""

    def __init__(self, archive: Path, target: Path) -> None:
        self.archive = archive
        self.target = target
        self.names: set[PurePosixPath] = set()
        self.folders: set[PurePosixPath] = set()
        self.written = 0
        self.limit = min(MAX_BYTES, max(RATIO_FROM_BYTES, MAX_RATIO * archive.stat().st_size))

    def describe(self, member: str) -> str:
        return f"{self.archive}: {_shorten(member)!r}"

    def refuse(self, member: str, why: str) -> NoReturn:
        raise ArchiveError(f"{self.describe(member)} {why}")

    def member_path(self, name: str, is_folder: bool) -> PurePosixPath | None:
        """Returns the path of a member, or None for the target itself; raises ArchiveError for a forbidden path."""
        if len(name.encode(errors="replace")) > MAX_PATH_BYTES or name.count("/") > MAX_FOLDERS:
            self.refuse(name, f"has a path of more than {MAX_PATH_BYTES} bytes or {MAX_FOLDERS} folders")
        path = PurePosixPath(name)
        if path.is_absolute() or DRIVE.match(name):
            self.refuse(name, "is an absolute path")
        if ".." in path.parts:
            self.refuse(name, "has .. in its path")
        if "\\" in name or any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in name):
            self.refuse(name, "has a backslash or a control character in its path")
        if not path.parts and not is_folder:
            self.refuse(name, "is a file without a name")
        if not path.parts:
            return None
        if path in self.names or (path in self.folders and not is_folder):
            self.refuse(name, "is in the archive twice")
        if any(parent in self.names for parent in path.parents):
            self.refuse(name, "is below another member that is a file")
        (self.folders if is_folder else self.names).add(path)
        self.folders.update(path.parents)
        if len(self.names) + len(self.folders) > MAX_MEMBERS:
            self.refuse(name, f"exceeds the limit of {MAX_MEMBERS} members")
        return path

    def check_size(self, size: int) -> None:
        """Raises ArchiveError if `size` more bytes would exceed the limit."""
        if self.written + size > self.limit:
            size = self.archive.stat().st_size
            raise ArchiveError(f"{self.archive}: would unpack from {size} bytes to more than the allowed {self.limit}")

    def is_litter_in_the_way(self, name: str) -> bool:
        """Returns whether a member is litter that has no place of its own, so that it is left out."""
        path = PurePosixPath(name)
        taken = path in self.names or path in self.folders or any(parent in self.names for parent in path.parents)
        return _is_below_litter(name) and (taken or ".." in path.parts)

    def write_folder(self, name: str, size: int) -> None:
        if self.is_litter_in_the_way(name):
            return
        path = self.member_path(name, is_folder=True)
        if size:
            self.refuse(name, "is a folder with content")
        if path is not None:
            (self.target / path).mkdir(parents=True, exist_ok=True)

    def write_file(self, name: str, content: BinaryIO, size: int) -> None:
        """Writes a file; raises ArchiveError unless `content` has `size` bytes."""
        if name.rpartition("/")[2].removeprefix("._") == ICON_OF_MACOS:  # litter with a control character
            return
        if self.is_litter_in_the_way(name):
            return
        path = self.target / self.member_path(name, is_folder=False)
        self.check_size(size)
        path.parent.mkdir(parents=True, exist_ok=True)
        size_read = 0
        with path.open("wb") as file:
            while chunk := content.read(CHUNK):
                self.check_size(len(chunk))
                size_read += len(chunk)
                self.written += len(chunk)
                file.write(chunk)
        if size_read != size:
            self.refuse(name, f"has {size_read} bytes, but the archive declares {size}")


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        _check_zip_end(archive, file, len(members))
        writer.check_size(sum(member.file_size for member in members))
        for member in track(members, f"unpack {archive.name}"):
            name = _zip_name(member)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if _is_below_litter(name) and (kind == stat.S_IFLNK or member.compress_type not in ZIP_METHODS):
                continue
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                writer.refuse(name, "is a link, device or other special file")
            if member.compress_type not in ZIP_METHODS:
                writer.refuse(name, "has an unsupported compression method; allowed are stored and deflated")
            if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
                writer.refuse(name, f"has {member.compress_size} bytes, but the archive declares {member.file_size}")
            with _convert_errors(writer.describe(name)), file.open(member) as content:
                if name.endswith("/"):
                    writer.write_folder(name, member.file_size)
                else:
                    writer.write_file(name, content, member.file_size)


def _is_below_litter(name: str) -> bool:
    """Returns whether a member is litter or in a folder that is, so that readers do without it."""
    parts = takewhile(lambda part: part != "..", name.split("/"))
    return any(is_litter(part) for part in parts if part != ".")


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Returns the name of a member. Archives that macOS makes do not declare that their names are UTF-8."""
    name = member.orig_filename  # zipfile cuts `filename` at a null byte
    try:
        return name if member.flag_bits & ZIP_UTF8_FLAG else name.encode("cp437").decode()
    except UnicodeError:
        return name


def _check_zip_end(archive: Path, file: zipfile.ZipFile, members: int) -> None:
    """Checks the number of members, because zipfile reads a damaged directory as a shorter one without an error."""
    with archive.open("rb") as raw:
        raw.seek(-ZIP_END.size - len(file.comment), 2)
        magic, *_, count, _, start, _ = ZIP_END.unpack(raw.read(ZIP_END.size))
    if magic != ZIP_END_MAGIC or count not in (members % 2**16, 0xFFFF) or start not in (file.start_dir, 0xFFFFFFFF):
        raise ArchiveError(f"{archive}: is damaged or truncated (its end record does not match its {members} members)")


def _unpack_tar(archive: Path, writer: _Writer) -> None:
    with archive.open("rb") if archive.name.lower().endswith(".tar") else gzip.open(archive) as stream:
        bounded = _Bounded(stream, writer)
        with tarfile.open(fileobj=bounded, mode="r|", bufsize=CHUNK, tarinfo=_LimitedHeader) as file:
            for member in track(_members(file), f"unpack {archive.name}"):
                with _convert_errors(writer.describe(member.name)):
                    if member.isdir():
                        writer.write_folder(member.name, member.size)
                    elif member.isreg() and not member.issparse():
                        writer.write_file(member.name, file.extractfile(member), member.size)
                    elif not (member.issym() and _is_below_litter(member.name)):
                        writer.refuse(member.name, "is a link, device, sparse or other special file")
            end = file.offset
        while bounded.read(CHUNK):  # gzip verifies its checksum at the end of the stream
            pass
        # tarfile treats an invalid header as the end of the archive.
        if bounded.position < end + BLOCK or bounded.last_written > end:
            raise ArchiveError(f"{archive}: is damaged or truncated (the end of the archive is not at {end})")


def _members(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := file.next()) is not None:
        file.members = []  # otherwise tarfile keeps all members in memory
        yield member


class _LimitedHeader(tarfile.TarInfo):
    """A tar header; raises TarError for extended headers longer than `MAX_HEADER_BYTES`."""

    PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
    EXTENDED_TYPES = (*PAX_TYPES, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.type in cls.EXTENDED_TYPES and not 0 <= header.size <= MAX_HEADER_BYTES:
            raise tarfile.TarError(f"extended header of {header.size} bytes; at most {MAX_HEADER_BYTES} are allowed")
        return header


class _Bounded:
    """A stream that raises ArchiveError once more than twice the limit on unpacked bytes is read, headers included.

    Attributes:
        position: number of bytes read so far.
        last_written: position after the last non-zero byte.
    """

    def __init__(self, stream: BinaryIO, writer: _Writer) -> None:
        self.stream = stream
        self.writer = writer
        self.limit = 2 * writer.limit  # the headers of small files may be larger than the files
        self.position = self.last_written = 0

    def read(self, size: int) -> bytes:
        chunk = self.stream.read(size)
        written = len(chunk.rstrip(b"\0"))
        if written:
            self.last_written = self.position + written
        self.position += len(chunk)
        if self.position > self.limit:
            self.writer.check_size(self.limit)
        return chunk
