"""Intervals of ratios that were measured in pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def median_interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median of some ratios, by drawing as many of them with replacement 2,000 times."""
    draws = [np.median(np.random.default_rng(draw).choice(ratios, len(ratios))) for draw in range(2000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
