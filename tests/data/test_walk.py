"""Which files in folders are pictures: suffixes, and what is no file at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from PIL import Image, features

from edgedistill.data import datasets, load
from edgedistill.data.listing import SUFFIXES
from edgedistill.errors import InputError
from edgedistill.recipe.data_section import Data
from tests.helpers.paths import ROOT
from tests.helpers.trees import folder_tree, noise, write_picture


def section(**options: object) -> Data:
    return Data.model_validate({"kind": "folder", "root": "set", **options})


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_listed_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    Image.init()
    codec = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}.get(Image.EXTENSION.get(suffix, "AVIF"), "jpg")
    if not features.check(codec) or Image.EXTENSION[suffix] not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {suffix}")
    mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        noise(name, px=16).convert(mode).save(tmp_path / f"set/{name}/x{suffix}")
        (tmp_path / f"set/{name}/x{suffix}").rename(tmp_path / f"set/{name}/x{suffix.upper()}")
    dataset = datasets.listing(section(), tmp_path)
    assert len(dataset.train) == 2 and dataset.notes == ()
    with dataset.train.load(1) as image:
        assert min(image.size) > 8


def test_every_listed_suffix_is_documented() -> None:
    page = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
    sentence = page.partition("by these suffixes: ")[2].partition(". How")[0]
    assert set(sentence.split()) == SUFFIXES


def test_suffixes_that_start_programs_or_hold_no_pictures_are_not_listed() -> None:
    Image.init()
    assert not SUFFIXES & {".eps", ".ps", ".pdf", ".wmf", ".emf", ".fits", ".fit", ".mpg", ".h5", ".hdf", ".grib"}
    assert set(Image.registered_extensions()) >= SUFFIXES - {".avif", ".avifs"}


def special_files(folder: Path) -> None:
    """Make a FIFO, a link to it, a socket and a link to a device in a folder, all called like pictures."""
    os.mkfifo(folder / "fifo.png")
    (folder / "linked.png").symlink_to("fifo.png")
    (folder / "device.png").symlink_to("/dev/zero")
    os.mknod(folder / "socket.png", stat.S_IFSOCK | 0o600)


@pytest.mark.timeout(60)
def test_images_beside_a_fifo_are_decoded(tmp_path: Path) -> None:
    folder_tree(tmp_path / "set")
    special_files(tmp_path / "set/train/ant")
    names, _, _ = load.preview(section(), tmp_path, 8)
    assert names


@pytest.mark.timeout(60)
def test_special_files_are_left_out(tmp_path: Path) -> None:
    folder_tree(tmp_path / "set")
    write_picture(tmp_path / "more/x.png")
    options = section(unlabeled="more")
    before = datasets.listing(options, tmp_path)
    for part in ("set/train/ant", "set/test/bee", "more"):
        special_files(tmp_path / part)
    after = datasets.listing(options, tmp_path)
    assert list(after.train.names) == list(before.train.names)
    assert after.fingerprint == before.fingerprint and before.notes == ()
    assert after.notes == ("data: left out: 12 FIFOs, sockets or devices",)
    (tmp_path / "more/x.png").unlink()
    with pytest.raises(InputError, match="more: holds no image"):
        datasets.listing(options, tmp_path)
