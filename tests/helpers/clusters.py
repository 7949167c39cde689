"""Features in clusters, for probes."""

from __future__ import annotations

import numpy as np


def clusters(separation: float, n: int = 240, dims: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features [n, dims] in three clusters, and the cluster of each row."""
    random = np.random.default_rng(seed)
    truth = np.arange(n) % 3
    return (separation * np.eye(dims)[truth] + random.normal(size=(n, dims))).astype(np.float32), truth
