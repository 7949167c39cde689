"""What every data kind returns: named images with labels, decoded one by one on demand.

N images, C target classes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgedistill.errors import InputError

UNLABELED = -1
SPECIAL = "is a FIFO, a socket or a device, not a file"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, kw_only=True)
class Items:
    """Images not decoded yet: the name and class index of each (-1: no label), and a function that opens it.

    `names` and `labels_N` are of length N; `load(i)` opens image i and raises what Pillow raises on a broken one.
    """

    names: Sequence[str]
    labels_N: np.ndarray
    load: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> Items:
        """The items at `rows` (int64 [M]), in that order."""
        names, load = self.names, self.load
        return Items(
            names=[names[row] for row in rows], labels_N=self.labels_N[rows], load=lambda i: load(int(rows[i]))
        )


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A data set not decoded yet: `test` is its official test split, or None where it publishes none.

    `fingerprint` changes when a name, a label or a file changes; it is computed without decoding an image.
    """

    classes: tuple[str, ...]
    train: Items
    test: Items | None
    licence: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Files:
    """Image files: their names in the data set, their paths, and their labels (-1: no label)."""

    names: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[int]

    def items(self) -> Items:
        """The files as items, opened by Pillow."""
        paths = self.paths
        return Items(
            names=self.names, labels_N=np.asarray(self.labels, dtype=np.int64), load=lambda i: Image.open(paths[i])
        )

    def stamps(self) -> Iterator[str]:
        """Yield one line per file: name, label, size and modification time.

        Raises:
            InputError: a listed file is missing.
        """
        for name, path, label in zip(self.names, self.paths, self.labels, strict=True):
            yield f"{name}\0{label}\0{stamp(path)}"


def stamp(path: str | Path) -> str:
    """Size in bytes and modification time in ns of a file.

    Raises:
        InputError: it is missing, cannot be read, or is a FIFO, a socket or a device.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "bring the file back, or take it out of the list") from None
    if _is_special(status):
        raise InputError(f"{path}: {SPECIAL}", "take it out of the list")
    return f"{status.st_size}\0{status.st_mtime_ns}"


def refuse_special(path: str | Path) -> None:
    """Raise OSError for a FIFO, a socket or a device: opening it may wait for ever. A missing file is no error here."""
    if is_special(path):
        raise OSError(SPECIAL)


def is_special(path: str | Path) -> bool:
    """Whether a path is, or links to, a FIFO, a socket or a device."""
    try:
        return _is_special(Path(path).stat())
    except OSError:
        return False


def _is_special(status: os.stat_result) -> bool:
    return not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode)


def hash_lines(lines: Iterable[str]) -> str:
    """sha256 over lines of text, in hex."""
    running = hashlib.sha256()
    for line in lines:
        running.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return running.hexdigest()


def files_listing(classes: Sequence[str], train: Files, test: Files | None, licence: str) -> Listing:
    """A listing of image files; its fingerprint covers every file's name, label, size and modification time.

    Raises:
        InputError: a listed file is missing.
    """
    parts = [f"classes\0{'|'.join(classes)}", *train.stamps(), "test", *(test.stamps() if test else ())]
    return Listing(
        classes=tuple(classes),
        train=train.items(),
        test=test.items() if test else None,
        licence=licence,
        fingerprint=hash_lines(parts),
    )


def images_below(folder: Path) -> list[str]:
    """Paths of the images at any depth below `folder`, relative to it, with "/" between parts, sorted.

    FIFOs, sockets and devices are not images, whatever they are called.
    """
    paths = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(root, folder).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        images = [name for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
        paths += [prefix + name for name in images if not is_special(f"{root}/{name}")]
    return sorted(paths)


def class_order(labels: Iterable[str]) -> list[str]:
    """The distinct labels, sorted as numbers where all are numbers ("2" before "10"), else as text."""
    distinct = sorted(set(labels))
    return sorted(distinct, key=int) if all(label.isdecimal() for label in distinct) else distinct
