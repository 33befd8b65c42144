"""Downloads files with resume, retries and checksums. A file gets its final name only after it was verified."""

import hashlib
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from bbnet.data.progress import Advance, count_bytes
from bbnet.data.sources import Source, bytes_there, check_space, demand_trusted, holds, part_of, shown, size_of
from bbnet.data.store import alone

logger = logging.getLogger(__name__)
PARALLEL_DOWNLOADS = 4
CHUNK = 1 << 20
MAX_REDIRECTS = 10
MAX_TRIES = 100  # per address, even if each try receives a few more bytes
MAX_WAIT_SECONDS = 60
MIN_BYTES_PER_SECOND = 1024
ARCHIVES = (".zip", ".gz", ".tgz")
MAGIC = (b"PK", b"\x1f\x8b")  # zip, gzip
MAX_CAUSE_LENGTH = 120
BEFORE_HTML = rb"(\xef\xbb\xbf)?\s*(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)*"
HTML = re.compile(BEFORE_HTML + rb"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
MAX_TITLE_LENGTH = 80
# Raised when a server cannot be reached or closes the connection.
BROKEN = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError)
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)", re.ASCII)
TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Patience:
    """Timeouts and retries of a download.

    Args:
        connect: timeout in seconds for connecting to the server.
        stall: read timeout in seconds, and the interval over which at least 1 KiB/s must arrive on average.
        tries: number of consecutive tries without new bytes after which an address counts as failed.
        back_off: seconds to wait before the second try; the wait is doubled before each further one.
    """

    connect: float = 20
    stall: float = 30
    tries: int = 4
    back_off: float = 1


class _UnusableError(Exception):
    """Raised if the file cannot be downloaded from an address."""


class _InterruptedError(Exception):
    """Raised if a transfer was interrupted; a retry after at least `wait` seconds may succeed."""

    def __init__(self, message: str, wait: float = 0, stalled: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.stalled = stalled


class _StoppedError(Exception):
    """Raised in a download that is stopped because the download of another file failed."""


def fetch_files(sources: Sequence[Source], folder: Path, patience: Patience | None = None) -> dict[str, str]:
    """Downloads files to `folder`, several in parallel. Files that exist already are only verified.

    Returns: the checksum of each file by name, as `algorithm:digits`.
    Raises: ValueError naming the file and the error of each of its addresses, a checksum that differs from the
        published one or from that of the first download, or a disk that has too little space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be created ({error.strerror})") from None
    left = {source.name: (source.size or 0) - bytes_there(source.name, folder) for source in sources}
    check_space(folder, sum(max(0, size) for size in left.values()), f"downloading {', '.join(left)}")
    stop = threading.Event()
    sizes = [source.size for source in sources]
    with count_bytes("download", None if None in sizes else sum(sizes)) as advance:
        pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS)
        downloads = {source: _Download(source, folder, patience or Patience(), advance, stop) for source in sources}
        jobs = {source.name: pool.submit(download.run) for source, download in downloads.items()}
        try:
            wait(jobs.values(), return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    failed = [job for job in jobs.values() if not job.cancelled() and job.exception() is not None]
    for job in sorted(failed, key=lambda job: isinstance(job.exception(), _StoppedError)):
        job.result()
    return {name: job.result() for name, job in jobs.items()}


class _Download:
    """Downloads one file to a hidden part file beside its final path. A later call resumes from the part file."""

    def __init__(
        self, source: Source, folder: Path, patience: Patience, advance: Advance, stop: threading.Event
    ) -> None:
        self.source = source
        self.final = folder / source.name
        self.part = part_of(source.name, folder)
        self.origin = folder / f".{source.name}.origin"
        self.folder = folder
        self.digest: Any = None
        self.patience = patience
        self.advance = advance
        self.stop = stop
        self.counted = 0

    def run(self) -> str:
        """Downloads a missing file and returns its checksum; raises ValueError if all addresses or the disk fail."""
        try:
            with alone(self.final.with_name(f".{self.source.name}.lock"), self._check_stop):
                began = time.monotonic()
                digest = self._verify_existing() or self._download_from_any()
                size, seconds = self.final.stat().st_size, time.monotonic() - began
                logger.info("%s: %s, checked, after %.0f s", self.source.name, shown(size), seconds)
                return digest
        except OSError as error:
            kept = f"; the {size_of(self.part)} bytes downloaded so far are kept" if size_of(self.part) else ""
            raise ValueError(f"{error.filename or self.part}: cannot be written ({error.strerror}){kept}") from None

    def _verify_existing(self) -> str | None:
        """Returns the checksum of an existing file, or None. A file with a wrong published checksum is removed."""
        if not self.final.exists():
            return None
        if not self.final.is_file():
            raise ValueError(f"{self.final}: exists, but is not a file")
        try:
            digest = self._check_trusted(holds(self.source, self.final))
        except ValueError as error:
            if self.source.digits is None:
                raise
            logger.warning("%s; downloading it again", error)
            self.final.unlink()
            return None
        self._count(self.final.stat().st_size)
        return digest

    def _download_from_any(self) -> str:
        errors = []
        for url in self.source.urls:
            try:
                return self._download_from(url)
            except _UnusableError as error:
                logger.warning("%s: %s", url, error)
                errors.append(f"{url} {error}")
        raise ValueError(f"{self.source.name} cannot be fetched: {'; '.join(errors)}")

    def _download_from(self, url: str) -> str:
        failures = tries = 0
        while True:
            before = size_of(self.part)
            try:
                with _Session() as session:
                    return self._attempt(session, url)
            except _InterruptedError as error:
                tries += 1
                failures = 0 if size_of(self.part) > before and not error.stalled else failures + 1
                if failures >= self.patience.tries or tries >= MAX_TRIES:
                    raise _UnusableError(f"{error}, {tries} tries") from None
                pause = max(error.wait, self.patience.back_off * 2 ** max(0, failures - 1))
                logger.info("%s: %s %s; retrying in %.0f s", self.source.name, url, error, pause)
                self.stop.wait(min(pause, MAX_WAIT_SECONDS))
                self._check_stop()

    def _attempt(self, session: requests.Session, url: str) -> str:
        """Downloads the missing bytes, if any, verifies and renames the file, and returns its checksum."""
        start = self._resumable(url)
        if start != self.source.size:
            start = self._receive(session, url, start)
        else:
            self._digest_of_part()
        found = self.digest.hexdigest()
        if self.source.digits is not None and not found.startswith(self.source.digits):
            self._discard()
            wrong = f"its {self.source.algorithm} is {found}, but {self.source.name} must have {self.source.digits}"
            if start:  # the first bytes may come from another address or version of the file
                raise _InterruptedError(f"sent a remainder that does not match the bytes downloaded before: {wrong}")
            raise _UnusableError(f"sends a different file: {wrong}")
        digest = f"{self.source.algorithm}:{found}"
        self._check_archive()
        try:
            self._check_trusted(digest)
        except ValueError as error:
            self._discard()
            raise _UnusableError(f"sends a different file: {error}") from None
        os.replace(self.part, self.final)
        self.origin.unlink(missing_ok=True)
        return digest

    def _digest_of_part(self) -> None:
        with self.part.open("rb") as file:
            self.digest = hashlib.file_digest(file, self.source.algorithm)

    def _check_archive(self) -> None:
        """Raises _UnusableError if an archive without a published checksum does not start like an archive."""
        with self.part.open("rb") as file:
            first = file.read(16)
        if self.source.digits is None and self.source.name.lower().endswith(ARCHIVES) and not first.startswith(MAGIC):
            self._discard()
            raise _UnusableError(f"sends no archive, but a file that begins with {first!r}")

    def _check_trusted(self, digest: str) -> str:
        """Raises ValueError if a file without a published checksum differs from the first download of its name."""
        if self.source.digits is None:
            demand_trusted(self.source.name, digest, self.folder)
        return digest

    def _resumable(self, url: str) -> int:
        """Returns the number of bytes after which a download from `url` can resume."""
        size = size_of(self.part)
        too_many = self.source.size is not None and size > self.source.size
        unknown = self.source.digits is None and self._validator(url) is None
        return 0 if too_many or unknown else size

    def _validator(self, url: str) -> str | None:
        """Returns the recorded ETag or date of the part file, or None if it has none or is from another address."""
        try:
            origin = json.loads(self.origin.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return origin.get("validator") if isinstance(origin, dict) and origin.get("url") == url else None

    def _receive(self, session: requests.Session, url: str, start: int) -> int:
        """Requests the bytes from `start`, writes them to the part file and returns the offset at which they start."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "bbnet"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.source.digits is None:
                headers["If-Range"] = str(self._validator(url))
        try:
            with self._request(session, url, headers) as response:
                return self._read(response, url, start)
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            raise _InterruptedError(f"does not answer within {self.patience.stall:g} s", stalled=True) from None
        except requests.exceptions.SSLError as error:
            raise _UnusableError(f"has no trusted certificate ({error})") from None
        except BROKEN as error:
            message = f"cannot be reached or closed the connection ({_cause(error)})"
            raise _InterruptedError(_with_size(message, size_of(self.part))) from None
        except requests.RequestException as error:
            raise _UnusableError(f"cannot be requested ({error})") from None

    def _request(self, session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
        """Follows redirects and returns the last response, whose body is not read yet."""
        for _ in range(MAX_REDIRECTS + 1):
            response = self._request_once(session, url, headers)
            if not response.is_redirect:
                return response
            response.close()
            try:
                url = requests.compat.urljoin(url, response.headers["location"].encode("latin1").decode())
            except ValueError as error:
                raise _UnusableError(f"redirects to an invalid address ({error})") from None
        raise _UnusableError(f"redirects more than {MAX_REDIRECTS} times")

    def _request_once(self, session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
        """Sends a request in a thread with a deadline: http.client restarts its timeout at every byte of a header."""
        answers: queue.SimpleQueue[requests.Response | Exception] = queue.SimpleQueue()
        timeout = (self.patience.connect, self.patience.stall)

        def ask() -> None:
            try:
                answers.put(session.get(url, headers=headers, stream=True, timeout=timeout))
            except Exception as error:
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()
        deadline = time.monotonic() + sum(timeout)
        while time.monotonic() < deadline:
            self._check_stop()
            try:
                answer = answers.get(timeout=min(0.2, max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                continue
            if isinstance(answer, ValueError) and not isinstance(answer, requests.RequestException):
                raise _UnusableError(f"cannot be requested ({answer})")
            if isinstance(answer, Exception):
                raise answer
            return answer
        raise requests.exceptions.Timeout

    def _read(self, response: requests.Response, url: str, start: int) -> int:
        if start and response.headers.get("Content-Range") == f"bytes */{start}":  # the part file is already complete
            self._digest_of_part()
            return start
        start = self._check_status(response, url, start)
        offered = _whole_size(response, start)
        body = _Body(response, self.patience.stall, self._check_stop)
        first = body.first() if not start else b""
        self._check_not_html(response, url, first)
        if not start and not first:
            raise _UnusableError("sends an empty file")
        if self.source.size is not None and offered not in (None, self.source.size):
            raise _UnusableError(f"offers {offered} bytes, but {self.source.name} has {self.source.size}")
        expected = self.source.size or offered
        check_space(self.part.parent, (expected or 0) - start, f"downloading {self.source.name}")
        if not start:
            self._discard()
        self.origin.write_text(json.dumps({"url": url, "validator": _validator_of(response)}), encoding="utf-8")
        self._count(start)
        self._append(body, first, start, expected)
        size = size_of(self.part)
        if expected is not None and size < expected:
            raise _InterruptedError(_with_size(f"ended before its {expected} bytes", size))
        return start

    def _check_status(self, response: requests.Response, url: str, start: int) -> int:
        """Returns the offset in the file at which the response body starts; raises an error if it is unusable."""
        status = response.status_code
        if status == requests.codes.partial and start:
            found = RANGE.match(response.headers.get("Content-Range", ""))
            same = self.source.digits is not None or self._validator(url) == _validator_of(response)
            if found and int(found[1]) == start and same:
                return start
            self._discard()
            raise _InterruptedError("sends a different range or version than requested")
        if status == requests.codes.ok:
            return 0
        if status == requests.codes.requested_range_not_satisfiable and start:
            self._discard()
            raise _InterruptedError("does not have the requested range")
        message = f"answers {status} {response.reason}"
        if status in (408, 425, 429) or status >= 500:
            raise _InterruptedError(message, wait=_number(response, "Retry-After") or 0)
        raise _UnusableError(message)

    def _check_not_html(self, response: requests.Response, url: str, first: bytes) -> None:
        declared = response.headers.get("Content-Type", "").lower().startswith("text/html")
        if HTML.match(first) or (declared and first and not first.startswith(MAGIC)):
            title = TITLE.search(first)
            text = " ".join(title[1].decode(errors="replace").split())[:MAX_TITLE_LENGTH] if title else ""
            called = f" ({text!r})" if text else ""
            drive = "; Google Drive asks for confirmation or has reached its download limit" if _is_drive(url) else ""
            raise _UnusableError(f"answers with an HTML page{called} instead of the file{drive}")

    def _append(self, body: "_Body", first: bytes, start: int, expected: int | None) -> None:
        self.digest = hashlib.new(self.source.algorithm)
        if start:
            self._digest_of_part()
        with self.part.open("r+b" if start else "wb") as file:
            file.seek(start)
            size = start
            for chunk in body.chunks(first):
                size += len(chunk)
                if expected is not None and size > expected:
                    raise _UnusableError(f"sends more than the {expected} bytes of {self.source.name}")
                file.write(chunk)
                self.digest.update(chunk)
                self._count(size)
            file.flush()
            os.fsync(file.fileno())

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)

    def _count(self, size: int) -> None:
        self.advance(size - self.counted)
        self.counted = size

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise _StoppedError(self.source.name)


class _Body:
    """Reads a response body as it arrives; raises _InterruptedError if it arrives too slowly."""

    def __init__(self, response: requests.Response, stall: float, check_stop: Callable[[], None]) -> None:
        self.raw = response.raw
        self.stall = stall
        self.check_stop = check_stop
        self.since = time.monotonic()
        self.arrived = 0

    def first(self) -> bytes:
        """Returns the first 4 KiB or slightly more, which is enough to recognise an HTML page."""
        gathered = b""
        while len(gathered) < 4096 and (chunk := self._next()):
            gathered += chunk
        return gathered

    def chunks(self, first: bytes) -> Iterator[bytes]:
        """Yields `first`, the bytes that were read before, and then the rest."""
        if first:
            yield first
        while chunk := self._next():
            yield chunk

    def _next(self) -> bytes:
        self.check_stop()
        chunk = self.raw.read1(CHUNK, decode_content=False)
        self.arrived += len(chunk)
        waited = time.monotonic() - self.since
        if waited >= self.stall:
            if self.arrived < waited * MIN_BYTES_PER_SECOND and chunk:
                message = f"sent {self.arrived} bytes in {waited:.0f} s, below {MIN_BYTES_PER_SECOND} bytes/s"
                raise _InterruptedError(message, stalled=True)
            self.since, self.arrived = time.monotonic(), 0
        return chunk


class _Session(requests.Session):
    """A session that does not follow redirects, because requests would read the whole body of each one."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _cause(error: BaseException) -> str:
    """Returns the type and message of the innermost exception on one line."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return " ".join(f"{type(error).__name__}: {error}".split())[:MAX_CAUSE_LENGTH]


def _number(response: requests.Response, header: str) -> int | None:
    text = response.headers.get(header, "")
    return int(text) if text.isascii() and text.isdigit() else None


def _whole_size(response: requests.Response, start: int) -> int | None:
    """Returns the size of the whole file, of which the response may be a part, or None if the server omits it."""
    found = RANGE.match(response.headers.get("Content-Range", ""))
    if start and found and found[2] != "*":
        return int(found[2])
    length = _number(response, "Content-Length")
    return None if length is None else start + length


def _validator_of(response: requests.Response) -> str | None:
    """Returns the ETag of the file if it is a strong one, otherwise its modification date, if given."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _with_size(message: str, size: int) -> str:
    return f"{message}, after {size} bytes"


def _is_drive(url: str) -> bool:
    return f".{urlsplit(url).hostname or ''}".endswith(".google.com")
