"""What `bbnet plan` says of a study's runs, disk and hours, and where it has the hours from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from bbnet.cli import main
from bbnet.cli.plan import benchmark_file
from bbnet.study import machine
from bbnet.study.config import Knobs, read_study
from bbnet.study.recipe import Recipes

ROOT = Path(__file__).parents[2]
STUDY = {
    "seeds": [0, 1, 2],
    "budgets": [0.5, 0.8],
    "methods": {
        "dense": {"algorithm": "dense"},
        "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
        "rigl": {"algorithm": "rigl", "side": "in"},
    },
    "tasks": {
        "change": {
            "data": {"pack": "aerial_scenes", "size": 64, "train": 10, "val": 4, "test": 6},
            "tile": 32,
            "models": {"tiny": {"widths": [8, 8]}},
            "training": {"epochs": 7, "warm_up_epochs": 2, "batch_size": 8, "learning_rate": 0.003},
        }
    },
}
RUNS = 3 * (1 + 2 * 2)
STEPS = (RUNS * 5 + 3 * 2) * (10 * 4 // 8)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with config.yaml and studies, in which commands run."""
    shutil.copy(ROOT / "config.yaml", tmp_path)
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    (tmp_path / "studies" / "micro.yaml").write_text(yaml.safe_dump(STUDY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(capsys, *arguments: str) -> str:
    main(["plan", "--study", "micro", *arguments])
    return capsys.readouterr().out


def row(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(start)).split()


def record(project: Path, device: str, seconds: float, name: str = "micro") -> None:
    """As `make bench` writes it."""
    key = Recipes(read_study(name, project / "studies"), Knobs(study=name)).step_key("change", "tiny")
    figures = {"throughput": {key: {"step_seconds": seconds, "steps": 20, "weights": 1_000_000}}}
    file = project / benchmark_file(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures))


def test_recorded_throughput_gives_hours_by_arithmetic(project, capsys):
    record(project, machine.name_of("cpu"), 7.2)
    text = plan(capsys, "--device", "cpu")
    assert row(text, "change")[:5] == ["change", "tiny", str(RUNS), str(STEPS), "7.2"]
    assert f"{STEPS * 7.2 / 3600:.2g}" in row(text, "change")
    assert f"{benchmark_file(machine.name_of('cpu'))}, 20 steps" in text
    assert f"about {4 * 1_000_000 * (RUNS + 9) / 1e6:.1f} MB" in text
    assert f"about {7 * 64**2 * 20 / 1e6:.1f} MB" in text


def test_without_a_record_of_such_a_device_steps_are_timed_here(project, capsys):
    record(project, "Some Other GPU", 7.2)
    text = plan(capsys, "--device", "cpu")
    assert "20 timed steps here" in text
    seconds = float(row(text, "change")[4]) / 1000
    assert 0.0005 < seconds < 5


def test_a_record_of_another_batch_does_not_count(project, capsys):
    record(project, machine.name_of("cpu"), 7.2)
    changed = json.loads(json.dumps(STUDY))
    changed["tasks"]["change"]["training"]["batch_size"] = 4
    (project / "studies" / "micro.yaml").write_text(yaml.safe_dump(changed))
    assert "timed steps here" in plan(capsys, "--device", "cpu")


def test_more_epochs_or_another_learning_rate_still_count(project, capsys):
    record(project, machine.name_of("cpu"), 7.2)
    changed = json.loads(json.dumps(STUDY))
    changed["tasks"]["change"]["training"] |= {"epochs": 12, "learning_rate": 0.1}
    (project / "studies" / "micro.yaml").write_text(yaml.safe_dump(changed))
    text = plan(capsys, "--device", "cpu")
    assert str(benchmark_file(machine.name_of("cpu"))) in text
    assert row(text, "change")[3] == str((RUNS * 10 + 3 * 2) * 5)


def test_a_model_with_its_own_warm_up_shares_less_or_more_of_its_steps(project, capsys):
    record(project, machine.name_of("cpu"), 7.2)
    changed = json.loads(json.dumps(STUDY))
    changed["tasks"]["change"]["models"]["tiny"]["warm_up_epochs"] = 4
    (project / "studies" / "micro.yaml").write_text(yaml.safe_dump(changed))
    assert row(plan(capsys, "--device", "cpu"), "change")[3] == str((RUNS * 3 + 3 * 4) * 5)


def test_several_devices_take_the_time_of_a_step_with_the_share_of_one(project, capsys):
    record(project, machine.name_of("cpu"), 7.2)
    changed = json.loads(json.dumps(STUDY))
    changed["tasks"]["change"]["training"] |= {"batch_size": 16, "devices": 2}
    (project / "studies" / "micro.yaml").write_text(yaml.safe_dump(changed))
    text = plan(capsys, "--device", "cpu")
    steps = STEPS // 5 * 2  # of 40 tiles in batches of 16 instead of 8
    expected = ["change", "tiny", str(RUNS), str(steps), "7.2", "s", "2", f"{steps * 7.2 / 3600:.2g}"]
    assert row(text, "change")[:8] == expected


@pytest.mark.skipif(machine.name_of("auto") != machine.name_of("cpu"), reason="there is a GPU here")
def test_a_device_that_is_not_here_gives_unknown_hours_and_the_reason(project, capsys):
    text = plan(capsys, "--device", "cuda")
    assert "on a GPU that is not here" in text
    assert "unknown: timing failed" in text
    assert "torch sees no GPU" in text
    assert row(text, "all")[-1] == "unknown"


def test_the_paper_study_is_planned_with_its_downloads(project, capsys, monkeypatch):
    monkeypatch.setattr("bbnet.cli.plan._measured_here", lambda *_: (None, "unknown"))
    main(["plan", "--study", "paper"])
    text = capsys.readouterr().out
    runs = 3 * (1 + 7 * 4)
    for task in ("asr", "change", "face"):
        assert row(text, task)[2] == str(runs)
    assert row(text, "all")[1] == str(3 * runs)
    total = (6387309499 + 337926286 + 346663984 + 328757843) / 1e9
    assert "librispeech: 4 files to download (CC BY 4.0), and as much again unpacked" in text
    assert f"{total:.1f} GB" in text
    assert "faces: 1 file to download (unclear)" in text
    assert "face pack of the Budgeted Broadcast notebooks: It contains photographs of people" in text
    assert "imagenet_resnet101: 1 file to download" in text
    steps = {"change": 445 * 16 // 8, "face": 140_020 // 64}
    epochs = {"change": runs * 20 + 3 * 10, "face": runs * 15 + 3 * 5}
    for task in steps:
        assert row(text, task)[3] == f"{steps[task] * epochs[task]:,}"


OWN_TASKS = {
    "change": {
        "data": {"pack": "levir_cd"},
        "tile": 32,
        "models": {"tiny": {"widths": [8, 8]}},
        "training": {"epochs": 7, "warm_up_epochs": 2, "batch_size": 4, "learning_rate": 0.003},
    },
    "classification": {
        "data": {"pack": "image_folder"},
        "models": {"tiny": {"architecture": "cifar_resnet", "depth": 8}},
        "training": {"epochs": 7, "warm_up_epochs": 2, "batch_size": 4, "learning_rate": 0.003},
    },
    "face": {
        "data": {"pack": "faces"},
        "size": 32,
        "models": {"tiny": {"architecture": "small", "widths": [8], "blocks": [1]}},
        "training": {"epochs": 7, "warm_up_epochs": 2, "batch_size": 4, "learning_rate": 0.003},
    },
    "asr": {
        "data": {"pack": "librispeech"},
        "models": {
            "tiny": {
                "width": 16,
                "hidden": 32,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "heads": 2,
                "stem_channels": 8,
            }
        },
        "training": {"epochs": 7, "warm_up_epochs": 2, "batch_seconds": 10, "learning_rate": 0.003},
    },
}
TRAIN = {
    "change": {"starts": [0, 9, 23]},
    "classification": {"labels": [0] * 22},
    "face": {"labels": [0] * 22},
    "asr": {"utterances": ["u"] * 22},
}


@pytest.mark.parametrize("task", OWN_TASKS)
def test_the_steps_and_size_of_own_data_are_known_once_they_are_prepared(project, capsys, monkeypatch, task):
    monkeypatch.setattr("bbnet.cli.plan._measured_here", lambda *_: (None, "unknown"))
    (project / "mine").mkdir()
    settings = json.loads(json.dumps(OWN_TASKS[task]))
    settings["data"] |= {"path": "mine"} | ({} if task == "classification" else {"complete": False})
    (project / "studies" / "micro.yaml").write_text(yaml.safe_dump(STUDY | {"tasks": {task: settings}}))
    assert row(plan(capsys), task)[3] == "unknown"
    knobs = Knobs(study="micro")
    prepared = project / "data/prepared" / Recipes(read_study("micro", project / "studies"), knobs).prepared_key(task)
    prepared.mkdir(parents=True)
    (prepared / "array.npy").write_bytes(bytes(3_000_000))
    # 22 utterances of 2 s and others, of which training has batches of 10 s.
    np.save(prepared / "starts.npy", np.cumsum([0, *[200] * 22, *[900] * 5]))
    prepared.with_suffix(".json").write_text(json.dumps({"splits": {"train": TRAIN[task]}}))
    text = plan(capsys)
    steps = 22 // 4 if task != "asr" else 5
    steps = 23 // 4 if task == "change" else steps
    assert row(text, task)[3] == f"{(RUNS * 5 + 3 * 2) * steps:,}"
    assert "prepared arrays" in text and "about 3.0 MB" in text
    prepared.with_suffix(".json").write_text("{}")
    with pytest.raises(SystemExit, match=r"\.json: cannot be read"):
        plan(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "nope"], "there is no file studies/nope.yaml"),
        (["--study", "../x"], "study: string should match pattern"),
    ],
)
def test_what_cannot_be_planned_is_one_line(project, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


def test_outside_of_the_project_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="run in the folder of the Snakefile"):
        main(["plan"])


def test_the_command_is_installed_and_imports_no_torch(project):
    modules = ", ".join(f"bbnet.cli.{name}" for name in ("check", "plan", "status", "verify"))
    script = f"import sys, {modules}; print([name for name in sys.modules if name.split('.')[0] == 'torch'])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
    shown = subprocess.run([Path(sys.executable).with_name("bbnet"), "plan", "--help"], capture_output=True, text=True)
    assert "--study" in shown.stdout


# Detectable differences.


def detectable(text: str) -> list[list[str]]:
    lines = text[text.index("about contrasts") :].splitlines()[2:]
    return [line.split() for line in lines[: lines.index("")]]


def test_it_shows_the_differences_that_more_seeds_and_items_detect(project, capsys):
    rows = detectable(plan(capsys, "--like", str(ROOT / "results/reference/demo")))
    # sp_in and rigl with dense, and with each other, at two budgets.
    assert {tuple(row[:5]) for row in rows} == {("change", "methods", "f1", "6", "128")}
    assert [row[5] for row in rows] == ["2", "3", "5", "10"]
    assert rows[1][6:8] == ["(this", "study)"]
    shares = [float(row[-3].replace("none", "inf")) for row in rows]  # none: larger than any difference
    assert shares == sorted(shares, reverse=True) and 0 < shares[-1] < 0.1


def test_a_difference_that_is_larger_than_possible_is_none(project, capsys):
    study = STUDY | {"seeds": [0, 1], "budgets": [round(0.1 + step / 20, 2) for step in range(12)]}
    (project / "studies" / "micro.yaml").write_text(yaml.safe_dump(study))
    rows = detectable(plan(capsys, "--like", str(ROOT / "results/reference/demo")))
    assert rows[0][-3:] == ["none"] * 3


def test_an_earlier_study_without_the_task_or_with_one_seed_leaves_them_unknown(project, capsys, tmp_path):
    contrasts = (ROOT / "results/reference/demo/summary/contrasts.csv").read_text().splitlines()
    without = [line for line in contrasts if not line.startswith("change,")]
    (tmp_path / "summary").mkdir()
    (tmp_path / "summary/contrasts.csv").write_text("\n".join(without))
    (row,) = detectable(plan(capsys, "--like", str(tmp_path)))
    assert row == ["change", "methods", "f1", "6", *["unknown"] * 5]


def test_models_are_planned_with_the_variances_of_models_and_count_among_the_contrasts_of_the_task(
    project, capsys, tmp_path
):
    tiny = STUDY["tasks"]["change"]["models"]["tiny"]
    task = STUDY["tasks"]["change"] | {"models": {"tiny": tiny, "wide": {"widths": [8, 16]}}, "baseline": "tiny"}
    (project / "studies" / "micro.yaml").write_text(yaml.safe_dump(STUDY | {"tasks": {"change": task}}))
    reference = ROOT / "results/reference/demo/summary/contrasts.csv"
    # Six contrasts between methods in each of two models, and five cells in both.
    rows = detectable(plan(capsys, "--like", str(reference.parent)))
    assert {tuple(row[:4]) for row in rows} == {("change", between, "f1", "17") for between in ("methods", "models")}
    assert [row[4:] for row in rows if row[1] == "models"] == [["unknown"] * 5]
    (tmp_path / "summary").mkdir()
    contrasts = pd.read_csv(reference, dtype={"budget": str})
    contrasts.to_csv(tmp_path / "summary/contrasts.csv", index=False)
    of_models = contrasts.assign(reference_model="tiny")
    of_models["differences"] = [
        " ".join(repr(3 * float(one)) for one in row.split()) for row in of_models["differences"]
    ]
    of_models.assign(item_variance=9 * of_models["item_variance"]).to_csv(
        tmp_path / "summary/model_contrasts.csv", index=False
    )
    rows = detectable(plan(capsys, "--like", str(tmp_path)))
    of_two = {row[1]: float(row[-3]) for row in rows if row[5] == "10"}
    assert 2 * of_two["methods"] < of_two["models"] < 3.5 * of_two["methods"]
    of_models.drop(columns="verdict").to_csv(tmp_path / "summary/model_contrasts.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        plan(capsys, "--like", str(tmp_path))
    assert "model_contrasts.csv: has no column verdict" in str(ended.value)


def test_an_earlier_study_that_cannot_be_read_is_named(project, capsys):
    with pytest.raises(SystemExit) as ended:
        plan(capsys, "--like", "nowhere")
    assert str(ended.value).startswith("error: nowhere/contrasts.csv: cannot be read")
