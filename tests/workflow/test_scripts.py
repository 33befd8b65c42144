"""What every script of the workflow shares, and what a job does not import."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPTS = Path(__file__).parents[2] / "workflow_scripts"
WRITE = """
from pathlib import Path
import numpy as np
from common import write_parquet
lists = np.empty(3, object)
lists[:] = [np.array(each, np.float32) for each in ([.5, -1.25], [], [3e38])]
columns = {"texts": np.array(["one", "", "Füße 足"]), "numbers": np.array([1, -2, 2**62]), "parts": lists}
columns["places"] = np.arange(6.0)[::2]
write_parquet(Path(sys.argv[1]), columns)
"""
JOB = """
from bbnet.tasks import task as tasks
from bbnet.training.runs import Job
for name in ("asr", "change", "classification", "face", "language", "logic"):
    tasks.load(name)
"""


def imported_by(code: str, *arguments: str) -> set[str]:
    """The modules that a script of the workflow has imported when `code` is through."""
    code = f"import sys\nsys.path.insert(0, {str(SCRIPTS)!r})\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_table_is_written_without_pandas_and_read_by_it(tmp_path):
    assert "pandas" not in imported_by(WRITE, str(tmp_path / "table.parquet"))
    found = pd.read_parquet(tmp_path / "table.parquet")
    assert found["texts"].tolist() == ["one", "", "Füße 足"]
    assert found["numbers"].tolist() == [1, -2, 2**62]
    assert [each.tolist() for each in found["parts"]] == [[0.5, -1.25], [], pytest.approx([3e38])]
    assert found["parts"][0].dtype == "float32"
    assert found["places"].tolist() == [0.0, 2.0, 4.0]


def test_truth_values_survive_a_table(tmp_path):
    code = WRITE.replace("write_parquet(", 'columns = {"right": np.array([True, False, True])}\nwrite_parquet(')
    imported_by(code, str(tmp_path / "table.parquet"))
    assert pd.read_parquet(tmp_path / "table.parquet")["right"].tolist() == [True, False, True]


def test_a_job_that_fetches_nothing_imports_nothing_to_fetch_with():
    assert {"requests", "pandas", "torchvision", "torch._dynamo"}.isdisjoint(imported_by(JOB))


@pytest.mark.parametrize("job", ["fetch", "prepare"])
def test_whatever_refuses_a_local_pack_says_in_one_line_how_it_is_looked_at_again(tmp_path, job):
    pack = tmp_path / "pack"
    verification = (f"verification/{name}" for name in ("known", "unknown_dev", "unknown_test"))
    for folder in ("classification/train", "classification/dev", *verification):
        (pack / folder).mkdir(parents=True)
    data = {"pack": "faces", "path": str(pack), "complete": job == "fetch"}
    config = {"task": "face", "data": data, "settings": {"size": 16, "resize": "crop", "faults": {}}}
    manifest = tmp_path / "raw.json"
    manifest.write_text(
        json.dumps({"root": str(pack), "classification": "classification", "verification": "verification"})
    )
    places = {
        "fetch": ["--manifest", tmp_path / "new.json", "--downloads", tmp_path],
        "prepare": ["--raw", manifest, "--index", tmp_path / "index.json"],
    }
    command = [sys.executable, SCRIPTS / f"{job}.py", "--config", json.dumps(config), *places[job]]
    done = subprocess.run(
        [*command, "--partial", tmp_path, "--log", tmp_path / "a.log"], capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"{pack / 'classification' / 'train'}: " in last
    assert last.endswith("the same command with --forcerun fetch prepare looks at all of it again")
