"""Inputs for the tests of the metrics: features, source probabilities and labels."""

from __future__ import annotations

import numpy as np

MetricInputs = tuple[np.ndarray, np.ndarray, np.ndarray]
NO_PROBS = np.zeros((0, 0))


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Softmax over the last axis; rows of probabilities."""
    powers_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(powers_NK / powers_NK.sum(axis=1, keepdims=True))


def clusters(per_class: int, spread: float, classes: int = 3, dims: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Points around one corner per class; features [N, dims] and labels [N]."""
    labels_N = np.repeat(np.arange(classes), per_class)
    noise_ND = np.random.default_rng(0).normal(size=(len(labels_N), dims))
    return 4.0 * np.eye(classes, dims)[labels_N] + spread * noise_ND, labels_N


def noise(seed: int, n: int = 60, dims: int = 20, sources: int = 3, classes: int = 3) -> MetricInputs:
    """Features (none negative, as after a ReLU) and probabilities, both independent of the labels."""
    rng = np.random.default_rng(seed)
    features_ND = np.maximum(0.5 + rng.normal(size=(n, dims)), 0.0)
    return features_ND, softmax(rng.normal(size=(n, sources))), rng.permutation(np.arange(n) % classes)


def perfect(per_class: int = 20, classes: int = 3) -> MetricInputs:
    """One point per class, and one source class per class."""
    labels_N = np.repeat(np.arange(classes), per_class)
    return np.eye(classes)[labels_N], np.eye(classes)[labels_N], labels_N
