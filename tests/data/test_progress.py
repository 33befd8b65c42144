"""Progress is a bar on a terminal, and plain lines in a log."""

import logging
import sys

import pytest

from bbnet.data import progress


@pytest.fixture
def log(caplog, monkeypatch):
    """The lines logged, in a process whose stderr is no terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_all_items_come_through_in_order(log):
    assert list(progress.track([3, 1, 2], "things")) == [3, 1, 2]
    assert list(progress.track(iter([3, 1]), "things")) == [3, 1]
    assert list(progress.track([], "things")) == []


def test_a_quick_loop_logs_its_end_alone(log):
    list(progress.track(range(50), "prepare"))
    assert log() == ["prepare: 50 of 50"]


def test_a_slow_loop_logs_lines_but_not_one_per_item(log, monkeypatch):
    seconds = iter(range(0, 10_000, 12))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    list(progress.track(range(40), "prepare"))
    lines = log()
    assert lines[-1] == "prepare: 40 of 40"
    assert 3 <= len(lines) < 40
    assert all(line.startswith("prepare: ") and line.endswith(" of 40") for line in lines)


def test_items_of_unknown_number_are_counted_without_a_total(log, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    list(progress.track(iter("abc"), "read"))
    assert log() == ["read: 1", "read: 2", "read: 3"]


@pytest.mark.parametrize("groups", [["ab", "c", "defg"], iter(["ab", "c", "defg"])])
def test_items_of_groups_are_counted_and_not_the_groups(log, monkeypatch, groups):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    list(progress.track(groups, "prepare", 7, len))
    assert log() == ["prepare: 2 of 7", "prepare: 3 of 7", "prepare: 7 of 7"]


def test_nothing_is_written_to_a_log_on_a_terminal(caplog, monkeypatch, capsys):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.track(range(3), "prepare")) == [0, 1, 2]
    assert caplog.records == []
    assert "prepare" in capsys.readouterr().err


# Bytes


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test moves on."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_about_bytes_are_kept_from_a_terminal_that_has_a_bar(caplog, capsys, monkeypatch, clock, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    caplog.set_level(logging.INFO)
    with progress.count_bytes("download", 50_000_000) as advance:
        for _ in range(4):
            clock[0] += 20
            advance(10_000_000)
    assert caplog.messages == ["download: 20 of 50 MB, 0.5 MB/s", "download: 40 of 50 MB, 0.5 MB/s"]
    assert [record.only_in_log for record in caplog.records] == [terminal, terminal]
    assert ("download" in capsys.readouterr().err) == terminal
