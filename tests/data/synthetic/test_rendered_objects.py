"""Rendered objects: equal bytes for equal parameters, in both layouts, whose class colours do not tell."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbnet.data.synthetic import rendered_objects
from bbnet.data.synthetic.rendered_objects import CLASSES, Shot, render, write_batches, write_folders

COUNTS = {"train": [6, 5, 4, 4, 3, 3, 3, 2, 2, 1], "val": [1] * 10, "test": [2] * 10}


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def images(per_class: int, difficulty: float, size: int = 32, split: int = 0) -> np.ndarray:
    """[class, image, size, size, 3]."""
    return np.array(
        [
            [render(Shot(0, split, label, number, size, difficulty)) for number in range(per_class)]
            for label in range(len(CLASSES))
        ]
    )


@pytest.mark.parametrize(("write", "size"), [(write_batches, 32), (write_folders, 24)])
def test_equal_parameters_give_equal_bytes_however_many_processes_render(tmp_path, monkeypatch, write, size):
    written = []
    for cores, at_once, seed, difficulty in ((1, 64, 3, 0.5), (2, 7, 3, 0.5), (1, 64, 4, 0.5), (1, 64, 3, 0.6)):
        monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
        monkeypatch.setattr(rendered_objects, "AT_ONCE", at_once)
        target = tmp_path / str(len(written))
        write(target, seed=seed, size=size, counts=COUNTS, difficulty=difficulty)
        written.append(files(target))
    first, again, other_seed, harder = written
    assert first == again
    assert all(other[name] != first[name] for other in (other_seed, harder) for name in first if name != "batches.meta")


def test_batches_are_cifars_layout_with_dev_last_and_hold_the_images_of_the_folders(tmp_path):
    write_batches(tmp_path / "batches", seed=0, size=32, counts=COUNTS, difficulty=0.5)
    write_folders(tmp_path / "folders", seed=0, size=32, counts=COUNTS, difficulty=0.5)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    assert set(files(tmp_path / "batches")) == {*names, "batches.meta"}
    content = {
        name: pickle.loads((tmp_path / "batches" / name).read_bytes(), encoding="bytes")
        for name in (*names, "batches.meta")
    }
    assert content["batches.meta"] == {
        b"num_cases_per_batch": 9,
        b"label_names": [name.encode() for name in CLASSES],
        b"num_vis": 3072,
    }
    rows = []
    for name in names:
        batch = content[name]
        assert list(batch) == [b"batch_label", b"labels", b"data", b"filenames"]
        assert batch[b"data"].dtype == np.uint8 and batch[b"data"].shape == (len(batch[b"labels"]), 3072)
        rows += zip(batch[b"filenames"], batch[b"labels"], batch[b"data"], strict=True)
    assert [len(content[name][b"labels"]) for name in names] == [9, 8, 9, 8, 9, 20]
    splits = [row[0].decode().split("_")[1] for row in rows]
    assert splits == ["train"] * 33 + ["val"] * 10 + ["test"] * 20
    labels = [row[1] for row in rows]
    assert [labels[:33].count(label) for label in range(10)] == COUNTS["train"]
    assert labels[:33] != sorted(labels[:33]) and labels[43:] != sorted(labels[43:])
    assert len(list((tmp_path / "folders").rglob("*.png"))) == len(rows)
    for file, label, pixels in rows:
        name, split, number = file.decode().split("_")
        assert name == CLASSES[label]
        image = np.asarray(Image.open(tmp_path / "folders" / split / name / number))
        assert (pixels.reshape(3, 32, 32).transpose(1, 2, 0) == image).all()


def test_colours_do_not_tell_the_class():
    """A classifier by the nearest neighbour in mean, spread and centre of colour has little more than chance."""

    def features(of: np.ndarray) -> np.ndarray:
        values = of.astype(float).reshape(-1, 32, 32, 3)
        centre = values[:, 12:20, 12:20]
        return np.concatenate([values.mean((1, 2)), values.std((1, 2)), centre.mean((1, 2))], axis=1)

    known, new = features(images(60, 0.5)), features(images(20, 0.5, split=2))
    nearest = ((new[:, None] - known) ** 2).sum(2).argmin(1)
    assert np.mean(nearest // 60 == np.arange(len(new)) // 20) < 0.25


def test_difficulty_moves_objects_and_shapes_differ_without_it():
    """The nearest class by outline is right where nothing moves the object, and less so the harder it is."""

    def outlines(of: np.ndarray) -> np.ndarray:
        """What differs from the colour of the upper left corner; mirrored so that the right half has more."""
        values = of.astype(float).reshape(-1, 32, 32, 3)
        shape = np.linalg.norm(values - values[:, :2, :2].mean((1, 2), keepdims=True), axis=3) > 30
        left = shape[:, :, :16].sum((1, 2)) > shape[:, :, 16:].sum((1, 2))
        shape[left] = shape[left, :, ::-1]
        return shape.reshape(len(shape), -1).astype(float)

    right = []
    for difficulty in (0.0, 0.3, 1.0):
        known, new = outlines(images(20, difficulty)), outlines(images(10, difficulty, split=2))
        nearest = (new @ (1 - known).T + (1 - new) @ known.T).argmin(1)
        right.append(np.mean(nearest // 20 == np.arange(len(new)) // 10))
    assert right[0] > 0.9 > 0.6 > right[1] > right[2] + 0.1


@pytest.mark.parametrize("size", [16, 48])
def test_images_have_the_size_asked_for(size):
    assert images(1, 0.5, size).shape == (10, 1, size, size, 3)
