"""Images are told by their content and of a stated list of formats; what else lies in a folder is named."""

import numpy as np
import pytest
from PIL import Image

from bbnet.data.images import ALLOWED, FORMATS, decode, images_in

LOSSLESS = ("PNG", "TIFF", "WEBP", "BMP", "PPM")


@pytest.fixture
def save(tmp_path):
    """Writes random pixels, uint8 [9, 8, 3], in a format of Pillow, and returns them."""

    def write(name: str, kind: str) -> np.ndarray:
        values = np.random.default_rng(1).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / name, kind, **({"lossless": True} if kind == "WEBP" else {}))
        return values

    return write


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".WebP", ".TIF", ".pgm", ".bmp"])
def test_an_image_is_read_by_its_content_whatever_its_suffix(save, tmp_path, kind, suffix):
    values = save(f"a{suffix}", kind)
    assert images_in(tmp_path) == ([tmp_path / f"a{suffix}"], [])
    assert (np.asarray(decode(tmp_path / f"a{suffix}", "RGB").image) == values).all()


@pytest.mark.parametrize("name", ["a", "a.image", "a.jpg_large", "a.gif"])
def test_an_image_of_an_unknown_suffix_is_found_by_its_content(save, tmp_path, name):
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "PPM"):
        save(name, kind)
        assert images_in(tmp_path) == ([tmp_path / name], [])


@pytest.mark.parametrize("name", ["a.dng", "a.NEF", "a"])
def test_a_tiff_of_another_suffix_is_not_read_since_it_may_be_a_raw_photograph(save, tmp_path, name):
    save(name, "TIFF")
    assert images_in(tmp_path) == ([], [tmp_path / name])


def test_every_suffix_of_the_list_is_one_that_pillow_gives_to_the_format():
    known = Image.registered_extensions()
    for kind, suffixes in FORMATS.items():
        assert {known[suffix] for suffix in suffixes} == {kind}


@pytest.mark.parametrize("kind", ["GIF", "ICO", "TGA", "JPEG2000", "PCX"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_other_formats_are_refused_with_the_list_even_under_a_suffix_of_it(save, tmp_path, kind, suffix):
    save(f"a{suffix}", kind)
    with pytest.raises(ValueError, match=f"cannot be read as an image; allowed are {ALLOWED}") as refused:
        decode(tmp_path / f"a{suffix}", "RGB")
    assert str(refused.value).startswith(f"{tmp_path / f'a{suffix}'}: ")


@pytest.mark.parametrize("content", [b"", b"P5", b"P5 x y", b"P2 9" + b"9" * 100, b"P6 9999999 9", b"\x89PNG", b"RIFF"])
def test_what_only_begins_like_an_image_is_no_image_and_refused_by_name(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert images_in(tmp_path) == ([], [tmp_path / "a.txt"])
    (tmp_path / "a.pgm").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be") as refused:
        decode(tmp_path / "a.pgm", "RGB")
    assert str(refused.value).startswith(f"{tmp_path / 'a.pgm'}: ")


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw"])
def test_a_compressed_tiff_in_ycbcr_is_read(tmp_path, compression):
    values = np.stack([*np.mgrid[0:256:4, 0:256:4], np.full((64, 64), 99)], axis=-1).astype(np.uint8)
    Image.fromarray(values).convert("YCbCr").save(tmp_path / "a.tif", compression=compression)
    found = np.asarray(decode(tmp_path / "a.tif", "RGB").image).astype(int)
    assert np.abs(found - values).max() <= 8


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_an_uncompressed_tiff_of_another_colour_space_is_refused_by_name(tmp_path, mode):
    """Pillow ignores how the colours of YCbCr are subsampled, and does not convert L*a*b*."""
    Image.new(mode, (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"image mode {mode}; allowed are ") as refused:
        decode(tmp_path / "a.tif", "RGB")
    assert str(refused.value).startswith(f"{tmp_path / 'a.tif'}: ")


def test_a_photograph_of_a_telephone_with_a_second_picture_within_is_read(tmp_path):
    first, second = (Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (200, 10))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    assert (np.asarray(decode(tmp_path / "a.jpg", "RGB").image) == 200).all()


@pytest.mark.parametrize("header", [b"P6 1 1 65535 ", b"P5 1 1 256 ", b"P5 1 1 65535 ", b"P6 1 1 1000\n"])
def test_a_pgm_or_ppm_of_more_than_8_bits_is_refused_by_name(tmp_path, header):
    (tmp_path / "a.pnm").write_bytes(header + bytes(6))
    with pytest.raises(ValueError, match="16 bits per channel|image mode I") as refused:
        decode(tmp_path / "a.pnm", "RGB")
    assert str(refused.value).startswith(f"{tmp_path / 'a.pnm'}: ")


def test_a_pgm_of_a_smaller_largest_value_is_scaled(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1 \0\1\1")
    assert np.asarray(decode(tmp_path / "a.pgm", "L").image).tolist() == [[0, 255, 255]]
    (tmp_path / "a.pgm").write_bytes(b"P2 3 1 1 0 1 1 ")
    assert np.asarray(decode(tmp_path / "a.pgm", "L").image).tolist() == [[0, 255, 255]]


def test_files_of_other_formats_and_in_subfolders_are_returned_and_litter_is_not(save, tmp_path):
    for name in ("in/deep/b.png", "in/a.png", "in/.hidden.png", "@eaDir/c.png", "._b.png", "b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(name, "PNG")
    save("c.gif", "GIF")
    (tmp_path / "note.txt").write_text("no image")
    others = ["c.gif", "note.txt", "in/a.png", "in/deep/b.png"]
    assert images_in(tmp_path) == ([tmp_path / "b.png"], [tmp_path / name for name in others])
