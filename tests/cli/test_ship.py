"""`bbnet ship` on the shipped summary of the default study: task by task as in one go, thinned, and refusals."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bbnet.cli import main
from bbnet.cli.ship import OF_FIRST_SEED

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "results/reference/demo/summary"
PANELS = {"asr", "change"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in which bbnet can be called, without results."""
    (tmp_path / "studies").mkdir()
    shutil.copy(ROOT / "studies/demo.yaml", tmp_path / "studies")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"study": "demo"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary_of(project: Path, *tasks: str) -> Path:
    """Makes the summary that a run of these tasks alone has."""
    summary = project / "results/demo/summary"
    shutil.rmtree(summary, ignore_errors=True)
    shutil.copytree(SHIPPED, summary)
    for path in [*summary.glob("*.csv"), *summary.glob("*.parquet")]:
        rows = read(path)
        rows = rows[rows["task"].isin(tasks)]
        rows.to_csv(path, index=False) if path.suffix == ".csv" else rows.to_parquet(path, index=False)
    for path in (summary / "panels").iterdir():
        if path.stem not in tasks:
            path.unlink()
    for name, key in (("study.json", "tasks"), ("data.json", None)):
        content = json.loads((summary / name).read_text())
        of_tasks = content if key is None else content[key]
        for task in set(of_tasks) - set(tasks):
            del of_tasks[task]
        (summary / name).write_text(json.dumps(content))
    return summary


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.suffix == ".csv" else pd.read_parquet(path)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_tasks_that_are_shipped_one_by_one_are_the_summary_of_all(project, capsys):
    shipped = project / "results/reference/demo/summary"
    for task in ("face", "asr", "change", "face"):  # the last one again, as after a change
        summary_of(project, task)
        main(["ship"])
    assert "22 runs of face; kept of before: asr, change" in capsys.readouterr().out
    assert files(shipped) == files(SHIPPED)
    for name in files(SHIPPED):
        if name.endswith(".json"):
            assert (shipped / name).read_text() == (SHIPPED / name).read_text(), name
        elif name.endswith((".csv", ".parquet")):  # whose rows are grouped by task
            expected = read(SHIPPED / name).sort_values("task", kind="stable", ignore_index=True)
            pd.testing.assert_frame_equal(read(shipped / name), expected)
    assert [path.name for path in shipped.parent.iterdir()] == ["summary"]


def test_a_thin_summary_has_the_items_and_units_of_one_seed_and_all_numbers(project):
    summary = summary_of(project, "change")
    main(["ship", "--thin"])
    shipped = project / "results/reference/demo/summary"
    assert files(shipped) == files(summary)
    for name in files(summary):
        if name in OF_FIRST_SEED:
            own, whole = read(shipped / name), read(summary / name)
            assert set(own["seed"].astype(int)) == {0} < set(whole["seed"].astype(int))
            assert len(own) == (whole["seed"].astype(int) == 0).sum()
        elif name.endswith(".csv"):
            assert (shipped / name).read_text() == (summary / name).read_text()


def test_a_summary_with_runs_missing_is_not_shipped(project):
    summary = summary_of(project, "change")
    grid = read(summary / "grid.csv")
    grid.loc[3, "status"] = "failed"
    grid.to_csv(summary / "grid.csv", index=False)
    with pytest.raises(SystemExit, match="1 of 22 runs are not done"):
        main(["ship"])
    assert not (project / "results/reference/demo/summary").exists()


def test_tasks_of_other_settings_are_not_mixed(project):
    summary_of(project, "change")
    main(["ship"])
    before = files(project / "results/reference")
    summary = summary_of(project, "face")
    study = json.loads((summary / "study.json").read_text())
    (summary / "study.json").write_text(json.dumps(study | {"seeds": [7]}))
    with pytest.raises(SystemExit, match=r"has the tasks change with other settings \(seeds\)"):
        main(["ship"])
    assert files(project / "results/reference") == before


def test_a_study_that_was_not_run_is_one_line(project):
    with pytest.raises(SystemExit, match="grid.csv: cannot be read: No such file"):
        main(["ship"])
