"""The one accuracy code and the one speed comparison, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.agent import metrics


def test_wilson_by_hand() -> None:
    # 8 of 10, z^2 = 3.8415: centre (0.8 + 0.19207) / 1.38415 = 0.71674,
    # half = 1.95996 * sqrt(0.016 + 0.0096036) / 1.38415 = 0.22657
    assert metrics.wilson(8, 10) == pytest.approx((0.49016, 0.94331), abs=2e-4)
    assert metrics.wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_a_fraction(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = metrics.wilson(hits, n)
    assert 0.0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1.0


def test_accuracy_by_hand() -> None:
    # four of class 0 (three right), two of class 1 (one right): top1 4/6, balanced (3/4 + 1/2) / 2
    got = metrics.accuracy([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0])
    assert (got["n"], got["top1"], got["balanced"]) == (6, pytest.approx(4 / 6), pytest.approx(0.625))
    low, high = got["balanced_ci95"]
    # Agresti-Coull variances: (5/8)(3/8)/8 + (3/6)(3/6)/6 = 0.070964; half = 1.96 * sqrt(0.070964) / 2 = 0.26106
    assert (low, high) == pytest.approx((0.625 - 0.26106, 0.625 + 0.26106), abs=1e-4)


@pytest.mark.parametrize(("labels", "predicted"), [([], []), ([0], [0, 1]), ([[0]], [[0]])])
def test_accuracy_refuses_what_it_cannot_count(labels: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match="equal, 1-D, not empty"):
        metrics.accuracy(labels, predicted)


def test_agreement_counts_equal_labels() -> None:
    assert metrics.agreement([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75


LABELS = np.zeros(100, dtype=int)


def predictions(lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a hundred images of class 0: what was right and is wrong, what was wrong and is right, the rest right."""
    before, after = np.zeros(100, dtype=int), np.zeros(100, dtype=int)
    after[:lost], before[lost : lost + won] = 1, 1
    return before, after


def test_drop_by_hand() -> None:
    # 8 lost and 3 won of 100: (8 - 3) / 100; half an image to each of the four outcomes makes that 5 / 102 = 0.049020
    # with a variance of (8 + 3 + 1 - 25 / 102) / 102^2 = 0.0011298, so half = 1.95996 * 0.033613 = 0.065880
    got = metrics.drop(LABELS, *predictions(8, 3))
    assert got == pytest.approx((0.05, -0.016860, 0.114900), abs=2e-6)
    # nothing changed: half = 1.95996 * sqrt(1 / 102^2) = 0.019215
    assert metrics.drop(LABELS, *predictions(0, 0)) == pytest.approx((0.0, -0.019215, 0.019215), abs=1e-6)


def test_an_image_that_both_get_wrong_in_another_way_is_no_loss() -> None:
    assert metrics.drop([0, 0], [1, 0], [2, 0])[0] == 0.0


def test_a_balanced_drop_counts_classes_and_not_images() -> None:
    # nine of class 0, one of them lost; one of class 1, lost: two of ten images, (1/9 + 1/1) / 2 of the classes
    labels = [0] * 9 + [1]
    before, after = labels, [1] + [0] * 9
    assert metrics.drop(labels, before, after)[0] == pytest.approx(0.2)
    loss, low, high = metrics.drop(labels, before, after, "balanced")
    assert loss == pytest.approx(5 / 9)
    # centres 1/11 and 1/3, mean 0.212121; variances (1 + 1 - 1/11) / 121 = 0.015778 and (1 + 1 - 1/3) / 9 = 0.185185,
    # half = 1.95996 * sqrt(0.200963) / 2 = 0.439315
    assert (low, high) == pytest.approx((0.212121 - 0.439315, 0.212121 + 0.439315), abs=5e-6)


ANSWERS = st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=60)


@given(ANSWERS, st.sampled_from(["top1", "balanced"]))
def test_a_drop_is_the_difference_of_the_accuracies_and_back_again_the_same_gained(
    answers: list[tuple[int, int, int]], by: str
) -> None:
    labels, before, after = np.array(answers).T
    loss, low, high = metrics.drop(labels, before, after, by)
    wanted = metrics.accuracy(labels, before)[by] - metrics.accuracy(labels, after)[by]
    assert loss == pytest.approx(wanted, abs=1e-12)
    assert metrics.drop(labels, after, before, by) == pytest.approx((-loss, -high, -low), abs=1e-12)
    assert -1.0 <= low <= high <= 1.0


@given(ANSWERS)
def test_the_interval_of_a_drop_holds_it(answers: list[tuple[int, int, int]]) -> None:
    """Half an image more in each outcome moves the estimate by at most 2 / (n + 2), and the interval is wider.

    For "balanced" that is so only where classes have more than an image or two.
    """
    loss, low, high = metrics.drop(*np.array(answers).T)
    assert low - 1e-12 <= loss <= high + 1e-12


def test_the_interval_of_a_drop_covers_it_as_often_as_it_says() -> None:
    """300 sets of 150 images, of which 6 % are lost and 2 % won in truth."""
    generator, covered = np.random.default_rng(5), 0
    for _ in range(300):
        kind = generator.choice(3, size=150, p=[0.06, 0.02, 0.92])
        _, low, high = metrics.drop(np.zeros(150), kind == 1, kind == 0)
        covered += low <= 0.04 <= high
    assert 0.92 * 300 <= covered < 300


def test_ratio_of_an_exact_speed_up_has_no_spread() -> None:
    base = np.array([[10.0, 12.0], [9.0, 30.0]])
    assert metrics.ratio_interval(base.tolist(), (base / 2).tolist()) == (2.0, 2.0, 2.0)


def test_ratio_needs_four_cells() -> None:
    assert metrics.ratio_interval([[1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]]) is None


def test_ratio_interval_covers_one_for_equal_variants() -> None:
    """The rate at which a 95 % interval covers no difference, over 200 repeated experiments of 3 x 5 noisy cells."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        base, mine = generator.lognormal(0.0, 0.05, size=(2, 3, 5))
        interval = metrics.ratio_interval(base.tolist(), mine.tolist(), draws=400)
        assert interval is not None
        covered += interval[1] <= 1.0 <= interval[2]
    assert covered >= 0.93 * 200


def test_ratio_interval_is_wider_when_processes_differ() -> None:
    """Cells alike within a process and unlike between them are three accidents, not fifteen."""
    apart = [[1.0] * 5, [1.2] * 5, [0.8] * 5]
    mixed = [[1.0, 1.2, 0.8, 1.0, 1.2], [0.8, 1.0, 1.2, 0.8, 1.0], [1.2, 0.8, 1.0, 1.2, 0.8]]
    ones = [[1.0] * 5] * 3
    first, second = metrics.ratio_interval(apart, ones), metrics.ratio_interval(mixed, ones)
    assert first is not None and second is not None
    assert first == (1.0, 0.8, 1.2)
    assert second[2] - second[1] <= first[2] - first[1]
