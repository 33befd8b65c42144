"""Litter is not there; two files of one stem are refused by name; files that are not read are counted and named."""

import logging
import os
import tarfile
import zipfile

import pytest

from bbnet.data.files import by_stem, contents, files_below, is_litter, warn_of_unread
from bbnet.data.packs import bring
from bbnet.data.unpack import unpack

LITTER = (
    *(".DS_Store", "._a.png", ".hidden", "__MACOSX", "Icon\r", "Thumbs.db", "THUMBS.DB", "desktop.ini"),
    *("@eaDir", "@EADIR", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
)
NO_LITTER = ("a.png", "_a.png", "__init__", "a~", "thumbs", "Icon", "n000001", "eaDir", "recycle")


@pytest.mark.parametrize("as_folder", [False, True])
def test_litter_is_not_there_whether_it_is_a_file_or_a_folder(tmp_path, as_folder):
    for name in (*LITTER, *NO_LITTER):
        if as_folder:
            (tmp_path / name).mkdir()
            (tmp_path / name / "inside").touch()
        else:
            (tmp_path / name).touch()
    expected = sorted(tmp_path / name for name in NO_LITTER)
    assert contents(tmp_path) == (([], expected) if as_folder else (expected, []))
    assert files_below([tmp_path]) == ([path / "inside" for path in expected] if as_folder else expected)
    assert all(map(is_litter, LITTER)) and not any(map(is_litter, NO_LITTER))


def test_a_link_to_a_folder_around_it_ends_no_listing(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").touch()
    (tmp_path / "inner" / "around").symlink_to(tmp_path)
    assert contents(tmp_path / "inner") == ([tmp_path / "inner" / "a"], [tmp_path / "inner" / "around"])
    assert files_below([tmp_path]) == [tmp_path / "inner" / "a"]


@pytest.mark.parametrize("other", ["x.jpg", "x.PNG", "x", "x.tiff"])
def test_two_files_of_one_stem_are_both_named(tmp_path, other):
    files = [tmp_path / "x.png", tmp_path / "y.png"]
    assert by_stem(files) == {"x": files[0], "y": files[1]}
    with pytest.raises(ValueError, match=r"its name without the suffix equals that of x\.png") as refused:
        by_stem([*files, tmp_path / other])
    assert str(refused.value).startswith(f"{tmp_path / other}: ")


def test_files_that_are_not_read_are_counted_and_the_first_named(tmp_path, caplog):
    warn_of_unread(tmp_path, [], "*.png")
    assert caplog.records == []
    warn_of_unread(tmp_path, [tmp_path / name for name in ("a.gif", "sub/b.png", "c", "d", "e")], "*.png")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith(f"{tmp_path}: ")
    assert "5: a.gif, sub/b.png, c and 2 more; what is read: *.png" in caplog.messages[0]


# Archives and folders of packs.


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_the_icon_of_a_folder_of_macos_does_not_end_the_unpacking(tmp_path, suffix):
    source = tmp_path / "source"
    source.touch()
    archive = tmp_path / f"archive{suffix}"
    members = ("a", "Icon\r", "in/Icon\r", "in/b", "__MACOSX/in/._Icon\r")
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in members:
                file.writestr(name, b"")
    else:
        with tarfile.open(archive, "w:gz") as file:
            for name in members:
                file.add(source, name)
    unpack(archive, tmp_path / "target")
    assert files_below([tmp_path / "target"]) == [tmp_path / "target" / "a", tmp_path / "target" / "in" / "b"]


@pytest.mark.parametrize("litter", ["@eaDir", "__MACOSX", "lost+found", "._train", "#recycle"])
def test_litter_beside_an_outer_folder_does_not_hide_the_pack(tmp_path, litter):
    (tmp_path / "LEVIR" / "train").mkdir(parents=True)
    (tmp_path / litter).mkdir()
    root, _ = bring("levir_cd", str(tmp_path), tmp_path / "raw", tmp_path, holding=["*train", "val"])
    assert root == tmp_path / "LEVIR"


def test_the_order_of_files_does_not_depend_on_their_suffixes(tmp_path):
    stems = ["x", "x.crop", "x-1", "2020.1", "2020.2", "Jose\u0301"]
    orders = []
    for suffix in (".png", ".bmp", ".JPEG"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        for stem in stems:
            (folder / f"{stem}{suffix}").touch()
        orders.append([file.stem for file in contents(folder)[0]])
    assert orders[0] == orders[1] == orders[2] and len(orders[0]) == len(stems)
    bare = tmp_path / "bare"
    bare.mkdir()
    for stem in ("2020.1", "2020.2"):
        (bare / stem).touch()
    assert list(by_stem(contents(bare)[0])) == ["2020.1", "2020.2"]


def test_a_name_that_is_not_utf_8_is_refused_by_name(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(ValueError, match=r"caf\\udce9.png': its name is not UTF-8; rename it"):
        contents(tmp_path)
