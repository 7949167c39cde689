"""Similarity scores against the authors' numbers, by hand and by property; their intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.records import InputError
from edgedistill.training.similarity import METRICS, Metric, half_sample_interval, parc, parc_ceiling, probe

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "parc_fixture.json").read_text())["rows"]
IDS = [f"n{row['n']}k{row['k']}" for row in ROWS]
NO_PROBS = np.zeros((0, 0))


def reference(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The fixture's formula: features [n, d] and labels [n]."""
    i, j = np.arange(row["n"])[:, None], np.arange(row["d"])[None, :]
    labels_N = (11 * np.arange(row["n"])) % row["k"]
    wave = np.sin(0.7 * i + 1.3 * j + 0.013 * i * j**2)
    return wave + row["amp"] * np.cos(1.1 * (labels_N[:, None] + 1) * (j + 1)), labels_N


def clusters(per_class: int, spread: float, classes: int = 3, dims: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Points around one corner a class; features [N, dims] and labels [N]."""
    labels_N = np.repeat(np.arange(classes), per_class)
    noise_ND = np.random.default_rng(0).normal(size=(len(labels_N), dims))
    return 4.0 * np.eye(classes, dims)[labels_N] + spread * noise_ND, labels_N


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_parc_equals_the_reference(row: dict[str, Any]) -> None:
    features_ND, labels_N = reference(row)
    assert parc(features_ND, NO_PROBS, labels_N) == pytest.approx(row["PARC_exact_ties"], abs=1e-5)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_parc_after_pca_equals_the_reference(row: dict[str, Any]) -> None:
    # a randomised PCA with one power iteration: its last digits belong to the linear algebra library
    features_ND, labels_N = reference(row)
    assert parc(features_ND, NO_PROBS, labels_N, dims=32) == pytest.approx(row["PARC_f32_exact_ties"], abs=0.2)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_parc_repeats_the_float_noise_of_the_authors_code(row: dict[str, Any]) -> None:
    # what breaks the ties is the last bit of a correlation, which each matrix kernel rounds in its own way: with
    # OpenBLAS's kernels for Nehalem, Haswell and SkylakeX the rows move by up to 0.6, two classes not at all; seven
    # classes give 50.8, 40.3 and 40.2, where 58.2 is right
    features_ND, labels_N = reference(row)
    found = parc(features_ND, NO_PROBS, labels_N, compat="dbolya")
    if row["k"] == 7:
        assert row["PARC_repo"] - 1.0 < found < row["PARC_exact_ties"] - 5.0
    else:
        assert found == pytest.approx(row["PARC_repo"], abs=1e-5 if row["k"] == 2 else 1.0)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # pairs 01, 02, 12: ranks of feature distances 1, 3, 2, centred (-1, 1, 0). Label distances 0, 1, 1: ranks
        # 1, 2.5, 2.5, centred (-1, 1/2, 1/2). Product 3/2, norms^2 2 and 3/2: 1.5 / sqrt(3) = 0.866025
        ([0, 0, 1], 86.602540),
        # the farthest pair shares the class: (1/2, -1, 1/2) against (-1, 1, 0) is -3/2
        ([0, 1, 0], -86.602540),
        # the middle pair: (1/2, 1/2, -1) against (-1, 1, 0) is 0
        ([0, 1, 1], 0.0),
    ],
)
def test_parc_by_hand(labels: list[int], expected: float) -> None:
    # columns (3, 2, 0), (0, 0, 3), (0, 1, 1) standardised give the rows (1.07, -0.71, -1.41), (0.27, -0.71, 0.71) and
    # (-1.34, 1.41, 0.71); their correlations r01 = -0.07, r02 = -0.86, r12 = -0.45 are the distances 1.07, 1.86, 1.45
    features_ND = np.array([[3.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
    assert parc(features_ND, NO_PROBS, np.array(labels)) == pytest.approx(expected, abs=1e-6)


def test_ceiling_by_hand() -> None:
    # 2 + 2 images: 6 pairs, 2 share a class, q = 1/3: 100 sqrt(3 * 1/3 * 2/3) = 81.6497
    assert parc_ceiling(np.array([0, 0, 1, 1])) == pytest.approx(81.649658)
    # 3 + 1 images: 3 of 6 pairs, q = 1/2: 100 sqrt(3/4) = 86.6025
    assert parc_ceiling(np.array([0, 0, 0, 2])) == pytest.approx(86.602540)
    assert parc_ceiling(np.array([0, 1, 2])) == 0.0


@given(counts=st.lists(st.integers(2, 9), min_size=2, max_size=4))
def test_distinct_distances_that_follow_the_labels_reach_the_ceiling(counts: list[int]) -> None:
    # distances with no ties between them: all pairs of one class nearer than all others, as ranks 1..P
    labels_N = np.repeat(np.arange(len(counts)), counts)
    differ = (labels_N[:, None] != labels_N[None, :])[np.triu_indices(len(labels_N), k=1)]
    perfect = np.empty(len(differ))
    perfect[np.argsort(differ, kind="stable")] = np.arange(len(differ))
    ranks = np.where(differ, (~differ).sum() + (differ.sum() + 1) / 2, ((~differ).sum() + 1) / 2)
    assert parc_ceiling(labels_N) <= 100.0 * np.corrcoef(perfect, ranks)[0, 1] + 1e-9
    # the formula is the limit of many pairs: rank variances P^2/12 in place of (P^2 - 1)/12
    assert 100.0 * np.corrcoef(perfect, ranks)[0, 1] == pytest.approx(parc_ceiling(labels_N), rel=1 / len(differ) ** 2)


@pytest.mark.parametrize("name", METRICS)
def test_a_single_class_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="single class; label images of a second class"):
        METRICS[name](np.eye(4), NO_PROBS, np.zeros(4, dtype=np.int64))


@pytest.mark.parametrize("name", METRICS)
def test_constant_features_say_nothing(name: str) -> None:
    score = METRICS[name](np.ones((12, 5)), NO_PROBS, np.arange(12) % 3)
    assert score == pytest.approx(0.0, abs=1e-9)


def test_fewer_images_than_dimensions_are_not_reduced() -> None:
    features_ND, labels_N = clusters(3, spread=1.0, dims=40)
    assert parc(features_ND, NO_PROBS, labels_N, dims=32) == parc(features_ND, NO_PROBS, labels_N)


@given(scale=st.floats(0.01, 100.0), shift=st.floats(-50.0, 50.0), seed=st.integers(0, 5))
def test_parc_ignores_scale_shift_and_order(scale: float, shift: float, seed: int) -> None:
    features_ND, labels_N = clusters(5, spread=2.0)
    order = np.random.default_rng(seed).permutation(len(labels_N))
    moved = parc(scale * features_ND[order] + shift, NO_PROBS, labels_N[order])
    assert moved == pytest.approx(parc(features_ND, NO_PROBS, labels_N), abs=0.05)


def test_probe_is_near_zero_for_noise_and_one_for_separable_classes() -> None:
    labels_N = np.arange(240) % 3
    noise_ND = np.random.default_rng(1).normal(size=(240, 8))
    # 240 draws at chance 1/3: one standard deviation is sqrt(2/9/240)/(2/3) = 0.046
    assert abs(probe(noise_ND, NO_PROBS, labels_N)) < 0.15
    features_ND, labels_N = clusters(20, spread=0.1)
    assert probe(features_ND, NO_PROBS, labels_N) == 1.0


def test_probe_on_two_images_a_class() -> None:
    features_ND, labels_N = clusters(2, spread=0.01, dims=3)
    assert probe(features_ND, NO_PROBS, labels_N) == 1.0
    with pytest.raises(InputError, match="single labeled image"):
        probe(features_ND[:-1], NO_PROBS, labels_N[:-1])


def test_probe_is_the_same_for_the_same_seed() -> None:
    features_ND, labels_N = clusters(15, spread=4.0)
    scores = [probe(features_ND, NO_PROBS, labels_N, seed=seed) for seed in (3, 3, 4, 5, 6)]
    assert scores[0] == scores[1] and len(set(scores)) > 1


def told(scores: list[float]) -> Metric:
    """A metric that answers the given scores, one a call."""
    left: Iterator[float] = iter(scores)
    return lambda features_ND, probs_NK, labels_N: next(left)


def test_interval_by_hand() -> None:
    # halves 0.4 and 0.6: mean 0.5; quantiles at 2.5 and 97.5 % of two points 0.405 and 0.595; around the score 0.7
    found = half_sample_interval(told([0.7, 0.4, 0.6]), np.eye(4), np.eye(4), np.array([0, 0, 1, 1]), repeats=2, seed=0)
    assert found == pytest.approx((0.7, 0.605, 0.795))


def test_interval_contains_the_score_when_one_half_falls_far() -> None:
    # 49 halves at 1 and one at 0: the mean 0.98 lies under both quantiles
    scores = [1.0, *[1.0] * 49, 0.0]
    score, low, high = half_sample_interval(
        told(scores), np.eye(4), np.eye(4), np.array([0, 0, 1, 1]), repeats=50, seed=0
    )
    assert low <= score <= high
    assert (low, high) == pytest.approx((1.0, 1.02))


@given(counts=st.lists(st.integers(1, 9), min_size=2, max_size=4), seed=st.integers(0, 9))
def test_halves_hold_half_of_every_class_and_no_image_twice(counts: list[int], seed: int) -> None:
    labels_N = np.repeat(np.arange(len(counts)), counts)
    seen: list[np.ndarray] = []

    def remember(features_ND: np.ndarray, probs_NK: np.ndarray, labels_N: np.ndarray) -> float:
        assert (features_ND[:, 0] == probs_NK[:, 0]).all()
        seen.append(np.stack([features_ND[:, 0], labels_N]))
        return 0.0

    rows = np.arange(len(labels_N), dtype=np.float64)[:, None]
    half_sample_interval(remember, rows, rows, labels_N, repeats=3, seed=seed)
    for picked, labels in seen[1:]:
        assert len(set(picked)) == len(picked) and (labels_N[picked.astype(int)] == labels).all()
        # half of the class rounded down, two at least, where there are two
        assert [int((labels == at).sum()) for at in range(len(counts))] == [
            max(min(2, count), count // 2) for count in counts
        ]


@pytest.mark.parametrize("name", METRICS)
def test_interval_is_narrower_with_more_images(name: str) -> None:
    widths = []
    for per_class in (8, 80):
        features_ND, labels_N = clusters(per_class, spread=4.0)
        score, low, high = half_sample_interval(METRICS[name], features_ND, features_ND, labels_N, repeats=20, seed=1)
        assert low <= score <= high
        widths.append(high - low)
    assert 0.0 < widths[1] < widths[0] / 1.5
