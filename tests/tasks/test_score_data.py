"""Test data that are prepared for a network trained on other data: its labels, its statistics, its vocabulary."""

import importlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbnet.study.config import read_data
from bbnet.study.discover import has_buckets, settings_type
from bbnet.tasks import task as tasks
from bbnet.tasks.asr.data.tokens import load_tokeniser
from bbnet.tasks.task import Trained

TRAINING = {"epochs": 2, "warm_up_epochs": 1, "batch_size": 4, "learning_rate": 0.01}
RESNET = {"resnet": {"architecture": "cifar_resnet", "depth": 8, "width": 8}}
SPEECH = {"tiny": {"width": 16, "hidden": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "stem_channels": 2}}
STUDIES: dict[str, dict[str, Any]] = {
    "change": {
        "data": {"pack": "aerial_scenes", "size": 64, "train": 4, "val": 1, "test": 3},
        "tile": 32,
        "models": {"tiny": {"widths": [8]}},
    },
    "classification": {"data": {"pack": "rendered_objects", "train": 30, "val": 10, "test": 20}, "models": RESNET},
    "classification in folders": {
        "data": {"pack": "rendered_objects", "size": 24, "train": 30, "val": 10, "test": 20},
        "models": RESNET,
    },
    "face": {
        "data": {
            **{"pack": "rendered_faces", "size": 24, "identities": 3, "train": 12, "val": 1, "test": 2},
            **{"gallery": 3, "probes": 2, "strangers": 2},
        },
        "size": 24,
        "models": {"tiny": {"architecture": "small", "widths": [8], "blocks": [1]}},
    },
    "asr": {
        "data": {
            **{"pack": "spoken_words", "train": 40, "train_speakers": 2, "val": 2, "test": 4, "speakers": 1},
            **{"words": 30, "unseen_words": 3},
        },
        "tokens": {"kind": "unigram", "size": 40},
        "models": SPEECH,
        "training": {"epochs": 2, "warm_up_epochs": 1, "batch_seconds": 8, "learning_rate": 0.01},
    },
    "language": {
        "data": {"pack": "python_source", "train": 60_000, "val": 4_000, "test": 12_000},
        "tokens": {"kind": "unigram", "size": 400},
        "context": 32,
        "models": {"tiny": {"width": 16, "hidden": 16, "layers": 1, "heads": 2}},
    },
    "logic": {
        "data": {"pack": "formulas", "bits": 16, "xor_bits": 2, "dnf_literals": 3, "train": 128, "val": 8, "test": 8},
        "models": {"tiny": {"formula": "xor", "widths": [8, 8]}},
    },
}
# The packs in whose layout the embedded ones are, so that a folder can be given by its path.
LAYOUTS = {
    **{"change": "levir_cd", "classification": "cifar10", "classification in folders": "image_folder"},
    **{"face": "faces", "asr": "librispeech", "language": "text_folder"},
}


class Prepared:
    """The embedded pack of a task, prepared as for training."""

    def __init__(self, which: str, folder: Path, **data: Any) -> None:
        content = {"training": TRAINING} | STUDIES[which]
        content["data"] = content["data"] | data
        self.name, self.layout = which.split(" ")[0], LAYOUTS.get(which)
        self.task = tasks.load(self.name)
        self.settings = settings_type(self.name).model_validate(content).model_dump()
        raw = folder / "raw"
        raw.mkdir(parents=True)
        manifest = self.task.fetch(self.settings["data"], raw)
        self.raw = raw / manifest.get("root", "")
        self.folder, self.index = self._prepare(manifest, self.settings, folder / "prepared")

    def to_score(self, data: dict[str, Any], target: Path) -> tuple[Path, dict[str, Any]]:
        """Prepares test of the pack `data` for networks that were trained on these data."""
        data = read_data(self.name, data, "PACK").model_dump()
        (target / "raw").mkdir(parents=True)
        manifest = self.task.fetch(data, target / "raw", test_only=True)
        trained = Trained(self.folder, self.index)
        return self._prepare(manifest, self.settings | {"data": data}, target / "prepared", trained=trained)

    def at(self, root: Path, target: Path) -> tuple[Path, dict[str, Any]]:
        """The same of the folder `root`, in the layout of the published pack."""
        others = {"image_folder": {}, "text_folder": {"suffixes": [".py"]}}.get(self.layout, {"complete": False})
        return self.to_score({"pack": self.layout, "path": str(root)} | others, target)

    def _prepare(self, manifest, settings, target: Path, **trained: Trained) -> tuple[Path, dict[str, Any]]:
        target.mkdir(parents=True)
        manifest = manifest | {"root": str(target.parent / "raw" / manifest.get("root", ""))}
        # As JSON, as the workflow writes and reads it.
        return target, json.loads(json.dumps(self.task.prepare(manifest, settings, target, **trained)))

    def evaluated(self, folder: Path, index: dict[str, Any]) -> tuple[dict, dict]:
        """Items and predictions of a network of random weights, with the buckets of the training data."""
        torch.manual_seed(0)
        model_settings = settings_type(self.name).model_validate(self.settings).models
        model = self.task.build_model(next(iter(model_settings.values())), self.index, torch.device("cpu")).eval()
        buckets = {}
        if has_buckets(self.name):
            module = importlib.import_module(f"bbnet.tasks.{self.name}.buckets")
            buckets = {"buckets": module.make_buckets(self.index)["types"]}
        test = self.task.open_split(folder, index | buckets, "test")
        return self.task.evaluate(model, test, torch.device("cpu"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Callable[[str], Prepared]:
    made: dict[str, Prepared] = {}

    def make(which: str) -> Prepared:
        if which not in made:
            made[which] = Prepared(which, tmp_path_factory.mktemp("data"))
        return made[which]

    return make


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        all(map(np.array_equal, one[name], other[name])) and len(one[name]) == len(other[name]) for name in one
    )


NEEDED_BY_TRAINING_ALONE = {
    **{
        "change": ("train", "val"),
        "classification in folders": ("train", "val"),
        "asr": ("train-clean-100", "dev-clean"),
    },
    **{"classification": ("data_batch_1", "data_batch_3"), "face": (), "language": ("train", "val")},
}


@pytest.mark.parametrize(
    "which", [pytest.param(which, marks=pytest.mark.thorough) if which == "asr" else which for which in LAYOUTS]
)
def test_a_pack_without_what_training_needs_scores_alike_to_the_bit(prepared, tmp_path, which):
    trained = prepared(which)
    pack = tmp_path / "pack"
    shutil.copytree(trained.raw, pack)
    for name in NEEDED_BY_TRAINING_ALONE[which]:
        path = pack / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder, index = trained.at(pack, tmp_path)
    assert not {"train", "val"} & {path.name.split(".")[0].split("_")[0] for path in folder.glob("*.npy")}
    assert index.get("mean") == trained.index.get("mean")
    for of_training, of_scoring in zip(
        trained.evaluated(trained.folder, trained.index), trained.evaluated(folder, index), strict=True
    ):
        assert equal(of_training, of_scoring)


def test_the_formulas_are_those_that_were_learned(prepared, tmp_path):
    trained = prepared("logic")
    folder, index = trained.to_score(trained.settings["data"], tmp_path / "same")
    assert equal(trained.evaluated(trained.folder, trained.index)[0], trained.evaluated(folder, index)[0])
    with pytest.raises(ValueError, match="its formulas are not those that the run has learned"):
        trained.to_score(trained.settings["data"] | {"seed": 1}, tmp_path / "other")


# Classes.


def test_labels_follow_the_classes_of_the_run_whatever_their_order(prepared, tmp_path):
    trained = prepared("classification")
    pack = tmp_path / "pack"
    shutil.copytree(trained.raw, pack)
    classes = trained.index["classes"]
    order = np.random.default_rng(0).permutation(len(classes)).tolist()
    edit_pickle(pack / "batches.meta", label_names=[classes[old] for old in order])
    place = {old: new for new, old in enumerate(order)}
    old_labels = trained.index["splits"]["test"]["labels"]
    edit_pickle(pack / "test_batch", labels=[place[label] for label in old_labels])
    _, index = trained.at(pack, tmp_path)
    assert index["classes"] == classes
    assert index["splits"]["test"]["labels"] == old_labels


def edit_pickle(path: Path, **entries: Any) -> None:
    content = pickle.loads(path.read_bytes(), encoding="latin1")
    path.write_bytes(pickle.dumps(content | entries, protocol=2))


@pytest.mark.parametrize("split", ["test", "val"])
def test_other_classes_are_named(prepared, tmp_path, split):
    trained = prepared("classification in folders")
    pack = tmp_path / "pack"
    shutil.copytree(trained.raw / "test", pack / split)  # without test, val is the test set
    (pack / split / "chair").rename(pack / split / "sofa")
    shutil.rmtree(pack / split / "tree")
    with pytest.raises(ValueError) as refused:
        trained.at(pack, tmp_path)
    assert str(refused.value) == (
        f"{pack / split}: its classes must be those that the run was trained on; no class of the run: sofa; "
        "missing: chair, tree"
    )


# Faces.


def test_identities_that_the_run_does_not_know_are_only_verified(prepared, tmp_path, caplog):
    trained = prepared("face")
    pack = tmp_path / "pack"
    shutil.copytree(trained.raw, pack)
    (home,) = pack.glob("*classification")
    for folder in ("train", "dev", "test"):
        (home / folder / trained.index["identities"][0]).rename(home / folder / "somebody")
    with caplog.at_level("WARNING"):
        folder, index = trained.at(pack, tmp_path)
    assert (
        "1 of the 3 identities of test are not among those that the run was trained on, such as somebody" in caplog.text
    )
    assert index["identities"] == trained.index["identities"]
    items, _ = trained.evaluated(folder, index)
    own, _ = trained.evaluated(trained.folder, trained.index)
    assert items["probe"].all()
    assert equal(items, {name: values[own["probe"] == 1] for name, values in own.items()})
    metrics = trained.task.metrics(items)
    assert np.isnan(metrics["top1"])
    assert metrics["auroc"] == trained.task.metrics(own)["auroc"]


# Speech.


def test_speech_has_the_vocabulary_and_the_statistics_of_the_run(prepared, tmp_path):
    trained, other = prepared("asr"), Prepared("asr", tmp_path / "other", seed=3, words=20)
    folder, index = trained.at(other.raw, tmp_path / "scored")
    assert index["mean"] == trained.index["mean"] != other.index["mean"]
    assert (folder / "tokeniser.model").read_bytes() == (trained.folder / "tokeniser.model").read_bytes()
    texts = other.index["splits"]["test"]["texts"]
    assert index["splits"]["test"]["texts"] == texts
    tokeniser = load_tokeniser(trained.folder, trained.index)
    assert np.load(folder / "tokens.npy").tolist() == [token for text in texts for token in tokeniser.encode(text)]
    before = sum(len(other.index["splits"][split]["utterances"]) for split in ("train", "val"))
    theirs = np.load(other.folder / "features.npy")[np.load(other.folder / "starts.npy")[before] :].astype(np.float64)
    raw = theirs * np.array(other.index["sd"]) + np.array(other.index["mean"])
    expected = (raw - np.array(trained.index["mean"])) / np.array(trained.index["sd"])
    np.testing.assert_allclose(np.load(folder / "features.npy"), expected, atol=1e-5)
