"""The protocol that a data set gets, folds that divide no unit, and an interval that covers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

from edgedistill.agent import metrics
from edgedistill.errors import InputError
from edgedistill.labels import protocol
from edgedistill.labels.divide import TEST_SEED
from edgedistill.labels.protocol import (
    assign_folds,
    divide_in_halves,
    pooled_accuracy,
    pooled_gain,
    resolve,
    unit_accuracy,
    unit_drop,
)

Chance = Callable[[np.random.Generator, int], np.ndarray]  # of a right answer, for each of so many units


@pytest.mark.parametrize(
    ("choice", "counts", "has_test", "has_budget", "expected"),
    [
        ("auto", [25] * 5, True, False, "test"),
        ("auto", [25] * 5, False, False, "folds"),
        ("auto", [25] * 5, False, True, "holdout"),
        ("auto", [200, 200], False, False, "holdout"),
        ("auto", [399], False, False, "folds"),
        ("auto", [1000, 19], False, False, "folds"),
        ("holdout", [5, 5], False, False, "holdout"),
        ("folds", [1000, 1000], False, False, "folds"),
        ("test", [5, 5], True, False, "test"),
    ],
)
def test_protocol_of_a_data_set(
    choice: Any, counts: list[int], has_test: bool, has_budget: bool, expected: str
) -> None:
    assert resolve(choice, counts, has_test=has_test, has_budget=has_budget) == expected


def test_labels_of_one_group_count_once() -> None:
    """A group of two classes is one of each class, and one in all."""
    assert resolve("auto", [200, 200], has_test=False, has_budget=False, total=400) == "holdout"
    assert resolve("auto", [200, 200], has_test=False, has_budget=False, total=399) == "folds"


def test_budget_that_a_hold_out_does_not_leave_gets_folds() -> None:
    assert resolve("auto", [10, 10], has_test=False, has_budget=True, leaves_budget=False) == "folds"
    assert resolve("holdout", [10, 10], has_test=False, has_budget=True, leaves_budget=False) == "holdout"
    assert resolve("auto", [10, 10], has_test=True, has_budget=True, leaves_budget=False) == "test"


def test_protocols_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="has no test split"):
        resolve("test", [50, 50], has_test=False, has_budget=False)
    for choice in ("folds", "holdout"):
        with pytest.raises(InputError, match=f"is {choice}, and the data set has a test split"):
            resolve(choice, [50, 50], has_test=True, has_budget=False)  # type: ignore[arg-type]


def test_folds_are_stratified_and_score_every_label() -> None:
    labels_N = np.repeat([0, 1, 2, -1], [25, 25, 25, 40])
    folds = assign_folds(labels_N, np.arange(115), seed=0)
    assert folds.count == 5 and folds.unscored == ()
    assert (folds.folds_N[labels_N == -1] == -1).all()
    for label in range(3):
        np.testing.assert_array_equal(np.bincount(folds.folds_N[labels_N == label]), [5] * 5)
    np.testing.assert_array_equal(assign_folds(labels_N, np.arange(115), seed=0).folds_N, folds.folds_N)


def test_folds_divide_no_unit() -> None:
    labels_N = np.random.default_rng(0).integers(0, 3, 120)
    units_N = np.arange(120) // 6
    folds = assign_folds(labels_N, units_N, seed=1)
    assert all(len(set(folds.folds_N[units_N == unit])) == 1 for unit in range(20))


def test_rare_classes_lower_the_number_of_folds_or_always_train() -> None:
    labels_N = np.repeat([0, 1, 2], [20, 3, 1])
    folds = assign_folds(labels_N, np.arange(24), seed=0)
    assert folds.count == 3 and folds.unscored == (2,)
    assert folds.folds_N[-1] == -1 and (folds.folds_N[:-1] >= 0).all()


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(InputError, match="accuracy cannot be measured"):
        assign_folds(np.array([0, 0, 0, 1]), np.arange(4), seed=0)
    with pytest.raises(InputError, match="in two groups"):
        assign_folds(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), seed=0)


def labels_of(counts: dict[tuple[int, int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and units of images whose numbers are given by class and unit."""
    pairs = np.array([pair for pair, count in counts.items() for _ in range(count)])
    return pairs[:, 0], pairs[:, 1]


def test_message_speaks_of_groups_where_there_are_some() -> None:
    with pytest.raises(InputError) as error:
        assign_folds(np.array([0, 0, 0, 1]), np.arange(4), seed=0)
    assert "group" not in str(error.value)


def test_class_that_an_unscored_one_leaves_one_unit_is_not_scored_either() -> None:
    """Class 0 is in units 1 and 2, class 1 in unit 1 alone; 2 and 3 are in ten units each."""
    counts = {(0, 1): 1, (0, 2): 1, (1, 1): 1} | {
        (label, 10 * label + unit): 2 for label in (2, 3) for unit in range(10)
    }
    labels_N, units_N = labels_of(counts)
    folds = assign_folds(labels_N, units_N, seed=0)
    assert folds.unscored == (0, 1) and folds.count == 5 and folds.redrawn == 0
    assert (folds.folds_N[labels_N < 2] == -1).all() and (folds.folds_N[labels_N > 1] >= 0).all()
    with pytest.raises(InputError, match="in two groups"):
        assign_folds(*labels_of({pair: count for pair, count in counts.items() if pair[0] != 3}), seed=0)


# by class and unit; with TEST_SEED, class 1 would be in one fold
LOPSIDED = {(0, 0): 60, (0, 2): 3, (1, 0): 1, (1, 1): 1, (1, 2): 2, (1, 3): 1}
# the same of class 2
UNDIVIDED = {
    **{(0, 1): 2, (0, 2): 4, (0, 3): 6, (0, 4): 2, (1, 0): 1, (1, 1): 2, (1, 2): 2, (1, 3): 1, (1, 4): 1},
    **{(2, 2): 1, (2, 4): 4},
}


@pytest.mark.parametrize("counts", [LOPSIDED, UNDIVIDED])
def test_every_fold_trains_on_each_class_that_it_scores(counts: dict[tuple[int, int], int]) -> None:
    labels_N, units_N = labels_of(counts)
    folds = assign_folds(labels_N, units_N, TEST_SEED)
    assert not folds.unscored and folds.redrawn == 1
    for fold in range(folds.count):
        assert set(labels_N[folds.folds_N == fold]) <= set(labels_N[folds.folds_N != fold])


def test_chance_divides_what_stratified_folds_never_do() -> None:
    """Unit 1 has all classes, and the two others would have to be in one fold."""
    labels_N, units_N = labels_of({(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 1, (2, 1): 1, (2, 2): 1})
    folds = assign_folds(labels_N, units_N, TEST_SEED)
    assert not folds.unscored and folds.redrawn >= protocol.SEEDS
    assert folds.folds_N[0] == folds.folds_N[-1] != folds.folds_N[1]


def test_class_that_no_division_spreads_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    labels_N, units_N = labels_of(UNDIVIDED)
    every = protocol.divisions
    monkeypatch.setattr(protocol, "divisions", lambda *arguments: islice(every(*arguments), 1))
    folds = assign_folds(labels_N, units_N, TEST_SEED)
    assert folds.unscored == (2,) and folds.count == 2
    assert (folds.folds_N[np.isin(units_N, [2, 4])] == -1).all()


def test_pooled_interval_covers_correlated_folds() -> None:
    """Fold students err together: a common shift of their accuracy is covered, a binomial interval would miss it."""
    generator = np.random.default_rng(0)
    covered, binomial = 0, 0
    n, count, truth = 125, 5, 0.7
    labels_N = np.arange(n) % 5
    for _ in range(200):
        # a shift of all folds, as large as the sampling error of a fold's worth of training images allows
        p = float(np.clip(truth + generator.normal(0, 0.04), 0, 1))
        predicted_N = np.where(generator.random(n) < p, labels_N, (labels_N + 1) % 5)
        accuracy = pooled_accuracy(labels_N, predicted_N, np.arange(n), count)
        covered += accuracy.top1_ci95[0] <= truth <= accuracy.top1_ci95[1]
        half = 1.96 * np.sqrt(accuracy.top1 * (1 - accuracy.top1) / n)
        binomial += abs(accuracy.top1 - truth) <= half
    assert covered >= 184 > binomial


def test_pooled_interval_counts_units_not_images() -> None:
    labels_N = np.repeat([0, 1], 60)
    predicted_N = np.where(np.arange(120) // 12 % 2, labels_N, 1 - labels_N)  # whole units are right or wrong
    alone = pooled_accuracy(labels_N, predicted_N, np.arange(120), 5)
    grouped = pooled_accuracy(labels_N, predicted_N, np.arange(120) // 12, 5)
    assert alone.top1 == grouped.top1 == 0.5
    width = [accuracy.top1_ci95[1] - accuracy.top1_ci95[0] for accuracy in (alone, grouped)]
    assert width[1] > 1.5 * width[0]


def test_paired_gain_out_of_fold_is_the_drop_with_the_variance_of_folds() -> None:
    generator = np.random.default_rng(0)
    labels_N = generator.integers(0, 3, 200)
    first_N, other_N = (np.where(generator.random(200) < share, labels_N, (labels_N + 1) % 3) for share in (0.8, 0.7))
    for score in ("top1", "balanced"):
        gain, low, high = pooled_gain(labels_N, first_N, other_N, units_N=np.arange(200), count=5, score=score)
        drop, drop_low, drop_high = metrics.drop(labels_N, first_N, other_N, by=score)
        assert gain == pytest.approx(drop) and gain > 0
        assert (high - low) / (drop_high - drop_low) == pytest.approx(np.sqrt(1 + 5 / 4), rel=0.01)
        assert low + high == pytest.approx(drop_low + drop_high)
        reverse = pooled_gain(labels_N, other_N, first_N, units_N=np.arange(200), count=5, score=score)
        assert reverse == pytest.approx((-gain, -high, -low))


def test_paired_gain_counts_units_not_images() -> None:
    labels_N = np.zeros(120, dtype=np.int64)
    first_N = np.where(np.arange(120) // 12 % 2, 0, 1)  # whole units are won or lost
    pairs = [
        pooled_gain(labels_N, first_N, 1 - first_N, units_N=units_N, count=5, score="top1")
        for units_N in (np.arange(120), np.arange(120) // 12)
    ]
    assert pairs[0][0] == pairs[1][0] == 0 and pairs[1][2] - pairs[1][1] > 3 * (pairs[0][2] - pairs[0][1])


def test_interval_of_test_images_counts_groups() -> None:
    """Groups differ, so 400 images of 20 groups tell less than 400 images do."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(200):
        share_G = generator.beta(2.0, 0.5, size=20)  # 0.8 in the mean
        units_N = np.repeat(np.arange(20), 20)
        labels_N = units_N % 2
        predicted_N = np.where(generator.random(400) < share_G[units_N], labels_N, 1 - labels_N)
        low, high = unit_accuracy(labels_N, predicted_N, units_N).top1_ci95
        covered += low <= 0.8 <= high
    assert covered >= 170  # by Wilson's interval 112


def all_or_nothing(share: float) -> Chance:
    return lambda generator, units: (generator.random(units) < share).astype(np.float64)


def alike(share: float) -> Chance:
    return lambda generator, units: generator.beta(3 * share, 3 * (1 - share), size=units)


def units_of_all_classes(units: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and units of `units` that hold one image of each class."""
    return np.tile(np.arange(classes), units), np.repeat(np.arange(units), classes)


def units_of_one_class(units: int, classes: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and units of `units` a class, each of so many images."""
    return np.repeat(np.arange(classes), units * images), np.arange(units * classes * images) // images


def mixed_units() -> tuple[np.ndarray, np.ndarray]:
    """Labels and units of 40 that hold 1, 2, 5 or 12 images, most of them of one of four classes."""
    generator = np.random.default_rng(5)
    units_N = np.repeat(np.arange(40), generator.choice([1, 2, 5, 12], size=40))
    others_N = generator.integers(4, size=len(units_N))
    return np.where(generator.random(len(units_N)) < 0.6, units_N % 4, others_N), units_N


@pytest.mark.parametrize(
    ("images", "chance", "truth"),
    [
        (units_of_one_class(20, 5, 1), all_or_nothing(0.8), 0.8),
        (units_of_all_classes(25, 5), all_or_nothing(0.7), 0.7),
        (units_of_all_classes(20, 10), all_or_nothing(0.8), 0.8),
        (units_of_all_classes(20, 5), alike(0.8), 0.8),
        (units_of_one_class(10, 3, 3), all_or_nothing(0.8), 0.8),
        (mixed_units(), alike(0.8), 0.8),
        (units_of_all_classes(6, 5), all_or_nothing(0.7), 0.7),
    ],
    ids=["singles", "25x5", "20x10", "20x5 alike", "pure", "mixed", "few"],
)
def test_intervals_cover_whatever_units_hold(
    images: tuple[np.ndarray, np.ndarray], chance: Chance, truth: float
) -> None:
    """Of one student's accuracies, and of what it gains over another."""
    (labels_N, units_N), generator, covered = images, np.random.default_rng(0), np.zeros(4)
    for _ in range(150):
        chances_UM = [chance(generator, int(units_N.max()) + 1) for _ in range(2)]
        first_N, other_N = (
            np.where(generator.random(len(units_N)) < chance_U[units_N], labels_N, -1) for chance_U in chances_UM
        )
        accuracy = unit_accuracy(labels_N, first_N, units_N)
        intervals = [(accuracy.top1_ci95, truth), (accuracy.balanced_ci95, truth)]
        for score in ("top1", "balanced"):
            _, low, high = unit_drop(labels_N, first_N, other_N, units_N=units_N, score=score)
            intervals.append(((low, high), 0.0))
        covered += [low <= true <= high for (low, high), true in intervals]
    assert (covered >= 0.9 * 150).all(), covered


def test_few_units_without_a_mistake_tell_little_however_large() -> None:
    labels_N, units_N = units_of_one_class(3, 2, 50)
    accuracy = unit_accuracy(labels_N, labels_N, units_N)
    low, high = metrics.wilson(6, 6)
    assert accuracy.top1_ci95 == pytest.approx((low, high)) == accuracy.balanced_ci95
    other_N = np.where(units_N == 0, -1, labels_N)
    _, low, high = unit_drop(labels_N, labels_N, other_N, units_N=units_N, score="balanced")
    assert low < 0 and high > 0.3


def test_units_that_disagree_in_themselves_are_worth_their_images() -> None:
    """Two thousand images whose answers their units do not sway have nearly the interval of images alone."""
    generator = np.random.default_rng(0)
    labels_N, units_N = np.arange(2000) % 2, np.arange(2000) // 4
    predicted_N = np.where(generator.random(2000) < 0.9, labels_N, 1 - labels_N)
    alone, grouped = (unit_accuracy(labels_N, predicted_N, part_N) for part_N in (np.arange(2000), units_N))
    for score in ("top1", "balanced"):
        widths = [np.ptp(accuracy.interval(score)) for accuracy in (alone, grouped)]
        assert 0.95 * widths[0] < widths[1] < 1.1 * widths[0]


def test_classes_that_are_surely_right_and_wrong_still_contribute_doubt() -> None:
    labels_N, units_N = units_of_one_class(5, 2, 3)
    accuracy = unit_accuracy(labels_N, np.zeros_like(labels_N), units_N)
    low, high = accuracy.balanced_ci95
    assert accuracy.balanced == 0.5 and low < 0.36 and high > 0.64


def test_halves_have_whole_units_and_leave_two_of_each_class() -> None:
    labels_L = np.repeat(np.arange(4), [8, 9, 3, 5])
    units_L = np.arange(25)
    units_L[1], units_L[20] = units_L[0], units_L[17]  # two frames of one board; a frame of a rare class, and another
    half_L = divide_in_halves(labels_L, units_L, seed=0)
    assert half_L[0] == half_L[1] and half_L[17] == half_L[20] == -1
    assert set(half_L[labels_L == 2]) == {-1}, "of three labels a half would leave one"
    for label in (0, 1, 3):
        assert min(np.bincount(half_L[(labels_L == label) & (half_L >= 0)], minlength=2)) >= 2
    with pytest.raises(InputError, match="fewer than two classes"):
        divide_in_halves(np.repeat(np.arange(2), [8, 3]), np.arange(11), seed=0)


@pytest.mark.parametrize("sizes", [(10, 1, 1, 1), (6, 2, 2, 2), (5, 1, 1, 1, 1)])
def test_halves_count_units_and_not_images(sizes: tuple[int, ...]) -> None:
    units_L = np.repeat(np.arange(2 * len(sizes)), [*sizes, *sizes])
    labels_L = np.repeat(np.arange(2), sum(sizes))
    half_L = divide_in_halves(labels_L, units_L, seed=0)
    for label, half in itertools.product((0, 1), (0, 1)):
        assert len(np.unique(units_L[(labels_L == label) & (half_L == half)])) >= 2
