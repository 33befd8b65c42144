"""Tests that files and folders are complete under their final name or absent, and that locks exclude each other."""

import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bbnet.data.store import alone, appended_array, create_array, open_array, whole_file, whole_folder

ENOUGH_SECONDS = 20
HOLDER = """
import subprocess, sys
from pathlib import Path
from bbnet.data.store import alone
with alone(Path(sys.argv[1])):
    started = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    print(started.pid, flush=True)
    sys.stdin.read()
started.kill()
"""


class Interrupted(BaseException):
    """As a signal would."""


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write_half_a_file(path: Path, error: type[BaseException]) -> None:
    with whole_file(path) as partial:
        partial.write_text("half")
        raise error


def write_half_a_folder(path: Path, partial_root: Path, error: type[BaseException]) -> None:
    with whole_folder(path, partial_root) as partial:
        (partial / "half.txt").write_text("half")
        raise error


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with whole_file(path) as partial:
        partial.write_text("whole")
        assert partial.suffix == ".csv"
        assert not path.exists()
    assert tree(tmp_path) == {"new/table.csv": b"whole"}


@pytest.mark.parametrize("error", [ValueError, Interrupted])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_failed_file_leaves_what_was_there(tmp_path, error, before):
    path = tmp_path / "table.csv"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error):
        write_half_a_file(path, error)
    assert tree(tmp_path) == ({} if before is None else {"table.csv": before})


def test_a_file_that_was_there_is_replaced(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
    assert tree(tmp_path) == {"table.csv": b"new"}


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "table.csv"):
        pass
    assert tree(tmp_path) == {}


def test_files_left_by_killed_processes_of_this_machine_are_removed(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait()
    host, dead, alive = socket.gethostname(), child.pid, os.getppid()
    stale = [f".table.partial-{host}-{dead}.csv"]
    kept = [f".table.partial-{host}-{alive}.csv", f".table.partial-other{host}-{dead}.csv"]
    kept += [f".table.partial-{host}-{dead}.json", f".tables.partial-{host}-{dead}.csv"]
    for name in stale + kept:
        (tmp_path / name).touch()
    with whole_file(tmp_path / "table.csv") as partial:
        partial.write_text("whole")
    assert set(tree(tmp_path)) == {"table.csv", *kept}


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "table.csv"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "table.csv")


def test_a_folder_appears_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "raw" / "pack"
    with whole_folder(path, tmp_path / "partial") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a.txt").write_text("a")
        assert partial.parent == tmp_path / "partial"
        assert not path.exists()
    assert tree(tmp_path) == {"raw/pack/sub/a.txt": b"a"}
    assert list((tmp_path / "partial").iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, Interrupted])
@pytest.mark.parametrize("before", [False, True])
def test_a_failed_folder_leaves_what_was_there(tmp_path, error, before):
    path = tmp_path / "raw" / "pack"
    if before:
        path.mkdir(parents=True)
        (path / "old.txt").write_text("old")
    with pytest.raises(error):
        write_half_a_folder(path, tmp_path / "partial", error)
    assert tree(tmp_path) == ({"raw/pack/old.txt": b"old"} if before else {})
    assert path.exists() == before
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_folder_that_was_there_is_replaced_not_merged(tmp_path):
    path = tmp_path / "pack"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with whole_folder(path, tmp_path / "partial") as partial:
        (partial / "new.txt").write_text("new")
    assert tree(tmp_path) == {"pack/new.txt": b"new"}


def test_remains_of_a_killed_process_are_not_taken_over(tmp_path):
    with whole_folder(tmp_path / "pack", tmp_path / "partial") as first:
        name = first.name
    (tmp_path / "partial" / name).mkdir()
    (tmp_path / "partial" / name / "remains.txt").write_text("half")
    with whole_folder(tmp_path / "pack", tmp_path / "partial") as partial:
        assert list(partial.iterdir()) == []
        (partial / "new.txt").write_text("new")
    assert tree(tmp_path) == {"pack/new.txt": b"new"}


def test_an_array_is_filled_in_place_and_read_back(tmp_path):
    array = create_array(tmp_path / "a.npy", (3, 4), np.uint8)
    array[1:] = 7
    array.flush()
    assert np.load(tmp_path / "a.npy").tolist() == [[0] * 4, [7] * 4, [7] * 4]


def test_writing_to_an_opened_array_does_not_reach_the_disk(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6))
    opened = open_array(tmp_path / "a.npy")
    opened += 1
    assert isinstance(opened, np.memmap)
    assert opened.tolist() == [1, 2, 3, 4, 5, 6]
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4, 5]


def test_a_resumed_folder_keeps_what_a_failed_call_left_and_is_whole_or_absent(tmp_path):
    for attempt in range(2):
        with (
            pytest.raises(ValueError, match="stop"),
            whole_folder(tmp_path / "pack", tmp_path / "partial", resume=True) as partial,
        ):
            assert len(list(partial.iterdir())) == attempt
            (partial / f"{attempt}.txt").write_text("done")
            raise ValueError("stop")
        assert not (tmp_path / "pack").exists()
    with whole_folder(tmp_path / "pack", tmp_path / "partial", resume=True) as partial:
        (partial / "2.txt").write_text("done")
    assert tree(tmp_path) == {f"pack/{number}.txt": b"done" for number in range(3)}


@pytest.mark.parametrize(("shape", "dtype"), [((7, 3), np.float32), ((7,), np.int64), ((7, 2, 2), np.uint8)])
def test_an_array_appended_in_parts_is_the_same_file_as_one_saved_whole(tmp_path, shape, dtype):
    whole = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "whole.npy", whole)
    with appended_array(tmp_path / "parts.npy", shape, dtype) as append:
        append(whole[:4].astype(np.float64))
        append(whole[4:4])
        append(whole[4:])
    np.testing.assert_array_equal(open_array(tmp_path / "parts.npy"), whole)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("rows", [0, 6, 8])
def test_fewer_or_more_rows_than_announced_are_refused(tmp_path, rows):
    with (
        pytest.raises(ValueError, match=f"{rows} rows were written, 7 were expected"),
        appended_array(tmp_path / "a.npy", (7, 2), np.float32) as append,
    ):
        append(np.zeros((rows, 2)))


# Locks


@pytest.fixture
def quick(monkeypatch):
    """Lets processes that wait for a lock ask for it every 10 ms."""
    monkeypatch.setattr("bbnet.data.store.time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 20)))


@contextmanager
def holder(lock: Path):
    """A process that holds the lock, and has started one that outlives it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], text=True, **pipes) as process:
        started = int(process.stdout.readline())
        try:
            yield process
        finally:
            process.kill()
            subprocess.run(["kill", str(started)], stderr=subprocess.DEVNULL)


def is_free(lock: Path) -> bool:
    """Whether the lock is had at once."""
    asked = []

    def give_up_at_the_second_time() -> None:
        asked.append(True)
        if len(asked) > 1:
            raise Interrupted

    try:
        with alone(lock, give_up_at_the_second_time):
            return True
    except Interrupted:
        return False


def test_a_lock_is_held_for_the_block_and_its_folder_is_made(tmp_path, quick):
    lock = tmp_path / "new" / "folder" / ".pack.lock"
    with alone(lock):
        assert not is_free(lock)
        assert is_free(lock.with_name(".other.lock"))
    assert is_free(lock)
    assert lock.exists()  # to remove it would let two in: one waits for the old file, one makes another


@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_a_block_that_fails_frees_its_lock(tmp_path, error):
    with pytest.raises(error), alone(tmp_path / "lock"):
        raise error
    assert is_free(tmp_path / "lock")


def test_threads_are_inside_one_after_another(tmp_path, quick):
    inside, most, total = [], [], []

    def work() -> None:
        with alone(tmp_path / "lock"):
            inside.append(True)
            time.sleep(0.01)
            most.append(len(inside))
            total.append(True)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH_SECONDS)
    assert len(total) == 5
    assert set(most) == {1}


def test_who_waits_says_so_once_and_goes_on_when_the_other_has_ended(tmp_path, caplog, quick):
    caplog.set_level(logging.INFO)
    asked = []
    with holder(tmp_path / "lock") as process:

        def let_it_end_at_the_third_time() -> None:
            asked.append(True)
            if len(asked) == 3:
                process.stdin.close()

        with alone(tmp_path / "lock", let_it_end_at_the_third_time):
            assert process.wait(ENOUGH_SECONDS) == 0
    assert caplog.messages == [f"{tmp_path / 'lock'}: another process is working on this; waiting for it"]
    assert len(asked) >= 3


def test_a_check_that_fails_ends_the_wait_and_leaves_the_lock_to_its_holder(tmp_path, quick):
    def stop() -> None:
        raise Interrupted

    with holder(tmp_path / "lock"):
        with pytest.raises(Interrupted), alone(tmp_path / "lock", stop):
            pytest.fail("the lock is held by another")
        assert not is_free(tmp_path / "lock")


def test_the_lock_of_a_killed_process_is_free_whatever_it_had_started(tmp_path, quick):
    with holder(tmp_path / "lock") as process:
        assert not is_free(tmp_path / "lock")
        process.kill()
        process.wait(ENOUGH_SECONDS)
        assert is_free(tmp_path / "lock")


def test_a_file_system_without_locks_is_a_warning_and_other_errors_are_raised(tmp_path, monkeypatch, caplog):
    def fail(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    fail(errno.ENOLCK)
    with alone(tmp_path / "lock"):
        pass
    assert caplog.messages == [
        f"{tmp_path / 'lock'}: this file system does not support locks; simultaneous calls may interfere"
    ]
    fail(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), alone(tmp_path / "lock"):
        pytest.fail("the lock is not held")
