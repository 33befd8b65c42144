"""A pack in the face pack's layout becomes arrays, image for image; what cannot be used is named."""

import hashlib
import itertools
import json
import re
import shutil
import struct
import threading
import tracemalloc
import unicodedata
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional

from bbnet.data import packs
from bbnet.data.image_folders import Faulty, resize
from bbnet.tasks.face.buckets import make_buckets
from bbnet.tasks.face.data.batches import Faces, FacesToScore
from bbnet.tasks.face.data.pack import check_weights, fetch, read_verification
from bbnet.tasks.face.data.prepare import prepare
from bbnet.tasks.face.settings import FaceTraining, Faults, Settings

PARTS = ("train", "val", "test", "known", "probes_dev", "probes_test")
RENDERED = {
    "pack": "rendered_faces", "size": 24, "identities": 2, "train": 5, "val": 1, "test": 2,
    "gallery": 2, "probes": 1, "strangers": 1,
}  # fmt: skip
WITHOUT_TEST = ("classification/test", "verification/unknown_test", "verification/verification_test.csv")
CPU = torch.device("cpu")


def pixels(path) -> np.ndarray:
    """Uint8 [3, height, width] of an RGB file."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).transpose(2, 0, 1)


def labelled(index, part: str, home: str) -> dict[str, int]:
    """Labels of a part by file, without the folder that all of them lie in."""
    split = index["splits"][part]
    return {file.removeprefix(home): label for file, label in zip(split["files"], split["labels"], strict=True)}


def remove(root, *names: str) -> None:
    for name in names:
        if (root / name).is_dir():
            shutil.rmtree(root / name)
        else:
            (root / name).unlink()


def refusal(prepared, root, match: str, **faults: str) -> str:
    with pytest.raises(ValueError, match=match) as refused:
        prepared(root, **faults)
    return str(refused.value)


def training(batch_size: int) -> FaceTraining:
    return FaceTraining(epochs=2, warm_up_epochs=1, learning_rate=0.1, batch_size=batch_size)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def png_of_16_bits(values: np.ndarray, colour_type: int) -> bytes:
    """As the PNG specification has it: signature, IHDR, IDAT of unfiltered rows, IEND."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


# Fetching.


def test_a_folder_is_read_in_place_and_stays_as_it_is(pack, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in pack.rglob("*")}
    target = tmp_path / "raw"
    target.mkdir()
    assert fetch({"pack": "faces", "path": str(pack), "complete": False}, target) == {
        "pack": "faces",
        "root": str(pack),
        "classification": "classification",
        "verification": "verification",
    }
    assert list(target.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in pack.rglob("*")} == before


def test_a_folder_may_be_named_from_home_or_from_here(pack, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/pack", "pack"):
        assert fetch({"pack": "faces", "path": path, "complete": False}, tmp_path)["root"] == str(pack)


def test_folders_may_bear_the_names_of_the_released_pack(pack, prepared, tmp_path):
    _, plain = prepared(pack)
    for half in ("classification", "verification"):
        (pack / half).rename(pack / f"11-785-s24-hw2p2-{half}")
    manifest = fetch({"pack": "faces", "path": str(pack), "complete": False}, tmp_path)
    assert manifest["classification"] == "11-785-s24-hw2p2-classification"
    assert manifest["verification"] == "11-785-s24-hw2p2-verification"
    _, index = prepared(pack)
    for part in PARTS:
        mine, expected = index["splits"][part], plain["splits"][part]
        assert mine["files"] == [f"11-785-s24-hw2p2-{name}" for name in expected["files"]]
        assert mine["labels"] == expected["labels"]


def test_a_missing_half_is_named(pack, prepared):
    for half in ("classification", "verification"):
        (pack / half).rename(pack / "elsewhere")
        message = refusal(prepared, pack, f"one folder whose name ends in {half}, found none")
        assert message.startswith(f"{pack}: ")
        (pack / "elsewhere").rename(pack / half)


def test_two_folders_for_a_half_are_named(pack, prepared):
    (pack / "old-verification").mkdir()
    refusal(prepared, pack, "ends in verification, found old-verification, verification")


def test_a_root_that_is_not_there_is_named(prepared, tmp_path):
    assert str(tmp_path / "nowhere") in refusal(prepared, tmp_path / "nowhere", "no such folder or archive")


def test_a_missing_folder_of_a_half_is_named(pack, prepared):
    for folder in ("classification/train", "classification/dev", "verification/known", "verification/unknown_dev"):
        (pack / folder).rename(pack / "elsewhere")
        assert refusal(prepared, pack, "no such folder").startswith(f"{pack / folder}: ")
        (pack / "elsewhere").rename(pack / folder)


def test_a_pack_that_is_not_described_is_refused(tmp_path):
    for pack_settings in ({"pack": "faces", "path": ""}, {"pack": "other"}, {"pack": "faces", "complete": 7}):
        with pytest.raises(ValueError, match="validation error"):
            fetch(pack_settings, tmp_path)


def test_the_embedded_pack_is_rendered_and_prepared(tmp_path):
    raw, target = tmp_path / "raw", tmp_path / "prepared"
    raw.mkdir()
    target.mkdir()
    manifest = fetch(RENDERED, raw)
    assert manifest == {
        "pack": "rendered_faces", "classification": "classification", "verification": "verification"
    }  # fmt: skip
    index = prepare({"root": str(raw)} | manifest, {"size": 16, "resize": "crop", "faults": {}}, target)
    counts = {part: len(index["splits"][part]["files"]) for part in PARTS}
    assert counts == {"train": 5, "val": 2, "test": 4, "known": 2, "probes_dev": 3, "probes_test": 3}
    assert index["divided"] == []
    for part in ("probes_dev", "probes_test"):
        assert sorted(index["splits"][part]["labels"]) == [-1, 0, 1]
    assert np.load(target / "train.npy").shape == (5, 3, 16, 16)


def test_an_embedded_pack_of_too_few_training_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train 5 is below two images for each of 3 identities"):
        fetch(RENDERED | {"identities": 3}, tmp_path)
    assert list(tmp_path.iterdir()) == []


# Weights.


@pytest.fixture
def write_weights(tmp_path):
    """Writes a file whose name ends in that many digits of its SHA-256."""

    def write(digits: int, content: bytes = b"weights"):
        path = tmp_path / f"resnet101-{hashlib.sha256(content).hexdigest()[:digits]}.pth"
        path.write_bytes(content)
        return path

    return write


def test_weights_that_are_what_their_name_says_are_read_in_place(write_weights, tmp_path):
    for digits in (8, 12, 64):
        path = write_weights(digits)
        check_weights(path)
        manifest = fetch({"pack": "imagenet_resnet101", "path": str(path)}, tmp_path / "raw")
        assert manifest == {"pack": "imagenet_resnet101", "root": str(tmp_path), "file": path.name}


def test_weights_of_another_content_are_refused_with_both_digests(write_weights):
    path = write_weights(8)
    says = path.stem.removeprefix("resnet101-")
    path.write_bytes(b"other weights")
    found = hashlib.sha256(b"other weights").hexdigest()[:8]
    with pytest.raises(ValueError, match=f"begins with {found}, its name says {says}") as refused:
        check_weights(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_weights_without_digits_of_a_digest_are_refused(tmp_path):
    for name in ("resnet101.pth", "resnet101-63fe222.pth", "resnet101-63FE2227.pth", "63fe2227.pth"):
        (tmp_path / name).write_bytes(b"weights")
        with pytest.raises(ValueError, match="must end in the first digits of the SHA-256") as refused:
            check_weights(tmp_path / name)
        assert str(tmp_path / name) in str(refused.value)


def test_weights_that_are_not_there_are_named(tmp_path):
    path = tmp_path / "resnet101-63fe2227.pth"
    with pytest.raises(ValueError, match="no such file") as refused:
        fetch({"pack": "imagenet_resnet101", "path": str(path)}, tmp_path)
    assert str(path) in str(refused.value)
    (path).mkdir()
    with pytest.raises(ValueError, match="no such file"):
        check_weights(path)


# Arrays and index.


def test_files_are_in_order_of_identity_and_name_and_labels_are_places_among_the_identities(pack, prepared):
    _, index = prepared(pack)
    assert index["identities"] == ["n000003", "n000020", "n000100"]
    assert index["gallery"] == ["n000407", "n000501", "n000600"]
    assert set(index["splits"]) == set(PARTS)
    train = index["splits"]["train"]
    assert train["files"] == [
        f"classification/train/{name}.png"
        for name in (
            "n000003/a", "n000003/b", "n000020/a", "n000020/b", "n000020/c",
            "n000100/a", "n000100/b", "n000100/c", "n000100/d",
        )
    ]  # fmt: skip
    assert train["labels"] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert labelled(index, "val", "classification/dev/") == {
        "n000003/a.png": 0, "n000003/b.png": 0, "n000003/c.png": 0,
        "n000020/a.png": 1, "n000020/b.png": 1, "n000100/a.png": 2,
    }  # fmt: skip
    assert labelled(index, "test", "classification/test/") == {
        "n000003/a.png": 0, "n000003/b.png": 0, "n000020/a.png": 1, "n000100/b.png": 2
    }  # fmt: skip
    assert labelled(index, "known", "verification/known/") == {
        "n000407/a.png": 0, "n000407/b.png": 0, "n000501/a.png": 1, "n000600/a.png": 2
    }  # fmt: skip


def test_probes_are_in_order_of_name_and_labelled_by_name(pack, prepared):
    _, index = prepared(pack)
    dev, test = index["splits"]["probes_dev"], index["splits"]["probes_test"]
    assert dev["files"] == [f"verification/unknown_dev/{number:06d}.png" for number in range(1, 8)]
    assert dev["labels"] == [0, -1, 2, 0, -1, 0, 2]
    assert test["files"] == [f"verification/unknown_test/{number:06d}.png" for number in range(1, 5)]
    assert test["labels"] == [2, 1, -1, 0]


def test_arrays_hold_the_pixels_of_the_files_of_the_index(pack, prepared):
    target, index = prepared(pack)
    for part in PARTS:
        array, files = np.load(target / f"{part}.npy"), index["splits"][part]["files"]
        assert array.dtype == np.uint8
        assert array.shape == (len(files), 3, 16, 16)
        for number, file in enumerate(files):
            assert (array[number] == pixels(pack / file)).all()


def test_the_index_tells_size_and_that_nothing_was_skipped_or_divided(pack, prepared):
    _, index = prepared(pack)
    assert (index["size"], index["skipped"], index["divided"]) == (16, {}, [])


def test_mean_and_sd_are_those_of_the_training_pixels(pack, prepared):
    _, index = prepared(pack)
    images = np.stack([pixels(path) for path in (pack / "classification" / "train").glob("*/*.png")]).astype(float)
    assert len(images) == 9
    np.testing.assert_allclose(index["mean"], images.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(index["sd"], images.std((0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_has_an_sd_that_can_be_divided_by(pack, prepared):
    for path in (pack / "classification" / "train").glob("*/*.png"):
        values = np.array(Image.open(path))
        values[:, :, 1] = 77
        Image.fromarray(values).save(path)
    _, index = prepared(pack)
    assert (index["mean"][1], index["sd"][1]) == (77, 1)
    assert min(index["sd"][0], index["sd"][2]) > 50


def test_images_are_the_same_however_many_are_decoded_at_once(pack, prepared, monkeypatch):
    target, index = prepared(pack)
    expected = {part: np.load(target / f"{part}.npy") for part in PARTS}
    monkeypatch.setattr("bbnet.data.image_folders.IMAGES_AT_ONCE", 2)
    _, again = prepared(pack)
    assert again == index
    assert all((np.load(target / f"{part}.npy") == expected[part]).all() for part in PARTS)


def test_jpeg_and_capital_suffixes_are_read_and_other_files_ignored(pack, prepared, random_image):
    home = pack / "classification" / "train" / "n000003"
    image = Image.fromarray(random_image(77))
    image.save(home / "a.JPG", quality=95)
    image.save(home / "A.jpeg", quality=95)
    for name in ("Thumbs.db", "a.txt", ".hidden.png", "._a.png"):
        (home / name).write_text("no image")
    (pack / "classification" / "train" / ".cache").mkdir()
    (pack / "classification" / "train" / "readme.txt").write_text("no image")
    (pack / "verification" / "unknown_dev" / ".DS_Store").write_text("no image")
    target, index = prepared(pack)
    names = [file.split("/")[-1] for file in index["splits"]["train"]["files"][:4]]
    assert names == ["A.jpeg", "a.JPG", "a.png", "b.png"]
    assert index["identities"] == ["n000003", "n000020", "n000100"]
    assert (np.load(target / "train.npy")[1] == pixels(home / "a.JPG")).all()


# Resizing.


def striped(height: int, width: int, edges: tuple[int, int], across: int) -> Image.Image:
    """Red, green and blue stripes that follow each other along an axis, green between the edges."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    first, second = edges
    for channel, part in enumerate((slice(0, first), slice(first, second), slice(second, None))):
        np.moveaxis(values, across, 0)[part, :, channel] = 255
    return Image.fromarray(values)


def test_crop_takes_the_middle_pixel_for_pixel_where_the_shorter_edge_fits(random_image):
    for across in (0, 1):
        long = random_image(1, 48, 16) if across == 0 else random_image(1, 16, 48)
        found = np.asarray(resize(Image.fromarray(long), 16, "crop"))
        assert (found == np.take(long, range(16, 32), axis=across)).all()


def test_crop_brings_the_shorter_edge_to_size():
    """Of 80 by 32 pixels at size 16 the outer 24 go at either end: 40 by 16, then 8 to 24."""
    for across in (0, 1):
        height, width = (80, 32) if across == 0 else (32, 80)
        found = np.asarray(resize(striped(height, width, (24, 56), across), 16, "crop")).astype(int)
        assert found.shape == (16, 16, 3)
        along = np.moveaxis(found, across, 0)
        assert (along[1:15] == [0, 255, 0]).all()
        assert (along[0, :, 1] > 170).all()
        assert (along[15, :, 1] > 170).all()


def test_pad_brings_the_longer_edge_to_size_with_black_around():
    """Of 64 by 32 pixels at size 16 there remain 16 by 8: 4 black, 8 white, 4 black."""
    for across in (0, 1):
        height, width = (64, 32) if across == 0 else (32, 64)
        white = Image.fromarray(np.full((height, width, 3), 255, dtype=np.uint8))
        found = np.moveaxis(np.asarray(resize(white, 16, "pad")), across, 1)
        assert found.shape == (16, 16, 3)
        assert (found[4:12] == 255).all()
        assert (found[:4] == 0).all()
        assert (found[12:] == 0).all()


def test_pad_of_an_image_that_fits_keeps_each_pixel(random_image):
    image = random_image(3, 16, 10)
    found = np.asarray(resize(Image.fromarray(image), 16, "pad"))
    assert (found[:, 3:13] == image).all()
    assert not found[:, :3].any()
    assert not found[:, 13:].any()


def test_stretch_keeps_all_of_the_image():
    """Of 80 pixels in stripes of 20, 40 and 20 at size 16: 4, 8 and 4."""
    for across in (0, 1):
        height, width = (80, 30) if across == 0 else (30, 80)
        found = np.asarray(resize(striped(height, width, (20, 60), across), 16, "stretch"))
        assert found.shape == (16, 16, 3)
        along = np.moveaxis(found, across, 0)
        for part, colour in (((0, 3), [255, 0, 0]), ((5, 11), [0, 255, 0]), ((13, 16), [0, 0, 255])):
            assert (along[slice(*part)] == colour).all()


def test_scaling_is_antialiased_and_bilinear(random_image):
    for rule, height, width, scaled, taken in (
        ("crop", 30, 40, (16, 21), (slice(0, 16), slice(2, 18))),
        ("crop", 50, 20, (40, 16), (slice(12, 28), slice(0, 16))),
        ("crop", 6, 9, (16, 24), (slice(0, 16), slice(4, 20))),
        ("stretch", 30, 41, (16, 16), (slice(0, 16), slice(0, 16))),
        ("pad", 32, 32, (16, 16), (slice(0, 16), slice(0, 16))),
        ("crop", 9, 9, (16, 16), (slice(0, 16), slice(0, 16))),
    ):
        image = random_image(5, height, width)
        floats = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
        expected = functional.interpolate(floats, scaled, mode="bilinear", antialias=True)[0][:, *taken]
        found = np.asarray(resize(Image.fromarray(image), 16, rule)).transpose(2, 0, 1)
        np.testing.assert_allclose(found, expected.numpy(), atol=1.01)


def test_every_shape_becomes_square(random_image):
    for rule, shape in itertools.product(
        ("crop", "pad", "stretch"), ((1, 40), (40, 1), (17, 16), (16, 17), (1, 1), (33, 31))
    ):
        assert resize(Image.fromarray(random_image(1, *shape)), 16, rule).size == (16, 16)


def test_images_of_several_sizes_are_prepared_by_the_rule_named(pack, prepared, random_image):
    for rule in ("crop", "pad", "stretch"):
        home = pack / "classification" / "train" / "n000003"
        wide, tall = random_image(1, 20, 61), random_image(2, 70, 30)
        Image.fromarray(wide).save(home / "a.png")
        Image.fromarray(tall).save(home / "b.png")
        target, index = prepared(pack, 24, rule)
        array = np.load(target / "train.npy")
        assert index["size"] == 24
        assert array.shape == (9, 3, 24, 24)
        for number, image in enumerate((wide, tall)):
            assert (array[number] == np.asarray(resize(Image.fromarray(image), 24, rule)).transpose(2, 0, 1)).all()


# Modes.


@pytest.fixture
def with_file(pack):
    """The pack with another first training image; returns it and the file."""

    def write(image: Image.Image | bytes):
        path = pack / "classification" / "train" / "n000003" / "a.png"
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path)
        return pack, path

    return write


def test_grey_is_in_three_equal_channels(with_file, prepared, random_image):
    grey = random_image(1)[:, :, 0]
    root, _ = with_file(Image.fromarray(grey))
    target, _ = prepared(root)
    assert (np.load(target / "train.npy")[0] == np.stack([grey] * 3)).all()


def test_alpha_is_dropped(with_file, prepared, random_image):
    colour = random_image(1)
    alpha = random_image(2)[:, :, :1]
    root, _ = with_file(Image.fromarray(np.concatenate([colour, alpha], axis=2)))
    target, _ = prepared(root)
    assert (np.load(target / "train.npy")[0] == colour.transpose(2, 0, 1)).all()


def test_alpha_of_grey_is_dropped(with_file, prepared, random_image):
    grey, alpha = random_image(1)[:, :, 0], random_image(2)[:, :, 0]
    root, _ = with_file(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]))
    target, _ = prepared(root)
    assert (np.load(target / "train.npy")[0] == np.stack([grey] * 3)).all()


def test_a_palette_is_looked_up(with_file, prepared):
    for transparent in (None, 2):
        colours = np.array([[10, 20, 30], [200, 100, 0], [0, 255, 7]], dtype=np.uint8)
        places = np.random.default_rng(4).integers(0, 3, (16, 16), dtype=np.uint8)
        image = Image.fromarray(places).convert("P")
        image.putdata(places.ravel().tolist())
        image.putpalette(colours.ravel().tolist())
        if transparent is not None:
            image.info["transparency"] = transparent
        root, path = with_file(image)
        assert Image.open(path).mode == "P"
        target, _ = prepared(root)
        assert (np.load(target / "train.npy")[0] == colours[places].transpose(2, 0, 1)).all()


def test_black_and_white_is_0_and_255(with_file, prepared, random_image):
    bright = random_image(1)[:, :, 0] > 127
    root, _ = with_file(Image.fromarray(bright))
    target, _ = prepared(root)
    assert (np.load(target / "train.npy")[0] == np.stack([bright * 255] * 3)).all()


def test_16_bits_are_refused_by_file(with_file, prepared):
    for colour_type, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):  # L, RGB, LA, RGBA
        values = np.random.default_rng(1).integers(0, 65536, (16, 16, channels))
        root, path = with_file(png_of_16_bits(values, colour_type))
        assert refusal(prepared, root, re.escape(str(path))).startswith(str(path))


def test_a_mode_that_is_no_picture_of_8_bits_is_refused_by_file(pack, prepared, random_image):
    path = pack / "verification" / "known" / "n000501" / "b.tif"
    Image.fromarray(random_image(1)).convert("F").save(path)
    assert refusal(prepared, pack, "image mode F").startswith(f"{path}: ")


def test_photographs_that_lie_on_their_side_or_are_for_print_are_converted_counted_and_named(pack, prepared, caplog):
    caplog.set_level("INFO")
    clean, _ = prepared(pack)
    train = np.load(clean / "train.npy")
    path, exif = pack / "classification" / "train" / "n000020" / "a.png", Image.Exif()
    exif[0x0112] = 8
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_270).save(path, exif=exif)
    printed = pack / "verification" / "unknown_dev" / "000003.png"
    with Image.open(printed) as image:
        image.convert("CMYK").save(printed.with_suffix(".tif"))
    printed.unlink()
    target, index = prepared(pack)
    assert (np.load(target / "train.npy") == train).all()
    assert index["converted"] == {
        "exif_orientation": ["classification/train/n000020/a.png"],
        "cmyk": ["verification/unknown_dev/000003.tif"],
    }
    assert "images turned as their EXIF orientation says: 1: classification/train/n000020/a.png" in caplog.text


# Images that cannot be used.


def spoil(path, how: str) -> None:
    content = path.read_bytes()
    spoiled = {
        "empty": b"",
        "text": b"<html>404</html>",
        "truncated": content[: len(content) // 2],
        "damaged": content[:200] + bytes(byte ^ 0x5A for byte in content[200:300]) + content[300:],
    }
    path.write_bytes(spoiled[how])


def test_an_image_that_cannot_be_decoded_is_refused_by_file(pack, prepared):
    for name, how in (
        ("classification/train/n000003/b.png", "empty"),
        ("verification/known/n000407/a.png", "text"),
        ("verification/unknown_test/000002.png", "truncated"),
        ("classification/train/n000003/b.png", "damaged"),
    ):
        whole = (pack / name).read_bytes()
        spoil(pack / name, how)
        message = refusal(prepared, pack, r"faults\.undecodable: skip omits such files")
        assert message.startswith(f"{pack / name}: ")
        (pack / name).write_bytes(whole)


def test_a_truncated_jpeg_is_refused_by_file(pack, prepared, random_image):
    path = pack / "classification" / "dev" / "n000020" / "c.jpg"
    Image.fromarray(random_image(1, 64, 64)).save(path, quality=95)
    spoil(path, "truncated")
    assert refusal(prepared, pack, "truncated").startswith(f"{path}: ")


def test_many_images_that_cannot_be_decoded_are_counted(pack, prepared):
    names = ["n000003/a", "n000020/b", "n000100/a", "n000100/c", "n000100/d"]
    for name in names:
        spoil(pack / "classification" / "train" / f"{name}.png", "text")
    message = refusal(prepared, pack, "and 2 more")
    assert [f"{name}.png" in message for name in names] == [True, True, True, False, False]


def test_skipped_images_are_counted_and_the_others_stay_in_order(pack, prepared, monkeypatch):
    monkeypatch.setattr("bbnet.data.image_folders.IMAGES_AT_ONCE", 2)
    skipped = [
        "classification/train/n000003/b.png",
        "classification/train/n000020/a.png",
        "classification/train/n000020/b.png",
        "verification/unknown_dev/000001.png",
    ]
    for name, how in zip(skipped, ("text", "truncated", "damaged", "empty"), strict=True):
        spoil(pack / name, how)
    target, index = prepared(pack, undecodable="skip")
    assert set(index["skipped"]) == {"undecodable"}
    for name, told in zip(skipped, index["skipped"]["undecodable"], strict=True):
        assert told.startswith(f"{name}: ")
    assert labelled(index, "train", "classification/train/") == {
        "n000003/a.png": 0, "n000020/c.png": 1,
        "n000100/a.png": 2, "n000100/b.png": 2, "n000100/c.png": 2, "n000100/d.png": 2,
    }  # fmt: skip
    assert index["splits"]["probes_dev"]["labels"] == [-1, 2, 0, -1, 0, 2]
    for part in PARTS:
        opened, files = Faces(target, index, part), index["splits"][part]["files"]
        assert len(opened) == len(opened.images) == len(files)
        for number, file in enumerate(files):
            assert (opened.images[number].numpy() == pixels(pack / file)).all()
    kept = np.stack([pixels(pack / file) for file in index["splits"]["train"]["files"]]).astype(float)
    np.testing.assert_allclose(index["mean"], kept.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(index["sd"], kept.std((0, 2, 3)), rtol=1e-12)


def test_a_split_of_which_no_image_is_left_is_refused(pack, prepared):
    for folder in ("test", "dev", "train"):
        for path in (pack / "classification" / folder).glob("*/*.png"):
            spoil(path, "text")
        message = refusal(prepared, pack, "no image is left", undecodable="skip")
        assert message.startswith(f"{pack / 'classification' / folder}: ")


def test_an_identity_of_which_no_training_image_is_left_can_be_scored_or_is_named(pack, prepared):
    for path in (pack / "classification" / "train" / "n000020").iterdir():
        spoil(path, "text")
    try:
        target, index = prepared(pack, undecodable="skip")
    except ValueError as refused:
        assert "n000020" in str(refused)
        return
    opened = FacesToScore(target, index | {"buckets": make_buckets(index)["types"]})
    assert len(opened.buckets) == len(index["identities"])


# Identities.


def test_an_identity_without_images_is_refused_by_folder(pack, prepared):
    remove(pack, "classification/dev/n000100")
    for name in ("classification/train/n000004", "verification/known/n000555", "classification/dev/n000100"):
        (pack / name).mkdir()
        (pack / name / "note.txt").write_text("no image")
        message = refusal(prepared, pack, r"faults\.empty_identity: skip omits such files")
        assert message.startswith(f"{pack / name}: ")
        remove(pack, name)


def test_an_identity_of_which_no_file_is_read_is_not_called_one_without_images(pack, prepared):
    for name, file in (
        ("classification/train", "a.gif"),
        ("verification/known", "in/a.png"),
        ("classification/dev", "a"),
    ):
        folder = sorted((pack / name).iterdir())[0]
        kept = {path: path.read_bytes() for path in folder.iterdir()}
        remove(pack, *kept)
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"GIF89a" + bytes(9))
        message = refusal(
            prepared, pack, r"none of an identity's files is read; allowed .* WebP.*faults\.empty_identity"
        )
        assert message.startswith(f"{folder}: {file}, 1 of 1 files")
        shutil.rmtree(folder)
        folder.mkdir()
        for path, content in kept.items():
            path.write_bytes(content)


def test_files_that_are_not_read_are_named_and_listed_in_the_index(pack, prepared, caplog):
    target, expected = prepared(pack)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    unread = [
        pack / name
        for name in (
            *(
                "classification/train/readme.txt",
                "classification/train/n000003/a.gif",
                "classification/dev/n000003/in/a.png",
            ),
            *("verification/known/n000407/in/deep/a.jpg", "verification/unknown_dev/000001.gif"),
        )
    ]
    for path in unread:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GIF89a" + bytes(9))
    target, index = prepared(pack)
    assert index == expected | {"skipped": {"not_read": [str(path.relative_to(pack)) for path in unread]}}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    for path in unread:
        assert "/".join(path.relative_to(pack).parts[2:]) in caplog.text


def test_files_beside_what_is_read_are_named_and_listed_in_the_index(pack, prepared, caplog):
    target, expected = prepared(pack)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    unread = [
        *("classification/notes.txt", "classification/train2/n000003/a.png"),
        *("verification/extra.jpg", "verification/unknown_dev2/a.png"),
        *("README", "more/verification_test.csv"),
    ]
    for name in unread:
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        (pack / name).write_bytes((pack / "verification/unknown_dev/000001.png").read_bytes())
    target, index = prepared(pack)
    assert index == expected | {"skipped": {"not_read": unread}}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    for folder in (pack, pack / "classification", pack / "verification"):
        assert f"{folder}: files that are not read: 2: " in caplog.text


@pytest.mark.parametrize("change", [str.upper, str.title])
def test_folders_and_label_files_are_read_in_any_case(pack, prepared, change):
    target, expected = prepared(pack)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    for path in sorted([*pack.glob("*"), *pack.glob("*/*")], reverse=True):
        path.rename(path.with_name(change(path.name)))
    target, index = prepared(pack)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    for key in ("identities", "gallery", "skipped", "divided"):
        assert index[key] == expected[key], key
    shutil.copytree(next((pack / change("classification")).glob("[Tt][Ee]*")), pack / change("classification") / "test")
    refusal(prepared, pack, "test: its name equals that of .* but for capitals; remove or rename one of them")


@pytest.mark.parametrize("named", ["000003.gif", "000003", "unknown_dev/000003.png"])
def test_a_probe_that_is_not_of_a_format_that_is_read_says_so(pack, prepared, write_labels, named):
    (pack / "verification/unknown_dev/000003.png").rename(pack / "verification/unknown_dev/000003.tga")
    (pack / "verification/unknown_dev/000003.tga").write_bytes(bytes(30))
    names = [named if number == 3 else f"{number:06d}.png" for number in range(1, 8)]
    write_labels(pack, "dev", [(name, "n000000") for name in names])
    refusal(prepared, pack, r"line 4: there is no image .*000003.* \(000003\.tga is not of a format that is read")


def test_identities_without_images_are_skipped_and_counted(pack, prepared):
    _, expected = prepared(pack)
    names = ["classification/train/n000004", "classification/test/n000005", "verification/known/n000555"]
    for name in names:
        (pack / name).mkdir()
    _, index = prepared(pack, empty_identity="skip")
    assert index["skipped"] == {"empty_identity": names}
    assert {key: index[key] for key in ("identities", "gallery", "splits")} == {
        key: expected[key] for key in ("identities", "gallery", "splits")
    }


def test_one_rule_does_not_cover_the_other(pack, prepared):
    (pack / "verification" / "known" / "n000555").mkdir()
    spoil(pack / "classification" / "train" / "n000003" / "a.png", "text")
    refusal(prepared, pack, r"faults\.undecodable", empty_identity="skip")
    refusal(prepared, pack, r"faults\.empty_identity", undecodable="skip")


def test_an_identity_that_training_lacks_is_named(pack, prepared):
    for folder in ("dev", "test"):
        unknown = pack / "classification" / folder / "n000021"
        shutil.copytree(pack / "classification" / folder / "n000020", unknown)
        message = refusal(prepared, pack, "no such identity in")
        assert message.startswith(f"{unknown}: ")
        assert str(pack / "classification" / "train") in message
        shutil.rmtree(unknown)


def test_an_identity_need_not_be_in_dev_or_test(pack, prepared):
    remove(pack, "classification/dev/n000003", "classification/test/n000100")
    _, index = prepared(pack)
    assert index["identities"] == ["n000003", "n000020", "n000100"]
    assert [set(index["splits"][part]["labels"]) for part in ("val", "test")] == [{1, 2}, {0, 1}]


def test_an_image_beside_identities_is_named(pack, prepared, random_image):
    for folder in ("classification/train", "classification/test", "verification/known"):
        path = pack / folder / "stray.jpg"
        Image.fromarray(random_image(1)).save(path)
        assert refusal(prepared, pack, "is not in the folder of an identity").startswith(f"{path}: ")
        path.unlink()


def test_images_of_train_or_dev_without_identities_are_refused(pack, prepared, random_image):
    for folder in ("train", "dev"):
        home = pack / "classification" / folder
        home.rename(pack / "elsewhere")
        home.mkdir()
        Image.fromarray(random_image(1)).save(home / "a.png")
        message = refusal(prepared, pack, "has images but no folders of identities")
        assert message.startswith(f"{home}: ")
        shutil.rmtree(home)
        (pack / "elsewhere").rename(home)


# Label files.


def test_a_missing_label_file_of_dev_is_named(pack, prepared):
    remove(pack, "verification/verification_dev.csv")
    message = refusal(prepared, pack, "cannot be read")
    assert message.startswith(f"{pack / 'verification' / 'verification_dev.csv'}: ")


def test_a_label_file_of_test_without_its_images_is_refused(pack, prepared):
    remove(pack, "verification/unknown_test")
    assert refusal(prepared, pack, "no such folder").startswith(f"{pack / 'verification' / 'unknown_test'}: ")


def test_a_label_file_needs_label_and_a_column_of_names(pack, prepared, write_labels):
    for columns in (("file", "identity"), ("label",), ("file", "Label"), ("file|label",), ()):
        path = write_labels(pack, "dev", [], columns)
        found = ", ".join(columns) or "no columns"
        missing = "that names images" if columns == ("label",) else "label"
        message = refusal(prepared, pack, f"has no column {missing}; it has {re.escape(found)} ")
        assert message.startswith(f"{path}: ")


def test_an_empty_label_file_is_refused(pack, prepared, write_labels):
    path = write_labels(pack, "dev", [])
    path.write_bytes(b"")
    assert refusal(prepared, pack, "it has no columns").startswith(f"{path}: ")


def test_a_label_file_that_is_no_text_is_refused(pack, prepared, write_labels):
    path = write_labels(pack, "dev", [])
    path.write_bytes(b"file,label\n\xff\xfe\x00\n")
    assert refusal(prepared, pack, "cannot be read").startswith(f"{path}: ")


def test_a_label_file_that_names_no_images_is_refused_with_its_columns(pack, prepared, write_labels):
    path = write_labels(pack, "dev", [("face one", "n000407"), ("face two", "n000000")], ("who", "label"))
    message = refusal(prepared, pack, "no column names images of .*; found who, label")
    assert message.startswith(f"{path}: ")


@pytest.mark.parametrize("begin", ["", "sep=;\r\n", "\n\n"])
@pytest.mark.parametrize("separator", [";", "\t"])
def test_columns_may_be_separated_by_a_semicolon_or_tab(pack, write_labels, separator, begin):
    """Whatever Excel puts before them."""
    expected = labels_of(pack)
    path = pack / "verification" / "verification_dev.csv"
    lines = [("a, b" if separator == ";" else "a; b, c", *row) for row in rows_of(pack)]
    table = "\n".join(separator.join(line) for line in [("remark", " file", "label "), *lines])
    path.write_text(begin + table, newline="")
    assert labels_of(pack) == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_compare_however_their_accents_are_stored(pack, prepared, write_labels, form):
    """The identities and probes of a Mac (NFD) and of Linux (NFC), in folders and label files of either."""
    clean, index = prepared(pack)
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    for place, stored in (("classification/train", form), ("classification/dev", other), ("classification/test", form)):
        (pack / place / "n000003").rename(pack / place / unicodedata.normalize(stored, "n000003é"))
    (pack / "verification/known/n000501").rename(pack / "verification/known" / unicodedata.normalize(form, "n000501ü"))
    probe = pack / "verification" / "unknown_test" / "000002.png"
    probe.rename(probe.with_name(unicodedata.normalize(form, "000002ñ.png")))
    names = ["000001.png", "000002ñ.png", "000003.png", "000004.png"]
    identities = ["n000600", "n000501ü", "n000000", "n000407"]
    rows = [[unicodedata.normalize(other, name) for name in row] for row in zip(names, identities, strict=True)]
    write_labels(pack, "test", rows)
    before = {path.name: path.read_bytes() for path in clean.iterdir()}
    target, renamed = prepared(pack)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    for part, split in index["splits"].items():
        assert renamed["splits"][part]["labels"] == split["labels"]
    assert renamed["identities"] == ["n000003é", "n000020", "n000100"]


def test_two_folders_of_one_identity_are_refused_with_the_way_out(pack, prepared):
    for form in ("NFC", "NFD"):
        folder = pack / "classification" / "train" / unicodedata.normalize(form, "José")
        folder.mkdir()
    message = refusal(prepared, pack, "another folder has the same name, with its accents stored in another way")
    assert message.startswith(str(pack / "classification" / "train" / "Jos"))
    assert message.endswith("move the images of both into one")


def labels_of(pack) -> tuple:
    """What `prepare` reads of the verification folder."""
    return read_verification(pack / "verification", Faulty(Faults(), pack))


def rows_of(pack) -> list[tuple[str, str]]:
    """File names and labels of dev as a label file has them."""
    _, probes, gallery, _ = labels_of(pack)
    names = ["n000000" if label < 0 else gallery[label] for label in probes["dev"].labels]
    return [(file.name, name) for file, name in zip(probes["dev"].files, names, strict=True)]


RULES = {
    "folder": lambda name: f"unknown_dev/{name}",
    "a longer path": lambda name: f"/content/data/verification/unknown_dev/{name}",
    "backslashes": lambda name: f"unknown_dev\\{name}",
    "no suffix": lambda name: name.removesuffix(".png"),
    "another suffix": lambda name: name.replace(".png", ".jpg"),
    "a number": lambda name: str(int(name.removesuffix(".png"))),
    "more zeros": lambda name: f"0000{name}",
    "spaces": lambda name: f" {name} ",
}


def test_names_are_joined_with_or_without_folder_and_suffix(pack, write_labels):
    expected, rows = labels_of(pack), rows_of(pack)
    for kind, rule in RULES.items():
        write_labels(pack, "dev", [(rule(name), label) for name, label in np.random.default_rng(1).permutation(rows)])
        assert labels_of(pack) == expected, kind


def test_the_order_of_the_rows_does_not_matter(pack, write_labels):
    expected, rows = labels_of(pack), rows_of(pack)
    for order in ([6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 1, 5, 2, 4]):
        write_labels(pack, "dev", [rows[row] for row in order])
        assert labels_of(pack) == expected


def test_labels_may_stand_in_front_and_between_other_columns(pack, write_labels):
    expected = labels_of(pack)
    rows = [("x", label, 0.5, name, "") for name, label in rows_of(pack)]
    write_labels(pack, "dev", reversed(rows), ("split", "label", "weight", "image", "note"))
    assert labels_of(pack) == expected


def test_a_count_of_the_rows_is_not_taken_for_names(pack, write_labels):
    """As pandas writes a table in another order than the files': a nameless column of row numbers in front."""
    expected = labels_of(pack)
    rows = [(number, *row) for number, row in enumerate(reversed(rows_of(pack)), start=1)]
    write_labels(pack, "dev", rows, ("", "file", "label"))
    assert labels_of(pack) == expected


def test_a_byte_order_mark_blank_lines_and_the_line_ends_of_any_system_are_read(pack, write_labels):
    expected = labels_of(pack)
    lines = [("label", "file"), *((label, name) for name, label in rows_of(pack))]
    for end in ("\n", "\r\n", "\r", "\n\n"):
        path = write_labels(pack, "dev", [])
        path.write_bytes(b"\xef\xbb\xbf" + end.join(map(",".join, lines)).encode())
        assert labels_of(pack) == expected


WRONG_ROWS = {
    "a missing image": (("000077.png", "n000000"), "line 9: there is no image 000077.png in .*unknown_dev"),
    "an image given twice": (("000003.png", "n000600"), "line 9: image 000003.png is given twice"),
    "an image given twice by number": (("unknown_dev/3", "n000000"), "line 9: image unknown_dev/3 is given twice"),
    "a row without a name": (("", "n000000"), "line 9: there is no image"),
}


def test_a_wrong_row_is_named_by_file_and_line(pack, prepared, write_labels):
    rows = rows_of(pack)
    for row, expected in WRONG_ROWS.values():
        path = write_labels(pack, "dev", [*rows, row])
        assert refusal(prepared, pack, expected).startswith(f"{path}, ")


def test_an_identity_that_the_gallery_lacks_is_named_by_file_and_line(pack, prepared):
    for split, identity in itertools.product(("test", "dev"), ("n000999", "", "n000003", "-1")):
        path = pack / "verification" / f"verification_{split}.csv"
        lines = path.read_text().splitlines()
        lines[2] = f"{lines[2].split(',')[0]},{identity}"
        path.write_text("\n".join(lines))
        message = refusal(prepared, pack, f"line 3: identity {identity} is neither in .*known nor n000000")
        assert message.startswith(f"{path}, ")


def test_the_line_of_a_wrong_row_is_that_of_the_file(pack, prepared):
    path = pack / "verification" / "verification_dev.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "", "", *lines[2:], "000077.png,n000000"]))
    refusal(prepared, pack, "line 11: there is no image 000077.png")


def test_a_row_that_is_cut_short_is_named(pack, prepared):
    path = pack / "verification" / "verification_dev.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].split(",")[0]]))
    refusal(prepared, pack, "line 8: identity  is neither in")


def test_images_without_a_row_are_named_and_counted(pack, prepared, write_labels):
    write_labels(pack, "dev", [row for row in rows_of(pack) if row[0] not in ("000002.png", "000005.png")])
    message = refusal(prepared, pack, r"has no row in .*verification_dev\.csv \(2 of 7 have none\)")
    assert message.startswith(f"{pack / 'verification' / 'unknown_dev' / '000002.png'}: ")


def test_labels_without_rows_are_refused(pack, prepared, write_labels):
    write_labels(pack, "test", [])
    refusal(prepared, pack, r"unknown_test/000001\.png: has no row in .*\(4 of 4 have none\)")


def test_images_of_equal_names_but_for_suffix_and_zeros_are_refused(pack, prepared, random_image):
    for name in ("000003.jpg", "3.png", "03.jpeg"):
        path = pack / "verification" / "unknown_dev" / name
        Image.fromarray(random_image(1)).save(path)
        message = refusal(prepared, pack, "its name, without the suffix, equals that of")
        assert name in message
        assert "000003.png" in message
        path.unlink()


def test_names_that_are_not_numbers_alone_are_compared_letter_by_letter(pack, write_labels, random_image):
    rows = rows_of(pack)
    for name in ("face3.png", "face03.png", "3.5.png"):
        Image.fromarray(random_image(1)).save(pack / "verification" / "unknown_dev" / name)
    more = [("face3", "n000407"), ("face03", "n000501"), ("3.5", "n000600")]
    write_labels(pack, "dev", more + rows)
    dev = labels_of(pack)[1]["dev"]
    found = {file.name: label for file, label in zip(dev.files, dev.labels, strict=True)}
    assert [found[name] for name in ("face3.png", "face03.png", "3.5.png", "000003.png")] == [0, 1, 2, 2]


def test_a_person_of_the_gallery_is_not_called_nobody(pack, prepared):
    (pack / "verification" / "known" / "n000501").rename(pack / "verification" / "known" / "n000000")
    path = pack / "verification" / "verification_test.csv"
    path.write_text(path.read_text().replace("n000501", "n000000"))
    refusal(prepared, pack, "n000000")


# Test without labels.


def test_an_unlabelled_test_is_every_second_of_dev(pack, prepared, random_image):
    remove(pack, *WITHOUT_TEST)
    for how in ("missing", "empty", "unlabelled"):
        if how == "empty":
            (pack / "classification" / "test").mkdir()
            (pack / "verification" / "unknown_test").mkdir()
        elif how == "unlabelled":
            for home in ("classification/test", "verification/unknown_test"):
                for number in range(3):
                    Image.fromarray(random_image(number)).save(pack / home / f"{number:08d}.png")
        target, index = prepared(pack)
        assert index["divided"] == ["classification", "verification"]
        assert labelled(index, "val", "classification/dev/") == {
            "n000003/a.png": 0, "n000003/c.png": 0, "n000020/b.png": 1
        }  # fmt: skip
        assert labelled(index, "test", "classification/dev/") == {
            "n000003/b.png": 0, "n000020/a.png": 1, "n000100/a.png": 2
        }  # fmt: skip
        # 407, nobody, 600, 407, nobody, 407, 600 by identity: nobody 2 and 5, 407 1, 4 and 6, 600 3 and 7.
        assert labelled(index, "probes_dev", "verification/unknown_dev/") == {
            "000002.png": -1, "000001.png": 0, "000006.png": 0, "000007.png": 2
        }  # fmt: skip
        assert labelled(index, "probes_test", "verification/unknown_dev/") == {
            "000005.png": -1, "000004.png": 0, "000003.png": 2
        }  # fmt: skip
        for part in PARTS:
            for number, file in enumerate(index["splits"][part]["files"]):
                assert (np.load(target / f"{part}.npy")[number] == pixels(pack / file)).all()
        homes = ("classification/test", "verification/unknown_test") if how == "unlabelled" else ()
        left_out = [f"{home}/{number:08d}.png" for home in homes for number in range(3)]
        assert index["skipped"] == ({"not_read": left_out} if left_out else {})


@pytest.mark.parametrize("half", ["classification", "verification"])
def test_one_half_may_be_unlabelled(pack, prepared, half):
    _, expected = prepared(pack)
    remove(pack, *(name for name in WITHOUT_TEST if name.startswith(half)))
    _, index = prepared(pack)
    assert index["divided"] == [half]
    own = {"classification": {"val", "test"}, "verification": {"probes_dev", "probes_test"}}[half]
    for part in PARTS:
        assert (index["splits"][part] == expected["splits"][part]) == (part not in own)


def test_halves_of_dev_have_nothing_in_common_and_leave_nothing_out(pack, prepared):
    _, whole = prepared(pack)
    remove(pack, *WITHOUT_TEST)
    _, index = prepared(pack)
    for first, second in (("val", "test"), ("probes_dev", "probes_test")):
        halves = [index["splits"][part]["files"] for part in (first, second)]
        assert sorted(halves[0] + halves[1]) == whole["splits"][first]["files"]
        assert all(halves)


def test_a_dev_that_cannot_be_divided_is_refused(pack, prepared):
    remove(pack, *WITHOUT_TEST, *(f"classification/dev/n000003/{letter}.png" for letter in "bc"))
    remove(pack, "classification/dev/n000020", "classification/dev/n000100")
    refusal(prepared, pack, "cannot be divided")


def test_probes_that_are_single_go_to_both_halves(pack, prepared, write_labels):
    remove(pack, *WITHOUT_TEST)
    labels = ("n000407", "n000000", "n000600", "n000501", "n000000", "n000000", "n000000")
    write_labels(pack, "dev", [(f"{number:06d}.png", label) for number, label in enumerate(labels, start=1)])
    _, index = prepared(pack)
    halves = [index["splits"][f"probes_{split}"]["labels"] for split in ("dev", "test")]
    assert [half.count(-1) for half in halves] == [2, 2]
    assert sorted(label for half in halves for label in half if label >= 0) == [0, 1, 2]
    assert all(max(half) >= 0 for half in halves)


def test_a_person_of_the_gallery_without_a_usable_image_is_refused(pack, prepared):
    folder = sorted((pack / "verification" / "known").iterdir())[0]
    for image in folder.iterdir():
        image.write_bytes(b"broken")
    assert refusal(prepared, pack, "no image of this identity is left", undecodable="skip").startswith(f"{folder}: ")


def test_a_label_column_given_twice_names_no_images(pack, prepared):
    path = pack / "verification" / "verification_dev.csv"
    path.write_text("label,label\na,b\n")
    assert refusal(prepared, pack, "has no column that names images").startswith(f"{path}: ")


def test_the_middle_of_a_strip_is_cropped_in_little_memory():
    for width, height in ((4000, 2), (2, 4000)):
        strip = np.zeros((height, width, 3), dtype=np.uint8)
        strip[height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1] = 200
        tracemalloc.start()
        found = np.asarray(resize(Image.fromarray(strip), 64, "crop"))
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()
        assert found.shape == (64, 64, 3)
        assert found[32, 32].tolist() == [200, 200, 200]


# Nobody to be found.


def test_a_gallery_may_be_empty(pack, prepared, write_labels, caplog):
    remove(pack, "verification/known")
    (pack / "verification" / "known").mkdir()
    for split, count in (("dev", 7), ("test", 4)):
        write_labels(pack, split, [(f"{number:06d}.png", "n000000") for number in range(1, count + 1)])
    target, index = prepared(pack)
    assert index["gallery"] == []
    assert index["splits"]["known"] == {"files": [], "labels": []}
    assert index["splits"]["probes_dev"]["labels"] == [-1] * 7
    assert f"{pack / 'verification' / 'known'} is empty" in caplog.text
    known = Faces(target, index, "known")
    assert (len(known), known.images.shape, known.in_order()) == (0, (0, 3, 16, 16), [])


def test_there_need_not_be_probes(pack, prepared, write_labels):
    for split in ("dev", "test"):
        remove(pack, f"verification/unknown_{split}")
        (pack / "verification" / f"unknown_{split}").mkdir()
        write_labels(pack, split, [])
    for labels_of_test in (True, False):
        if not labels_of_test:
            remove(pack, "verification/verification_test.csv")
        target, index = prepared(pack)
        for part in ("probes_dev", "probes_test"):
            assert index["splits"][part] == {"files": [], "labels": []}
            assert len(Faces(target, index, part)) == 0
        scored = FacesToScore(target, index | {"buckets": make_buckets(index)["types"]})
        assert [len(scored.probes[split]) for split in ("dev", "test")] == [0, 0]


def test_a_gallery_of_one_person_is_enough(pack, prepared, write_labels):
    remove(pack, "verification/known/n000501", "verification/known/n000600")
    write_labels(pack, "dev", [(f"{number:06d}.png", "n000407") for number in range(1, 8)])
    write_labels(pack, "test", [(f"{number:06d}.png", "n000000") for number in range(1, 5)])
    _, index = prepared(pack)
    assert index["gallery"] == ["n000407"]
    assert index["splits"]["known"]["labels"] == [0, 0]
    assert index["splits"]["probes_dev"]["labels"] == [0] * 7
    assert index["splits"]["probes_test"]["labels"] == [-1] * 4


# Buckets.


def test_buckets_of_a_prepared_index(pack, prepared):
    """2, 3 and 4 images: the median is 3, the 90th percentile lies 0.8 of the way from 3 to 4."""
    target, index = prepared(pack)
    found = json.loads(json.dumps(make_buckets(index)))
    assert found["types"] == {"n000003": "tail", "n000020": "mid", "n000100": "head"}
    assert (found["median"], found["head_from"]) == (3, pytest.approx(3.8))
    assert found["sizes"] == {
        "head": {"types": 1, "occurrences": 4},
        "mid": {"types": 1, "occurrences": 3},
        "tail": {"types": 1, "occurrences": 2},
    }
    assert FacesToScore(target, index | {"buckets": found["types"]}).buckets.tolist() == [2, 1, 0]


def test_identities_of_equally_many_images_share_a_bucket():
    labels = [0, 1, 1, 2, 3, 4, 4, 4, 5, 6, 6, 6, 6, 6]
    index = {"identities": list("abcdefg"), "splits": {"train": {"labels": labels}}}
    # Counts 1 2 1 1 3 1 5: the median is 1, the 90th percentile 0.4 of the way from 3 to 5.
    found = make_buckets(index)
    assert found["head_from"] == pytest.approx(3.8)
    # No count is below the median, so the tail reaches up to it.
    assert found["rule"] == "up to the median"
    assert found["types"] == dict.fromkeys("acdf", "tail") | {"b": "mid", "e": "mid", "g": "head"}


# Batches.


@pytest.fixture
def faces(tmp_path, random_image):
    """A part of that many random images."""

    def make(count: int, size: int = 16) -> Faces:
        images = np.stack([random_image(seed, size, size).transpose(2, 0, 1) for seed in range(count)])
        np.save(tmp_path / "train.npy", images)
        split = {"files": [f"{number}.png" for number in range(count)], "labels": [7 * n % 5 for n in range(count)]}
        return Faces(tmp_path, {"splits": {"train": split}}, "train")

    return make


def test_a_batch_holds_the_images_and_labels_asked_for(pack, prepared):
    target, index = prepared(pack)
    opened = Faces(target, index, "train")
    batch = opened.batch(torch.tensor([8, 0, 3]), CPU)
    assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
    assert batch.labels.tolist() == [2, 0, 1]
    for image, place in zip(batch.images, (8, 0, 3), strict=True):
        assert (image.numpy() == pixels(pack / opened.files[place])).all()


def test_a_change_of_a_batch_does_not_reach_the_data(pack, prepared):
    target, index = prepared(pack)
    before = (target / "train.npy").read_bytes()
    opened = Faces(target, index, "train")
    opened.batch(torch.tensor([0, 1]), CPU).images.fill_(7)
    assert not (opened.images[0] == 7).all()
    opened.images.fill_(7)
    assert (target / "train.npy").read_bytes() == before


def test_an_epoch_has_each_image_at_most_once_in_full_batches(faces):
    for count, size, steps in ((23, 4, 5), (24, 4, 6), (5, 5, 1), (9, 5, 1)):
        opened = faces(count)
        for seed in range(5):
            batches = opened.batches(training(size), generator(seed))
            places = torch.cat(batches).tolist()
            assert [len(batch) for batch in batches] == [size] * steps
            assert len(set(places)) == len(places) == steps * size
            assert set(places) <= set(range(count))
        assert opened.steps_per_epoch(training(size)) == steps


def test_the_generator_alone_decides_the_order(faces):
    opened = faces(20)
    torch.manual_seed(1)
    first = torch.cat(opened.batches(training(6), generator(3))).tolist()
    torch.manual_seed(2)
    assert torch.cat(opened.batches(training(6), generator(3))).tolist() == first
    assert torch.cat(opened.batches(training(6), generator(4))).tolist() != first


def test_what_is_left_out_changes_from_epoch_to_epoch(faces):
    opened, drawing = faces(9), generator(0)
    left_out = [
        place
        for _ in range(40)
        for place in set(range(9)) - set(torch.cat(opened.batches(training(4), drawing)).tolist())
    ]
    assert len(left_out) == 40
    assert set(left_out) == set(range(9))


def test_in_order_every_image_comes_once_in_batches_of_bounded_pixels(faces, monkeypatch):
    for size, largest in ((16, 2), (24, 1), (40, 1)):
        monkeypatch.setattr("bbnet.tasks.batches.EVALUATION_PIXELS", 2 * 16**2 + 100)
        batches = faces(7, size).in_order()
        assert torch.cat(batches).tolist() == list(range(7))
        assert max(map(len, batches)) == largest


def test_batches_above_the_images_are_refused_by_name(faces):
    opened = faces(6)
    message = "training.batch_size 7 exceeds the 6 training samples"
    with pytest.raises(ValueError, match=message):
        opened.steps_per_epoch(training(7))
    with pytest.raises(ValueError, match=message):
        opened.batches(training(7), generator(0))


@pytest.fixture
def settings():
    """Settings of the embedded pack with that batch size."""

    def make(batch_size: int) -> Settings:
        schedule = {"epochs": 2, "warm_up_epochs": 1, "learning_rate": 0.1, "batch_size": batch_size}
        models = {"tiny": {"architecture": "small", "widths": [8], "blocks": [1]}}
        return Settings(data=RENDERED, size=24, models=models, training=schedule)

    return make


def test_batches_above_the_images_of_the_embedded_pack_are_refused_before_they_are_rendered(settings):
    assert settings(5).steps_per_epoch() == 1
    assert settings(2).steps_per_epoch() == 2
    with pytest.raises(ValueError, match=r"training\.batch_size 6 exceeds the 5 training images"):
        settings(6)


def test_what_is_scored_on_test_are_its_images_the_gallery_and_the_probes(pack, prepared):
    target, index = prepared(pack)
    opened = FacesToScore(target, index | {"buckets": make_buckets(index)["types"]})
    assert opened.files == index["splits"]["test"]["files"]
    assert opened.known.labels.tolist() == [0, 0, 1, 2]
    assert {split: probes.labels.tolist() for split, probes in opened.probes.items()} == {
        "dev": [0, -1, 2, 0, -1, 0, 2],
        "test": [2, 1, -1, 0],
    }
    assert (opened.probes["test"].images[2].numpy() == pixels(pack / "verification/unknown_test/000003.png")).all()


# Weights from a server.


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that is served on loopback; the table of packs has weights of the name and digits given there."""
    folder = tmp_path / "served"
    folder.mkdir()
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    table = yaml.safe_load(packs.TABLE.read_text())

    def publish(name, digits):
        file = {"urls": [f"http://127.0.0.1:{served.server_port}/{{file}}"], "sha256": digits}
        table["imagenet_resnet101"]["files"] = {name: file}
        monkeypatch.setattr(packs, "TABLE", tmp_path / "packs.yaml")
        packs.TABLE.write_text(yaml.safe_dump(table))

    yield folder, publish
    served.shutdown()
    served.server_close()


def test_weights_are_downloaded_and_checked(server, tmp_path):
    folder, publish = server
    content = bytes(range(256)) * 300
    digits = hashlib.sha256(content).hexdigest()
    name = f"resnet101-{digits[:8]}.pth"
    (folder / name).write_bytes(content)
    publish(name, digits[:8])
    target = tmp_path / "target"
    target.mkdir()
    manifest = fetch({"pack": "imagenet_resnet101"}, target, tmp_path / "downloads")
    assert manifest == {"pack": "imagenet_resnet101", "file": name, "root": ".", "files": {name: f"sha256:{digits}"}}
    assert (target / name).read_bytes() == content
    assert [path.name for path in target.iterdir()] == [name]


def test_weights_of_other_content_or_that_are_not_there_are_refused(server, tmp_path):
    folder, publish = server
    name = "resnet101-00000000.pth"
    publish(name, "00000000")
    with pytest.raises(ValueError, match=f"{name} cannot be fetched: .*404"):
        fetch({"pack": "imagenet_resnet101"}, tmp_path, tmp_path / "downloads")
    (folder / name).write_bytes(b"others")
    with pytest.raises(ValueError, match=f"{name} cannot be fetched: .*sha256 is .* must have 00000000"):
        fetch({"pack": "imagenet_resnet101"}, tmp_path, tmp_path / "downloads")
    assert not (tmp_path / "downloads" / name).exists()
