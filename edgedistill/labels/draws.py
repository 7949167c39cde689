"""Draws of labeled images by keyed ranks, for test sets, label budgets, val and folds; units are never divided.

The images of a class are sorted by a keyed hash of their names, and a draw takes the first ones. So a draw does not
depend on the order of the files, and a larger label budget contains the smaller one. Of a unit with several images of
a class the first one has a rank among the units, and the others come after the first ones of all units: a budget
spreads over units.
N images, U units, C classes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

UNLABELED = -1


def keyed_hashes(names: Sequence[str], key: str) -> np.ndarray:
    """A pseudo-random uint64 for each name that depends only on the name and the key, [N]."""
    salt = hashlib.blake2b(key.encode(), digest_size=32).digest()
    digests = (
        hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=salt).digest() for name in names
    )
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def class_ranks(names: Sequence[str], labels_N: np.ndarray, key: str, units_N: np.ndarray | None = None) -> np.ndarray:
    """Rank of each image within its class, from 0, int64 [N]; without units every image is a unit."""
    hashes_N = keyed_hashes(names, key)
    repeats_N = np.zeros(len(labels_N), dtype=np.int64)
    if units_N is not None:
        order = np.lexsort((hashes_N, units_N, labels_N))
        pairs = np.stack([labels_N[order], units_N[order]], axis=1)
        is_first = np.r_[True, (pairs[1:] != pairs[:-1]).any(axis=1)][: len(order)]
        starts = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
        repeats_N[order] = np.arange(len(order)) - starts
    order = np.lexsort((hashes_N, repeats_N, labels_N))
    sorted_labels_N = labels_N[order]
    ranks_N = np.empty(len(order), dtype=np.int64)
    ranks_N[order] = np.arange(len(order)) - np.searchsorted(sorted_labels_N, sorted_labels_N)
    return ranks_N


def share(
    names: Sequence[str], labels_N: np.ndarray, key: str, *, counts_C: np.ndarray, units_N: np.ndarray
) -> np.ndarray:
    """Draw about counts_C labeled images of each class in entire units; bool [N], true also for their unit's others.

    Units are visited in the order of their hashes. One is taken if it brings the counts nearer (sum of the squared
    deviations, each divided by its count). Where every unit is one image, that is exactly counts_C images a class.
    """
    hashes_N = keyed_hashes(names, key)
    labeled = np.flatnonzero(labels_N != UNLABELED)
    if len(np.unique(units_N)) == len(units_N):
        return np.asarray((labels_N != UNLABELED) & (class_ranks(names, labels_N, key) < counts_C[labels_N]))
    n_units = int(units_N.max(initial=-1)) + 1
    order = labeled[np.argsort(hashes_N[labeled], kind="stable")]
    drawn_units, missing_C = np.zeros(n_units, dtype=bool), counts_C.astype(np.int64).copy()
    scale_C = np.maximum(counts_C, 1)
    rows_by_unit: dict[int, list[int]] = {}
    for row in order:
        rows_by_unit.setdefault(int(units_N[row]), []).append(int(row))
    for unit, rows in rows_by_unit.items():
        unit_counts_C = np.bincount(labels_N[rows], minlength=len(counts_C))
        left_C = missing_C - unit_counts_C
        if (left_C**2 / scale_C).sum() < (missing_C**2 / scale_C).sum():
            drawn_units[unit] = True
            missing_C = left_C
    return np.asarray(drawn_units[units_N])


def held_out(labels_N: np.ndarray, ranks_N: np.ndarray, counts: np.ndarray, units_N: np.ndarray) -> np.ndarray:
    """Divide labeled images into two sides by rank, entire units together; bool [N], true for the held-out ones.

    Args:
        labels_N: class of each image, -1 for none; those are never held out.
        ranks_N: rank of each image within its class.
        counts: number of held-out images among the first n of a class, for n from 0, ascending.
        units_N: unit of each image.
    """
    if len(np.unique(units_N)) == len(units_N):
        return np.asarray((labels_N != UNLABELED) & (counts[ranks_N + 1] > counts[ranks_N]))
    labeled = np.flatnonzero(labels_N != UNLABELED)
    order = labeled[np.lexsort((labels_N[labeled], ranks_N[labeled]))]
    side_by_unit: dict[int, bool] = {}
    classes_by_unit: dict[int, set[int]] = {}
    for row in labeled:
        classes_by_unit.setdefault(int(units_N[row]), set()).add(int(labels_N[row]))
    left_C = Counter(label for classes in classes_by_unit.values() for label in classes)  # units that are not held out
    held_C = np.zeros(int(labels_N.max(initial=0)) + 1, dtype=np.int64)
    is_held_N = np.zeros(len(labels_N), dtype=bool)
    for row in order:
        label, unit = int(labels_N[row]), int(units_N[row])
        if unit not in side_by_unit:
            spared = all(left_C[other] > 1 for other in classes_by_unit[unit])  # each class keeps a unit
            side_by_unit[unit] = bool(held_C[label] < counts[ranks_N[row] + 1]) and spared
            left_C.subtract(classes_by_unit[unit] if side_by_unit[unit] else ())
        is_held_N[row] = side_by_unit[unit]
        held_C[label] += side_by_unit[unit]
    return is_held_N
