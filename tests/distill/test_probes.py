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
