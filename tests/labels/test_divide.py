"""Divisions: exact counts, draws that do not depend on order, nothing on two sides, copies that count once."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import InputError
from edgedistill.labels.divide import Division, Pool, Rules, divide

LABELS = st.lists(st.integers(-1, 3), min_size=1, max_size=80)
FRACTIONS = st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.7])
BUDGETS = st.one_of(st.none(), st.integers(2, 12))
SEEDS = st.integers(0, 5)


def names_of(labels: list[int]) -> list[str]:
    return [f"image{index}" for index in range(len(labels))]


def pool_of(names: Sequence[str], labels_N: np.ndarray, hashes: Sequence[str] | None = None) -> Pool:
    """A pool of pictures; without `hashes` no two have the same pixels."""
    return Pool(
        names=names,
        labels_N=labels_N,
        hashes=np.array([name.encode() for name in hashes or names], dtype="S64"),
        is_val_N=np.zeros(len(names), dtype=bool),
    )


def rules_of(protocol: str = "test", classes: int = 4, fraction: float = 0.2, **changed: object) -> Rules:
    rules = Rules(protocol="test", classes=classes, per_class=None, val_fraction=fraction, test_fraction=0.3, seed=0)
    return replace(rules, protocol=protocol, **changed)


def draw(
    names: Sequence[str], labels_N: np.ndarray, per_class: int | None, val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    division = divide(pool_of(names, labels_N), rules_of(per_class=per_class, fraction=val_fraction, seed=seed))
    return division.labeled, division.val, division.unlabeled


@given(labels=LABELS, budget=BUDGETS, fraction=FRACTIONS, seed=SEEDS)
def test_draw_partitions_all_images_with_exact_counts_per_class(
    labels: list[int], budget: int | None, fraction: float, seed: int
) -> None:
    labels_N = np.array(labels)
    labeled, val, unlabeled = draw(names_of(labels), labels_N, per_class=budget, val_fraction=fraction, seed=seed)
    assert sorted([*labeled, *val, *unlabeled]) == list(range(len(labels)))
    assert not np.isin(labels_N[np.concatenate([labeled, val])], -1).any()
    for label in range(4):
        count = int((labels_N == label).sum())
        budgeted = count if budget is None else min(count, budget)
        n_val = math.ceil(round(budgeted * fraction, 9))
        assert (labels_N[val] == label).sum() == n_val
        assert (labels_N[labeled] == label).sum() == budgeted - n_val


@given(labels=LABELS, small=st.integers(1, 8), more=st.integers(0, 8), fraction=FRACTIONS, seed=SEEDS)
def test_larger_budget_contains_smaller_one(
    labels: list[int], small: int, more: int, fraction: float, seed: int
) -> None:
    few = draw(names_of(labels), np.array(labels), per_class=small, val_fraction=fraction, seed=seed)
    many = draw(names_of(labels), np.array(labels), per_class=small + more, val_fraction=fraction, seed=seed)
    assert set(few[0]) <= set(many[0]) and set(few[1]) <= set(many[1])


@given(labels=LABELS, budget=BUDGETS, seed=SEEDS, shuffle=st.randoms(use_true_random=False))
def test_draw_is_independent_of_listing_order(
    labels: list[int], budget: int | None, seed: int, shuffle: random.Random
) -> None:
    names = names_of(labels)
    order = list(range(len(labels)))
    shuffle.shuffle(order)
    first = draw(names, np.array(labels), per_class=budget, val_fraction=0.2, seed=seed)
    second = draw([names[row] for row in order], np.array(labels)[order], per_class=budget, val_fraction=0.2, seed=seed)
    for first_rows, second_rows in zip(first, second, strict=True):
        assert {names[row] for row in first_rows} == {names[order[row]] for row in second_rows}


def test_seeds_draw_differently() -> None:
    labels = [0, 1] * 50
    labeled_sets = [
        frozenset(draw(names_of(labels), np.array(labels), per_class=10, val_fraction=0.2, seed=seed)[0])
        for seed in range(5)
    ]
    assert len(set(labeled_sets)) == 5


def sides(division: Division) -> dict[str, np.ndarray]:
    return {name: getattr(division, name) for name in ("labeled", "val", "unlabeled", "test", "reserve")}


def recordings(n: int = 240, size: int = 6, unlabeled: int = 60) -> tuple[list[str], np.ndarray, list[str]]:
    """Frames of recordings of one class each, some without a label."""
    labels_N = np.repeat(np.arange(n // size) % 3, size)
    labels_N[np.random.default_rng(0).permutation(n)[:unlabeled]] = -1
    return [f"{index:04d}.png" for index in range(n)], labels_N, [f"recording {index // size}" for index in range(n)]


@pytest.mark.parametrize("protocol", ["holdout", "folds"])
def test_no_group_is_on_two_sides(protocol: str) -> None:
    names, labels_N, groups = recordings()
    pool = replace(pool_of(names, labels_N), groups=groups)
    for fold in (0, 1, 2, None) if protocol == "folds" else (None,):
        division = divide(pool, rules_of(protocol, classes=3, fold=fold))
        parts = sides(division)
        rows = np.concatenate(list(parts.values()))
        assert len(set(rows.tolist())) == len(rows) and len(rows) + division.tested >= 180
        trains = {groups[row] for row in (*parts["labeled"], *parts["unlabeled"])}
        assert not trains & {groups[row] for row in parts["test"]}
        assert not trains & {groups[row] for row in parts["val"]}
        assert not trains & {groups[row] for row in parts["reserve"]}
        assert len(parts["test"]) > 20 or (fold is None and protocol == "folds")


def test_groups_of_an_official_test_split_do_not_train() -> None:
    names, labels_N, groups = recordings()
    pool = replace(
        pool_of(names, labels_N),
        groups=groups,
        test_hashes=np.array([b"t1", names[100].encode()], dtype="S64"),
        test_groups=["recording 0", None],
    )
    division = divide(pool, rules_of(classes=3))
    left = np.setdiff1d(np.arange(240), np.concatenate(list(sides(division).values())))
    assert {groups[row] for row in left} >= {"recording 0", groups[100]}
    assert division.tested == 12


def test_copies_count_once_and_are_never_on_two_sides() -> None:
    n = 60
    names = [f"{index:03d}.png" for index in range(3 * n)]
    hashes = [f"picture {index % n}" for index in range(3 * n)]
    labels_N = np.array([index % n % 3 for index in range(3 * n)])
    labels_N[2 * n :] = -1
    division = divide(pool_of(names, labels_N, hashes), rules_of("holdout", classes=3))
    parts = sides(division)
    seen = [hashes[row] for rows in parts.values() for row in rows]
    assert len(seen) == len(set(seen)) == n and division.copies == 2 * n
    assert len(parts["test"]) == 18 and not len(parts["unlabeled"])


def test_one_picture_with_two_labels_is_left_out() -> None:
    names = [f"{index:03d}.png" for index in range(42)]
    hashes = [*names[:40], "both", "both"]
    labels_N = np.array([*[0, 1] * 20, 0, 1])
    division = divide(pool_of(names, labels_N, hashes), rules_of("holdout", classes=2))
    np.testing.assert_array_equal(division.contradicted, [40, 41])
    assert not np.isin([40, 41], np.concatenate(list(sides(division).values()))).any()


def test_every_label_is_tested_by_one_fold_and_trains_in_the_others() -> None:
    labels_N = np.repeat([0, 1, 2, 3, -1], [25, 25, 25, 1, 100])
    names = [f"{index:03d}.png" for index in range(len(labels_N))]
    pool = pool_of(names, labels_N)
    ships = divide(pool, rules_of("folds"))
    assert len(ships.labeled) + len(ships.val) == 76 and not len(ships.test) and ships.folds is not None
    assert ships.folds.unscored == (3,) and 75 in ships.labeled
    assert len(ships.reserve) == 25 and len(ships.unlabeled) == 75
    tested: list[int] = []
    for fold in range(5):
        division = divide(pool, rules_of("folds", fold=fold))
        assert len(division.test) == 15 and 75 in division.labeled
        assert len(division.labeled) + len(division.val) == 61
        np.testing.assert_array_equal(division.reserve, ships.reserve)
        tested += division.test.tolist()
    assert sorted(tested) == list(range(75))


def with_unlabeled(n: int, labeled: int = 60) -> Pool:
    labels_N = np.concatenate([np.arange(labeled) % 3, np.full(n, -1)])
    return pool_of([f"{index:04d}.png" for index in range(labeled + n)], labels_N)


@pytest.mark.parametrize("protocol", ["test", "holdout"])
@pytest.mark.parametrize(("unlabeled", "size"), [(399, 0), (400, 100), (1001, 250), (2400, 500)])
def test_reserve_is_a_quarter_of_many_unlabeled_images_beside_a_small_val(
    protocol: str, unlabeled: int, size: int
) -> None:
    division = divide(with_unlabeled(unlabeled), rules_of(protocol, classes=3))
    assert (len(division.reserve), len(division.unlabeled)) == (size, unlabeled - size)
    assert not len(np.intersect1d(division.reserve, division.unlabeled))


def test_reserve_does_not_depend_on_seed_and_can_be_smaller_or_none() -> None:
    pool = with_unlabeled(1000)
    first, second = (divide(pool, rules_of("holdout", classes=3, seed=seed)).reserve for seed in (0, 1))
    np.testing.assert_array_equal(first, second)
    assert len(divide(pool, rules_of("holdout", classes=3, reserve=30)).reserve) == 30
    assert not len(divide(pool, rules_of("holdout", classes=3, reserve=0)).reserve)


def test_val_of_500_labels_needs_no_reserve() -> None:
    pool = with_unlabeled(1000, labeled=1500)
    assert len(divide(pool, rules_of(classes=3, fraction=0.332)).reserve) == 250
    assert not len(divide(pool, rules_of(classes=3, fraction=0.334)).reserve)


def test_reserve_is_drawn_in_entire_groups() -> None:
    pool = with_unlabeled(600)
    pool = replace(pool, groups=[None] * 60 + [f"recording {index // 7}" for index in range(600)])
    division = divide(pool, rules_of("holdout", classes=3))
    assert 143 < len(division.reserve) <= 150
    reserved, trains = ({pool.groups[row] for row in rows} for rows in (division.reserve, division.unlabeled))
    assert not reserved & trains


def test_folds_of_a_budget_use_its_labels_alone() -> None:
    labels_N = np.repeat([0, 1], 50)
    pool = pool_of([f"{index:03d}.png" for index in range(100)], labels_N)
    division = divide(pool, rules_of("folds", classes=2, per_class=10))
    assert len(division.labeled) + len(division.val) == 20
    assert len(division.unlabeled) + len(division.reserve) == 80


def test_hold_out_does_not_depend_on_seed_or_budget() -> None:
    pool = pool_of([f"{index:03d}.png" for index in range(100)], np.repeat([0, 1], 50))
    first, second = (
        divide(pool, rules_of("holdout", classes=2, per_class=budget, seed=seed)) for budget, seed in ((5, 0), (9, 3))
    )
    np.testing.assert_array_equal(first.test, second.test)
    assert len(first.test) == 30


def test_two_classes_must_be_scored() -> None:
    pool = pool_of(["a", "b", "c"], np.array([0, 0, 1]))
    with pytest.raises(InputError, match="accuracy cannot be measured"):
        divide(pool, rules_of("folds", classes=2))


@pytest.mark.parametrize(("classes", "labels"), [(2, 3), (2, 5), (4, 5)])
def test_every_fold_has_val_of_each_class(classes: int, labels: int) -> None:
    """A fold may take any label away, that of the first rank, too."""
    for draw_number in range(20):
        names = [f"{draw_number}/{index}" for index in range(classes * labels)]
        pool = pool_of(names, labels_N=(labels_N := np.arange(len(names)) % classes))
        rules = rules_of("folds", classes=classes)
        shipping = divide(pool, rules)
        assert shipping.folds is not None
        for fold in range(shipping.folds.count):
            part = divide(pool, replace(rules, fold=fold))
            assert set(labels_N[part.val]) == set(labels_N[part.labeled]) == set(range(classes))


def test_reserve_trains_in_no_fold() -> None:
    """Groups with labels take unlabeled images away from a fold, and none of its reserve."""
    labels_N = np.where(np.arange(600) < 60, np.arange(600) % 3, -1)
    names = [f"image{index}" for index in range(600)]
    pool = replace(pool_of(names, labels_N), groups=[f"g{row % 30}" if row < 260 else None for row in range(600)])
    rules = rules_of("folds", classes=3)
    reserve = divide(pool, rules).reserve.tolist()
    assert len(reserve) == 85
    for fold in range(5):
        assert divide(pool, replace(rules, fold=fold)).reserve.tolist() == reserve


@pytest.mark.parametrize("protocol", ["test", "holdout"])
def test_val_leaves_a_label_of_each_class_to_train(protocol: str) -> None:
    """Groups of two classes: a group that is held out for one class may be the last one of the other."""
    for seed in range(60):
        generator, labels, groups = np.random.default_rng(seed), list[int](), list[str | None]()
        for group in range(12):
            for label in generator.choice(4, size=2, replace=False):
                count = int(generator.integers(3, 9))
                labels += [int(label)] * count
                groups += [f"g{group}"] * count
        labels_N = np.array(labels)
        names = [f"{seed}/{index}" for index in range(len(labels))]
        part = divide(replace(pool_of(names, labels_N), groups=groups), rules_of(protocol))
        assert set(labels_N[part.val]) <= set(labels_N[part.labeled])


@pytest.mark.parametrize("fraction", [0.6, 0.75, 0.9])
def test_val_of_a_fold_leaves_a_label_of_each_class_to_train(fraction: float) -> None:
    labels_N = np.arange(9) % 3
    pool = pool_of([f"image{index}" for index in range(9)], labels_N)
    for fold in (0, 1, 2, None):
        part = divide(pool, rules_of("folds", classes=3, fraction=fraction, fold=fold))
        assert set(labels_N[part.labeled]) == set(labels_N[part.val]) == {0, 1, 2}


def test_val_of_a_fold_takes_no_group_with_the_last_labels_of_a_class() -> None:
    """Class 1 is in one group, together with class 0: the group trains, else no label of class 1 would."""
    labels_N = np.array([0, 1, 1, *[0] * 9, *[2] * 9])
    for seed in range(60):
        pool = replace(
            pool_of([f"{seed}/{row}" for row in range(21)], labels_N), groups=[f"g{row // 3}" for row in range(21)]
        )
        part = divide(pool, rules_of("folds", classes=3))
        assert not {0, 1, 2} & set(part.val) and {0, 1, 2} <= set(part.labeled)


@pytest.mark.parametrize("protocol", ["test", "holdout", "folds"])
def test_images_beside_val_are_counted(protocol: str) -> None:
    """Recordings with a labeled frame and unlabeled ones: those of val are in no other part."""
    labels_N = np.where(np.arange(600) % 20, -1, np.arange(600) // 20 % 3)
    pool = replace(
        pool_of([f"{row:03d}" for row in range(600)], labels_N), groups=[f"g{row // 20}" for row in range(600)]
    )
    part = divide(pool, rules_of(protocol, classes=3))
    beside = part.unlabeled_beside_val
    assert len(beside) == 19 * len(part.val) > 0 and not len(part.labeled_beside_val)
    rows = np.concatenate([*sides(part).values(), beside])
    assert len(set(rows)) == len(rows) == 600 - part.tested


def test_labels_beside_an_official_val_are_counted() -> None:
    labels_N = np.arange(40) % 2
    pool = pool_of([f"{row:03d}" for row in range(40)], labels_N)
    pool = replace(
        pool, is_val_N=np.arange(40) >= 30, groups=[f"g{row % 10}" if row != 5 else None for row in range(40)]
    )
    part = divide(pool, rules_of("test", classes=2, fraction=0.0))
    assert part.labeled.tolist() == [5] and len(part.val) == 10 and len(part.labeled_beside_val) == 29
