"""A recipe's fingerprint changes with everything that shapes the result, and with nothing else."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bbnet.data import files
from bbnet.study import grid, recipe
from bbnet.study.config import Knobs, Study
from bbnet.study.discover import task_names
from bbnet.study.record import fingerprint

REPOSITORY = Path(recipe.ROOT)
DENSE, SP_IN, SP_OUT, MAGNITUDE = "dense/b1.00", "sp_in/b0.20", "sp_out/b0.50", "magnitude/b0.20"
RUNS = {DENSE, SP_IN, SP_OUT, MAGNITUDE}
TRAINING = {"warm_up", *RUNS}
EVERYTHING = {"fetch", "prepare", *TRAINING}


def fingerprints(study: Study, knobs: Knobs | None = None) -> dict[str, str]:
    """Of every job of seed 0: fetch, prepare, warm-up, and training of each method."""
    recipes = recipe.Recipes(study, knobs or Knobs())
    runs = {f"{run.method}/b{run.budget}": run for run in grid.runs(study) if (run.model, run.seed) == ("small", 0)}
    jobs = {
        "fetch": fingerprint(recipes.fetch("change", recipes.tasks["change"].data)),
        "prepare": fingerprint(recipes.prepare("change")),
        "warm_up": fingerprint(recipes.warm_up("change", "small", 0)),
    }
    return jobs | {key: recipes.run_fingerprint(run) for key, run in runs.items() if key in RUNS}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {key for key in before if before[key] != after[key]}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Makes a copy of the code in another place, applies an edit to it, and reads recipes from there."""

    def copy(edit=lambda root: None) -> Path:
        root = tmp_path / f"clone_{len(list(tmp_path.iterdir()))}"
        for folder in ("bbnet", "workflow_scripts", "rules", "studies"):
            shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        edit(root)
        monkeypatch.setattr(recipe, "ROOT", root)
        monkeypatch.setattr(recipe, "PACKAGE", root / "bbnet")
        monkeypatch.setattr(recipe, "SCRIPTS", root / "workflow_scripts")
        monkeypatch.setattr(recipe, "SPARSITY", root / "bbnet" / "sparsity")
        return root

    return copy


def append(file: str):
    def edit(root: Path) -> None:
        assert (root / file).is_file()
        with (root / file).open("a") as text:
            text.write("# edited\n")

    return edit


def create(file: str):
    def edit(root: Path) -> None:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("VALUE = 1\n")

    return edit


def touch_all(root: Path) -> None:
    for file in root.rglob("*.py"):
        os.utime(file, (1, 1))


# Code.


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("bbnet/sparsity/masks.py", TRAINING),
        ("bbnet/sparsity/sparsifier.py", TRAINING),
        ("bbnet/sparsity/algorithms/__init__.py", TRAINING),
        ("bbnet/sparsity/algorithms/magnitude.py", {MAGNITUDE}),
        ("bbnet/sparsity/algorithms/budgeted_broadcast.py", {SP_IN, SP_OUT}),
        ("bbnet/sparsity/algorithms/dense.py", TRAINING),
        ("bbnet/training/trainer.py", TRAINING),
        ("bbnet/training/runs.py", TRAINING),
        ("bbnet/tasks/change/model.py", TRAINING),
        ("bbnet/tasks/change/task.py", TRAINING),
        ("bbnet/tasks/change/metrics.py", TRAINING),
        ("bbnet/tasks/change/data.py", EVERYTHING),
        ("bbnet/data/store.py", EVERYTHING),
        ("bbnet/data/image_folders.py", EVERYTHING),
        ("bbnet/data/pieces.py", EVERYTHING),
        ("bbnet/data/synthetic/aerial_scenes.py", EVERYTHING),
        ("workflow_scripts/fetch.py", EVERYTHING),
        ("workflow_scripts/prepare.py", EVERYTHING - {"fetch"}),
        ("workflow_scripts/warm_up.py", TRAINING),
        ("workflow_scripts/train.py", RUNS),
        ("bbnet/sparsity/parameters/__init__.py", TRAINING),
        ("bbnet/sparsity/parameters/magnitude.py", {MAGNITUDE}),
    ],
)
def test_an_edit_reruns_what_the_file_shapes(study, clone, file, expected):
    before = fingerprints(study())
    clone(append(file))
    assert changed(before, fingerprints(study())) == expected


@pytest.mark.parametrize(
    "file",
    [
        "workflow_scripts/compare.py",
        "bbnet/analysis/statistics.py",
        "bbnet/plots/pareto.py",
        "bbnet/diagnostics/watch.py",
        "bbnet/study/grid.py",
        "bbnet/training/diagnose.py",
        "bbnet/data/progress.py",
        "rules/produce.smk",
        "studies/demo.yaml",
    ],
)
def test_an_edit_elsewhere_retrains_nothing(study, clone, file):
    before = fingerprints(study())
    clone(append(file))
    assert changed(before, fingerprints(study())) == set()


@pytest.mark.parametrize(
    "file",
    [
        "bbnet/sparsity/algorithms/novel.py",
        "bbnet/sparsity/parameters/novel.py",
        "bbnet/models/novel.py",
        "bbnet/models/settings/novel.py",
        "bbnet/tasks/novel/task.py",
        "bbnet/plots/novel.py",
        "workflow_scripts/novel.py",
        "studies/novel.yaml",
    ],
)
def test_a_new_file_retrains_nothing(study, clone, file):
    before = fingerprints(study())
    clone(create(file))
    assert changed(before, fingerprints(study())) == set()


@pytest.mark.parametrize("file", ["bbnet/tasks/change/novel.py", "bbnet/sparsity/novel.py", "bbnet/training/novel.py"])
def test_a_new_file_in_the_core_retrains(study, clone, file):
    before = fingerprints(study())
    clone(create(file))
    assert changed(before, fingerprints(study())) == TRAINING


def test_a_clone_and_a_touch_change_nothing(study, clone):
    before = fingerprints(study())
    clone(touch_all)
    assert fingerprints(study()) == before


@pytest.mark.parametrize(
    ("make", "edited", "same"),
    [
        (lambda: recipe.summary_code("compare"), "bbnet/analysis/statistics.py", "bbnet/analysis/statistics.txt"),
        (lambda: recipe.summary_code("figures"), "bbnet/plots/style.py", "bbnet/training/trainer.py"),
        (lambda: recipe.summary_code("compare"), "workflow_scripts/compare.py", "workflow_scripts/train.py"),
        (lambda: recipe.task_code("panels", "change"), "bbnet/tasks/change/panels.py", "bbnet/tasks/task.py"),
    ],
)
def test_summary_code_is_that_of_the_script_and_of_what_it_shares(clone, make, edited, same):
    before = make()
    clone(create(same))
    assert make() == before
    clone(append(edited))
    assert make() != before


# The study.


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds", [0, 1, 2]),
        ("seeds", [2, 0]),
        ("budgets", [0.2, 0.5, 0.9]),
        ("budgets", ["0.50", "0.20"]),
        ("methods.novel", {"algorithm": "magnitude", "side": "out"}),
        ("tasks.change.models.large", {"widths": [16, 32]}),
        ("description", "other words"),
    ],
)
def test_other_cells_change_nothing(study, key, value):
    assert changed(fingerprints(study()), fingerprints(study(key, value))) == set()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("budgets", [0.1, 0.2, 0.5], RUNS),
        ("sparsity.rescale", "sqrt", RUNS),
        ("sparsity.every", 3, RUNS),
        ("methods.sp_in.law", "uniform", {SP_IN}),
        ("methods.magnitude.side", "out", {MAGNITUDE}),
        ("cpu_threads", 2, TRAINING),
        ("precision", "bfloat16", TRAINING),
        ("tasks.change.slabs", "paper", TRAINING),
        ("tasks.change.training.learning_rate", 0.02, TRAINING),
        ("tasks.change.training.epochs", 5, TRAINING),
        ("tasks.change.training.devices", 2, TRAINING),
        ("tasks.change.models.small.widths", [8, 32], TRAINING),
        ("tasks.change.models.small.learning_rate", 0.02, TRAINING),
        ("tasks.change.models.small.learning_rate", 0.01, set()),  # which is that of training
        ("tasks.change.models.small.warm_up_epochs", 2, TRAINING),
        ("tasks.change.models.small.warm_up_epochs", 1, set()),
        ("methods.sp_in.k_min", 0, {SP_IN}),
        ("methods.sp_in.sparsity", {"every": 3}, {SP_IN}),
        ("methods.magnitude.sparsity", {"freeze": 0.5}, {MAGNITUDE}),
        ("methods.magnitude.sparsity", {"freeze": 0.9}, RUNS),  # all are selected after it
        ("reference", "sp_in", set()),
        ("tasks.change.tile", 64, EVERYTHING - {"fetch"}),
        ("tasks.change.data.train", 9, EVERYTHING),
        ("tasks.change.data.seed", 1, EVERYTHING),
    ],
)
def test_a_changed_value_reruns_what_it_shapes(study, key, value, expected):
    assert changed(fingerprints(study()), fingerprints(study(key, value))) == expected


def test_another_device_retrains(study):
    before = fingerprints(study(), Knobs(device="cpu"))
    assert changed(before, fingerprints(study(), Knobs(device="cuda"))) == TRAINING
    assert changed(before, fingerprints(study(), Knobs(device="cpu", compile="on"))) == TRAINING
    assert changed(before, fingerprints(study(), Knobs(device="cpu", resident="off"))) == set()


@pytest.fixture
def train_all(study, tmp_path, monkeypatch):
    """Pretends to train the base study, asked for by a word, on a device; gives its recipes under another word."""
    monkeypatch.chdir(tmp_path)

    def train(asked: str, used: str) -> dict[str, str]:
        recipes = recipe.Recipes(study(), Knobs(device=asked))
        for run in grid.runs(study()):
            folder = tmp_path / "results" / "demo" / "runs" / run.folder
            folder.mkdir(parents=True)
            content = {"fingerprint": recipes.run_fingerprint(run), "config": recipes.train(run), "device": used}
            (folder / "record.json").write_text(json.dumps(content))
        return fingerprints(study(), Knobs(device=asked))

    return train


@pytest.mark.parametrize(
    ("asked", "used", "then"),
    [
        ("auto", "cpu", "cpu"),
        ("auto", "NVIDIA H200", "cuda"),
        ("auto", "NVIDIA H200", "auto"),
        ("cpu", "cpu", "auto"),
        ("cuda", "NVIDIA H200", "auto"),
    ],
)
def test_a_device_that_was_used_is_known_whatever_word_asked_for_it(study, train_all, asked, used, then):
    before = train_all(asked, used)
    assert fingerprints(study(), Knobs(device=then)) == before


@pytest.mark.parametrize(
    ("asked", "used", "then"), [("auto", "cpu", "cuda"), ("auto", "NVIDIA H200", "cpu"), ("cpu", "cpu", "cuda")]
)
def test_a_device_that_was_not_used_is_another(study, train_all, asked, used, then):
    assert changed(train_all(asked, used), fingerprints(study(), Knobs(device=then))) == TRAINING


def test_a_new_run_starts_from_the_warm_up_of_the_finished_ones(study, train_all):
    train_all("auto", "cpu")
    recipes = recipe.Recipes(study("methods.set", {"algorithm": "set"}), Knobs(device="cpu"))
    new, old = (
        recipes.train(next(run for run in grid.runs(recipes.study) if (run.method, run.seed) == (method, 0)))
        for method in ("set", "magnitude")
    )
    assert (new["device"], old["device"]) == ("cpu", "auto")
    assert new["warm_start"] == old["warm_start"] == fingerprint(recipes.warm_up("change", "small", 0))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"config": {}}', '{"config": {"device": "auto", "warm_start": 1}}']
)
def test_a_record_that_cannot_be_read_is_no_finished_run(study, train_all, content):
    train_all("auto", "cpu")
    for path in Path("results").rglob("record.json"):
        path.write_text(content)
    unknown = fingerprints(study(), Knobs(device="cpu"))
    shutil.rmtree("results")
    assert fingerprints(study(), Knobs(device="cpu")) == unknown


def test_other_places_and_targets_change_nothing(study):
    elsewhere = Knobs(data_dir="/elsewhere", results_dir="/there", cells="done", study="other")
    assert changed(fingerprints(study()), fingerprints(study(), elsewhere)) == set()


def test_a_value_written_out_at_its_default_changes_nothing(study):
    assert changed(fingerprints(study()), fingerprints(study("methods.sp_in.law", "log_odds"))) == set()


def test_no_two_runs_share_a_fingerprint(study):
    recipes = recipe.Recipes(study(), Knobs())
    runs = grid.runs(study())
    assert len({recipes.run_fingerprint(run) for run in runs}) == len(runs)


def test_the_warm_start_is_one_per_model_and_seed(study):
    recipes = recipe.Recipes(study(), Knobs())
    starts = {(run.seed, recipes.train(run)["warm_start"]) for run in grid.runs(study())}
    assert len(starts) == 2
    assert {recipe_of for _, recipe_of in starts} == {
        fingerprint(recipes.warm_up("change", "small", seed)) for seed in (0, 1)
    }


def test_a_recipe_carries_what_the_job_uses(study):
    recipes = recipe.Recipes(study(), Knobs(device="cpu"))
    run = next(run for run in grid.runs(study()) if run.folder == "change/small/sp_in/b0.50/s1")
    job = recipes.train(run)
    assert (job["task"], job["budget"], job["smallest_budget"], job["seed"]) == ("change", "0.50", "0.20", 1)
    assert job["method"]["algorithm"] == "budgeted_broadcast"
    assert job["method"]["side"] == "in"
    assert job["data"] == recipes.prepared_key("change")
    assert (job["device"], job["cpu_threads"]) == ("cpu", 1)


def test_folders_of_data_are_named_by_pack_and_task(study):
    recipes = recipe.Recipes(study(), Knobs())
    data = recipes.tasks["change"].data
    assert recipes.raw_key("change", data) == f"aerial_scenes-{fingerprint(recipes.fetch('change', data))}"
    assert recipes.prepared_key("change") == f"change-{fingerprint(recipes.prepare('change'))}"


# A task whose data are a package, and with settings of scoring.

SPEECH = {
    "data": {"pack": "spoken_words", "train": 20, "val": 4, "test": 4},
    "models": {
        "small": {"width": 16, "hidden": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "stem_channels": 2}
    },
    "training": {"epochs": 4, "warm_up_epochs": 1, "batch_seconds": 4, "learning_rate": 0.01},
}


def speech_fingerprints(study: Study) -> dict[str, str]:
    recipes = recipe.Recipes(study, Knobs())
    run = next(run for run in grid.runs(study) if run.method == "sp_in")
    return {
        "fetch": fingerprint(recipes.fetch("asr", recipes.tasks["asr"].data)),
        "prepare": fingerprint(recipes.prepare("asr")),
        "train": recipes.run_fingerprint(run),
        "scoring": fingerprint(recipes.tasks["asr"].scoring()),
        "buckets": recipe.buckets_code("asr"),
    }


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("decoding", {"beam": 4}, {"scoring"}),
        ("tokens", {"kind": "bpe", "size": 64}, {"prepare", "train"}),
        ("faults", {"too_short": "skip"}, {"prepare", "train"}),
        ("slabs", "wide", {"train"}),
    ],
)
def test_a_changed_setting_of_speech_reruns_what_it_shapes(study, key, value, expected):
    before, after = (speech_fingerprints(study("tasks", {"asr": SPEECH | more})) for more in ({}, {key: value}))
    assert changed(before, after) == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("bbnet/tasks/asr/data/features.py", {"fetch", "prepare", "train"}),
        ("bbnet/data/synthetic/spoken_words.py", {"fetch", "prepare", "train"}),
        ("bbnet/tasks/asr/model.py", {"train"}),
        ("bbnet/tasks/asr/buckets.py", {"train", "buckets"}),
        ("workflow_scripts/buckets.py", {"buckets"}),
        ("bbnet/tasks/change/model.py", set()),
    ],
)
def test_an_edit_reruns_what_it_shapes_of_speech(study, clone, file, expected):
    speech = study("tasks", {"asr": SPEECH})
    clone()
    before = speech_fingerprints(speech)
    clone(append(file))
    assert changed(before, speech_fingerprints(speech)) == expected


# Networks that several tasks may use.

SCENES = {
    "data": {"pack": "rendered_scenes", "train": 8, "val": 2, "test": 2},
    "models": {"small": {}},
    "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 2, "learning_rate": 0.003},
}
FACES = {
    "data": {
        "pack": "rendered_faces",
        "size": 24,
        "identities": 2,
        "train": 8,
        "val": 1,
        "test": 1,
        "gallery": 0,
        "probes": 0,
        "strangers": 0,
    },
    "size": 24,
    "models": {"small": {"architecture": "small", "widths": [8], "blocks": [1]}},
    "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 2, "learning_rate": 0.01},
}


def task_fingerprints(study: Study) -> dict[str, str]:
    """Of the first training of each task."""
    recipes = recipe.Recipes(study, Knobs())
    return {run.task: recipes.run_fingerprint(run) for run in reversed(grid.runs(study))}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("bbnet/models/bottleneck_resnet.py", {"face"}),
        ("bbnet/models/settings/bottleneck_resnet.py", {"face"}),
        ("bbnet/models/slabs.py", {"face"}),  # which the network imports
        ("bbnet/models/big_little.py", {"face"}),
        ("bbnet/models/settings/big_little.py", {"face"}),
        ("bbnet/models/hybrid_detector/neck.py", {"detection"}),
        ("bbnet/models/operators/sampling.py", {"detection"}),
        ("bbnet/models/cifar_resnet.py", set()),
        ("bbnet/models/settings/cifar_resnet.py", set()),
    ],
)
def test_an_edit_of_a_network_retrains_the_tasks_that_import_it(study, clone, file, expected):
    all_three = study("tasks", {"face": FACES, "asr": SPEECH, "detection": SCENES})
    clone()
    before = task_fingerprints(all_three)
    clone(append(file))
    assert changed(before, task_fingerprints(all_three)) == expected


@pytest.mark.parametrize("task", task_names())
def test_a_task_names_all_networks_that_it_imports(task):
    """Otherwise an edit of one would not retrain."""
    code = (
        f"import sys, bbnet.tasks.{task}.task; "
        "print([name.removeprefix('bbnet.models.') for name in sys.modules if name.startswith('bbnet.models.')])"
    )
    names = ast.literal_eval(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=recipe.ROOT))
    imported = {name.removeprefix("settings.").split(".")[0] for name in names}
    settings = importlib.import_module(f"bbnet.tasks.{task}.settings")
    assert imported - {"settings"} == set(getattr(settings, "NETWORKS", ()))


# Data at a path of this machine.


def replace_with_equal_size(path: Path) -> None:
    time = path.stat().st_mtime_ns
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=(time + 10**6, time + 10**6))


EDITS = {
    "a file is replaced": replace_with_equal_size,
    "a file grows and keeps its time": lambda path: (path.write_text("longer than before"), os.utime(path, (9, 9))),
    "a file is removed": Path.unlink,
    "a file is renamed": lambda path: path.rename(path.with_name("other")),
    "a file is added": lambda path: path.with_name("more").write_text(""),
}
NO_EDITS = {
    "nothing": lambda path: None,
    "a file is read": Path.read_text,
    "Finder looks at a folder": lambda path: path.with_name(".DS_Store").write_text("litter"),
    "a file server makes previews": lambda path: (path.parent / "@eaDir" / "preview").mkdir(parents=True),
}
OWN_PACKS = {
    "change": ("levir_cd", "train/label"),
    "asr": ("librispeech", "dev-clean/84/121"),
    "face": ("faces", "a/train"),
}


@pytest.fixture
def own_pack(tmp_path):
    """Returns a folder and one of its files, deep inside; the files have the time 9 s."""

    def make(inner: str) -> tuple[Path, Path]:
        root = tmp_path / "pack"
        file = root / inner / "b"
        file.parent.mkdir(parents=True)
        for path in (file, file.with_name("a"), root / "notes"):
            path.write_text("some text")
            os.utime(path, (9, 9))
        return root, file

    return make


@pytest.mark.parametrize("task", OWN_PACKS)
@pytest.mark.parametrize("edit", EDITS | NO_EDITS)
def test_an_edit_below_the_path_of_a_pack_is_seen_and_a_look_is_none(study, own_pack, task, edit):
    pack, inner = OWN_PACKS[task]
    root, file = own_pack(inner)

    def raw_key() -> str:
        recipes = recipe.Recipes(study("tasks.change.data", {"pack": "levir_cd", "path": str(root)}), Knobs())
        data = recipes.tasks["change"].data.model_copy(update={"pack": pack})
        return recipes.raw_key(task, data)

    before = raw_key()
    (EDITS | NO_EDITS)[edit](file)
    assert (raw_key() != before) == (edit in EDITS)


def test_edited_data_are_fetched_prepared_and_trained_on_again(study, own_pack):
    root, file = own_pack("train/label")
    data = {"pack": "levir_cd", "path": str(root), "complete": False}
    before = fingerprints(study("tasks.change.data", data))
    file.unlink()
    assert changed(before, fingerprints(study("tasks.change.data", data))) == EVERYTHING


def test_a_folder_of_images_is_in_no_table_and_its_edits_are_seen(base, own_pack):
    root, file = own_pack("train/cat")
    training = {"epochs": 4, "warm_up_epochs": 1, "batch_size": 4, "learning_rate": 0.01}
    settings = {"models": {"small": {"architecture": "cifar_resnet"}}, "training": training}

    def recipes() -> recipe.Recipes:
        data = {"pack": "image_folder", "path": str(root)}
        return recipe.Recipes(Study(**base | {"tasks": {"classification": settings | {"data": data}}}), Knobs())

    before = recipes()
    data = before.tasks["classification"].data
    assert before.fetch("classification", data).keys() == {"task", "data", "code", "state"}
    file.unlink()
    assert recipes().prepared_key("classification") != before.prepared_key("classification")


def test_of_very_many_files_the_folders_are_looked_at(own_pack, monkeypatch):
    monkeypatch.setattr(files, "MOST_FILES", 2)
    root, file = own_pack("train/label")
    before = files.state_of(root)
    replace_with_equal_size(file)
    assert files.state_of(root) == before
    file.unlink()
    assert files.state_of(root) != before


def test_linked_folders_are_followed_once_and_dead_links_are_no_error(own_pack, tmp_path):
    root, file = own_pack("train/label")
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(root)
    (root / "dead").symlink_to(tmp_path / "nothing")
    before = files.state_of(root)
    replace_with_equal_size(file)
    assert files.state_of(root) != before


def test_files_are_looked_at_where_their_folder_lists_them(tmp_path, monkeypatch):
    """Which takes a second for a hundred thousand files. Nothing is called by path but for the folders themselves."""
    for folder in range(10):
        (tmp_path / str(folder)).mkdir()
        for number in range(10):
            (tmp_path / str(folder) / f"{number}.png").touch()
    called = []
    for module, name in (
        (os, "stat"),
        (os, "lstat"),
        (os, "listdir"),
        (os, "scandir"),
        (os, "open"),
        (os.path, "exists"),
    ):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, _real=real, _name=name, **more: called.append(_name) or _real(*given, **more)
        )
    files.state_of(tmp_path)
    monkeypatch.undo()
    assert called.count("scandir") == 11  # the folders
    assert len(called) <= 3 * 11  # and one or two looks at each of them


# Diagnostics.


def diagnosed(study: Study) -> dict:
    run, dense = (next(run for run in grid.runs(study) if run.method == name) for name in ("sp_in", "dense"))
    return recipe.Recipes(study, Knobs()).diagnose(run, dense)


def test_diagnostics_change_no_training_and_a_training_changes_its_diagnostics(study, base):
    before = diagnosed(study())
    asked = study(), Study(**base, diagnostics={"steps": 20, "every": 2, "layers": ["encoder*"], "strict": True})
    assert changed(*map(fingerprints, asked)) == set()
    assert diagnosed(asked[1])["settings"] == {"steps": 20, "every": 2, "layers": ["encoder*"]}
    assert {key for key, value in diagnosed(asked[1]).items() if before[key] != value} == {"settings"}
    other = diagnosed(study("methods.sp_in.law", "uniform"))
    assert {key for key, value in other.items() if before[key] != value} == {"run"}


def test_diagnostics_depend_on_their_own_code(study, clone):
    before = diagnosed(study())
    clone(append("bbnet/diagnostics/probe.py"))
    assert {key for key, value in diagnosed(study()).items() if before[key] != value} == {"code"}


# A model that starts from another one.

OBJECTS = {
    "data": {"pack": "rendered_objects", "train": 40, "val": 10, "test": 10},
    "models": {"first": {"architecture": "cifar_resnet", "depth": 8, "width": 8}},
    "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 8, "learning_rate": 0.01},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content["tasks"]["classification"]["training"].update(epochs=5), TRAINING),
        (lambda content: content["tasks"]["classification"]["data"].update(train=50), TRAINING),
        (lambda content: content["methods"]["magnitude"].update(side="out"), {MAGNITUDE}),
        (lambda content: content["tasks"]["change"]["models"]["small"].pop("weights"), TRAINING),
        (lambda content: content["tasks"]["classification"]["models"]["first"].update(width=16), TRAINING),
        (
            lambda content: content["tasks"]["classification"]["models"].update(
                second={"architecture": "cifar_resnet", "depth": 8, "width": 16}
            ),
            set(),
        ),
    ],
    ids=["source's epochs", "source's data", "another method", "no source", "source's width", "another model"],
)
def test_a_model_is_trained_again_if_its_source_is(base, change, expected):
    base["tasks"]["classification"] = json.loads(json.dumps(OBJECTS))
    base["tasks"]["change"]["models"]["small"]["weights"] = {"run": "classification/first"}
    before = fingerprints(Study.model_validate(base))
    change(base)
    assert changed(before, fingerprints(Study.model_validate(base))) == expected


def test_the_recipe_names_the_run_of_the_same_seed_and_its_fingerprint(base):
    base["tasks"]["classification"] = OBJECTS
    base["tasks"]["change"]["models"]["small"]["weights"] = {"run": "classification/first"}
    study = Study.model_validate(base)
    recipes = recipe.Recipes(study, Knobs())
    for seed in base["seeds"]:
        source = grid.dense_run(study, "classification", "first", seed)
        wanted = {"run": source.folder, "fingerprint": recipes.run_fingerprint(source)}
        assert source.folder == f"classification/first/dense/b1.00/s{seed}"
        assert recipes.warm_up("change", "small", seed)["source"] == wanted
        assert recipes.train(grid.dense_run(study, "change", "small", seed))["source"] == wanted
        assert "source" not in recipes.warm_up("classification", "first", seed)
