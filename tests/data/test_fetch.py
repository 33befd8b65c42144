"""Tests downloads against a server on loopback that fails in the ways in which real servers do."""

import errno
import gzip
import hashlib
import json
import logging
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from bbnet.data import fetch, progress
from bbnet.data.fetch import PARALLEL_DOWNLOADS, Patience, fetch_files
from bbnet.data.sources import Source, check_space, demand_trusted, holds, trust

SEED = 20260101
CONTENT = b"PK\x03\x04" + random.Random(SEED).randbytes(300_000)
OTHER = b"PK\x03\x04" + random.Random(SEED + 1).randbytes(300_000)
HALF = len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CHECKSUMS = [("sha256", SHA256), ("sha256", SHA256[:8]), ("md5", hashlib.md5(CONTENT).hexdigest())]
NAME = "pack.zip"
PATIENT = Patience(connect=10, stall=10, tries=3, back_off=0.01)
HASTY = Patience(connect=0.3, stall=0.3, tries=2, back_off=0.01)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in\n  to go on</title></head><body>Hello</body></html>"
ENOUGH_SECONDS = 20
CHILD = """
import json, logging, resource, sys
from pathlib import Path
from bbnet.data.fetch import Patience, fetch_files
from bbnet.data.sources import Source

logging.basicConfig(level=logging.INFO)
source, folder, largest = json.loads(sys.argv[1])
if largest:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
source["urls"] = tuple(source["urls"])
try:
    print(json.dumps(fetch_files([Source(**source)], Path(folder), Patience(connect=10, stall=30, tries=1))))
except ValueError as error:
    print(json.dumps(str(error)))
"""


@dataclass
class Request:
    path: str
    range: str | None
    if_range: str | None
    encoding: str | None
    when: float
    sent: int = 0


class Server(ThreadingHTTPServer):
    """Answers the requests of a path by its script, the last line of it for ever."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts = {}
        self.requests = []
        self.changed = threading.Condition()
        self.gates = []
        self.healed = None
        self.faults = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def serve(self, path, *answers):
        self.scripts[path] = list(answers)
        return self.address + path

    def heal(self, content):
        self.healed = file(content)

    def gate(self):
        self.gates.append(threading.Event())
        return self.gates[-1]

    def answer(self, path):
        if self.healed is not None:
            return self.healed
        script = self.scripts.get(path, [status(404)])
        return script.pop(0) if len(script) > 1 else script[0]

    def wait_for_requests(self, number):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= number, ENOUGH_SECONDS)

    def ranges(self, path=f"/{NAME}"):
        return [request.range for request in self.requests if request.path == path]

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            self.faults.append(error)

    def close(self):
        for gate in self.gates:
            gate.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = urlsplit(self.path).path
        get = self.headers.get
        self.log = Request(path, get("Range"), get("If-Range"), get("Accept-Encoding"), time.monotonic())
        with self.server.changed:
            self.server.requests.append(self.log)
            answer = self.server.answer(path)
            self.server.changed.notify_all()
        self.close_connection = True
        answer(self)

    def head(self, code, **headers):
        self.send_response(code)
        for key, value in headers.items():
            if value is not None:
                self.send_header(key.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def send(self, data):
        self.wfile.write(data)
        self.log.sent += len(data)

    def log_message(self, *args):
        pass


def file(
    content, until=None, gate=None, ranges=True, etag=None, modified=None, obeys_if_range=True, length=True, **more
):
    """The file, from where it was asked; cut off before the byte `until`, or held there for a gate."""

    def answer(handler):
        start = int(re.fullmatch(r"bytes=(\d+)-", handler.log.range)[1]) if ranges and handler.log.range else 0
        if obeys_if_range and handler.log.if_range not in (None, etag, modified):
            start = 0
        if start and start >= len(content):
            handler.head(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
            return
        handler.head(
            206 if start else 200,
            Content_Length=len(content) - start if length else None,
            Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}" if start else None,
            ETag=etag,
            Last_Modified=modified,
            **more,
        )
        handler.send(content[start:until])
        if gate is not None:
            gate.wait(2 * ENOUGH_SECONDS)
            handler.send(content[until:])

    return answer


def chunked(content, whole=True):
    def answer(handler):
        handler.head(200, Transfer_Encoding="chunked")
        for start in range(0, len(content), 10_000):
            piece = content[start : start + 10_000]
            handler.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        if whole:
            handler.send(b"0\r\n\r\n")

    return answer


def status(code, body=b"no", **headers):
    def answer(handler):
        handler.head(code, Content_Length=len(body), **headers)
        handler.send(body)

    return answer


def page(kind, body=PAGE):
    return status(200, body, Content_Type=kind)


def drip(content, before, gate, seconds=0.02):
    """`before` bytes at once, then a byte at a time."""

    def answer(handler):
        handler.head(200, Content_Length=len(content))
        handler.send(content[:before])
        for place in range(before, len(content)):
            if gate.wait(seconds):
                return
            handler.send(content[place : place + 1])

    return answer


def raw(data):
    def answer(handler):
        handler.send(data)

    return answer


@pytest.fixture(autouse=True)
def straight_to_loopback(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.close()
    thread.join(ENOUGH_SECONDS)
    assert not thread.is_alive()
    assert server.faults == []
    assert {request.encoding for request in server.requests} <= {"identity"}


@pytest.fixture
def fast_clock(monkeypatch):
    """Lets the clock of the downloads run ten times as fast; the timeouts of their sockets keep their length."""
    monkeypatch.setattr(fetch, "time", SimpleNamespace(monotonic=lambda: 10 * time.monotonic()))


@pytest.fixture
def tmpfs(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def known(*urls, content=CONTENT, name=NAME, size=True):
    """A file of a table that has its length and checksum."""
    return Source(name, urls, len(content) if size else None, "sha256", hashlib.sha256(content).hexdigest())


def unknown(*urls):
    """A file without a published checksum."""
    return Source(NAME, urls)


def fetch_one(source, folder, patience=PATIENT):
    return fetch_files([source], folder, patience)[source.name]


def right(folder, name=NAME, content=CONTENT):
    """The file is there with these bytes, and nothing is left of its way."""
    left = [path.name for path in folder.iterdir() if path.suffix in (".part", ".origin")]
    return (folder / name).read_bytes() == content and left == []


def fails_cleanly(server, folder, *sources, content=CONTENT, patience=PATIENT):
    """Returns the error message; checks that no file is left and that the next call, to a good server, succeeds."""
    server.healed = None
    with pytest.raises(ValueError) as caught:
        fetch_files(sources, folder, patience)
    error = caught.value
    message = str(error)
    assert type(error) is ValueError
    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
    assert len(message.splitlines()) == 1
    named = [source for source in sources if source.name in message]
    assert len(named) == 1
    assert not (folder / named[0].name).exists()

    server.heal(content)
    healed = [
        replace(source, urls=tuple(url if server.address in url else f"{server.address}/healed" for url in source.urls))
        for source in sources
    ]
    digests = fetch_files(healed, folder, PATIENT)
    assert list(digests) == [source.name for source in sources]
    for source in sources:
        assert digests[source.name] == f"{source.algorithm}:{hashlib.new(source.algorithm, content).hexdigest()}"
        assert right(folder, source.name, content)
    return message


def start_child(source, folder, largest=0):
    text = json.dumps([vars(source), str(folder), largest])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", CHILD, text], text=True, **pipes)


def wait_for_part(path, size):
    latest = time.monotonic() + ENOUGH_SECONDS
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < latest
        time.sleep(0.01)


def answer_of(child):
    out, err = child.communicate(timeout=ENOUGH_SECONDS)
    assert child.returncode == 0, err
    return json.loads(out)


# Good servers


def test_a_good_file_comes_under_its_name_and_its_checksum_is_returned(server, tmp_path):
    source = known(server.serve(f"/{NAME}", file(CONTENT)))
    assert fetch_files([source], tmp_path / "new" / "folder", PATIENT) == {NAME: f"sha256:{SHA256}"}
    assert right(tmp_path / "new" / "folder")
    assert server.ranges() == [None]


def test_a_file_that_is_there_is_checked_and_not_fetched(server, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    source = known(server.serve(f"/{NAME}", file(CONTENT)))
    assert fetch_one(source, tmp_path) == f"sha256:{SHA256}"
    assert server.requests == []


def test_a_checksum_may_be_sha256_its_first_digits_or_md5(server, tmp_path):
    for number, (algorithm, digits) in enumerate(CHECKSUMS):
        source = Source(f"{number}.zip", (server.serve(f"/{number}", file(CONTENT)),), None, algorithm, digits)
        assert fetch_one(source, tmp_path) == f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
        assert right(tmp_path, source.name)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["0.zip", "1.zip", "2.zip"]


def test_a_chunked_answer_and_one_that_ends_with_the_connection_are_files_too(server, tmp_path):
    sources = [
        known(server.serve("/chunked", chunked(CONTENT)), name="a.zip", size=False),
        known(server.serve("/unmeasured", file(CONTENT, length=False)), name="b.zip", size=False),
    ]
    fetch_files(sources, tmp_path, PATIENT)
    assert right(tmp_path, "a.zip") and right(tmp_path, "b.zip")


def test_every_finished_file_is_told_in_a_line(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    small = CONTENT[:5000]
    sources = [
        known(server.serve("/large", file(CONTENT)), name="large.zip"),
        known(server.serve("/small", file(small)), content=small, name="small.zip"),
    ]
    for _ in range(2):  # one that is there already is checked again
        caplog.clear()
        fetch_files(sources, tmp_path, PATIENT)
        finished = sorted(message for message in caplog.messages if ", checked, after " in message)
        assert [re.sub(r"\d+ s$", "N s", message) for message in finished] == [
            "large.zip: 0.3 MB, checked, after N s",
            "small.zip: 0.005 MB, checked, after N s",
        ]


def test_no_files_are_no_work(tmp_path):
    assert fetch_files([], tmp_path) == {}


def test_several_files_come_at_once(server, tmp_path):
    together = threading.Barrier(PARALLEL_DOWNLOADS)
    contents = {f"{number}.zip": CONTENT[number:] for number in range(PARALLEL_DOWNLOADS + 3)}

    def meets_others(content):
        def answer(handler):
            if handler.log.path < f"/{PARALLEL_DOWNLOADS}":
                together.wait(ENOUGH_SECONDS)
            file(content)(handler)

        return answer

    sources = [
        known(server.serve(f"/{name}", meets_others(content)), content=content, name=name)
        for name, content in contents.items()
    ]
    digests = fetch_files(sources, tmp_path, PATIENT)
    assert list(digests) == list(contents)
    assert all(right(tmp_path, name, content) for name, content in contents.items())


def test_a_redirect_leads_to_the_file(server, tmp_path):
    server.serve("/elsewhere", file(CONTENT))
    url = server.serve(f"/{NAME}", status(302, Location="/elsewhere"))
    fetch_one(known(url), tmp_path)
    assert right(tmp_path)


def test_a_cut_behind_a_redirect_is_resumed_through_it(server, tmp_path):
    server.serve("/elsewhere", file(CONTENT, until=HALF, etag='"a"'), file(CONTENT, etag='"a"'))
    url = server.serve(f"/{NAME}", status(302, Location=f"{server.address}/elsewhere"))
    fetch_one(unknown(url), tmp_path)
    assert right(tmp_path)
    assert server.ranges("/elsewhere") == [None, f"bytes={HALF}-"]


def test_an_archive_is_asked_for_as_it_is_and_never_decoded(server, tmp_path):
    archive = gzip.compress(CONTENT, mtime=0)

    def packs_if_asked(handler):
        if "gzip" in handler.log.encoding:
            packed = gzip.compress(archive)
            handler.head(200, Content_Length=len(packed), Content_Encoding="gzip")
            handler.send(packed)
        else:
            file(archive)(handler)

    labelled = file(archive, Content_Encoding="gzip", Content_Type="application/x-gzip")
    sources = [
        known(server.serve("/asked", packs_if_asked), content=archive, name="asked.tar.gz"),
        known(server.serve("/labelled", labelled), content=archive, name="labelled.tar.gz", size=False),
    ]
    fetch_files(sources, tmp_path, PATIENT)
    assert right(tmp_path, "asked.tar.gz", archive) and right(tmp_path, "labelled.tar.gz", archive)
    assert {request.encoding for request in server.requests} == {"identity"}


def test_a_zip_that_is_called_a_page_is_taken(server, tmp_path):
    fetch_one(known(server.serve(f"/{NAME}", file(CONTENT, Content_Type="text/html"))), tmp_path)
    assert right(tmp_path)


# Resuming


def test_ten_files_each_cut_at_a_random_place_go_on_from_there(server, tmp_path):
    chance = random.Random(SEED)
    cuts = {f"{number}.zip": chance.randrange(4096, len(CONTENT)) for number in range(10)}
    sources = [
        known(server.serve(f"/{name}", file(CONTENT, until=cut), file(CONTENT)), name=name)
        for name, cut in cuts.items()
    ]
    fetch_files(sources, tmp_path, PATIENT)
    for name, cut in cuts.items():
        assert right(tmp_path, name)
        assert server.ranges(f"/{name}") == [None, f"bytes={cut}-"]
    assert sum(request.sent for request in server.requests) == 10 * len(CONTENT)


def test_a_file_that_is_cut_again_and_again_is_sent_once(server, tmp_path):
    cuts = sorted(random.Random(SEED + 2).sample(range(4096, len(CONTENT)), 5))
    script = [file(CONTENT, until=cut, etag='"a"') for cut in cuts] + [file(CONTENT, etag='"a"')]
    fetch_one(unknown(server.serve(f"/{NAME}", *script)), tmp_path)
    assert right(tmp_path)
    assert server.ranges() == [None] + [f"bytes={cut}-" for cut in cuts]
    assert sum(request.sent for request in server.requests) == len(CONTENT)


def test_a_file_cut_before_its_kind_shows_is_fetched_all_the_same(server, tmp_path):
    fetch_one(known(server.serve(f"/{NAME}", file(CONTENT, until=100), file(CONTENT))), tmp_path)
    assert right(tmp_path)


def test_after_a_failed_call_the_next_has_only_the_rest_sent(server, tmp_path):
    source = unknown(
        server.serve(f"/{NAME}", file(CONTENT, until=HALF, etag='"a"'), *[status(503)] * 3, file(CONTENT, etag='"a"'))
    )
    with pytest.raises(ValueError, match=NAME):
        fetch_one(source, tmp_path)
    assert not (tmp_path / NAME).exists()
    assert len(server.requests) == 4
    fetch_one(source, tmp_path)
    assert right(tmp_path)
    assert server.ranges()[-1] == f"bytes={HALF}-"
    assert server.requests[-1].sent == len(CONTENT) - HALF


def test_a_cut_that_never_ends_is_an_error_and_a_second_call_goes_on(server, tmp_path):
    source = known(server.serve(f"/{NAME}", file(CONTENT, until=HALF)))
    message = fails_cleanly(server, tmp_path, source)
    assert re.search(rf"closed the connection \(IncompleteRead: .*\), after {HALF} bytes, 4 tries", message)
    assert server.ranges() == [None] + 4 * [f"bytes={HALF}-"]
    assert server.requests[-1].sent == len(CONTENT) - HALF


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    url = server.serve(f"/{NAME}", file(CONTENT, until=HALF, ranges=False), file(CONTENT, ranges=False))
    fetch_one(known(url), tmp_path)
    assert right(tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-"]
    assert server.requests[-1].sent == len(CONTENT)


def another_range(handler):
    handler.head(
        206, Content_Range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}", Content_Length=len(CONTENT), ETag='"a"'
    )
    handler.send(CONTENT)


def no_range_named(handler):
    handler.head(206, Content_Length=len(CONTENT) - HALF, ETag='"a"')
    handler.send(CONTENT[HALF:])


@pytest.mark.parametrize(
    "source, wrong",
    [(known, another_range), (unknown, another_range), (unknown, no_range_named), (known, status(416))],
    ids=["another", "another_unknown", "unnamed", "416"],
)
def test_another_range_than_was_asked_for_starts_the_file_afresh(server, tmp_path, source, wrong):
    url = server.serve(f"/{NAME}", file(CONTENT, until=HALF, etag='"a"'), wrong, file(CONTENT))
    fetch_one(source(url), tmp_path)
    assert right(tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-", None]


@pytest.mark.parametrize("wrong", [another_range, status(416)], ids=["another", "416"])
def test_a_server_that_never_gives_the_range_ends_in_an_error(server, tmp_path, monkeypatch, wrong):
    """Every second try receives new bytes, so only the limit on all tries of an address ends the download."""
    monkeypatch.setattr(fetch, "MAX_TRIES", 10)

    def only_whole_and_then_cut(handler):
        (wrong if handler.log.range else file(CONTENT, until=HALF))(handler)

    message = fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", only_whole_and_then_cut)))
    assert "range" in message and "10 tries" in message
    assert len(server.requests) == 10 + 1


def test_a_range_that_ends_too_early_is_gone_on_from(server, tmp_path):
    def short(handler):
        end = HALF + 50_000
        handler.head(206, Content_Range=f"bytes {HALF}-{end - 1}/{len(CONTENT)}", Content_Length=end - HALF, ETag='"a"')
        handler.send(CONTENT[HALF:end])

    url = server.serve(f"/{NAME}", file(CONTENT, until=HALF, etag='"a"'), short, file(CONTENT, etag='"a"'))
    fetch_one(unknown(url), tmp_path)
    assert right(tmp_path)


def test_bytes_that_are_all_there_are_not_sent_again(server, tmp_path):
    url = server.serve(f"/{NAME}", chunked(CONTENT, whole=False), file(CONTENT))
    fetch_one(known(url, size=False), tmp_path)
    assert right(tmp_path)
    assert server.ranges() == [None, f"bytes={len(CONTENT)}-"]
    assert server.requests[-1].sent == 0


def test_more_bytes_than_the_table_says_are_not_gone_on_from(server, tmp_path):
    url = server.serve(f"/{NAME}", file(OTHER, until=HALF), status(404), file(CONTENT[:1000]))
    with pytest.raises(ValueError, match="404"):
        fetch_one(known(url), tmp_path)
    fetch_one(known(url, content=CONTENT[:1000]), tmp_path)
    assert right(tmp_path, content=CONTENT[:1000])
    assert server.ranges()[2:] == [None]


@pytest.mark.parametrize("cuts", [(), (HALF, HALF + 9999)])
def test_bytes_are_checked_as_they_come_and_only_what_was_there_is_read(server, tmp_path, monkeypatch, cuts):
    read = []
    digest = hashlib.file_digest

    def watched(file, algorithm):
        read.append(os.fstat(file.fileno()).st_size)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    url = server.serve(f"/{NAME}", *(file(CONTENT, until=cut) for cut in cuts), file(CONTENT))
    assert fetch_one(known(url), tmp_path) == f"sha256:{SHA256}"
    assert right(tmp_path)
    assert read == list(cuts)


def test_the_checksum_returned_is_that_of_the_file_however_it_was_downloaded(server, tmp_path):
    md5 = hashlib.md5(CONTENT).hexdigest()
    ways = {
        "whole": [file(CONTENT)],
        "cut": [file(CONTENT, until=HALF), file(CONTENT)],
        "all_there": [chunked(CONTENT, whole=False), file(CONTENT)],
        "afresh": [file(OTHER, until=HALF), file(CONTENT, ranges=False)],
        "another_end": [file(OTHER, until=HALF), file(CONTENT), file(CONTENT)],
    }
    for way, script in ways.items():
        url = server.serve(f"/{way}", *script)
        assert fetch_one(Source(f"{way}.zip", (url,), None, "md5", md5), tmp_path) == f"md5:{md5}"
        assert right(tmp_path, f"{way}.zip")


def test_a_part_that_is_all_of_the_file_is_checked_and_nothing_is_asked(server, tmp_path):
    source = known(server.serve(f"/{NAME}", file(CONTENT)))
    (tmp_path / f".{NAME}.part").write_bytes(CONTENT)
    assert fetch_one(source, tmp_path) == f"sha256:{SHA256}"
    assert right(tmp_path) and server.requests == []
    (tmp_path / NAME).unlink()
    (tmp_path / f".{NAME}.part").write_bytes(OTHER)
    assert fetch_one(source, tmp_path) == f"sha256:{SHA256}"
    assert right(tmp_path) and server.ranges() == [None]


def test_the_bytes_counted_add_up_after_a_cut_and_a_fresh_start(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    caplog.set_level(logging.INFO)
    content = 10 * CONTENT
    url = server.serve(f"/{NAME}", file(content, until=2_000_000), status(416), file(content))
    fetch_one(known(url, content=content), tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.name == "bbnet.data.progress"]
    assert lines[-1].startswith("download: 3 of 3 MB")


# Wrong contents


def test_a_wrong_checksum_is_an_error_that_gives_both(server, tmp_path):
    for number, (algorithm, digits) in enumerate(CHECKSUMS):
        url = server.serve(f"/{number}", file(OTHER))
        message = fails_cleanly(server, tmp_path, Source(f"{number}.zip", (url,), len(CONTENT), algorithm, digits))
        assert hashlib.new(algorithm, OTHER).hexdigest() in message and digits in message
        assert server.ranges(f"/{number}") == [None, None]


def test_a_length_other_than_the_tables_is_refused_before_it_comes(server, tmp_path):
    content = OTHER + bytes(60 << 20)
    message = fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", file(content))))
    assert f"offers {len(content)} bytes" in message and str(len(CONTENT)) in message
    assert server.requests[0].sent < len(content)


def test_a_body_longer_than_the_table_says_is_refused(server, tmp_path):
    message = fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", chunked(CONTENT + b"more"))))
    assert f"sends more than the {len(CONTENT)} bytes" in message


def test_a_body_shorter_than_the_table_says_is_refused(server, tmp_path):
    message = fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", chunked(CONTENT[:HALF]))))
    assert NAME in message


def test_an_empty_body_is_no_file_of_the_table(server, tmp_path):
    fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", status(200, b"")), size=False))


def test_an_empty_body_is_not_trusted(server, tmp_path):
    fails_cleanly(server, tmp_path, unknown(server.serve(f"/{NAME}", status(200, b""))))


def test_a_damaged_chunked_answer_is_an_error(server, tmp_path):
    answer = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n")
    fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", answer)))


PAGES = {
    "declared": ("text/html", PAGE),
    "charset": ("text/html; charset=utf-8", PAGE),
    "capitals": ("Text/HTML", b"Please log in."),
    "undeclared": ("application/octet-stream", PAGE),
    "no type": (None, PAGE),
    "bom": ("application/octet-stream", b"\xef\xbb\xbf" + PAGE),
    "xml": ("application/xhtml+xml", b'<?xml version="1.0"?>\n' + PAGE),
    "comment": ("application/octet-stream", b"\n <!-- by us -->\n<HTML><body>no title</body></HTML>"),
    "no title": ("application/octet-stream", b"<head><title></title></head>"),
}


def test_an_html_page_instead_of_a_file_is_refused_with_its_title(server, tmp_path):
    for case, (kind, body) in PAGES.items():
        for source in (known, unknown) if case == "declared" else (unknown,):
            folder = tmp_path / f"{case}, {source.__name__}"
            message = fails_cleanly(server, folder, source(server.serve(f"/{NAME}", page(kind, body))))
            title = " ('Sign in to go on')" if PAGE in body else ""
            assert f"answers with an HTML page{title} instead of the file" in message, case
            assert "Google" not in message


def test_a_page_of_google_drive_is_named_as_such(server, tmp_path, monkeypatch):
    server.serve("/uc", page("text/html"))
    monkeypatch.setenv("http_proxy", server.address)  # so that loopback answers for Google
    with pytest.raises(ValueError, match="Google Drive") as caught:
        fetch_one(known("http://drive.google.com/uc?id=1"), tmp_path)
    monkeypatch.delenv("http_proxy")
    assert NAME in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / NAME).exists()
    fetch_one(known(server.serve(f"/{NAME}", file(CONTENT))), tmp_path)
    assert right(tmp_path)


def test_google_drive_is_known_by_its_host_alone():
    assert fetch._is_drive("https://drive.usercontent.google.com/download?id=1&confirm=t")
    assert fetch._is_drive("https://drive.google.com/uc")
    assert not fetch._is_drive("https://example.org/drive.google.com")
    assert not fetch._is_drive("https://google.com.example.org/")
    assert not fetch._is_drive("no address")


# Servers that refuse, stall, or are not there


def test_a_refusal_is_not_asked_again(server, tmp_path):
    for code in (400, 404, 499):
        message = fails_cleanly(server, tmp_path / str(code), known(server.serve(f"/{code}", status(code))))
        assert f"answers {code} " in message
        assert server.ranges(f"/{code}") == [None, None]


def test_a_file_that_has_gone_after_a_cut_is_an_error(server, tmp_path):
    url = server.serve(f"/{NAME}", file(CONTENT, until=HALF), status(404))
    assert "answers 404" in fails_cleanly(server, tmp_path, known(url))
    assert server.ranges() == [None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_a_server_that_fails_and_recovers_gives_the_file(server, tmp_path):
    fetch_one(known(server.serve(f"/{NAME}", status(500), status(502), file(CONTENT))), tmp_path)
    assert right(tmp_path)
    assert len(server.requests) == 3


def test_a_server_that_keeps_failing_is_asked_as_often_as_patience_says(server, tmp_path):
    for code in (408, 425, 429, 500, 503):
        message = fails_cleanly(server, tmp_path / str(code), known(server.serve(f"/{code}", status(code))))
        assert f"answers {code} " in message and "3 tries" in message
        assert len(server.ranges(f"/{code}")) == 3 + 1


def test_a_server_that_asks_to_wait_is_waited_for_up_to_a_limit(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fetch, "MAX_WAIT_SECONDS", 0.3)
    caplog.set_level(logging.INFO)
    fetch_one(known(server.serve(f"/{NAME}", status(429, Retry_After=9), file(CONTENT))), tmp_path)
    assert right(tmp_path)
    first, second = server.requests
    assert 0.3 <= second.when - first.when < 9
    assert any("answers 429 " in line and line.endswith("; retrying in 9 s") for line in caplog.messages)


def test_a_wait_given_as_a_date_does_no_harm(server, tmp_path):
    asks = status(503, Retry_After="Fri, 31 Dec 2100 23:59:59 GMT")
    fetch_one(known(server.serve(f"/{NAME}", asks, file(CONTENT))), tmp_path)
    assert right(tmp_path)


def test_pauses_double(server, tmp_path):
    patience = replace(PATIENT, tries=4, back_off=0.03)
    fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", status(500))), patience=patience)
    times = [request.when for request in server.requests[:4]]
    pauses = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert all(pause >= expected for pause, expected in zip(pauses, (0.03, 0.06, 0.12), strict=True))


@pytest.mark.parametrize("where", [f"/{NAME}", "/elsewhere"])
def test_an_endless_redirect_is_an_error(server, tmp_path, where):
    server.serve("/elsewhere", status(302, Location=f"/{NAME}"))
    message = fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", status(302, Location=where))))
    assert "redirects more than 10 times" in message
    assert len(server.requests) <= 11 + 1


BAD_ANSWERS = {
    "ftp": (status(302, Location="ftp://127.0.0.1/pack.zip"), "cannot be requested"),
    "file": (status(302, Location="file:///etc/passwd"), "cannot be requested"),
    "no host": (status(302, Location="http://"), "redirects more than 10 times"),
    "no location": (status(302), "answers 302"),
    "brackets": (status(302, Location="http://[::1/pack.zip"), "redirects to an invalid address"),
    "latin1": (
        raw(b"HTTP/1.1 302 Found\r\nLocation: /\xe9.zip\r\nContent-Length: 0\r\n\r\n"),
        "redirects to an invalid address",
    ),
    "retry after": (raw(b"HTTP/1.1 503 Busy\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n"), "answers 503 Busy"),
    "length": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n" + OTHER), "sends a different file"),
    "nothing": (raw(b""), "RemoteDisconnected"),
    "no http": (raw(b"what do you want?\r\n"), "BadStatusLine: what do you want"),
    "no code": (raw(b"HTTP/1.1 twohundred\r\n\r\n"), "twohundred"),
    "no body": (raw(b"HTTP/1.1 200 OK\r\n"), "sends an empty file"),
}


def test_a_redirect_or_answer_that_makes_no_sense_is_an_error_that_names_the_file(server, tmp_path):
    for case, (answer, expected) in BAD_ANSWERS.items():
        message = fails_cleanly(server, tmp_path / case, known(server.serve(f"/{NAME}", answer)))
        assert expected in message, case


@pytest.mark.parametrize("before", [HALF, pytest.param(0, marks=pytest.mark.thorough)])
def test_a_body_that_arrives_byte_by_byte_is_an_error(server, tmp_path, fast_clock, before):
    url = server.serve(f"/{NAME}", drip(CONTENT, before, server.gate()))
    began = time.monotonic()
    message = fails_cleanly(
        server, tmp_path, known(url), patience=Patience(connect=20, stall=2, tries=2, back_off=0.01)
    )
    assert time.monotonic() - began < ENOUGH_SECONDS
    assert "below 1024 bytes/s" in message and "2 tries" in message


def test_a_drip_of_headers_is_an_error(server, tmp_path):
    """Each byte comes within the time that a stall may last."""
    gate, dripped = server.gate(), []

    def headers(handler):
        handler.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
        for _ in range(100):
            if gate.wait(0.02):
                return
            handler.send(b"x")
        dripped.append(True)

    fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", headers)), patience=replace(HASTY, tries=1))
    assert dripped == []


def test_a_redirect_whose_page_drips_is_followed_or_given_up(server, tmp_path):
    gate, dripped = server.gate(), []
    server.serve("/elsewhere", file(CONTENT))

    def slow(handler):
        handler.head(302, Location="/elsewhere", Content_Length=1_000_000)
        for _ in range(100):
            if gate.wait(0.02):
                return
            handler.send(b"x")
        dripped.append(True)

    try:
        fetch_one(known(server.serve(f"/{NAME}", slow)), tmp_path, replace(HASTY, tries=1))
    except ValueError as error:
        assert NAME in str(error)
    assert dripped == []


def test_a_slow_file_above_the_minimum_pace_is_downloaded(server, tmp_path, fast_clock):
    """The pace is checked once a second, about five times; the file arrives with 50 KB/s."""

    def steady(handler):
        handler.head(200, Content_Length=len(CONTENT))
        for start in range(0, len(CONTENT), 12_000):
            handler.send(CONTENT[start : start + 12_000])
            time.sleep(0.02)

    fetch_one(known(server.serve(f"/{NAME}", steady)), tmp_path, Patience(connect=20, stall=1, tries=1))
    assert right(tmp_path)


def test_a_file_that_stands_still_is_resumed(server, tmp_path):
    url = server.serve(f"/{NAME}", file(CONTENT, until=HALF, gate=server.gate()), file(CONTENT))
    fetch_one(known(url), tmp_path, replace(PATIENT, stall=0.3))
    assert right(tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-"]


def test_a_file_that_stands_still_again_and_again_is_an_error(server, tmp_path):
    url = server.serve(f"/{NAME}", *(file(CONTENT, until=HALF + step, gate=server.gate()) for step in (0, 99)))
    message = fails_cleanly(server, tmp_path, known(url), patience=HASTY)
    assert "does not answer within 0.3 s" in message
    assert server.ranges() == [None, f"bytes={HALF}-", f"bytes={HALF + 99}-"]


def test_a_server_that_accepts_and_never_answers_is_an_error(server, tmp_path):
    gate = server.gate()

    def silent(handler):
        gate.wait(ENOUGH_SECONDS)

    source = known(server.serve(f"/{NAME}", silent))
    message = fails_cleanly(server, tmp_path, source, patience=replace(HASTY, tries=1))
    assert "does not answer within 0.3 s" in message
    assert len(server.requests) == 1 + 1


def test_an_address_at_which_nobody_listens_is_an_error(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    message = fails_cleanly(server, tmp_path, known(f"http://127.0.0.1:{port}/{NAME}"))
    cause = f"ConnectionRefusedError: [Errno {errno.ECONNREFUSED}] Connection refused"
    assert f"cannot be reached or closed the connection ({cause}), after 0 bytes" in message
    assert f"127.0.0.1:{port}" in message


def test_a_host_that_no_one_knows_is_named_as_the_cause(server, tmp_path):
    message = fails_cleanly(server, tmp_path, known(f"http://nowhere.invalid/{NAME}"))
    assert re.search(r"cannot be reached or closed the connection \(gaierror: .+\), after 0 bytes, 3 tries", message)


def test_a_server_that_resets_the_connection_is_named_as_the_cause(server, tmp_path):
    def reset(handler):
        handler.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.request.close()

    message = fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", reset)))
    assert re.search(r"closed the connection \(ConnectionResetError: .*\), after 0 bytes, 3 tries", message)


def test_a_cause_of_many_lines_is_one_short_line(server, tmp_path):
    lines = b"what\tdo\r\n" + b"you want? " * 1000
    message = fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", raw(lines))))
    cause = re.search(r"closed the connection \((.*)\), after 0 bytes", message)[1]
    assert len(cause) <= fetch.MAX_CAUSE_LENGTH and "\t" not in cause


def test_an_invalid_address_is_an_error(server, tmp_path):
    for number, url in enumerate(("gopher://example.org/a", "no address", "http://")):
        assert "cannot be requested" in fails_cleanly(server, tmp_path / str(number), known(url))


# Mirrors


def test_the_next_mirror_is_asked_where_the_first_fails(server, tmp_path):
    page_, longer = page("text/html"), chunked(CONTENT + b"!")
    for number, first in enumerate(
        (status(404), page_, file(OTHER), file(OTHER + b"!"), status(500), raw(b"?"), longer)
    ):
        source = known(server.serve("/first", first), server.serve(f"/{NAME}", file(CONTENT)))
        fetch_one(source, tmp_path / str(number))
        assert right(tmp_path / str(number))
    assert len(server.ranges("/first")) == 5 + 2 * PATIENT.tries


def test_what_one_mirror_began_another_ends(server, tmp_path):
    source = known(
        server.serve("/first", file(CONTENT, until=HALF), status(404)), server.serve(f"/{NAME}", file(CONTENT))
    )
    fetch_one(source, tmp_path)
    assert right(tmp_path)
    assert server.ranges("/first") == [None, f"bytes={HALF}-"]
    assert server.ranges() == [f"bytes={HALF}-"]


def test_a_mirror_that_began_with_other_bytes_costs_a_fresh_start(server, tmp_path):
    source = known(
        server.serve("/first", file(OTHER, until=HALF), status(404)), server.serve(f"/{NAME}", file(CONTENT))
    )
    fetch_one(source, tmp_path)
    assert right(tmp_path)
    assert server.ranges() == [f"bytes={HALF}-", None]


def test_without_a_checksum_no_mirror_ends_what_another_began(server, tmp_path):
    source = unknown(
        server.serve("/first", file(OTHER, until=HALF, etag='"a"'), status(404)),
        server.serve(f"/{NAME}", file(CONTENT, etag='"a"')),
    )
    fetch_one(source, tmp_path)
    assert right(tmp_path)
    assert server.ranges() == [None]


@pytest.mark.parametrize("second", [status(404), page("text/html"), status(200, b"")], ids=["404", "page", "empty"])
def test_without_a_checksum_a_mirror_that_gives_no_bytes_leaves_those_of_the_first(server, tmp_path, second):
    whole = file(CONTENT, etag='"a"')
    source = unknown(
        server.serve(f"/{NAME}", file(CONTENT, until=HALF, etag='"a"'), status(404), whole),
        server.serve("/second", second),
    )
    with pytest.raises(ValueError, match="/second"):
        fetch_one(source, tmp_path)
    assert (tmp_path / f".{NAME}.part").read_bytes() == CONTENT[:HALF]
    assert set(server.ranges("/second")) == {None}
    fetch_one(source, tmp_path)
    assert right(tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-", f"bytes={HALF}-"]
    assert server.requests[-1].sent == len(CONTENT) - HALF


def test_without_a_checksum_the_bytes_of_the_address_that_gave_them_last_are_kept(server, tmp_path):
    source = unknown(
        server.serve("/first", file(OTHER, until=HALF + 99, etag='"a"'), status(404)),
        server.serve(f"/{NAME}", file(CONTENT, until=HALF, etag='"a"'), status(404), file(CONTENT, etag='"a"')),
    )
    with pytest.raises(ValueError, match="404"):
        fetch_one(source, tmp_path)
    assert (tmp_path / f".{NAME}.part").read_bytes() == CONTENT[:HALF]
    fetch_one(source, tmp_path)
    assert right(tmp_path)
    assert server.ranges("/first")[2:] == [None]
    assert server.ranges() == [None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_where_all_mirrors_fail_the_error_gives_the_answer_of_each(server, tmp_path):
    urls = (
        server.serve("/gone", status(404)),
        server.serve("/page", page("text/html")),
        server.serve("/wrong", file(OTHER)),
        server.serve("/ill", status(503)),
    )
    message = fails_cleanly(server, tmp_path, known(*urls))
    answers = ("answers 404", "answers with an HTML page", "sends a different file", "answers 503")
    places = [message.index(f"{url} {answer}") for url, answer in zip(urls, answers, strict=True)]
    assert places == sorted(places)


# Disks


def test_a_disk_without_the_space_is_an_error_before_anything_is_asked(server, tmp_path):
    source = known(server.serve(f"/{NAME}", file(CONTENT)))
    usage = namedtuple("usage", "total used free")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, len(CONTENT) - 1))
        with pytest.raises(ValueError, match=NAME) as caught:
            fetch_one(source, tmp_path)
    assert server.requests == []
    assert "\n" not in str(caught.value) and not (tmp_path / NAME).exists()
    fetch_one(source, tmp_path)
    assert right(tmp_path)


def test_a_length_that_only_the_server_knows_is_held_against_the_disk_too(server, tmp_path):
    source = unknown(server.serve(f"/{NAME}", file(CONTENT)))
    usage = namedtuple("usage", "total used free")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, len(CONTENT) - 1))
        with pytest.raises(ValueError, match=f"{NAME} needs 0.3 MB") as caught:
            fetch_one(source, tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / NAME).exists()
    fetch_one(source, tmp_path)
    assert right(tmp_path)


def test_only_the_bytes_that_lack_are_asked_of_the_disk(server, tmp_path):
    source = known(server.serve(f"/{NAME}", file(CONTENT, until=HALF), status(404), file(CONTENT)))
    with pytest.raises(ValueError, match="404"):
        fetch_one(source, tmp_path)
    usage = namedtuple("usage", "total used free")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, len(CONTENT) - HALF))
        fetch_one(source, tmp_path)
    assert right(tmp_path)


def test_a_disk_that_fills_up_keeps_what_it_took(server, tmpfs):
    content = 7 * CONTENT
    source = known(server.serve(f"/{NAME}", chunked(content), file(content)), content=content, size=False)
    with pytest.raises(ValueError, match="No space left on device") as caught:
        fetch_one(source, tmpfs)
    message = str(caught.value)
    kept = int(re.search(r"the (\d+) bytes downloaded so far are kept", message)[1])
    assert NAME in message and "\n" not in message and not (tmpfs / NAME).exists()
    assert kept > len(content) / 4
    subprocess.run(["mount", "-o", "remount,size=8m", tmpfs], check=True)
    fetch_one(source, tmpfs)
    assert right(tmpfs, content=content)
    assert server.ranges() == [None, f"bytes={kept}-"]


def test_a_file_that_may_grow_no_more_keeps_what_it_took(server, tmp_path):
    source = known(server.serve(f"/{NAME}", file(CONTENT)))
    message = answer_of(start_child(source, tmp_path, largest=HALF))
    assert NAME in message and "\n" not in message and "File too large" in message
    assert f"the {HALF} bytes downloaded so far are kept" in message
    assert not (tmp_path / NAME).exists()
    fetch_one(source, tmp_path)
    assert right(tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to any folder")
def test_a_folder_that_cannot_be_written_to_is_an_error(server, tmp_path):
    source = known(server.serve(f"/{NAME}", file(CONTENT)))
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=f"{NAME}.*cannot be written") as caught:
        fetch_one(source, tmp_path)
    tmp_path.chmod(0o700)
    assert len(str(caught.value).splitlines()) == 1 and server.requests == []
    fetch_one(source, tmp_path)
    assert right(tmp_path)


def test_a_folder_that_cannot_be_created_and_a_name_that_is_taken_by_a_folder_are_errors(server, tmp_path):
    source = known(server.serve(f"/{NAME}", file(CONTENT)))
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'taken'}: cannot be created (")):
        fetch_one(source, tmp_path / "taken")
    (tmp_path / NAME).mkdir()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / NAME}: exists, but is not a file")):
        fetch_one(source, tmp_path)
    assert server.requests == []


def test_check_space_names_folder_and_purpose(tmp_path):
    check_space(tmp_path, 0, "nothing")
    check_space(tmp_path, shutil.disk_usage(tmp_path).free // 2, "half of it")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: moving in needs 1e+09 GB, but the disk has only")):
        check_space(tmp_path, 10**18, "moving in")


# Several files, several processes


def test_a_file_that_fails_stops_the_others_and_is_the_error(server, tmp_path):
    gate, stopped = server.gate(), threading.Event()

    def endless(handler):
        handler.head(200, Content_Length=len(CONTENT), ETag='"a"')
        handler.send(CONTENT[:HALF])
        for place in range(HALF, len(CONTENT) - 100, 100):
            if gate.wait(0.02):
                return
            try:
                handler.send(CONTENT[place : place + 100])
            except ConnectionError:
                stopped.set()
                raise

    def gone(handler):
        wait_for_part(tmp_path / ".slow.zip.part", HALF)
        status(404)(handler)

    sources = [
        known(server.serve("/slow", endless), name="slow.zip"),
        known(server.serve("/gone", gone), name="gone.zip"),
        *(known(server.serve(f"/{number}", endless), name=f"{number}.zip") for number in range(PARALLEL_DOWNLOADS)),
    ]
    began = time.monotonic()
    message = fails_cleanly(server, tmp_path, *sources)
    assert time.monotonic() - began < ENOUGH_SECONDS
    assert "gone.zip cannot be fetched" in message and "404" in message
    assert stopped.wait(ENOUGH_SECONDS)
    slow = server.ranges("/slow")
    assert slow[0] is None and int(slow[1].removeprefix("bytes=").removesuffix("-")) >= HALF


def test_a_file_that_fails_ends_the_pauses_of_the_others(server, tmp_path):
    waiting = threading.Event()

    def ill(handler):
        status(503, Retry_After=ENOUGH_SECONDS)(handler)
        waiting.set()

    def gone(handler):
        waiting.wait(ENOUGH_SECONDS)
        status(404)(handler)

    sources = [known(server.serve("/ill", ill), name="ill.zip"), known(server.serve("/gone", gone), name="gone.zip")]
    began = time.monotonic()
    assert "gone.zip" in fails_cleanly(server, tmp_path, *sources)
    assert time.monotonic() - began < ENOUGH_SECONDS / 2


def test_two_processes_at_once_have_the_file_sent_once(server, tmp_path):
    gate = server.gate()
    source = known(server.serve(f"/{NAME}", file(CONTENT, until=HALF, gate=gate), file(CONTENT)))
    first = start_child(source, tmp_path)
    server.wait_for_requests(1)
    second = start_child(source, tmp_path)
    lines = iter(second.stderr.readline, "")
    assert any("waiting for it" in line for line in lines)
    gate.set()
    assert answer_of(first) == answer_of(second) == {NAME: f"sha256:{SHA256}"}
    assert right(tmp_path)
    assert sum(request.sent for request in server.requests) == len(CONTENT)


def test_a_download_resumes_from_what_a_killed_process_left(server, tmp_path):
    source = unknown(
        server.serve(f"/{NAME}", file(CONTENT, until=HALF, gate=server.gate(), etag='"a"'), file(CONTENT, etag='"a"'))
    )
    child = start_child(source, tmp_path)
    part = tmp_path / f".{NAME}.part"
    wait_for_part(part, HALF - 8192)  # of Python's buffer
    child.kill()
    child.communicate(timeout=ENOUGH_SECONDS)
    assert child.returncode < 0 and not (tmp_path / NAME).exists()
    left = part.stat().st_size
    assert HALF - 8192 <= left <= HALF

    fetch_one(source, tmp_path)
    assert right(tmp_path)
    assert server.ranges() == [None, f"bytes={left}-"]
    assert server.requests[-1].sent == len(CONTENT) - left


# Trust on first use, and files that are there already


def test_a_download_without_a_checksum_is_not_trusted_by_itself(server, tmp_path, caplog):
    source = unknown(server.serve(f"/{NAME}", file(CONTENT), file(OTHER)))
    assert fetch_one(source, tmp_path) == f"sha256:{SHA256}"
    assert fetch_one(source, tmp_path) == f"sha256:{SHA256}"
    assert len(server.requests) == 1
    (tmp_path / NAME).unlink()
    assert fetch_one(source, tmp_path) == f"sha256:{hashlib.sha256(OTHER).hexdigest()}"
    assert not (tmp_path / f"{NAME}.sha256").exists()
    assert [line for line in caplog.records if line.levelno >= logging.WARNING] == []


def test_what_is_trusted_is_recorded_as_sha256sum_reads_it(server, tmp_path, caplog):
    digest = fetch_one(unknown(server.serve(f"/{NAME}", file(CONTENT))), tmp_path)
    trust(NAME, digest, tmp_path)
    record = tmp_path / f"{NAME}.sha256"
    assert record.read_text() == f"{SHA256}  {NAME}\n"
    (warning,) = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert NAME in warning and SHA256 in warning and str(record) in warning
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", record.name], cwd=tmp_path, check=True)
    assert fetch_one(unknown("http://127.0.0.1:1/"), tmp_path) == digest
    assert len(server.requests) == 1


def test_what_was_trusted_first_stays_trusted(tmp_path, caplog):
    digest, other = (f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (CONTENT, OTHER))
    demand_trusted(NAME, other, tmp_path)  # nothing is recorded yet
    trust(NAME, digest, tmp_path)
    caplog.clear()
    trust(NAME, other, tmp_path)
    assert caplog.records == []
    demand_trusted(NAME, digest, tmp_path)
    demand_trusted("other.zip", other, tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / f"{NAME}.sha256"))) as caught:
        demand_trusted(NAME, other, tmp_path)
    assert other in str(caught.value) and digest in str(caught.value) and "\n" not in str(caught.value)


def test_a_trusted_file_that_changed_here_is_refused_and_kept(server, tmp_path):
    source = unknown(server.serve(f"/{NAME}", file(CONTENT)))
    trust(NAME, fetch_one(source, tmp_path), tmp_path)
    (tmp_path / NAME).write_bytes(OTHER)
    with pytest.raises(ValueError) as caught:
        fetch_one(source, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / f"{NAME}.sha256") in message and SHA256 in message and "\n" not in message
    assert (tmp_path / NAME).read_bytes() == OTHER
    assert len(server.requests) == 1

    (tmp_path / NAME).unlink()
    fetch_one(source, tmp_path)
    assert right(tmp_path)


def test_another_file_than_was_trusted_is_refused_until_the_record_is_gone(server, tmp_path):
    trust(NAME, fetch_one(unknown(server.serve(f"/{NAME}", file(CONTENT))), tmp_path), tmp_path)
    (tmp_path / NAME).unlink()
    source = unknown(server.serve(f"/{NAME}", file(OTHER)))
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            fetch_one(source, tmp_path)
        assert str(tmp_path / f"{NAME}.sha256") in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / NAME).exists() and list(tmp_path.glob(".*.part")) == []
    (tmp_path / f"{NAME}.sha256").unlink()
    fetch_one(source, tmp_path)
    assert right(tmp_path, content=OTHER)
    assert not (tmp_path / f"{NAME}.sha256").exists()


def test_a_mirror_that_gives_what_was_trusted_is_taken_after_one_that_does_not(server, tmp_path):
    trust(NAME, f"sha256:{SHA256}", tmp_path)
    fetch_one(unknown(server.serve("/first", file(OTHER)), server.serve(f"/{NAME}", file(CONTENT))), tmp_path)
    assert right(tmp_path)


def test_a_trusted_file_is_fetched_again_after_the_server_gave_another(server, tmp_path):
    source = unknown(server.serve(f"/{NAME}", file(CONTENT), file(OTHER)))
    trust(NAME, fetch_one(source, tmp_path), tmp_path)
    (tmp_path / NAME).unlink()
    message = fails_cleanly(server, tmp_path, source)
    assert str(tmp_path / f"{NAME}.sha256") in message


def test_a_published_checksum_counts_and_no_record(server, tmp_path):
    trust(NAME, f"sha256:{hashlib.sha256(OTHER).hexdigest()}", tmp_path)
    fetch_one(known(server.serve(f"/{NAME}", file(CONTENT))), tmp_path)
    fetch_one(known("http://127.0.0.1:1/"), tmp_path)
    assert right(tmp_path)


def test_what_does_not_begin_like_an_archive_is_refused_without_a_checksum(server, tmp_path):
    texts = [(name, b"Please come again tomorrow.") for name in ("pack.zip", "pack.tar.gz", "pack.gz", "pack.tgz")]
    for number, (name, body) in enumerate(
        [*texts, *((NAME, body) for body in (b"Rar!\x1a\x07\x00", b"P", bytes(5000)))]
    ):
        folder = tmp_path / str(number)
        message = fails_cleanly(server, folder, Source(name, (server.serve(f"/{NAME}", status(200, body)),)))
        assert f"sends no archive, but a file that begins with {body[:16]!r}" in message
        assert not (folder / f"{name}.sha256").exists()


def test_what_does_not_begin_like_an_archive_is_refused_after_a_cut_too(server, tmp_path):
    text = b"Please come again tomorrow. " * 1000
    again = file(text, until=9000, etag='"a"'), file(text, etag='"a"')
    assert "sends no archive" in fails_cleanly(server, tmp_path, unknown(server.serve(f"/{NAME}", *again)))


def test_the_next_mirror_is_asked_where_the_first_gives_no_archive(server, tmp_path):
    first = server.serve("/first", status(200, b"Please come again tomorrow."))
    fetch_one(unknown(first, server.serve(f"/{NAME}", file(CONTENT))), tmp_path)
    assert right(tmp_path)


@pytest.mark.parametrize(
    "name, content, digits",
    [("weights.pth", b"weights", None), ("README", b"Read", None), ("a.zip", b"text", hashlib.sha256(b"text"))],
    ids=["weights", "no_suffix", "checksum"],
)
def test_other_names_and_files_with_a_checksum_may_begin_as_they_like(server, tmp_path, name, content, digits):
    digits = digits and digits.hexdigest()
    source = Source(name, (server.serve(f"/{NAME}", status(200, content)),), digits=digits)
    fetch_one(source, tmp_path)
    assert right(tmp_path, name, content)


def test_zip_and_gzip_files_are_accepted_as_archives(server, tmp_path):
    for number, magic in enumerate((b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08")):
        source = Source(f"{number}.tgz", (server.serve(f"/{number}", file(magic + CONTENT)),))
        fetch_one(source, tmp_path)
        assert right(tmp_path, source.name, magic + CONTENT)


def test_an_invalid_record_is_an_error_that_names_it(server, tmp_path):
    for text in ("", "\n", "what is this?\n"):
        (tmp_path / f"{NAME}.sha256").write_text(text)
        with pytest.raises(ValueError, match=re.escape(f"{NAME}.sha256")):
            fetch_one(unknown(server.serve(f"/{NAME}", file(CONTENT))), tmp_path)
        assert not (tmp_path / NAME).exists()


def test_a_failed_download_is_not_trusted(server, tmp_path):
    source = unknown(server.serve(f"/{NAME}", file(CONTENT, until=HALF)))
    with pytest.raises(ValueError, match=NAME):
        fetch_one(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == []


VERSIONS = {
    "etag": ({"etag": '"a"'}, {"etag": '"b"'}),
    "date": ({"modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {"modified": "Tue, 02 Jan 2024 00:00:00 GMT"}),
    "nothing": ({}, {}),
    "weak etag": ({"etag": 'W/"a"'}, {"etag": 'W/"a"'}),
    "no longer": ({"etag": '"a"'}, {}),
}


def test_two_versions_are_never_mixed(server, tmp_path):
    for case, (old, new) in VERSIONS.items():
        source = unknown(server.serve(f"/{NAME}", file(OTHER, until=HALF, **old), file(CONTENT[:-7], **new)))
        fetch_one(source, tmp_path / case)
        assert right(tmp_path / case, content=CONTENT[:-7]), case


def test_two_versions_are_not_mixed_by_two_calls(server, tmp_path):
    fails = [status(503)] * PATIENT.tries
    again = file(CONTENT[:-7], etag='"b"')
    source = unknown(server.serve(f"/{NAME}", file(OTHER, until=HALF, etag='"a"'), *fails, again))
    with pytest.raises(ValueError, match=NAME):
        fetch_one(source, tmp_path)
    fetch_one(source, tmp_path)
    assert right(tmp_path, content=CONTENT[:-7])


def test_a_shorter_version_leaves_nothing_of_the_longer(server, tmp_path):
    shorter = CONTENT[: HALF - 10_000]
    url = server.serve(f"/{NAME}", file(OTHER, until=HALF, etag='"a"'), file(shorter, etag='"b"'))
    fetch_one(unknown(url), tmp_path)
    assert right(tmp_path, content=shorter)


def test_two_versions_are_not_mixed_by_a_server_that_ignores_if_range(server, tmp_path):
    again = file(CONTENT, etag='"b"', obeys_if_range=False)
    source = unknown(server.serve(f"/{NAME}", file(OTHER, until=HALF, etag='"a"'), again))
    try:
        fetch_one(source, tmp_path)
    except ValueError as error:
        assert NAME in str(error)
        assert not (tmp_path / NAME).exists()
    else:
        assert right(tmp_path)


def test_a_wrong_file_under_the_final_name_is_replaced_where_the_checksum_is_known(server, tmp_path, caplog):
    source = known(server.serve(f"/{NAME}", file(CONTENT)))
    for wrong in (OTHER, CONTENT[:HALF], b""):
        (tmp_path / NAME).write_bytes(wrong)
        fetch_one(source, tmp_path)
        assert right(tmp_path)
        assert any("downloading it again" in line.getMessage() for line in caplog.records)
        caplog.clear()
    assert len(server.requests) == 3


def test_a_wrong_file_under_the_final_name_is_gone_even_where_no_right_one_can_be_had(server, tmp_path):
    (tmp_path / NAME).write_bytes(OTHER)
    fails_cleanly(server, tmp_path, known(server.serve(f"/{NAME}", status(404))))


def test_holds_gives_the_checksum_of_the_right_file(tmp_path):
    path = tmp_path / "mine.zip"
    path.write_bytes(CONTENT)
    md5 = hashlib.md5(CONTENT).hexdigest()
    assert holds(known(), path) == f"sha256:{SHA256}"
    assert holds(Source(NAME, (), None, "sha256", SHA256[:8]), path) == f"sha256:{SHA256}"
    assert holds(Source(NAME, (), None, "md5", md5), path) == f"md5:{md5}"
    assert holds(Source(NAME, ()), path) == f"sha256:{SHA256}"


def test_holds_names_the_file_and_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "mine.zip"
    path.write_bytes(OTHER)
    with pytest.raises(ValueError) as caught:
        holds(known(), path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and SHA256 in message and hashlib.sha256(OTHER).hexdigest() in message
    path.write_bytes(OTHER[:10])
    with pytest.raises(ValueError, match=f"has 10 bytes, but {NAME} must have {len(CONTENT)}"):
        holds(known(), path)


# Counting bytes


@pytest.fixture
def clock(monkeypatch, caplog):
    """Seconds that a test moves on; and a stderr that is no terminal."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO)
    return now


def test_bytes_are_told_at_most_every_half_minute_with_their_pace(clock, caplog):
    with progress.count_bytes("download", 50_000_000) as advance:
        advance(1_000_000)
        clock[0] += 29
        advance(9_000_000)
        assert caplog.messages == []
        clock[0] += 11
        advance(10_000_000)
        advance(5_000_000)
        assert caplog.messages == ["download: 20 of 50 MB, 0.5 MB/s"]
        clock[0] += 40
        advance(-15_000_000)
    assert caplog.messages[1:] == ["download: 10 of 50 MB, 0.1 MB/s"]


def test_bytes_without_a_total_are_told_without_one(clock, caplog):
    with progress.count_bytes("download", None) as advance:
        clock[0] += 31
        advance(31_000_000)
    assert caplog.messages == ["download: 31 MB, 1.0 MB/s"]


def test_bytes_of_several_threads_add_up(clock, caplog):
    together = threading.Barrier(8)

    def count(advance):
        together.wait()
        for _ in range(5000):
            advance(1000)

    with progress.count_bytes("download", 40_000_000) as advance:
        threads = [threading.Thread(target=count, args=(advance,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        clock[0] += 40
        advance(0)
    assert caplog.messages == ["download: 40 of 40 MB, 1.0 MB/s"]


def test_bytes_on_a_terminal_are_a_bar(clock, caplog, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(ZeroDivisionError), progress.count_bytes("download", 10_000_000) as advance:
        clock[0] += 100
        advance(10_000_000)
        raise ZeroDivisionError
    (record,) = caplog.records
    assert record.getMessage() == "download: 10 of 10 MB, 0.1 MB/s"
    assert record.only_in_log
    assert "download" in capsys.readouterr().err
