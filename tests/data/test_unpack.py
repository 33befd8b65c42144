"""Tests that good archives are unpacked byte for byte, and that hostile ones write nothing outside the target."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import resource
import stat
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest

from bbnet.data import unpack as module
from bbnet.data.unpack import ArchiveError, DiskError, unpack

MIB = 1 << 20
LONGEST_MESSAGE = 8000  # a path of 1024 control characters takes 4096
TAR_END = bytes(1024)
ZIP_METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
TAR_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LZMA_FILTER = {"id": lzma.FILTER_LZMA1, "preset": 0}

# Names to contents, None for a folder.
GOOD = {
    "plain.txt": b"some text\n" * 100,
    "empty": b"",
    "hollow/inner/": None,
    "deep/er/and/deeper/noise.bin": random.Random(1).randbytes(300_000),
    "ünï/日本語 файл.txt": "naïve".encode(),
    ".hidden/..two dots": b"2",
    "three...dots/a..b/-rf": b"3",
    "zeros": bytes(5 * MIB),
}
LONG = {"/".join(["l" * 250, "ö" * 120, "n" * 250, "g" * 200]) + "/x.txt": b"long"}
LONG_IN_USTAR = {"p" * 150 + "/" + "n" * 95: b"long"}
SMALL = {
    "folder/": None,
    "folder/text": b"hello " * 20,
    "a/b/": None,
    "noise": random.Random(2).randbytes(60),
    "0": b"",
}


# Archives made by the libraries.


def zip_with(members, method=zipfile.ZIP_DEFLATED, into=None, mode=0o100644):
    buffer = into or io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16 if content is not None else (0o40755 << 16) | 0x10
            file.writestr(member, content or b"", compress_type=method if content else zipfile.ZIP_STORED)
    return buffer.getvalue()


def tar_with(members, form=tarfile.PAX_FORMAT, mode=0o644):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.mode, member.uid, member.gid, member.uname, member.mtime = mode, 4321, 4321, "nobody", 10
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            file.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


# Archives made by hand.


def entry(name, data=b"", *, packed=None, method=0, crc=None, size=None, flags=0x800, mode=0o100644, listed=None):
    """A zip's member: its header and data, and its line in the directory as a function of the offset."""
    name = name.encode() if isinstance(name, str) else name
    listed = name if listed is None else listed
    packed = data if packed is None else packed
    crc = zlib.crc32(data) if crc is None else crc
    both = struct.pack("<4H", 63, flags, method, 0) + struct.pack(
        "<H3I", 33, crc, len(packed), len(data) if size is None else size
    )
    local = b"PK\3\4" + both + struct.pack("<2H", len(name), 0) + name + packed

    def line(offset):
        rest = struct.pack("<5H2I", len(listed), 0, 0, 0, 0, mode << 16, offset)
        return b"PK\1\2" + struct.pack("<H", 63 | 3 << 8) + both + rest + listed

    return local, line


def zip_end(count, directory, offset):
    return b"PK\5\6" + struct.pack("<4H2IH", 0, 0, count, count, directory, offset, 0)


def zip_of(*entries):
    body, lines = b"", b""
    for local, line in entries:
        lines += line(len(body))
        body += local
    return body + lines + zip_end(len(entries), len(lines), len(body))


def deflated(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def lzma_packed(data, properties=None):
    properties = properties or lzma._encode_filter_properties(LZMA_FILTER)
    return (
        struct.pack("<BBH", 9, 4, len(properties))
        + properties
        + lzma.compress(data, lzma.FORMAT_RAW, filters=[LZMA_FILTER])
    )


def overlapping_zip(count, kernel):
    """Members whose data quote the header of the next and go on in its data, so that all end in the same bytes."""
    data, packed = bytes(kernel), deflated(bytes(kernel))
    size, offsets, lines = len(data), [], []
    for number in reversed(range(count)):
        local, line = entry(f"{number:04d}", packed=packed, method=8, crc=zlib.crc32(data), size=size)
        lines.append(line)
        offsets.append(len(local))
        header = local[: 30 + 4]
        data = header + data
        size = len(data)
        packed = struct.pack("<BHH", 0, len(header), len(header) ^ 0xFFFF) + header + packed
    body = packed[5:]
    directory = b"".join(line(len(body) - offset) for line, offset in zip(lines, offsets, strict=True))
    return body + directory + zip_end(count, len(directory), len(body))


def header(name, size=0, kind=b"0", link="", magic=b"ustar\x0000", extra=()):
    name = name.encode() if isinstance(name, str) else name
    fields = [(0, name), (100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"), (124, b"%011o\0" % size)]
    fields += [(136, b"00000000000\0"), (148, b" " * 8), (156, kind), (157, os.fsencode(link)), (257, magic), *extra]
    block = bytearray(512)
    for at, value in fields:
        block[at : at + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def blocks(data):
    return data + bytes(-len(data) % 512)


def tar_file(name, data=b""):
    return header(name, len(data)) + blocks(data)


def tar_gz(*parts, end=TAR_END, level=1):
    return gzip.compress(b"".join(parts) + end, level)


def pax(key, value):
    record = b" " + key + b"=" + value + b"\n"
    length = next(n for n in range(len(record), len(record) + 20) if len(str(n)) + len(record) == n)
    return pax_block(str(length).encode() + record)


def pax_block(records):
    return header("pax", len(records), b"x") + blocks(records)


def long_name(name):
    return header("././@LongLink", len(name) + 1, b"L", magic=b"ustar  \0") + blocks(name + b"\0")


def old_sparse(name, size, extended=False):
    extra = [(386, b"00000000001\0"), (398, b"00000001000\0"), (483, b"00000002000\0")]
    return header(name, size, b"S", magic=b"ustar  \0", extra=extra + [(482, b"\1")] * extended)


# What is on disk.


def contents(folder):
    """Paths below the folder to contents, None for a folder."""
    return {
        f"{path.relative_to(folder)}{'/' * path.is_dir()}": path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def with_parents(members):
    tree = {}
    for name, content in members.items():
        path = Path(name)
        tree.update({f"{parent}/": None for parent in path.parents if parent != Path(".")})
        tree[str(path) if content is not None else f"{path}/"] = content
    return tree


class Walls:
    """A target deep in a tree of files that must not change, and the archive far from it."""

    def __init__(self, home):
        self.home = home
        self.target = home / "outer" / "middle" / "inner" / "target"
        self.target.mkdir(parents=True)
        self.outside = home / "outside"
        self.outside.mkdir()
        for folder in (home, self.outside, *self.target.parents[:3]):
            (folder / "x").write_text(f"sentinel of {folder.name}")
        (self.outside / "script.sh").write_text("#!/bin/sh\n")
        (self.outside / "script.sh").chmod(0o750)

    def archive(self, name, data):
        path = self.home / "archives" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    def seen(self):
        """All that is outside the target, with kind, mode, number of links, and content."""
        found = {}
        for folder, folders, files in os.walk(self.home):
            if Path(folder) == self.target.parent:
                folders[:] = [name for name in folders if name != self.target.name]
            for path in (Path(folder, name) for name in folders + files):
                status = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
                links = status.st_nlink if content is not None else 0
                found[str(path)] = (status.st_mode, links, content)
        return found

    def check_target(self):
        for path in self.target.rglob("*"):
            status = path.lstat()
            assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode), path
            assert stat.S_ISDIR(status.st_mode) or status.st_nlink == 1, path

    def size(self):
        return sum(path.stat().st_size for path in self.target.rglob("*") if path.is_file())


@pytest.fixture
def walls(tmp_path):
    return Walls(tmp_path / "walls")


def unpacked(walls, name, data):
    archive = walls.archive(name, data)
    before = walls.seen()
    unpack(archive, walls.target)
    assert walls.seen() == before
    walls.check_target()
    return contents(walls.target)


def refused(walls, name, data, member=None, kind=ArchiveError):
    """The message of the refusal."""
    archive = walls.archive(name, data)
    before = walls.seen()
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, walls.target)
    assert walls.seen() == before
    walls.check_target()
    assert type(caught.value) is kind
    assert isinstance(caught.value, ArchiveError) and isinstance(caught.value, ValueError)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < LONGEST_MESSAGE
    assert str(archive) in message
    if member is not None:
        assert repr(member)[1:-1] in message.replace(str(walls.home), "")
    return message


# Good archives.


@pytest.mark.parametrize("method", ZIP_METHODS.values(), ids=ZIP_METHODS)
def test_a_good_zip_comes_out_byte_for_byte_and_nothing_else(walls, method):
    members = GOOD | LONG
    assert unpacked(walls, "good.zip", zip_with(members, method)) == with_parents(members)


@pytest.mark.parametrize("form", TAR_FORMATS)
def test_a_good_tar_gz_comes_out_byte_for_byte_and_nothing_else(walls, form):
    members = GOOD | (LONG_IN_USTAR if form == "ustar" else LONG)
    data = gzip.compress(tar_with(members, TAR_FORMATS[form]))
    assert unpacked(walls, "good.tar.gz", data) == with_parents(members)


@pytest.mark.parametrize("form", TAR_FORMATS)
def test_a_good_tar_comes_out_byte_for_byte_and_nothing_else(walls, form):
    members = GOOD | (LONG_IN_USTAR if form == "ustar" else LONG)
    assert unpacked(walls, "good.tar", tar_with(members, TAR_FORMATS[form])) == with_parents(members)


def test_a_tar_that_ends_too_early_is_refused(walls):
    data = tar_with({"first": b"1" * 1000, "second": b"2" * 5000})
    content = len(data.rstrip(b"\0"))
    for length in (512, 1012, content - 3000, content):
        with pytest.raises(ArchiveError, match="short.tar.*is (encrypted, )?damaged or truncated"):
            unpacked(walls, "short.tar", data[:length])


@pytest.mark.parametrize("name", ["good.tgz", "GOOD.TAR.GZ", "two.dots.tar.gz", "GOOD.Zip", "GOOD.Tar"])
def test_the_suffix_alone_says_what_an_archive_is(walls, name):
    data = zip_with(SMALL) if name.lower().endswith("zip") else tar_with(SMALL)
    assert unpacked(walls, name, gzip.compress(data) if name.lower().endswith("gz") else data) == with_parents(SMALL)


def test_a_zip_written_to_a_pipe_comes_out(walls):
    class Pipe(io.RawIOBase):
        def __init__(self):
            self.content = bytearray()

        def writable(self):
            return True

        def write(self, data):
            self.content += data
            return len(data)

        def getvalue(self):
            return bytes(self.content)

    assert unpacked(walls, "pipe.zip", zip_with(SMALL, into=Pipe())) == with_parents(SMALL)


def test_a_zip_with_64_bit_sizes_comes_out(walls):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, file.open("big", "w", force_zip64=True) as member:
        member.write(b"not so big")
    assert unpacked(walls, "big.zip", buffer.getvalue()) == {"big": b"not so big"}


def test_a_zip_with_a_comment_is_unpacked(walls):
    buffer = io.BytesIO(zip_with(SMALL))
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = b"made by hand"
    assert unpacked(walls, "comment.zip", buffer.getvalue()) == with_parents(SMALL)


@pytest.mark.parametrize("name", ["José/Ü.png", unicodedata.normalize("NFD", "José/Ü.png"), "日本/語.png"])
def test_a_zip_of_macos_whose_names_are_utf_8_without_saying_so_comes_out(walls, name):
    data = bytearray(zip_with({name: b"1"}))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        flags = (6, file.start_dir + 8)  # of the member's own header, and of the directory
    for place in flags:
        assert data[place + 1] & 8
        data[place + 1] &= ~8
    assert unpacked(walls, "mac.zip", bytes(data)) == with_parents({name: b"1"})


def test_a_tar_gz_of_many_gzip_members_comes_out(walls):
    raw = tar_with(GOOD)
    cuts = [0, *sorted(random.Random(3).sample(range(len(raw)), 30)), len(raw)]
    data = b"".join(gzip.compress(raw[a:b], 1) for a, b in zip(cuts, cuts[1:], strict=False))
    assert unpacked(walls, "parts.tar.gz", data) == with_parents(GOOD)


def test_a_tar_of_the_folder_dot_comes_out_without_it(walls):
    data = gzip.compress(tar_with({".": None, "./a": None, "./a/b": b"1", "./c": b"2"}))
    assert unpacked(walls, "dot.tgz", data) == {"a/": None, "a/b": b"1", "c": b"2"}


def test_a_folder_may_be_named_before_and_after_its_files_and_again(walls):
    names = ("a/", "a/b", "a/c/d", "a/c/", "a/")
    members = [entry(name, b"" if name.endswith("/") else b"1") for name in names]
    assert unpacked(walls, "a.zip", zip_of(*members)) == {"a/": None, "a/b": b"1", "a/c/": None, "a/c/d": b"1"}


def test_archives_of_nothing_give_nothing(walls):
    assert unpacked(walls, "nothing.zip", zip_of()) == {}
    assert unpacked(walls, "nothing.tar.gz", tar_gz()) == {}


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_many_small_files_come_out(walls, suffix):
    members = {f"{number % 20}/{number}.txt": str(number).encode() for number in range(200)}
    data = zip_with(members) if suffix == "zip" else gzip.compress(tar_with(members), 1)
    assert unpacked(walls, f"many.{suffix}", data) == with_parents(members)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_modes_owners_and_times_of_an_archive_are_not_taken_over(walls, suffix):
    members = {"a/": None, "a/tool": b"#!/bin/sh\n", "other": b"1"}
    data = zip_with(members, mode=0o106777) if suffix == "zip" else gzip.compress(tar_with(members, mode=0o6777))
    mask = os.umask(0o027)
    try:
        unpacked(walls, f"modes.{suffix}", data)
    finally:
        os.umask(mask)
    for path in walls.target.rglob("*"):
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == (0o750 if path.is_dir() else 0o640), path
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
        assert status.st_mtime > 1_000_000_000


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_target_that_is_not_there_is_made(walls, suffix):
    walls.target.rmdir()
    data = zip_with(SMALL) if suffix == "zip" else gzip.compress(tar_with(SMALL))
    assert unpacked(walls, f"good.{suffix}", data) == with_parents(SMALL)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_what_is_in_the_target_already_stays(walls, suffix):
    (walls.target / "mine").write_text("kept")
    data = zip_with(SMALL) if suffix == "zip" else gzip.compress(tar_with(SMALL))
    assert unpacked(walls, f"good.{suffix}", data) == with_parents(SMALL) | {"mine": b"kept"}


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_small_archive_may_be_far_smaller_than_what_is_in_it(walls, suffix):
    members = {f"labels/{number}.txt": bytes(MIB) for number in range(8)}
    data = zip_with(members) if suffix == "zip" else gzip.compress(tar_with(members))
    assert 200 * len(data) < 8 * MIB
    assert unpacked(walls, f"labels.{suffix}", data) == with_parents(members)


# Hostile archives: the file, its member to be named, and its bytes given a folder outside.

FOLDER_LINK, FILE_LINK = 0o120777, 0o120644


def tar_link(name, link, kind=b"2"):
    return header(name, kind=kind, link=link)


HOSTILE = {
    "zip slip": ("a.zip", "../x", lambda out: zip_of(entry("fine", b"1"), entry("../x", b"evil"))),
    "zip slip of a folder": ("a.zip", "../new/", lambda out: zip_of(entry("../new/"))),
    "zip slip in the middle": ("a.zip", "a/../../x", lambda out: zip_of(entry("a/"), entry("a/../../x", b"evil"))),
    "zip with dots that stay inside": ("a.zip", "a/../x", lambda out: zip_of(entry("a/"), entry("a/../x", b"evil"))),
    "zip of an absolute path": ("a.zip", None, lambda out: zip_of(entry(f"{out}/planted", b"evil"))),
    "zip of two slashes": ("a.zip", None, lambda out: zip_of(entry(f"/{out}/planted", b"evil"))),
    "zip of a drive": ("a.zip", "C:\\..\\x", lambda out: zip_of(entry("C:\\..\\x", b"evil"))),
    "zip of a drive and slash": ("a.zip", "c:/x", lambda out: zip_of(entry("c:/x", b"evil"))),
    "zip of backslashes": ("a.zip", "..\\..\\x", lambda out: zip_of(entry("..\\..\\x", b"evil"))),
    "zip of a symlink": ("a.zip", "link", lambda out: zip_of(entry("link", b"../x", mode=FILE_LINK))),
    "zip of a file through a symlink": (
        "a.zip",
        "link",
        lambda out: zip_of(entry("link", os.fsencode(out), mode=FOLDER_LINK), entry("link/planted", b"evil")),
    ),
    "zip of a symlink with a folder's name": ("a.zip", "d/", lambda out: zip_of(entry("d/", mode=FOLDER_LINK))),
    "zip of a character device": ("a.zip", "dev", lambda out: zip_of(entry("dev", mode=0o020666))),
    "zip of a block device": ("a.zip", "dev", lambda out: zip_of(entry("dev", mode=0o060666))),
    "zip of a fifo": ("a.zip", "pipe", lambda out: zip_of(entry("pipe", mode=0o010666))),
    "zip of a socket": ("a.zip", "sock", lambda out: zip_of(entry("sock", mode=0o140666))),
    "zip of a name twice": ("a.zip", "same", lambda out: zip_of(entry("same", b"1"), entry("same", b"2"))),
    "zip of a name and dot": ("a.zip", "./same", lambda out: zip_of(entry("same", b"1"), entry("./same", b"2"))),
    "zip of a name and slashes": ("a.zip", "a//b", lambda out: zip_of(entry("a/b", b"1"), entry("a//b", b"2"))),
    "zip of a file then folder": ("a.zip", "same/", lambda out: zip_of(entry("same", b"1"), entry("same/"))),
    "zip of a folder then file": ("a.zip", "same", lambda out: zip_of(entry("same/"), entry("same", b"1"))),
    "zip of a file below a file": ("a.zip", "a/b", lambda out: zip_of(entry("a", b"1"), entry("a/b", b"2"))),
    "zip of a file above a file": ("a.zip", "a", lambda out: zip_of(entry("a/b", b"1"), entry("a", b"2"))),
    "zip of a newline": ("a.zip", "a\nb", lambda out: zip_of(entry("a\nb", b"1"))),
    "zip of an escape": ("a.zip", "\x1b[2J", lambda out: zip_of(entry("\x1b[2J", b"1"))),
    "zip of a right-to-left override": ("a.zip", "a\u202eb", lambda out: zip_of(entry("a\u202eb", b"1"))),
    "zip of a NUL": ("a.zip", None, lambda out: zip_of(entry("member.txt\0.exe", b"1"))),
    "zip of a NUL first": ("a.zip", None, lambda out: zip_of(entry("\0member", b"1"))),
    "zip of no name": ("a.zip", None, lambda out: zip_of(entry("", b"1"))),
    "zip of the name dot": ("a.zip", None, lambda out: zip_of(entry(".", b"1"))),
    "zip of a name that is no text": ("a.zip", None, lambda out: zip_of(entry(b"\xed\xa0\x80", b"1"))),
    "zip of a long component": ("a.zip", "n" * 256, lambda out: zip_of(entry("n" * 256, b"1"))),
    "zip of a long path": ("a.zip", "path/path/", lambda out: zip_of(entry("path/" * 300 + "x", b"1"))),
    "zip of a very long slip": ("a.zip", "../nnn", lambda out: zip_of(entry("../" + "n" * 60_000, b"1"))),
    "zip of a very long control character": ("a.zip", "\n", lambda out: zip_of(entry("\n" * 60_000, b"1"))),
    "zip of a name that differs": ("a.zip", None, lambda out: zip_of(entry("other", b"1", listed=b"member"))),
    "zip of a folder's name that differs": ("a.zip", None, lambda out: zip_of(entry("other/", listed=b"member/"))),
    "zip of a folder with content": ("a.zip", "member/", lambda out: zip_of(entry("member/", b"lost"))),
    "zip of a bad CRC": ("a.zip", "member", lambda out: zip_of(entry("member", b"1", crc=7))),
    "zip of a bad CRC of nothing": ("a.zip", "member", lambda out: zip_of(entry("member", crc=7))),
    "zip of a size too large": ("a.zip", "member", lambda out: zip_of(entry("member", b"123", size=9))),
    "zip of a size too large, deflated": (
        "a.zip",
        "member",
        lambda out: zip_of(entry("member", b"123", packed=deflated(b"123"), method=8, size=9)),
    ),
    "zip of a size too small": ("a.zip", "member", lambda out: zip_of(entry("member", b"123456", size=3))),
    "zip of a size too small, deflated": (
        "a.zip",
        "member",
        lambda out: zip_of(entry("member", b"123456", packed=deflated(b"123456"), method=8, size=3)),
    ),
    "zip of a size and CRC too small": (
        "a.zip",
        "member",
        lambda out: zip_of(entry("member", b"123", packed=b"123456")),
    ),
    "zip of a bz2 member": (
        "a.zip",
        "member",
        lambda out: zip_of(entry("member", b"123", packed=bz2.compress(b"123"), method=12)),
    ),
    "zip of an lzma member": (
        "a.zip",
        "member",
        lambda out: zip_of(entry("member", b"123", packed=lzma_packed(b"123"), method=14)),
    ),
    "zip of a size far too large": ("a.zip", None, lambda out: zip_of(entry("member", b"123", size=64 * MIB + 1))),
    "zip of deflated data that are none": (
        "a.zip",
        "member",
        lambda out: zip_of(entry("member", b"123", packed=b"\xff\xff\xff", method=8)),
    ),
    "zip of deflated data that end": (
        "a.zip",
        "member",
        lambda out: zip_of(entry("member", b"123456" * 9, packed=deflated(b"123456" * 9)[:-4], method=8)),
    ),
    "zip of bz2 data that are none": (
        "a.zip",
        "member",
        lambda out: zip_of(entry("member", b"123", packed=b"BZh9" + b"junk" * 9, method=12)),
    ),
    "zip of lzma data that are none": (
        "a.zip",
        "member",
        lambda out: zip_of(entry("member", b"123", packed=lzma_packed(b"", b"\xff" * 5), method=14)),
    ),
    "zip that is encrypted": ("a.zip", "member", lambda out: zip_of(entry("member", bytes(20), flags=0x801))),
    "zip that is strongly encrypted": ("a.zip", "member", lambda out: zip_of(entry("member", bytes(20), flags=0x841))),
    "zip of an unknown compression": ("a.zip", "member", lambda out: zip_of(entry("member", b"1", method=98))),
    "zip of members over one another": (
        "a.zip",
        None,
        lambda out: (
            (local := entry("a", b"1" * 50)[0])
            + (lines := b"".join(entry(n, b"1" * 50)[1](0) for n in "abcd"))
            + zip_end(4, len(lines), len(local))
        ),
    ),
    "zip whose directory hides members in a comment": (
        "a.zip",
        None,
        lambda out: swallow(zip_of(entry("a", b"1"), entry("b", b"2"), entry("c", b"3")), field=32),
    ),
    "zip whose directory hides members in an extra field": (
        "a.zip",
        None,
        lambda out: swallow(zip_of(entry("a", b"1"), entry("b", b"2"), entry("c", b"3")), field=30),
    ),
    "zip whose end counts more members": (
        "a.zip",
        None,
        lambda out: zip_of(entry("a", b"1"))[:-22] + zip_end(9, 47, 32),
    ),
    "zip with garbage behind": ("a.zip", None, lambda out: zip_of(entry("a", b"1")) + b"garbage"),
    "zip with an empty zip behind": ("a.zip", None, lambda out: zip_of(entry("a", b"1")) + zip_of()),
    "zip of no bytes": ("a.zip", None, lambda out: b""),
    "zip that is a text": ("a.zip", None, lambda out: b"<html>404 Not Found</html>\n" * 20),
    "zip that is a tar.gz": ("a.zip", None, lambda out: gzip.compress(tar_with(SMALL))),
    "tar slip": ("a.tar.gz", "../x", lambda out: tar_gz(tar_file("fine", b"1"), tar_file("../x", b"evil"))),
    "tar slip of a folder": ("a.tar.gz", "../new", lambda out: tar_gz(header("../new", kind=b"5"))),
    "tar slip in the middle": (
        "a.tar.gz",
        "a/../../x",
        lambda out: tar_gz(header("a", kind=b"5"), tar_file("a/../../x", b"evil")),
    ),
    "tar slip in a long name": ("a.tar.gz", "../x", lambda out: tar_gz(long_name(b"../x"), tar_file("a", b"evil"))),
    "tar slip in a pax name": ("a.tar.gz", "../x", lambda out: tar_gz(pax(b"path", b"../x"), tar_file("a", b"evil"))),
    "tar of an absolute path": (
        "a.tar.gz",
        None,
        lambda out: tar_gz(pax(b"path", os.fsencode(out / "planted")), tar_file("a", b"evil")),
    ),
    "tar of a drive": ("a.tgz", "C:\\..\\x", lambda out: tar_gz(tar_file("C:\\..\\x", b"evil"))),
    "tar of backslashes": ("a.tgz", "..\\..\\x", lambda out: tar_gz(tar_file("..\\..\\x", b"evil"))),
    "tar of a relative symlink": ("a.tar.gz", "link", lambda out: tar_gz(tar_link("link", "../x"))),
    "tar of a symlink inside": ("a.tar.gz", "link", lambda out: tar_gz(tar_file("a", b"1"), tar_link("link", "a"))),
    "tar of a file through a relative symlink": (
        "a.tar.gz",
        "link",
        lambda out: tar_gz(tar_link("link", ".."), tar_file("link/planted", b"evil")),
    ),
    "tar of a file through an absolute symlink": (
        "a.tar.gz",
        "link",
        lambda out: tar_gz(
            pax(b"linkpath", os.fsencode(out)), tar_link("link", "out"), tar_file("link/planted", b"evil")
        ),
    ),
    "tar of a file over a symlink": (
        "a.tar.gz",
        "link",
        lambda out: tar_gz(tar_link("link", "../x"), tar_file("link", b"evil")),
    ),
    "tar of a hardlink outside": (
        "a.tar.gz",
        "link",
        lambda out: tar_gz(pax(b"linkpath", os.fsencode(out / "x")), tar_link("link", "x", b"1")),
    ),
    "tar of a hardlink slip": ("a.tar.gz", "link", lambda out: tar_gz(tar_link("link", "../x", b"1"))),
    "tar of a hardlink to a member": (
        "a.tar.gz",
        "link",
        lambda out: tar_gz(tar_file("a", b"1"), tar_link("link", "a", b"1")),
    ),
    "tar of a character device": ("a.tar.gz", "dev", lambda out: tar_gz(header("dev", kind=b"3"))),
    "tar of a block device": ("a.tar.gz", "dev", lambda out: tar_gz(header("dev", kind=b"4"))),
    "tar of a fifo": ("a.tar.gz", "pipe", lambda out: tar_gz(header("pipe", kind=b"6"))),
    "tar of an unknown kind": ("a.tar.gz", "odd", lambda out: tar_gz(header("odd", 1, b"Z"), blocks(b"1"))),
    "tar of a sparse file": ("a.tar.gz", "holes", lambda out: tar_gz(old_sparse("holes", 512), bytes(512))),
    "tar of a sparse file that ends": (
        "a.tar.gz",
        None,
        lambda out: tar_gz(old_sparse("holes", 512, extended=True), end=b""),
    ),
    "tar of a sparse file in pax": (
        "a.tar.gz",
        "holes",
        lambda out: tar_gz(
            pax(b"GNU.sparse.map", b"0,1"), header("holes", 1, extra=[(257, b"ustar\x0000")]), blocks(b"1")
        ),
    ),
    "tar of a name twice": ("a.tar.gz", "same", lambda out: tar_gz(tar_file("same", b"1"), tar_file("same", b"2"))),
    "tar of a name and dot": ("a.tar.gz", "same", lambda out: tar_gz(tar_file("same"), tar_file("./same", b"2"))),
    "tar of a file then folder": ("a.tgz", "same", lambda out: tar_gz(tar_file("same"), header("same", kind=b"5"))),
    "tar of a folder then file": ("a.tgz", "same", lambda out: tar_gz(header("same/", kind=b"5"), tar_file("same"))),
    "tar of a file below a file": ("a.tgz", "a/b", lambda out: tar_gz(tar_file("a", b"1"), tar_file("a/b", b"2"))),
    "tar of a newline": ("a.tar.gz", "a\nb", lambda out: tar_gz(tar_file("a\nb", b"1"))),
    "tar of a NUL": ("a.tar.gz", "a\0b", lambda out: tar_gz(pax(b"path", b"a\0b"), tar_file("a", b"1"))),
    "tar of a name that is no text": ("a.tar.gz", None, lambda out: tar_gz(tar_file(b"\xff\xfe", b"1"))),
    "tar of no name": ("a.tar.gz", None, lambda out: tar_gz(tar_file("", b"1"))),
    "tar of a long component": ("a.tgz", "n" * 256, lambda out: tar_gz(long_name(b"n" * 256), tar_file("a"))),
    "tar of a long path": ("a.tgz", "path/path", lambda out: tar_gz(long_name(b"path/" * 300 + b"x"), tar_file("a"))),
    "tar of a very long slip": ("a.tgz", None, lambda out: tar_gz(long_name(b"../" + b"n" * 60_000), tar_file("a"))),
    "tar of a size below 0": (
        "a.tar.gz",
        None,
        lambda out: tar_gz(header("member", extra=[(124, b"\xff" * 12)]), tar_file("b")),
    ),
    "tar of a size far too large": (
        "a.tar.gz",
        None,
        lambda out: tar_gz(header("member", extra=[(124, b"\x80" + b"\x7f" * 11)]), bytes(512)),
    ),
    "tar of long names without end": ("a.tar.gz", None, lambda out: tar_gz(long_name(b"a") * 5000, tar_file("a"))),
    "tar without an end": ("a.tar.gz", None, lambda out: tar_gz(tar_file("a", b"1"), tar_file("b", b"2"), end=b"")),
    "tar that ends in a header": (
        "a.tar.gz",
        None,
        lambda out: tar_gz(tar_file("a", b"1"), tar_file("b", b"2")[:300], end=b""),
    ),
    "tar that ends in a file": (
        "a.tar.gz",
        "member",
        lambda out: tar_gz(tar_file("member", b"1" * 5000)[:3000], end=b""),
    ),
    "tar that ends behind a long name": ("a.tar.gz", None, lambda out: tar_gz(tar_file("a"), long_name(b"b"), end=b"")),
    "tar with a damaged first header": ("a.tar.gz", None, lambda out: tar_gz(b"b" + tar_file("a", b"1")[1:])),
    "tar with a damaged header in the middle": (
        "a.tar.gz",
        None,
        lambda out: tar_gz(tar_file("a", b"1"), b"x" + tar_file("b", b"2")[1:], tar_file("c", b"3")),
    ),
    "tar with a header of zeros in the middle": (
        "a.tar.gz",
        None,
        lambda out: tar_gz(tar_file("a", b"1"), bytes(512), blocks(b"2"), tar_file("c", b"3")),
    ),
    "tar with members behind its end": ("a.tar.gz", None, lambda out: tar_gz(tar_file("a"), TAR_END, tar_file("b"))),
    "tar with garbage behind its end": ("a.tar.gz", None, lambda out: tar_gz(tar_file("a"), TAR_END + b"garbage")),
    "tar.gz with garbage behind": ("a.tar.gz", None, lambda out: tar_gz(tar_file("a", b"1")) + b"garbage"),
    "tar.gz of a bad CRC": ("a.tar.gz", None, lambda out: tar_gz(tar_file("a"))[:-8] + b"\0" * 8),
    "tar.gz of a bad length": ("a.tar.gz", None, lambda out: tar_gz(tar_file("a"))[:-1] + b"\1"),
    "tar.gz of a bad CRC in its first part": (
        "a.tar.gz",
        None,
        lambda out: gzip.compress(tar_file("a"))[:-8] + b"\0" * 8 + gzip.compress(TAR_END),
    ),
    "tar.gz of no bytes": ("a.tar.gz", None, lambda out: b""),
    "tar.gz of no tar": ("a.tar.gz", None, lambda out: gzip.compress(b"")),
    "tar.gz that is a text": ("a.tar.gz", None, lambda out: b"<html>404 Not Found</html>\n" * 20),
    "tar.gz of a text": ("a.tar.gz", None, lambda out: gzip.compress(b"just a text\n" * 200)),
    "tar.gz that is a tar": ("a.tar.gz", None, lambda out: tar_with(SMALL)),
    "tar.gz that is a zip": ("a.tar.gz", None, lambda out: zip_with(SMALL)),
    "rar": ("a.rar", None, lambda out: b"Rar!\x1a\x07\x00"),
    "tar that is a tar.gz": ("a.tar", None, lambda out: gzip.compress(tar_with(SMALL))),
    "tar.bz2": ("a.tar.bz2", None, lambda out: bz2.compress(tar_with(SMALL))),
    "gz": ("a.gz", None, lambda out: gzip.compress(b"1")),
    "no suffix": ("zip", None, lambda out: zip_with(SMALL)),
}


def swallow(data, field):
    """A zip whose first line in the directory says that the other lines are its comment or extra field."""
    data = bytearray(data)
    directory = struct.unpack_from("<I", data, len(data) - 6)[0]
    line = 46 + struct.unpack_from("<H", data, directory + 28)[0]
    struct.pack_into("<H", data, directory + field, len(data) - 22 - directory - line)
    if field == 30:
        struct.pack_into("<2H", data, directory + line, 0x6666, len(data) - 22 - directory - line - 4)
    return bytes(data)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_outside(walls, case):
    name, member, build = HOSTILE[case]
    kind = DiskError if case.endswith("of a long component") else ArchiveError  # no disk here takes such a name
    refused(walls, name, build(walls.outside), member, kind)


@pytest.mark.parametrize(
    "case",
    [
        "zip of deflated data that end",
        "zip of bz2 data that are none",
        "zip of lzma data that are none",
        "tar that ends in a file",
    ],
)
def test_a_refusal_says_why(walls, case):
    name, _, build = HOSTILE[case]
    message = refused(walls, name, build(walls.outside))
    assert "()" not in message
    assert "None" not in message
    assert "target" not in message.replace(str(walls.home / "archives"), "")


def test_a_suffix_that_is_not_allowed_is_answered_with_those_that_are(walls):
    assert all(suffix in refused(walls, "a.rar", b"") for suffix in (".zip", ".tar.gz", ".tgz"))


def test_an_archive_of_several_members_is_refused_with_the_one_that_is_hostile(walls):
    message = refused(walls, "a.zip", zip_of(entry("good", b"1"), entry("../bad", b"2"), entry("unseen", b"3")))
    assert "../bad" in message
    assert "good" not in message
    assert contents(walls.target) == {"good": b"1"}


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path, suffix):
    members = {f"{number}/noise": random.Random(number).randbytes(2000) for number in range(20)}
    data = zip_with(members) if suffix == "zip" else gzip.compress(tar_with(members))
    ends = [*random.Random(4).sample(range(len(data)), 20), len(data) - 1]
    for end in ends:
        refused(Walls(tmp_path / str(end)), f"cut.{suffix}", data[:end])


def test_a_tar_truncated_at_any_header_is_refused(tmp_path):
    members = {f"{number}": bytes(100 * number) for number in range(6)}
    raw = tar_with(members, tarfile.GNU_FORMAT)
    with tarfile.open(fileobj=io.BytesIO(raw)) as file:
        starts = [member.offset for member in file]
    for start in starts:
        refused(Walls(tmp_path / str(start)), "cut.tar.gz", gzip.compress(raw[:start]))


# Bombs and caps.


ZEROS = bytes(16 * MIB)


@pytest.fixture
def four_mib(monkeypatch):
    """Limits the size of what small archives are unpacked to."""
    monkeypatch.setattr(module, "RATIO_FROM_BYTES", 4 * MIB)


def test_a_zip_bomb_is_refused_before_anything_is_written(walls, four_mib):
    bomb = zip_of(entry("fine", b"1"), entry("bomb", ZEROS, packed=deflated(ZEROS), method=8))
    assert "would unpack" in refused(walls, "bomb.zip", bomb)
    assert walls.size() == 0


def test_a_zip_bomb_that_lies_of_its_size_is_refused_with_little_written(walls):
    refused(walls, "bomb.zip", zip_of(entry("bomb", b"tiny", packed=deflated(ZEROS), method=8)), "bomb")
    assert walls.size() <= 2 * MIB


def test_a_zip_bomb_of_members_that_overlap_is_refused(walls):
    bomb = overlapping_zip(60, 4 * MIB)
    with zipfile.ZipFile(io.BytesIO(bomb)) as file:
        assert sum(member.file_size for member in file.infolist()) > 240 * MIB > 10_000 * len(bomb)
    refused(walls, "bomb.zip", bomb)
    assert walls.size() <= 64 * MIB


def test_a_tar_bomb_is_refused_before_its_file_is_written(walls, four_mib):
    bomb = tar_gz(tar_file("fine", b"1"), header("bomb", len(ZEROS)), ZEROS)
    assert "would unpack" in refused(walls, "bomb.tar.gz", bomb)
    assert walls.size() <= 1


def test_a_tar_bomb_of_many_files_is_refused_with_no_more_written_than_allowed(walls, four_mib):
    bomb = tar_gz(*[tar_file(f"{number}", bytes(MIB // 4)) for number in range(30)])
    refused(walls, "bomb.tar.gz", bomb)
    assert 3 * MIB < walls.size() <= 4 * MIB


def test_zeros_without_end_behind_a_tar_are_refused(walls, four_mib):
    refused(walls, "bomb.tar.gz", tar_gz(tar_file("fine", b"1"), TAR_END, ZEROS))


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_beyond_the_size_of_small_archives_the_ratio_is_capped(walls, monkeypatch, suffix):
    monkeypatch.setattr(module, "RATIO_FROM_BYTES", 100_000)
    noise = random.Random(5).randbytes(20_000)

    def packed(size):
        members = {"noise": noise, "zeros": bytes(size)}
        return zip_with(members) if suffix == "zip" else gzip.compress(tar_with(members))

    refused(walls, f"too_small.{suffix}", packed(3_000_000))
    members = unpacked(walls, f"large_enough.{suffix}", packed(1_800_000))
    assert members == {"noise": noise, "zeros": bytes(1_800_000)}


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_no_archive_gives_more_than_the_most_bytes(walls, monkeypatch, suffix):
    monkeypatch.setattr(module, "MAX_BYTES", 20_000)

    def packed(size):
        members = {"a": bytes(10_000), "b": bytes(size)}
        return zip_with(members) if suffix == "zip" else gzip.compress(tar_with(members))

    assert "20000" in refused(walls, f"more.{suffix}", packed(10_001))
    assert unpacked(walls, f"most.{suffix}", packed(10_000)) == {"a": bytes(10_000), "b": bytes(10_000)}


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
@pytest.mark.parametrize("content", [b"", None], ids=["files", "folders"])
def test_no_archive_gives_more_than_the_most_members(walls, monkeypatch, suffix, content):
    monkeypatch.setattr(module, "MAX_MEMBERS", 50)
    members = {f"{number}{'/' * (content is None)}": content for number in range(60)}
    data = zip_with(members) if suffix == "zip" else gzip.compress(tar_with(members))
    assert "50" in refused(walls, f"many.{suffix}", data)
    assert len(contents(walls.target)) <= 50


def test_folders_that_are_only_named_in_paths_count_as_members(walls, monkeypatch):
    monkeypatch.setattr(module, "MAX_MEMBERS", 50)
    refused(walls, "deep.zip", zip_of(*[entry(f"{number}/a/b/c/d/e/f/g/h", b"1") for number in range(10)]))


def test_headers_without_files_are_capped_as_bytes_are(walls, monkeypatch):
    monkeypatch.setattr(module, "RATIO_FROM_BYTES", 10_000)
    refused(walls, "headers.tar.gz", tar_gz(header("same", kind=b"5") * 5000, level=9))


# Archives that would take too much memory or time: in a process of their own.

LIMITED = """
import json, resource, sys, tracemalloc
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from bbnet.data.unpack import ArchiveError, unpack
for archive, target in json.loads(sys.argv[1]):
    tracemalloc.start()
    try:
        unpack(Path(archive), Path(target))
        outcome = "unpacked"
    except ArchiveError as error:
        outcome = "refused"
    except BaseException as error:
        outcome = type(error).__name__
    print(outcome, tracemalloc.get_traced_memory()[1], flush=True)
    tracemalloc.stop()
"""
BOMB = 16 * MIB
GREEDY = {
    "pax header": lambda: tar_gz(pax(b"comment", bytes(BOMB)), tar_file("a", b"1")),
    "global pax header": lambda: tar_gz(header("g", BOMB, b"g"), bytes(BOMB), tar_file("a", b"1")),
    "long name": lambda: tar_gz(header("L", BOMB, b"L"), b"n" * BOMB, tar_file("a", b"1")),
    "long link": lambda: tar_gz(header("K", BOMB, b"K"), b"n" * BOMB, tar_file("a", b"1")),
    "pax header of digits": lambda: tar_gz(pax_block(b"1" * MIB), tar_file("a", b"1")),
    "folders in folders": lambda: tar_gz(
        *[long_name(b"%d/" % number + b"d/" * 505 + b"file") + tar_file("x") for number in range(12)]
    ),
    "deflated bomb": lambda: zip_of(entry("a", b"tiny", packed=deflated(bytes(BOMB)), method=8)),
    "bz2 bomb": lambda: zip_of(entry("a", b"tiny", packed=bz2.compress(bytes(BOMB)), method=12)),
    "lzma bomb": lambda: zip_of(entry("a", b"tiny", packed=lzma_packed(bytes(BOMB)), method=14)),
    "lzma dictionary": lambda: zip_of(entry("a", packed=lzma_packed(b"", b"\x5d\xff\xff\xff\xff"), method=14)),
}


def test_no_archive_takes_much_memory_or_time(tmp_path):
    every = {case: Walls(tmp_path / case) for case in GREEDY}
    pairs = []
    for case, walls in every.items():
        data = GREEDY[case]()
        archive = walls.archive("greedy.zip" if data.startswith(b"PK") else "greedy.tar.gz", data)
        pairs.append((str(archive), str(walls.target)))
    before = [walls.seen() for walls in every.values()]
    command = [sys.executable, "-c", LIMITED, json.dumps(pairs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert [walls.seen() for walls in every.values()] == before
    for case, line in zip(every, done.stdout.splitlines(), strict=True):
        outcome, peak = line.split()
        assert outcome == "refused", case
        assert int(peak) < 8 * MIB, case


# The disk.


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_file_in_the_target_where_a_folder_is_needed_is_an_error(walls, suffix):
    (walls.target / "folder").write_text("mine")
    data = zip_with(SMALL) if suffix == "zip" else gzip.compress(tar_with(SMALL))
    assert "folder" in refused(walls, f"good.{suffix}", data, kind=DiskError)
    assert contents(walls.target) == {"folder": b"mine"}


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_folder_in_the_target_where_a_file_is_needed_is_an_error(walls, suffix):
    (walls.target / "noise").mkdir()
    data = zip_with(SMALL) if suffix == "zip" else gzip.compress(tar_with(SMALL))
    assert "noise" in refused(walls, f"good.{suffix}", data, kind=DiskError)


def test_a_file_in_place_of_the_target_is_an_error(walls):
    walls.target.rmdir()
    walls.target.write_text("mine")
    refused(walls, "good.zip", zip_with(SMALL), kind=DiskError)
    assert walls.target.read_text() == "mine"


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_full_disk_is_an_error(walls, suffix):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(walls.target)]
    try:
        mounted = subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        members = {"first": b"1", "large": random.Random(6).randbytes(3 * MIB)}
        data = zip_with(members) if suffix == "zip" else gzip.compress(tar_with(members))
        assert "No space left" in refused(walls, f"large.{suffix}", data, kind=DiskError)
    finally:
        subprocess.run(["umount", str(walls.target)], check=True)


def test_an_archive_that_is_not_there_is_no_damaged_one(walls):
    with pytest.raises(DiskError, match="No such file") as caught:
        unpack(walls.home / "archives" / "gone.zip", walls.target)
    assert str(walls.home / "archives" / "gone.zip") in str(caught.value)


@contextmanager
def largest_file(size):
    """Lets files of this process grow to `size` bytes at most."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_file_that_may_not_grow_is_an_error_of_the_disk(walls, suffix):
    members = {"first": b"1", "large": random.Random(6).randbytes(3 * MIB)}
    data = zip_with(members) if suffix == "zip" else gzip.compress(tar_with(members))
    archive = walls.archive(f"large.{suffix}", data)
    with pytest.raises(DiskError, match="File too large") as caught, largest_file(MIB):
        unpack(archive, walls.target)
    message = str(caught.value)
    assert message.startswith(f"{archive}: cannot be unpacked: ") and len(message.splitlines()) == 1
    assert contents(walls.target)["first"] == b"1"


# Damage by chance.


def outcome_of(walls, name, data):
    archive = walls.archive(name, data)
    before = walls.seen()
    try:
        unpack(archive, walls.target)
        outcome = contents(walls.target)
    except ArchiveError as error:
        outcome = str(error)
        assert type(error) is ArchiveError or "File name too long" in outcome  # damage is no fault of the disk
        assert outcome.isprintable()
        assert str(archive) in outcome
    assert walls.seen() == before
    walls.check_target()
    return outcome


@pytest.mark.parametrize("changes", [60, pytest.param(500, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_changed_byte_is_an_error_or_changes_nothing(tmp_path, suffix, changes):
    good = zip_with(SMALL) if suffix == "zip" else gzip.compress(tar_with(SMALL), mtime=0)
    chance = random.Random(7)
    wrong = {}
    for number in range(changes):
        data = bytearray(good)
        at, change = chance.randrange(len(data)), chance.randrange(1, 256)
        data[at] ^= change
        outcome = outcome_of(Walls(tmp_path / str(number)), f"damaged.{suffix}", bytes(data))
        if not isinstance(outcome, str) and outcome != with_parents(SMALL):
            wrong[at, change] = outcome
    assert wrong == {}


@pytest.mark.parametrize("changes", [60, pytest.param(500, marks=pytest.mark.thorough)])
def test_a_changed_header_with_the_right_checksum_stays_inside(tmp_path, changes):
    raw = tar_with(SMALL, tarfile.GNU_FORMAT)
    with tarfile.open(fileobj=io.BytesIO(raw)) as file:
        starts = [member.offset for member in file]
    chance = random.Random(8)
    for number in range(changes):
        data = bytearray(raw)
        start = chance.choice(starts)
        data[start + chance.choice([*range(20), *range(124, 136), 156, 156, 157, *range(257, 265), 482])] ^= (
            chance.randrange(1, 256)
        )
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        outcome_of(Walls(tmp_path / str(number)), "changed.tar.gz", gzip.compress(bytes(data), 1))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_litter_that_cannot_be_unpacked_is_left_out(tmp_path, kind):
    """Links, and in a zip file also members in another compression; readers would not see them in a folder either."""
    archive, target = tmp_path / f"pack.{kind}", tmp_path / "target"
    target.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("train/a.png", b"pixels")
            file.writestr("train/.DS_Store", b"litter", zipfile.ZIP_BZIP2)
            link = zipfile.ZipInfo("train/@eaDir/link")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(link, b"/etc/passwd")
    else:
        with tarfile.open(archive, "w:gz") as file:
            content = tarfile.TarInfo("train/a.png")
            content.size = 6
            file.addfile(content, io.BytesIO(b"pixels"))
            for name in ("train/.link", "train/@eaDir/link"):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                file.addfile(link)
    unpack(archive, target)
    assert [path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()] == ["train/a.png"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    "again",
    [
        "._b",  # twice
        "__MACOSX/../x",
        "__MACOSX/in/../../../x",
        "__MACOSX",  # a file in place of a folder
        "._b/inside",  # below a file
        "._b/inner/",
    ],
)
def test_litter_without_a_place_of_its_own_is_left_out(tmp_path, kind, again):
    members = {"a": b"1", "__MACOSX/._a": b"2", "._b": b"3"}
    archive, target = tmp_path / f"pack.{kind}", tmp_path / "out" / "target"
    if kind == "zip":
        archive.write_bytes(zip_of(*(entry(*member) for member in members.items()), entry(again, b"")))
    else:
        last = header(again, kind=b"5") if again.endswith("/") else tar_file(again, b"")
        archive.write_bytes(tar_gz(*(tar_file(*member) for member in members.items()), last))
    unpack(archive, target)
    found = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == members
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["target"]


@pytest.mark.parametrize("name", ["../.ssh/keys", "a/../.x", "./../.x", "/.x", "__MACOSX\\x"])
def test_a_path_that_leads_elsewhere_before_it_reaches_litter_is_refused(walls, name):
    assert name.replace("\\", "\\\\") in refused(walls, "a.zip", zip_of(entry("a/"), entry(name, b"evil")))
