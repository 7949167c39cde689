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
