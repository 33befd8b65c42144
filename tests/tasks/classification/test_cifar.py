"""CIFAR's own layout: reading it safely, dividing it, and fetching it from a server."""

import hashlib
import io
import os
import pickle
import re
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bbnet.data import packs
from bbnet.data.synthetic.rendered_objects import as_python_2_pickle
from bbnet.tasks.classification.data.cifar import read_batch
from bbnet.tasks.classification.data.pickles import Array, read_pickle

LAYOUT = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]


def refused(function, *arguments) -> str:
    with pytest.raises(ValueError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def plain(value):
    """The content of a pickle as this test compares it: text for bytes of Python 2, lists for arrays."""
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(map(plain, value))
    if isinstance(value, Array | np.ndarray):
        return np.asarray(value.values() if isinstance(value, Array) else value).tolist()
    return value.decode() if isinstance(value, bytes) else value


# Reading pickles.


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_protocol_gives_what_pickle_reads(write, batches, protocol, order):
    batches["data_batch_1"]["data"] = np.array(batches["data_batch_1"]["data"], order=order)
    path = write(batches, protocol) / "data_batch_1"
    assert plain(read_pickle(path)) == plain(pickle.loads(path.read_bytes()))
    batch = read_batch(path, 3)
    assert (batch.images.reshape(12, -1) == batches["data_batch_1"]["data"]).all()
    assert batch.labels == batches["data_batch_1"]["labels"]
    assert batch.files[3] == "data_batch_1/image_1_3.png"


def test_what_python_2_wrote_gives_what_pickle_reads(tmp_path, batches):
    content = batches["data_batch_1"] | {"batch_label": "x" * 300, "labels": [0, 255, 256, 70_000, 2]}
    path = tmp_path / "file"
    path.write_bytes(as_python_2_pickle(content))
    expected = pickle.loads(path.read_bytes(), encoding="latin1")
    assert plain(expected) == plain(content)
    assert plain(read_pickle(path)) == plain(content)


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(write, batches, tmp_path, protocol):
    marker = tmp_path / "it ran"
    batches["test_batch"]["labels"] = Runs(marker)
    path = write(batches, protocol) / "test_batch"
    assert re.search(rf"{path}: .*posix\.system is not allowed.*; allowed are dictionaries", refused(read_pickle, path))
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


HOSTILE = {
    "builtins": b"cbuiltins\neval\n(K\x01tR.",
    "names as objects": b"(K\x01ibuiltins\neval\n.",
    "objects": b"(cbuiltins\neval\nK\x01o.",
    "new objects": b"\x80\x02cbuiltins\nobject\n)\x81.",
    "persistent names": b"Pname\n.",
    "extensions": b"\x80\x02\x82\x01.",
    "arrays of objects": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncbuiltins\nobject\nK\x00\x85U\x01b\x87R.",
    "another function of numpy": b"\x80\x02cnumpy.core.multiarray\nfromfile\nU\x01a\x85R.",
    "state of a list": b"\x80\x02]}b.",
    "a tuple of tuples as a key": b"\x80\x02})" + b"".join(b"q\x01h\x01\x86" for _ in range(100)) + b"K\x01s.",
    "a list as a name": b"\x80\x04]]\x93)R.",
    "a place far beyond the memory": b"\x80\x02K\x01r\xff\xff\xff\xffh\x00.",
    "more bytes than there are": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.",
    "one text encoded many times": b"\x80\x02(c_codecs\nencode\nq\x00X\xff\x00\x00\x00"
    + b"a" * 255
    + b"q\x01X\x06\x00\x00\x00latin1q\x02\x86R"
    + b"h\x00h\x01h\x02\x86R" * 3
    + b"l.",
    "nothing to append to": b"\x80\x02K\x01a.",
    "more than one value": b"\x80\x02K\x01K\x02.",
    "no value": b"\x80\x02.",
    "empty": b"",
    "text": b"<html>",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_other_content_of_a_pickle_is_refused_by_name(tmp_path, content):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    assert refused(read_pickle, path).startswith(f"{path}: is damaged or not a pickle of plain data (")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_cut_or_changed_batch_is_read_or_refused_and_nothing_else(tmp_path_factory, data):
    labels, names = [0, 1, 2], ["a.png", "b.png", "c.png"]
    whole = pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": labels, "filenames": names}, 2)
    path = tmp_path_factory.mktemp("batch", numbered=True) / "data_batch_1"
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 400) | st.integers(len(whole) - 100, len(whole) - 1))] = data.draw(
            st.integers(0, 255)
        )
    end = data.draw(st.just(len(content)) | st.integers(0, len(content) - 1))
    path.write_bytes(content[:end])
    try:
        batch = read_batch(path, 3)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert end == len(content)
        assert batch.images.shape == (3, 3, 32, 32) and len(batch.labels) == len(batch.files) == 3


def test_a_file_beyond_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "data_batch_1"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert f"{path}: has {2**40} bytes; allowed are at most" in refused(read_pickle, path)


# Batches.


def doubled(times: int) -> list:
    """A list that would be written with 2^times brackets."""
    value: list = []
    for _ in range(times):
        value = [value, value]
    return value


FAULTS = {
    "a label of very many lists": ({"labels": [doubled(60)] * 12}, "label list of image 0"),
    "data of too few values": ({"data": np.zeros((12, 3071), np.uint8)}, r"data has shape \[12, 3071\]; allowed is"),
    "data in one row": ({"data": np.zeros(12 * 3072, np.uint8)}, r"data has shape \[36864\]"),
    "data of other numbers": ({"data": np.zeros((12, 3072), np.float32)}, "array of uint8, .*not of uint8"),
    "data of lists": ({"data": [[0] * 3072] * 12}, "data must be a numpy array of uint8"),
    "too few labels": ({"labels": [0] * 11}, "labels must be a list with an entry for each of 12 images, not 11"),
    "labels of another kind": ({"labels": "0" * 12}, "labels must be a list"),
    "a label beyond the classes": ({"labels": [0] * 11 + [3]}, "label 3 of image 11; allowed are .* 0 to 2"),
    "a negative label": ({"labels": [-1] + [0] * 11}, "label -1 of image 0"),
    "a label that is no number": ({"labels": ["0"] * 12}, "label '0' of image 0"),
    "a label of a million digits": ({"labels": [1 << 4_000_000] * 12}, "label int of image 0"),
    "an array of something else": ({"data": np.array(["a"])}, "data must be a numpy array of uint8"),
    "names that are numbers": ({"filenames": [1] * 12}, "filenames must be a list of names"),
    "a label that is true": ({"labels": [True] * 12}, "label True of image 0"),
    "too many names": ({"filenames": ["a"] * 13}, "filenames must be a list .* 12 images, not 13"),
    "names that are not UTF-8": ({"filenames": [b"\xff"] * 12}, r"the name b'\\xff' is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_batch_is_refused_with_what_is_allowed(write, batches, made, change, message):
    batches["data_batch_3"] |= change
    root = write(batches)
    found = refused(made, {"pack": "cifar10", "path": str(root), "complete": False})
    assert re.match(rf"{root / 'data_batch_3'}: .*{message}", found)


def test_what_the_layout_lacks_is_named(write, batches, made):
    data = {"pack": "cifar10", "path": str(write(batches)), "complete": False}
    for name in LAYOUT:
        content = (write(batches) / name).read_bytes()
        (write(batches) / name).unlink()
        assert f"{name}: there is no such file" in refused(made, data)
        (write({}) / name).write_bytes(content)
    for key in ("data", "labels", "filenames"):
        kept = {other: value for other, value in batches["test_batch"].items() if other != key}
        write(batches | {"test_batch": kept})
        assert f"test_batch: has no entry {key}" in refused(made, data)
    write(batches | {"test_batch": [1]})
    assert "test_batch: must contain a dictionary" in refused(made, data)
    for names, message in (
        ([], "must be a list"),
        (["a", "b", "a"], "has a name twice"),
        (["\u00e9", "e\u0301"], "has a name twice"),
        ("abc", "must be a list"),
    ):
        write(batches | {"batches.meta": {"label_names": names}})
        assert f"batches.meta: label_names {message}" in refused(made, data)


# Preparing.


def test_a_test_batch_without_images_is_refused_before_any_training(write, batches, made):
    batches["test_batch"] |= {"labels": [], "filenames": [], "data": np.zeros((0, 3072), np.uint8)}
    assert "has no image for test" in refused(
        made, {"pack": "cifar10", "path": str(write(batches, 4)), "complete": False}
    )


def test_dev_is_the_last_tenth_of_each_class_in_the_order_of_the_batches(write, batches, made):
    batches["data_batch_2"]["labels"] = [1] * 12  # so that classes differ in number
    data = {"pack": "cifar10", "path": str(write(batches)), "complete": False, "dev_share": 0.25}
    arrays, index = made(data)
    assert index["classes"] == ["airplane", "frog", "truck"]
    rows = [
        (f"{name}/{file}", label, pixels.reshape(3, 32, 32))
        for name in LAYOUT[:5]
        for file, label, pixels in zip(*(batches[name][key] for key in ("filenames", "labels", "data")), strict=True)
    ]
    for label, (images, dev) in enumerate([(16, 4), (28, 7), (16, 4)]):
        own = [row for row in rows if row[1] == label]
        assert len(own) == images
        for split, expected in (("train", own[:-dev]), ("val", own[-dev:])):
            part = index["splits"][split]
            chosen = [place for place, one in enumerate(part["labels"]) if one == label]
            assert [part["files"][place] for place in chosen] == [row[0] for row in expected]
            assert (arrays[split][chosen] == np.stack([row[2] for row in expected])).all()
    assert index["splits"]["test"]["labels"] == batches["test_batch"]["labels"]
    assert (arrays["test"].reshape(6, -1) == batches["test_batch"]["data"]).all()
    np.testing.assert_allclose(index["mean"], arrays["train"].astype(float).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(index["sd"], arrays["train"].astype(float).std((0, 2, 3)), rtol=1e-12)


def test_files_beside_the_layout_are_named_but_for_litter_and_the_published_page(write, batches, made, caplog):
    root = write(batches)
    for name in ("readme.html", ".DS_Store", "Thumbs.db"):
        (root / name).write_text("litter")
    data = {"pack": "cifar10", "path": str(root), "complete": False}
    _, index = made(data)
    assert index["skipped"] == {} and "not read" not in caplog.text
    (root / "more").mkdir()
    (root / "more" / "data_batch_6").write_text("no batch")
    _, index = made(data)
    assert index["skipped"] == {"not_read": ["more/data_batch_6"]}
    assert "files that are not read: 1: more/data_batch_6" in caplog.text


def test_a_class_too_small_to_divide_is_named(write, batches, made):
    for number in range(1, 6):
        batches[f"data_batch_{number}"]["labels"] = [0, 1] * 6
    batches["data_batch_1"]["labels"][0] = 2
    data = {"pack": "cifar10", "path": str(write(batches)), "complete": False}
    assert "class truck has 1 training images, of which dev takes 1" in refused(made, data)


# From a server.


def test_cifar10_has_the_checksum_and_layout_that_torchvision_knows():
    from torchvision.datasets import CIFAR10

    pack = packs.read_pack("cifar10")
    source = pack.files[CIFAR10.filename].source(CIFAR10.filename)
    assert (source.algorithm, source.digits, source.urls) == ("md5", CIFAR10.tgz_md5, (CIFAR10.url,))
    assert (source.size, pack.counts) == (170_498_071, {"classes": 10, "train": 50_000, "test": 10_000})
    members = [CIFAR10.meta["filename"], *(name for name, _ in CIFAR10.train_list + CIFAR10.test_list)]
    assert sorted(members) == sorted(LAYOUT)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that is served on loopback, and a function that puts the archive in it into the table of packs."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    table = yaml.safe_load(packs.TABLE.read_text())

    def publish(content, counts):
        (folder / "cifar-10-python.tar.gz").write_bytes(content)
        pack = table["cifar10"]
        pack["counts"] = counts
        (file,) = pack["files"].values()
        file |= {"urls": [f"http://127.0.0.1:{served.server_port}/{{file}}"], "size": len(content)}
        file["md5"] = hashlib.md5(content).hexdigest()
        pack["files"] = {"cifar-10-python.tar.gz": file}
        monkeypatch.setattr(packs, "TABLE", tmp_path / "packs.yaml")
        packs.TABLE.write_text(yaml.safe_dump(table))

    yield publish
    served.shutdown()
    served.server_close()


@pytest.fixture
def archive(tmp_path, batches):
    """Archives batches as the published archive contains them: pickles of Python 2, in a folder, beside a page."""

    def make(contents: dict[str, bytes] | None = None, links: dict[str, str] | None = None):
        files = {name: as_python_2_pickle(content) for name, content in batches.items()} | (contents or {})
        path = tmp_path / "archive.tar.gz"
        with tarfile.open(path, "w:gz") as file:
            for name, content in ({"readme.html": b"<meta>"} | files).items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
            for name, target in (links or {}).items():
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, target
                file.addfile(member)
        return path

    return make


COUNTS = {"classes": 3, "train": 60, "test": 6}


def test_the_published_archive_is_downloaded_checked_and_prepared(server, archive, batches, made, tmp_path):
    server(archive().read_bytes(), COUNTS)
    arrays, index = made({"pack": "cifar10"})
    assert {split: array.shape for split, array in arrays.items()} == {
        "train": (54, 3, 32, 32),
        "val": (6, 3, 32, 32),
        "test": (6, 3, 32, 32),
    }
    assert (arrays["test"].reshape(6, -1) == batches["test_batch"]["data"]).all()
    assert index["skipped"] == {}
    local = {"pack": "cifar10", "path": str(tmp_path / "downloads" / "cifar-10-python.tar.gz")}
    again, same = made(local, name="archive")
    assert same == index and all((again[split] == arrays[split]).all() for split in arrays)
    unpacked, same = made({"pack": "cifar10", "path": str(tmp_path / "raw-archive")}, name="folder")
    assert same == index and all((unpacked[split] == arrays[split]).all() for split in arrays)


def test_published_counts_are_required_unless_the_pack_is_your_own(server, archive, made, tmp_path):
    server(archive().read_bytes(), COUNTS | {"train": 61})
    message = refused(made, {"pack": "cifar10"})
    assert "has 60 of the 61 train images of the published pack (data.complete: false accepts" in message
    made({"pack": "cifar10", "path": str(tmp_path / "downloads" / "cifar-10-python.tar.gz"), "complete": False})


def test_cut_and_hostile_archives_are_refused_by_name(server, archive, made, tmp_path, batches):
    whole = archive().read_bytes()
    cut = as_python_2_pickle(batches["data_batch_2"])[:-500]
    for content, message in (
        (lambda: whole[: len(whole) // 2], "cifar-10-python.tar.gz.*is encrypted, damaged or truncated"),
        (lambda: archive({"data_batch_2": cut}).read_bytes(), "data_batch_2: is damaged"),
        (lambda: archive({"data_batch_4": HOSTILE["builtins"]}).read_bytes(), r"builtins\.eval is not allowed"),
        (lambda: archive({"../../outside": b"x"}).read_bytes(), r"has \.\. in its path"),
        (lambda: archive(links={"cifar-10-batches-py/link": "/etc/passwd"}).read_bytes(), "is a link"),
    ):
        server(content(), COUNTS)
        (tmp_path / "downloads" / "cifar-10-python.tar.gz").unlink(missing_ok=True)
        assert re.search(message, refused(made, {"pack": "cifar10"}))
    assert not (tmp_path / "outside").exists()
