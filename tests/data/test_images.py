"""Decoding and resizing: upright, RGB, and the same pixels for every path through the code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgedistill.agent.pictures import UnreadableError
from edgedistill.data import images
from edgedistill.data.images import View
from tests.helpers.miniature import picture


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def test_crop_cuts_center_and_squash_keeps_all_columns() -> None:
    # 40 x 20: red, then a middle of 20 px that is half red and half blue, then blue
    wide = halves(40, 20)
    crop, squash = View(px=20, fit="crop"), View(px=20, fit="squash")
    cropped, squashed = images.to_square(wide, crop), images.to_square(wide, squash)
    assert cropped.shape == squashed.shape == (20, 20, 3) and cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, np.asarray(wide)[:, 10:30])
    assert (squashed[:, :8] == (255, 0, 0)).all() and (squashed[:, -8:] == (0, 0, 255)).all()
    pixels = np.asarray(wide).copy()
    pixels[:, :10] = 255  # outside the center square
    marked = Image.fromarray(pixels)
    assert not (images.to_square(marked, crop) == 255).all(axis=2).any()
    assert (images.to_square(marked, squash)[:, :4] == 255).all()


def test_read_applies_exif_orientation(tmp_path: Path) -> None:
    turned = halves(16, 16).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    turned.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(
        images.read(tmp_path / "x.png", View(px=16, fit="crop"), 16), np.asarray(halves(16, 16))
    )


def test_read_equals_store_then_resize(tmp_path: Path) -> None:
    picture(True, 1).save(tmp_path / "x.png")
    stored = images.to_square(picture(True, 1), View(px=32, fit="crop"))
    np.testing.assert_array_equal(
        images.read(tmp_path / "x.png", View(px=32, fit="crop"), 24), images.resize(stored, 24)
    )
    np.testing.assert_array_equal(images.read(tmp_path / "x.png", View(px=32, fit="crop"), 32), stored)
    assert images.resize(stored, 32) is stored
    assert (images.read(tmp_path / "x.png", View(px=24, fit="crop"), 24) != images.resize(stored, 24)).any()


def test_shrinking_is_antialiased() -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = images.resize(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8), 16)
    assert abs(small.astype(int) - 127).max() <= 2  # every other pixel would give 0 or 255


def test_undecodable_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(UnreadableError, match=r"^is not a picture in a format that is read$"):
        images.read(tmp_path / "x.png", View(px=8, fit="crop"), 8)
    with pytest.raises(UnreadableError, match=r"^No such file or directory$"):
        images.read(tmp_path / "none.png", View(px=8, fit="crop"), 8)
