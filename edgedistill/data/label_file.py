"""labels.csv: the labels of pictures, and how each came; `data: {kind: csv, file: labels.csv}` takes it as it is.

    path,label,how
    a/001.jpg,bolt,random
    a/002.jpg,nut,suggested
    a/003.jpg,,

Paths are relative to the file's folder, with /. Every picture has a row, so that a run uses those without a label, too.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedistill.data.listing import Files, Listing, class_order, files_listing
from edgedistill.data.tables import DELIMITERS, EMPTY_CELL_TEXTS, MAX_LABEL, header, read_rows
from edgedistill.data.walk import Walk
from edgedistill.errors import InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.options import bound_options
from edgedistill.run.files import atomic

NAME = "labels.csv"
COLUMNS = ("path", "label", "how")
SAVE_FIX = "save it as CSV in UTF-8, with commas and the header path,label,how"
NOT_STATED = "not stated: images of your own"
HOW = {
    "random": "drawn at random: what is measured on these is unbiased",
    "suggested": "chosen by a strategy",
    "bulk": "accepted together with others of its cluster",
    "given": "labeled before, it is not known how they were chosen",
    "unusable": "shows nothing that can be labeled; its label is empty, and it is not suggested again",
}
CHOSEN = ("suggested", "bulk")  # what is measured on these is biased


@dataclass(frozen=True, kw_only=True)
class Label:
    """The class of a picture, "" without one, and how it came, a key of HOW or "" without a label."""

    name: str = ""
    how: str = ""


def read_labels(file: Path, delimiter: str = ",") -> dict[str, Label]:
    """The labels of a labels.csv by path, as it is spelled there; without a column `how` they count as `given`.

    Raises:
        InputError: the file cannot be read, a row is broken, a path stands twice, in two spellings even, or `how` is
            none of HOW.
    """
    columns = [name for name in COLUMNS if name != "how" or _has_how(file, delimiter)]
    labels: dict[str, Label] = {}
    spellings: dict[str, str] = {}
    for row in read_rows(file, columns, label="label", delimiter=delimiter, least=0):
        path, name, how = row.cells["path"], row.cells["label"], row.cells.get("how", "")
        if (first := spellings.setdefault(posixpath.normpath(path), path)) != path or path in labels:
            other = "" if first == path else f", the other as {first}"
            raise InputError(f"{file}:{row.line}: {path} has two rows{other}", "remove one of them")
        if how and how not in HOW:
            raise InputError(f"{file}:{row.line}: how: {how!r} is unknown", f"write one of {', '.join(HOW)}")
        labels[path] = Label(name=name, how=how or ("given" if name else ""))
    return labels


def spelled(labels: Mapping[str, Label], pictures: Collection[str]) -> dict[str, Label]:
    """Labels by the names of the pictures: a row of ./a.jpg is the one of a.jpg; paths of no picture stay as they are.

    A folder's pictures have plain names; those of a recipe are spelled as in its table, on which its draws depend.
    """
    names = set(pictures)
    if labels.keys() <= names:
        return dict(labels)
    name_of = {posixpath.normpath(name): name for name in pictures}
    return {
        path if path in names else name_of.get(posixpath.normpath(path), path): label for path, label in labels.items()
    }


def is_labels(file: Path) -> bool:
    """Whether a table has the columns path and label."""
    return {"path", "label"} <= set(header(file))


def is_misread(file: Path) -> bool:
    """Whether a table is meant as labels, but has another delimiter, encoding or spelling of its columns."""
    found = {name.strip().casefold() for other in DELIMITERS for name in header(file, other)}
    return not is_labels(file) and (not found or {"path", "label"} <= found)


def labels_of_folder(root: Path) -> Path | None:
    """The labels.csv of a folder of pictures; None if there is none, or one of other columns.

    Raises:
        InputError: it is meant as labels, but has another delimiter, encoding or spelling of its columns.
    """
    file = root / NAME
    if not file.is_file():
        return None
    if is_misread(file):
        raise InputError(f"{file}: is no table with the columns path and label", SAVE_FIX)
    return file if is_labels(file) else None


def refuse_other_columns(file: Path) -> None:
    """Refuse a labels.csv that cannot be written again without a loss.

    Raises:
        InputError: it has columns besides COLUMNS.
    """
    if others := [name for name in header(file) if name.strip() and name not in COLUMNS]:
        raise InputError(
            f"{file}: has the column {others[0]}, which would be lost", f"keep a copy, and leave {', '.join(COLUMNS)}"
        )


def refuse_unreadable(file: Path, labels: Mapping[str, Label]) -> None:
    """Refuse rows that would be read again as others, or not at all.

    Raises:
        InputError: a path or a class begins or ends with a space, has a line break or is no valid Unicode, or a class
            is the text of an empty cell or too long.
    """
    for path, label in labels.items():
        for text in (path, label.name):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InputError(f"{file}: cannot hold the name {text!a}: it is no valid Unicode", "rename it")
            if text != text.strip() or "\n" in text or "\r" in text:
                raise InputError(f"{file}: cannot hold the name {text!r}", "rename it, without spaces around it")
        if label.name in EMPTY_CELL_TEXTS:
            raise InputError(f"{file}: {label.name} is the text of an empty cell, and no class", "rename the class")
        if len(label.name) > MAX_LABEL:
            raise InputError(f"{file}: a class has {len(label.name)} characters, {MAX_LABEL} at most", "rename it")


def write_labels(file: Path, labels: Mapping[str, Label]) -> None:
    """Write a labels.csv atomically; the rows are sorted by path.

    Raises:
        InputError: a row could not be read again (`refuse_unreadable`); an existing file is unchanged.
        OSError: the disk is full or the folder cannot be written; an existing file is unchanged.
    """
    refuse_unreadable(file, labels)
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((path, labels[path].name, labels[path].how) for path in sorted(labels))
    with atomic(file.resolve()) as temporary:  # a link stays one
        temporary.write_text(stream.getvalue(), encoding="utf-8", newline="")


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Alone among all that write the tables of a folder; the lock is the folder's, and leaves no file behind."""
    handle = os.open(file.resolve().parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def updated(file: Path, answers: Mapping[str, Label], pictures: Sequence[str]) -> dict[str, Label]:
    """Write `answers` into a labels.csv, which gets a row for every one of `pictures`; returns all of its labels.

    An answer replaces the label that a picture had. Rows of other pictures stay; each path is spelled as in `pictures`.

    Raises:
        InputError: the file has other columns, or is broken.
        OSError: it cannot be written; it is unchanged.
    """
    with locked(file):
        refuse_other_columns(file)
        before = read_labels(file) if file.exists() else {}
        labels = dict.fromkeys(pictures, Label()) | spelled(before, pictures) | spelled(answers, pictures)
        write_labels(file, labels)
    return labels


def filled_in(file: Path) -> dict[str, Label]:
    """The rows of a table whose label is filled in, whatever its delimiter: many spreadsheets save with semicolons.

    Raises:
        InputError: as in `read_labels`.
    """
    delimiter = next((other for other in DELIMITERS if {"path", "label"} <= set(header(file, other))), ",")
    rows = read_labels(file, delimiter)
    return {path: label for path, label in rows.items() if label.name or label.how == "unusable"}


def read_answers(file: Path) -> dict[str, Label]:
    """The rows of a suggestions.csv, or of a labels.csv, whose label is filled in.

    Raises:
        InputError: as in `read_labels`, or no label is filled in.
    """
    answers = filled_in(file)
    if not answers:
        raise InputError(f"{file}: no label is filled in", "write the class of each picture into the column label")
    return answers


def counts(section: Data, base: Path) -> dict[str, int]:
    """How many labels of a recipe's table came how; empty where the table does not say."""
    if section.kind != "csv":
        return {}
    from edgedistill.data.datasets import DATASETS

    options = bound_options(DATASETS["csv"].listing, section.options, base)
    file, label, delimiter = options["file"], options.get("label", "label"), options.get("delimiter", ",")
    if not _has_how(file, delimiter):
        return {}
    rows = [row.cells for row in read_rows(file, [label, "how"], label=label, delimiter=delimiter)]
    return dict(Counter(cells["how"] or "given" for cells in rows if cells[label]))


def pictures_listing(root: Path) -> Listing:
    """All pictures below a folder, at any depth, with the labels of root/labels.csv; folders are no classes.

    Raises:
        InputError: the folder cannot be read, holds no picture, or labels.csv names one that is not there.
    """
    walk = Walk(root=root)
    names = walk.take(root)
    if not names:
        others = walk.other_files(root)
        raise InputError(
            f"{root}: holds no picture{f' ({others})' if others else ''}", "add pictures (.jpg, .png, ...)"
        )
    file = root / NAME
    rows = read_labels(file) if file.exists() else {}
    labels = spelled(rows, names)
    if lost := sorted(labels.keys() - set(names)):
        raise InputError(f"{file}: {lost[0]} is not in the folder", "bring it back, or remove its row")
    classes = class_order(label.name for label in labels.values() if label.name)
    index = {name: number for number, name in enumerate(classes)}
    files = Files(
        names=names,
        paths=[f"{root}/{name}" for name in names],
        labels=[index.get(labels.get(name, Label()).name, UNLABELED) for name in names],
    )
    notes = [f"data: {note}" for note in walk.left_out()]
    return files_listing(classes, files, None, NOT_STATED, notes=notes)


def _has_how(file: Path, delimiter: str = ",") -> bool:
    return "how" in header(file, delimiter)
