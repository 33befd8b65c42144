"""A pack with all harmless litter and every lossless variety that is read gives the same bytes as the clean pack."""

import itertools
import json
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import ExifTags, Image

from bbnet.tasks import task as tasks
from tests.tasks.detection.voc import use_names_of_voc
from tests.workflow.conftest import build_project
from tests.workflow.test_published import STUDY
from tests.workflow.test_study import FACES, SPEECH

TASKS = {
    "asr": (SPEECH["data"], "librispeech"),
    "change": ({"pack": "aerial_scenes", "size": 32, "train": 12, "val": 8, "test": 8}, "levir_cd"),
    "classification": ({"pack": "rendered_objects", "size": 24, "train": 40, "val": 10, "test": 10}, "image_folder"),
    "detection": ({"pack": "rendered_scenes", "size": 32, "train": 20, "val": 4, "test": 12}, "voc"),
    "face": (FACES["data"] | {"train": 40}, "faces"),
}
SETTINGS = {
    "asr": {"tokens": {"kind": "characters"}, "faults": {}},
    "change": {"tile": 32},
    "classification": {"data": {}, "size": 24, "input_size": None, "resize": "crop", "faults": {}},
    "detection": {"data": {"pack": "voc", "dev_share": 0.2}, "size": 32, "faults": {}},
    "face": {"size": 24, "resize": "crop", "faults": {}},
}
CLASS_WITH_ACCENT = "caf\u00e9"
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(range(256))


# Varieties. Each is written in place of a clean file.

PICTURES = (
    (".png", "PNG", {}),
    (".PNG", "PNG", {}),
    (".Tif", "TIFF", {"compression": "tiff_lzw"}),
    (".TIFF", "TIFF", {}),
    (".webp", "WEBP", {"lossless": True}),
    (".BMP", "BMP", {}),
    (".ppm", "PPM", {}),
    (".pnm", "PPM", {}),
    (".jpg", "PNG", {}),  # of another format than its suffix says
    (".JPEG", "WEBP", {"lossless": True}),
    ("", "PNG", {}),
)
LABELS = (*PICTURES, (".pgm", "PPM", {}))
MODES = {"RGB": ("RGB", "RGBA"), "L": ("L", "1", "P", "RGB", "RGBA")}
WITH_EXIF = ("PNG", "TIFF", "WEBP")
PLAIN = {"WEBP": ("RGB", "RGBA"), "PPM": ("RGB", "L", "1"), "BMP": ("RGB", "L", "1", "P")}  # modes without loss

SOUNDS = (
    (".FLAC", "FLAC", "PCM_16"),
    (".flac", "FLAC", "PCM_24"),
    (".wav", "WAV", "PCM_16"),
    (".WAV", "WAV", "FLOAT"),
    (".aiff", "AIFF", "PCM_16"),
    (".AU", "AU", "PCM_16"),
    (".caf", "CAF", "PCM_16"),
    (".w64", "W64", "PCM_16"),
    (".flac", "WAV", "PCM_16"),  # of another format than its suffix says
)


def mess_up_images(root: Path, folder: str, varieties: tuple, number: Iterator[int]) -> None:
    """Writes the images of a folder in all varieties and modes in turn, without a change of their pixels."""
    for path in sorted(root.glob(folder)):
        with Image.open(path) as file:
            image = file.convert("L" if varieties is LABELS else "RGB")
        path.unlink()
        turn = next(number)
        suffix, kind, options = varieties[turn % len(varieties)]
        modes = [mode for mode in MODES[image.mode] if mode in PLAIN.get(kind, MODES[image.mode])]
        image = image.convert(modes[turn // len(varieties) % len(modes)])
        if image.mode == "P" and turn % 2:  # a label of coloured indices instead of black and white
            image = image.convert("L").point(bool).convert("P")
            image.putpalette([0, 0, 0, 128, 0, 0])
        if kind in WITH_EXIF and turn % 3:
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6
            image, options = image.transpose(Image.Transpose.ROTATE_90), options | {"exif": exif}
        image.save(path.with_suffix(suffix), kind, **options)


def mess_up_scenes(root: Path) -> None:
    for part, varieties in (("A", PICTURES), ("B", PICTURES[::-1]), ("label", LABELS)):
        mess_up_images(root, f"*/{part}/*.png", varieties, itertools.count())


def mess_up_faces(root: Path) -> None:
    """Probes keep a suffix, without which the list of labels would not know their names."""
    number = itertools.count()
    mess_up_images(root, "classification/*/*/*.jpg", PICTURES, number)
    mess_up_images(root, "verification/known/*/*.jpg", PICTURES, number)
    mess_up_images(root, "verification/unknown_*/*.jpg", PICTURES[:-1], number)
    for path, separator in zip(sorted((root / "verification").glob("*.csv")), ";\t", strict=True):
        path.write_text(path.read_text().replace(",", separator))


def mess_up_speech(root: Path) -> None:
    for number, path in enumerate(sorted(root.glob("*/*/*/*.flac"))):
        samples, rate = soundfile.read(path)
        path.unlink()
        suffix, kind, subtype = SOUNDS[number % len(SOUNDS)]
        channels = np.stack([samples] * (1 + number % 2), axis=1)
        soundfile.write(path.with_suffix(suffix), channels, rate, format=kind, subtype=subtype)
    for number, path in enumerate(sorted(root.glob("*/*/*/*.trans.txt"))):
        text = path.read_text().replace("'", "\u2019\u02bc\uff07"[number % 3])
        path.unlink()
        path = path.with_name(path.name.upper() if number % 2 else path.name)
        path.write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig" if number % 2 else "utf-8", newline="")


def mess_up_objects(root: Path) -> None:
    mess_up_images(root, "*/*/*.png", PICTURES, itertools.count())
    for split, form in (("train", "NFD"), ("val", "NFC"), ("test", "NFD")):
        (root / split / CLASS_WITH_ACCENT).rename(root / split / unicodedata.normalize(form, CLASS_WITH_ACCENT))


def mess_up_photographs(root: Path) -> None:
    home = root / "VOC2007"
    mess_up_images(home, "JPEGImages/*.jpg", PICTURES, itertools.count())
    for path in sorted((home / "Annotations").glob("*.xml"))[::2]:
        path.rename(path.with_suffix(".XML"))
    for path in (home / "ImageSets" / "Main").iterdir():
        path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig", newline="")


MESS_UP: dict[str, Callable[[Path], None]] = {
    "asr": mess_up_speech,
    "change": mess_up_scenes,
    "classification": mess_up_objects,
    "detection": mess_up_photographs,
    "face": mess_up_faces,
}


def litter(folder: Path) -> None:
    """Puts litter into a folder, with contents that would count if they were read."""
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(APPLE_DOUBLE)
        for home in ("@eaDir", "__MACOSX/inner", ".cache"):
            (folder / home).mkdir(parents=True, exist_ok=True)
            if path.is_file():
                shutil.copy(path, folder / home / path.name)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r"):
        (folder / name).write_bytes(APPLE_DOUBLE)


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> Path:
    """The folders `{task}/clean` and `{task}/messy`, of the same content."""
    home = tmp_path_factory.mktemp("packs")
    for task, (data, _) in TASKS.items():
        tasks.load(task).fetch(data, home / task / "clean")
        for path in (home / task / "clean").rglob("*.trans.txt"):
            path.write_text("".join(f"{line} DON'T\n" for line in path.read_text().splitlines()))
        for path in (home / task / "clean").glob("*/cup"):
            path.rename(path.with_name(CLASS_WITH_ACCENT))
        if task == "detection":
            (home / task / "clean" / "VOCdevkit" / "VOC2007").rename(home / task / "clean" / "VOC2007")
            (home / task / "clean" / "VOCdevkit").rmdir()
            use_names_of_voc(home / task / "clean")
        shutil.copytree(home / task / "clean", home / task / "messy")
        MESS_UP[task](home / task / "messy")
        for folder in [path for path in (home / task / "messy", *(home / task / "messy").rglob("*")) if path.is_dir()]:
            litter(folder)
    return home


def own(task: str, path: Path) -> dict[str, Any]:
    """The settings of the data at `path`; a folder of images is never a published pack."""
    data = {"pack": TASKS[task][1], "path": str(path)}
    return data if task == "classification" else data | {"complete": False}


def arrays(prepared: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in prepared.iterdir()}


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Fetches and prepares a pack as the workflow does, its manifest having been JSON; returns arrays and index."""

    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(task: str, path: Path, name: str) -> tuple[dict[str, bytes], dict]:
        raw, target = tmp_path / f"raw-{name}", tmp_path / f"prepared-{name}"
        raw.mkdir()
        target.mkdir()
        manifest = tasks.load(task).fetch(own(task, path), raw)
        root = raw / manifest["root"]  # which is absolute if the pack is read in place
        index = tasks.load(task).prepare(json.loads(json.dumps(manifest | {"root": str(root)})), SETTINGS[task], target)
        return arrays(target), index

    return run


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", ["folder", "outer folder", "zip", "gztar"])
def test_a_messy_pack_gives_the_bytes_of_the_clean_one(packs, prepare, tmp_path, task, form, caplog):
    expected, clean = prepare(task, packs / task / "clean", "clean")
    path = packs / task / "messy"
    if form == "outer folder":
        (tmp_path / "outer").mkdir()
        (tmp_path / "outer" / "pack").symlink_to(path)
        path = tmp_path / "outer"
        litter(path)
    elif form != "folder":
        path = Path(shutil.make_archive(str(tmp_path / "pack"), form, packs / task, "messy"))
    found, index = prepare(task, path, "messy")
    assert found == expected
    assert (index["mean"], index["sd"]) == (clean["mean"], clean["sd"])
    assert index.get("skipped", {}) == clean.get("skipped", {})
    assert bool(index.get("converted")) == (task != "asr")
    assert "not read" not in caplog.text


@pytest.mark.thorough
def test_the_workflow_prepares_the_same_bytes_of_messy_packs(packs, tmp_path):
    project = build_project(tmp_path / "project")
    found = {}
    for name in ("clean", "messy"):
        sections = {
            task: section | {"data": own(task, packs / task / name)} for task, section in STUDY["tasks"].items()
        }
        project.write_study(STUDY | {"tasks": sections}, name)
        result = project.snakemake("data", "--config", f"study={name}", f"data_dir={name}")
        assert result.returncode == 0, result.stdout[-5000:]
        prepared = [path for path in (project.root / name / "prepared").iterdir() if path.is_dir()]
        found[name] = {path.name.partition("-")[0]: arrays(path) for path in prepared}
    assert set(found["clean"]) == set(TASKS)
    assert found["messy"] == found["clean"]
