"""One process makes a pack, however many are started: the scripts fetch and prepare, against a server on loopback."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml

from bbnet.tasks import task as tasks

# One worker runs all that takes minutes.
pytestmark = pytest.mark.xdist_group("workflow")

PAIRS = {"train": 6, "val": 2, "test": 2}
PACK = "levir_cd-0123abcd"
INDEX = "change-4567ef89"
ENOUGH_SECONDS = 120
PIECES = 40  # of a file that drips


class Server(ThreadingHTTPServer):
    """Serves archives by name; the second half of those in `slow` drips until `quick` is set."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.asked = Counter()
        self.sent = Counter()
        self.begun = []
        self.slow = set()
        self.quick = threading.Event()
        self.changed = threading.Condition()

    def wait_until_sent(self, name, size):
        with self.changed:
            assert self.changed.wait_for(lambda: self.sent[name] >= size, ENOUGH_SECONDS)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.removeprefix("/")
        content = self.server.files[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"a"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        with self.server.changed:
            self.server.asked[name] += 1
            self.server.begun.append((name, start))
        step = len(content) // PIECES
        for place in range(start, len(content), step):
            if name in self.server.slow and place >= len(content) // 2:
                self.server.quick.wait(1)
            piece = content[place : place + step]
            try:
                self.wfile.write(piece)
            except ConnectionError:
                return
            with self.server.changed:
                self.server.sent[name] += len(piece)
                self.server.changed.notify_all()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The archives of a small pack in LEVIR-CD's layout, and the names of its images."""
    raw = tmp_path_factory.mktemp("scenes")
    manifest = tasks.load("change").fetch({"pack": "aerial_scenes", "size": 32, **PAIRS}, raw)
    archives = {}
    for split, pairs in manifest["splits"].items():
        path = raw / f"{split}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for number, names in enumerate(pairs, start=1):
                for part, name in zip(("A", "B", "label"), names, strict=True):
                    archive.write(raw / split / part / name, f"{part}/{split}_{number}.png")
        archives[path.name] = path.read_bytes()
    return archives


@pytest.fixture
def server(scenes):
    server = Server()
    server.files = dict(scenes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.quick.set()
    server.shutdown()
    server.server_close()


class Workshop:
    """A project whose table has the served pack, and the scripts that are run in it."""

    def __init__(self, root, server):
        self.root = root
        self.server = server
        self.data = root / "data"
        self.manifest = self.data / "raw" / f"{PACK}.json"
        self.index = self.data / "prepared" / f"{INDEX}.json"
        self.started = []

    def start(self, script, log, **options):
        """Starts a script; its log is `log`."""
        command = [sys.executable, str(self.root / "workflow_scripts" / f"{script}.py"), "--log", str(self.log(log))]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        environment = os.environ | {"PYTHONPATH": str(self.root), "no_proxy": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.started.append(subprocess.Popen(command, cwd=self.root, env=environment, text=True, **pipes))
        return self.started[-1]

    def fetch(self, log="fetch", manifest=None, **config):
        config = {"task": "change", "data": {"pack": "levir_cd"} | config}
        folders = {"partial": self.data / "partial", "downloads": self.data / "downloads"}
        return self.start("fetch", log, config=json.dumps(config), manifest=manifest or self.manifest, **folders)

    def prepare(self, log="prepare"):
        config = json.dumps({"task": "change", "settings": {"tile": 32}})
        paths = {"raw": self.manifest, "index": self.index, "partial": self.data / "partial"}
        return self.start("prepare", log, config=config, **paths)

    def log(self, name):
        return self.root / "logs" / f"{name}.log"

    def wait_for_line(self, logs, text):
        """Waits until one of these logs has the text."""
        latest = time.monotonic() + ENOUGH_SECONDS
        while not any(self.log(name).exists() and text in self.log(name).read_text() for name in logs):
            assert time.monotonic() < latest, f"{logs} never said {text!r}"
            time.sleep(0.05)

    def check_pack(self):
        """The manifest and its folder are whole, and nothing else is left of how they came."""
        manifest = json.loads(self.manifest.read_text())
        assert manifest["splits"] == {
            split: sorted([f"{split}_{number}.png"] * 3 for number in range(1, count + 1))
            for split, count in PAIRS.items()
        }
        digests = {name: f"md5:{hashlib.md5(content).hexdigest()}" for name, content in self.server.files.items()}
        assert manifest["files"] == digests
        folder = self.manifest.with_suffix("") / manifest["root"]
        for name, content in self.server.files.items():
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                expected = {member: archive.read(member) for member in archive.namelist()}
            found = folder / name.removesuffix(".zip")
            assert {path.relative_to(found).as_posix(): path.read_bytes() for path in found.rglob("*.png")} == expected
        assert {path.name for path in (self.data / "raw").iterdir()} == {PACK, f"{PACK}.json"}
        assert [path.name for path in self.partial() if path.is_dir()] == []
        assert not list((self.data / "downloads").glob(".*.part"))

    def partial(self):
        return list((self.data / "partial").iterdir())

    def stop(self):
        for process in self.started:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def workshop(empty_project, server, tmp_path):
    project = empty_project.copy(tmp_path / "project")
    path = project.root / "bbnet" / "data" / "packs.yaml"
    table = yaml.safe_load(path.read_text())
    pack = table["levir_cd"]
    pack["counts"] = PAIRS
    for name, content in server.files.items():
        pack["files"][name]["urls"] = [f"http://127.0.0.1:{server.server_port}/{{file}}"]
        pack["files"][name] |= {"md5": hashlib.md5(content).hexdigest(), "size": len(content)}
    path.write_text(yaml.safe_dump(table))
    workshop = Workshop(project.root, server)
    yield workshop
    workshop.stop()


def ended(process):
    """What a process wrote; it must have ended well."""
    out, _ = process.communicate(timeout=ENOUGH_SECONDS)
    assert process.returncode == 0, out
    return out


def test_of_two_processes_started_together_one_fetches(workshop, server):
    server.slow.add("train.zip")
    both = [workshop.fetch(name) for name in ("first", "second")]
    workshop.wait_for_line(("first", "second"), "another process is working on this; waiting for it")
    server.quick.set()
    outputs = [ended(process) for process in both]
    workshop.check_pack()
    assert server.asked == dict.fromkeys(server.files, 1)
    assert server.sent == {name: len(content) for name, content in server.files.items()}
    worked = [output for output in outputs if "Licence: for academic use only" in output]
    assert len(worked) == 1
    assert sum(output.count(", checked, after") for output in outputs) == len(server.files)


def test_who_comes_while_another_is_slow_waits_says_so_and_does_nothing(workshop, server):
    server.slow.add("test.zip")
    first = workshop.fetch("first")
    server.wait_until_sent("test.zip", len(server.files["test.zip"]) // 2)
    second = workshop.fetch("second")
    workshop.wait_for_line(["second"], "another process is working on this; waiting for it")
    assert first.poll() is None and not workshop.manifest.exists()
    server.quick.set()
    assert ", checked, after" in ended(first)
    made = workshop.manifest.stat().st_mtime_ns, workshop.manifest.with_suffix("").stat().st_mtime_ns
    said = ended(second)
    assert f".{PACK}.lock: another process is working on this" in said and "Licence" not in said
    workshop.check_pack()
    assert made == (workshop.manifest.stat().st_mtime_ns, workshop.manifest.with_suffix("").stat().st_mtime_ns)
    assert server.asked == dict.fromkeys(server.files, 1)


def test_who_waits_for_one_that_is_killed_takes_over(workshop, server):
    server.slow.add("train.zip")
    half = len(server.files["train.zip"]) // 2
    first = workshop.fetch("first")
    server.wait_until_sent("train.zip", half)
    second = workshop.fetch("second")
    workshop.wait_for_line(["second"], "waiting for it")
    first.kill()
    first.communicate()
    server.quick.set()
    assert "Licence" in ended(second)
    workshop.check_pack()


def test_the_lock_of_a_killed_process_is_free_and_its_bytes_are_gone_on_from(workshop, server):
    server.slow.add("train.zip")
    part = workshop.data / "downloads" / ".train.zip.part"
    first = workshop.fetch("first")
    server.wait_until_sent("train.zip", len(server.files["train.zip"]) // 2)
    latest = time.monotonic() + ENOUGH_SECONDS
    while not (part.exists() and part.stat().st_size):
        assert time.monotonic() < latest
        time.sleep(0.05)
    first.kill()
    first.communicate()
    assert first.returncode < 0
    assert not workshop.manifest.exists() and not workshop.manifest.with_suffix("").exists()
    assert any(path.name == f".{PACK}.lock" for path in workshop.partial())
    there = part.stat().st_size
    server.quick.set()
    assert "waiting for it" not in ended(workshop.fetch("second"))
    workshop.check_pack()
    assert [start for name, start in server.begun if name == "train.zip"] == [0, there]


def test_what_a_killed_process_had_unpacked_is_not_taken_over(workshop):
    remains = workshop.data / "partial" / PACK / "train" / "A"
    remains.mkdir(parents=True)
    (remains / "remains.png").write_text("half")
    ended(workshop.fetch())
    workshop.check_pack()


def test_a_folder_whose_process_died_before_the_manifest_is_made_again(workshop):
    folder = workshop.manifest.with_suffix("")
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "remains.png").write_text("half")
    ended(workshop.fetch())
    workshop.check_pack()


def test_a_pack_that_is_there_is_left_as_it_is(workshop, server):
    ended(workshop.fetch())
    made = workshop.manifest.stat().st_mtime_ns
    ended(workshop.fetch("again"))
    assert workshop.manifest.stat().st_mtime_ns == made
    assert server.asked == dict.fromkeys(server.files, 1)


def test_one_that_fails_leaves_the_work_to_the_one_that_waits(workshop, server):
    """The first finds another file than the table says; by the second's turn the server has the right one."""
    right = server.files["val.zip"]
    server.files["val.zip"] = right[:-1] + b"!"
    server.slow.add("val.zip")
    first = workshop.fetch("first")
    server.wait_until_sent("val.zip", len(right) // 2)
    second = workshop.fetch("second")
    workshop.wait_for_line(["second"], "waiting for it")
    server.files["val.zip"] = right
    server.quick.set()
    out, _ = first.communicate(timeout=ENOUGH_SECONDS)
    assert first.returncode == 1
    assert "error: val.zip cannot be fetched" in out and "Traceback" not in out
    ended(second)
    workshop.check_pack()


def test_errors_name_the_pack_and_not_the_folder_where_it_was_unpacked(workshop, server):
    table = workshop.root / "bbnet" / "data" / "packs.yaml"
    table.write_text(table.read_text().replace("test: 2", "test: 3"))
    process = workshop.fetch()
    out, _ = process.communicate(timeout=ENOUGH_SECONDS)
    assert process.returncode == 1
    assert "error: levir_cd, unpacked/test: has 2 of the 3 pairs of the published pack" in out
    assert str(workshop.data / "partial") not in out
    assert not workshop.manifest.exists() and not workshop.manifest.with_suffix("").exists()
    assert [path.name for path in workshop.partial()] == [f".{PACK}.lock"]


def test_of_two_processes_started_together_one_prepares(workshop):
    ended(workshop.fetch())
    both = [workshop.prepare(name) for name in ("first", "second")]
    outputs = [ended(process) for process in both]
    index = json.loads(workshop.index.read_text())
    assert {split: len(part["images"]) for split, part in index["splits"].items()} == PAIRS
    folder = workshop.index.with_suffix("")
    assert {path.name for path in folder.iterdir()} == {
        f"{split}_{part}.npy" for split in PAIRS for part in ("images", "labels")
    }
    for split, count in PAIRS.items():
        images = np.load(folder / f"{split}_images.npy")
        assert images.shape == (count, 2, 3, 32, 32) and images.any()
    assert sum("prepare train: 6 of 6" in output for output in outputs) == 1
    assert {path.name for path in workshop.partial()} == {f".{PACK}.lock", f".{INDEX}.lock"}
