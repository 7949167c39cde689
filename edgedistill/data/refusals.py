"""Data sets that cannot be divided so that every class trains and is tested: named by class, with the reason.

C classes.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from edgedistill.data.listing import Listing
from edgedistill.errors import InputError
from edgedistill.labels import divide
from edgedistill.labels.divide import Division, Pool
from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.protocol import Protocol
from edgedistill.recipe.data_section import Data


def val_fraction(listing: Listing, section: Data) -> float:
    """The share of the labeled images that becomes val: none where val is official."""
    return section.val_fraction if listing.val is None else 0.0


def trainable(labels_N: np.ndarray, listing: Listing, section: Data, choice: Protocol) -> np.ndarray:
    """Labeled images of each class that a test set leaves, before pixels and groups are known, int64 [C]."""
    counts_C = _counts(labels_N, listing)
    if choice == "holdout":
        counts_C = counts_C - divide.holdout_counts(counts_C, section.test_fraction)
    return counts_C


def refuse_small_classes(counts_C: np.ndarray, listing: Listing, section: Data, choice: Protocol) -> None:
    """Refuse a class that has too few labeled images for the label budget, or none to train on besides val.

    Raises:
        InputError: there is such a class.
    """
    per_class, classes, share = section.labels_per_class, listing.classes, val_fraction(listing, section)
    needed = next(n for n in itertools.count(1) if n > math.ceil(round(n * share, 9)))
    if choice == "folds":  # a class with one label trains, and is never scored
        needed = 1
    smallest = int(counts_C.argmin())
    shortage = f"class {classes[smallest]} has {counts_C[smallest]} labeled images to train on"
    if per_class is not None and per_class < needed:
        raise InputError(
            f"data.labels_per_class: {per_class} leave none to train on once val has its share",
            f"ask for {needed} at least",
        )
    if counts_C[smallest] < needed:
        fix = "label more of them" if listing.val is not None else "label more of them, or lower data.val_fraction"
        raise InputError(f"data: {shortage}, and {needed} are needed", fix)
    if per_class is not None and counts_C[smallest] < per_class:
        raise InputError(
            f"data.labels_per_class: {shortage}, fewer than the {per_class} asked for",
            f"ask for {counts_C[smallest]} at most",
        )


def refuse(division: Division, pool: Pool, listing: Listing, section: Data, *, choice: Protocol) -> None:
    """Refuse a division in which a class does not train, or is not in the test set of a hold-out.

    Raises:
        InputError: there is such a class, or no image of an official val split is left.
    """
    if listing.val is not None and not len(division.val):
        raise InputError("data: no image of the val split can be used", "repair it, or take the test images out of it")
    labels_N = pool.labels_N
    trains = [division.labeled, division.val[~pool.is_val_N[division.val]]]
    if choice == "folds":  # they are in the last training
        trains.append(division.labeled_beside_val)
    trains_C = _counts(labels_N[np.concatenate(trains)], listing)
    tests_C = _counts(labels_N[division.test], listing)
    for label in np.flatnonzero(trains_C + tests_C == 0):
        raise _unusable(int(label), division, pool, listing)
    if choice == "holdout":
        for label in np.flatnonzero(tests_C == 0):
            raise _undivided(int(label), "test", division, pool=pool, listing=listing)
        for label in np.flatnonzero(trains_C == 0):
            rows = division.test[labels_N[division.test] == label]
            if len(np.unique(division.units_N[rows])) < len(rows):
                raise _undivided(int(label), "train on", division, pool=pool, listing=listing)
    if not len(division.labeled) or choice != "folds":
        refuse_small_classes(trains_C, listing, section, choice)


def _counts(labels_M: np.ndarray, listing: Listing) -> np.ndarray:
    """Images of each class, int64 [C]; those without a label do not count."""
    return np.bincount(labels_M[labels_M != UNLABELED], minlength=len(listing.classes))


def _unusable(label: int, division: Division, pool: Pool, listing: Listing) -> InputError:
    """The error for a class all of whose labels are left out, with the reasons."""
    rows = np.flatnonzero((pool.labels_N == label) & ~pool.is_val_N)
    near = ", or are near-copies of one" if division.near_copies[0] else ""
    group = ", or are of its group" if pool.groups is not None else ""
    left_out = {
        "have the pixels of an image with another label": np.isin(rows, division.contradicted),
        f"have the pixels of a test image{near}{group}": np.isin(division.units_N[rows], division.official_units),
        f"are in a group{near and ' or a set of near-copies'} with an image of val": np.isin(
            rows, division.labeled_beside_val
        ),
        "have the pixels of a val image": np.ones(len(rows), dtype=bool),
    }
    reasons, open_M = [], np.ones(len(rows), dtype=bool)
    for reason, is_so_M in left_out.items():
        if count := int((open_M & is_so_M).sum()):
            reasons.append(f"{count} {reason}")
        open_M &= ~is_so_M
    why = f"of its {len(rows)} labeled images, {', '.join(reasons)}" if len(rows) else "no image of train has it"
    return InputError(
        f"data: class {listing.classes[label]} has no label to train on: {why}", "label other images of it"
    )


def _undivided(label: int, purpose: str, division: Division, *, pool: Pool, listing: Listing) -> InputError:
    """The error for a class that entire units leave no image of in test, or in train."""
    rows = np.concatenate([division.labeled, division.val, division.test])
    rows = rows[~pool.is_val_N[rows]]
    pairs = np.unique(np.stack([pool.labels_N[rows], division.units_N[rows]], axis=1), axis=0)
    units_C = _counts(pairs[:, 0], listing)
    count = int((pool.labels_N[rows] == label).sum())
    one, many = ("group", "groups") if pool.groups is not None else ("set of near-copies", "sets of near-copies")
    units = f"{units_C[label]} {many}" if units_C[label] > 1 else f"one {one}"
    fix = "add images of other groups, or correct data.group" if pool.groups is not None else "add other images"
    folds = "; data.protocol: folds needs no test set" if (units_C > 1).sum() > 1 else ""
    return InputError(
        f"data: the hold-out leaves no image of class {listing.classes[label]} to {purpose}: "
        f"its {count} labeled images are of {units}, and none is divided",
        f"{fix}{folds}",
    )
