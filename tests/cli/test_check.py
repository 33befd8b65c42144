"""`bbnet check` and `bbnet diff` on the shipped reference and on damaged copies of it."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from bbnet.analysis.differences import pooled_sigmas
from bbnet.cli import main

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "results" / "reference" / "demo" / "summary"
CELL = {"task": "change", "method": "sp_in", "budget": "0.20"}
TABLES = ("grid.csv", "runs.csv", "cells.csv")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with config.yaml, studies and the reference, whose study demo has just given the same summary."""
    shutil.copy(ROOT / "config.yaml", tmp_path)
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    for folder in ("results/reference/demo/summary", "results/demo/summary"):
        (tmp_path / folder).mkdir(parents=True)
        for name in TABLES:
            shutil.copy(SHIPPED / name, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def edit(project):
    """Changes a table of the new summary by a function of it."""

    def change(name: str, by) -> None:
        path = project / "results" / "demo" / "summary" / name
        by(pd.read_csv(path, dtype={"budget": str})).to_csv(path, index=False)

    return change


def shown(capsys, *arguments: str, out: bool = True) -> str:
    """What the command prints; it ends with status 1 just if something is `out`."""
    if out:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 1
    else:
        main(list(arguments))
    return capsys.readouterr().out


def of_cell(table: pd.DataFrame, **more: str) -> pd.Series:
    return pd.concat([table[key] == value for key, value in (CELL | more).items()], axis=1).all(axis=1)


def row(text: str, *start: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[: len(start)] == list(start))


def move(edit, sigmas: float) -> None:
    sigma = pooled_sigmas(pd.read_csv(SHIPPED / "cells.csv"))["change", "f1"]
    edit("cells.csv", lambda cells: cells.assign(mean=cells["mean"] + sigmas * sigma * of_cell(cells, metric="f1")))


def test_the_reference_is_within_tolerance_of_itself(project, capsys):
    text = shown(capsys, "check", out=False)
    assert "Everything is within tolerance." in text
    count, three, times, sigma, verdict = row(text, "change", "f1")[2:]
    assert (count, three, times, verdict) == ("11", "3", "x", "ok")
    assert 0 < float(sigma) < 0.1
    assert row(text, "asr", "werr")[2] == "10"
    assert text.startswith("new: results/demo/summary\nreference: results/reference/demo/summary\n")


def test_a_cell_may_move_by_less_than_three_sigmas(edit, capsys):
    move(edit, 2.9)
    text = shown(capsys, "check", out=False)
    assert "2.90" in row(text, "change", "f1")
    assert "fc_siam_conc/sp_in/in/0.20" in row(text, "change", "f1")


def test_a_cell_that_moved_by_more_is_out_and_named(edit, capsys):
    move(edit, 3.1)
    text = shown(capsys, "check")
    assert row(text, "change", "f1")[-2:] == ["1", "out"]
    assert row(text, "change", "fc_siam_conc/sp_in/in/0.20")[-3:] == ["reference:", "3.10", "sigmas"]
    assert "within tolerance" in shown(capsys, "check", "--sigmas", "3.2", out=False)


def test_a_lost_cell_and_another_cost_are_out(edit, capsys):
    edit("runs.csv", lambda runs: runs.assign(value=runs["value"] + of_cell(runs, metric="flops")))
    edit("cells.csv", lambda cells: cells[cells["method"] != "rigl"])
    text = shown(capsys, "check")
    assert "only in reference" in text
    assert row(text, "change", "fc_siam_conc/sp_in/in/0.20")[2:6] == ["0", "1", "flops", "out"]
    assert row(text, "change", "f1")[2] == "9"


def test_two_folders_are_compared_with_or_without_summary(project, edit, capsys):
    arguments = ["diff", "results/demo", "results/reference/demo/summary"]
    assert "within tolerance" in shown(capsys, *arguments, out=False)
    edit("grid.csv", lambda grid: grid.assign(status=grid["status"].mask(grid.index == 0, "stale")))
    text = shown(capsys, *arguments)
    assert "1 done, 0 stale in A, 0 1 done in B" in text
    assert text.startswith("A: results/demo/summary\nB: results/reference/demo/summary\n")


def test_another_results_folder_is_checked(project, capsys):
    (project / "results" / "demo").rename(project / "demo")
    assert "new: demo/summary" in shown(capsys, "check", "--study", "demo", "--results-dir", ".", out=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("grid.csv", None, "grid.csv: cannot be read: No such file"),
        ("cells.csv", b"", "cells.csv: cannot be read: No columns"),
        ("cells.csv", b"task,model\nchange,tiny\n", "cells.csv: cannot be read: Usecols do not match columns"),
        ("runs.csv", b"\xff\xfe\x00", "runs.csv: cannot be read"),
        ("runs.csv", "rows twice", "runs.csv: has duplicate rows"),
        ("runs.csv", "no rows", "runs.csv: has no rows"),
        ("cells.csv", "a word", "cells.csv: cannot be read: could not convert string to float"),
    ],
)
def test_an_unreadable_table_is_named_in_one_line(project, name, content, message):
    path = project / "results" / "demo" / "summary" / name
    text = path.read_text()
    made = {
        "rows twice": text + text.splitlines()[1] + "\n",
        "no rows": text.splitlines()[0] + "\n",
        "a word": text.replace(",%,", ",%,many", 1),
    }
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else made[content].encode())
    with pytest.raises(SystemExit) as ended:
        main(["check"])
    assert str(ended.value).startswith("error: results/demo/summary/")
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--study", "smoke"], "study smoke: no reference in results/reference/smoke/summary; shipped: demo"),
        (["check", "--study", "../x"], "study: string should match pattern"),
        (["check", "--results-dir", "nowhere"], "nowhere/demo/summary/grid.csv: cannot be read"),
        (["diff", "nowhere", "results/demo"], "nowhere/grid.csv: cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_one_line(project, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize("sigmas", ["0", "-1", "nan", "inf", "many"])
def test_sigmas_that_are_no_tolerance_are_misuse(project, capsys, sigmas):
    with pytest.raises(SystemExit) as ended:
        main(["check", f"--sigmas={sigmas}"])
    assert ended.value.code == 2
    assert "must be a number above 0" in capsys.readouterr().err
