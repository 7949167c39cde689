"""Probes against refits and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.distill import probes
from tests.helpers.clusters import clusters


def test_leave_one_out_equals_refit_without_the_image() -> None:
    features, truth = clusters(2.0, n=60)
    rows = np.arange(12)
    units = probes.unit_directions(features, probes.feature_mean(features))
    gram = (units @ units[rows].T).astype(np.float64)
    fitted = probes.probe_from_gram(gram, rows, truth[rows], 3)
    # only the refit with the chosen penalty agrees
    gaps = []
    for penalty in probes.PENALTIES:
        held_out_logits = []
        for row in rows:
            fit_rows = np.delete(rows, row)
            kernel = gram[fit_rows][:, fit_rows] + penalty * np.eye(len(fit_rows))
            duals = np.linalg.solve(kernel, np.eye(3)[truth[fit_rows]] - 1 / 3)
            held_out_logits.append(gram[row][fit_rows] @ duals / fitted.temperature)
        gaps.append(np.abs(probes.softmax(np.array(held_out_logits)) - fitted.loo_probs_LC).max())
    assert min(gaps) < 1e-9 and sorted(gaps)[1] > 1e-3


def test_leave_one_out_fits_the_mean_of_unequal_classes_again() -> None:
    """Against weighted ridges with an intercept that is not penalized, each fitted without one image."""
    random, labels_L = np.random.default_rng(0), np.array([0, 0, 0, 0, 0, 1, 1, 2, 2, 2])
    features_LD = random.normal(0, 1, (10, 30)) + 5.0
    weight_L = 1.0 / probes.class_balance(labels_L)
    centered_LD = features_LD - np.average(features_LD, axis=0, weights=weight_L)
    rows = np.arange(10)
    fitted = probes.probe_from_gram(centered_LD @ centered_LD.T, rows, labels_L, 3, mean_of_labeled=True)
    gaps = []
    for penalty in probes.PENALTIES:
        held_out_logits = []
        for row in rows:
            others = np.delete(rows, row)
            design = np.column_stack([features_LD[others], np.ones(9)])
            normal = design.T @ (weight_L[others, None] * design) + np.diag([penalty] * 30 + [0.0])
            moments = design.T @ (weight_L[others, None] * (np.eye(3)[labels_L[others]] - 1 / 3))
            held_out_logits.append(np.append(features_LD[row], 1.0) @ np.linalg.solve(normal, moments))
        probs = probes.softmax(np.array(held_out_logits) / fitted.temperature)
        gaps.append(np.abs(probs - fitted.loo_probs_LC).max())
    assert min(gaps) < 1e-6 and sorted(gaps)[1] > 1e-3


@pytest.mark.parametrize("mean_of_labeled", [True, False])
def test_leave_one_out_leaves_out_the_unit(mean_of_labeled: bool) -> None:
    """Against ridges fitted without any image of the unit; one unit holds two classes."""
    random, labels_L = np.random.default_rng(0), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    units_L = np.array([0, 0, 0, 1, 2, 3, 3, 3, 4, 5])
    features_LD = random.normal(0, 1, (10, 30)) + (5.0 if mean_of_labeled else 0.0)
    weight_L = 1.0 / probes.class_balance(labels_L)
    mean_D = np.average(features_LD, axis=0, weights=weight_L) if mean_of_labeled else np.zeros(30)
    gram_LL = (features_LD - mean_D) @ (features_LD - mean_D).T
    fitted = probes.probe_from_gram(
        gram_LL, np.arange(10), labels_L, 3, units_L=units_L, mean_of_labeled=mean_of_labeled
    )
    gaps = []
    for penalty in probes.PENALTIES:
        scores_LC = np.zeros((10, 3))
        for unit in np.unique(units_L):
            others = units_L != unit
            design = np.column_stack([features_LD, np.full(10, float(mean_of_labeled))])
            normal = design[others].T @ (weight_L[others, None] * design[others]) + np.diag([penalty] * 30 + [0.0])
            moments = design[others].T @ (weight_L[others, None] * (np.eye(3)[labels_L[others]] - 1 / 3))
            scores_LC[~others] = design[~others] @ np.linalg.lstsq(normal, moments)[0]
        probs = probes.softmax(scores_LC / fitted.temperature)
        gaps.append(np.abs(probs - fitted.loo_probs_LC).max())
    assert min(gaps) < 1e-6 and sorted(gaps)[1] > 1e-4


def test_features_that_say_nothing_are_at_chance_when_left_out() -> None:
    """Seventy images in a thousand dimensions: with a fixed mean the others would tell the one left out."""
    labels_L, hits = np.arange(70) % 7, {True: 0.0, False: 0.0}
    features_LD = np.random.default_rng(0).normal(0, 1, (70, 1000)) / 1000**0.5
    centered_LD = features_LD - features_LD.mean(axis=0)
    for refitted in hits:
        fitted = probes.probe_from_gram(
            centered_LD @ centered_LD.T, np.arange(70), labels_L, 7, mean_of_labeled=refitted
        )
        hits[refitted] = float((fitted.loo_probs_LC.argmax(axis=1) == labels_L).mean())
    assert hits[True] < 0.3 and hits[False] > 0.9


def test_one_label_alone_gives_finite_numbers() -> None:
    fitted = probes.probe_from_gram(np.zeros((1, 1)), np.arange(1), np.array([0]), 2, mean_of_labeled=True)
    assert np.isfinite(fitted.probs_NC).all() and np.isfinite(fitted.duals_LC).all()


def test_unit_directions_have_length_one_and_constant_rows_stay_zero() -> None:
    features = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    assert probes.unit_directions(features, probes.feature_mean(features)).tolist() == [
        [1.0, 0.0],
        [-1.0, 0.0],
        [0.0, 0.0],
    ]
    flat = np.full((3, 4), 7.0)
    assert np.isfinite(probes.unit_directions(flat, probes.feature_mean(flat))).all()


def test_source_with_constant_features_is_at_chance() -> None:
    truth = np.arange(60) % 3
    for constant_value in (0.0, 0.1, 1.0, 1e4):
        constant = np.full((60, 8), constant_value, dtype=np.float32)
        fitted = probes.probe(constant, np.arange(33), truth[:33], 3)
        assert fitted.loo_probs_LC == pytest.approx(np.full((33, 3), 1 / 3), abs=0.25)
        assert fitted.probs_NC == pytest.approx(np.full((60, 3), 1 / 3), abs=1e-6)
