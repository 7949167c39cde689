"""The metrics against their authors' numbers and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.similarity.likelihood import hscore, label_entropy, leep, logme, nce, shrinkage
from edgedistill.similarity.metrics import static
from edgedistill.similarity.separability import cka, held_out_scores, knn, parc, parc_ceiling, probe, rsa, standardized
from tests.helpers.probes import NO_PROBS, clusters, noise, softmax

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "parc_fixture.json").read_text())["rows"]
IDS = [f"n{row['n']}k{row['k']}" for row in ROWS]
HALVES = np.array([0, 0, 1, 1])


def reference(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The fixture's formula: features [n, d] and labels [n]."""
    i, j = np.arange(row["n"])[:, None], np.arange(row["d"])[None, :]
    labels_N = (11 * np.arange(row["n"])) % row["k"]
    wave = np.sin(0.7 * i + 1.3 * j + 0.013 * i * j**2)
    return wave + row["amp"] * np.cos(1.1 * (labels_N[:, None] + 1) * (j + 1)), labels_N


def reference_probs(row: dict[str, Any]) -> np.ndarray:
    """The fixture's formula: the source's probabilities [n, n_z]."""
    i, z = np.arange(row["n"])[:, None], np.arange(row["n_z"])[None, :]
    own = z == (reference(row)[1] % row["n_z"])[:, None]
    return softmax(2.0 * np.sin(0.31 * i * (z + 1)) + 2.0 * own)


def reference_net(row: dict[str, Any]) -> np.ndarray:
    """The fixture's formula: features of a net trained on the target [n, d]."""
    i, j, labels_N = np.arange(row["n"])[:, None], np.arange(row["d"])[None, :], reference(row)[1]
    wave = np.sin(0.9 * i + 0.7 * j + 0.017 * i * j**2)
    return wave + 2.0 * row["amp"] * np.cos(0.9 * (labels_N[:, None] + 1) * (j + 2))


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_parc_equals_reference(row: dict[str, Any]) -> None:
    features_ND, labels_N = reference(row)
    assert parc(features_ND, NO_PROBS, labels_N) == pytest.approx(row["PARC_exact_ties"], abs=1e-5)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_parc_after_pca_equals_reference(row: dict[str, Any]) -> None:
    # a randomized PCA with one power iteration: its last digits depend on the linear algebra library
    features_ND, labels_N = reference(row)
    assert parc(features_ND, NO_PROBS, labels_N, dims=32) == pytest.approx(row["PARC_f32_exact_ties"], abs=0.2)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_parc_reproduces_tie_breaking_of_reference_code(row: dict[str, Any]) -> None:
    # ties are broken by the last bit of a correlation, which each matrix kernel rounds in its own way: with
    # OpenBLAS's kernels for Nehalem, Haswell and SkylakeX the rows move by up to 0.6, two classes not at all; seven
    # classes give 50.8, 40.3 and 40.2, where 58.2 is right
    features_ND, labels_N = reference(row)
    score = parc(features_ND, NO_PROBS, labels_N, compat="dbolya")
    if row["k"] == 7:
        assert row["PARC_repo"] - 1.0 < score < row["PARC_exact_ties"] - 5.0
    else:
        assert score == pytest.approx(row["PARC_repo"], abs=1e-5 if row["k"] == 2 else 1.0)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_other_metrics_equal_reference(row: dict[str, Any]) -> None:
    (features_ND, labels_N), probs_NK = reference(row), reference_probs(row)
    scores = {
        "RSA_repo": rsa(features_ND, probs_NK, labels_N, reference_net(row)),
        "LEEP_repo": leep(features_ND, probs_NK, labels_N),
        "NCE_repo": nce(features_ND, probs_NK, labels_N, compat="dbolya"),
        "HScore_repo": hscore(features_ND, probs_NK, labels_N, form="plain"),
    }
    assert scores == pytest.approx({name: row[name] for name in scores}, abs=1e-5)
    score_f32 = hscore(features_ND, probs_NK, labels_N, form="plain", dims=32)
    assert score_f32 == pytest.approx(row["HScore_f32_repo"], abs=0.2)


# columns (3, 2, 0), (0, 0, 3), (0, 1, 1) standardized give the rows (1.07, -0.71, -1.41), (0.27, -0.71, 0.71) and
# (-1.34, 1.41, 0.71); their correlations r01 = -0.07, r02 = -0.86, r12 = -0.45 are the distances 1.07, 1.86, 1.45
THREE = np.array([[3.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # pairs 01, 02, 12: ranks of feature distances 1, 3, 2, centered (-1, 1, 0). Label distances 0, 1, 1: ranks
        # 1, 2.5, 2.5, centered (-1, 1/2, 1/2). Product 3/2, norms^2 2 and 3/2: 1.5 / sqrt(3) = 0.866025
        ([0, 0, 1], 86.602540),
        # the farthest pair shares the class: (1/2, -1, 1/2) against (-1, 1, 0) is -3/2
        ([0, 1, 0], -86.602540),
        # the middle pair: (1/2, 1/2, -1) against (-1, 1, 0) is 0
        ([0, 1, 1], 0.0),
    ],
)
def test_parc_by_hand(labels: list[int], expected: float) -> None:
    assert parc(THREE, NO_PROBS, np.array(labels)) == pytest.approx(expected, abs=1e-6)
    # without a net trained on the target, RSA is PARC
    assert rsa(THREE, NO_PROBS, np.array(labels)) == pytest.approx(expected, abs=1e-6)


def test_ceiling_by_hand() -> None:
    # 2 + 2 images: 6 pairs, 2 share a class, q = 1/3: 100 sqrt(3 * 1/3 * 2/3) = 81.6497
    assert parc_ceiling(HALVES) == pytest.approx(81.649658)
    # 3 + 1 images: 3 of 6 pairs, q = 1/2: 100 sqrt(3/4) = 86.6025
    assert parc_ceiling(np.array([0, 0, 0, 2])) == pytest.approx(86.602540)
    assert parc_ceiling(np.array([0, 1, 2])) == 0.0


@settings(max_examples=40)
@given(counts=st.lists(st.integers(2, 9), min_size=2, max_size=4))
def test_perfectly_ordered_distances_reach_the_ceiling(counts: list[int]) -> None:
    # distances with no ties between them: all pairs of one class nearer than all others, as ranks 1..P
    labels_N = np.repeat(np.arange(len(counts)), counts)
    differ = (labels_N[:, None] != labels_N[None, :])[np.triu_indices(len(labels_N), k=1)]
    best = np.empty(len(differ))
    best[np.argsort(differ, kind="stable")] = np.arange(len(differ))
    ranks = np.where(differ, (~differ).sum() + (differ.sum() + 1) / 2, ((~differ).sum() + 1) / 2)
    assert parc_ceiling(labels_N) <= 100.0 * np.corrcoef(best, ranks)[0, 1] + 1e-9
    # the formula is the limit of many pairs: rank variances P^2/12 in place of (P^2 - 1)/12
    assert 100.0 * np.corrcoef(best, ranks)[0, 1] == pytest.approx(parc_ceiling(labels_N), rel=1 / len(differ) ** 2)


def test_rsa_by_hand() -> None:
    # the images in reverse order have the distances 1.45, 1.86, 1.07: ranks 2, 3, 1 against 1, 3, 2; centered
    # (0, 1, -1) . (-1, 1, 0) = 1, norms^2 2 and 2
    assert rsa(THREE, NO_PROBS, np.array([0, 0, 1]), THREE[::-1]) == pytest.approx(50.0, abs=1e-6)
    assert rsa(THREE, NO_PROBS, np.array([0, 0, 1]), THREE) == pytest.approx(100.0, abs=1e-6)


def test_cka_by_hand() -> None:
    # one feature: the squared correlation with +-1 labels. (3, 1, 0, 0) centered (2, 0, -1, -1): 4^2 / (6 * 4)
    score = cka(np.array([[3.0], [1.0], [0.0], [0.0]]), NO_PROBS, HALVES, debiased=False)
    assert score == pytest.approx(2 / 3)


def test_debiased_cka_by_hand() -> None:
    # (3, 0, 1, 0) centered (2, -1, 0, -1): products of pairs 01, 02, 03, 12, 13, 23 are -2, 0, -2, 0, 1, 0; sums of
    # rows -4, -1, 0, -1, over n - 2 = 2 means -2, -1/2, 0, -1/2, which add up to -3, over n - 1 = 3 makes -1:
    # K* = k_ij - m_i - m_j - 1 = -1/2, 1, -1/2, -1/2, 1, -1/2. Labels 1, 0, 0, 0, 0, 1 likewise 2/3 and -1/3.
    # K*.L* = 2 (-2/3 - 1/3) = -2 (2 for both triangles), |K*|^2 = 2 * 3 = 6, |L*|^2 = 2 * 12/9 = 8/3: -2 / sqrt(16)
    assert cka(np.array([[3.0], [0.0], [1.0], [0.0]]), NO_PROBS, HALVES) == pytest.approx(-0.5)


def test_debiased_cka_of_noise_averages_zero_unlike_plain_cka() -> None:
    draws = [noise(seed, n=20, dims=200) for seed in range(40)]
    plain = np.mean([cka(*draw, debiased=False) for draw in draws])
    assert plain > 0.2 and abs(np.mean([cka(*draw) for draw in draws])) < 0.02


def test_leep_by_hand() -> None:
    # soft counts of z: 2 and 1. P(y=0 | z) = (1.5/2, 0.5/1), P(y=1 | z) = (0.5/2, 0.5/1); likelihoods of the labels
    # 0.5 * 0.75 + 0.5 * 0.5 = 0.625, then 0.75, then 0.5 * 0.25 + 0.5 * 0.5 = 0.375
    probs_NK = np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]])
    assert leep(np.eye(3), probs_NK, np.array([0, 0, 1])) == pytest.approx(np.log(0.625 * 0.75 * 0.375) / 3)


def test_nce_by_hand() -> None:
    # the best classes 0, 0, 0, 1: given 0, two of three images are of class 0; given 1 the label is certain
    probs_NK = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.2, 0.8]])
    expected = (2 * np.log(2 / 3) + np.log(1 / 3) + 0) / 4
    assert nce(np.eye(4), probs_NK, HALVES) == pytest.approx(expected)
    assert label_entropy(HALVES) == pytest.approx(np.log(2))


def test_hscore_by_hand() -> None:
    # one feature (3, 1, 0, 0): class means 2 and 0 around 1, between 4 * 1, in all 4 + 0 + 1 + 1
    features_ND = np.array([[3.0], [1.0], [0.0], [0.0]])
    assert hscore(features_ND, NO_PROBS, HALVES, form="plain") == pytest.approx(4 / 6)
    # a single feature is not shrunk; shuffled labels explain 1 / (N - 1) = 1/3 of it: (2/3 - 1/3) / (1 - 1/3)
    assert hscore(features_ND, NO_PROBS, HALVES) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "dims"), [(12, 5), (30, 30), (15, 80)])
def test_shrinkage_equals_ledoit_wolf(n: int, dims: int) -> None:
    from sklearn.covariance import ledoit_wolf_shrinkage

    standard_ND = standardized(noise(3, n=n, dims=dims)[0] @ np.diag(np.arange(1.0, dims + 1.0)))
    assert shrinkage(standard_ND @ standard_ND.T / n, dims) == pytest.approx(ledoit_wolf_shrinkage(standard_ND))


def test_shrunk_hscore_of_shuffled_labels_averages_zero() -> None:
    features_ND, labels_N = clusters(8, spread=1.0, dims=8)
    rng = np.random.default_rng(0)
    scores = [hscore(features_ND, NO_PROBS, rng.permutation(labels_N)) for _ in range(300)]
    assert abs(np.mean(scores)) < 3 * np.std(scores) / np.sqrt(300)
    assert hscore(features_ND, NO_PROBS, labels_N) > 1.0


def test_logme_by_hand() -> None:
    # two features at right angles, both of square 3: with f = 3 / (3 + alpha/beta) the fixed point is
    # 1 - f = 2 (T - t) / (t (N - 2)). Class 0, (1, 1, 1, 0, 0, 0): T = 3, along the features t = 4/3 + 1/3, so
    # 1 - f = 0.4: |m|^2 = 0.36 (5/3) / 3 = 0.2, alpha = 2 * 0.6 / 0.2 = 6, residual 4/3 + 0.16 (5/3) = 1.6,
    # beta = (6 - 1.2) / 1.6 = 3, log evidence (6 log(3 / 2 pi) - 2 log(1 + 3 / 2) - 3 * 1.6 - 6 * 0.2) / 2.
    # Class 1 is its mirror image
    features_ND = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    expected = (6 * np.log(3 / (2 * np.pi)) - 2 * np.log(2.5) - 6) / 12
    assert logme(features_ND, NO_PROBS, np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(expected, abs=1e-4)


def test_knn_by_hand() -> None:
    # directions in degrees; nearest to 30 is 35 and the reverse, all others have a class-mate nearest:
    # recalls 2/3 and 2/3, over chance (2/3 - 1/2) / (1/2)
    angles_N = np.deg2rad([0.0, 10.0, 30.0, 35.0, 90.0, 100.0])
    features_ND, labels_N = np.stack([np.cos(angles_N), np.sin(angles_N)], axis=1), np.array([0, 0, 0, 1, 1, 1])
    assert knn(features_ND, NO_PROBS, labels_N, k=1) == pytest.approx(1 / 3)
    # k = 2: one vote each for 30, and the nearer of the two, 35, decides; 35 itself sees 30 and 10
    assert knn(features_ND, NO_PROBS, labels_N, k=2) == pytest.approx(1 / 3)
    # no more than the two class-mates vote
    assert knn(features_ND, NO_PROBS, labels_N, k=5) == pytest.approx(1 / 3)


def test_held_out_scores_by_hand() -> None:
    # (-2, 1, 1) standardized (-1.41, 0.71, 0.71): with the intercept's 1, K = 3 and 3/2 on the diagonal, 0 from 0 to
    # the others, 3/2 between those. Penalties n_c C / N = 2/3 and 4/3. Image 1 hears of image 2 alone:
    # 3/2 / (3/2 + 4/3) = 9/17 for class 1
    scores_NC = held_out_scores(np.array([[-2.0], [1.0], [1.0]]), np.array([0, 1, 1]))
    np.testing.assert_allclose(scores_NC, [[0.0, 0.0], [0.0, 9 / 17], [0.0, 9 / 17]], atol=1e-12)


def test_probe_by_hand() -> None:
    # two folds of one image a class. One feature (-1, -1, 1, 1): the head predicts each class's own sign
    features_ND = np.array([[-1.0], [-1.0], [1.0], [1.0]])
    assert probe(features_ND, NO_PROBS, HALVES) == 1.0
    # (-1, 1) in both classes, independent of the label: trained on (-1, 1 of class 1) or (1, -1 of class 1) it predicts
    # the other class for both; trained on two images of one sign it predicts one class for both
    with_ties = probe(features_ND, NO_PROBS, np.array([0, 1, 0, 1]), repeats=50)
    assert -1.0 <= with_ties < 0.0


@settings(max_examples=20)
@given(seed=st.integers(0, 20), counts=st.lists(st.integers(2, 12), min_size=2, max_size=4))
def test_probe_equals_refit_on_every_fold(seed: int, counts: list[int]) -> None:
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import RepeatedStratifiedKFold

    labels_N = np.repeat(np.arange(len(counts)), counts)
    features_ND = np.random.default_rng(seed).normal(size=(len(labels_N), 9)) + labels_N[:, None]
    standard_ND, n, classes = standardized(features_ND), len(labels_N), len(counts)
    kernel_NN = standard_ND @ standard_ND.T / 9 + 1.0
    penalty_N = np.array(counts)[labels_N] * classes / n
    accuracies = []
    for fit, held_out in RepeatedStratifiedKFold(n_splits=min(5, *counts), n_repeats=5, random_state=0).split(
        features_ND, labels_N
    ):
        system = kernel_NN[np.ix_(fit, fit)] + np.diag(penalty_N[fit])
        scores_HC = kernel_NN[np.ix_(held_out, fit)] @ np.linalg.solve(system, np.eye(classes)[labels_N[fit]])
        accuracies.append(balanced_accuracy_score(labels_N[held_out], scores_HC.argmax(axis=1)))
    expected = (np.mean(accuracies) - 1 / classes) / (1 - 1 / classes)
    assert probe(features_ND, NO_PROBS, labels_N) == pytest.approx(expected)


def test_static_reads_the_prior() -> None:
    # the score is the prior's, for any images
    assert static(np.eye(2), NO_PROBS, np.array([0, 1]), "birds", prior={"birds": 0.8, "digits": 0.3}) == 0.8
