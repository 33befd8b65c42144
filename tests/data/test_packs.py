"""Tests the table of published packs, and how packs are downloaded, checked and unpacked."""

import hashlib
import io
import itertools
import logging
import os
import re
import resource
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from torchvision.datasets.voc import DATASET_YEAR_DICT

from bbnet.data import fetch, packs
from bbnet.data.packs import TABLE, bring, bring_own, read_pack, refuse_incomplete, spread
from bbnet.data.unpack import ArchiveError, DiskError

NAMES = list(yaml.safe_load(TABLE.read_text(encoding="utf-8")))
SHA256 = {
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
}
MD5 = {
    "train": "a638e71f480628652dea78d8544307e4",
    "val": "f7b857978524f9aa8c3bf7f94e3047a4",
    "test": "07d5dd89e46f5c1359e2eca746989ed9",
}
HOLDING = ("A", "*.txt")


# The table


def test_every_pack_of_the_table_is_complete():
    assert set(NAMES) >= {"librispeech", "levir_cd", "faces", "imagenet_resnet101"}
    for name in NAMES:
        pack = read_pack(name)
        assert pack.title and pack.licence and pack.cite
        assert urlsplit(pack.home).scheme == "https"
        for file, published in pack.files.items():
            source = published.source(file)
            assert source.name == file
            assert len(set(source.urls)) == len(source.urls) > 0
            assert all(urlsplit(url).scheme == "https" and urlsplit(url).hostname for url in source.urls)
            assert not any("{" in url for url in source.urls)
            assert source.digits == (published.md5 if source.algorithm == "md5" else published.sha256)


def test_librispeech_has_its_checksums():
    for part, digits in SHA256.items():
        source = read_pack("librispeech").files[f"{part}.tar.gz"].source(f"{part}.tar.gz")
        assert (source.algorithm, source.digits) == ("sha256", digits)


def test_librispeech_has_the_numbers_of_its_paper():
    pack = read_pack("librispeech")
    assert pack.counts == {
        "train-clean-100": 28539,
        "train-clean-360": 104014,
        "train-other-500": 148688,
        "dev-clean": 2703,
        "dev-other": 2864,
        "test-clean": 2620,
        "test-other": 2939,
    }
    assert {f"{part}.tar.gz" for part in pack.counts} == set(pack.files)
    assert {part: pack.hours[part] for part in ("train-clean-100", "train-clean-360", "train-other-500")} == {
        "train-clean-100": 100.6,
        "train-clean-360": 363.6,
        "train-other-500": 496.7,
    }
    assert all(len(file.sha256) == 64 and file.size > 3e8 and file.into == "" for file in pack.files.values())


def test_levir_cd_has_its_checksums():
    for part, digits in MD5.items():
        file = read_pack("levir_cd").files[f"{part}.zip"]
        source = file.source(f"{part}.zip")
        assert (source.algorithm, source.digits, file.into) == ("md5", digits, part)


def test_levir_cd_has_its_numbers():
    pack = read_pack("levir_cd")
    assert pack.counts == {"train": 445, "val": 64, "test": 128}
    assert pack.image_size == 1024
    assert {f"{part}.zip" for part in pack.counts} == set(pack.files)
    assert all(f"/{name}" in file.source(name).urls[0] for name, file in pack.files.items())


def test_voc_has_its_checksums_and_its_numbers():
    """As torchvision has them, and 16,551 images to train on."""
    pack = read_pack("voc")
    for published in ("2007", "2007-test", "2012"):
        entry = DATASET_YEAR_DICT[published]
        source = pack.files[entry["filename"]].source(entry["filename"])
        assert (source.algorithm, source.digits) == ("md5", entry["md5"])
        assert all(urlsplit(url).path.endswith(f"/{entry['filename']}") for url in source.urls)
    assert pack.counts["trainval2007"] + pack.counts["trainval2012"] == 16551
    assert pack.counts["test2007"] == 4952


def test_faces_have_their_numbers_and_a_notice():
    pack = read_pack("faces")
    assert pack.counts == {"identities": 7001, "train": 140020, "known": 960, "unknown_dev": 360, "unknown_test": 720}
    assert "photographs of people" in pack.notice


def test_weights_of_torchvision_have_its_address_and_the_digits_of_their_name():
    pack = read_pack("imagenet_resnet101")
    ((name, file),) = pack.files.items()
    source = file.source(name)
    assert source.urls[0].startswith("https://download.pytorch.org/") and source.urls[0].endswith(name)
    assert source.algorithm == "sha256" and f"-{source.digits}." in name


def plain(**changes):
    pack = {
        "title": "A pack",
        "home": "https://example.org",
        "licence": "CC0",
        "cite": "Nobody",
        "files": {"a.zip": {"urls": ["https://example.org/{file}"]}},
    }
    return pack | changes


def write_table(folder, pack):
    table = folder / "table.yaml"
    table.write_text(yaml.safe_dump({"mine": pack}))
    return table


def test_a_plain_pack_is_read(tmp_path):
    pack = read_pack("mine", write_table(tmp_path, plain()))
    source = pack.files["a.zip"].source("a.zip")
    assert source.urls == ("https://example.org/a.zip",)
    assert (source.size, source.algorithm, source.digits) == (None, "sha256", None)


def one_file(**changes):
    return plain(files={"a.zip": {"urls": ["https://example.org"]} | changes})


BROKEN = [
    ({key: value for key, value in plain().items() if key != "licence"}, "mine.licence"),
    (plain(license="CC0"), "mine.license"),
    (plain(title=["a"]), "mine.title"),
    (plain(files={}), "mine.files"),
    (plain(files=["a.zip"]), "mine.files"),
    (plain(files={"a.zip": None}), "mine.files.a.zip"),
    (plain(files={"../a.zip": {"urls": ["https://example.org"]}}), "mine.files"),
    (plain(files={".a.zip": {"urls": ["https://example.org"]}}), "mine.files"),
    (one_file(urls=[]), "mine.files.a.zip.urls"),
    (one_file(urls="https://example.org"), "mine.files.a.zip.urls"),
    (one_file(size=0), "mine.files.a.zip.size"),
    (one_file(size="large"), "mine.files.a.zip.size"),
    (one_file(sha256="G" * 64), "mine.files.a.zip.sha256"),
    (one_file(sha256="abc"), "mine.files.a.zip.sha256"),
    (one_file(sha256="A" * 64), "mine.files.a.zip.sha256"),
    (one_file(md5="a" * 31), "mine.files.a.zip.md5"),
    (one_file(md5="a" * 32, sha256="a" * 64), "mine.files.a.zip"),
    (one_file(into="../up"), "mine.files.a.zip.into"),
    (one_file(sha1="a" * 40), "mine.files.a.zip.sha1"),
    (plain(counts={"train": -1}), "mine.counts.train"),
    (plain(hours={"train": "many"}), "mine.hours.train"),
    (plain(image_size="large"), "mine.image_size"),
    (None, "mine"),
    ("a pack", "mine"),
]


def test_a_broken_pack_is_an_error_that_names_the_key(tmp_path):
    for pack, key in BROKEN:
        table = write_table(tmp_path, pack)
        with pytest.raises(ValueError) as caught:
            read_pack("mine", table)
        message = str(caught.value)
        assert type(caught.value) is ValueError
        assert message.startswith(f"{table}: {key}: ") and len(message.splitlines()) == 1, key


def test_a_pack_that_the_table_lacks_is_an_error_that_names_the_others(tmp_path):
    table = write_table(tmp_path, plain())
    with pytest.raises(ValueError, match=re.escape(f"{table}: has no pack yours; it has mine")):
        read_pack("yours", table)


def test_an_invalid_table_is_an_error_of_one_line_that_names_it(tmp_path):
    table = tmp_path / "table.yaml"
    for text in ("mine: [1,", "", "- mine\n", "mine", "\t- a"):
        table.write_text(text)
        with pytest.raises(ValueError, match=re.escape(f"{table}: ")) as caught:
            read_pack("mine", table)
        assert type(caught.value) is ValueError and len(str(caught.value).splitlines()) == 1


# Bringing a pack


def zip_of(path, **contents):
    """An archive of these files; `__` in a name stands for a slash, `_txt` at its end for a suffix."""
    with zipfile.ZipFile(path, "w") as file:
        for name, text in contents.items():
            file.writestr(name.replace("__", "/").replace("_txt", ".txt"), text)
    return path


def tar_of(path, **contents):
    with tarfile.open(path, "w:gz") as file:
        for name, text in contents.items():
            member = tarfile.TarInfo(name.replace("__", "/").replace("_txt", ".txt"))
            member.size = len(text)
            file.addfile(member, io.BytesIO(text.encode()))
    return path


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def digest_of(path, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, path.read_bytes()).hexdigest()}"


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Makes the table hold one pack, `mine`, of these files."""

    def write(**changes):
        monkeypatch.setattr(packs, "TABLE", write_table(tmp_path, plain(**changes)))

    write(files={name: {"urls": ["http://127.0.0.1:1/{file}"]} for name in ("a.zip", "b.tar.gz")})
    return write


@pytest.fixture
def bring_from(tmp_path, publish):
    """Brings the pack `mine` from a path into a new folder, from which nothing is fetched."""
    (tmp_path / "target").mkdir()

    def call(path, holding=HOLDING, **more):
        return bring("mine", str(path), tmp_path / "target", tmp_path / "downloads", holding=holding, **more)

    yield call
    assert not (tmp_path / "downloads").exists()


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def test_a_local_folder_is_taken_where_it_is(bring_from, tmp_path, home):
    (home / "A").mkdir()
    root, manifest = bring_from(home)
    assert root == home
    assert manifest == {"root": str(home)}
    assert list((tmp_path / "target").iterdir()) == []


def test_a_local_folder_around_the_content_is_left_out(bring_from, home):
    (home / "LEVIR" / "A").mkdir(parents=True)
    (home / "__MACOSX").mkdir()
    (home / ".cache").mkdir()
    assert bring_from(home)[0] == home / "LEVIR"


def test_a_local_folder_of_two_folders_is_no_outer_folder(bring_from, home):
    (home / "x").mkdir()
    (home / "y").mkdir()
    assert bring_from(home)[0] == home


def test_a_path_may_be_relative(bring_from, home, monkeypatch):
    (home / "A").mkdir()
    monkeypatch.chdir(home.parent)
    assert bring_from("home")[0] == home


def test_files_beside_an_outer_folder_are_named(bring_from, home, caplog):
    (home / "outer" / "A").mkdir(parents=True)
    (home / "README").write_text("about")
    assert bring_from(home)[0] == home / "outer"
    assert f"{home}: files that are not read: 1: README; what is read: outer/" in caplog.text


def test_an_unpacked_folder_with_an_archive_beside_is_taken_as_unpacked(bring_from, tmp_path, home):
    (home / "A").mkdir()
    zip_of(home / "a.zip", A__1="1")
    assert bring_from(home) == (home, {"root": str(home)})
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("make, name", [(zip_of, "any.zip"), (tar_of, "any.tar.gz"), (tar_of, "ANY.TGZ")])
def test_a_single_archive_is_unpacked(bring_from, tmp_path, home, make, name):
    archive = make(home / name, A__1="one", note_txt="two")
    root, manifest = bring_from(archive)
    assert root == tmp_path / "target"
    assert files_below(root) == {"A/1": "one", "note.txt": "two"}
    assert manifest == {"root": ".", "files": {name: digest_of(archive)}}
    assert archive.exists()


def test_an_outer_folder_in_an_archive_is_left_out_of_the_root(bring_from, tmp_path, home):
    archive = zip_of(home / "any.zip", outer__A__1="one", outer__note_txt="two")
    root, manifest = bring_from(archive)
    assert root == tmp_path / "target" / "outer"
    assert manifest["root"] == "outer"
    assert (root / "A" / "1").read_text() == "one"


def test_an_only_folder_that_is_the_content_is_no_outer_folder(bring_from, tmp_path, home):
    archive = zip_of(home / "any.zip", A__B__1="one")
    assert bring_from(archive)[0] == tmp_path / "target"


def test_a_folder_of_all_archives_is_unpacked(bring_from, tmp_path, home):
    first = zip_of(home / "a.zip", A__1="one")
    second = tar_of(home / "b.tar.gz", A__2="two")
    (home / "readme").write_text("beside")
    root, manifest = bring_from(home)
    assert files_below(root) == {"A/1": "one", "A/2": "two"}
    assert manifest == {"root": ".", "files": {"a.zip": digest_of(first), "b.tar.gz": digest_of(second)}}


def test_a_folder_that_lacks_an_archive_is_an_error_that_names_it(bring_from, tmp_path, home):
    zip_of(home / "a.zip", A__1="one")
    with pytest.raises(ValueError, match=re.escape(f"{home}: lacks b.tar.gz; it has only a.zip")):
        bring_from(home)
    assert list((tmp_path / "target").iterdir()) == []


def test_a_folder_that_lacks_an_archive_nobody_needs_is_unpacked(bring_from, home):
    archive = zip_of(home / "a.zip", A__1="one")
    root, manifest = bring_from(home, parts=["a.zip"])
    assert files_below(root) == {"A/1": "one"}
    assert manifest["files"] == {"a.zip": digest_of(archive)}


@pytest.mark.parametrize("beside", [("x",), ("x", "y"), (".cache", "x", "__MACOSX")])
def test_a_folder_of_all_archives_beside_other_folders_is_unpacked(bring_from, home, beside):
    first = zip_of(home / "a.zip", A__1="one")
    second = tar_of(home / "b.tar.gz", A__2="two")
    for name in beside:
        (home / name / "inside").mkdir(parents=True)
    root, manifest = bring_from(home)
    assert files_below(root) == {"A/1": "one", "A/2": "two"}
    assert manifest["files"] == {"a.zip": digest_of(first), "b.tar.gz": digest_of(second)}


@pytest.mark.parametrize("outer", ["", "outer"])
def test_a_folder_of_all_archives_that_holds_the_unpacked_pack_is_taken_as_it_is(bring_from, tmp_path, home, outer):
    zip_of(home / "a.zip", A__1="one")
    tar_of(home / "b.tar.gz", A__2="two")
    (home / outer / "A").mkdir(parents=True)
    root, manifest = bring_from(home)
    assert root == home / outer and manifest == {"root": str(root)}
    assert list((tmp_path / "target").iterdir()) == []


def test_a_folder_beside_some_archives_does_not_make_up_for_those_that_lack(bring_from, home):
    zip_of(home / "a.zip", A__1="one")
    (home / "x").mkdir()
    with pytest.raises(ValueError, match=re.escape(f"{home}: lacks b.tar.gz; it has only a.zip")):
        bring_from(home)


def test_a_path_of_a_file_that_is_no_archive_is_refused_with_what_is_allowed(bring_from, tmp_path, home):
    for name in ("weights.pth", "pack.rar", "pack.tar.bz2", "pack.gz", "zip", "a.zip.part"):
        (home / name).write_text("something")
        with pytest.raises(ValueError) as caught:
            bring_from(home / name)
        allowed = "allowed are .zip, .tar.gz, .tgz, .tar"
        assert str(caught.value) == f"{home / name}: is neither a folder nor an archive; {allowed}"
    assert list((tmp_path / "target").iterdir()) == []


def test_a_path_of_a_file_that_only_is_called_an_archive_is_refused_and_stays(bring_from, home):
    (home / "a.zip").write_text("something")
    with pytest.raises(ArchiveError, match=re.escape(f"{home / 'a.zip'}: is encrypted, damaged or truncated")):
        bring_from(home / "a.zip")
    assert (home / "a.zip").read_text() == "something"


def test_a_path_where_nothing_lies_is_an_error_that_names_it(bring_from, home):
    with pytest.raises(ValueError, match=re.escape(f"{home / 'nothing'}: there is no such folder or archive")):
        bring_from(home / "nothing")


@pytest.mark.parametrize("inner", ["", "train__"], ids=["flat", "folder"])
def test_an_archive_goes_into_its_folder_with_or_without_one_of_that_name(bring_from, publish, home, inner):
    publish(files={f"{part}.zip": {"urls": ["http://127.0.0.1:1/"], "into": part} for part in ("train", "val")})
    zip_of(home / "train.zip", **{f"{inner}A__1": "one", f"{inner}B__1": "two"})
    zip_of(home / "val.zip", A__1="three")
    root, manifest = bring_from(home, holding=("train", "val"))
    assert files_below(root) == {"train/A/1": "one", "train/B/1": "two", "val/A/1": "three"}
    assert manifest["root"] == "."


def test_litter_does_not_keep_an_archive_in_its_outer_folder(bring_from, publish, home):
    publish(files={"train.zip": {"urls": ["http://127.0.0.1:1/"], "into": "train"}})
    litter = dict.fromkeys((".DS_Store", "._train", "train__.DS_Store", "train__@eaDir__A", "@eaDir__A"), "litter")
    zip_of(home / "train.zip", train__A__1="one", **litter)
    root, _ = bring_from(home / "train.zip", holding=("train",))
    assert (root / "train" / "A" / "1").read_text() == "one"
    assert not (root / "train" / "train").exists()


def test_a_folder_of_another_name_in_an_archive_stays(bring_from, publish, home):
    publish(files={"train.zip": {"urls": ["http://127.0.0.1:1/"], "into": "train"}})
    zip_of(home / "train.zip", A__1="one")
    root, _ = bring_from(home / "train.zip", holding=("train",))
    assert files_below(root) == {"train/A/1": "one"}


@pytest.mark.parametrize("algorithm, as_folder", [("sha256", False), ("md5", True)], ids=["archive", "folder"])
def test_a_local_archive_named_like_a_published_one_must_be_that_one(
    bring_from, publish, tmp_path, home, algorithm, as_folder
):
    archive = zip_of(home / "a.zip", A__1="one")
    digest = digest_of(archive, algorithm)
    published = {"urls": ["http://127.0.0.1:1/"], algorithm: digest.removeprefix(f"{algorithm}:")}
    publish(files={"a.zip": published})
    path = home if as_folder else archive
    assert bring_from(path)[1]["files"] == {"a.zip": digest}

    zip_of(archive, A__1="two")
    with pytest.raises(ValueError, match=re.escape(f"{archive}: its {algorithm} is ")) as caught:
        bring_from(path)
    assert digest.removeprefix(f"{algorithm}:") in str(caught.value)
    assert files_below(tmp_path / "target") == {"A/1": "one"}

    publish(files={"a.zip": published | {"size": 3}})
    with pytest.raises(ValueError, match=re.escape(f"{archive.stat().st_size} bytes, but a.zip must have 3")):
        bring_from(path)


def test_a_local_archive_of_another_name_is_not_held_against_the_table(bring_from, publish, home):
    publish(files={"a.zip": {"urls": ["http://127.0.0.1:1/"], "sha256": "0" * 64}})
    archive = zip_of(home / "mine.zip", A__1="one")
    assert bring_from(archive)[1]["files"] == {"mine.zip": digest_of(archive)}


def test_a_file_that_is_no_archive_is_linked(bring_from, publish, tmp_path, home):
    publish(files={"weights.pth": {"urls": ["http://127.0.0.1:1/"]}})
    file = home / "weights.pth"
    file.write_text("weights")
    root, manifest = bring_from(home, holding=("A",))
    assert root == tmp_path / "target"
    assert os.path.samefile(root / "weights.pth", file)
    assert manifest == {"root": ".", "files": {"weights.pth": digest_of(file)}}


def test_a_file_that_cannot_be_linked_is_copied(bring_from, publish, tmp_path, home, monkeypatch):
    def other_disk(*args):
        raise OSError(18, "Invalid cross-device link")

    publish(files={"weights.pth": {"urls": ["http://127.0.0.1:1/"]}})
    monkeypatch.setattr(os, "link", other_disk)
    (home / "weights.pth").write_text("weights")
    root, _ = bring_from(home)
    assert (root / "weights.pth").read_text() == "weights"
    assert not os.path.samefile(root / "weights.pth", home / "weights.pth")


def test_a_disk_without_the_space_to_unpack_is_an_error(bring_from, tmp_path, home, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'target'}: unpacking mine needs")):
        bring_from(zip_of(home / "any.zip", A__1="one"))
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("complete", [True, False])
def test_own_data_are_not_announced_as_the_published_ones(publish, bring_from, home, caplog, complete, form):
    caplog.set_level(logging.INFO)
    publish(files={"a.zip": {"urls": ["http://127.0.0.1:1/"]}}, notice="Not for sale.")
    (home / "A").mkdir()
    path = home if form == "folder" else zip_of(home / "any.zip", A__1="one")
    bring_from(path, complete=complete)
    announced = [message for message in caplog.messages if "CC0" in message or "Not for sale." in message]
    assert len(announced) == (2 if complete else 0)
    assert any(message.startswith(f"{path}: your own data") for message in caplog.messages) != complete


@pytest.mark.parametrize("form", ["folder", "zip", "gztar"])
def test_a_pack_of_your_own_needs_no_table(tmp_path, form):
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "1").write_text("one")
    target = tmp_path / "target"
    target.mkdir()
    folder = tmp_path / "mine"
    path = folder if form == "folder" else Path(shutil.make_archive(str(tmp_path / "pack"), form, tmp_path, "mine"))
    root, manifest = bring_own(str(path), target, holding=["train"])
    assert (root / "train" / "1").read_text() == "one"
    if form == "folder":
        assert manifest == {"root": str(folder)} and not list(target.iterdir())
    else:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert manifest == {"root": "mine", "files": {path.name: f"sha256:{digest}"}}


def test_what_is_downloaded_already_is_checked_and_unpacked(publish, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    downloads, target = tmp_path / "downloads", tmp_path / "target"
    downloads.mkdir()
    target.mkdir()
    archive = zip_of(downloads / "a.zip", A__1="one")
    digest = digest_of(archive, "md5")
    publish(
        files={"a.zip": {"urls": ["http://127.0.0.1:1/"], "md5": digest.removeprefix("md5:")}}, notice="Not for sale."
    )
    root, manifest = bring("mine", None, target, downloads, holding=HOLDING)
    assert files_below(root) == {"A/1": "one"}
    assert manifest == {"root": ".", "files": {"a.zip": digest}}
    assert archive.exists()
    assert any("Licence: CC0" in message and "Nobody" in message for message in caplog.messages)
    assert any(
        record.levelno == logging.WARNING and "Not for sale." in record.getMessage() for record in caplog.records
    )


# Downloads without a published checksum


@pytest.fixture
def served(tmp_path, publish):
    """A folder on loopback; the table holds its `a.zip` and `b.tar.gz`, without a size or checksum."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{{file}}"
    publish(files={name: {"urls": [url]} for name in ("a.zip", "b.tar.gz")})
    zip_of(folder / "a.zip", A__1="one")
    tar_of(folder / "b.tar.gz", A__2="two")
    yield folder
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def impatient(monkeypatch):
    """Tries each address only once, so that an address at which nobody listens fails at once."""
    monkeypatch.setattr(fetch, "Patience", partial(fetch.Patience, tries=1))


@pytest.fixture
def bring_served(tmp_path, monkeypatch, impatient):
    """Brings the pack `mine` from its server into a new folder."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    calls = itertools.count()

    def call(path=None):
        target = tmp_path / f"target{next(calls)}"
        target.mkdir()
        return bring("mine", path, target, tmp_path / "downloads", holding=HOLDING)

    return call


def visible(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def damaged(path):
    """Begins as an archive does, and goes on as none."""
    path.write_bytes((b"PK\x03\x04" if path.suffix == ".zip" else b"\x1f\x8b") + b"and so on" * 100)
    return path


def test_a_download_is_trusted_once_it_was_unpacked(served, bring_served, tmp_path, caplog):
    root, manifest = bring_served()
    downloads = tmp_path / "downloads"
    digests = {name: digest_of(served / name) for name in ("a.zip", "b.tar.gz")}
    assert files_below(root) == {"A/1": "one", "A/2": "two"}
    assert manifest == {"root": ".", "files": digests}
    assert visible(downloads) == {"a.zip", "b.tar.gz", "a.zip.sha256", "b.tar.gz.sha256"}
    for name, digest in digests.items():
        assert (downloads / f"{name}.sha256").read_text() == f"{digest.removeprefix('sha256:')}  {name}\n"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and all("no checksum is published; trusted now" in warning for warning in warnings)
    caplog.clear()
    assert bring_served()[1] == manifest
    assert [record for record in caplog.records if record.levelno == logging.WARNING] == []


def test_another_download_than_was_trusted_is_refused_until_the_record_is_gone(served, bring_served, tmp_path):
    bring_served()
    downloads = tmp_path / "downloads"
    (downloads / "a.zip").unlink()
    zip_of(served / "a.zip", A__1="another")
    with pytest.raises(ValueError, match=re.escape(str(downloads / "a.zip.sha256"))):
        bring_served()
    assert not (downloads / "a.zip").exists()
    (downloads / "a.zip.sha256").unlink()
    assert files_below(bring_served()[0])["A/1"] == "another"


@pytest.mark.parametrize("name", ["a.zip", "b.tar.gz"])
def test_a_download_that_cannot_be_unpacked_is_removed_not_trusted_and_fetched_again(
    served, bring_served, tmp_path, name
):
    good = (served / name).read_bytes()
    damaged(served / name)
    with pytest.raises(ValueError) as caught:
        bring_served()
    message = str(caught.value)
    downloads = tmp_path / "downloads"
    assert message.startswith(f"{downloads / name}: ") and message.endswith("the next call downloads it again")
    assert len(message.splitlines()) == 1
    assert not {name, f"{name}.sha256"} & visible(downloads)
    (served / name).write_bytes(good)
    assert files_below(bring_served()[0]) == {"A/1": "one", "A/2": "two"}
    assert f"{name}.sha256" in visible(downloads)


def test_what_is_no_archive_is_not_even_kept(served, bring_served, tmp_path):
    (served / "a.zip").write_text("Please come again tomorrow.")
    with pytest.raises(ValueError, match="a.zip cannot be fetched: .* sends no archive"):
        bring_served()
    assert not {"a.zip", "a.zip.sha256"} & visible(tmp_path / "downloads")


def test_a_download_that_the_disk_does_not_take_unpacked_is_kept_and_not_yet_trusted(served, bring_served, tmp_path):
    tar_of(served / "b.tar.gz", A__2="2" * 1_000_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(DiskError, match="File too large"):
            bring_served()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    downloads = tmp_path / "downloads"
    assert visible(downloads) == {"a.zip", "b.tar.gz", "a.zip.sha256"}
    kept = (downloads / "b.tar.gz").stat().st_mtime_ns
    (served / "b.tar.gz").unlink()
    assert files_below(bring_served()[0])["A/2"] == "2" * 1_000_000
    assert (downloads / "b.tar.gz").stat().st_mtime_ns == kept
    assert "b.tar.gz.sha256" in visible(downloads)


def test_a_damaged_download_with_a_published_checksum_is_kept(publish, bring_served, tmp_path):
    (tmp_path / "downloads").mkdir()
    archive = damaged(tmp_path / "downloads" / "a.zip")
    digest = digest_of(archive).removeprefix("sha256:")
    publish(files={"a.zip": {"urls": ["http://127.0.0.1:1/"], "sha256": digest}})
    with pytest.raises(ArchiveError):
        bring_served()
    assert visible(tmp_path / "downloads") == {"a.zip"}


@pytest.mark.parametrize("as_folder", [False, True], ids=["archive", "folder"])
def test_a_local_archive_must_be_what_was_trusted(served, bring_served, tmp_path, home, as_folder):
    bring_served()
    for name in ("a.zip", "b.tar.gz"):
        shutil.copy(served / name, home / name)
    path = str(home if as_folder else home / "a.zip")
    assert bring_served(path)[1]["files"]["a.zip"] == digest_of(served / "a.zip")

    zip_of(home / "a.zip", A__1="another")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "downloads" / "a.zip.sha256"))) as caught:
        bring_served(path)
    assert digest_of(home / "a.zip") in str(caught.value) and digest_of(served / "a.zip") in str(caught.value)
    assert (home / "a.zip").exists()

    zip_of(home / "other.zip", A__1="another")
    assert bring_served(str(home / "other.zip"))[1]["files"] == {"other.zip": digest_of(home / "other.zip")}


def test_a_local_archive_is_not_trusted_for_later_and_never_removed(publish, bring_served, tmp_path, home):
    bring_served(str(zip_of(home / "a.zip", A__1="one")))
    assert not (tmp_path / "downloads").exists()
    damaged(home / "a.zip")
    with pytest.raises(ArchiveError):
        bring_served(str(home / "a.zip"))
    assert (home / "a.zip").exists() and not (tmp_path / "downloads").exists()


# Space for downloads and what is unpacked from them


@pytest.fixture
def disk(monkeypatch):
    """Says how many bytes are free."""

    def leave(free):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**15, 0, free))

    return leave


def test_space_for_download_and_unpacking_is_asked_for_before_anything_is_fetched(
    publish, bring_served, tmp_path, disk
):
    publish(files={name: {"urls": ["http://127.0.0.1:1/"], "size": 2 * 10**9} for name in ("a.zip", "b.tar.gz")})
    disk(8 * 10**9 - 1)
    with pytest.raises(ValueError, match="downloading and unpacking mine needs 8 GB, but the disk has only 8 GB left"):
        bring_served()
    assert not (tmp_path / "downloads").exists()
    disk(8 * 10**9)
    with pytest.raises(ValueError, match="cannot be fetched"):
        bring_served()


def test_what_is_downloaded_already_needs_space_to_unpack_alone(publish, bring_served, tmp_path, disk):
    (tmp_path / "downloads").mkdir()
    archive = zip_of(tmp_path / "downloads" / "a.zip", A__1="one")
    size = archive.stat().st_size
    publish(files={"a.zip": {"urls": ["http://127.0.0.1:1/"], "size": size}})
    disk(size - 1)
    with pytest.raises(ValueError, match="downloading and unpacking mine needs"):
        bring_served()
    disk(size)
    assert files_below(bring_served()[0]) == {"A/1": "one"}


def test_files_of_unknown_size_are_counted_when_they_are_there(served, bring_served, disk):
    sizes = [(served / name).stat().st_size for name in ("a.zip", "b.tar.gz")]
    disk(sum(sizes) - 1)
    with pytest.raises(ValueError, match=": unpacking mine needs"):
        bring_served()
    disk(sum(sizes))
    assert files_below(bring_served()[0]) == {"A/1": "one", "A/2": "two"}


def test_parts_that_are_not_needed_need_no_space(publish, tmp_path, disk, impatient):
    publish(
        files={
            "a.zip": {"urls": ["http://127.0.0.1:1/"], "size": 1000},
            "b.tar.gz": {"urls": ["http://127.0.0.1:1/"], "size": 10**12},
        }
    )
    disk(2000)
    (tmp_path / "target").mkdir()
    with pytest.raises(ValueError, match="a.zip cannot be fetched"):
        bring("mine", None, tmp_path / "target", tmp_path / "downloads", parts=["a.zip"])


# What the tasks take from here


def test_a_pack_that_is_not_whole_is_named_with_the_first_that_are_missing(tmp_path):
    refuse_incomplete(tmp_path, 3, 3, "pairs")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: has 2 of the 3 pairs of the published pack (data.")):
        refuse_incomplete(tmp_path, 2, 3, "pairs")
    with pytest.raises(ValueError, match="pack: a; b; c and 2 more"):
        refuse_incomplete(tmp_path, 2, 7, "pairs", list("abcde"))
    with pytest.raises(ValueError, match=r"pack: a; b; c \("):
        refuse_incomplete(tmp_path, 2, 5, "pairs", list("abc"))


def test_a_sample_goes_from_the_first_to_the_last():
    assert spread([]) == []
    assert spread(["a"]) == ["a"]
    assert spread(range(5)) == [0, 1, 2, 3, 4]
    sample = spread(range(1000))
    assert len(sample) == packs.SAMPLE and sample[0] == 0 and sample[-1] == 999 and sample == sorted(sample)
