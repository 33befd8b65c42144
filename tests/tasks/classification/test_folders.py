"""Packs with a folder per class: classes, splits, faults, and going on after an interruption."""

import os
import re
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from bbnet.data import image_folders
from bbnet.tasks.classification.data.batches import Images
from bbnet.tasks.classification.data_settings import ImageFolder


@pytest.fixture
def prepared(images, made):
    def run(root=images, **faults):
        return made({"pack": "image_folder", "path": str(root)}, size=8, **faults)

    return run


def refused(prepared, **faults) -> str:
    with pytest.raises(ValueError) as error:
        prepared(**faults)
    assert "\n" not in str(error.value)
    return str(error.value)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def test_classes_are_the_folders_of_train_by_name_and_images_come_in_their_order(images, prepared, tmp_path):
    arrays, index = prepared()
    assert index["classes"] == ["airplane", "frog", "truck"]
    assert {split: part["labels"] for split, part in index["splits"].items()} == {
        "train": [0, 0, 1, 1, 1, 2, 2, 2, 2],
        "val": [0, 0, 1, 2],
        "test": [0, 1, 2, 2],
    }
    for split, part in index["splits"].items():
        assert (arrays[split] == np.stack([pixels(images / file) for file in part["files"]])).all()
        opened = Images(tmp_path / "prepared", index, split)
        assert opened.files == part["files"] and opened.labels.tolist() == part["labels"]
        assert (opened.images.numpy() == arrays[split]).all()
    np.testing.assert_allclose(index["mean"], arrays["train"].astype(float).mean((0, 2, 3)), rtol=1e-12)
    assert index["size"] == 8 and index["skipped"] == {}
    assert {path.suffix for path in (tmp_path / "prepared").iterdir()} == {".npy"}
    assert ImageFolder(pack="image_folder", path=str(images)).class_count(None) == 3


@pytest.mark.parametrize("unlabelled", [False, True])
def test_without_test_val_is_tested_and_dev_is_the_last_part_of_each_class(images, prepared, unlabelled, caplog):
    arrays, _ = prepared()
    shutil.rmtree(images / "test")
    if unlabelled:  # as ImageNet's
        (images / "test").mkdir()
        shutil.copy(images / "val" / "truck" / "a.png", images / "test" / "x.png")
    divided, index = prepared()
    assert (divided["test"] == arrays["val"]).all()
    assert index["splits"]["val"]["files"] == ["train/airplane/b.png", "train/frog/c.png", "train/truck/d.png"]
    assert (np.concatenate([divided["train"], divided["val"]])[[0, 6, 1, 2, 7, 3, 4, 5, 8]] == arrays["train"]).all()
    assert index["skipped"] == ({"not_read": ["test/x.png"]} if unlabelled else {})
    assert ("test: files that are not read: 1: x.png" in caplog.text) == unlabelled


def test_a_class_that_train_lacks_is_named_and_one_that_val_lacks_is_warned_of(images, prepared, caplog):
    shutil.rmtree(images / "val" / "frog")
    _, index = prepared()
    assert "val has no images of 1 classes: frog" in caplog.text
    (images / "val" / "truck").rename(images / "val" / "lorry")
    assert refused(prepared) == f"{images / 'val' / 'lorry'}: no such class in {images / 'train'}"


def test_folders_that_are_no_pack_are_refused_with_what_is_needed(images, prepared):
    (images / "val").rename(images / "validation")
    assert refused(prepared).endswith("val: no such folder; needed are train/{class}/* and val/{class}/*")
    (images / "val").mkdir()
    assert "val: has no classes; allowed are {class}/* of PNG" in refused(prepared)
    shutil.copy(images / "train" / "truck" / "a.png", images / "val" / "x.png")
    assert refused(prepared) == f"{images / 'val'}: has images but no folders of classes"
    (images / "val").rename(images / "other")
    (images / "validation").rename(images / "val")
    shutil.copy(images / "other" / "x.png", images / "train" / "x.png")
    assert refused(prepared) == f"{images / 'train' / 'x.png'}: is not in the folder of a class"
    with pytest.raises(ValueError, match="nowhere: there is no such folder or archive"):
        prepared(images / "nowhere")


def test_faults_are_refused_or_skipped_and_named(images, prepared):
    spoiled, empty = images / "train" / "truck" / "b.png", images / "val" / "frog"
    spoiled.write_bytes(spoiled.read_bytes()[:60])
    assert re.match(rf"{spoiled}: .*\(faults.undecodable: skip omits such files\)", refused(prepared))
    _, index = prepared(undecodable="skip")
    assert index["splits"]["train"]["labels"] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [told.split(": ")[0] for told in index["skipped"]["undecodable"]] == ["train/truck/b.png"]
    (images / "notes.txt").write_text("of mine", encoding="utf-8")
    (images / "extra").mkdir()
    shutil.copy(images / "train" / "truck" / "a.png", images / "extra" / "x.png")
    (images / "val").rename(images / "Val")
    assert prepared(undecodable="skip")[1]["skipped"]["not_read"] == ["notes.txt", "extra/x.png"]
    (images / "Val").rename(images / "val")
    (empty / "a.png").unlink()
    message = f"{empty}: a class's folder without images (faults.empty_class: skip omits such files)"
    assert refused(prepared, undecodable="skip") == message
    _, index = prepared(undecodable="skip", empty_class="skip")
    assert index["skipped"]["empty_class"] == ["val/frog"]
    for path in (images / "train" / "airplane").iterdir():
        path.write_bytes(b"")
    assert "no training image of class airplane is left" in refused(prepared, undecodable="skip", empty_class="skip")


def test_names_of_classes_are_compared_by_unicode_normal_form(images, prepared):
    for split, form in (("train", "NFD"), ("val", "NFC"), ("test", "NFD")):
        (images / split / "frog").rename(images / split / unicodedata.normalize(form, "grünfrosch"))
    _, index = prepared()
    assert index["classes"] == ["airplane", "grünfrosch", "truck"]
    (images / "train" / unicodedata.normalize("NFC", "grünfrosch")).mkdir()
    assert "another folder has the same name, with its accents stored in another way" in refused(prepared)


def test_an_archive_is_read_as_its_folder(images, prepared, tmp_path):
    arrays, index = prepared()
    archive = shutil.make_archive(str(tmp_path / "pack"), "gztar", tmp_path, "images")
    unpacked, same = prepared(archive)
    assert same == index and all((unpacked[split] == arrays[split]).all() for split in arrays)
    assert ImageFolder(pack="image_folder", path=archive).class_count(None) == 1000


# Going on after an interruption.


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, two at a time; `stop_at` interrupts at one of them."""
    monkeypatch.setattr(image_folders, "IMAGES_AT_ONCE", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    original = image_folders.decode

    class Decoded(list):
        stop_at = None

        def __call__(self, path, mode):
            if path.name == self.stop_at:
                raise KeyboardInterrupt
            self.append("/".join(path.parts[-3:]))
            return original(path, mode)

    names = Decoded()
    monkeypatch.setattr(image_folders, "decode", names)
    return names


def test_an_interrupted_call_is_gone_on_from_and_gives_the_same(images, prepared, decoded, tmp_path):
    spoiled = images / "train" / "airplane" / "b.png"
    spoiled.write_bytes(b"spoiled")
    arrays, index = prepared(undecodable="skip")
    everything = list(decoded)
    shutil.rmtree(tmp_path / "prepared")

    (images / "train" / "truck" / "d.png").rename(images / "train" / "truck" / "stop.png")
    decoded.stop_at = "stop.png"
    with pytest.raises(KeyboardInterrupt):
        prepared(undecodable="skip")
    (images / "train" / "truck" / "stop.png").rename(images / "train" / "truck" / "d.png")
    decoded.stop_at = None
    decoded.clear()
    again, same = prepared(undecodable="skip")
    assert same == index and all((again[split] == arrays[split]).all() for split in arrays)
    assert decoded == everything[8:]  # the ninth image of train was alone in its group
    assert {path.suffix for path in (tmp_path / "prepared").iterdir()} == {".npy"}


def test_after_an_edit_only_what_is_before_it_is_kept(images, prepared, decoded):
    decoded.stop_at = "d.png"
    with pytest.raises(KeyboardInterrupt):
        prepared()
    decoded.stop_at = None
    decoded.clear()
    edited = images / "train" / "frog" / "c.png"
    Image.fromarray(255 - np.asarray(Image.open(edited))).save(edited)
    arrays, index = prepared()
    assert decoded[0] == "train/frog/c.png"
    assert (arrays["train"] == np.stack([pixels(images / file) for file in index["splits"]["train"]["files"]])).all()
    np.testing.assert_allclose(index["mean"], arrays["train"].astype(float).mean((0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("name", ["train.progress", "train.npy"])
def test_a_damaged_rest_of_an_interrupted_call_is_not_used(images, prepared, decoded, tmp_path, name):
    decoded.stop_at = "d.png"
    with pytest.raises(KeyboardInterrupt):
        prepared()
    decoded.stop_at = None
    decoded.clear()
    path = tmp_path / "prepared" / name
    path.write_bytes(path.read_bytes()[: 400 if name == "train.progress" else 100])
    arrays, index = prepared()
    assert len(decoded) > 1 + 4 + 4  # what the interrupted call had not come to
    assert (arrays["train"] == np.stack([pixels(images / file) for file in index["splits"]["train"]["files"]])).all()
