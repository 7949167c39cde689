"""Decoding and resizing: upright, RGB, and the same pixels for every path through the code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgedistill.data import images
from tests.helpers.miniature import picture


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def test_crop_cuts_center_and_squash_keeps_all_columns() -> None:
    # 40 x 20: red, then a middle of 20 px that is half red and half blue, then blue
    wide = halves(40, 20)
    cropped, squashed = images.to_square(wide, 20, "crop"), images.to_square(wide, 20, "squash")
    assert cropped.shape == squashed.shape == (20, 20, 3) and cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, np.asarray(wide)[:, 10:30])
    assert (squashed[:, :8] == (255, 0, 0)).all() and (squashed[:, -8:] == (0, 0, 255)).all()
    pixels = np.asarray(wide).copy()
    pixels[:, :10] = 255  # outside the center square
    marked = Image.fromarray(pixels)
    assert not (images.to_square(marked, 20, "crop") == 255).all(axis=2).any()
    assert (images.to_square(marked, 20, "squash")[:, :4] == 255).all()


def test_read_applies_exif_orientation(tmp_path: Path) -> None:
    turned = halves(16, 16).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    turned.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(images.read(tmp_path / "x.png", 16, 16, "crop"), np.asarray(halves(16, 16)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    square = images.to_square(Image.new(mode, (10, 8)), 8, "crop")
    assert square.shape == (8, 8, 3) and square.dtype == np.uint8


def test_read_equals_store_then_resize(tmp_path: Path) -> None:
    picture(True, 1).save(tmp_path / "x.png")
    stored = images.to_square(picture(True, 1), 32, "crop")
    np.testing.assert_array_equal(images.read(tmp_path / "x.png", 32, 24, "crop"), images.resize(stored, 24))
    np.testing.assert_array_equal(images.read(tmp_path / "x.png", 32, 32, "crop"), stored)
    assert images.resize(stored, 32) is stored
    assert (images.read(tmp_path / "x.png", 24, 24, "crop") != images.resize(stored, 24)).any()


def test_shrinking_is_antialiased() -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = images.resize(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8), 16)
    assert abs(small.astype(int) - 127).max() <= 2  # every other pixel would give 0 or 255


def test_undecodable_file_raises_os_error(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(OSError, match="cannot identify"):
        images.read(tmp_path / "x.png", 8, 8, "crop")
    with pytest.raises(FileNotFoundError):
        images.read(tmp_path / "none.png", 8, 8, "crop")
