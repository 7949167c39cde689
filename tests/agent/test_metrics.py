"""Accuracy and speed comparison against hand-calculated figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.agent import metrics


def test_wilson_matches_hand_calculation() -> None:
    # 8 of 10, z^2 = 3.8415: centre (0.8 + 0.19207) / 1.38415 = 0.71674,
    # half = 1.95996 * sqrt(0.016 + 0.0096036) / 1.38415 = 0.22657
    assert metrics.wilson(8, 10) == pytest.approx((0.49016, 0.94331), abs=2e-4)
    assert metrics.wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_interval_contains_share_and_stays_within_0_and_1(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = metrics.wilson(hits, n)
    assert 0.0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1.0


def test_accuracy_matches_hand_calculation() -> None:
    # four of class 0 (three right), two of class 1 (one right): top1 4/6, balanced (3/4 + 1/2) / 2
    accuracy = metrics.accuracy([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0])
    assert (accuracy["n"], accuracy["top1"], accuracy["balanced"]) == (6, pytest.approx(4 / 6), pytest.approx(0.625))
    low, high = accuracy["balanced_ci95"]
    # variances at Agresti-Coull's shares: (5/8)(3/8)/4 + (3/6)(3/6)/2 = 0.183594; half = 1.96 * 0.428479 / 2 = 0.41990
    assert (low, high) == pytest.approx((0.625 - 0.41990, 1.0), abs=1e-4)


@pytest.mark.parametrize(("labels", "predicted"), [([], []), ([0], [0, 1]), ([[0]], [[0]])])
def test_accuracy_refuses_empty_or_unequal_labels(labels: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match="equal, 1-D, not empty"):
        metrics.accuracy(labels, predicted)


def test_agreement_counts_equal_labels() -> None:
    assert metrics.agreement([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75


LABELS = np.zeros(100, dtype=int)


def predictions(lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions before and after on 100 images of class 0: `lost` become wrong, `won` become right."""
    before, after = np.zeros(100, dtype=int), np.zeros(100, dtype=int)
    after[:lost], before[lost : lost + won] = 1, 1
    return before, after


def test_drop_matches_hand_calculation() -> None:
    # 8 lost and 3 won of 100: (8 - 3) / 100; half an image added to each of the four outcomes gives 5 / 102 = 0.049020
    # with a variance of (8 + 3 + 1 - 25 / 102) / 102^2 = 0.0011298, so half = 1.95996 * 0.033613 = 0.065880
    drop = metrics.drop(LABELS, *predictions(8, 3))
    assert drop == pytest.approx((0.05, -0.016860, 0.114900), abs=2e-6)
    # nothing changed: half = 1.95996 * sqrt(1 / 102^2) = 0.019215
    assert metrics.drop(LABELS, *predictions(0, 0)) == pytest.approx((0.0, -0.019215, 0.019215), abs=1e-6)


def test_image_that_both_get_wrong_is_no_loss() -> None:
    assert metrics.drop([0, 0], [1, 0], [2, 0])[0] == 0.0


def test_balanced_drop_averages_over_classes() -> None:
    # nine of class 0, one of them lost; one of class 1, lost: two of ten images, (1/9 + 1/1) / 2 of the classes
    labels = [0] * 9 + [1]
    before, after = labels, [1] + [0] * 9
    assert metrics.drop(labels, before, after)[0] == pytest.approx(0.2)
    loss, low, high = metrics.drop(labels, before, after, "balanced")
    assert loss == pytest.approx(5 / 9)
    # worth 2^2 / (1/9 + 1/1) = 3.6 images; center 5/9 * 3.6 / 5.6 = 0.357143; variances (1 - 1/11) / 81 = 0.011223 and
    # (1 - 1/3) / 1 = 0.666667, of their mean 0.169472; half = 1.95996 * sqrt(3.6^2 * 0.169472 + 1) / 5.6 = 0.625731
    assert (low, high) == pytest.approx((0.357143 - 0.625731, 0.357143 + 0.625731), abs=5e-6)


TRIPLES = st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=60)


@given(TRIPLES, st.sampled_from(["top1", "balanced"]))
def test_drop_is_difference_of_accuracies_and_antisymmetric(triples: list[tuple[int, int, int]], by: str) -> None:
    labels, before, after = np.array(triples).T
    loss, low, high = metrics.drop(labels, before, after, by)
    expected = metrics.accuracy(labels, before)[by] - metrics.accuracy(labels, after)[by]
    assert loss == pytest.approx(expected, abs=1e-12)
    assert metrics.drop(labels, after, before, by) == pytest.approx((-loss, -high, -low), abs=1e-12)
    assert -1.0 <= low <= high <= 1.0


@given(TRIPLES, st.sampled_from(["top1", "balanced"]))
def test_drop_lies_in_its_interval(triples: list[tuple[int, int, int]], by: str) -> None:
    """Half an image more in each outcome moves the estimate less than the interval is wide."""
    loss, low, high = metrics.drop(*np.array(triples).T, by)
    assert low - 1e-12 <= loss <= high + 1e-12


def test_drop_interval_covers_true_drop_at_nominal_rate() -> None:
    """Draw 300 sets of 150 images, of which 6 % are lost and 2 % won in expectation."""
    generator, covered = np.random.default_rng(5), 0
    for _ in range(300):
        kind = generator.choice(3, size=150, p=[0.06, 0.02, 0.92])
        _, low, high = metrics.drop(np.zeros(150), kind == 1, kind == 0)
        covered += low <= 0.04 <= high
    assert 0.92 * 300 <= covered < 300


@pytest.mark.parametrize(("classes", "images"), [(200, 2), (200, 5), (100, 10)])
def test_balanced_intervals_cover_with_many_classes_of_few_images(classes: int, images: int) -> None:
    """70 % right before; a quarter of the images are lost and one in twenty won."""
    generator, covered = np.random.default_rng(6), np.zeros(2)
    labels = np.repeat(np.arange(classes), images)
    for _ in range(200):
        kind = generator.choice(4, size=len(labels), p=[0.25, 0.05, 0.45, 0.25])  # lost, won, right twice, wrong twice
        before, after = (np.where(np.isin(kind, right), labels, -1) for right in ((0, 2), (1, 2)))
        _, low, high = metrics.drop(labels, before, after, "balanced")
        mean_low, mean_high = metrics.accuracy(labels, before)["balanced_ci95"]
        covered += low <= 0.2 <= high, mean_low <= 0.7 <= mean_high
    assert (covered >= 0.87 * 200).all() and (covered < 200).all()


def test_ratio_of_exact_speedup_has_no_spread() -> None:
    base = np.array([[10.0, 12.0, 11.0], [9.0, 30.0, 9.0], [10.0, 10.0, 10.0]])
    assert metrics.ratio_interval(base.tolist(), (base / 2).tolist()) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(("processes", "rounds"), [(1, 1), (1, 15), (2, 3), (2, 8), (3, 2), (8, 1)])
def test_ratio_of_few_processes_or_cells_has_no_interval(processes: int, rounds: int) -> None:
    cells = np.ones((processes, rounds)).tolist()
    assert metrics.ratio_interval(cells, cells) is None


@pytest.mark.parametrize(("processes", "rounds"), [(3, 3), (9, 1)])
def test_ratio_interval_covers_where_processes_differ_as_rounds_do(processes: int, rounds: int) -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        base, compared = generator.lognormal(0.0, 0.02, size=(2, processes, rounds))
        compared *= generator.lognormal(0.0, 0.02, size=(processes, 1))
        interval = metrics.ratio_interval(base.tolist(), compared.tolist(), draws=400)
        assert interval is not None
        covered += interval[1] <= 1.0 <= interval[2]
    assert covered >= 0.87 * 200  # 91 % of many


def test_ratio_interval_covers_one_for_equal_variants() -> None:
    """Count how often a 95 % interval covers no difference, over 200 experiments of 3 x 5 noisy cells."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        base, compared = generator.lognormal(0.0, 0.05, size=(2, 3, 5))
        interval = metrics.ratio_interval(base.tolist(), compared.tolist(), draws=400)
        assert interval is not None
        covered += interval[1] <= 1.0 <= interval[2]
    assert covered >= 0.93 * 200


def test_ratio_interval_is_wider_when_processes_differ() -> None:
    """Cells that are equal within a process and differ between processes are three samples, not fifteen."""
    apart = [[1.0] * 5, [1.2] * 5, [0.8] * 5]
    mixed = [[1.0, 1.2, 0.8, 1.0, 1.2], [0.8, 1.0, 1.2, 0.8, 1.0], [1.2, 0.8, 1.0, 1.2, 0.8]]
    ones = [[1.0] * 5] * 3
    first, second = metrics.ratio_interval(apart, ones), metrics.ratio_interval(mixed, ones)
    assert first is not None and second is not None
    assert first == (1.0, 0.8, 1.2)
    assert second[2] - second[1] <= first[2] - first[1]
