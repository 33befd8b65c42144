"""Which cases are shown, and that they are shown whole."""

import numpy as np
import pytest

from bbnet.tasks.change.panels import LARGEST_SHOWN, assemble, case, choose


def items(tp, fp, fn) -> dict[str, np.ndarray]:
    return {"tp": np.array(tp), "fp": np.array(fp), "fn": np.array(fn)}


@pytest.mark.parametrize(
    ("dense", "other", "expected"),
    [
        # gains 5, -3, 1, 0, 2
        (items([0, 5, 2, 1, 1], [0] * 5, [9] * 5), items([5, 2, 3, 1, 3], [0] * 5, [9] * 5), (0, 2, 1)),
        # false positives count against: gains 0, 4 - 5 = -1, 2
        (items([1, 1, 1], [0, 0, 3], [5] * 3), items([1, 5, 1], [0, 5, 1], [5] * 3), (2, 0, 1)),
        # even number: the upper of the two in the middle; gains 4, 3, 2, 1
        (items([0] * 4, [0] * 4, [9] * 4), items([4, 3, 2, 1], [0] * 4, [9] * 4), (0, 1, 3)),
        # ties: in the order of the images
        (items([0] * 5, [0] * 5, [9] * 5), items([1] * 5, [0] * 5, [9] * 5), (0, 2, 4)),
    ],
)
def test_best_median_and_worst(dense, other, expected):
    assert tuple(choose(dense, other)[rank] for rank in ("best", "median", "worst")) == expected


def test_fewer_than_three_images_have_no_median():
    assert choose(items([1], [0], [1]), items([2], [0], [0])) == {"only": 0}
    assert choose(items([1, 1], [0, 0], [1, 1]), items([2, 3], [0, 0], [0, 0])) == {"best": 1, "worst": 0}


def test_images_with_nothing_to_show_are_left_out():
    dense = items([0, 0, 0, 4, 0], [0, 0, 0, 0, 2], [0, 7, 0, 0, 0])
    other = items([0, 2, 0, 3, 0], [0, 0, 6, 0, 1], [0, 5, 0, 1, 0])
    # image 0: no change, nothing predicted; gains of 1 to 4: 2, -6, -1, 1
    assert choose(dense, other) == {"best": 1, "median": 4, "worst": 2}


def test_if_all_images_are_empty_they_are_shown():
    nothing = items([0] * 3, [0] * 3, [0] * 3)
    assert choose(nothing, nothing) == {"best": 0, "median": 1, "worst": 2}


@pytest.fixture
def prepared(tmp_path):
    """Test images of the given heights and widths, cut by a loop; returns the index and what each image was."""

    def make(sizes: list[tuple[int, int]], tile: int):
        generator = np.random.default_rng(0)
        originals, cut, grids, starts = [], {"images": [], "labels": [], "changed": []}, [], [0]
        for height, width in sizes:
            original = {
                "images": generator.integers(0, 256, (2, 3, height, width), dtype=np.uint8),
                "labels": generator.integers(0, 2, (height, width), dtype=np.uint8),
                "changed": generator.integers(0, 2, (height, width), dtype=np.uint8),
            }
            for y in range(0, height, tile):
                for x in range(0, width, tile):
                    for name, whole in original.items():
                        cut[name].append(whole[..., y : y + tile, x : x + tile])
            originals.append(original)
            grids.append([height // tile, width // tile])
            starts.append(len(cut["labels"]))
        for name in ("images", "labels"):
            np.save(tmp_path / f"test_{name}.npy", np.stack(cut[name]))
        packed = np.packbits(np.stack(cut["changed"]).reshape(len(cut["changed"]), -1), axis=1)
        index = {"tile": tile, "splits": {"test": {"grids": grids, "starts": starts}}}
        return tmp_path, index, originals, {"changed": packed}

    return make


@pytest.mark.parametrize("tile", [8, 12])
def test_a_case_is_the_whole_image_with_every_prediction(prepared, tile):
    folder, index, originals, predictions = prepared([(tile, tile), (2 * tile, 3 * tile), (3 * tile, tile)], tile)
    for number, original in enumerate(originals):
        shown = case(folder, index, number, {"dense": predictions, "other": {"changed": ~predictions["changed"]}})
        assert (shown["A"] == original["images"][0].transpose(1, 2, 0)).all()
        assert (shown["B"] == original["images"][1].transpose(1, 2, 0)).all()
        assert (shown["label"] == (original["labels"] == 1)).all()
        assert (shown["dense"] == (original["changed"] == 1)).all()
        assert (shown["other"] == (original["changed"] == 0)).all()
        assert {shown[name].dtype for name in ("label", "dense", "other")} == {np.dtype(bool)}


def test_a_large_case_is_thinned_out_to_the_size_shown(prepared):
    folder, index, (original,), predictions = prepared([(64, 640)], 64)
    shown = case(folder, index, 0, {"dense": predictions})
    assert max(shown["A"].shape) <= LARGEST_SHOWN
    assert {image.shape[:2] for image in shown.values()} == {shown["A"].shape[:2]}
    assert (shown["dense"] == (original["changed"][::3, ::3] == 1)).all()


def test_assembling_undoes_cutting_for_any_leading_axes():
    image = np.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12)
    tiles = [image[..., y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4, 8)]
    assert (assemble(np.stack(tiles), (2, 3)) == image).all()
    assert (assemble(np.stack([tile[0, 0] for tile in tiles]), (2, 3)) == image[0, 0]).all()
