"""Draws do not depend on the order of files, larger budgets contain smaller ones, and units are never divided."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.labels import draws

KEY = "labels/0"


def images(n: int, classes: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    return [f"{index:04d}.png" for index in range(n)], np.random.default_rng(seed).integers(0, classes, n)


def test_without_units_ranks_count_each_class() -> None:
    names, labels_N = images(60, 3)
    ranks_N = draws.class_ranks(names, labels_N, KEY)
    for label in range(3):
        assert sorted(ranks_N[labels_N == label]) == list(range((labels_N == label).sum()))
    np.testing.assert_array_equal(draws.class_ranks(names, labels_N, KEY, np.arange(60)), ranks_N)
    order = np.random.default_rng(1).permutation(60)
    shuffled = draws.class_ranks([names[row] for row in order], labels_N[order], KEY)
    np.testing.assert_array_equal(shuffled, ranks_N[order])


def test_budget_spreads_over_units() -> None:
    names, labels_N = images(100, 1)
    units_N = np.arange(100) // 10  # ten recordings of ten frames
    ranks_N = draws.class_ranks(names, labels_N, KEY, units_N)
    assert len(set(units_N[ranks_N < 10])) == 10, "ten labels are of ten recordings"


@pytest.mark.parametrize("size", [1, 3, 7])
def test_share_takes_entire_units_and_about_the_counts(size: int) -> None:
    names, labels_N = images(420, 3)
    units_N = np.arange(420) // size
    counts_C = np.round(0.2 * np.bincount(labels_N)).astype(int)
    drawn_N = draws.share(names, labels_N, KEY, counts_C=counts_C, units_N=units_N)
    taken_C = np.bincount(labels_N[drawn_N], minlength=3)
    assert np.abs(taken_C - counts_C).max() <= (0 if size == 1 else size)
    for unit in np.unique(units_N[drawn_N]):
        assert drawn_N[units_N == unit].all()


def test_unlabeled_images_of_a_drawn_unit_come_along() -> None:
    names = [f"{index}.png" for index in range(6)]
    drawn_N = draws.share(
        names, np.array([0, -1, 0, -1, 0, -1]), KEY, counts_C=np.array([1]), units_N=np.array([0, 0, 1, 1, 2, 2])
    )
    assert drawn_N.sum() == 2 and drawn_N.reshape(3, 2).all(axis=1).sum() == 1


def test_single_images_are_held_out_where_the_count_steps_up() -> None:
    names, labels_N = images(80, 2)
    ranks_N = draws.class_ranks(names, labels_N, KEY)
    counts = np.ceil(np.round(0.3 * np.arange(81), 9)).astype(int)
    expected = counts[ranks_N + 1] > counts[ranks_N]
    np.testing.assert_array_equal(draws.held_out(labels_N, ranks_N, counts, np.arange(80)), expected)


def test_units_are_held_out_as_one() -> None:
    names, labels_N = images(120, 2)
    units_N = np.arange(120) // 4
    ranks_N = draws.class_ranks(names, labels_N, KEY, units_N)
    counts = np.ceil(np.round(0.25 * np.arange(121), 9)).astype(int)
    is_held_N = draws.held_out(labels_N, ranks_N, counts, units_N)
    assert all(is_held_N[units_N == unit].all() or not is_held_N[units_N == unit].any() for unit in range(30))
    assert 0.15 < is_held_N.mean() < 0.4
