"""The rule under which a student answers: worked out by hand, and what it holds on images that it was not fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.labels.calibration import BOUNDS
from edgedistill.labels.unknown import (
    Aim,
    accurate,
    answered,
    calibration_error,
    confidence,
    curve,
    fitted,
    matched,
    quantile,
    reliability,
    temperature_of,
)
from edgedistill.records import Rule

TENTHS = np.arange(1, 11) / 10


def logits(n: int, seed: int, scale: float = 1.0, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, classes] and labels drawn from their softmax; the logits are then multiplied by `scale`."""
    generator = np.random.default_rng(seed)
    logits_NC = 2.0 * generator.normal(size=(n, classes))
    noise_NC = generator.gumbel(size=(n, classes))
    return scale * logits_NC, (logits_NC + noise_NC).argmax(axis=1)


def test_confidence_is_the_largest_probability() -> None:
    # exp(2) / (exp(2) + 2), and exp(1) / (exp(1) + 2) at temperature 2
    assert confidence(np.array([[0.0, 2.0, 0.0]]), 1.0) == pytest.approx(0.78699, abs=1e-5)
    assert confidence(np.array([[0.0, 2.0, 0.0]]), 2.0) == pytest.approx(0.57612, abs=1e-5)


@pytest.mark.parametrize(("coverage", "threshold"), [(0.9, 0.1), (0.8, 0.2), (0.5, 0.5), (0.95, 0.0)])
def test_quantile_is_the_conformal_one(coverage: float, threshold: float) -> None:
    # a new image is below the k-th of 10 with probability k / 11: k = floor((1 - coverage) * 11)
    assert quantile(TENTHS, coverage) == pytest.approx(threshold)


def test_nine_images_are_enough_for_nine_tenths_and_eight_are_not() -> None:
    assert quantile(TENTHS[:9], 0.9) == 0.1 and quantile(TENTHS[:8], 0.9) == 0.0


def test_new_images_are_answered_at_least_as_often_as_asked_for() -> None:
    generator = np.random.default_rng(0)
    shares = [np.mean(generator.random(200) >= quantile(generator.random(40), 0.9)) for _ in range(400)]
    assert 0.895 <= np.mean(shares) <= 0.93


def test_threshold_for_an_accuracy_answers_as_many_as_have_it() -> None:
    confidence_N = np.linspace(1.0, 0.01, 100)
    is_right_N = np.arange(100) < 60  # the surest 60 are right, all others wrong
    assert accurate(confidence_N, is_right_N, 0.75) == pytest.approx(confidence_N[79])
    assert accurate(confidence_N, is_right_N, 0.6) == 0.0, "all of them may be answered"
    assert answered(confidence_N, is_right_N, confidence_N[79]).accuracy == 0.75


def test_accuracy_out_of_reach_takes_the_best_of_twenty() -> None:
    confidence_N = np.linspace(1.0, 0.01, 50)
    is_right_N = np.arange(50) < 15  # 15 of the surest 20 are right
    assert accurate(confidence_N, is_right_N, 0.99) == pytest.approx(confidence_N[19])


def test_images_of_one_confidence_are_answered_together() -> None:
    confidence_N = np.array([0.9] * 20 + [0.5] * 20)
    is_right_N = np.array([True] * 20 + [True] * 10 + [False] * 10)
    assert accurate(confidence_N, is_right_N, 0.8) == 0.9


def test_fitted_rule_believes_and_covers() -> None:
    logits_NC, labels_N = logits(2000, 0, scale=3.0)
    rule = fitted(logits_NC, labels_N, Aim(coverage=0.9))
    assert rule.temperature == pytest.approx(3.0, rel=0.1)
    other_NC, _ = logits(2000, 1, scale=3.0)
    assert np.mean(confidence(other_NC, rule.temperature) >= rule.threshold) == pytest.approx(0.9, abs=0.03)
    assert fitted(logits_NC, labels_N, Aim()).threshold == 0.0


def test_matched_graph_answers_as_many_as_the_students_of_the_folds() -> None:
    """Another scale of the logits moves the coverage of a threshold; matching puts it back."""
    folds_NC, labels_N = logits(2000, 0)
    rule = fitted(folds_NC, labels_N, Aim(coverage=0.9))
    unlabeled_FMC = np.stack([logits(400, seed)[0] for seed in (1, 2)])
    ships_MC = 2.5 * logits(400, 3)[0]
    same = matched(rule, unlabeled_FMC, ships_MC)
    assert same.temperature == pytest.approx(2.5 * rule.temperature, rel=0.15)
    other_NC = 2.5 * logits(2000, 4)[0]
    covered = np.mean(confidence(other_NC, same.temperature) >= same.threshold)
    assert covered == pytest.approx(0.9, abs=0.04)
    assert np.mean(confidence(other_NC, rule.temperature) >= rule.threshold) > 0.95, "without matching it is off"


def test_too_few_unlabeled_images_match_nothing() -> None:
    rule = Rule(temperature=1.3, threshold=0.4)
    assert matched(rule, np.zeros((5, 63, 3)), np.zeros((63, 3))) == rule
    assert matched(rule, np.zeros((5, 0, 3)), np.zeros((0, 3))) == rule


@pytest.mark.parametrize(("threshold", "coverage"), [(0.0, 1.0), (1.1, 0.0)])
def test_matching_keeps_all_and_none(threshold: float, coverage: float) -> None:
    logits_MC = logits(100, 0)[0]
    same = matched(Rule(temperature=1.0, threshold=threshold), np.stack([logits_MC] * 2), logits_MC)
    assert np.mean(confidence(logits_MC, same.temperature) >= same.threshold) == coverage


def test_temperature_of_an_impossible_mean_is_a_bound() -> None:
    logits_NC = logits(100, 0)[0]
    assert temperature_of(logits_NC, 0.1) == BOUNDS[1] and temperature_of(logits_NC, 1.1) == BOUNDS[0]
    assert confidence(logits_NC, temperature_of(logits_NC, 0.7)).mean() == pytest.approx(0.7, abs=1e-4)


def test_curve_ends_with_all_images() -> None:
    confidence_N = np.linspace(1.0, 0.01, 100)
    points = curve(confidence_N, np.arange(100) < 60, points=10)
    assert [point.n for point in points] == list(range(10, 101, 10))
    assert points[0].accuracy == 1.0 and points[-1].accuracy == 0.6 and points[-1].coverage == 1.0
    assert len(curve(np.full(30, 0.7), np.ones(30, dtype=bool))) == 1
    assert len(curve(np.array([0.4]), np.array([True]))) == 1


def test_reliability_has_bins_of_equally_many_images() -> None:
    confidence_N = np.repeat([0.55, 0.95], 40)
    is_right_N = np.concatenate([np.arange(40) < 20, np.arange(40) < 30])
    bins = reliability(confidence_N, is_right_N, bins=2)
    assert [(part.n, part.confidence, part.accuracy) for part in bins] == [
        (40, pytest.approx(0.55), 0.5),
        (40, pytest.approx(0.95), 0.75),
    ]
    assert calibration_error(bins) == pytest.approx((0.05 + 0.2) / 2)
    assert len(reliability(confidence_N, is_right_N)) == 4, "of 80 images, 20 a bin"
    assert [part.n for part in reliability(np.array([0.5]), np.array([True]))] == [1]
