"""What every data kind returns: named images with labels, decoded one by one on demand.

N images, C target classes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgedistill.agent.pictures import SPECIAL, is_special, open_picture
from edgedistill.errors import InputError
from edgedistill.run.files import canonical

# version of the rules by which data sets are listed and pictures decoded; it enters every fingerprint of images
RULES = 3
# What is read (agent/pictures.FORMATS) and people keep pictures in: a table in the tests holds both against each other.
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".png", ".apng", ".gif", ".webp", ".avif", ".avifs", ".bmp", ".dib", ".tif", ".tiff"),
        *(".pbm", ".pgm", ".ppm", ".pnm", ".tga"),
    }
)
WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"),
    "unlabeled": (
        *("unlabeled", "unlabelled", "unlabel", "notlabeled", "notlabelled", "nolabel", "nolabels"),
        *("withoutlabel", "withoutlabels", "unannotated"),
    ),
}
ENDINGS = ("", "set", "split", "data", "images", "imgs", "pictures", "photos")
PART = re.compile(r"[^\W\d_]+")  # a word in a name, without the digits around it
SPLITS = {word + ending: split for split, words in WORDS.items() for word in words for ending in ENDINGS}
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")


@dataclass(frozen=True, kw_only=True)
class Items:
    """Images not decoded yet: the name and class index of each (-1: no label), and a function that opens it.

    `names` and `labels_N` are of length N; `load(i)` opens image i and raises what Pillow raises on a broken one.
    `groups` are those of `data.group`, None for an image of no group; without the key there are none.
    """

    names: Sequence[str]
    labels_N: np.ndarray
    load: Callable[[int], Image.Image]
    groups: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> Items:
        """The items at `rows` (int64 [M]), in that order."""
        names, load = self.names, self.load
        return Items(
            names=[names[row] for row in rows],
            labels_N=self.labels_N[rows],
            load=lambda i: load(int(rows[i])),
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )

    def followed_by(self, others: Items) -> Items:
        """These items, and `others` behind them."""
        count, load = len(self), self.load
        return Items(
            names=[*self.names, *others.names],
            labels_N=np.concatenate([self.labels_N, others.labels_N]),
            load=lambda i: load(i) if i < count else others.load(i - count),
            groups=None if self.groups is None else [*self.groups, *(others.groups or [None] * len(others))],
        )


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A data set not decoded yet: `test` and `val` are its official splits, or None where it publishes none.

    `fingerprint` changes when a name, a label or a file changes; it is computed without decoding an image. `pictures`
    does not change with labels, classes and groups, where a kind can tell: decoded pixels are kept by it. `notes` say
    in a sentence each how the data set was understood, where that is not plain, and what was left out.
    """

    classes: tuple[str, ...]
    train: Items
    test: Items | None
    licence: str
    fingerprint: str
    pictures: str = ""
    val: Items | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Files:
    """Image files: their names in the data set, their paths, their labels (-1: no label), and their groups."""

    names: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[int]
    groups: Sequence[str | None] | None = None

    def items(self) -> Items:
        """The files as items, opened by Pillow."""
        paths = self.paths
        return Items(
            names=self.names,
            labels_N=np.asarray(self.labels, dtype=np.int64),
            load=lambda i: open_picture(paths[i]),
            groups=self.groups,
        )

    def stamps(self) -> list[tuple[int, int]]:
        """Size and modification time of each file.

        Raises:
            InputError: a listed file is missing.
        """
        return [stamp(path) for path in self.paths]

    def lines(self, stamps: Sequence[tuple[int, int]]) -> Iterator[tuple[str | int | None, ...]]:
        """Yield name, label, size and modification time of each file, and its group where there are groups."""
        groups = [()] * len(self.names) if self.groups is None else [(group,) for group in self.groups]
        for name, stamped, label, group in zip(self.names, stamps, self.labels, groups, strict=True):
            yield name, label, *stamped, *group


def stamp(path: str | Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file.

    Raises:
        InputError: it is missing, cannot be read, or is a FIFO, a socket or a device.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "bring the file back, or take it out of the list") from None
    if is_special(path):
        raise InputError(f"{path}: {SPECIAL}", "take it out of the list")
    return status.st_size, status.st_mtime_ns


def refuse_special(path: str | Path) -> None:
    """Raise OSError for a FIFO, a socket or a device: opening it may wait for ever. A missing file is no error here."""
    if is_special(path):
        raise OSError(SPECIAL)


def hash_lines(lines: Iterable[Any]) -> str:
    """sha256 over JSON values, a line each, in hex.

    Names must go through it as they are, never joined: JSON escapes whatever a name may contain.
    """
    running = hashlib.sha256()
    for line in lines:
        running.update(canonical(line) + b"\n")
    return running.hexdigest()


def files_listing(
    classes: Sequence[str],
    train: Files,
    test: Files | None,
    licence: str,
    *,
    val: Files | None = None,
    notes: Sequence[str] = (),
) -> Listing:
    """A listing of image files; its fingerprint covers every file's name, label, size and modification time.

    Raises:
        InputError: a listed file is missing.
    """
    named = (("train", train), ("test", test), ("val", val))
    parts = [(split, files, files.stamps()) for split, files in named if files is not None]

    def lines() -> Iterator[Any]:
        yield ["classes", *classes]
        for split, files, stamps in parts:
            yield split
            yield from files.lines(stamps)

    def pictures() -> Iterator[Any]:
        for split, files, stamps in parts:
            yield split
            yield from zip(files.names, stamps, strict=True)

    return Listing(
        classes=tuple(classes),
        train=train.items(),
        test=test.items() if test else None,
        licence=licence,
        fingerprint=hash_lines(lines()),
        pictures=hash_lines([RULES, *pictures()]),
        val=val.items() if val else None,
        notes=tuple(notes),
    )


def class_order(labels: Iterable[str]) -> list[str]:
    """The distinct labels, sorted as numbers where all are numbers ("-1", "0.5", "2", "10"), else as text.

    Equal numbers ("01" and "1") are sorted as text.
    """
    distinct = sorted(set(labels))
    return sorted(distinct, key=Decimal) if all(NUMBER.fullmatch(label) for label in distinct) else distinct


def split_of(name: str) -> str | None:
    """The split that a folder or a table's value of this name means: train, val, test, unlabeled, or None.

    Upper and lower case and the separators between words do not matter: `Training`, `train_set`, `Validation Data`.
    """
    return SPLITS.get(re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold()))


def split_in(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that one of a name's words means, and the other words: `seg_train` gives train and ("seg",)."""
    words = PART.findall(unicodedata.normalize("NFKC", name).casefold())
    position = next((index for index, word in enumerate(words) if split_of(word)), len(words))
    return split_of(words[position]) if words[position:] else None, (*words[:position], *words[position + 1 :])
