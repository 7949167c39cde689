"""The protocol that a data set gets, folds that divide no unit, and an interval that covers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgedistill.agent import metrics
from edgedistill.errors import InputError
from edgedistill.labels.protocol import assign_folds, pooled_accuracy, pooled_gain, resolve, unit_accuracy


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
