"""Features in clusters, for probes."""

from __future__ import annotations

from functools import partial

import numpy as np


def clusters(separation: float, n: int = 240, dims: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features [n, dims] in three clusters, and the cluster of each row."""
    random = np.random.default_rng(seed)
    truth = np.arange(n) % 3
    return (separation * np.eye(dims)[truth] + random.normal(size=(n, dims))).astype(np.float32), truth


def recordings(
    n_recordings: int, frames: int, classes: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Two sources' features, labels and recordings: one knows the recording alone, the other one the class, less well.

    Frames of a recording are of one class and nearly alike.
    """
    random = np.random.default_rng(seed)
    units_N = np.repeat(np.arange(n_recordings), frames)
    labels_N = units_N % classes
    recording_ND = random.normal(size=(n_recordings, 40))[units_N]
    class_ND = random.normal(size=(classes, 40))[labels_N]
    noise = partial(random.normal, size=(len(units_N), 40))
    features = {"recording": recording_ND + 0.1 * noise(), "class": class_ND + 1.5 * noise()}
    return features, labels_N, units_N
