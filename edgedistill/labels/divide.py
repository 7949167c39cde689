"""The division of a data set's images: which train with a label or without, choose, test, or are left out.

Images with the same pixels count once, and the images of one unit (labels/units.py) are on one side of every split:
those of a group, and near-copies where they are kept together.
N images of the pool: train, with an official val split if there is one. C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgedistill.labels import draws
from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.protocol import Folds, Protocol, assign_folds
from edgedistill.labels.units import contradicted, merged, unit_ids

# one test set for all seeds and label budgets: results of different recipes stay comparable
TEST_SEED = 20260101
RESERVE = 500  # unlabeled images that witness for the graphs and train nothing
RESERVE_SHARE = 4  # at most one unlabeled image in four
LEAST_UNLABELED = 400  # with a test set, fewer unlabeled images all train: a quarter of them would decide little
# of these rules; 2: near-copies are kept together; 3: val and the reserve of a fold; 4 (else as 3): units of several
# classes, images beside val, a val of more than half of the labels, classes of one picture
VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The images to divide.

    Attributes:
        names: their names, sorted within train and within val.
        labels_N: class of each image, -1 for none.
        hashes: hash of each image's pixels.
        is_val_N: whether an image is of an official val split.
        groups: group of each image, None for no group; None without groups.
        test_hashes: hashes of the pixels of an official test split.
        test_groups: groups of its images.
        near_sets: number of each image's set of near-copies, of the pool and then of test; None to ignore near-copies.
    """

    names: Sequence[str]
    labels_N: np.ndarray
    hashes: np.ndarray
    is_val_N: np.ndarray
    groups: Sequence[str | None] | None = None
    test_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, dtype="S64"))
    test_groups: Sequence[str | None] = ()
    near_sets: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How the pool is divided.

    Attributes:
        protocol: how accuracy is measured.
        classes: number of classes.
        per_class: labels of each class that are used, val included; None for all.
        val_fraction: share of them that is val; 0 with an official val split.
        test_fraction: share of each class that is the test set of a hold-out.
        seed: seed of the label budget.
        fold: with folds, the fold that tests; None for the student that ships, which no label tests.
        reserve: at most this many unlabeled images are set aside.
    """

    protocol: Protocol
    classes: int
    per_class: int | None
    val_fraction: float
    test_fraction: float
    seed: int
    fold: int | None = None
    reserve: int = RESERVE


@dataclass(frozen=True, kw_only=True)
class Division:
    """Rows of the pool, int64 and ascending; all of them are disjoint.

    Attributes:
        labeled: they train with their label.
        val: they choose.
        unlabeled: they train without a label.
        test: they are scored, once.
        reserve: unlabeled images that train nothing.
        labeled_beside_val: images with a label in a unit of an official val; left out.
        unlabeled_beside_val: images without a label in a unit of val; left out.
        contradicted: images whose pixels occur with two labels; left out.
        copies: number of further images with the pixels of another one; left out.
        tested: number of images with pixels, or of a group, of test; left out.
        units_N: unit of each image of the pool.
        official_units: unit of each image of an official test split.
        near_copies: number of images that are kept together with a near-copy, and of sets of such.
        inseparable: classes of which near-copies would leave one unit; the sets that do are not kept together.
        folds: the folds of the labels, for that protocol.
    """

    labeled: np.ndarray
    val: np.ndarray
    unlabeled: np.ndarray
    test: np.ndarray
    reserve: np.ndarray
    labeled_beside_val: np.ndarray
    unlabeled_beside_val: np.ndarray
    contradicted: np.ndarray
    copies: int
    tested: int
    units_N: np.ndarray
    official_units: np.ndarray
    near_copies: tuple[int, int]
    inseparable: tuple[int, ...]
    folds: Folds | None


def divide(pool: Pool, rules: Rules) -> Division:
    """Divide a pool.

    Raises:
        InputError: with folds, fewer than two classes can be scored.
    """
    n = len(pool.names)
    is_contradicted_N = contradicted(pool.hashes, pool.labels_N)
    every_units, near_sets, inseparable = _units(pool)
    units_N, official_units = every_units[:n], every_units[n:]
    of_test_N = np.isin(units_N, official_units)
    is_copy_N = _copies(pool, left_out_N=is_contradicted_N | of_test_N)
    usable_N = ~(is_contradicted_N | of_test_N | is_copy_N)

    # the labels that the budget allows, by rank; the rest counts as unlabeled
    labels_N = np.where(usable_N, pool.labels_N, UNLABELED)
    is_test_N, folds = np.zeros(n, dtype=bool), None
    if rules.protocol == "holdout":
        is_test_N = usable_N & _holdout(pool, np.where(pool.is_val_N, UNLABELED, labels_N), units_N, rules)
    is_labeled_N = _budget(pool, np.where(_beside(is_test_N, units_N), UNLABELED, labels_N), units_N, rules)
    if rules.protocol == "folds":
        folds = assign_folds(np.where(is_labeled_N, labels_N, UNLABELED), units_N, TEST_SEED)
        is_test_N = folds.folds_N == rules.fold if rules.fold is not None else is_test_N
    tested_elsewhere_N = _beside(is_test_N, units_N) & ~is_test_N
    trains_N = usable_N & ~is_test_N & ~tested_elsewhere_N

    is_val_N = trains_N & pool.is_val_N & (labels_N != UNLABELED)
    if rules.val_fraction:
        # ranked anew: a fold takes labels of any rank away, and val must not depend on which
        left_N = np.where(is_labeled_N & trains_N, labels_N, UNLABELED)
        ranks_N = draws.class_ranks(pool.names, left_N, f"labels/{rules.seed}", units_N)
        is_val_N = _val(left_N, ranks_N, units_N, rules)
    beside_val_N = trains_N & _beside(is_val_N, units_N) & ~is_val_N
    trains_N &= ~beside_val_N & ~is_val_N
    labeled_N = trains_N & is_labeled_N & ~pool.is_val_N
    unlabeled = np.flatnonzero(trains_N & ~is_labeled_N)
    # beside no label of any fold: the reserve of every fold is that of the student that ships
    free = unlabeled[~np.isin(units_N[unlabeled], units_N[is_labeled_N if rules.protocol == "folds" else labeled_N])]
    limit = _reserve_size(len(free if rules.protocol == "folds" else unlabeled), int(is_val_N.sum()), rules)
    reserve = _reserve(pool, free, units_N, limit)
    return Division(
        labeled=np.flatnonzero(labeled_N),
        val=np.flatnonzero(is_val_N),
        unlabeled=np.setdiff1d(unlabeled, reserve),
        test=np.flatnonzero(is_test_N & (labels_N != UNLABELED)),
        reserve=reserve,
        labeled_beside_val=np.flatnonzero(beside_val_N & is_labeled_N),
        unlabeled_beside_val=np.flatnonzero(beside_val_N & ~is_labeled_N),
        contradicted=np.flatnonzero(is_contradicted_N),
        copies=int(is_copy_N.sum()),
        tested=int((of_test_N | tested_elsewhere_N & usable_N).sum()),
        units_N=units_N,
        official_units=official_units,
        near_copies=_near_copies(pool, near_sets),
        inseparable=inseparable,
        folds=folds,
    )


def _units(pool: Pool) -> tuple[np.ndarray, np.ndarray | None, tuple[int, ...]]:
    """The unit of each image of the pool and then of an official test split, int64; its set of near-copies; and the
    classes for whose sake sets were taken apart.

    These are the classes whose labels are in two units, and would be in one because of near-copies.
    """
    n, groups = len(pool.names), pool.groups
    every = unit_ids(
        np.concatenate([pool.hashes, pool.test_hashes]), None if groups is None else [*groups, *pool.test_groups]
    )
    if pool.near_sets is None:
        return every, None, ()
    separable, near_sets = _classes_in_two(pool.labels_N, every[:n]), pool.near_sets
    joined = merged([every, near_sets], len(every))
    inseparable = left = sorted(separable - _classes_in_two(pool.labels_N, joined[:n]))
    # the sets with labels of such a class; if others join its groups, those with an image of its units
    for of_class in (np.arange(len(every)), every):
        if left:
            labels = np.flatnonzero(np.isin(pool.labels_N, left))
            touched = np.unique(near_sets[np.isin(of_class, of_class[labels])])
            apart = np.flatnonzero(np.isin(near_sets, touched))
            near_sets = near_sets.copy()
            near_sets[apart] = near_sets.max() + 1 + np.arange(len(apart))
            joined = merged([every, np.unique(near_sets, return_inverse=True)[1]], len(every))
            left = sorted(separable - _classes_in_two(pool.labels_N, joined[:n]))
    return joined, near_sets, tuple(inseparable)


def _classes_in_two(labels_N: np.ndarray, units_N: np.ndarray) -> set[int]:
    """The classes with labels in two units at least."""
    labeled = labels_N != UNLABELED
    pairs = np.unique(np.stack([labels_N[labeled], units_N[labeled]], axis=1), axis=0)
    classes, counts = np.unique(pairs[:, 0], return_counts=True)
    return {int(label) for label in classes[counts > 1]}


def _near_copies(pool: Pool, near_sets: np.ndarray | None) -> tuple[int, int]:
    """Number of images in sets of near-copies, and of such sets; sets of equal pixels alone do not count."""
    if near_sets is None:
        return 0, 0
    hashes = np.concatenate([pool.hashes, pool.test_hashes])
    first = np.unique(hashes, return_index=True)[1]
    pictures = np.bincount(near_sets[first], minlength=int(near_sets.max(initial=-1)) + 1)
    return int(np.isin(near_sets, np.flatnonzero(pictures > 1)).sum()), int((pictures > 1).sum())


def _copies(pool: Pool, left_out_N: np.ndarray) -> np.ndarray:
    """Whether an image has the pixels of one that stays: of val before labeled before unlabeled, and by name."""
    usable = np.flatnonzero(~left_out_N)
    preference = np.where(pool.is_val_N, 0, np.where(pool.labels_N != UNLABELED, 1, 2))[usable]
    order = usable[np.lexsort((usable, preference))]
    _, first = np.unique(pool.hashes[order], return_index=True)
    is_copy_N = np.zeros(len(pool.names), dtype=bool)
    is_copy_N[usable] = True
    is_copy_N[order[first]] = False
    return is_copy_N


def _beside(members_N: np.ndarray, units_N: np.ndarray) -> np.ndarray:
    """Whether an image is in a unit with a member, or is one."""
    return np.asarray(np.isin(units_N, units_N[members_N]))


def holdout_counts(counts_C: np.ndarray, fraction: float) -> np.ndarray:
    """Test images of each class of a hold-out, at least one, int64 [C]; `counts_C` are the labeled images."""
    return np.asarray(np.maximum(1, np.floor(counts_C * fraction + 0.5)).astype(np.int64))


def _holdout(pool: Pool, labels_N: np.ndarray, units_N: np.ndarray, rules: Rules) -> np.ndarray:
    counts_C = np.bincount(labels_N[labels_N >= 0], minlength=rules.classes)
    test_counts_C = holdout_counts(counts_C, rules.test_fraction)
    drawn_N = draws.share(pool.names, labels_N, f"test/{TEST_SEED}", counts_C=test_counts_C, units_N=units_N)
    return np.asarray(drawn_N & (labels_N != UNLABELED))


def _budget(pool: Pool, labels_N: np.ndarray, units_N: np.ndarray, rules: Rules) -> np.ndarray:
    """Whether an image of train keeps its label, bool [N]."""
    labels_N = np.where(pool.is_val_N, UNLABELED, labels_N)
    ranks_N = draws.class_ranks(pool.names, labels_N, f"labels/{rules.seed}", units_N)
    is_labeled_N = labels_N != UNLABELED
    if rules.per_class is not None:
        is_labeled_N &= ranks_N < rules.per_class
    return np.asarray(is_labeled_N)


def _val(labels_N: np.ndarray, ranks_N: np.ndarray, units_N: np.ndarray, rules: Rules) -> np.ndarray:
    """Whether a labeled image is held out as val, bool [N]: ceil(val_fraction * n) of n labels, in whole units.

    With folds each class keeps a unit that trains.
    """
    # robust against a product that is a rounding error above an integer
    counts = np.ceil(np.round(np.arange(len(labels_N) + 1) * rules.val_fraction, 9)).astype(np.int64)
    is_val_N = draws.held_out(labels_N, ranks_N, counts, units_N)
    if rules.protocol == "folds":
        for label in np.setdiff1d(labels_N, [UNLABELED, *labels_N[(labels_N != UNLABELED) & ~is_val_N]]):
            members = np.flatnonzero(labels_N == label)
            is_val_N[members[ranks_N[members].argmax()]] = False
    return is_val_N


def _reserve_size(n_unlabeled: int, n_val: int, rules: Rules) -> int:
    """The greatest number of unlabeled images that train nothing.

    With a test set there are none where val alone can decide (as many labels as a reserve has images), or where there
    are few unlabeled images.
    """
    if rules.protocol != "folds" and (n_val >= RESERVE or n_unlabeled < LEAST_UNLABELED):
        return 0
    return min(rules.reserve, n_unlabeled // RESERVE_SHARE)


def _reserve(pool: Pool, free: np.ndarray, units_N: np.ndarray, limit: int) -> np.ndarray:
    """Rows of at most `limit` of the `free` images, drawn in entire units."""
    if not limit or not len(free):
        return np.asarray(free[:0])
    hashes = draws.keyed_hashes([pool.names[row] for row in free], f"reserve/{TEST_SEED}")
    _, unit = np.unique(units_N[free], return_inverse=True)
    first_hashes = np.full(int(unit.max()) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(first_hashes, unit, hashes)
    order = np.lexsort((hashes, first_hashes[unit]))[: limit + 1]
    # the unit that the limit divides stays with the images that train
    entire = order[:limit] if len(order) <= limit else order[:limit][unit[order[:limit]] != unit[order[limit]]]
    return np.asarray(np.sort(free[entire]))
