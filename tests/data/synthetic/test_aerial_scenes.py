from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbnet.data.synthetic.aerial_scenes import scene_pair, write_scene_pairs

PAIRS = {"train": 8, "val": 4}
UNCHANGED = 0.25


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("aerial"))


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and labels of 80 pairs, one in five of them unchanged."""
    pairs = [scene_pair(64, np.random.default_rng([7, index]), changed=index % 5 > 0) for index in range(80)]
    first, second, label = (np.stack(pictures) for pictures in zip(*pairs, strict=True))
    return first, second, label > 0


def write(target: Path, *, seed: int = 3, size: int = 64, pairs=PAIRS, unchanged: float = UNCHANGED) -> Path:
    write_scene_pairs(target, seed=seed, size=size, pairs=pairs, unchanged=unchanged)
    return target


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}


def labels(root: Path, split: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in (root / split / "label").iterdir()]


def f1(predicted: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())


def test_the_layout_is_that_of_levir_cd(written):
    expected = {
        f"{split}/{kind}/{split}_{index}.png"
        for split, count in PAIRS.items()
        for kind in ("A", "B", "label")
        for index in range(1, count + 1)
    }
    assert set(files(written)) == expected


def test_pictures_are_rgb_and_labels_grey_of_the_size_asked_for_with_values_0_and_255(written):
    for path in written.glob("*/*/*.png"):
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("L" if path.parent.name == "label" else "RGB", (64, 64))
    values = {value for split in PAIRS for label in labels(written, split) for value in np.unique(label).tolist()}
    assert values == {0, 255}


def test_the_same_seed_gives_the_same_bytes(written, tmp_path):
    assert files(write(tmp_path)) == files(written)


def test_another_seed_gives_other_pictures(written, tmp_path):
    mine, other = files(written), files(write(tmp_path, seed=4))
    assert all(mine[name] != other[name] for name in mine if "/label/" not in name)


def test_a_longer_split_leaves_the_other_split_as_it_was(written, tmp_path):
    longer = files(write(tmp_path, pairs={"val": 7, "train": PAIRS["train"]}))
    mine = files(written)
    assert {name: longer[name] for name in mine if name.startswith("train/")} == {
        name: content for name, content in mine.items() if name.startswith("train/")
    }


def test_the_unchanged_share_is_exact(tmp_path):
    cases = [(12, 0.25, 3), (10, 0.34, 3), (4, 0.05, 1), (3, 0.05, 0), (5, 0.0, 0), (3, 1.0, 3)]
    for number, (count, unchanged, empty) in enumerate(cases):
        written = write(tmp_path / str(number), size=24, pairs={"test": count}, unchanged=unchanged)
        assert sum(not label.any() for label in labels(written, "test")) == empty, (count, unchanged)


def test_a_changed_pair_has_a_change_however_small_the_scene():
    assert all(scene_pair(32, np.random.default_rng([9, index]), changed=True)[2].any() for index in range(60))


def test_only_changed_pairs_have_a_label(scenes):
    _, _, label = scenes
    assert label.any(axis=(1, 2)).tolist() == [index % 5 > 0 for index in range(len(label))]


def test_the_changed_share_is_that_of_a_rare_class(scenes):
    _, _, label = scenes
    assert 0.06 < label.mean() < 0.15


def test_a_larger_picture_has_the_same_changed_share_in_more_buildings():
    share = np.mean([scene_pair(256, np.random.default_rng(index), changed=True)[2] > 0 for index in range(4)])
    assert 0.06 < share < 0.18


def test_unchanged_pairs_differ_all_the_same(scenes):
    first, second, label = scenes
    unchanged = ~label.any(axis=(1, 2))
    difference = np.abs(first[unchanged].astype(float) - second[unchanged]).mean(axis=(1, 2, 3))
    assert difference.min() > 4


def test_differencing_does_not_solve_it(scenes):
    first, second, label = scenes
    difference = np.abs(first.astype(float) - second).mean(axis=-1)
    assert max(f1(difference > threshold, label) for threshold in range(0, 160, 4)) < 0.45


def test_the_label_lies_where_a_building_appears(scenes):
    """Within a pair, the pixels that change most in colour are those of the label, more often than by chance."""
    first, second, label = scenes
    difference = np.abs(first.astype(float) - second).mean(axis=-1)
    changed = label.any(axis=(1, 2))
    inside = np.array([pair[mask].mean() for pair, mask in zip(difference[changed], label[changed], strict=True)])
    outside = np.array([pair[~mask].mean() for pair, mask in zip(difference[changed], label[changed], strict=True)])
    assert (inside > outside).mean() > 0.75
