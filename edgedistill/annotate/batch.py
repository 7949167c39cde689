"""The pictures of an annotation session: suggestions, their clusters, and the pictures as a browser gets them."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgedistill.agent.pictures import NeedsLimitsError, open_picture, to_rgb
from edgedistill.annotate.answers import Answers
from edgedistill.collection.subject import Subject
from edgedistill.data import label_file
from edgedistill.data.image_store import ImageStore
from edgedistill.data.label_file import Label
from edgedistill.data.listing import class_order
from edgedistill.data.walk import count_of, shown
from edgedistill.errors import InputError
from edgedistill.labeling import suggest
from edgedistill.labeling.pool import Task, given_labels, labels_target
from edgedistill.labels.to_label import Suggestion

LARGE_PX, SMALL_PX = 1280, 144  # the longer side of a picture and of a thumbnail
QUALITY = 90


class OutsideError(Exception):
    """A picture lies, links resolved, outside the folder of the data."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """What is to be labeled in a session.

    Attributes:
        name: of the data set.
        root: the folder that the pictures' names are relative to, links resolved.
        queue: the suggested pictures, the first ones first.
        clusters: the pictures of each cluster, nearest to its middle first.
        store: their decoded squares.
        rows: the row in the store of each picture of a cluster.
        answers: the labels.
        notes: what a person must know.
    """

    name: str
    root: Path
    queue: tuple[Suggestion, ...]
    clusters: Mapping[int, list[str]]
    store: ImageStore
    rows: Mapping[str, int]
    answers: Answers
    notes: tuple[str, ...]

    def jpeg(self, name: str, small: bool = False) -> bytes:
        """A picture of the session, encoded anew: its pixels alone, without what else its file holds.

        Args:
            name: of a picture of the session.
            small: a thumbnail of its square.

        Raises:
            KeyError: there is no such picture.
            OutsideError: a link takes it out of the folder.
            Exception: whatever Pillow raises on bytes that were broken meanwhile.
        """
        row = self.rows[name]
        path = inside(self.root, name)
        square_HWC = np.asarray(self.store.images_NHWC[row])
        picture = Image.fromarray(square_HWC if small else _pixels(path, square_HWC))
        side = SMALL_PX if small else LARGE_PX
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=QUALITY)
        return buffer.getvalue()


def inside(root: Path, name: str) -> Path:
    """The path of a picture with its links resolved.

    Raises:
        OutsideError: it is not below `root`, or a loop of links.
    """
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise OutsideError(f"{shown(name)}: {error}") from None
    if not path.is_relative_to(root):
        raise OutsideError(f"{shown(name)}: lies outside the folder of the data")
    return path


def batch(path: Path, n: int, runs: Path) -> Batch:
    """Suggest pictures of a folder, a recipe or a run, and prepare their labels.csv.

    Raises:
        InputError: as in `labeling.suggest`; the data set has no labels.csv and cannot have one; its labels.csv has
            columns that would be lost; or every picture lies outside its folder.
        EdgeDistillError: the disk is full.
    """
    subject = suggest.subject_of(path, runs)
    file = labels_target(subject)
    label_file.refuse_other_columns(file)
    suggested = suggest.of_subject(subject, n, runs=runs)
    job, record = suggested.job, suggested.record
    root = _root(subject, file)
    names = job.names
    row_of = {name: row for row, name in enumerate(names)}
    clusters: dict[int, list[str]] = defaultdict(list)
    outside = {name for name in record.clusters if not _is_inside(root, name)}
    for name, cluster in record.clusters.items():
        if name not in outside:
            clusters[cluster].append(name)
    queue = tuple(entry for entry in record.suggestions if entry.path not in outside)
    if not record.suggestions:
        raise InputError(f"{subject.path}: no picture is left to label: {'; '.join(record.notes)}", "add pictures")
    if not queue:
        raise InputError(
            f"{subject.path}: every picture lies outside {root}, links followed", "copy the pictures into it"
        )
    left_out = f"left out, because outside {root}, links followed: {count_of(len(outside), 'picture')}"
    return Batch(
        name=record.name,
        root=root,
        queue=queue,
        clusters=dict(clusters),
        store=suggested.store,
        rows={name: row_of[name] for name in record.clusters if name not in outside},
        answers=_answers(subject, job, file),
        notes=(*record.notes, *([left_out] if outside else [])),
    )


def _pixels(path: Path, square_HWC: np.ndarray) -> np.ndarray:
    """The pixels of a picture, uint8 [H, W, 3]; its square if it has more than 8 bits, which that was scaled from."""
    with open_picture(path) as image:
        try:
            return np.asarray(to_rgb(image, None))
        except NeedsLimitsError:
            return square_HWC


def _is_inside(root: Path, name: str) -> bool:
    try:
        inside(root, name)
    except OutsideError:
        return False
    return True


def _root(subject: Subject, file: Path) -> Path:
    folder = subject.data.options.get("root") if subject.run is not None else None
    return (subject.base / Path(str(folder)).expanduser() if folder else file.parent).resolve()


def _answers(subject: Subject, job: Task, file: Path) -> Answers:
    """The labels.csv, or what becomes one: the labels that a folder's class folders give are taken over."""
    if file.exists():
        labels = label_file.read_labels(file)
        pictures = list(labels) if subject.run is not None else label_file.pictures_listing(file.parent).train.names
        used = class_order({label.name for label in labels.values() if label.name})
        return Answers(file=file, pictures=list(pictures), first={}, classes=used)
    pictures = list(label_file.pictures_listing(file.parent).train.names)
    first = given_labels(subject, file, pictures)
    label_file.refuse_unreadable(file, dict.fromkeys(pictures, Label()) | first)
    return Answers(file=file, pictures=pictures, first=first, classes=list(job.classes))
