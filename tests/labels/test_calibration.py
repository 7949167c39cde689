"""Temperatures are recovered, and the loss that is expected without labels is the loss that labels show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from edgedistill.labels.calibration import (
    Loss,
    Temperature,
    calibrated,
    estimated_loss,
    expected_loss,
    fit_temperature,
    mean_expected_loss,
    measured_loss,
    pooled_loss,
    temperature_of,
)

CLASSES = 5


def answers(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are overconfident by a temperature, and labels drawn from the honest probabilities."""
    generator = np.random.default_rng(seed)
    honest_NC = generator.normal(0, 2, (n, CLASSES))
    probs_NC = softmax(honest_NC, axis=1)
    labels_N = (probs_NC.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1)
    return honest_NC * temperature, labels_N


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature: float) -> None:
    logits_NC, labels_N = answers(4000, temperature)
    assert fit_temperature(logits_NC, labels_N) == pytest.approx(temperature, rel=0.1)
    np.testing.assert_allclose(calibrated(logits_NC, temperature).sum(axis=1), 1.0)


def test_temperature_is_finite_where_every_answer_is_right() -> None:
    logits_NC = np.eye(CLASSES)[np.arange(50) % CLASSES]
    assert 0.05 < fit_temperature(logits_NC, np.arange(50) % CLASSES) < 1.0


def test_error_of_temperature_is_its_spread_over_draws() -> None:
    fits = [temperature_of(*answers(100, 2.0, seed)) for seed in range(100)]
    spread = np.std([np.log(fit.value) for fit in fits])
    assert np.mean([fit.log_error for fit in fits]) == pytest.approx(spread, rel=0.3)
    assert temperature_of(*answers(400, 2.0)).log_error < 0.7 * temperature_of(*answers(100, 2.0)).log_error


def test_expected_loss_follows_the_shares_of_the_classes() -> None:
    """Labels are drawn class by class, the other images are nine to one; the other net drifts from the common class."""
    generator = np.random.default_rng(0)

    def draw(labels_N: np.ndarray) -> np.ndarray:
        signal_N = np.where(labels_N == 1, 1.0, -1.0) + generator.normal(0, 1, len(labels_N))
        return np.stack([-signal_N, signal_N], axis=1)

    few_N, many_N = np.arange(300) % 2, (generator.random(4000) < 0.1).astype(int)
    few_NC, many_NC = draw(few_N), draw(many_N)
    other_NC = many_NC + np.array([0.0, 0.8])
    truth = measured_loss(many_N, many_NC.argmax(1), other_NC.argmax(1)).mean
    temperature = temperature_of(few_NC, few_N)
    adapted = mean_expected_loss(many_NC, other_NC, temperature).mean
    plain = mean_expected_loss(many_NC, other_NC, replace(temperature, shares=None)).mean
    assert truth > 0.05
    assert abs(adapted - truth) < 0.02 and abs(plain - truth) > 0.04


def noisy(logits_NC: np.ndarray, seed: int, noise: float = 1.0) -> np.ndarray:
    return logits_NC + np.random.default_rng(seed + 1000).normal(0, noise, logits_NC.shape)


def test_expected_loss_is_that_of_labels() -> None:
    covered = 0
    for seed in range(40):
        logits_NC, labels_N = answers(500, 2.0, seed)
        other_NC = noisy(logits_NC, seed)
        loss = mean_expected_loss(logits_NC, other_NC, Temperature(value=2.0))
        actual = (logits_NC.argmax(1) == labels_N).mean() - (other_NC.argmax(1) == labels_N).mean()
        low, high = loss.interval
        covered += low <= actual <= high
        assert loss.mean == pytest.approx(expected_loss(logits_NC, other_NC, 2.0).mean())
        changed = (logits_NC.argmax(1) != other_NC.argmax(1)).mean()
        assert abs(loss.mean) <= changed
    assert covered >= 36


@pytest.mark.parametrize("by", ["top1", "balanced"])
def test_true_loss_is_above_the_shown_one_in_nine_of_ten_draws(by: str) -> None:
    """The truth is that of 20,000 images; a hundred labels give the temperature, 300 other images the loss."""
    many_NC, many_N = answers(20_000, 2.0, seed=999)
    truth = measured_loss(many_N, many_NC.argmax(1), noisy(many_NC, 999).argmax(1), by).mean
    losses = []
    for seed in range(100):
        logits_NC, _ = answers(300, 2.0, seed)
        temperature = temperature_of(*answers(100, 2.0, seed + 500))
        losses.append(mean_expected_loss(logits_NC, noisy(logits_NC, seed), temperature, by))
    assert np.mean([truth > loss.shown for loss in losses]) >= 0.85
    assert np.mean([loss.mean - loss.shown for loss in losses]) < np.mean([loss.sd for loss in losses])
    assert np.mean([loss.mean for loss in losses]) == pytest.approx(truth, abs=0.004)


@pytest.mark.parametrize("labeled", [0.0, 0.5, 1.0])
def test_frames_of_a_recording_that_are_lost_together_widen_the_interval(labeled: float) -> None:
    """30 recordings of 20 frames: all frames of one have the same logits, and are changed together."""
    many_NC, many_N = answers(20_000, 2.0, seed=999)
    truth = measured_loss(many_N, many_NC.argmax(1), noisy(many_NC, 999).argmax(1)).mean
    frames, temperature, covered, alike = np.arange(30).repeat(20), Temperature(value=2.0), 0, 0
    for seed in range(60):
        logits_RC, labels_R = answers(30, 2.0, seed)
        logits_NC, other_NC = logits_RC[frames], noisy(logits_RC, seed)[frames]
        labels_N = np.where(np.random.default_rng(seed).random(30) < labeled, labels_R, -1)[frames]
        loss, alone = (
            estimated_loss(labels_N, logits_NC, other_NC, temperature, units_N=units_N)
            for units_N in (frames, np.arange(600))
        )
        covered += loss.interval[0] <= truth <= loss.interval[1]
        alike += alone.interval[0] <= truth <= alone.interval[1]
        assert loss.mean == alone.mean and loss.shown <= alone.shown
        assert alone == estimated_loss(labels_N, logits_NC, other_NC, temperature)
    assert covered >= 54, covered
    assert alike < 48 or not labeled, "as if frames told as much as images"


def test_images_with_labels_and_without_count_once_each() -> None:
    measured = Loss(mean=0.1, center=0.09, sd=0.04, true_sd=0.04)
    expected = Loss(mean=0.02, center=0.02, sd=0.01, true_sd=0.005)
    loss = pooled_loss(measured, 100, expected, 300)
    assert (loss.mean, loss.center) == pytest.approx((0.04, 0.0375))
    assert loss.sd == pytest.approx(np.hypot(0.01, 0.0075)) and loss.true_sd == pytest.approx(np.hypot(0.01, 0.00375))
    assert loss.shown == pytest.approx(0.0375 - 1.2816 * np.hypot(0.01, 0.00375))


def test_equal_answers_lose_nothing() -> None:
    logits_NC, _ = answers(100, 1.0)
    assert not expected_loss(logits_NC, 2 * logits_NC, 1.0).any()
    loss = mean_expected_loss(logits_NC, logits_NC, Temperature(value=1.0, log_error=0.5))
    low, high = loss.interval
    assert loss.mean == loss.shown == 0.0
    assert -0.03 < low < 0.0 < high < 0.03, "no part of a hundred images still leaves a doubt"
