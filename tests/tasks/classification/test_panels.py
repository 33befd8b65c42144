"""Which images are shown, and what of them."""

import numpy as np

from bbnet.tasks.classification import panels


def items(rank, confidence) -> dict[str, np.ndarray]:
    return {"rank": np.array(rank), "confidence": np.array(confidence)}


def test_images_are_those_that_each_run_gets_wrong_most_confidently_first():
    dense = items([0, 1, 3, 0, 1], [0.9, 0.5, 0.7, 0.8, 0.7])
    other = items([2, 0, 1, 0, 0], [0.6, 0.9, 0.99, 1.0, 1.0])
    found = panels.choose(dense, other)
    assert found == {"other_1": 2, "other_2": 0, "dense_1": 2, "dense_2": 4, "dense_3": 1}


def test_at_most_so_many_are_shown_and_none_where_all_is_right():
    many, right = items([1] * 20, np.linspace(0, 1, 20)), items([0] * 20, [1.0] * 20)
    found = panels.choose(right, many)
    assert list(found.values()) == [19, 18, 17, 16, 15, 14]
    assert list(found) == [f"other_{place}" for place in range(1, 7)]
    assert panels.choose(right, right) == {}


def test_a_case_has_the_pixels_and_the_names_of_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 600, 600), dtype=np.uint8)
    np.save(tmp_path / "test.npy", images)
    index = {"classes": ["cat", "dog", "emu"], "splits": {"test": {"labels": [0, 2, 1]}}}
    predictions = {"dense": {"class": np.array([0, 1, 2])}, "other": {"class": np.array([1, 0, 2])}}
    found = panels.case(tmp_path, index, 1, predictions)
    assert {name: str(found[name]) for name in ("true", "dense", "other")} == {
        "true": "emu",
        "dense": "dog",
        "other": "cat",
    }
    assert np.array_equal(found["pixels"], images[1].transpose(1, 2, 0)[::3, ::3])
    row = {"image": "test/a.png", "rank": 0, "confidence": np.float32(0.5)}
    assert panels.describe(row, row | {"rank": 4, "confidence": np.float32(0.875)}) == {
        "image": "test/a.png",
        "dense": {"confidence": 0.5, "right": True},
        "other": {"confidence": 0.875, "right": False},
    }
