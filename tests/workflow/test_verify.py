"""`bbnet verify` on runs of the micro study: silent where nothing was touched, and it names whatever was."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bbnet.cli import main
from tests.workflow.conftest import edit_json, recorded, verify, vouch_again

pytestmark = pytest.mark.xdist_group("workflow")
RUN = "results/micro/runs/change/tiny"
SLAB = "encoder.1.conv1"


@pytest.fixture
def run(project) -> Path:
    """The folder of a sparse run that may be spoiled."""
    return project.root / RUN / "sp_in/b0.50/s0"


def test_every_run_of_a_study_is_what_its_record_says(finished, capsys):
    runs = sorted((finished.root / RUN).glob("*/*/*"))
    assert len(runs) == 3
    main(["verify", *map(str, runs)])
    assert capsys.readouterr().out.count("matches its record") == 3


def test_only_the_run_that_was_touched_is_named(run, capsys):
    with (run / "history.csv").open("a") as file:
        file.write("\n")
    others = [run.parents[2] / "dense/b1.00/s0", run.parents[2] / "magnitude/b0.50/s0"]
    with pytest.raises(SystemExit, match="1 of 3 runs"):
        main(["verify", str(others[0]), str(run), str(others[1])])
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if line.startswith("  ")] == [
        "history.csv: is not the file that the run wrote: its hash differs"
    ]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("model.safetensors", "model.safetensors: is not the file"),
        ("masks.safetensors", "masks.safetensors: is not the file"),
        ("refreshes.csv", "refreshes.csv: is not the file"),
    ],
)
def test_a_file_of_another_run_is_named(run, capsys, name, named):
    shutil.copy(run.parents[2] / "magnitude/b0.50/s0" / name, run / name)
    assert named in verify(capsys, run)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda record: record["slabs"][SLAB].update(connections=1), "recorded 1 of"),
        (lambda record: record["slabs"][SLAB].update(density=0.25), f"slab {SLAB}: density 0.5, recorded 0.25"),
        (lambda record: record["slabs"].pop(SLAB), f"its slabs are not the recorded ones: {SLAB}"),
        (lambda record: record["cost"].update(density=0.25), "density 0.5, recorded 0.25"),
        (lambda record: record["cost"].update(net_density=0.9), "net density"),
        (lambda record: record["config"]["training"].update(epochs=99), "its configuration has fingerprint"),
        (lambda record: record["run"].update(seed=7), "seed is 7 in run, 0 in config"),
        (lambda record: record["run"].update(method="magnitude"), "is of run change/tiny/magnitude/b0.50/s0"),
        (lambda record: record["run"].update(side="out"), "side is out in run, in in config"),
        (lambda record: record.update(selected_epoch=77), "selected epoch 77 is not in history.csv"),
        (lambda record: record["config"].update(task="nope"), "scores: cannot be read (ModuleNotFoundError"),
        (lambda record: record["config"].update(budget="half"), "masks: cannot be read (InvalidOperation"),
        (lambda record: record["cost"].update(weights=0), "weights: cannot be read (ZeroDivisionError"),
        (lambda record: record["inputs"].update(warm_start="0" * 64), "is not the warm start of this run"),
        (lambda record: record.update(surprise=1), "surprise"),
        (lambda record: record.pop("slabs"), "slabs: Field required"),
        (lambda record: record.update(seconds="long"), "seconds"),
        (lambda record: record["files"].pop("masks.safetensors"), "has no hash of masks.safetensors"),
    ],
)
def test_a_record_that_was_changed_is_named(run, capsys, change, named):
    edit_json(run / "record.json", change)
    assert named in verify(capsys, run)


def test_a_record_that_is_cut_is_named(run, capsys):
    content = (run / "record.json").read_text()
    (run / "record.json").write_text(content[: len(content) // 2])
    assert "record.json" in verify(capsys, run)


@pytest.mark.parametrize("name", ["model.safetensors", "masks.safetensors", "refreshes.csv"])
def test_a_file_that_is_missing_is_named(run, capsys, name):
    (run / name).unlink()
    assert f"{name}: is missing" in verify(capsys, run)


def test_a_pruned_weight_that_moved_is_found_though_the_hashes_fit(run, capsys):
    weights, mask = load_file(run / "model.safetensors"), mask_of(run)
    unit, other = np.argwhere(~mask)[0]
    weights[f"{SLAB}.weight"][unit, other, 0, 0] = 1e-30
    save_file(weights, run / "model.safetensors")
    vouch_again(run)
    assert f"slab {SLAB}: 1 pruned weights are not 0" in verify(capsys, run)


def test_a_connection_over_the_budget_is_found_though_hashes_and_counts_fit(run, capsys):
    mask = mask_of(run)
    mask[tuple(np.argwhere(~mask)[0])] = True
    with safe_open(run / "masks.safetensors", framework="np") as file:
        packed, shapes = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    packed[SLAB] = np.packbits(mask)
    save_file(packed, run / "masks.safetensors", metadata=shapes)
    vouch_again(run)
    kept = int(mask.sum())
    edit_json(
        run / "record.json", lambda record: record["slabs"][SLAB].update(connections=kept, density=kept / mask.size)
    )
    assert f"slab {SLAB}: {kept} connections, budget 0.50 requires {kept - 1}" in verify(capsys, run)


def mask_of(run: Path) -> np.ndarray:
    slab = recorded(run)["slabs"][SLAB]
    bits = np.unpackbits(load_file(run / "masks.safetensors")[SLAB], count=slab["units"] * slab["fan"])
    return bits.astype(bool).reshape(slab["units"], slab["fan"])


def test_scores_that_do_not_follow_from_the_items_are_named(run, capsys):
    edit_json(run / "metrics.json", lambda metrics: metrics.update(f1=0.999))
    assert "metrics.json: f1 is 0.999, the items give" in verify(capsys, run)


def test_items_that_were_changed_are_found_by_the_scores(run, capsys):
    items = pd.read_parquet(run / "items.parquet")
    items.loc[0, "tp"] += 1
    items.to_parquet(run / "items.parquet", index=False)
    assert "the items give" in verify(capsys, run)


def test_costs_that_are_not_the_records_are_named(run, capsys):
    edit_json(run / "cost.json", lambda cost: cost.update(net_density=0.1))
    assert "cost.json: net_density is 0.1" in verify(capsys, run)


def test_a_run_that_is_not_scored_is_verified_as_far_as_it_goes(run, capsys):
    for name in ("metrics.json", "items.parquet", "cost.json"):
        (run / name).unlink()
    main(["verify", str(run)])
    assert "matches its record (missing, so not compared: scores)" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content"), [("metrics.json", "[]"), ("cost.json", "[1]"), ("items.parquet", "PAR1")])
def test_scores_that_are_none_are_named_and_the_next_run_is_verified(run, capsys, name, content):
    (run / name).write_text(content)
    other = run.parents[2] / "dense/b1.00/s0"
    with pytest.raises(SystemExit, match="1 of 2 runs"):
        main(["verify", str(run), str(other)])
    said = capsys.readouterr().out
    assert "scores: cannot be read" in said
    assert f"{other}: matches its record" in said


def test_runs_that_changed_places_are_named(run, capsys):
    other = run.parents[2] / "magnitude/b0.50/s0"
    run.rename(run.with_name("aside"))
    other.rename(run)
    run.with_name("aside").rename(other)
    assert verify(capsys, run, other).count("record.json: is of run change/tiny/") == 2


def test_masks_that_are_a_model_are_named(run, capsys):
    shutil.copy(run / "model.safetensors", run / "masks.safetensors")
    assert "masks: cannot be read" in verify(capsys, run)


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_what_is_no_run_is_named(tmp_path, capsys, kind):
    place = tmp_path / "somewhere"
    if kind == "file":
        place.touch()
    if kind == "empty":
        place.mkdir()
    assert "is not the folder of a run: it has no record.json" in verify(capsys, place)


def test_what_was_not_there_to_compare_is_said(run, tmp_path, capsys):
    alone = shutil.copytree(run, tmp_path / "alone")
    (alone / "metrics.json").unlink()
    main(["verify", str(alone)])
    assert "(missing, so not compared: its warm start, scores)" in capsys.readouterr().out
