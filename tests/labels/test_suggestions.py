"""Strategies that suggest pictures: nested, seeded, diverse; they pay heed to the labels and to a teacher."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.suggestions import (
    STRATEGIES,
    Pool,
    clustered,
    joint_features,
    suggested,
)

CLUSTERS = 6
SIZES = (60, 40, 30, 25, 20, 25)


def points(seed: int = 0, spread: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Points of unit length around orthogonal middles in a random order, and the cluster of each."""
    random = np.random.default_rng(seed)
    cluster_M = random.permutation(np.repeat(np.arange(CLUSTERS), SIZES))
    noisy = np.eye(CLUSTERS, 12)[cluster_M] + spread * random.standard_normal((len(cluster_M), 12))
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32), cluster_M


def pool(labels_M: np.ndarray | None = None, probs_MC: np.ndarray | None = None) -> Pool:
    features_MD, cluster_M = points()
    none = np.full(len(cluster_M), UNLABELED)
    return Pool(features_MD=features_MD, labels_M=none if labels_M is None else labels_M, probs_MC=probs_MC)


def rows(picks: list) -> list[int]:
    return [pick.row for pick in picks]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_larger_batch_contains_the_smaller_one(strategy: str) -> None:
    large = rows(suggested(pool(), 40, strategy))
    assert len(set(large)) == 40
    assert rows(suggested(pool(), 17, strategy)) == large[:17]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batch_ends_with_the_pool_and_names_nothing_labeled(strategy: str) -> None:
    labels_M = np.full(sum(SIZES), UNLABELED)
    labels_M[:190] = np.arange(190) % 3
    picks = suggested(pool(labels_M), 50, strategy)
    assert sorted(rows(picks)) == list(range(190, 200))


def test_one_in_five_is_the_next_in_the_random_order() -> None:
    picks = suggested(pool(), 20)
    assert [number for number, pick in enumerate(picks, start=1) if pick.how == "random"] == [5, 10, 15, 20]
    for number in (4, 9, 14, 19):
        left = set(range(200)) - set(rows(picks[:number]))
        assert picks[number].row == min(left)
    assert {pick.how for pick in suggested(pool(), 20, every=0)} == {"suggested"}
    assert rows(suggested(pool(), 20, "random")) == list(range(20))


@pytest.mark.parametrize("strategy", ["herding", "typical"])
def test_first_pictures_come_from_every_cluster(strategy: str) -> None:
    _, cluster_M = points()
    picks = suggested(pool(), 8, strategy, every=0)
    assert set(cluster_M[rows(picks)]) == set(range(CLUSTERS))


def test_herding_starts_in_the_largest_cluster_and_leaves_those_with_a_label() -> None:
    features_MD, cluster_M = points()
    assert cluster_M[suggested(pool(), 1)[0].row] == 0
    labels_M = np.full(len(cluster_M), UNLABELED)
    for cluster in range(CLUSTERS - 1):  # the most central picture of every cluster but the last
        members = np.flatnonzero(cluster_M == cluster)
        labels_M[members[(features_MD[members] @ features_MD[members].mean(axis=0)).argmax()]] = cluster
    assert cluster_M[suggested(pool(labels_M), 1)[0].row] == CLUSTERS - 1


def test_herding_prefers_what_the_teacher_is_unsure_of() -> None:
    _, cluster_M = points()
    labels_M = np.full(len(cluster_M), UNLABELED)
    for cluster in range(CLUSTERS):
        labels_M[np.flatnonzero(cluster_M == cluster)[:2]] = cluster % 2
    probs_MC = np.tile([0.99, 0.01], (len(cluster_M), 1))
    probs_MC[cluster_M == 4] = [0.51, 0.49]
    picks = suggested(pool(labels_M, probs_MC), 4, every=0)
    assert set(cluster_M[rows(picks)]) == {4}
    assert "unsure" in picks[0].why


def test_herding_prefers_classes_with_few_labels() -> None:
    _, cluster_M = points()
    labels_M = np.full(len(cluster_M), UNLABELED)
    labels_M[np.flatnonzero(cluster_M < 3)[:30]] = 0
    labels_M[np.flatnonzero(cluster_M == 3)[:1]] = 1
    probs_MC = np.tile([0.7, 0.3], (len(cluster_M), 1))
    alike = cluster_M[rows(suggested(pool(labels_M, probs_MC), 1, every=0))]
    assert alike.tolist() == [5], "the largest cluster without a label"
    probs_MC[cluster_M == 4] = [0.3, 0.7]  # as unsure as of the others, of the class with one label
    first = cluster_M[rows(suggested(pool(labels_M, probs_MC), 1, every=0))]
    assert first.tolist() == [4]


def test_coreset_takes_what_is_unlike_every_label() -> None:
    labels_M = np.full(sum(SIZES), UNLABELED)
    labels_M[:2] = [0, 1]
    probs_MC = np.tile([0.5, 0.5, 0.0], (sum(SIZES), 1))
    probs_MC[77] = [0.0, 0.1, 0.9]
    assert suggested(pool(labels_M, probs_MC), 1, "coreset")[0].row == 77


def test_gains_that_are_not_computed_again_change_nothing() -> None:
    """Lazy greedy against greedy, both on the formula of MaxHerding."""
    features_MD, _ = points(seed=3)
    kernel_MM = np.exp((2.0 * features_MD @ features_MD.T - 2.0) / 0.7**2)
    covered_M, expected = np.zeros(len(kernel_MM)), []
    for _ in range(25):
        gains_M = np.maximum(kernel_MM - covered_M, 0.0).sum(axis=1)
        gains_M[expected] = -1.0
        expected.append(int(gains_M.argmax()))
        covered_M = np.maximum(covered_M, kernel_MM[expected[-1]])
    chosen = Pool(features_MD=features_MD, labels_M=np.full(len(features_MD), UNLABELED))
    assert rows(suggested(chosen, 25, every=0)) == expected


def test_joint_features_weigh_sources_alike_and_keep_neighbors() -> None:
    features_MD, cluster_M = points()
    other = 1000.0 * features_MD[:, ::-1] + 5.0  # another scale, another offset
    joint_MD = joint_features([features_MD.__getitem__, other.__getitem__], len(features_MD), 6)
    assert joint_MD.shape == (200, 6)
    assert np.allclose(np.linalg.norm(joint_MD, axis=1), 1.0, atol=1e-5)
    similar_MM = joint_MD @ joint_MD.T
    is_same_MM = cluster_M[:, None] == cluster_M
    assert similar_MM[is_same_MM].mean() > 0.7
    assert similar_MM[~is_same_MM].mean() < 0.2
    clusters_M = clustered(joint_MD, CLUSTERS, seed=0)
    assert len({(a, b) for a, b in zip(clusters_M, cluster_M, strict=True)}) == CLUSTERS
