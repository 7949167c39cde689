"""The example program of the bundle, run as a person would; its pixels are the project's pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgedistill import images
from edgedistill.agent import label

ROOT = Path(__file__).parents[2]


def run(bundle: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(bundle / "label.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A green picture, wider than high, with some noise."""
    pixels = np.random.default_rng(3).integers(0, 60, size=(50, 70, 3), dtype=np.uint8)
    pixels[:, :, 1] += 120
    Image.fromarray(pixels).save(tmp_path / "green.png")
    return tmp_path / "green.png"


def test_it_labels_a_picture(bundle: Path, picture: Path) -> None:
    done = run(bundle, str(picture))
    assert done.returncode == 0, done.stderr
    # logits 0.1 * (about 30, 150, 30): softmax gives green 1 / (1 + 2 exp(-12)) = 99.999 %
    assert done.stdout == f"{picture}: green 100.0%\n"
    assert run(bundle, str(picture), "--model", "int8-cpu").stdout == done.stdout


def test_what_is_wrong_is_said(bundle: Path, picture: Path) -> None:
    done = run(bundle, str(bundle / "bundle.json"))
    assert done.returncode == 2
    assert "cannot be read as a picture" in done.stderr
    assert "one of: fp32, int8-cpu" in run(bundle, str(picture), "--model", "fp23").stderr


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize(("store_px", "input_px"), [(48, 32), (32, 32), (24, 40)])
def test_its_pixels_are_the_projects(picture: Path, fit: images.Fit, store_px: int, input_px: int) -> None:
    ours = images.read(picture, store_px, input_px, fit)
    assert np.array_equal(label.read_picture(str(picture), store_px, input_px, fit), ours)


def test_exif_orientation_is_kept_to(tmp_path: Path) -> None:
    half = np.zeros((40, 40, 3), np.uint8)
    half[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(half).save(tmp_path / "turned.jpg", exif=exif)
    theirs = label.read_picture(str(tmp_path / "turned.jpg"), 20, 20, "crop")
    assert np.array_equal(theirs, images.read(tmp_path / "turned.jpg", 20, 20, "crop"))
    assert theirs[:, -1].mean() > 200
    assert theirs[:, 0].mean() < 50


def test_deploy_shows_the_same_program() -> None:
    assert (ROOT / "deploy" / "label.py").read_bytes() == Path(label.__file__).read_bytes()
