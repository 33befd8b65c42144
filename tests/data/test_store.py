"""Files and folders are whole under their final name, or not there at all."""

from pathlib import Path

import numpy as np
import pytest

from bbnet.data.store import appended_array, create_array, open_array, whole_file, whole_folder


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
        pytest.raises(ValueError, match=f"{rows} rows were written, 7 were announced"),
        appended_array(tmp_path / "a.npy", (7, 2), np.float32) as append,
    ):
        append(np.zeros((rows, 2)))
