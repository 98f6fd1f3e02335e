"""Photos as users have them: modes, depths, orientation, limits, damage."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rrm
from rrm.errors import RRMError
from rrm.photos import read_photo
from tests.prediction.conftest import made_photo

TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def _oriented(path: Path, pixels: Any, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def _png_of_16_bits(path: Path, value: int, colour: int) -> Path:
    """A 3x2 PNG of 16 bits a channel, which Pillow cannot write; `colour` is PNG's colour type, 0 grey or 2 RGB."""
    row = b"\0" + struct.pack(">H", value) * (3 * {0: 1, 2: 3}[colour])
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 2)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("orientation", sorted(TURNED))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = made_photo(5, 8)
    path = _oriented(tmp_path / "photo.png", pixels, orientation)
    expected = TURNED[orientation](pixels)
    np.testing.assert_array_equal(read_photo(path), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_photo(opened), expected)


def test_masks_have_the_upright_size(tmp_path: Path, segmenter: rrm.Segmenter) -> None:
    path = _oriented(tmp_path / "photo.jpg", made_photo(16, 40), 6)
    assert segmenter.predict(path, crf=False).labels.shape == (40, 16)


@pytest.mark.parametrize("orientation", [0, 9, 40000])
def test_orientations_that_exif_does_not_know(tmp_path: Path, orientation: int) -> None:
    assert read_photo(_oriented(tmp_path / "photo.png", made_photo(5, 8), orientation)).shape == (5, 8, 3)


def test_damaged_exif_changes_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for length in range(0, 200, 10):
        junk = b"Exif\0\0" + random.bytes(length)
        Image.fromarray(made_photo(5, 8)).save(tmp_path / "photo.jpg", exif=junk)
        assert read_photo(tmp_path / "photo.jpg").shape == (5, 8, 3)


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("1", 1, "png", (255, 255, 255)),
        ("L", 7, "jpg", (7, 7, 7)),
        ("LA", (7, 255), "png", (7, 7, 7)),
        ("LA", (7, 0), "png", (255, 255, 255)),
        ("RGB", (1, 2, 3), "bmp", (1, 2, 3)),
        ("RGB", (1, 2, 3), "ppm", (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), "png", (255, 255, 255)),
        ("RGBA", (0, 100, 200, 255), "tiff", (0, 100, 200)),
        ("CMYK", (0, 255, 255, 0), "tiff", (255, 0, 0)),
        ("I;16", 40000, "png", (156, 156, 156)),
        ("I;16", 40000, "tiff", (156, 156, 156)),
        ("I", 40000, "tiff", (156, 156, 156)),
    ],
)
def test_modes(tmp_path: Path, mode: str, colour: Any, suffix: str, expected: tuple[int, ...]) -> None:
    path = tmp_path / f"photo.{suffix}"
    image = Image.new(mode, (3, 2), colour)
    image.save(path)
    for given in (path, str(path), image):
        photo = read_photo(given)
        assert photo.shape == (2, 3, 3) and photo.dtype == np.uint8
        assert (photo == expected).all()


@pytest.mark.parametrize("colour", [0, 2])
def test_png_of_16_bits(tmp_path: Path, colour: int) -> None:
    assert (read_photo(_png_of_16_bits(tmp_path / "photo.png", 40000, colour)) == 156).all()


def test_cmyk_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    Image.fromarray(made_photo(8, 8)).convert("CMYK").save(tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.jpg") as opened:
        np.testing.assert_array_equal(read_photo(tmp_path / "photo.jpg"), np.asarray(opened.convert("RGB")))


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert (read_photo(tmp_path / "opaque.png") == (10, 20, 30)).all()
    assert (read_photo(tmp_path / "clear.png") == 255).all()


def test_the_first_of_several_frames(tmp_path: Path) -> None:
    frames = [Image.new("L", (3, 2), grey) for grey in (50, 200)]
    for suffix in ("gif", "tiff"):
        frames[0].save(tmp_path / f"photo.{suffix}", save_all=True, append_images=frames[1:])
        assert (read_photo(tmp_path / f"photo.{suffix}") == 50).all()


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70000), ("I", -1)])
def test_depths_without_an_obvious_range(mode: str, value: float) -> None:
    with pytest.raises(RRMError, match="expected at most 16 bits a channel"):
        read_photo(Image.new(mode, (3, 2), value))


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(made_photo(20, 30)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    for given in (path, Image.new("L", (30, 20)), np.zeros((20, 30, 3), np.uint8)):
        with pytest.raises(RRMError, match="at most 599 pixels, got .*30 x 20.* raise max_pixels"):
            read_photo(given, max_pixels=599)
    with pytest.raises(RRMError, match=r"photo\.png: expected"):
        read_photo(path, max_pixels=600)


def test_what_is_no_photo(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    for name, what in (("text.jpg", "expected a readable JPEG"), ("absent.jpg", "got no file")):
        with pytest.raises(RRMError, match=what):
            read_photo(tmp_path / name)
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(RRMError, match=r"expected \(H, W, 3\) uint8"):
            read_photo(array)
    with pytest.raises(RRMError, match="expected a path, a Pillow image or an array, got NoneType"):
        read_photo(None)  # type: ignore[arg-type]


def test_damaged_bytes_give_a_photo_or_a_message(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for suffix in ("jpg", "png", "tiff", "gif", "webp", "bmp"):
        path = tmp_path / f"photo.{suffix}"
        Image.fromarray(made_photo(16, 16)).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole[: random.integers(1, len(whole) + 1)].copy()
            places = random.integers(0, len(damaged), 4)
            damaged[places] = random.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            with suppress(RRMError):
                assert read_photo(path, max_pixels=10**6).shape[2] == 3
