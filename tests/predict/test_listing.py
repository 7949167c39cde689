"""Files, folders, patterns and lists become pictures, in an order that does not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.errors import InputError
from edgedistill.predict.listing import from_lines, listed


def test_folder_is_read_with_its_subfolders_and_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", ".c.png", "deep/d.webp", ".hidden/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert listed([str(tmp_path)]) == [tmp_path / name for name in ("a.png", "b.JPG", "deep/d.webp")]
    assert listed([str(tmp_path / "**/*.webp"), str(tmp_path / "a.png")]) == [
        tmp_path / "deep/d.webp",
        tmp_path / "a.png",
    ]


def test_name_with_brackets_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    assert listed([str(tmp_path / "a[1].png")]) == [tmp_path / "a[1].png"]


def test_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in this folder"):
        listed([str(tmp_path)])
    with pytest.raises(InputError, match=r"\*\.png: matches no file"):
        listed([str(tmp_path / "*.png")])


def test_lines_are_paths() -> None:
    assert list(from_lines(["a b.png\r\n", "\n", "c.png"])) == [Path("a b.png"), Path("c.png")]
