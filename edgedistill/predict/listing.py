"""The pictures that somebody names: files, folders, patterns, or a list of paths that comes in."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgedistill.data.listing import SUFFIXES
from edgedistill.errors import InputError

STDIN = "-"


def listed(names: Iterable[str]) -> list[Path]:
    """The files that are meant, in the order of the names; those of a folder or pattern are sorted.

    A folder is read with its subfolders, without hidden ones; a pattern such as `photos/**/*.jpg` matches files of any
    name. A name that is none of these is a file, and is said to be missing when it is read.

    Raises:
        InputError: a folder or a pattern has no pictures.
    """
    return [path for name in names for path in _below(name)]


def from_lines(lines: Iterable[str]) -> Iterator[Path]:
    """The paths of a list, a line each; empty lines are passed over."""
    return (Path(line.rstrip("\r\n")) for line in lines if line.strip())


def _below(name: str) -> list[Path]:
    place = Path(name)
    if place.is_dir():
        paths = [Path(folder) / file for folder, _, files in _walk(place) for file in files if _is_picture(file)]
        if not paths:
            raise InputError(f"{name}: no pictures in this folder", "name a folder of pictures")
        return sorted(paths)
    if not glob.has_magic(name) or os.path.lexists(place):
        return [place]
    matches = glob.iglob(name, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    paths = sorted(path for path in map(Path, matches) if not path.is_dir())
    if not paths:
        raise InputError(f"{name}: matches no file", "check the pattern, and put it in quotes")
    return paths


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for step in os.walk(folder):
        step[1][:] = [name for name in step[1] if not name.startswith(".")]
        yield step


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
