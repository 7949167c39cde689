"""Doubtful labels: wrong ones are named, hard ones are not, and a copy does not vouch for its own label."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.distill import doubts

CLASSES = 3


def blobs(n: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features in three blobs, and their classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    centers = 4 * np.eye(CLASSES, 20)
    features = centers[labels] + spread * generator.standard_normal((n, 20))
    return features.astype(np.float32), labels


def probabilities(features: np.ndarray, labels: np.ndarray, units: np.ndarray | None = None) -> np.ndarray:
    units = np.arange(len(labels)) if units is None else units
    return doubts.out_of_fold({"only": features.__getitem__}, labels, units, CLASSES)[0]


def test_wrong_labels_are_doubtful_and_no_others() -> None:
    features, labels = blobs(120, spread=0.4)
    wrong = np.array([4, 50, 101])
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    probs = probabilities(features, labels)
    assert set(doubts.doubtful(probs, labels)) == set(wrong)
    confidences = probs[doubts.doubtful(probs, labels)].max(axis=1)
    assert (np.diff(confidences) <= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)


def test_a_copy_does_not_vouch_for_its_own_label() -> None:
    features, labels = blobs(90, spread=0.4)
    labels[0] = 1
    copies = 12
    features = np.concatenate([features, np.repeat(features[:1], copies, axis=0)])
    labels = np.concatenate([labels, np.repeat(labels[:1], copies)])
    units = np.concatenate([np.arange(90), np.zeros(copies, dtype=np.int64)])
    assert 0 in doubts.doubtful(probabilities(features, labels, units), labels)
    # as images of their own, the copies in other folds teach the wrong label
    assert 0 not in doubts.doubtful(probabilities(features, labels), labels)


def test_probabilities_are_calibrated() -> None:
    """Where classes overlap, of the predictions at 0.6 about six in ten are right."""
    features, labels = blobs(1500, spread=3.0, seed=1)
    probs = probabilities(features, labels)
    confidence, is_right = probs.max(axis=1), probs.argmax(axis=1) == labels
    for low, high in ((0.4, 0.6), (0.6, 0.8), (0.8, 1.0)):
        inside = (confidence >= low) & (confidence < high)
        assert is_right[inside].mean() == pytest.approx(confidence[inside].mean(), abs=0.06)


def test_hardly_any_clean_label_is_doubtful_where_features_tell_nothing() -> None:
    features, labels = blobs(300, spread=1.0)
    noise = np.random.default_rng(2).standard_normal(features.shape).astype(np.float32)
    assert len(doubts.doubtful(probabilities(noise, labels), labels)) == 0


def test_many_labels_are_checked_by_a_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubts, "MOST_TRAINED", 30)
    monkeypatch.setattr(doubts, "CHUNK", 7)
    features, labels = blobs(400, spread=0.4)
    labels[7] = (labels[7] + 1) % CLASSES
    probs = probabilities(features, labels)
    assert set(doubts.doubtful(probs, labels)) == {7}


def test_a_class_that_a_fold_lacks_is_no_error() -> None:
    features, labels = blobs(30, spread=0.4)
    units = np.where(labels == 2, 1000, np.arange(30))
    assert probabilities(features, labels, units).shape == (30, CLASSES)
    same = probabilities(features, np.zeros(30, dtype=np.int64))
    np.testing.assert_allclose(same, 1 / CLASSES)


def test_labels_of_a_class_that_the_teacher_never_saw_are_not_contradicted() -> None:
    features, labels = blobs(600, spread=0.4)
    kept = np.sort(np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:6]]))
    features, labels = features[kept], labels[kept]
    units = np.where(labels == 2, 0, np.arange(len(labels)))  # copies of one picture: in one fold, all of them
    probs = probabilities(features, labels, units)
    assert len(doubts.doubtful(probs, labels)) == 0
    np.testing.assert_allclose(probs[labels == 2], 1 / CLASSES)
    is_tested = doubts.out_of_fold({"only": features.__getitem__}, labels, units, CLASSES)[1]
    assert is_tested.tolist() == (labels != 2).tolist()


def test_a_rare_class_is_in_the_part_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubts, "MOST_TRAINED", 40)
    features, labels = blobs(1200, spread=0.4)
    rare = np.flatnonzero(labels == 2)[:8]
    kept = np.sort(np.concatenate([np.flatnonzero(labels != 2), rare]))
    probs = probabilities(features[kept], labels[kept])
    assert len(doubts.doubtful(probs, labels[kept])) == 0
    assert (probs[labels[kept] == 2].argmax(axis=1) == 2).all()
