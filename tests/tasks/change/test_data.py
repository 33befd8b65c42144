"""A pack in LEVIR-CD's layout becomes tiles, pixel for pixel; a bad pack is refused by file."""

import json
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from bbnet.tasks.change.data import Tiles, fetch, prepare


@pytest.fixture
def prepared(tmp_path):
    """Fetches and prepares a folder as the workflow does, its manifest and index having been JSON."""

    def run(root, tile: int = 16):
        raw, target = tmp_path / "raw", tmp_path / "prepared"
        raw.mkdir(exist_ok=True)
        target.mkdir(exist_ok=True)
        manifest = json.loads(
            json.dumps(fetch({"pack": "levir_cd", "path": str(root), "complete": False}, raw), sort_keys=True)
        )
        manifest = {"root": str(raw)} | manifest
        return target, json.loads(json.dumps(prepare(manifest, {"tile": tile}, target), sort_keys=True))

    return run


def tiles_row_by_row(image: np.ndarray, tile: int) -> list[np.ndarray]:
    """Tiles of [height, width, ...]: the first row of tiles from left to right, then the next."""
    height, width = image.shape[:2]
    return [image[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]


@pytest.fixture
def three_sizes(random_pair):
    """Pairs of 1, 6 and 2 tiles of 16 pixels, out of alphabetical order."""
    return {"b.png": random_pair(1, 16, 16), "a.png": random_pair(2, 32, 48), "c.png": random_pair(3, 32, 16)}


def test_tiles_are_the_pixels_of_the_images_in_row_order(write_pack, prepared, three_sizes):
    target, _ = prepared(write_pack(train=three_sizes))
    dates = {
        part: [tile for name in sorted(three_sizes) for tile in tiles_row_by_row(three_sizes[name][part], 16)]
        for part in "AB"
    }
    labels = [tile for name in sorted(three_sizes) for tile in tiles_row_by_row(three_sizes[name]["label"], 16)]
    images = np.load(target / "train_images.npy")
    assert images.dtype == np.uint8
    assert images.shape == (9, 2, 3, 16, 16)
    for number in range(9):
        for date, part in enumerate("AB"):
            for channel in range(3):
                assert (images[number, date, channel] == dates[part][number][:, :, channel]).all()
    assert (np.load(target / "train_labels.npy") == (np.stack(labels) == 255)).all()


def test_the_index_tells_names_grids_and_first_tiles(write_pack, prepared, three_sizes):
    _, index = prepared(write_pack(train=three_sizes))
    train = index["splits"]["train"]
    assert index["tile"] == 16
    assert train["images"] == ["a.png", "b.png", "c.png"]
    assert train["grids"] == [[2, 3], [1, 1], [2, 1]]
    assert train["starts"] == [0, 6, 7, 9]
    assert set(index["splits"]) == {"train", "val", "test"}


def test_mean_and_sd_are_those_of_the_training_pixels_of_both_dates(write_pack, prepared, three_sizes, random_pair):
    _, index = prepared(write_pack(train=three_sizes, val={"v.png": random_pair(4)}))
    pixels = np.concatenate([pair[part].reshape(-1, 3) for pair in three_sizes.values() for part in "AB"]).astype(float)
    np.testing.assert_allclose(index["mean"], pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(index["sd"], pixels.std(0), rtol=1e-12)


def test_a_constant_channel_has_an_sd_that_can_be_divided_by(write_pack, prepared, random_pair):
    grey = random_pair(1) | {part: np.full((32, 32, 3), 77, dtype=np.uint8) for part in "AB"}
    _, index = prepared(write_pack(train={"a.png": grey}))
    assert index["mean"] == [77, 77, 77]
    assert min(index["sd"]) >= 1


def test_the_share_of_changed_pixels_is_per_split(write_pack, prepared, random_pair):
    label = np.zeros((32, 32), dtype=np.uint8)
    label[:8, :16] = 255
    _, index = prepared(write_pack(val={"a.png": random_pair(1) | {"label": label}}))
    assert index["splits"]["val"]["changed"] == 1 / 8


# Layout.


def test_files_that_are_no_images_are_ignored_and_suffixes_may_be_capital(write_pack, prepared, random_pair):
    root = write_pack(train={"a.png": random_pair(1), "b.bmp": random_pair(2)})
    for part in ("A", "B", "label"):
        (root / "train" / part / "a.png").rename(root / "train" / part / "a.PNG")
    (root / "train" / "A" / "Thumbs.db").write_text("no image")
    _, index = prepared(root)
    assert index["splits"]["train"]["images"] == ["a.PNG", "b.bmp"]


SUFFIXES = {"A": ".jpg", "B": ".TIFF", "label": ".pgm"}


def test_pairs_are_joined_by_stem_and_named_by_the_first_date(write_pack, prepared, three_sizes, caplog):
    root = write_pack(train=three_sizes)
    expected, index = prepared(root)
    before = {path.name: path.read_bytes() for path in expected.iterdir()}
    for part, suffix in SUFFIXES.items():
        for path in (root / "train" / part).iterdir():
            path.rename(path.with_suffix(suffix))  # read by content
    target, again = prepared(root)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert again["splits"]["train"] == index["splits"]["train"] | {"images": ["a.jpg", "b.jpg", "c.jpg"]}
    assert "skipped" not in again and "not read" not in caplog.text


@pytest.mark.parametrize("part", ["A", "B", "label"])
@pytest.mark.parametrize("other", ["only.PNG", "only.webp", "only"])
def test_two_files_of_one_stem_are_refused_and_both_named(write_pack, prepared, part, other):
    root = write_pack()
    folder = root / "val" / part
    (folder / other).write_bytes((folder / "only.png").read_bytes())
    with pytest.raises(ValueError, match="its name without the suffix equals that of") as refused:
        prepared(root)
    assert str(folder) in str(refused.value)
    assert "only.png" in str(refused.value) and other in str(refused.value)


def test_files_that_are_not_read_are_named_and_listed_in_the_index(write_pack, prepared, random_pair, caplog):
    root = write_pack()
    expected, _ = prepared(root)
    before = {path.name: path.read_bytes() for path in expected.iterdir()}
    unread = ["train/list.txt", "train/C/only.png", "train/A/only.gif", "val/B/more/only.png", "val/label/only.tfw"]
    unread += ["list.txt", "test2/A/only.png", "Train/only.png"]
    for name in unread:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pair(3)["A"]).save(root / name, "GIF")
    target, index = prepared(root)
    assert sorted(index["skipped"]["not_read"]) == sorted(unread)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    for name in unread:
        assert name.partition("/")[2] in caplog.text
    assert f"{root}: files that are not read: 3: " in caplog.text


def test_a_pair_whose_file_is_not_of_a_format_that_is_read_says_so(write_pack, prepared):
    root = write_pack()
    only = root / "test" / "B" / "only.png"
    with Image.open(only) as image:
        image.save(only.with_suffix(".gif"))
    only.unlink()
    with pytest.raises(ValueError, match=r"missing \(only\.gif is not of a format that is read; allowed are PNG") as no:
        prepared(root)
    assert str(no.value).startswith(f"{only}: ")


@pytest.mark.parametrize("part", ["A", "B", "label"])
def test_a_missing_file_of_a_pair_is_named(write_pack, prepared, random_pair, part):
    root = write_pack(val={"a.png": random_pair(1), "b.png": random_pair(2)})
    missing = root / "val" / part / "b.png"
    missing.unlink()
    with pytest.raises(ValueError, match="missing") as refused:
        prepared(root)
    assert str(refused.value).startswith(f"{missing}: ")


def test_several_missing_files_are_counted(write_pack, prepared, random_pair):
    root = write_pack(val={f"{letter}.png": random_pair(1) for letter in "abc"})
    for letter in "bc":
        (root / "val" / "label" / f"{letter}.png").unlink()
    with pytest.raises(ValueError, match=r"label/b\.png: missing and 1 more"):
        prepared(root)


@pytest.mark.parametrize("folder", ["train", "val/B", "test/label"])
def test_a_missing_folder_is_named_with_the_layout(write_pack, prepared, folder):
    root = write_pack()
    (root / folder).rename(root / "elsewhere")
    with pytest.raises(ValueError, match="no such folder") as refused:
        prepared(root)
    assert str(root / folder) in str(refused.value)
    assert "{train,val,test}/{A,B,label}" in str(refused.value)


def test_an_empty_split_is_refused_with_the_suffixes(write_pack, prepared):
    root = write_pack()
    for part in ("A", "B", "label"):
        (root / "test" / part / "only.png").unlink()
    with pytest.raises(ValueError, match="test: has no images; allowed are PNG, JPEG, TIFF, WebP, BMP and PGM"):
        prepared(root)


# Files.


@pytest.mark.parametrize("part", ["B", "label"])
def test_a_pair_of_unequal_size_is_refused_by_file_and_sizes(write_pack, prepared, random_pair, part):
    root = write_pack(train={"a.png": random_pair(1, 32, 48) | {part: random_pair(2, 32, 32)[part]}})
    with pytest.raises(ValueError, match="32 x 32 pixels, but A is 48 x 32") as refused:
        prepared(root)
    assert str(refused.value).startswith(f"{root / 'train' / part / 'a.png'}: ")


@pytest.mark.parametrize(("height", "width"), [(40, 32), (32, 40), (8, 8)])
def test_a_size_that_the_tile_does_not_divide_is_refused_by_file(write_pack, prepared, random_pair, height, width):
    root = write_pack(test={"a.png": random_pair(1, height, width)})
    with pytest.raises(ValueError, match=f"{width} x {height} pixels; must be multiples of tile 16") as refused:
        prepared(root)
    assert str(refused.value).startswith(str(root / "test" / "A" / "a.png"))


@pytest.mark.parametrize("value", [1, 255])
def test_labels_of_0_and_1_and_of_0_and_255_are_binary(write_pack, prepared, random_pair, value):
    label = random_pair(5)["label"] // 255
    target, _ = prepared(write_pack(train={"a.png": random_pair(1) | {"label": label * np.uint8(value)}}))
    np.testing.assert_array_equal(np.load(target / "train_labels.npy"), tiles_row_by_row(label, 16))


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_label_of_one_value_is_binary(write_pack, prepared, random_pair, value):
    target, _ = prepared(write_pack(train={"a.png": random_pair(1) | {"label": np.full((32, 32), value, np.uint8)}}))
    assert np.unique(np.load(target / "train_labels.npy")).tolist() == [int(value > 0)]


@pytest.mark.parametrize(
    ("values", "found"), [([0, 128, 255], "128"), ([0, 1, 255], "0, 1, 255"), ([3], "3"), ([0, 254], "254")]
)
def test_a_label_that_is_not_binary_is_refused_by_file_and_value(write_pack, prepared, random_pair, values, found):
    label = np.resize(np.array(values, dtype=np.uint8), (32, 32))
    root = write_pack(val={"a.png": random_pair(1) | {"label": label}})
    with pytest.raises(
        ValueError, match=rf"label is not binary; found \[{found}\], allowed 0 and 255 or 0 and 1"
    ) as refused:
        prepared(root)
    assert str(refused.value).startswith(f"{root / 'val' / 'label' / 'a.png'}: ")


@pytest.mark.parametrize("part", ["A", "label"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused_by_file(write_pack, prepared, random_pair, part, share):
    root = write_pack(train={"a.png": random_pair(1, 64, 64)})
    path = root / "train" / part / "a.png"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cannot be") as refused:
        prepared(root)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize("at", [20, 30, 35, 41, 300])
def test_a_damaged_image_is_refused_by_file(write_pack, prepared, random_pair, at):
    root = write_pack(train={"a.png": random_pair(1, 64, 64)})
    path = root / "train" / "B" / "a.png"
    content = bytearray(path.read_bytes())
    content[at : at + 4] = bytes(byte ^ 0x5A for byte in content[at : at + 4])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"B/a\.png: "):
        prepared(root)


def test_a_text_file_named_png_is_refused_by_file(write_pack, prepared):
    root = write_pack()
    path = root / "train" / "B" / "only.png"
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match="cannot be read as an image") as refused:
        prepared(root)
    assert str(refused.value).startswith(f"{path}: ")


def test_pictures_of_other_modes_are_converted_to_rgb(write_pack, prepared, random_pair):
    root = write_pack(train={"a.png": random_pair(1, 16, 16)})
    colour = random_pair(2, 16, 16)["A"]
    alpha = np.dstack([colour, np.full((16, 16), 9, np.uint8)])
    grey = colour[:, :, 0]
    Image.fromarray(alpha).save(root / "train" / "A" / "a.png")
    Image.fromarray(grey).save(root / "train" / "B" / "a.png")
    target, _ = prepared(root)
    before, after = np.load(target / "train_images.npy")[0]
    assert (before == colour.transpose(2, 0, 1)).all()
    assert (after == np.stack([grey] * 3)).all()


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "P"])
def test_labels_of_other_modes_are_read(write_pack, prepared, random_pair, mode):
    root = write_pack(train={"a.png": random_pair(1, 16, 16)})
    label = random_pair(3, 16, 16)["label"]
    Image.fromarray(label).convert(mode).save(root / "train" / "label" / "a.png")
    target, _ = prepared(root)
    assert (np.load(target / "train_labels.npy")[0] == (label == 255)).all()


# Index 0 is unchanged and 1 is changed, unless the colours are black and white.
PALETTES = {
    "VOC": [(0, 0, 0), (128, 0, 0)],
    "blue that is nearly black": [(0, 0, 0), (0, 0, 1)],
    "inverted colours": [(255, 255, 0), (0, 0, 0)],
    "black and white": [(0, 0, 0), (255, 255, 255)],
    "0 and 1": [(0, 0, 0), (1, 1, 1)],
    "white first": [(255, 255, 255), (0, 0, 0)],
}


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("colours", PALETTES)
def test_a_palette_is_read_by_index_unless_its_colours_are_black_and_white(
    write_pack, prepared, random_pair, colours, suffix
):
    label = random_pair(5, 16, 16)["label"] // 255
    root = write_pack(train={f"a{suffix}": random_pair(1, 16, 16)})
    image = Image.frombytes("P", (16, 16), label.tobytes())
    image.putpalette([value for colour in PALETTES[colours] for value in colour])
    image.save(root / "train" / "label" / f"a{suffix}")
    if (colours, suffix) == ("black and white", ".bmp"):  # which Pillow would misread
        with pytest.raises(ValueError, match=r"label/a\.bmp: a BMP of two colours with several bits per pixel"):
            prepared(root)
        return
    target, _ = prepared(root)
    expected = 1 - label if colours == "white first" else label
    assert (np.load(target / "train_labels.npy")[0] == expected).all()


@pytest.mark.parametrize("kind", ["void border", "one colour"])
def test_a_palette_of_other_indices_or_without_an_index_1_is_refused(write_pack, prepared, random_pair, kind):
    root = write_pack(train={"a.png": random_pair(1, 16, 16)})
    path = root / "train" / "label" / "a.png"
    indices = np.resize(np.array([0, 1, 255] if kind == "void border" else [0], dtype=np.uint8), (16, 16))
    image = Image.frombytes("P", (16, 16), indices.tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0, *[224, 224, 192] * 254] if kind == "void border" else [128, 0, 0])
    image.save(path)
    with pytest.raises(ValueError, match="label is not binary") as refused:
        prepared(root)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("suffix", "options"), [("jpg", {}), ("png", {"format": "JPEG"}), ("tif", {"compression": "jpeg"})]
)
def test_a_label_compressed_as_jpeg_is_refused_as_such_whatever_its_name_and_values(
    write_pack, prepared, random_pair, suffix, options
):
    root = write_pack(val={"a.png": random_pair(1)})
    path = root / "val" / "label" / "a.png"
    path.unlink()
    path = path.with_suffix(f".{suffix}")
    Image.new("L", (32, 32), 255).save(path, **options)
    with pytest.raises(ValueError, match="is compressed as JPEG, which blurs labels; allowed are lossless") as refused:
        prepared(root)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("split", "value", "told"), [
    ("train", 0, "no pixel is changed in any label"),
    ("val", 255, "every pixel is changed in any label"),
    ("test", 1, "every pixel is changed in any label"),
])  # fmt: skip
def test_a_split_of_one_class_is_warned_of(write_pack, prepared, random_pair, caplog, split, value, told):
    label = {"label": np.full((32, 32), value, np.uint8)}
    root = write_pack(**{split: {"a.png": random_pair(1) | label, "b.png": random_pair(2) | label}})
    prepared(root)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage().startswith(f"{root / split}: {told}")


def test_pairs_are_joined_however_the_accents_of_their_names_are_stored(write_pack, prepared, random_pair):
    names = ["Zürich_1.png", "Zz.png", "Čeb.png"]
    root = write_pack(train={name: random_pair(seed) for seed, name in enumerate(names)})
    clean = {path.name: path.read_bytes() for path in prepared(root)[0].iterdir()}
    for part, form in (("A", "NFD"), ("label", "NFD")):
        for name in names:
            (root / "train" / part / name).rename(root / "train" / part / unicodedata.normalize(form, name))
    target, _ = prepared(root)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == clean


@pytest.mark.parametrize("part", ["A", "B", "label"])
def test_an_image_that_exif_turns_is_the_upright_one_of_the_clean_pack(write_pack, prepared, random_pair, part):
    root = write_pack(train={"a.png": random_pair(1, 32, 48)})
    clean = {path.name: path.read_bytes() for path in prepared(root)[0].iterdir()}
    path, exif = root / "train" / part / "a.png", Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    target, index = prepared(root)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == clean
    assert index["splits"]["train"]["grids"] == [[2, 3]]
    assert index["converted"] == {"exif_orientation": [f"train/{part}/a.png"]}


# The embedded pack, and batches.


def test_the_embedded_pack_is_rendered_and_prepared(tmp_path):
    pack = {"pack": "aerial_scenes", "size": 32, "train": 11, "val": 2, "test": 3}
    manifest = fetch(pack, tmp_path)
    assert {split: len(names) for split, names in manifest["splits"].items()} == {"train": 11, "val": 2, "test": 3}
    for names in manifest["splits"]["train"]:
        assert all(
            (tmp_path / "train" / part / name).is_file() for part, name in zip(("A", "B", "label"), names, strict=True)
        )
    (tmp_path / "prepared").mkdir()
    index = prepare({"root": str(tmp_path)} | manifest, {"tile": 16}, tmp_path / "prepared")
    assert index["splits"]["test"]["starts"] == [0, 4, 8, 12]
    assert len(index["splits"]["train"]["images"]) == 11


def test_nothing_of_a_pack_on_disk_is_copied_or_changed(write_pack, tmp_path):
    root = write_pack()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    target = tmp_path / "raw"
    target.mkdir()
    assert fetch({"pack": "levir_cd", "path": str(root), "complete": False}, target)["root"] == str(root)
    assert list(target.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_batch_holds_the_tiles_asked_for(write_pack, prepared, three_sizes):
    target, index = prepared(write_pack(train=three_sizes))
    split = Tiles(target, index, "train")
    batch = split.batch(torch.tensor([7, 0, 3]), torch.device("cpu"))
    images, labels = np.load(target / "train_images.npy"), np.load(target / "train_labels.npy")
    assert len(split) == 9
    assert (batch.images.numpy() == images[[7, 0, 3]]).all()
    assert (batch.labels.numpy() == labels[[7, 0, 3]]).all()
