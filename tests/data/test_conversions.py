"""Photographs of every orientation and colour space are read alike, and what was converted is told."""

import numpy as np
import pytest
from PIL import Image

from bbnet.data.images import Converted, decode, upright_size

LOSSLESS = {"png": {}, "tif": {}, "webp": {"lossless": True, "exact": True}}
UPRIGHT = {  # how an image of each EXIF orientation is turned upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.fixture
def picture():
    return np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9])
def test_an_image_is_turned_upright_and_told(tmp_path, picture, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, exif=with_orientation(orientation), **LOSSLESS[suffix])
    image, conversions = decode(path, "RGB")
    assert (np.asarray(image) == UPRIGHT.get(orientation, UPRIGHT[1])(picture)).all()
    assert conversions == (["exif_orientation"] if 2 <= orientation <= 8 else [])
    assert upright_size(path) == image.size


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_an_uncompressed_tiff_of_any_mode_is_turned_upright(tmp_path, picture, mode):
    """Such a file may be mapped into memory instead of being read, as that of an RGB image never is."""
    image = Image.fromarray(picture).convert(mode)
    image.save(tmp_path / "a.tif", exif=with_orientation(6))
    assert (np.asarray(decode(tmp_path / "a.tif", "RGB").image) == np.rot90(np.asarray(image.convert("RGB")), -1)).all()


def test_a_jpeg_photograph_is_turned_upright_pixel_for_pixel(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "upright.jpg")
    Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=with_orientation(6))
    upright, turned = (np.asarray(decode(tmp_path / f"{name}.jpg", "RGB").image) for name in ("upright", "turned"))
    assert (turned == np.rot90(upright, -1)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_spoil_a_photograph(tmp_path, picture):
    for content in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no TIFF header at all"):
        Image.fromarray(picture).save(tmp_path / "a.jpg", exif=content)
        image, conversions = decode(tmp_path / "a.jpg", "RGB")
        assert (image.size, conversions) == ((40, 24), [])


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted_and_told(tmp_path, suffix):
    red = Image.new("RGB", (8, 8), (250, 10, 20))
    red.convert("CMYK").save(tmp_path / f"a.{suffix}")
    image, conversions = decode(tmp_path / f"a.{suffix}", "RGB")
    np.testing.assert_allclose(np.asarray(image)[4, 4], (250, 10, 20), atol=6)
    assert conversions == ["cmyk"]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_dropped_transparency_is_told(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", "RGB").conversions == ["alpha"]


def test_conversions_are_counted_and_the_first_files_named_in_the_log(caplog):
    caplog.set_level("INFO")
    converted = Converted()
    for number in range(5):
        converted.add(f"{number}.jpg", ["exif_orientation", "cmyk"] if number else ["cmyk"])
    converted.report()
    assert converted.files["exif_orientation"] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert "images turned as their EXIF orientation says: 4: 1.jpg; 2.jpg; 3.jpg; and 1 more" in caplog.text
    assert "images converted from CMYK: 5: 0.jpg" in caplog.text
