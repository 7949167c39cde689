"""The labels of an annotation session: each change is on disk before it counts, and none replaces a label unseen."""

from __future__ import annotations

import contextlib
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgedistill.data import label_file
from edgedistill.data.label_file import Label
from edgedistill.data.tables import EMPTY_CELL_TEXTS, MAX_LABEL
from edgedistill.errors import InputError

Labels = dict[str, Label]
Stamp = tuple[int, int, int]  # modification time in ns, size and inode of a file


class ConflictError(Exception):
    """A picture has another label than the one the change was made from; nothing was written.

    Attributes:
        path: the picture.
        label: what it has.
    """

    def __init__(self, path: str, label: Label) -> None:
        super().__init__(f"{path}: has got another label meanwhile: {label.name or label.how or 'none'}")
        self.path, self.label = path, label


@dataclass(frozen=True, kw_only=True)
class Change:
    """The labels of some pictures before and after a change."""

    before: Labels
    after: Labels


@dataclass(kw_only=True)
class Answers:
    """The labels of a data set and the changes of each tab of the browser.

    Attributes:
        file: the labels.csv; it may not exist yet.
        pictures: the names of all pictures, each of which gets a row; a path in another spelling is written as here.
        first: the labels that hold while the file does not exist.
        classes: their names, in the order of their keys; it only grows.
    """

    file: Path
    pictures: Sequence[str]
    first: Labels
    classes: list[str]
    _changes: dict[str, list[Change]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stamp: Stamp | None = None
    _labels: Labels = field(default_factory=dict)

    def current(self) -> Labels:
        """The labels on disk; they are read again when another program has written them.

        Raises:
            InputError: the file is broken.
        """
        with self._lock:
            return dict(self._current())

    def change(self, tab: str, after: Labels, expected: Mapping[str, Label]) -> None:
        """Write the labels of some pictures.

        Args:
            tab: the browser's tab, which alone can take the change back.
            after: the new labels.
            expected: the label that the tab showed for each of them.

        Raises:
            ConflictError: one of them has another label than expected.
            InputError: the file is broken.
            OSError: it cannot be written; it is unchanged.
        """
        with self._locked():
            before = self._write(after, expected)
            self._changes[tab].append(Change(before=before, after=after))
            names = [label.name for label in after.values() if label.name]
            self.classes += [name for name in dict.fromkeys(names) if name not in self.classes]

    def undo(self, tab: str) -> Change | None:
        """Take back the last change of a tab; None if there is none.

        Raises:
            ConflictError: a picture got another label since; the change is then forgotten.
            InputError: the file is broken.
            OSError: it cannot be written; it is unchanged.
        """
        with self._locked():
            if not self._changes[tab]:
                return None
            last = self._changes[tab][-1]
            try:
                self._write(last.before, last.after)
            except ConflictError:
                self._changes[tab].pop()
                raise
            return self._changes[tab].pop()

    def _write(self, after: Labels, expected: Mapping[str, Label]) -> Labels:
        labels = self._current()
        before = {path: labels.get(path, Label()) for path in after}
        for path, label in before.items():
            if label != expected.get(path, Label()):
                raise ConflictError(path, label)
        merged = dict.fromkeys(self.pictures, Label()) | labels | after
        label_file.write_labels(self.file, merged)
        self._labels, self._stamp = merged, _stamp(self.file)
        return before

    def _current(self) -> Labels:
        stamp = _stamp(self.file)
        if stamp is None:
            self._labels, self._stamp = dict(self.first), None
        elif stamp != self._stamp:
            self._labels = label_file.spelled(label_file.read_labels(self.file), self.pictures)
            self._stamp = stamp
        return self._labels

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone in this process, and among all that write the folder's tables."""
        with self._lock, label_file.locked(self.file):
            yield


def class_name(text: str) -> str:
    """The name of a class as it is written, from what was typed.

    Raises:
        InputError: a table could not hold it, or would read it as no label.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not name:
        raise InputError("the name of the class is empty", "type one")
    if len(name) > MAX_LABEL:
        raise InputError(f"the name has {len(name)} characters", f"type {MAX_LABEL} at most")
    if not name.isprintable():
        raise InputError("the name has characters that cannot be shown", "type it without them")
    if name in EMPTY_CELL_TEXTS:
        raise InputError(f"{name} is the text of an empty cell", "name the class otherwise")
    return name


def _stamp(file: Path) -> Stamp | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
