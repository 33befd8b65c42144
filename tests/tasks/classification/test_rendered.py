"""The embedded pack as the task reads it, and its counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bbnet.data.packs import read_pack
from bbnet.tasks.classification.data.split import dev_count, dev_rows, long_tail_counts
from bbnet.tasks.classification.data_settings import Cifar10, RenderedObjects

PACK = {"pack": "rendered_objects", "train": 60, "val": 20, "test": 30}


@given(st.integers(20, 100_000), st.integers(2, 1000), st.floats(1, 1000))
def test_the_long_tail_falls_as_cui_et_al_say(images, classes, imbalance):
    counts = long_tail_counts(images, classes, imbalance)
    shares = imbalance ** -(np.arange(classes) / (classes - 1))
    assert sum(counts) == images and counts == sorted(counts, reverse=True)
    np.testing.assert_allclose(counts, images * shares / shares.sum(), atol=1)


def test_the_long_tail_of_cifar_10_is_the_published_one():
    published = [int(5000 * 0.01 ** (label / 9)) for label in range(10)]
    counts = long_tail_counts(sum(published), 10, 100)
    assert max(abs(own - other) for own, other in zip(counts, published, strict=True)) <= 1
    assert long_tail_counts(50_000, 10, 1) == [5000] * 10


def test_the_published_pack_is_divided_into_45000_and_5000():
    data = Cifar10(pack="cifar10")
    assert data.images(read_pack("cifar10")) == {"train": 45_000, "val": 5_000, "test": 10_000}
    labels = np.random.default_rng(0).permutation(np.arange(50_000) % 10).tolist()
    rows = np.array(dev_rows(labels, dict.fromkeys(range(10), dev_count(5000, data.dev_share))))
    assert np.bincount(np.array(labels)[rows]).tolist() == [500] * 10


@pytest.mark.parametrize(("size", "layout"), [(32, "batches"), (16, "folders")])
def test_every_split_has_the_images_asked_for(made, size, layout):
    data = PACK | {"size": size, "imbalance": 10.0}
    arrays, index = made(data, size=size)
    settings = RenderedObjects(**data)
    assert settings.images(None) == {split: len(array) for split, array in arrays.items()}
    counts = {split: np.bincount(part["labels"]).tolist() for split, part in index["splits"].items()}
    assert counts == {"train": settings.training_counts(), "val": [2] * 10, "test": [3] * 10}
    assert counts["train"] == [15, 11, 9, 7, 5, 4, 3, 2, 2, 2]
    assert index["classes"] == ["arrow", "car", "chair", "cup", "fish", "house", "key", "ring", "star", "tree"]
    assert arrays["train"].shape[1:] == (3, size, size)
    names = {split: {file.split("/")[0] for file in part["files"]} for split, part in index["splits"].items()}
    if layout == "folders":
        assert names == {split: {split} for split in names}
    else:
        assert names["test"] == {"test_batch"} and "_val_" not in "".join(index["splits"]["train"]["files"])
        assert all("_val_" in file for file in index["splits"]["val"]["files"])


def test_batches_may_be_resized_as_images_are(made):
    small, _ = made(PACK, size=16)
    whole, _ = made(PACK, name="whole")
    boxes = whole["test"].reshape(-1, 3, 16, 2, 16, 2).mean((3, 5))
    assert small["test"].shape == boxes.shape
    assert np.abs(small["test"] - boxes).mean() < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": 15}, "val 15 is not a multiple of the 10 classes"),
        ({"test": 11}, "test 11 is not a multiple of the 10 classes"),
        ({"imbalance": 200}, "train 60 with imbalance 200 leaves no image of the least frequent class"),
        ({"difficulty": 1.1}, "less than or equal to 1"),
    ],
)
def test_counts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        RenderedObjects(**PACK | change)
