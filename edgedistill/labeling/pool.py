"""From a data set to the pool that a strategy chooses from: one picture of each set of copies, sorted by keyed hashes.

N images that can be read, M of the pool, L labeled ones, C classes, D features of a source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.collection import images
from edgedistill.collection.features import Features, small_pixels
from edgedistill.collection.images import AND, BLANK, Collection, brightness
from edgedistill.collection.subject import Subject
from edgedistill.data import label_file
from edgedistill.data.image_store import PickedImages
from edgedistill.data.label_file import Label
from edgedistill.data.listing import Listing
from edgedistill.data.walk import count_of, shown
from edgedistill.distill.teachers import stacked
from edgedistill.errors import InputError
from edgedistill.labeling import sources
from edgedistill.labels.draws import UNLABELED, keyed_hashes
from edgedistill.labels.near_copies import near_copies, sign_codes
from edgedistill.labels.suggestions import Floats, Pool, Rows, joint_features
from edgedistill.labels.units import merged, unit_ids
from edgedistill.similarity.chance import OFF

CANDIDATES = 32_768  # pictures that a strategy chooses from, drawn at random where there are more
LABELED = 4096  # labeled pictures that count
DIMS = 64  # of the joint features
FITTED = 4096  # pictures of the pool that the teacher's features are centered on
BLOCK = 1024


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """What is to be labeled.

    Attributes:
        subject: the data set.
        collection: its images.
        labels_N: class of each image whose label may be used, -1 for the others.
        how: how each label came, by the image's name; "given" for those that are not in it.
        open_N: which images may be suggested, bool [N].
        features: the sources' features.
        notes: what was left out.
    """

    subject: Subject
    collection: Collection
    labels_N: np.ndarray
    how: dict[str, str]
    open_N: np.ndarray
    features: Features
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The name of each image, [N]."""
        names = self.collection.listed.items.names
        return [names[row] for row in self.collection.store.kept_rows]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, those that have no label among them."""
        return self.collection.listed.classes

    def readers(self) -> list[Callable[[Rows], Floats]]:
        """For each source the function from rows of the store to features; of small pixels where there is no source."""
        return list(self.features.readers().values()) or [small_pixels(self.collection.store).__getitem__]


def task(subject: Subject, cache: Path) -> Task:
    """List, decode and ask the sources; everything is cached.

    Args:
        subject: the data set.
        cache: folder of decoded images and source outputs, `.cache` beside the runs.

    Raises:
        InputError: the data set cannot be listed, none of its images can be read, or a source cannot be loaded.
        EdgeDistillError: the disk is full.
    """
    file = labels_file(subject)
    labels = label_file.read_labels(file) if file else {}
    listing = subject.listing()
    _refuse_names(listing)
    px = images.store_px(subject, {})
    splits, notes = images.recipe_splits(subject, cache / "images", px)
    listed = images.listed_images(listing)
    labels = label_file.spelled(labels, listed.items.names)
    store = images.decoded(listed, subject.data, splits, folder=cache / "images", pictures=listing.pictures, px=px)
    collection = images.collected(listed, store, splits)
    features = sources.features(subject, store, splits, cache / "sources")
    is_labeled_N, open_N = _usable(collection, has_splits=splits is not None)
    if file:  # a label beyond a recipe's budget is known, and not to be asked for again
        open_N &= collection.labels_N == UNLABELED
    names = [listed.items.names[row] for row in store.kept_rows]
    unusable_N = np.array([labels.get(name, Label()).how == "unusable" for name in names])
    has_features_N = np.ones(store.n, dtype=bool)
    if features.arrays:
        has_features_N[:] = False
        has_features_N[features.rows()] = True
    counts = {"that cannot be read": len(store.corrupt), "marked as unusable": int(unusable_N.sum())}
    notes += [_never(count, why) for why, count in counts.items() if count]
    return Task(
        subject=subject,
        collection=collection,
        labels_N=np.where(is_labeled_N & has_features_N, collection.labels_N, UNLABELED),
        how={name: label.how for name, label in labels.items() if label.name},
        open_N=open_N & ~unusable_N & has_features_N,
        features=features,
        notes=(*listing.notes, *notes),
    )


def _never(count: int, why: str) -> str:
    return f"never suggested: {count_of(count, 'picture')} {why}"


def _refuse_names(listing: Listing) -> None:
    """Raise InputError for a picture whose name no table or page can hold."""
    for part in (listing.train, listing.test, listing.val):
        for name in part.names if part is not None else ():
            if any("\udc80" <= letter <= "\udcff" for letter in name):
                raise InputError(f"{shown(name)}: the name is not in UTF-8", "rename it")


def given_labels(subject: Subject, file: Path, pictures: Sequence[str]) -> dict[str, Label]:
    """The labels that the class folders of a folder give, which a first labels.csv takes over.

    Args:
        subject: the folder.
        file: its labels.csv, which is not there yet.
        pictures: the pictures that the table can name.

    Raises:
        InputError: the folder has splits, which the table cannot hold.
    """
    listing = subject.listing()
    listed = images.listed_images(listing)
    if any(listed.parts) or not set(listed.items.names) <= set(pictures):
        raise InputError(f"{subject.path}: has splits, which {file.name} cannot hold", "name the folder of one split")
    return {
        name: Label(name=listing.classes[label], how="given")
        for name, label in zip(listed.items.names, listed.items.labels_N, strict=True)
        if label != UNLABELED
    }


def labels_file(subject: Subject) -> Path | None:
    """The labels.csv of a folder, or of a recipe that reads one; None without."""
    if subject.run is None:
        return label_file.labels_of_folder(Path(subject.data.options["root"]))
    if subject.data.kind != "csv":
        return None
    file = subject.base / Path(str(subject.data.options.get("file", ""))).expanduser()
    return file if file.is_file() and label_file.is_labels(file) else None


def labels_target(subject: Subject) -> Path:
    """The labels.csv that answers are written into.

    Raises:
        InputError: the data set has none.
    """
    if subject.run is None:
        return Path(subject.data.options["root"]) / label_file.NAME
    file = labels_file(subject)
    if file is None:
        raise InputError(
            f"{subject.path}: its data is no {label_file.NAME}",
            f"set data: {{kind: csv, file: {label_file.NAME}}} with the columns {', '.join(label_file.COLUMNS)}",
        )
    return file


def _usable(collection: Collection, has_splits: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which images count as labeled, and which may be suggested: none of test, none that a recipe leaves out."""
    labels_N = collection.labels_N
    if not has_splits:
        is_train_N = np.array([split not in ("test", "val") for split in collection.splits])
        return is_train_N & (labels_N != UNLABELED), is_train_N & (labels_N == UNLABELED)
    parts = [set(split.split(AND)) for split in collection.splits]
    is_labeled_N = np.array([bool(part & {"labeled", "val"}) and "test" not in part for part in parts])
    is_open_N = np.array(
        [bool(part & {"unlabeled", "reserve"}) and not part & {"labeled", "val", "test"} for part in parts]
    )
    return is_labeled_N & (labels_N != UNLABELED), is_open_N


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """The pool, the row in the store of each of its pictures, int64 [M], and the unit of each labeled one, [L]."""

    pool: Pool
    rows_M: Rows
    units_L: Rows
    notes: tuple[str, ...]


def candidates(job: Task, seed: int) -> Candidates:
    """One picture of each set of copies, near-copies or group without a label, and the labeled ones.

    Args:
        job: the task.
        seed: of the order, and so of the random draws.
    """
    store = job.collection.store
    keys_N = keyed_hashes(job.names, f"suggest/{seed}")
    units_N = unit_ids(store.hashes, job.collection.groups)
    labeled = _first_rows(np.flatnonzero(job.labels_N != UNLABELED), keys_N, LABELED)
    labeled_units = np.unique(units_N[job.labels_N != UNLABELED])
    open_rows = np.flatnonzero(job.open_N & ~np.isin(units_N, labeled_units))
    chosen = _first_rows(_one_a_unit(open_rows, units_N, keys_N), keys_N, CANDIDATES)
    rows = np.sort(np.concatenate([labeled, chosen]))
    squares: Any = PickedImages(store.images_NHWC, rows)
    is_blank = brightness(squares).deviation_N < BLANK
    copies = near_copies(squares, store.hashes[rows], codes=_codes(job, rows))
    units = merged([copies.units_N, np.unique(units_N[rows], return_inverse=True)[1]], len(rows))
    is_labeled = job.labels_N[rows] != UNLABELED
    is_open = ~is_labeled & ~is_blank & ~np.isin(units, units[is_labeled])
    kept = np.concatenate([np.flatnonzero(is_labeled), _one_a_unit(np.flatnonzero(is_open), units, keys_N[rows])])
    kept = kept[np.argsort(keys_N[rows[kept]], kind="stable")]
    rows_M = rows[kept]
    if not len(rows_M):
        raise InputError(f"{job.subject.path}: all pictures are of one brightness", "add some that show something")
    joint_MD = joint_features([_at(read, rows_M) for read in job.readers()], len(rows_M), DIMS)
    labels_M = job.labels_N[rows_M]
    probs_MC = _teacher_probs(job, rows_M, units[kept])
    pool = Pool(features_MD=joint_MD, labels_M=labels_M, seed=seed, probs_MC=probs_MC)
    blank = int((is_blank & ~is_labeled).sum())
    notes = [_never(blank, "of one brightness")] if blank else []
    copied = int(job.open_N.sum()) - blank - int((labels_M == UNLABELED).sum())
    if len(chosen) == CANDIDATES:
        notes.append(f"chosen from {CANDIDATES:,} pictures drawn at random")
    elif copied:
        notes.append(f"counted once: {count_of(copied, 'picture')} with a copy or a group that is in the pool already")
    return Candidates(pool=pool, rows_M=rows_M, units_L=units[kept][labels_M != UNLABELED], notes=tuple(notes))


def _codes(job: Task, rows: Rows) -> list[np.ndarray]:
    """A hash of the features of some images for each source, uint64 [rows]."""
    return [
        sign_codes([read(rows[start : start + BLOCK]) for start in range(0, len(rows), BLOCK)])
        for read in job.features.readers().values()
    ]


def _first_rows(rows: Rows, keys_N: np.ndarray, most: int) -> Rows:
    return rows[np.argsort(keys_N[rows], kind="stable")][:most]


def _one_a_unit(rows: Rows, units_N: Rows, keys_N: np.ndarray) -> Rows:
    """The row of the least key of each unit."""
    ordered = rows[np.argsort(keys_N[rows], kind="stable")]
    return np.asarray(ordered[np.unique(units_N[ordered], return_index=True)[1]], dtype=np.int64)


def _at(read: Callable[[Rows], Floats], rows_M: Rows) -> Callable[[Rows], Floats]:
    return lambda positions: read(rows_M[positions])


def _teacher_probs(job: Task, rows_M: Rows, units_M: Rows) -> Floats | None:
    """The class probabilities of a teacher that was fitted to the labels, [M, C]; None if two classes have none."""
    labels_M = job.labels_N[rows_M]
    labeled = np.flatnonzero(labels_M != UNLABELED)
    if len(np.unique(labels_M[labeled])) < 2:
        return None
    names = list(job.features.arrays) or ["pixels"]
    others = np.flatnonzero(labels_M == UNLABELED)[:FITTED]
    fitted = np.concatenate([labeled, others])
    readers = dict(zip(names, (_at(read, rows_M) for read in job.readers()), strict=True))
    teacher = stacked(
        features={name: read(fitted) for name, read in readers.items()},
        alphas=dict.fromkeys(names, 1.0),
        rows=np.arange(len(labeled)),
        labels_L=labels_M[labeled],
        classes=len(job.classes),
        level=OFF,
        units_L=units_M[labeled],
    )
    blocks = [np.arange(start, min(start + BLOCK, len(rows_M))) for start in range(0, len(rows_M), BLOCK)]
    return np.concatenate([teacher.predict({name: read(rows) for name, read in readers.items()}) for rows in blocks])
