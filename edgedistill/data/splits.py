"""The target's images, divided: labeled, val, unlabeled, and a test set that stays shut until the end.

Every draw is by rank: the images of a class stand in the order of a keyed hash of their names, and a draw takes the
first ones. So the order in which files are found does not matter, and a larger label budget contains the smaller one.
N images of train, M of a choice among them, C target classes.
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

# one test set for every seed and every label budget: results of different recipes stay comparable
TEST_SEED = 20260101


@dataclass(frozen=True, eq=False, kw_only=True)
class LabeledImages:
    """A store and the class index of each of its images, int64 [N]."""

    store: ImageStore
    labels_N: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """Which image serves what. Rows (int64, ascending) point into `train`; no two of the three kinds overlap.

    `data_hash` is the sha256 over the pixel hashes of the labeled, val and unlabeled images, in that order, and the
    labels of the first two. `corrupt` names the images left out because they cannot be decoded, `duplicates` counts
    those of train left out because test holds the very same pixels.
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
    held_out: LabeledImages

    @property
    def n_test(self) -> int:
        """How many images test holds; looks at none of them."""
        return self.held_out.store.n

    def test(self) -> LabeledImages:
        """The test images and their labels: for the end, once; every opening is logged."""
        log.info("test set opened: %d images", self.n_test)
        return self.held_out

    def calibration_rows(self, n: int, seed: int) -> np.ndarray:
        """At most `n` rows of train to calibrate on, seeded: labeled or unlabeled, each picture once.

        None has the pixels of an image of val or test.
        """
        hashes = self.train.hashes
        pool = np.sort(np.concatenate([self.labeled_rows, self.unlabeled_rows]))
        _, first = np.unique(hashes[pool], return_index=True)
        known = np.concatenate([hashes[self.val_rows], self.held_out.store.hashes])
        rows = pool[first][~np.isin(hashes[pool[first]], known)]
        order = np.argsort(ranks([value.decode() for value in hashes[rows]], f"calibration/{seed}"), kind="stable")
        return np.sort(rows[order[:n]])


def load_splits(section: Data, base: Path, cache: Path, seed: int, px: int) -> Splits:
    """Divide the data set that a recipe names, and decode what is not in `cache` yet.

    Args:
        section: the recipe's data section; its `store_px` wins over `px`.
        base: the folder that the recipe's paths start from.
        cache: folder of the image stores.
        seed: of the label budget; the test set does not depend on it.
        px: side of the stored squares in pixels.

    Raises:
        InputError: the data set cannot be listed, a class has too few images, or too many images are corrupt.
        EdgeDistillError: the disk is full.
    """
    found = datasets.listing(section, base)
    train, test = _train_and_test(found, section)
    _refuse_small_classes(train.labels_N, found.classes, section)
    side = section.store_px or px
    name = f"{section.kind}-{digest([found.fingerprint, side, section.fit, section.test_fraction])[:12]}"
    held = image_store.build(test, cache / f"{name}-test", px=side, fit=section.fit, desc="decode test")
    kept = image_store.build(train, cache / f"{name}-train", px=side, fit=section.fit, desc="decode train")
    labeled_test = LabeledImages(store=held, labels_N=test.labels_N[held.kept_rows])
    return _divide(found, section, seed, items=train.take(kept.kept_rows), kept=kept, held=labeled_test)


def glance(section: Data, base: Path, px: int, n: int = 8) -> tuple[Listing, np.ndarray, np.ndarray]:
    """The data set as listed, and `n` of its labeled train images, spread over it: uint8 [n, px, px, 3], int64 [n].

    Checks what can be checked without decoding the rest, and writes nothing.

    Raises:
        InputError: as `load`, or one of the images cannot be decoded.
    """
    found = datasets.listing(section, base)
    train, _ = _train_and_test(found, section)
    _refuse_small_classes(train.labels_N, found.classes, section)
    labeled = np.flatnonzero(train.labels_N != UNLABELED)
    rows = labeled[np.linspace(0, len(labeled) - 1, min(n, len(labeled))).astype(np.int64)]
    squares = [_decoded(train, int(row), px, section.fit) for row in rows]
    return found, np.stack(squares), train.labels_N[rows]


def _decoded(items: Items, row: int, px: int, fit: images.Fit) -> np.ndarray:
    square, reason = image_store.decode(items, row, px, fit)
    if square is None:
        raise InputError(f"data: {items.names[row]} cannot be decoded ({reason})", "repair or remove it")
    return square


def rows_of(images_NHWC: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The images at `rows`, read from the map into memory at once: uint8 [M, px, px, 3]."""
    return np.asarray(images_NHWC[rows])


def ranks(names: Sequence[str], key: str) -> np.ndarray:
    """A pseudo-random uint64 for each name that depends on the name and the key alone, [N]."""
    salt = hashlib.blake2b(key.encode(), digest_size=32).digest()
    marks = (
        hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=salt).digest() for name in names
    )
    return np.frombuffer(b"".join(marks), dtype=">u8").astype(np.uint64)


def places_in_class(names: Sequence[str], labels_N: np.ndarray, key: str) -> np.ndarray:
    """Place of each image in its class's order by rank: 0 for the first of a class, int64 [N]."""
    order = np.lexsort((ranks(names, key), labels_N))
    ordered = labels_N[order]
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return places


def draw(
    names: Sequence[str], labels_N: np.ndarray, per_class: int | None, val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the labeled, val and unlabeled images, each ascending.

    Of every class the first `per_class` by rank (all where None) keep their label; ceil(val_fraction * n) of these n
    go to val, spread over the order so that both shares grow with the budget and lose none.
    """
    places = places_in_class(names, labels_N, f"labels/{seed}")
    drawn = labels_N != UNLABELED
    if per_class is not None:
        drawn &= places < per_class
    val = drawn & (_val_count(places + 1, val_fraction) > _val_count(places, val_fraction))
    return np.flatnonzero(drawn & ~val), np.flatnonzero(val), np.flatnonzero(~drawn)


def _val_count(n: np.ndarray, fraction: float) -> np.ndarray:
    """ceil(fraction * n), and not one more where the product is a rounding error above an integer."""
    return np.ceil(np.round(n * fraction, 9))


def _train_and_test(found: Listing, section: Data) -> tuple[Items, Items]:
    """Train and test in the order of their names; test is the official split, or drawn with a seed of its own."""
    train = _by_name(found.train)
    if found.test is not None:
        test = _by_name(found.test)
        if (test.labels_N == UNLABELED).any():
            raise InputError("data.test: the test split has images without a label", "name a labeled split, or none")
        return train, test
    counts_C = np.bincount(train.labels_N[train.labels_N >= 0], minlength=len(found.classes))
    held_C = np.maximum(1, np.floor(counts_C * section.test_fraction + 0.5)).astype(np.int64)
    labeled = train.labels_N != UNLABELED
    held = labeled & (places_in_class(train.names, train.labels_N, f"test/{TEST_SEED}") < held_C[train.labels_N])
    return train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))


def _by_name(items: Items) -> Items:
    return items.take(np.array(sorted(range(len(items)), key=items.names.__getitem__), dtype=np.int64))


def _refuse_small_classes(labels_N: np.ndarray, classes: Sequence[str], section: Data) -> None:
    asked = section.labels_per_class
    needed = next(n for n in itertools.count(1) if n > math.ceil(round(n * section.val_fraction, 9)))
    counts_C = np.bincount(labels_N[labels_N >= 0], minlength=len(classes))
    fewest = int(counts_C.argmin())
    have = f"class {classes[fewest]} has {counts_C[fewest]} labeled images to train on"
    if asked is not None and asked < needed:
        raise InputError(
            f"data.labels_per_class: {asked} leave none to train on once val has its share",
            f"ask for {needed} at least",
        )
    if counts_C[fewest] < needed:
        raise InputError(f"data: {have}, and {needed} are needed", "label more of them, or lower data.val_fraction")
    if asked is not None and counts_C[fewest] < asked:
        raise InputError(
            f"data.labels_per_class: {have}, fewer than the {asked} asked for", f"ask for {counts_C[fewest]} at most"
        )


def _divide(found: Listing, section: Data, seed: int, *, items: Items, kept: ImageStore, held: LabeledImages) -> Splits:
    """The draw; `items` are those of `kept`, in its order."""
    labels_N, hashes, corrupt = items.labels_N, kept.hashes, (*kept.corrupt, *held.store.corrupt)
    if corrupt:
        log.warning(
            "%d images cannot be decoded and are left out: %s", len(corrupt), ", ".join(corrupt[: image_store.NAMED])
        )
    usable = np.flatnonzero(~np.isin(hashes, held.store.hashes))
    if len(usable) < len(hashes):
        log.warning("%d train images have the pixels of a test image and are left out", len(hashes) - len(usable))
    _refuse_small_classes(labels_N[usable], found.classes, section)
    names = [items.names[int(row)] for row in usable]
    parts = draw(
        names, labels_N[usable], per_class=section.labels_per_class, val_fraction=section.val_fraction, seed=seed
    )
    labeled, val, unlabeled = (usable[part] for part in parts)
    return Splits(
        classes=found.classes,
        licence=found.licence,
        train=kept,
        labeled_rows=labeled,
        labeled_labels=labels_N[labeled],
        val_rows=val,
        val_labels=labels_N[val],
        unlabeled_rows=unlabeled,
        data_hash=_data_hash(hashes, labels_N, parts=(labeled, val, unlabeled)),
        corrupt=corrupt,
        duplicates=len(hashes) - len(usable),
        held_out=held,
    )


def _data_hash(hashes: np.ndarray, labels_N: np.ndarray, parts: Sequence[np.ndarray]) -> str:
    running = hashlib.sha256()
    for part in parts:
        running.update(hashes[part].tobytes())
    for part in parts[:2]:
        running.update(labels_N[part].astype("<i8").tobytes())
    return running.hexdigest()
