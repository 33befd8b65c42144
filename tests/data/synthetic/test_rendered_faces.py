import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import cdist

from bbnet.data.synthetic.rendered_faces import training_counts, write_face_pack

PACK = {
    "seed": 3, "size": 32, "identities": 5, "train": 31, "zipf": 0.7, "val": 2, "test": 3,
    "gallery": 4, "gallery_images": 2, "probes": 3, "strangers": 7,
}  # fmt: skip
NOBODY = "n000000"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("faces"))


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Who is seen in each file of a pack, of which no image is drawn, and with which pose."""

    def make(**changes) -> tuple[Path, dict[str, tuple]]:
        seen = {}

        def render(who, shot, size, camera):
            def save(path, **options):
                seen[path.relative_to(tmp_path).as_posix()] = (describe(who), (shot.yaw, shot.pitch, shot.roll))

            return SimpleNamespace(save=save)

        monkeypatch.setattr("bbnet.data.synthetic.rendered_faces.render", render)
        write(tmp_path, **changes)
        return tmp_path, seen

    return make


def write(target: Path, **changes) -> Path:
    write_face_pack(target, **PACK | changes)
    return target


def describe(who) -> str:
    return " ".join(f"{name} {value}" for name, value in sorted(vars(who).items()))


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def names(root: Path, folder: str) -> set[str]:
    return {path.name for path in (root / folder).iterdir()}


def labels(root: Path, split: str) -> dict[str, str]:
    with (root / "verification" / f"verification_{split}.csv").open(newline="") as file:
        columns, *rows = csv.reader(file)
    assert columns == ["file", "label"]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


# Layout.


def test_the_layout_is_that_of_the_face_pack(written):
    counts = training_counts(5, 31, 0.7)
    train = {f"classification/train/n{n:06d}/{i:04d}.jpg" for n in range(1, 6) for i in range(1, counts[n - 1] + 1)}
    dev = {f"classification/dev/n{n:06d}/{i:04d}.jpg" for n in range(1, 6) for i in (1, 2)}
    test = {f"classification/test/n{n:06d}/{i:04d}.jpg" for n in range(1, 6) for i in (1, 2, 3)}
    known = {f"verification/known/n{n:06d}/{i:04d}.jpg" for n in range(6, 10) for i in (1, 2)}
    probes = {f"verification/unknown_{split}/{i:06d}.jpg" for split in ("dev", "test") for i in range(4 * 3 + 7)}
    tables = {f"verification/verification_{split}.csv" for split in ("dev", "test")}
    assert len(train) == 31
    assert set(files(written)) == train | dev | test | known | probes | tables


def test_nobody_is_in_training_and_in_the_gallery(written):
    folders = {folder: names(written, f"classification/{folder}") for folder in ("train", "dev", "test")}
    assert folders["train"] == folders["dev"] == folders["test"]
    assert not folders["train"] & names(written, "verification/known")


def test_images_are_rgb_jpeg_of_the_size_asked_for(tmp_path):
    size = 50
    write(tmp_path, size=size, identities=2, train=4, val=1, test=1, gallery=1, gallery_images=1, probes=1, strangers=1)
    images = list(tmp_path.rglob("*.jpg"))
    assert len(images) == 4 + 2 + 2 + 1 + 2 * 2
    for path in images:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_labels_match_the_images_by_name_and_count(written, split):
    found = labels(written, split)
    assert set(found) == names(written, f"verification/unknown_{split}")
    known = names(written, "verification/known")
    assert len(known) == 4
    expected = dict.fromkeys(known, 3) | {NOBODY: 7}
    assert {label: list(found.values()).count(label) for label in {*found.values()}} == expected


def test_the_order_of_probes_tells_nothing_of_identity(drawn):
    root, _ = drawn(gallery=10, probes=4, strangers=40)
    rows = {split: list(labels(root, split).values()) for split in ("dev", "test")}
    assert rows["dev"] != rows["test"]
    for found in rows.values():
        assert len(found) == 80
        same = sum(one == other for one, other in zip(found, found[1:], strict=False))
        assert same < 35
        for half in (found[:40], found[40:]):
            assert 10 <= half.count(NOBODY) <= 30
            assert len({*half}) > 7


@pytest.mark.parametrize("nothing", ["gallery", "probes", "strangers"])
def test_there_need_not_be_a_gallery_probes_or_strangers(tmp_path, nothing):
    write(tmp_path, identities=2, train=4, **{nothing: 0})
    expected = {"gallery": {NOBODY: 7}, "probes": {NOBODY: 7}, "strangers": {f"n{n:06d}": 3 for n in range(3, 7)}}
    for split in ("dev", "test"):
        found = labels(tmp_path, split)
        assert set(found) == names(tmp_path, f"verification/unknown_{split}")
        rows = list(found.values())
        assert {label: rows.count(label) for label in {*rows}} == expected[nothing]
    assert len(names(tmp_path, "verification/known")) == (0 if nothing == "gallery" else 4)


def test_a_verification_of_nothing_has_its_folders_and_empty_label_files(tmp_path):
    write(tmp_path, identities=2, train=4, gallery=0, strangers=0)
    for folder in ("known", "unknown_dev", "unknown_test"):
        assert names(tmp_path, f"verification/{folder}") == set()
    for split in ("dev", "test"):
        assert labels(tmp_path, split) == {}


# Who is seen.


def test_an_identity_is_one_person_in_all_its_folders_and_nobody_elses(drawn):
    _, seen = drawn()
    people = {}
    for path, (who, _) in seen.items():
        if path.startswith(("classification/", "verification/known/")):
            people.setdefault(Path(path).parent.name, set()).add(who)
    assert len(people) == 5 + 4
    assert all(len(found) == 1 for found in people.values())
    assert len(set.union(*people.values())) == 9


def test_probes_show_whom_their_label_says_and_strangers_are_seen_once(drawn):
    root, seen = drawn()
    gallery = {Path(path).parent.name: who for path, (who, _) in seen.items() if "/known/" in path}
    others = [who for path, (who, _) in seen.items() if "/unknown_" not in path]
    strangers = []
    for split in ("dev", "test"):
        for name, label in labels(root, split).items():
            who, _ = seen[f"verification/unknown_{split}/{name}"]
            if label == NOBODY:
                strangers.append(who)
            else:
                assert who == gallery[label]
    assert len(strangers) == len(set(strangers)) == 14
    assert not set(strangers) & set(others)


def test_no_two_images_have_the_same_pose(drawn):
    _, seen = drawn()
    assert len({pose for _, pose in seen.values()}) == len(seen)


def test_people_of_another_seed_are_others(drawn):
    _, mine = drawn(seed=3)
    _, other = drawn(seed=4)
    assert not {who for who, _ in mine.values()} & {who for who, _ in other.values()}


# Determinism.


def test_equal_arguments_give_equal_bytes(written, tmp_path):
    assert files(write(tmp_path)) == files(written)


def test_another_seed_gives_other_images_and_labels(written, tmp_path):
    mine, other = files(written), files(write(tmp_path, seed=4))
    assert set(mine) == set(other)
    assert all(mine[name] != other[name] for name in mine)


def test_no_two_images_are_equal(written):
    images = [content for name, content in files(written).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images)


# Training counts.


@given(st.integers(1, 300), st.integers(0, 9999), st.sampled_from([0.0, 0.3, 1.0]) | st.floats(0.0, 3.0))
@settings(max_examples=40, deadline=None)
def test_counts_are_two_each_and_a_share_of_the_rest_that_falls_with_rank(identities, rest, zipf):
    images = 2 * identities + rest
    counts = training_counts(identities, images, zipf)
    assert sum(counts) == images
    assert len(counts) == identities
    assert min(counts) >= 2
    weights = [rank**-zipf for rank in range(1, identities + 1)]
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - 2 - (images - 2 * identities) * weight / sum(weights)) <= 1
    assert all(later <= earlier + 1 for earlier, later in zip(counts, counts[1:], strict=False))
    assert all(type(count) is int for count in counts)


def test_counts_worked_by_hand():
    # Beyond 2 each 110 are shared as 1, 1/2 and 1/3: 60, 30 and 20.
    assert training_counts(3, 116, 1.0) == [62, 32, 22]


def test_with_exponent_0_counts_are_even():
    for images, expected in ((40, {4}), (43, {4, 5}), (20, {2})):
        assert set(training_counts(10, images, 0.0)) == expected


def test_the_exponent_may_be_an_integer():
    assert training_counts(3, 116, 1) == [62, 32, 22]


def test_fewer_than_two_each_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="data.train 199 is below two images for each of 100"):
        training_counts(100, 199, 0.7)


def test_a_pack_of_too_few_training_images_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="below two images"):
        write(tmp_path, train=9)
    assert list(tmp_path.iterdir()) == []


# Pictures.


@pytest.fixture(scope="module")
def twenty_people(tmp_path_factory) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [120, 32, 32, 3] and who it is [120], six images of each."""
    root = tmp_path_factory.mktemp("people")
    write(root, identities=20, train=120, zipf=0.0, val=1, test=1, gallery=0, strangers=0)
    paths = sorted((root / "classification" / "train").glob("*/*.jpg"))
    images = [np.asarray(Image.open(path), dtype=float) for path in paths]
    return np.stack(images), np.array([path.parent.name for path in paths])


def share_closer(features: np.ndarray, who: np.ndarray) -> float:
    """How often two images of one person are closer than two of two people: 1/2 where they are alike by chance."""
    distance = cdist(features, features)
    same = who[:, None] == who
    pairs = np.triu(np.ones_like(same), 1)
    within, between = distance[same & pairs], distance[~same & pairs]
    return (within[:, None] < between).mean()


def test_images_of_a_person_are_alike_in_the_colours_of_the_face(twenty_people):
    images, who = twenty_people
    assert share_closer(images[:, 10:24, 10:22].mean((1, 2)), who) > 0.6
    assert share_closer(images[:, 6:26, 8:24].reshape(len(images), -1), who) > 0.7


def test_the_background_tells_nothing_of_who_it_is(twenty_people):
    images, who = twenty_people
    corners = np.concatenate([images[:, :3, :3], images[:, :3, -3:]], axis=1).mean((1, 2))
    assert 0.4 < share_closer(corners, who) < 0.6


def test_images_of_a_person_differ(twenty_people):
    """Pose, light and background set any two of one person apart by more than the camera's noise, at most 8."""
    images, who = twenty_people
    for name in np.unique(who):
        own = images[who == name]
        distances = [np.abs(one - other).mean() for place, one in enumerate(own) for other in own[:place]]
        assert min(distances) > 10
