"""The number of steps of `steps: auto`, and the word about a loss that was still falling."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.distill.schedule import automatic_steps, still_falling
from edgedistill.recipe.schema import Distill


def steps(images: int, macs_m: float = 1.0, workers: float = 2.0, minutes: float = 60.0) -> int:
    settings = Distill(steps="auto", batch_labeled=16, batch_unlabeled=48, minutes=minutes)
    return automatic_steps(settings, images, 64, macs_m=macs_m, workers=workers)


def test_twenty_passes_within_bounds() -> None:
    assert steps(6400) == 2000
    assert (steps(10), steps(10**7)) == (400, 20_000)


def test_budget_bounds_the_steps() -> None:
    """64 images of 100 million MACs, three passes' worth, at two cores of 10 GMAC/s: 0.96 s a step."""
    assert steps(6400, macs_m=100.0, minutes=16.0) == 1000
    assert steps(6400, macs_m=100.0, minutes=8.0) == steps(6400, macs_m=200.0, minutes=16.0) == 500
    assert steps(6400, macs_m=100.0, minutes=16.0, workers=4.0) == 2000
    assert steps(6400, macs_m=1e6, minutes=1.0) == 50


def test_fall_of_the_loss_is_said_where_it_shows() -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, 500)
    falling, flat = np.linspace(2.0, 1.0, 500) + noise, np.concatenate([np.linspace(2, 1, 400), np.ones(100)]) + noise
    assert still_falling(list(falling)) == pytest.approx(0.2 / 1.2, abs=0.02)
    assert still_falling(list(flat)) is None
    assert still_falling(list(2.0 + 0.5 * np.random.default_rng(1).normal(size=500))) is None
    assert still_falling([3.0, 2.0, 1.0]) is None and still_falling([float("nan")] * 100) is None
