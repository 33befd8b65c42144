"""Packs in the layout of VOC: what is read, refused, omitted and counted, and what is prepared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbnet.data.synthetic.rendered_scenes import CLASSES, Thing, as_annotation
from bbnet.tasks.detection import task
from bbnet.tasks.detection.data.prepare import dev_rows
from bbnet.tasks.task import Trained
from tests.tasks.detection.voc import use_names_of_voc

SCENES = {"pack": "rendered_scenes", "size": 48, "train": 20, "val": 5, "test": 8, "difficult": 0.3, "empty": 0.2}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    raw = tmp_path_factory.mktemp("raw")
    assert task.fetch(SCENES, raw) == {"pack": "rendered_scenes", "complete": True, "root": "VOCdevkit"}
    return raw / "VOCdevkit"


@pytest.fixture
def pack(rendered, tmp_path) -> Path:
    """A pack with VOC's classes, for a test to spoil."""
    root = tmp_path / "devkit"
    shutil.copytree(rendered, root)
    use_names_of_voc(root)
    return root


def prepared(root: Path, target: Path, data: dict | None = None, **faults):
    data = data or {"pack": "voc", "path": str(root), "complete": False, "dev_share": 0.2}
    manifest = task.fetch(data, target / "raw")
    index = task.prepare(
        manifest | {"root": str(root)}, {"data": data, "size": 64, "faults": faults}, _made(target / "arrays")
    )
    return target / "arrays", json.loads(json.dumps(index))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def spoil(root: Path, name: str, old: str, new: str) -> Path:
    path = root / "VOC2007" / "Annotations" / f"{name}.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def with_objects(root: Path, name: str, *boxes, kind: str = "cat") -> Path:
    """Replaces the objects of an image; boxes are counted from 0."""
    with Image.open(root / "VOC2007" / "JPEGImages" / f"{name}.jpg") as image:
        size = image.size
    path = root / "VOC2007" / "Annotations" / f"{name}.xml"
    path.write_bytes(as_annotation(f"{name}.jpg", size, [Thing(kind, box, False, False) for box in boxes]))
    return path


def test_the_embedded_pack_is_prepared_as_it_was_rendered(rendered, tmp_path):
    folder, index = prepared(rendered, tmp_path, SCENES)
    assert {split: len(of_split["files"]) for split, of_split in index["splits"].items()} == {
        "train": 20,
        "val": 5,
        "test": 8,
    }
    assert index["classes"] == list(CLASSES)
    assert index["skipped"] == index["converted"] == {}
    labels, difficult = np.load(folder / "train_labels.npy"), np.load(folder / "train_difficult.npy")
    assert index["objects"] == {name: int(((labels == label) & ~difficult).sum()) for label, name in enumerate(CLASSES)}
    assert difficult.any() and (labels == -1).all(1).any()
    split = task.open_split(folder, index, "train")
    assert (split.labels[torch.from_numpy(difficult)] == -1).all()
    for image in range(len(split)):
        there = split.objects(image)
        width, height = split.sizes[image]
        assert Image.open(rendered / split.files[image]).size == (width, height)
        assert (there.boxes[:, :2] >= 0).all() and (there.boxes[:, 2:] <= (width, height)).all()
        # The letterboxed box of an object and the same box in pixels of the original image.
        centre = split.boxes[image, : len(there.classes)].numpy()
        shares = np.concatenate([centre[:, :2] - centre[:, 2:] / 2, centre[:, :2] + centre[:, 2:] / 2], axis=1)
        found = split.in_pixels(slice(image, image + 1), shares[None])[0]
        np.testing.assert_allclose(found, there.boxes, atol=1e-4)


def test_images_with_and_without_objects_are_letterboxed_in_grey(rendered, tmp_path):
    folder, index = prepared(rendered, tmp_path, SCENES)
    images, sizes = np.load(folder / "train.npy"), np.load(folder / "train_sizes.npy")
    for image, (width, height) in zip(images, sizes, strict=True):
        assert max(width, height) == 48
        rows, columns = (round(64 * edge / 48) for edge in (height, width))
        top, left = (64 - rows) // 2, (64 - columns) // 2
        grey = np.ones((64, 64), bool)
        grey[top : top + rows, left : left + columns] = False
        assert (image[:, grey] == 128).all()
        assert image[:, ~grey].std() > 1


def test_boxes_are_read_as_voc_counts_pixels(pack, tmp_path):
    path = with_objects(pack, "000001", (0, 3, 10, 20))
    assert b"<xmin>1</xmin>" in path.read_bytes() and b"<xmax>10</xmax>" in path.read_bytes()
    folder, index = prepared(pack, tmp_path)
    assert task.open_split(folder, index, "train").objects(0).boxes.tolist() == [[0, 3, 10, 20]]


def test_dev_is_evenly_spaced():
    rows = dev_rows(10, 3)
    assert [place for place, dev in enumerate(rows) if dev] == [3, 6, 9]
    assert all(sum(dev_rows(total, dev)) == dev for total in (7, 100, 1001) for dev in (1, 3, 7))


def break_xml(root):
    return spoil(root, "000002", "</annotation>", ""), "it is not valid XML"


def define_entities(root):
    return spoil(root, "000002", "<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'), "defines entities"


def remove_annotation(root):
    path = root / "VOC2007" / "Annotations" / "000002.xml"
    path.unlink()
    return path, "No such file"


def remove_corner(root):
    with_objects(root, "000002", (0, 0, 9, 9))
    return spoil(root, "000002", "<xmax>9</xmax>", ""), "xmax is missing"


def no_number(root):
    with_objects(root, "000002", (0, 0, 9, 9))
    return spoil(root, "000002", "<xmax>9</xmax>", "<xmax>nine</xmax>"), "xmax is 'nine'"


def another_size(root):
    with_objects(root, "000002", (0, 0, 9, 9))
    return spoil(root, "000002", "<width>", "<width>1"), "it is of an image of 1"


def remove_image(root):
    path = root / "VOC2007" / "JPEGImages" / "000002.jpg"
    path.unlink()
    return path, "there is no such image"


def cut_image(root):
    path = root / "VOC2007" / "JPEGImages" / "000002.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return path, "cannot be"


def no_image(root):
    path = root / "VOC2007" / "JPEGImages" / "000002.jpg"
    path.write_text("not a picture")
    return path, "cannot be read as an image"


OF_IMAGES = {
    "annotation": [break_xml, define_entities, remove_annotation, remove_corner, no_number, another_size],
    "missing_image": [remove_image],
    "undecodable": [cut_image, no_image],
}


@pytest.mark.parametrize(("kind", "break_it"), [(kind, one) for kind, every in OF_IMAGES.items() for one in every])
def test_an_unusable_image_is_refused_by_name_or_omitted_and_counted(pack, tmp_path, kind, break_it):
    path, why = break_it(pack)
    with pytest.raises(ValueError, match=why) as error:
        prepared(pack, _made(tmp_path / "refused"))
    assert str(path) in str(error.value)
    assert f"faults.{kind}: skip" in str(error.value)
    _, index = prepared(pack, _made(tmp_path / "omitted"), **{kind: "skip"})
    files = index["splits"]["train"]["files"]
    assert "VOC2007/JPEGImages/000001.jpg" in files and "VOC2007/JPEGImages/000002.jpg" not in files
    (skipped,) = index["skipped"][kind]
    assert skipped.startswith(str(path.relative_to(pack)))


OF_OBJECTS = {
    "unknown_class": ((2, 2, 9, 9), "unicorn"),
    "empty_box": ((4, 2, 4, 9), "cat"),
    "outside_box": ((30, 2, 51, 9), "cat"),
}


@pytest.mark.parametrize("kind", OF_OBJECTS)
def test_an_unusable_object_is_refused_by_name_or_omitted_and_counted(pack, tmp_path, kind):
    box, name = OF_OBJECTS[kind]
    path = with_objects(pack, "000001", (0, 0, 20, 20), box, kind=name)
    if kind == "unknown_class":
        spoil(pack, "000001", "<name>unicorn</name>", "<name>dog</name>")
    with pytest.raises(ValueError, match=f"{path}, object 2: .*faults.{kind}: skip"):
        prepared(pack, _made(tmp_path / "refused"))
    folder, index = prepared(pack, _made(tmp_path / "omitted"), **{kind: "skip"})
    assert [one.split(":")[0] for one in index["skipped"][kind]] == ["VOC2007/Annotations/000001.xml, object 2"]
    assert task.open_split(folder, index, "train").objects(0).boxes.tolist() == [[0, 0, 20, 20]]


def test_a_box_that_leaves_the_image_by_a_pixel_is_clipped(pack, tmp_path):
    with_objects(pack, "000001", (-1, 0, 10, 10))
    folder, index = prepared(pack, tmp_path)
    assert task.open_split(folder, index, "train").objects(0).boxes.tolist() == [[0, 0, 10, 10]]


def test_a_box_of_one_pixel_is_an_object_but_one_beside_the_image_is_not(pack, tmp_path):
    with_objects(pack, "000001", (4, 5, 5, 6), (48, 5, 49, 9))
    folder, index = prepared(pack, tmp_path, outside_box="skip")
    assert task.open_split(folder, index, "train").objects(0).boxes.tolist() == [[4, 5, 5, 6]]
    assert [one.split(":")[0] for one in index["skipped"]["outside_box"]] == [
        "VOC2007/Annotations/000001.xml, object 2"
    ]


def test_litter_is_ignored_and_other_files_are_named(pack, tmp_path):
    home = pack / "VOC2007"
    (home / "JPEGImages" / "Thumbs.db").write_text("")
    (home / "Annotations" / "._000001.xml").write_text("")
    shutil.copy(home / "JPEGImages" / "000001.jpg", home / "JPEGImages" / "999999.jpg")
    (home / "notes.txt").write_text("mine")
    _, index = prepared(pack, tmp_path)
    assert sorted(index["skipped"]["not_read"]) == ["VOC2007/JPEGImages/999999.jpg", "VOC2007/notes.txt"]


def test_a_turned_image_is_turned_and_counted(pack, tmp_path):
    path = pack / "VOC2007" / "JPEGImages" / "000001.jpg"
    with Image.open(path) as image:
        upright = image.copy()
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image is to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    folder, index = prepared(pack, tmp_path)
    assert index["converted"] == {"exif_orientation": ["VOC2007/JPEGImages/000001.jpg"]}
    assert tuple(np.load(folder / "train_sizes.npy")[0]) == upright.size


@pytest.mark.parametrize("missing", ["JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Main/test.txt"])
def test_a_missing_part_of_the_layout_is_named(pack, tmp_path, missing):
    path = pack / "VOC2007" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=str(path)):
        prepared(pack, tmp_path)


def test_an_image_that_is_listed_twice_is_named(pack, tmp_path):
    path = pack / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    path.write_text(path.read_text() + "000003\n")
    with pytest.raises(ValueError, match="trainval.txt: lists 000003 twice"):
        prepared(pack, tmp_path)


def test_an_incomplete_pack_is_refused_unless_it_may_be_the_users_own(pack, tmp_path):
    with pytest.raises(ValueError, match="VOC2007: has 25 of the 5011 images of trainval"):
        task.fetch({"pack": "voc", "path": str(pack)}, tmp_path)


def test_for_scoring_on_other_data_only_test_is_needed_and_classes_are_those_of_the_run(rendered, pack, tmp_path):
    folder, index = prepared(rendered, _made(tmp_path / "trained"), SCENES)
    for file in ("trainval.txt", "train.txt", "val.txt"):
        (pack / "VOC2007" / "ImageSets" / "Main" / file).unlink()
    data = {"pack": "voc", "path": str(pack), "complete": False}
    manifest = task.fetch(data, tmp_path / "raw", test_only=True) | {"root": str(pack)}
    settings = {"data": data, "size": 64, "faults": {}}
    trained = Trained(folder, index)
    with pytest.raises(ValueError, match="object .*: not a class of the pack"):
        task.prepare(manifest, settings, _made(tmp_path / "refused"), trained)
    found = task.prepare(
        manifest, settings | {"faults": {"unknown_class": "skip"}}, _made(tmp_path / "skipped"), trained
    )
    assert {name: found[name] for name in ("classes", "mean", "sd")} == {
        name: index[name] for name in ("classes", "mean", "sd")
    }
    assert list(found["splits"]) == ["test"]
    labels = np.load(tmp_path / "skipped" / "test_labels.npy")
    assert set(np.unique(labels)) <= {-1, CLASSES.index("car")}
