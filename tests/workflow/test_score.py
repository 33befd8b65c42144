"""`bbnet score` on runs of the micro study: on their own test images to the bit, on others as computed by hand."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bbnet.cli import main

pytestmark = pytest.mark.xdist_group("workflow")
RUNS = "results/micro/runs/change/tiny"
SP_IN = f"{RUNS}/sp_in/b0.50/s0"
SCORED = ("metrics.json", "items.parquet", "predictions.npz")


@pytest.fixture
def score(monkeypatch, capfd):
    """Scores a run; returns the folder of the scores, which the last line names, and what the command said."""

    def call(root: Path, *arguments: str) -> tuple[Path, str]:
        monkeypatch.chdir(root)
        main(["score", *arguments])
        said = capfd.readouterr().out
        return Path(said.splitlines()[-1].removeprefix("In ").partition(": ")[0]), said

    return call


@pytest.fixture
def refusal(monkeypatch, capfd):
    """The last line that a refused command says."""

    def message(root: Path, *arguments: str) -> str:
        monkeypatch.chdir(root)
        with pytest.raises(SystemExit) as refused:
            main(["score", *arguments])
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return said.err.splitlines()[-1] if refused.value.code == 1 else str(refused.value.code)

    return message


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pack_of(root: Path) -> Path:
    (pack,) = (path for path in root.glob("data/raw/aerial_scenes-*") if path.is_dir())
    return pack


@pytest.mark.thorough
def test_its_own_test_pack_gives_the_scores_of_the_run_to_the_bit(project, score):
    root = project.root
    before = hashes(root / "results")
    folder, said = score(root, SP_IN, "--data", str(pack_of(root)))
    for name in SCORED:
        assert (folder / name).read_bytes() == (root / SP_IN / name).read_bytes()
    # Dense was scored too, to show cases of both.
    dense = Path(str(folder).replace("sp_in/b0.50", "dense/b1.00"))
    assert (dense / "metrics.json").read_bytes() == (root / RUNS / "dense/b1.00/s0/metrics.json").read_bytes()
    cases = json.loads(str(np.load(folder / "panels.npz")["cases"]))
    assert {key.rpartition("/")[0] for key in cases} == {"tiny/sp_in/b0.50"}
    assert (folder / "panels.png").stat().st_size > 10_000
    described = json.loads((folder / "score.json").read_text())
    assert described["data"] == {"pack": "levir_cd", "path": str(pack_of(root).relative_to(root)), "complete": False}
    metric = json.loads((folder / "metrics.json").read_text())["f1"]
    assert f"{metric:.3f}  " in said
    # Nothing was touched that was there.
    after = hashes(root / "results")
    assert {path: after[path] for path in before} == before
    # A second call scores nothing again.
    times = {path: path.stat().st_mtime_ns for path in (folder / name for name in SCORED)}
    score(root, SP_IN, "--data", str(pack_of(root)))
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.thorough
def test_fewer_images_in_a_folder_of_test_alone_give_what_is_computed_by_hand(project, score, tmp_path):
    root, pack = project.root, tmp_path / "pack"
    shutil.copytree(pack_of(root) / "test", pack / "test")
    own = pd.read_parquet(root / SP_IN / "items.parquet")
    kept = own.iloc[[1, 4, 5]].reset_index(drop=True)
    for image in set(own["image"]) - set(kept["image"]):
        for part in ("A", "B", "label"):
            (pack / "test" / part / image).unlink()
    folder, _ = score(root, SP_IN, "levir_cd", "--data", str(pack))
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "items.parquet"), kept)
    metrics = json.loads((folder / "metrics.json").read_text())
    tp, fp, fn = (int(kept[name].sum()) for name in ("tp", "fp", "fn"))
    assert tp + fp + fn > 0
    assert metrics["iou"] == pytest.approx(tp / (tp + fp + fn), abs=1e-15)
    assert metrics["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-15)


@pytest.mark.thorough
def test_another_pack_is_named_by_its_settings_and_cut_into_the_tiles_of_the_run(project, score):
    settings = "{pack: aerial_scenes, seed: 7, size: 64, train: 1, val: 1, test: 3}"
    folder, _ = score(project.root, f"{RUNS}/dense/b1.00/s0", settings)
    items = pd.read_parquet(folder / "items.parquet")
    assert len(items) == 3
    assert (items[["tp", "fp", "fn", "tn"]].sum(axis=1) == 64 * 64).all()
    assert np.load(folder / "predictions.npz")["changed"].shape == (3 * 4, 32 * 32 // 8)
    assert not (folder / "panels.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SP_IN,), "error: what the run is scored on is missing: name a PACK, or a folder by --data PATH"),
        ((SP_IN, "levir"), "error: PACK: data.pack: unknown 'levir', allowed: 'aerial_scenes', 'levir_cd'"),
        ((SP_IN, "{pack: aerial_scenes, size: 64}"), "error: PACK: data.train: is missing"),
        ((SP_IN, "{pack: [}"), "error: PACK {pack: [}: is not valid YAML"),
        ((SP_IN, "--data", "nowhere"), "error: --data nowhere: there is no such folder or archive"),
        ((SP_IN, "--data", "config.yaml"), "is neither a folder nor an archive"),
        ((SP_IN, "--data", "docs"), "docs/test/A: no such folder; a pack has"),
        (("results/micro",), "error: results/micro: is not the folder of a run: it has no record.json"),
    ],
)
def test_a_score_that_cannot_be_computed_is_refused_in_one_line(finished, refusal, arguments, message):
    assert message in refusal(finished.root, *arguments)


@pytest.mark.thorough
def test_a_run_that_was_moved_changed_or_whose_data_are_gone_is_refused(project, refusal):
    root, pack = project.root, str(pack_of(project.root))
    shutil.copytree(root / SP_IN, root / "elsewhere")
    assert "elsewhere: must be where a study has put it" in refusal(root, "elsewhere", "--data", pack)
    with (root / SP_IN / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "is not the file that the run wrote, by its record.json" in refusal(root, SP_IN, "--data", pack)
    for index in (root / "data" / "prepared").glob("*.json"):
        index.unlink()
    assert "the data that results/micro" in refusal(root, SP_IN, "--data", pack)
