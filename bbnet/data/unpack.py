"""Safe unpacking of archives: nothing is written outside the target folder."""

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
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

from bbnet.data.progress import track

SUFFIXES = (".zip", ".tar.gz", ".tgz")
CHUNK = 1 << 20
MOST_BYTES = 1 << 40
MOST_MEMBERS = 10_000_000
LARGEST_RATIO = 100  # of the unpacked size to that of the archive; about 1 for speech and images
RATIO_FROM_BYTES = 64 << 20  # small archives of small files may exceed the ratio
LONGEST_PATH_BYTES = 1024
DEEPEST = 64
LONGEST_HEADER_BYTES = 1 << 14  # of tar headers with long names; tarfile is slow to parse longer ones
LONGEST_SHOWN = 200
BLOCK = 512  # of tar; a block of zeros ends the archive
DRIVE = re.compile(r"[A-Za-z]:[\\/]")
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses other methods without a limit
ZIP_END = struct.Struct("<4s4H2IH")
ZIP_END_MAGIC = b"PK\5\6"
DAMAGE = (
    EOFError,
    IndexError,  # this and the next two: from zipfile and tarfile, for invalid numbers and names
    OverflowError,
    ValueError,
    MemoryError,
    RuntimeError,  # encrypted
    gzip.BadGzipFile,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class ArchiveError(ValueError):
    """The archive is damaged, unsafe or of an unknown format."""


class DiskError(ArchiveError):
    """The archive could not be read from disk, or its content not be written."""


def unpack(archive: Path, target: Path) -> None:
    """Unpacks a .zip or .tar.gz into the folder `target`: regular files and folders only, with default permissions.

    Raises: ArchiveError naming archive and member: a path that is absolute, has `..`, a backslash or control character,
        is deeper than 64 folders or occurs twice; a link, device or other special file; an encrypted, damaged or
        truncated archive, or a zip neither stored nor deflated; one that would unpack to more than 100 times its size
        (beyond 64 MiB), 1 TiB or 10 million members. DiskError if it cannot be read or written. Files unpacked before
        the error are kept.
    """
    name = archive.name.lower()
    if not name.endswith(SUFFIXES):
        raise ArchiveError(f"{archive}: not a supported archive; allowed are {', '.join(SUFFIXES)}")
    try:
        writer = _Writer(archive, target)
        with _errors_of(str(archive)):
            if name.endswith(".zip"):
                _unpack_zip(archive, writer)
            else:
                _unpack_tar(archive, writer)
    except OSError as error:
        raise DiskError(f"{archive}: cannot be unpacked: {error.filename or target}: {error.strerror}") from None


@contextmanager
def _errors_of(what: str) -> Iterator[None]:
    """Turns exceptions caused by a damaged archive into an ArchiveError that names `what`."""
    try:
        yield
    except ArchiveError:
        raise
    except DAMAGE as error:
        why = _shortened(str(error)) or type(error).__name__
        raise ArchiveError(f"{what}: is encrypted, damaged or truncated ({why})") from None


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class _Writer:
    """Writes members to the target folder, and enforces the limits on their paths, number and size."""

    def __init__(self, archive: Path, target: Path) -> None:
        self.archive = archive
        self.target = target
        self.names: set[PurePosixPath] = set()
        self.folders: set[PurePosixPath] = set()
        self.written = 0
        self.most = min(MOST_BYTES, max(RATIO_FROM_BYTES, LARGEST_RATIO * archive.stat().st_size))

    def called(self, member: str) -> str:
        return f"{self.archive}: {_shortened(member)!r}"

    def refuse(self, member: str, why: str) -> NoReturn:
        raise ArchiveError(f"{self.called(member)} {why}")

    def place(self, name: str, is_folder: bool) -> PurePosixPath | None:
        """Returns the path of a member, None for the target itself; raises ArchiveError for a forbidden path."""
        if len(name.encode(errors="replace")) > LONGEST_PATH_BYTES or name.count("/") > DEEPEST:
            self.refuse(name, f"has a path of more than {LONGEST_PATH_BYTES} bytes or {DEEPEST} folders")
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
        if len(self.names) + len(self.folders) > MOST_MEMBERS:
            self.refuse(name, f"is one of more than {MOST_MEMBERS} members")
        return path

    def announce(self, size: int) -> None:
        """Raises ArchiveError if `size` more bytes would exceed the limit."""
        if self.written + size > self.most:
            size = self.archive.stat().st_size
            raise ArchiveError(f"{self.archive}: would unpack its {size} bytes to more than {self.most}")

    def folder(self, name: str, size: int) -> None:
        path = self.place(name, is_folder=True)
        if size:
            self.refuse(name, "is a folder with content")
        if path is not None:
            (self.target / path).mkdir(parents=True, exist_ok=True)

    def file(self, name: str, content: BinaryIO, size: int) -> None:
        """Writes a file; raises ArchiveError unless `content` has `size` bytes."""
        path = self.target / self.place(name, is_folder=False)
        self.announce(size)
        path.parent.mkdir(parents=True, exist_ok=True)
        there = 0
        with path.open("wb") as file:
            while chunk := content.read(CHUNK):
                self.announce(len(chunk))
                there += len(chunk)
                self.written += len(chunk)
                file.write(chunk)
        if there != size:
            self.refuse(name, f"has {there} bytes, but the archive declares {size}")


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        _check_zip_end(archive, file, len(members))
        writer.announce(sum(member.file_size for member in members))
        for member in track(members, f"unpack {archive.name}"):
            name = member.orig_filename  # zipfile cuts `filename` at a null byte
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                writer.refuse(name, "is a link, device or other special file")
            if member.compress_type not in ZIP_METHODS:
                writer.refuse(name, "is compressed by a method other than deflate")
            if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
                writer.refuse(name, f"has {member.compress_size} bytes, but the archive declares {member.file_size}")
            with _errors_of(writer.called(name)), file.open(member) as content:
                if name.endswith("/"):
                    writer.folder(name, member.file_size)
                else:
                    writer.file(name, content, member.file_size)


def _check_zip_end(archive: Path, file: zipfile.ZipFile, members: int) -> None:
    """Checks the number of members: zipfile reads a damaged directory as a shorter one without an error."""
    with archive.open("rb") as raw:
        raw.seek(-ZIP_END.size - len(file.comment), 2)
        magic, *_, count, _, start, _ = ZIP_END.unpack(raw.read(ZIP_END.size))
    if magic != ZIP_END_MAGIC or count not in (members % 2**16, 0xFFFF) or start not in (file.start_dir, 0xFFFFFFFF):
        raise ArchiveError(f"{archive}: is damaged or truncated (its end record does not match its {members} members)")


def _unpack_tar(archive: Path, writer: _Writer) -> None:
    with gzip.open(archive) as stream:
        bounded = _Bounded(stream, writer)
        with tarfile.open(fileobj=bounded, mode="r|", bufsize=CHUNK, tarinfo=_ShortHeader) as file:
            for member in track(_members(file), f"unpack {archive.name}"):
                with _errors_of(writer.called(member.name)):
                    if member.isdir():
                        writer.folder(member.name, member.size)
                    elif member.isreg() and not member.issparse():
                        writer.file(member.name, file.extractfile(member), member.size)
                    else:
                        writer.refuse(member.name, "is a link, device, sparse or other special file")
            end = file.offset
        while bounded.read(CHUNK):  # to the end, where gzip verifies its checksum
            pass
        # tarfile treats an invalid header as the end of the archive.
        if bounded.position < end + BLOCK or bounded.last_written > end:
            raise ArchiveError(f"{archive}: is damaged or truncated (the end of the archive is not at {end})")


def _members(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := file.next()) is not None:
        file.members = []  # otherwise tarfile keeps all members in memory
        yield member


class _ShortHeader(tarfile.TarInfo):
    """Rejects extended headers longer than `LONGEST_HEADER_BYTES`."""

    ABOUT_OTHERS = (
        tarfile.XHDTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.type in cls.ABOUT_OTHERS and not 0 <= header.size <= LONGEST_HEADER_BYTES:
            raise tarfile.TarError(f"a header of {header.size} bytes; at most {LONGEST_HEADER_BYTES} are allowed")
        return header


class _Bounded:
    """A stream that raises ArchiveError when it exceeds twice the limit on unpacked bytes, headers included.

    Attributes:
        position: number of bytes read so far.
        last_written: position after the last non-zero byte.
    """

    def __init__(self, stream: BinaryIO, writer: _Writer) -> None:
        self.stream = stream
        self.writer = writer
        self.most = 2 * writer.most  # headers of small files may be larger than the files
        self.position = self.last_written = 0

    def read(self, size: int) -> bytes:
        chunk = self.stream.read(size)
        written = len(chunk.rstrip(b"\0"))
        if written:
            self.last_written = self.position + written
        self.position += len(chunk)
        if self.position > self.most:
            self.writer.announce(self.most)
        return chunk
