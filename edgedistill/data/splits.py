"""The splits of the target's images: labeled, val, unlabeled, and a test set that is opened only at the end.

Every draw is by rank: the images of a class are sorted by a keyed hash of their names, and a draw takes the first
ones. So a draw does not depend on the order of the files, and a larger label budget contains the smaller one.
N images of train, M of a selection of them, C target classes.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgedistill.data import datasets, image_store, images
from edgedistill.data.image_store import ImageStore
from edgedistill.data.listing import UNLABELED, Items, Listing
from edgedistill.errors import InputError
from edgedistill.recipe.schema import Data
from edgedistill.run.files import digest

log = logging.getLogger(__name__)

# one test set for all seeds and label budgets: results of different recipes stay comparable
TEST_SEED = 20260101


@dataclass(frozen=True, eq=False, kw_only=True)
class LabeledImages:
    """A store and the class index of each of its images, int64 [N]."""

    store: ImageStore
    labels_N: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """The splits. Rows (int64, ascending) index `train`; labeled, val and unlabeled rows are disjoint.

    `data_hash` is the sha256 over the pixel hashes of the labeled, val and unlabeled images, in that order, and the
    labels of the first two. `corrupt` names the images that cannot be decoded, `duplicates` counts the train images
    left out because test contains the same pixels.
    """

    classes: tuple[str, ...]
    licence: str
    train: ImageStore
    labeled_rows: np.ndarray
    labeled_labels: np.ndarray
    val_rows: np.ndarray
    val_labels: np.ndarray
    unlabeled_rows: np.ndarray
    data_hash: str
    corrupt: tuple[str, ...]
    duplicates: int
    test_set: LabeledImages

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
        order = np.argsort(ranks(names, f"calibration/{seed}"), kind="stable")
        return np.sort(rows[order[:n]])


def load_splits(section: Data, base: Path, cache: Path, seed: int, px: int) -> Splits:
    """Split the data set of a recipe, and decode what is not in `cache` yet.

    Args:
        section: the recipe's data section; its `store_px` takes precedence over `px`.
        base: the folder that the recipe's paths are relative to.
        cache: folder of the image stores.
        seed: seed of the label budget; the test set does not depend on it.
        px: side of the stored squares in pixels.

    Raises:
        InputError: the data set cannot be listed, a class has too few images, or too many images are corrupt.
        EdgeDistillError: the disk is full.
    """
    listing = datasets.listing(section, base)
    train, test = _train_and_test(listing, section)
    _refuse_small_classes(train.labels_N, listing.classes, section)
    side = section.store_px or px
    name = f"{section.kind}-{digest([listing.fingerprint, side, section.fit, section.test_fraction])[:12]}"
    test_store = image_store.build(test, cache / f"{name}-test", px=side, fit=section.fit, desc="decode test")
    train_store = image_store.build(train, cache / f"{name}-train", px=side, fit=section.fit, desc="decode train")
    test_set = LabeledImages(store=test_store, labels_N=test.labels_N[test_store.kept_rows])
    return _divide(
        listing, section, seed, items=train.take(train_store.kept_rows), store=train_store, test_set=test_set
    )


def _train_and_test(listing: Listing, section: Data) -> tuple[Items, Items]:
    """Train and test, sorted by name; test is the official split, or drawn by TEST_SEED."""
    train = _by_name(listing.train)
    if listing.test is not None:
        test = _by_name(listing.test)
        if (test.labels_N == UNLABELED).any():
            raise InputError("data.test: the test split has images without a label", "name a labeled split, or none")
        return train, test
    counts_C = np.bincount(train.labels_N[train.labels_N >= 0], minlength=len(listing.classes))
    test_counts_C = np.maximum(1, np.floor(counts_C * section.test_fraction + 0.5)).astype(np.int64)
    ranks_N = class_ranks(train.names, train.labels_N, f"test/{TEST_SEED}")
    is_test_N = (train.labels_N != UNLABELED) & (ranks_N < test_counts_C[train.labels_N])
    return train.take(np.flatnonzero(~is_test_N)), train.take(np.flatnonzero(is_test_N))


def _by_name(items: Items) -> Items:
    return items.take(np.array(sorted(range(len(items)), key=items.names.__getitem__), dtype=np.int64))


def _refuse_small_classes(labels_N: np.ndarray, classes: Sequence[str], section: Data) -> None:
    """Raise InputError if a class has too few labeled images for the label budget, or none to train on besides val."""
    labels_per_class = section.labels_per_class
    needed = next(n for n in itertools.count(1) if n > math.ceil(round(n * section.val_fraction, 9)))
    counts_C = np.bincount(labels_N[labels_N >= 0], minlength=len(classes))
    smallest = int(counts_C.argmin())
    shortage = f"class {classes[smallest]} has {counts_C[smallest]} labeled images to train on"
    if labels_per_class is not None and labels_per_class < needed:
        raise InputError(
            f"data.labels_per_class: {labels_per_class} leave none to train on once val has its share",
            f"ask for {needed} at least",
        )
    if counts_C[smallest] < needed:
        raise InputError(f"data: {shortage}, and {needed} are needed", "label more of them, or lower data.val_fraction")
    if labels_per_class is not None and counts_C[smallest] < labels_per_class:
        raise InputError(
            f"data.labels_per_class: {shortage}, fewer than the {labels_per_class} asked for",
            f"ask for {counts_C[smallest]} at most",
        )


def _divide(
    listing: Listing, section: Data, seed: int, *, items: Items, store: ImageStore, test_set: LabeledImages
) -> Splits:
    """Draw the splits; `items` are the images of `store`, in the same order."""
    labels_N, hashes = items.labels_N, store.hashes
    corrupt = (*store.corrupt, *test_set.store.corrupt)
    if corrupt:
        examples = ", ".join(corrupt[: image_store.MAX_LISTED])
        log.warning("%d images cannot be decoded and are left out: %s", len(corrupt), examples)
    usable = np.flatnonzero(~np.isin(hashes, test_set.store.hashes))
    if len(usable) < len(hashes):
        log.warning("%d train images have the pixels of a test image and are left out", len(hashes) - len(usable))
    _refuse_small_classes(labels_N[usable], listing.classes, section)
    names = [items.names[int(row)] for row in usable]
    parts = draw(
        names, labels_N[usable], per_class=section.labels_per_class, val_fraction=section.val_fraction, seed=seed
    )
    labeled, val, unlabeled = (usable[part] for part in parts)
    return Splits(
        classes=listing.classes,
        licence=listing.licence,
        train=store,
        labeled_rows=labeled,
        labeled_labels=labels_N[labeled],
        val_rows=val,
        val_labels=labels_N[val],
        unlabeled_rows=unlabeled,
        data_hash=_data_hash(hashes, labels_N, parts=(labeled, val, unlabeled)),
        corrupt=corrupt,
        duplicates=len(hashes) - len(usable),
        test_set=test_set,
    )


def draw(
    names: Sequence[str], labels_N: np.ndarray, per_class: int | None, val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the labeled, val and unlabeled images, each ascending.

    Of every class the first n = `per_class` images by rank (all if None) keep their label; ceil(val_fraction * n) of
    these go to val, spread over the ranks so that both splits of a larger budget contain those of a smaller one.
    """
    ranks_N = class_ranks(names, labels_N, f"labels/{seed}")
    is_labeled_N = labels_N != UNLABELED
    if per_class is not None:
        is_labeled_N &= ranks_N < per_class
    # an image goes to val where the count of val steps up
    is_val_N = is_labeled_N & (_val_count(ranks_N + 1, val_fraction) > _val_count(ranks_N, val_fraction))
    return np.flatnonzero(is_labeled_N & ~is_val_N), np.flatnonzero(is_val_N), np.flatnonzero(~is_labeled_N)


def _val_count(n: np.ndarray, fraction: float) -> np.ndarray:
    """ceil(fraction * n), robust against a product that is a rounding error above an integer."""
    return np.ceil(np.round(n * fraction, 9))


def class_ranks(names: Sequence[str], labels_N: np.ndarray, key: str) -> np.ndarray:
    """Rank of each image within its class, from 0, int64 [N]."""
    order = np.lexsort((ranks(names, key), labels_N))
    sorted_labels_N = labels_N[order]
    ranks_N = np.empty(len(order), dtype=np.int64)
    ranks_N[order] = np.arange(len(order)) - np.searchsorted(sorted_labels_N, sorted_labels_N)
    return ranks_N


def ranks(names: Sequence[str], key: str) -> np.ndarray:
    """A pseudo-random uint64 for each name that depends only on the name and the key, [N]."""
    salt = hashlib.blake2b(key.encode(), digest_size=32).digest()
    digests = (
        hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=salt).digest() for name in names
    )
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _data_hash(hashes: np.ndarray, labels_N: np.ndarray, parts: Sequence[np.ndarray]) -> str:
    """The hash of the splits (Splits.data_hash); `parts` are the rows of labeled, val and unlabeled."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(hashes[part].tobytes())
    for part in parts[:2]:
        sha256.update(labels_N[part].astype("<i8").tobytes())
    return sha256.hexdigest()


def preview(section: Data, base: Path, px: int, n: int = 8) -> tuple[Listing, np.ndarray, np.ndarray]:
    """The listing and `n` of its labeled train images, evenly spaced: uint8 [n, px, px, 3], int64 [n].

    All checks that need no further decoding are made; nothing is written.

    Raises:
        InputError: as in `load_splits`, or one of the images cannot be decoded.
    """
    listing = datasets.listing(section, base)
    train, _ = _train_and_test(listing, section)
    _refuse_small_classes(train.labels_N, listing.classes, section)
    labeled_rows = np.flatnonzero(train.labels_N != UNLABELED)
    rows = labeled_rows[evenly_spaced(len(labeled_rows), n)]
    squares = [_decoded(train, int(row), px, section.fit) for row in rows]
    return listing, np.stack(squares), train.labels_N[rows]


def _decoded(items: Items, row: int, px: int, fit: images.Fit) -> np.ndarray:
    square, reason = image_store.decode(items, row, px, fit)
    if square is None:
        raise InputError(f"data: {items.names[row]} cannot be decoded ({reason})", "repair or remove it")
    return square


def rows_of(images_NHWC: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The images at `rows`, read from the memory map into memory: uint8 [M, px, px, 3]."""
    return np.asarray(images_NHWC[rows])


def evenly_spaced(n: int, limit: int) -> np.ndarray:
    """Indices of at most `limit` of `n` items, evenly spaced, both ends included, ascending; int64."""
    return np.unique(np.linspace(0, n - 1, min(n, limit)).astype(np.int64))
