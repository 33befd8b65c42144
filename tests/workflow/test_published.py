"""Small packs in the formats of the published ones, served on loopback: from download to scores."""

import hashlib
import json
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from bbnet.tasks import task as tasks
from tests.tasks.detection.voc import use_names_of_voc
from tests.workflow.test_study import FACES, SPEECH

# The archives are written once, by one worker.
pytestmark = pytest.mark.xdist_group("published")

PARTS = ("train-clean-100", "dev-clean", "test-clean", "test-other")
DETECTOR = {
    "stem": [[8, 2], [8, 2]],
    "stages": [{"width": 16, "blocks": ["depthwise"]}],
    **{"levels": 1, "width": 16, "decoder_layers": 1, "heads": 2, "points": 2, "hidden": 16, "queries": 8},
}
STUDY = {
    "seeds": [0],
    "budgets": [0.5],
    "methods": {"dense": {"algorithm": "dense"}, "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"}},
    "tasks": {
        "asr": SPEECH | {"data": {"pack": "librispeech"}},
        "change": {
            "data": {"pack": "levir_cd"},
            "tile": 32,
            "models": {"tiny": {"widths": [8, 8]}},
            "training": {"epochs": 3, "warm_up_epochs": 1, "batch_size": 2, "learning_rate": 0.003},
        },
        "classification": {
            "data": {"pack": "cifar10"},
            "models": {"tiny": {"architecture": "cifar_resnet", "depth": 8, "width": 8, "stem_stride": 2}},
            "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 16, "learning_rate": 0.01},
        },
        "detection": {
            "data": {"pack": "voc", "dev_share": 0.2},
            "size": 32,
            "models": {"tiny": {"sizes": DETECTOR}},
            "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 4, "learning_rate": 0.003},
        },
        "face": FACES | {"data": {"pack": "faces"}},
    },
}
SCENES = {"train": 16, "val": 4, "test": 6}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Archives as they are published, the table that describes them, and the server's address."""
    home = tmp_path_factory.mktemp("published")
    table = yaml.safe_load((Path(__file__).parents[2] / "bbnet" / "data" / "packs.yaml").read_text())
    folder = home / "served"
    folder.mkdir()
    _speech(home / "speech", folder, table["librispeech"])
    _scenes(home / "scenes", folder, table["levir_cd"])
    _faces(home / "faces", folder, table["faces"])
    _objects(home / "objects", folder, table["cifar10"])
    _photographs(home / "photographs", folder, table["voc"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for pack in table.values():
        for name, file in pack["files"].items():
            file["urls"] = [f"{address}/missing/{{file}}", f"{address}/{{file}}"]
            if (folder / name).exists():
                _describe(file, folder / name)
    yield folder, table
    server.shutdown()
    server.server_close()


def _describe(file: dict, archive: Path) -> None:
    content = archive.read_bytes()
    file["size"] = len(content)
    for algorithm in ("md5", "sha256"):
        if algorithm in file:
            file[algorithm] = hashlib.new(algorithm, content).hexdigest()


def _speech(raw: Path, folder: Path, pack: dict) -> None:
    manifest = tasks.load("asr").fetch({"pack": "spoken_words", "train": 20, "val": 4, "test": 4}, raw)
    (raw / "README.TXT").write_text("LibriSpeech")
    for part in PARTS:
        with tarfile.open(folder / f"{part}.tar.gz", "w:gz") as archive:
            archive.add(raw / "README.TXT", "LibriSpeech/README.TXT")
            archive.add(raw / part, f"LibriSpeech/{part}")
    pack["counts"] |= manifest["audio_files"]


def _scenes(raw: Path, folder: Path, pack: dict) -> None:
    pairs = {"train": 8, "val": 3, "test": 4}
    manifest = tasks.load("change").fetch({"pack": "aerial_scenes", "size": 32, **pairs}, raw)
    for split in pairs:
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for number, names in enumerate(manifest["splits"][split], start=1):
                for part, name in zip(("A", "B", "label"), names, strict=True):
                    archive.write(raw / split / part / name, f"{part}/{split}_{number}.png")
    pack["counts"] = pairs


def _faces(raw: Path, folder: Path, pack: dict) -> None:
    tasks.load("face").fetch(FACES["data"], raw)
    names = {"classification": "11-785-s24-hw2p2-classification", "verification": "11-785-s24-hw2p2-verification"}
    with zipfile.ZipFile(folder / "CV-classification.zip", "w") as archive:
        for path in sorted(path for path in raw.rglob("*") if path.is_file()):
            half, *rest = path.relative_to(raw).parts
            archive.write(path, "/".join([names[half], *rest]))

    def count(place: str) -> int:
        return sum(1 for _ in raw.glob(f"{place}/*.jpg")) + sum(1 for _ in raw.glob(f"{place}/*.png"))

    pack["counts"] = {
        "identities": FACES["data"]["identities"],
        "train": count("classification/train/*"),
        "known": count("verification/known/*"),
        "unknown_dev": count("verification/unknown_dev"),
        "unknown_test": count("verification/unknown_test"),
    }


def _objects(raw: Path, folder: Path, pack: dict) -> None:
    counts = {"train": 90, "val": 10, "test": 20}
    tasks.load("classification").fetch({"pack": "rendered_objects"} | counts, raw)
    (raw / "readme.html").write_text("CIFAR-10")
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(raw, "cifar-10-batches-py")
    pack["counts"] = {"classes": 10, "train": 100, "test": 20}


def _photographs(raw: Path, folder: Path, pack: dict) -> None:
    """The three archives of VOC, each with the folder VOCdevkit and what other tasks read there."""
    tasks.load("detection").fetch({"pack": "rendered_scenes", "size": 32} | SCENES, raw)
    home = raw / "VOCdevkit" / "VOC2007"
    use_names_of_voc(raw / "VOCdevkit")
    listed = {name: (home / f"ImageSets/Main/{name}.txt").read_text().split() for name in ("trainval", "test")}
    parts = {
        "VOCtrainval_06-Nov-2007.tar": ("VOC2007", "trainval", listed["trainval"][:8]),
        "VOCtest_06-Nov-2007.tar": ("VOC2007", "test", listed["test"]),
        "VOCtrainval_11-May-2012.tar": ("VOC2012", "trainval", listed["trainval"][8:]),
    }
    for archive, (year, name, images) in parts.items():
        (raw / "list").write_text("".join(f"{image}\n" for image in images))
        with tarfile.open(folder / archive, "w") as tar:
            tar.add(raw / "list", f"VOCdevkit/{year}/ImageSets/Main/{name}.txt")
            tar.add(raw / "list", f"VOCdevkit/{year}/ImageSets/Main/person_{name}.txt")
            tar.add(raw / "list", f"VOCdevkit/{year}/SegmentationClass/note.txt")
            for image in images:
                for part, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
                    tar.add(home / part / f"{image}.{suffix}", f"VOCdevkit/{year}/{part}/{image}.{suffix}")
    pack["counts"] = {"trainval2007": 8, "trainval2012": 12, "test2007": 6}


@pytest.fixture(scope="module")
def downloaded(published, empty_project, tmp_path_factory):
    """A project in which `snakemake data` fetched and prepared the served packs."""
    _, table = published
    project = empty_project.copy(tmp_path_factory.mktemp("downloaded"))
    (project.root / "bbnet" / "data" / "packs.yaml").write_text(yaml.safe_dump(table))
    project.write_study(STUDY, "published")
    result = project.snakemake("data", "--config", "study=published")
    assert result.returncode == 0, result.stdout[-5000:]
    return project


def test_data_are_fetched_and_prepared_and_nothing_more(downloaded):
    data = downloaded.root / "data"
    assert {path.name.split("-")[0] for path in (data / "prepared").glob("*.json")} == set(STUDY["tasks"])
    assert not [path for path in (data / "partial").iterdir() if not path.name.startswith(".")]
    assert not list((downloaded.root / "results" / "published").glob("*/runs"))
    for manifest in (data / "raw").glob("*.json"):
        content = json.loads(manifest.read_text())
        assert content["files"], content
        assert not Path(content["root"]).is_absolute()


def test_what_was_downloaded_is_what_is_served(published, downloaded):
    folder, table = published
    kept = downloaded.root / "data" / "downloads"
    visible = {path.name for path in kept.iterdir() if not path.name.startswith(".")}
    assert visible == {path.name for path in folder.iterdir()} | {"CV-classification.zip.sha256"}
    for archive in folder.iterdir():
        assert (kept / archive.name).read_bytes() == archive.read_bytes()


def test_the_first_download_without_a_checksum_is_recorded_and_its_licence_named(published, downloaded):
    folder, _ = published
    digest = hashlib.sha256((folder / "CV-classification.zip").read_bytes()).hexdigest()
    record = downloaded.root / "data" / "downloads" / "CV-classification.zip.sha256"
    assert record.read_text() == f"{digest}  CV-classification.zip\n"
    (log,) = (downloaded.root / "results" / "published" / "logs").glob("fetch-faces-*.log")
    assert "Licence: unclear" in log.read_text()
    assert "its terms of use are unclear" in log.read_text()
    assert digest in log.read_text()


def test_dev_of_voc_is_evenly_spaced_in_both_years(downloaded):
    (index,) = (downloaded.root / "data" / "prepared").glob("detection-*.json")
    content = json.loads(index.read_text())
    files = {split: of_split["files"] for split, of_split in content["splits"].items()}
    years = {split: [file.split("/")[0] for file in of_split] for split, of_split in files.items()}
    assert {split: len(of_split) for split, of_split in files.items()} == {"train": 16, "val": 4, "test": 6}
    assert (years["val"].count("VOC2007"), years["val"].count("VOC2012"), set(years["test"])) == (1, 3, {"VOC2007"})
    assert content["skipped"] == {}
    assert len(content["classes"]) == 20


def test_other_addresses_fetch_nothing_anew(downloaded, published):
    _, table = published
    path = downloaded.root / "bbnet" / "data" / "packs.yaml"
    before = path.read_text()
    moved = yaml.safe_load(before)
    for pack in moved.values():
        for file in pack["files"].values():
            file["urls"] = ["https://elsewhere.invalid/{file}"]
    path.write_text(yaml.safe_dump(moved))
    assert "fetch" not in downloaded.planned("--config", "study=published")
    path.write_text(before)


@pytest.mark.thorough
def test_a_study_on_them_runs_to_its_scores(downloaded, tmp_path):
    project = downloaded.copy(tmp_path / "project")
    result = project.snakemake("--config", "study=published")
    assert result.returncode == 0, result.stdout[-5000:]
    runs = pd.read_csv(project.root / "results" / "published" / "summary" / "grid.csv")
    assert (runs["status"] == "done").all()
    assert set(runs["task"]) == set(STUDY["tasks"])
    assert project.planned("--config", "study=published") == {}


def test_a_pack_that_is_not_what_the_table_says_is_refused_by_name(downloaded, tmp_path):
    project = downloaded.copy(tmp_path / "project")
    path = project.root / "bbnet" / "data" / "packs.yaml"
    table = yaml.safe_load(path.read_text())
    table["librispeech"]["counts"]["dev-clean"] += 1
    path.write_text(yaml.safe_dump(table))
    result = project.snakemake("data", "--config", "study=published")
    assert result.returncode != 0
    assert "dev-clean: has 4 of the 5 utterances of the published pack" in result.stdout
    partial = project.root / "data" / "partial"
    assert not [path for path in partial.iterdir() if not path.name.startswith(".")]


@pytest.mark.slow
def test_weights_of_the_large_model_come_by_the_same_way(downloaded, published, tmp_path):
    from torchvision.models import resnet101

    folder, table = published
    project = downloaded.copy(tmp_path / "project")
    torch.save(resnet101().state_dict(), tmp_path / "weights")
    digits = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()[:8]
    name = f"resnet101-{digits}.pth"
    (tmp_path / "weights").rename(folder / name)
    address = table["faces"]["files"]["CV-classification.zip"]["urls"][1]
    table["imagenet_resnet101"]["files"] = {name: {"urls": [address], "sha256": digits}}
    (project.root / "bbnet" / "data" / "packs.yaml").write_text(yaml.safe_dump(table))
    face = STUDY["tasks"]["face"]
    model = {"architecture": "resnet101", "weights": {"pack": "imagenet_resnet101"}}
    training = {"epochs": 6, "warm_up_epochs": 1, "batch_size": 8, "learning_rate": 0.001}
    project.write_study(STUDY | {"tasks": {"face": face | {"models": {"large": model}, "training": training}}}, "large")
    result = project.snakemake("--config", "study=large")
    (folder / name).unlink()
    assert result.returncode == 0, result.stdout[-5000:]
    assert (pd.read_csv(project.root / "results" / "large" / "summary" / "grid.csv")["status"] == "done").all()
