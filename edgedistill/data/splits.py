"""The splits of the target's images: labeled, val, unlabeled, and a test set that is opened only at the end.

N images of train, M of a selection of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from edgedistill.agent.pictures import Limits
from edgedistill.data.image_store import ImageStore, Selection, select
from edgedistill.labels import divide
from edgedistill.labels.draws import UNLABELED, keyed_hashes
from edgedistill.labels.protocol import Folds, Protocol, divide_in_halves

log = logging.getLogger(__name__)

Store = ImageStore | Selection
LEAST_WITNESSES = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class LabeledImages:
    """A store, and the class index and the unit of each of its images, int64 [N]."""

    store: Store
    labels_N: np.ndarray
    units_N: np.ndarray


@dataclass(frozen=True, kw_only=True)
class KeptTogether:
    """Near-copies that are on one side of every split: number of images, and of sets of them.

    `inseparable` are the classes of which others would leave one unit; those are not kept together and not counted.
    """

    images: int
    sets: int
    inseparable: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """The splits. Rows (int64, ascending) index `train`; labeled, val, unlabeled, reserve and beside-val
    rows are disjoint.

    Attributes:
        classes: names of the classes.
        licence: of the data.
        protocol: how accuracy is measured.
        train: all images but those of a test split or a hold-out; with folds all images.
        labeled_rows: images that train with their label.
        labeled_labels: their classes.
        val_rows: labeled images that choose; the official val split if there is one.
        val_labels: their classes.
        unlabeled_rows: images that train without a label.
        reserve_rows: unlabeled images that train nothing.
        beside_val_rows: images in a unit of val; they train only where val does (`shipping`).
        beside_val_labels: their classes; -1 for no label.
        data_hash: sha256 over the pixel hashes of the labeled, val and unlabeled images, in that order, and the labels
            of the first two; with an official val or folds, the numbers of images enter, too.
        corrupt: names of the images that cannot be decoded.
        contradicted: names of the images whose pixels occur with two labels; they are in no split.
        duplicates: number of train images left out because they have the pixels, or are of the group, of a test image.
        copies: number of further images with the pixels of another train image; left out.
        test_set: the test images; none for the student that ships with folds.
        limits: the values that become black and white in pictures of more than 8 bits, in every further picture, too;
            None if train has none and the recipe states none.
        units_N: unit of each image of `train`.
        near_copies: the near-copies that are kept together; None where they are ignored.
        folds: the folds of the labels, for that protocol.
        official_val: whether val is a split of the data set, not drawn from train.
        counts_C: `label_counts` where an official val trains, which still counts for no class's share; else None.
    """

    classes: tuple[str, ...]
    licence: str
    protocol: Protocol
    train: Store
    labeled_rows: np.ndarray
    labeled_labels: np.ndarray
    val_rows: np.ndarray
    val_labels: np.ndarray
    unlabeled_rows: np.ndarray
    reserve_rows: np.ndarray
    beside_val_rows: np.ndarray
    beside_val_labels: np.ndarray
    data_hash: str
    corrupt: tuple[str, ...]
    contradicted: tuple[str, ...]
    duplicates: int
    copies: int
    test_set: LabeledImages
    limits: Limits | None
    units_N: np.ndarray
    near_copies: KeptTogether | None
    folds: Folds | None
    official_val: bool = False
    counts_C: np.ndarray | None = None

    @property
    def label_counts(self) -> np.ndarray:
        """Labels of each class that train or choose, int64 [C]; those of an official val split are not counted."""
        if self.counts_C is not None:
            return self.counts_C
        val_labels = self.val_labels[:0] if self.official_val else self.val_labels
        return np.bincount(np.concatenate([self.labeled_labels, val_labels]), minlength=len(self.classes))

    @property
    def n_test(self) -> int:
        """Number of test images; none of them is read."""
        return self.test_set.store.n

    def open_test(self) -> LabeledImages:
        """The test images and their labels, for the final evaluation; every access is logged.

        `test_set` itself is for its hashes and its size alone.
        """
        log.info("test set opened: %d images", self.n_test)
        return self.test_set

    def shipping(self) -> Splits:
        """The splits of the last training: with folds val trains, too, since the folds have chosen and measured.

        So do the images that are left out beside val.
        """
        if self.protocol != "folds":
            return self
        beside = self.beside_val_labels != UNLABELED
        rows = np.concatenate([self.labeled_rows, self.val_rows, self.beside_val_rows[beside]])
        order = np.argsort(rows)
        labels_L = np.concatenate([self.labeled_labels, self.val_labels, self.beside_val_labels[beside]])[order]
        return replace(
            self,
            labeled_rows=rows[order],
            labeled_labels=labels_L,
            unlabeled_rows=np.sort(np.concatenate([self.unlabeled_rows, self.beside_val_rows[~beside]])),
            val_rows=self.val_rows[:0],
            val_labels=self.val_labels[:0],
            beside_val_rows=self.beside_val_rows[:0],
            beside_val_labels=self.beside_val_labels[:0],
            counts_C=self.label_counts if self.official_val else None,
        )

    def halves(self) -> np.ndarray:
        """The half of each labeled image, int64 [L]; see labels.protocol.divide_in_halves.

        Raises:
            InputError: fewer than two classes can be divided.
        """
        return divide_in_halves(self.labeled_labels, self.units_N[self.labeled_rows], divide.TEST_SEED)

    def without_half(self, half: int) -> Splits:
        """The splits in which a half of the labeled images is the test set, and does not train.

        Raises:
            InputError: fewer than two classes can be divided.
        """
        is_out_L = self.halves() == half
        rows, labels_H = self.labeled_rows[is_out_L], self.labeled_labels[is_out_L]
        return replace(
            self,
            labeled_rows=self.labeled_rows[~is_out_L],
            labeled_labels=self.labeled_labels[~is_out_L],
            test_set=LabeledImages(store=select(self.train, rows), labels_N=labels_H, units_N=self.units_N[rows]),
        )

    @property
    def witness_rows(self) -> np.ndarray:
        """Images on which graphs are compared with each other where no label tests, int64, ascending.

        The reserve; where it is small, images that trained, too.
        """
        if len(self.reserve_rows) >= LEAST_WITNESSES:
            return self.reserve_rows
        every = np.concatenate([self.reserve_rows, self.unlabeled_rows, self.labeled_rows, self.val_rows])
        return np.sort(every[: divide.RESERVE])

    @property
    def unlabeled_witness_rows(self) -> np.ndarray:
        """Images that no student has seen with a label, at most divide.RESERVE, int64, ascending.

        The reserve; where it is small, unlabeled images that trained, too.
        """
        if len(self.reserve_rows) >= LEAST_WITNESSES:
            return self.reserve_rows
        return np.sort(np.concatenate([self.reserve_rows, self.unlabeled_rows])[: divide.RESERVE])

    def calibration_rows(self, n: int, seed: int) -> np.ndarray:
        """At most `n` rows of train for calibration, drawn by `seed`: labeled or unlabeled, all of different pixels.

        Images with the pixels of a val or test image are excluded.
        """
        hashes = self.train.hashes
        pool = np.sort(np.concatenate([self.labeled_rows, self.unlabeled_rows]))
        _, first = np.unique(hashes[pool], return_index=True)
        distinct = pool[first]
        excluded = np.concatenate([hashes[self.val_rows], self.test_set.store.hashes])
        rows = distinct[~np.isin(hashes[distinct], excluded)]
        names = [pixel_hash.decode() for pixel_hash in hashes[rows]]
        order = np.argsort(keyed_hashes(names, f"calibration/{seed}"), kind="stable")
        return np.sort(rows[order[:n]])


def rows_of(images_NHWC: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The images at `rows`, read from the memory map into memory: uint8 [M, px, px, 3]."""
    return np.asarray(images_NHWC[rows])


def evenly_spaced(n: int, limit: int) -> np.ndarray:
    """Indices of at most `limit` of `n` items, evenly spaced, both ends included, ascending; int64."""
    return np.unique(np.linspace(0, n - 1, min(n, limit)).astype(np.int64))
