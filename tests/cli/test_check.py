"""`bbnet check` and `bbnet diff` on the shipped reference and on damaged copies of it."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from bbnet.cli import main
from bbnet.cli.check import _read_items

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "results" / "reference" / "demo" / "summary"
CELL = {"task": "change", "method": "sp_in", "budget": "0.20"}
TABLES = ("grid.csv", "runs.csv", "cells.csv", "study.json")
TABLES += tuple(f"{name}.parquet" for name in ("items", "history", "refreshes", "units"))


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
        if name.endswith(".parquet"):
            by(pd.read_parquet(path)).to_parquet(path)
        else:
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


def test_the_reference_agrees_with_itself(project, capsys):
    text = shown(capsys, "check", out=False)
    assert "Nothing contradicts that both come from the same code." in text
    assert row(text, "change", "f1")[2:] == ["11", "yes", "ok"]
    assert row(text, "asr", "werr")[-1] == "ok"
    assert text.startswith("new: results/demo/summary\nreference: results/reference/demo/summary\n")


def test_a_thin_reference_agrees_with_the_whole_summary_and_its_items_are_read(project, capsys):
    folder = project / "results/reference/demo/summary"
    for name in ("items", "units", "refreshes"):
        rows = pd.read_parquet(folder / f"{name}.parquet")
        rows[rows["seed"] == rows["seed"].min()].to_parquet(folder / f"{name}.parquet")
    text = shown(capsys, "check", out=False)
    assert "Nothing contradicts that both come from the same code." in text
    items = pd.read_parquet(folder / "items.parquet")
    items.loc[of_cell(items), "tp"] += 1
    items.to_parquet(folder / "items.parquet")
    assert "in reference, but its items give" in " ".join(shown(capsys, "check").split())


def move_errors(project: Path, words: int) -> None:
    """Adds substitutions to the speech recognition of a cell, and computes its runs and means from its items anew."""
    folder = project / "results" / "demo" / "summary"
    cell = {"task": "asr", "method": "sp_in", "budget": "0.50"}

    def of_asr(table: pd.DataFrame) -> pd.Series:
        return pd.concat([table[key] == value for key, value in cell.items()], axis=1).all(axis=1)

    items = pd.read_parquet(folder / "items.parquet")
    first = items[of_asr(items) & (items["other"] == 0)].groupby("seed").head(1).index
    items.loc[first, "substitutions"] += words
    items.to_parquet(folder / "items.parquet")
    _, again = _read_items(folder / "items.parquet")
    for name, column, keys in (("runs.csv", "value", ["seed"]), ("cells.csv", "mean", [])):
        table = pd.read_csv(folder / name, dtype={"budget": str})
        values = again[of_asr(again)].groupby([*keys, "metric"])["value"].mean()
        places = of_asr(table) & table["metric"].isin(again["metric"])
        table.loc[places, column] = values.loc[
            pd.MultiIndex.from_frame(table.loc[places, [*keys, "metric"]]) if keys else table.loc[places, "metric"]
        ].to_numpy()
        table.to_csv(folder / name, index=False)


def test_a_cell_may_move_a_little(project, capsys):
    move_errors(project, 3)
    text = shown(capsys, "check", out=False)
    assert "transformer/sp_in/in/0.50" in row(text, "asr", "wer")


def test_a_word_error_rate_that_moved_is_out_and_named(project, capsys):
    move_errors(project, 36)
    text = shown(capsys, "check")
    assert row(text, "asr", "wer")[-2:] == ["1", "out"]
    assert row(text, "asr", "transformer/sp_in/in/0.50")[2:4] == ["wer", "out"]


def test_a_word_error_rate_that_moved_by_6_points_in_the_tables_is_not_what_the_items_give(edit, capsys):
    cell = {"task": "asr", "method": "dense", "metric": "wer"}
    for name, column in (("cells.csv", "mean"), ("runs.csv", "value")):

        def move(table: pd.DataFrame, column: str = column) -> pd.DataFrame:
            of_cell = pd.concat([table[key] == value for key, value in cell.items()], axis=1).all(axis=1)
            return table.assign(**{column: table[column] + 6.0 * of_cell})

        edit(name, move)
    text = shown(capsys, "check")
    assert "but its items" in text
    assert row(text, "asr", "transformer/dense/none/1.00")[2:4] == ["wer", "out"]


def test_runs_without_items_are_out(edit, capsys):
    edit("items.parquet", lambda items: items[(items["method"] != "rigl") | (items["task"] != "asr")])
    text = shown(capsys, "check")
    assert "but its items give nan" in text
    assert row(text, "asr", "wer")[-2:] == ["2", "out"]


@pytest.mark.parametrize(("name", "column"), [("cells.csv", "mean"), ("runs.csv", "value")])
def test_a_number_that_was_edited_is_out(edit, capsys, name, column):
    edit(name, lambda table: table.assign(**{column: table[column] + 0.001 * of_cell(table, metric="f1")}))
    text = shown(capsys, "check")
    assert "but that of its runs is" in text


def test_another_gain_shows_in_the_units_at_the_smallest_degree(edit, capsys):
    """Scores hardly move, but with `gain: 0.2` and `silent: literal` .10 instead of .005 of the units are at k_min."""

    def move(table: pd.DataFrame, column: str) -> pd.DataFrame:
        cell = {"task": "asr", "method": "sp_in", "budget": "0.20", "metric": "units_at_smallest"}
        of_cell = pd.concat([table[key] == value for key, value in cell.items()], axis=1).all(axis=1)
        return table.assign(**{column: table[column] + 0.09 * of_cell})

    edit("cells.csv", lambda cells: move(cells, "mean"))
    edit("runs.csv", lambda runs: move(runs, "value"))
    text = shown(capsys, "check")
    assert row(text, "asr", "units_at_smallest")[-1] == "out"
    assert row(text, "asr", "transformer/sp_in/in/0.20")[2:4] == ["units_at_smallest", "out"]


def test_another_setting_and_other_epochs_are_out(project, edit, capsys):
    path = project / "results/demo/summary/study.json"
    path.write_text(path.read_text().replace('"gain": 0.1', '"gain": 0.2', 1))
    edit("history.parquet", lambda history: history[(history["task"] != "face") | (history["epoch"] <= 6)])
    text = shown(capsys, "check")
    assert "gain: 0.2 in new, 0.1 in reference" in text
    assert "6 in new, 13 in reference" in text


def test_a_baseline_changes_no_score_and_may_differ(project, capsys):
    path = project / "results/demo/summary/study.json"
    study = json.loads(path.read_text())
    study["tasks"]["change"]["baseline"] = "fc_siam_conc"
    path.write_text(json.dumps(study))
    assert "Nothing contradicts" in shown(capsys, "check", out=False)


def test_a_lost_cell_and_another_cost_are_out(edit, capsys):
    edit("runs.csv", lambda runs: runs.assign(value=runs["value"] + of_cell(runs, metric="flops")))
    edit("cells.csv", lambda cells: cells[cells["method"] != "rigl"])
    text = shown(capsys, "check")
    assert "only in reference" in text
    assert row(text, "change", "fc_siam_conc/sp_in/in/0.20")[2:6] == ["0", "1", "flops", "out"]
    assert row(text, "change", "f1")[-2:] == ["2", "out"]


def test_two_folders_are_compared_with_or_without_summary(project, edit, capsys):
    arguments = ["diff", "results/demo", "results/reference/demo/summary"]
    assert "Nothing contradicts" in shown(capsys, *arguments, out=False)
    edit("grid.csv", lambda grid: grid.assign(status=grid["status"].mask(grid.index == 0, "stale")))
    text = shown(capsys, *arguments)
    assert "stale in A, done in B" in text
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


@pytest.mark.parametrize("level", ["0", "1", "-1", "nan", "many"])
def test_a_level_that_is_no_probability_is_misuse(project, capsys, level):
    with pytest.raises(SystemExit) as ended:
        main(["check", f"--level={level}"])
    assert ended.value.code == 2
    assert "must be a number between 0 and 1" in capsys.readouterr().err
